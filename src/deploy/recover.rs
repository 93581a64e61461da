//! What a dead run left on nodes is taken back before anything new begins, and whenever an operator sweeps.
//!
//! It works from the store's journal alone. Credentials are read anew from where the fleet pointed; `knows` hands
//! over better ones (a fleet given now, a prompt). It never touches what it cannot identify as ours: that is the
//! undo's own check.

use std::collections::HashMap;

use serde::Serialize;

use crate::access::undo::{EntryId, Undo};
use crate::fleet::Node;
use crate::wire::id::DeploymentId;

use super::event::{State, Step};
use super::run::Run;
use super::store::{Outstanding, Store, StoreError};
use super::unwind::take_back;

/// Nodes swept at once.
const PARALLEL: usize = 32;

/// All traces of one dead deployment on one node.
pub struct Left {
    /// Whose.
    pub deployment: DeploymentId,
    /// Where, as it was reached then.
    pub node: Node,
    undos: Vec<(EntryId, Undo)>,
}

/// What makes two nodes the same one: the address, whatever its notation, and the port.
pub type Place = (String, u16);

/// The place of a node.
pub fn place(node: &Node) -> Place {
    let host = node.host();
    let one = host.parse::<std::net::IpAddr>().map_or_else(
        |_| host.trim_end_matches('.').to_ascii_lowercase(),
        |address| address.to_canonical().to_string(),
    );
    (one, node.port)
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
}

/// What dead deployments left. `lives` says which deployments run in this process: their traces are theirs.
///
/// # Errors
/// [`StoreError`] when the journal cannot be read.
pub async fn left(store: &Store, lives: impl Fn(&DeploymentId) -> bool) -> Result<Vec<Left>, StoreError> {
    let mut groups: Vec<Left> = Vec::new();
    let mut index = HashMap::new();
    // Asked after the journal was read: whoever has an entry in it lived before, so nobody who lives is missed.
    for Outstanding { entry, deployment, node, undo } in store.outstanding().await? {
        if lives(&deployment) {
            continue;
        }
        let at = *index.entry((deployment.clone(), place(&node))).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.undos.push((entry, undo)),
            None => groups.push(Left { deployment, node, undos: vec![(entry, undo)] }),
        }
    }
    Ok(groups)
}

impl Left {
    /// Takes these traces back, reaching their node as `node` says.
    pub async fn take_back(&self, store: &Store, node: &Node) -> Vec<Swept> {
        let (session, results) = take_back(store, node, &self.deployment, None, &self.undos).await;
        if let Some(session) = session {
            session.close().await;
        }
        let swept = |((_, undo), result): (&(EntryId, Undo), Result<(), String>)| Swept {
            node: node.address.clone(),
            deployment: self.deployment.clone(),
            trace: undo.to_string(),
            outstanding: result.err(),
        };
        self.undos.iter().zip(results).map(swept).collect()
    }
}

/// Takes back what dead deployments left on a node, before a new one begins there; returns what is still there.
pub async fn before(run: &Run, node: &Node, left: Vec<Left>) -> Vec<String> {
    let mut still_there = Vec::new();
    for left in left {
        run.tell(&node.address, Step::Recover, State::Started, Some(format!("left by {}", left.deployment)));
        for swept in left.take_back(&run.store, node).await {
            match swept.outstanding {
                None => run.tell(&node.address, Step::Recover, State::Undone, Some(swept.trace)),
                Some(why) => {
                    let told = format!("{}: {why} (left by deployment {})", swept.trace, swept.deployment);
                    run.tell(&node.address, Step::Recover, State::Failed, Some(told.clone()));
                    still_there.push(told);
                }
            }
        }
    }
    still_there
}

/// Takes back everything that dead deployments left; `knows` may replace a journalled node by one with usable
/// credentials.
///
/// # Errors
/// [`StoreError`] when the journal cannot be read; a node's failure is in its [`Swept`].
pub async fn sweep(
    store: &Store,
    lives: impl Fn(&DeploymentId) -> bool,
    knows: impl Fn(&Node) -> Option<Node>,
) -> Result<Vec<Swept>, StoreError> {
    let groups = left(store, lives).await?;
    let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(PARALLEL));
    let mut tasks = tokio::task::JoinSet::new();
    for group in groups {
        let node = knows(&group.node).unwrap_or_else(|| group.node.clone());
        let (store, limit) = (store.clone(), limit.clone());
        tasks.spawn(async move {
            let _turn = limit.acquire_owned().await;
            group.take_back(&store, &node).await
        });
    }
    let mut swept = Vec::new();
    while let Some(done) = tasks.join_next().await {
        swept.extend(done.unwrap_or_default());
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::undo::EngineFiles;

    fn node(address: &str) -> Node {
        toml::from_str(&format!("address = \"{address}\"\nuser = \"root\"")).unwrap()
    }

    #[test]
    fn a_node_is_the_same_in_every_notation() {
        for same in ["fd00:ca::11", "[fd00:ca::11]", "FD00:CA:0:0:0:0:0:11"] {
            assert_eq!(place(&node(same)), ("fd00:ca::11".to_owned(), 22), "{same}");
        }
        assert_eq!(place(&node("Node1.lab.")), place(&node("node1.lab")));
        assert_ne!(place(&node("node1.lab")), place(&node("node2.lab")));
    }

    #[tokio::test]
    async fn traces_of_a_living_deployment_are_not_left_behind() {
        let store = Store::in_memory().unwrap();
        let [dead, lives]: [DeploymentId; 2] = ["dead".parse().unwrap(), "lives".parse().unwrap()];
        for (deployment, address) in [(&dead, "fd00::1"), (&lives, "fd00::1"), (&dead, "[fd00::1]")] {
            let undo = Undo::from(EngineFiles { directory: "/tmp/carena-x".into() });
            store.arm(deployment, &node(address), &undo).await.unwrap();
        }
        let left = left(&store, |deployment| *deployment == lives).await.unwrap();
        let found: Vec<_> = left.iter().map(|left| (left.deployment.as_str(), left.undos.len())).collect();
        assert_eq!(found, [("dead", 2)]);
    }
}
