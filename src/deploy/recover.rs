//! What is outstanding in the journal is taken back: after a crash, when a node is back, when an operator sweeps.
//!
//! It works from the store's journal alone. Credentials are read anew from where the fleet pointed; `knows` hands
//! over better ones (a fleet given now, a prompt). It never touches what it cannot identify as ours, which is the
//! undo's own check, nor what a deployment that lives in this process still needs, which is what `live` says.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::driver::Driver;
use crate::access::undo::{EntryId, Undo};
use crate::fleet::Node;
use crate::wire::id::DeploymentId;

use super::event::{State, Step};
use super::run::Run;
use super::store::{Outstanding, Store, StoreError};
use super::unwind::{StillThere, take_back};

/// Nodes swept at once.
const PARALLEL: usize = 32;

/// All traces of one deployment on one node.
pub struct Left {
    /// Whose.
    pub deployment: DeploymentId,
    /// Where, and how it is reached.
    pub node: Node,
    undos: Vec<(EntryId, Undo)>,
}

/// What makes two nodes the same one: the address, whatever its notation, and the port.
pub type Place = (String, u16);

/// The place of a node.
pub fn place(node: &Node) -> Place {
    (node.canonical_host(), node.port)
}

/// What became of one trace.
#[derive(Debug, Clone, Serialize)]
pub struct Swept {
    /// The node.
    pub node: String,
    /// Whose trace.
    pub deployment: DeploymentId,
    /// What.
    pub trace: String,
    /// Why it is still there; none when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outstanding: Option<String>,
    /// The node has refused the credentials: only a person's next sweep tries again.
    #[serde(skip)]
    pub refused: bool,
}

impl Swept {
    /// How a later deployment on this node lists it; none when it is gone.
    pub fn still_there(&self) -> Option<String> {
        let why = self.outstanding.as_ref()?;
        Some(format!("{}: {why} {}", self.trace, mention(&self.deployment)))
    }
}

/// Everything outstanding but what `live` says is still in use, by deployment and node.
///
/// # Errors
/// [`StoreError`] when the journal cannot be read.
pub async fn left(
    store: &Store,
    live: impl Fn(&DeploymentId, &Node) -> bool,
) -> Result<Vec<Left>, StoreError> {
    let mut all: Vec<Left> = Vec::new();
    let mut index = HashMap::new();
    // Asked after the journal was read: a node that was in use when its entry was read has ended by then at worst.
    let outstanding = store.outstanding().await?;
    for Outstanding { entry, deployment, node, undo } in outstanding {
        if live(&deployment, &node) {
            continue;
        }
        let at = *index.entry((deployment.clone(), place(&node))).or_insert(all.len());
        match all.get_mut(at) {
            Some(left) => left.undos.push((entry, undo)),
            None => all.push(Left { deployment, node, undos: vec![(entry, undo)] }),
        }
    }
    Ok(all)
}

impl Left {
    /// Takes these traces back, reaching their node as `node` says.
    pub async fn take_back(&self, driver: &dyn Driver, store: &Store, node: &Node) -> Vec<Swept> {
        let (session, results) = take_back(driver, store, node, &self.deployment, None, &self.undos).await;
        if let Some(session) = session {
            session.close().await;
        }
        let swept = |((_, undo), result): (&(EntryId, Undo), Result<(), StillThere>)| Swept {
            node: self.node.address.clone(),
            deployment: self.deployment.clone(),
            trace: undo.to_string(),
            refused: result.as_ref().is_err_and(|still| still.refused),
            outstanding: result.err().map(|still| still.why),
        };
        self.undos.iter().zip(results).map(swept).collect()
    }
}

/// Takes back what dead deployments left on a node, before a new one begins there; returns what became of each trace.
pub async fn before(run: &Run, node: &Node, left: Vec<Left>) -> Vec<Swept> {
    let mut all = Vec::new();
    for left in left {
        run.tell(&node.address, Step::Recover, State::Started, Some(format!("left by {}", left.deployment)));
        for swept in left.take_back(&*run.driver, &run.store, node).await {
            match swept.still_there() {
                None => run.tell(&node.address, Step::Recover, State::Undone, Some(swept.trace.clone())),
                told => run.tell(&node.address, Step::Recover, State::Failed, told),
            }
            all.push(swept);
        }
    }
    all
}

/// How a deployment's summary says that a trace is an earlier one's.
pub fn mention(id: &DeploymentId) -> String {
    format!("(left by deployment {id})")
}

/// Takes all of it back, many nodes at once; `knows` may replace a journalled node by one with usable credentials.
pub async fn sweep(
    driver: &Arc<dyn Driver>,
    store: &Store,
    left: Vec<Left>,
    knows: impl Fn(&DeploymentId, &Node) -> Option<Node>,
) -> Vec<Swept> {
    let limit = Arc::new(Semaphore::new(PARALLEL));
    let mut tasks = JoinSet::new();
    for left in left {
        let node = knows(&left.deployment, &left.node).unwrap_or_else(|| left.node.clone());
        let (driver, store, limit) = (driver.clone(), store.clone(), limit.clone());
        tasks.spawn(async move {
            let _turn = limit.acquire_owned().await;
            left.take_back(&*driver, &store, &node).await
        });
    }
    let mut swept = Vec::new();
    while let Some(done) = tasks.join_next().await {
        swept.extend(done.unwrap_or_default());
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::undo::EngineFiles;

    #[test]
    fn a_node_is_the_same_in_every_notation() {
        let node = |address: &str| -> Node {
            toml::from_str(&format!("address = \"{address}\"\nuser = \"root\"")).unwrap()
        };
        for same in ["fd00:ca::11", "[fd00:ca::11]", "FD00:CA:0:0:0:0:0:11"] {
            assert_eq!(place(&node(same)), ("fd00:ca::11".to_owned(), 22), "{same}");
        }
        assert_eq!(place(&node("Node1.lab.")), place(&node("node1.lab")));
        assert_ne!(place(&node("node1.lab")), place(&node("node2.lab")));
    }

    #[tokio::test]
    async fn what_a_live_deployment_needs_is_not_taken_back() {
        let store = Store::in_memory().unwrap();
        let node: Node = toml::from_str("address = \"fd00::1\"\nuser = \"root\"").unwrap();
        for deployment in ["live", "dead", "dead"] {
            let undo = Undo::from(EngineFiles { directory: format!("/tmp/carena-{deployment}") });
            store.arm(&deployment.parse().unwrap(), &node, &undo).await.unwrap();
        }
        let left = left(&store, |deployment, _| deployment.as_str() == "live").await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].deployment.as_str(), left[0].undos.len()), ("dead", 2));
    }
}
