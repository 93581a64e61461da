//! What an operator took back: a whole deployment, one node of it, one component on one node or on all.
//!
//! Cancelling only ever prevents: nothing new starts, what is being written finishes, then everything is taken back.
//! It works at once and is in the store before it is acknowledged, so a box that dies does not forget it. It must never
//! interrupt a running flash; that is why this is a set to look into between steps and nothing more.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Hinted;
use crate::fleet::canonical;
use crate::wire::id::{ComponentId, DeploymentId};

use super::Deployments;
use super::known::Known;
use super::store::StoreError;

/// The store has a deployment within this after it has become known.
const BEGUN_MAX: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a node or a component was not done, in the operator's words.
pub const CANCELLED: &str = "cancelled by the operator";

/// One wish of an operator, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cancel {
    /// The whole deployment.
    All,
    /// One node, by its number in the fleet.
    Node(usize),
    /// One component.
    Component {
        /// On this node, or on all.
        node: Option<usize>,
        /// Which.
        id: ComponentId,
    },
}

/// What is cancelled of one deployment.
#[derive(Debug, Default)]
pub struct Cancels {
    all: bool,
    nodes: HashSet<usize>,
    /// On one node, or on all.
    components: HashSet<(Option<usize>, ComponentId)>,
}

impl FromIterator<Cancel> for Cancels {
    fn from_iter<T: IntoIterator<Item = Cancel>>(all: T) -> Self {
        let mut cancels = Self::default();
        all.into_iter().for_each(|cancel| cancels.add(cancel));
        cancels
    }
}

impl Cancels {
    fn add(&mut self, cancel: Cancel) {
        match cancel {
            Cancel::All => self.all = true,
            Cancel::Node(index) => _ = self.nodes.insert(index),
            Cancel::Component { node, id } => _ = self.components.insert((node, id)),
        }
    }

    /// Whether the whole deployment is.
    pub fn all(&self) -> bool {
        self.all
    }

    /// Whether this node is.
    pub fn node(&self, index: usize) -> bool {
        self.all || self.nodes.contains(&index)
    }

    /// Nodes that are cancelled one by one.
    pub fn nodes(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().copied()
    }

    /// Whether this component is, on this node.
    pub fn component(&self, index: usize, id: &ComponentId) -> bool {
        self.components.contains(&(None, id.clone())) || self.components.contains(&(Some(index), id.clone()))
    }
}

/// Why there is nothing to cancel.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// Not a deployment of this process.
    #[error("no deployment {id} runs here")]
    NoDeployment {
        /// As asked for.
        id: DeploymentId,
        /// Those that run.
        running: Vec<DeploymentId>,
    },
    /// It is over.
    #[error("deployment {id} has ended")]
    Ended {
        /// Which.
        id: DeploymentId,
    },
    /// Not one of its nodes.
    #[error("deployment {id} has no node {node}")]
    NoNode {
        /// Which deployment.
        id: DeploymentId,
        /// As asked for.
        node: String,
    },
    /// Not one of its components.
    #[error("the deployment has no component {component}")]
    NoComponent {
        /// As asked for.
        component: ComponentId,
        /// Those it has.
        known: Vec<ComponentId>,
    },
    /// The store.
    #[error("it is being cancelled, but if this box dies now it will go on when it is back")]
    Store(#[from] StoreError),
}

impl Hinted for CancelError {
    fn hint(&self) -> Option<String> {
        let list = |ids: &[String]| match ids {
            [] => "nothing runs".to_owned(),
            ids => format!("there is {}", ids.join(", ")),
        };
        let texts = |ids: &mut dyn Iterator<Item = String>| list(&ids.collect::<Vec<_>>());
        match self {
            Self::NoDeployment { running, .. } => Some(texts(&mut running.iter().map(ToString::to_string))),
            Self::NoComponent { known, .. } => Some(texts(&mut known.iter().map(ToString::to_string))),
            Self::NoNode { .. } => Some("write the node's address as the fleet does".into()),
            Self::Ended { .. } => None,
            Self::Store(_) => Some("see to the disk of the state directory, then cancel it again".into()),
        }
    }
}

