//! What a dead run left on nodes is taken back before anything new begins, and whenever an operator sweeps.
//!
//! It works from the store's journal alone. Credentials are read anew from where the fleet pointed; `knows` hands
//! over better ones (a fleet given now, a prompt). It never touches what it cannot identify as ours: that is the
//! undo's own check.

use serde::Serialize;

use crate::access::undo::{EntryId, Undo};
use crate::fleet::Node;
use crate::wire::id::DeploymentId;

use super::store::{Outstanding, Store, StoreError};
use super::unwind::take_back;

/// Nodes swept at once.
const PARALLEL: usize = 32;

/// All traces of one deployment on one node.
type Group = (DeploymentId, Node, Vec<(EntryId, Undo)>);

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

/// Takes back everything outstanding; `knows` may replace a journalled node by one with usable credentials.
///
/// # Errors
/// [`StoreError`] when the journal cannot be read; a node's failure is in its [`Swept`].
pub async fn sweep(store: &Store, knows: impl Fn(&Node) -> Option<Node>) -> Result<Vec<Swept>, StoreError> {
    let mut groups: Vec<Group> = Vec::new();
    for Outstanding { entry, deployment, node, undo } in store.outstanding().await? {
        let same = |(other, at, _): &&mut Group| {
            *other == deployment && at.host() == node.host() && at.port == node.port
        };
        match groups.iter_mut().find(same) {
            Some((_, _, undos)) => undos.push((entry, undo)),
            None => groups.push((deployment, node, vec![(entry, undo)])),
        }
    }
    let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(PARALLEL));
    let mut tasks = tokio::task::JoinSet::new();
    for (deployment, node, undos) in groups {
        let node = knows(&node).unwrap_or(node);
        let (store, limit) = (store.clone(), limit.clone());
        tasks.spawn(async move {
            let _turn = limit.acquire_owned().await;
            let (session, results) = take_back(&store, &node, &deployment, None, &undos).await;
            if let Some(session) = session {
                session.close().await;
            }
            let swept = |((_, undo), result): (&(EntryId, Undo), Result<(), String>)| Swept {
                node: node.address.clone(),
                deployment: deployment.clone(),
                trace: undo.to_string(),
                outstanding: result.err(),
            };
            undos.iter().zip(results).map(swept).collect::<Vec<_>>()
        });
    }
    let mut swept = Vec::new();
    while let Some(done) = tasks.join_next().await {
        swept.extend(done.unwrap_or_default());
    }
    Ok(swept)
}
