//! What an operator took back: a whole deployment, one node of it, one component on one node or on all.
//!
//! Cancelling only ever prevents: nothing new starts, what is being written finishes, then everything is taken back.
//! It must never interrupt a running flash; that is why this is a set to look into between steps and nothing more.

use std::collections::HashSet;

use crate::error::{Hinted, explain};
use crate::wire::id::{ComponentId, DeploymentId};

use super::Deployments;

/// What is cancelled of one deployment.
#[derive(Debug, Default)]
pub struct Cancels {
    all: bool,
    nodes: HashSet<usize>,
    /// On one node, or on all.
    components: HashSet<(Option<usize>, ComponentId)>,
}

impl Cancels {
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
        }
    }
}

impl Deployments {
    /// Cancels: nothing new starts, what is being written finishes, then everything is taken back. False when
    /// there is no such deployment.
    pub fn cancel(&self, id: &DeploymentId) -> bool {
        let mut known = self.known();
        let Some(known) = known.get_mut(id) else { return false };
        known.summary.cancelled = true;
        known.cancels.send_modify(|cancels| cancels.all = true);
        let (store, id) = (self.0.store.clone(), id.clone());
        // A box that dies now must not go on with it when it is back.
        tokio::spawn(async move {
            if let Err(error) = store.mark_cancelled(&id).await {
                tracing::error!(deployment = %id, "the cancel is not in the store: {}", explain(&error));
            }
        });
        true
    }

    /// The same, told when there is nothing to cancel.
    ///
    /// # Errors
    /// [`CancelError`].
    pub fn cancel_all(&self, id: &DeploymentId) -> Result<(), CancelError> {
        self.cancels(id, |_| ())?;
        self.cancel(id);
        Ok(())
    }

    /// The same for one node; the others go on. A node that waits for its turn never begins.
    ///
    /// # Errors
    /// [`CancelError`].
    pub fn cancel_node(&self, id: &DeploymentId, node: &str) -> Result<(), CancelError> {
        let index = self.index_of(id, node)?;
        self.cancels(id, |cancels| _ = cancels.nodes.insert(index))
    }

    /// The same for one component, on one node or on all: it is not installed where its installation has not begun.
    ///
    /// # Errors
    /// [`CancelError`].
    pub fn cancel_component(
        &self,
        id: &DeploymentId,
        node: Option<&str>,
        component: &ComponentId,
    ) -> Result<(), CancelError> {
        let index = node.map(|node| self.index_of(id, node)).transpose()?;
        let known = self.known().get(id).map(|known| known.components.clone()).unwrap_or_default();
        if !known.is_empty() && !known.contains(component) {
            return Err(CancelError::NoComponent { component: component.clone(), known });
        }
        self.cancels(id, |cancels| _ = cancels.components.insert((index, component.clone())))
    }

    fn cancels(&self, id: &DeploymentId, change: impl FnOnce(&mut Cancels)) -> Result<(), CancelError> {
        let known = self.known();
        match known.get(id) {
            None => {
                let running = known.values().filter(|known| known.summary.ended.is_none());
                let running = running.map(|known| known.summary.deployment.clone()).collect();
                Err(CancelError::NoDeployment { id: id.clone(), running })
            }
            Some(known) if known.summary.ended.is_some() => Err(CancelError::Ended { id: id.clone() }),
            Some(known) => {
                known.cancels.send_modify(change);
                Ok(())
            }
        }
    }

    fn index_of(&self, id: &DeploymentId, node: &str) -> Result<usize, CancelError> {
        // Tells an unknown or ended deployment first.
        self.cancels(id, |_| ())?;
        let known = self.known();
        let nodes = known.get(id).map(|known| known.summary.nodes.as_slice()).unwrap_or_default();
        nodes
            .iter()
            .position(|(address, _)| bare(address) == bare(node))
            .ok_or_else(|| CancelError::NoNode { id: id.clone(), node: node.to_owned() })
    }
}

/// One spelling of an address: without brackets, and as the standard library writes it.
fn bare(address: &str) -> String {
    let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    inner.parse::<std::net::IpAddr>().map_or_else(|_| inner.to_ascii_lowercase(), |ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_in_every_spelling() {
        assert_eq!(bare("[FD00:CA:0::0:11]"), bare("fd00:ca::11"));
        assert_eq!(bare("Node-1.lab"), bare("node-1.lab"));
        assert_ne!(bare("fd00:ca::11"), bare("fd00:ca::12"));
    }

    #[test]
    fn a_cancel_reaches_what_it_names_and_nothing_else() {
        let (bios, nic): (ComponentId, ComponentId) = ("bios".parse().unwrap(), "nic".parse().unwrap());
        let mut cancels = Cancels::default();
        cancels.nodes.insert(2);
        cancels.components.insert((Some(1), bios.clone()));
        cancels.components.insert((None, nic.clone()));
        assert!(cancels.node(2) && !cancels.node(1) && !cancels.all());
        assert!(cancels.component(1, &bios) && !cancels.component(0, &bios));
        assert!(cancels.component(0, &nic) && cancels.component(1, &nic));
        cancels.all = true;
        assert!(cancels.node(0));
    }
}