impl Deployments {
    /// Cancels a deployment: nothing new starts, what is being written finishes, then everything is taken back.
    ///
    /// # Errors
    /// [`CancelError`].
    pub async fn cancel_all(&self, id: &DeploymentId) -> Result<(), CancelError> {
        self.cancel(id, |_| Ok(Cancel::All)).await
    }

    /// The same for one node; the others go on. A node that waits for its turn never begins.
    ///
    /// # Errors
    /// [`CancelError`].
    pub async fn cancel_node(&self, id: &DeploymentId, node: &str) -> Result<(), CancelError> {
        self.cancel(id, |known| Ok(Cancel::Node(index_of(known, node)?))).await
    }

    /// The same for one component, on one node or on all: it is not installed where its installation has not begun.
    ///
    /// # Errors
    /// [`CancelError`].
    pub async fn cancel_component(
        &self,
        id: &DeploymentId,
        node: Option<&str>,
        component: &ComponentId,
    ) -> Result<(), CancelError> {
        let what = |known: &Known| {
            if !known.components.contains(component) {
                let (component, known) = (component.clone(), known.components.clone());
                return Err(CancelError::NoComponent { component, known });
            }
            let node = node.map(|node| index_of(known, node)).transpose()?;
            Ok(Cancel::Component { node, id: component.clone() })
        };
        self.cancel(id, what).await
    }

    /// At once for what runs, and in the store when this returns.
    async fn cancel(
        &self,
        id: &DeploymentId,
        what: impl FnOnce(&Known) -> Result<Cancel, CancelError>,
    ) -> Result<(), CancelError> {
        let cancel = self.cancel_running(id, what)?;
        self.cancel_for_good(id, &cancel).await
    }

    /// Makes what was cancelled durable. One that begins at this moment may not be in the store yet; one that ends may
    /// not be to be cancelled any more.
    pub(super) async fn cancel_for_good(
        &self,
        id: &DeploymentId,
        cancel: &Cancel,
    ) -> Result<(), CancelError> {
        let asked = tokio::time::Instant::now();
        while !self.0.store.cancel(id, cancel).await? {
            let lives = self.known().get(id).is_some_and(Known::lives);
            if !lives || asked.elapsed() > BEGUN_MAX {
                return Err(CancelError::Ended { id: id.clone() });
            }
            // Its row is being written by another task: looked for again, not spun for.
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// At once, for what runs; returns what is to be made durable.
    pub(super) fn cancel_running(
        &self,
        id: &DeploymentId,
        what: impl FnOnce(&Known) -> Result<Cancel, CancelError>,
    ) -> Result<Cancel, CancelError> {
        let mut all = self.known();
        let Some(known) = all.get_mut(id) else {
            let running = all.values().filter(|known| known.lives());
            let running = running.map(|known| known.summary.deployment.clone()).collect();
            return Err(CancelError::NoDeployment { id: id.clone(), running });
        };
        if !known.lives() {
            return Err(CancelError::Ended { id: id.clone() });
        }
        let cancel = what(known)?;
        known.summary.cancelled |= cancel == Cancel::All;
        known.cancels.send_modify(|cancels| cancels.add(cancel.clone()));
        Ok(cancel)
    }
}

fn index_of(known: &Known, node: &str) -> Result<usize, CancelError> {
    let missing = || CancelError::NoNode { id: known.summary.deployment.clone(), node: node.to_owned() };
    let mut nodes = known.summary.nodes.iter();
    nodes.position(|(address, _)| canonical(address) == canonical(node)).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_reaches_what_it_names_and_nothing_else() {
        let (bios, nic): (ComponentId, ComponentId) = ("bios".parse().unwrap(), "nic".parse().unwrap());
        let mut cancels: Cancels = [
            Cancel::Node(2),
            Cancel::Component { node: Some(1), id: bios.clone() },
            Cancel::Component { node: None, id: nic.clone() },
        ]
        .into_iter()
        .collect();
        assert!(cancels.node(2) && !cancels.node(1) && !cancels.all());
        assert!(cancels.component(1, &bios) && !cancels.component(0, &bios));
        assert!(cancels.component(0, &nic) && cancels.component(1, &nic));
        cancels.add(Cancel::All);
        assert!(cancels.node(0));
    }
}
