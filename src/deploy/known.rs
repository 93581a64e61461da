//! How the deployments of this process stand: kept in memory for whoever asks, and in the store, a row for each node.
//!
//! A node's end costs one row, however large its fleet is; the rows of many that end at once share a commit. It must
//! never say that a deployment has ended before the store says so, or has refused to for a minute: whoever hears of the
//! end may end the process.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::error::explain;
use crate::firmware::outcome::Exit;
use crate::firmware::signature::Standing;
use crate::fleet::Node;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::inventory::Inventory;

use super::cancel::{CANCELLED, Cancels};
use super::deployments::Deployments;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::follow::Follow;
use super::recover::Place;
use super::run::Run;
use super::summary::Counts;

/// A store that does not take a deployment's end is asked again after this,
const END_EVERY: Duration = Duration::from_secs(1);

/// and no more after that.
const END_MAX: Duration = Duration::from_secs(60);

/// A deployment in a list: all of it but its nodes, however many it has.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The deployment.
    pub deployment: DeploymentId,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC; none while it runs.
    pub ended: Option<String>,
    /// The baseline.
    pub baseline: String,
    /// Why it may be used.
    pub signature: Option<Standing>,
    /// Whether the operator has cancelled it.
    pub cancelled: bool,
    /// How many nodes stand where.
    pub nodes: Counts,
    /// The exit code; none while it runs.
    pub exit: Option<u8>,
}

impl Listed {
    fn of(summary: &Summary) -> Self {
        Self {
            deployment: summary.deployment.clone(),
            started: summary.started.clone(),
            ended: summary.ended.clone(),
            baseline: summary.baseline.clone(),
            signature: summary.signature.clone(),
            cancelled: summary.cancelled,
            nodes: summary.counts(),
            exit: summary.report().exit,
        }
    }
}

/// A deployment that this process has begun or gone on with.
pub(super) struct Known {
    pub(super) summary: Summary,
    pub(super) cancels: watch::Sender<Cancels>,
    pub(super) components: Vec<ComponentId>,
    /// With their passwords, where the API gave some; kept while a trace may be left.
    pub(super) nodes: Arc<[Node]>,
    pub(super) inventories: HashMap<String, Inventory>,
    /// Its nodes; empty once it has ended.
    pub(super) places: HashSet<Place>,
}

impl Known {
    pub(super) fn lives(&self) -> bool {
        self.summary.ended.is_none()
    }

    /// What could reach its nodes is forgotten once nothing is left to be done there.
    pub(super) fn forget_credentials(&mut self) {
        let clean = self.summary.nodes.iter().all(|(_, node)| node.outstanding_traces.is_empty());
        if clean && !self.lives() {
            self.nodes = Arc::default();
        }
    }
}

impl Deployments {
    /// What a node was found to be.
    pub(super) fn found(&self, id: &DeploymentId, address: &str, inventory: Inventory) {
        if let Some(known) = self.known().get_mut(id) {
            known.inventories.insert(address.to_owned(), inventory);
        }
    }

    /// These nodes have their results.
    pub(super) async fn nodes_ended(&self, run: &Run, nodes: Vec<(usize, NodeSummary)>) {
        if nodes.is_empty() {
            return;
        }
        let traces_left = nodes.iter().any(|(_, node)| !node.outstanding_traces.is_empty());
        self.save(&run.deployment, &nodes).await;
        if let Some(known) = self.known().get_mut(&run.deployment) {
            for (index, node) in nodes {
                let Some((address, kept)) = known.summary.nodes.get_mut(index) else { continue };
                let state = if node.result == NodeResult::Done { State::Done } else { State::Failed };
                let message = node.error.clone().or_else(|| match node.result {
                    NodeResult::Cancelled => Some(CANCELLED.into()),
                    _ => None,
                });
                *kept = node;
                run.tell(address, Step::Result, state, message);
            }
        }
        if traces_left {
            self.0.traces_left.notify_one();
        }
    }

    /// Every node has its result.
    pub(super) async fn deployment_ended(&self, id: &DeploymentId) {
        let ended = crate::clock::now_rfc3339();
        // In the store first: whoever hears of the end may end the process.
        let begun = Instant::now();
        while let Err(error) = self.0.store.end(id, &ended).await {
            if begun.elapsed() >= END_MAX {
                // Whoever waits must not wait for ever.
                tracing::error!(
                    deployment = %id,
                    "it has ended, but for {} s the store could not be told: it still lists it as running, and the \
                     next start goes on with it: {}",
                    END_MAX.as_secs(),
                    explain(&error)
                );
                break;
            }
            tracing::warn!(deployment = %id, "its end is not in the store yet: {}", explain(&error));
            tokio::time::sleep(END_EVERY).await;
        }
        if let Some(known) = self.known().get_mut(id) {
            known.summary.ended = Some(ended);
            known.places = HashSet::new();
            known.forget_credentials();
        }
        // What was left on nodes that were never begun is the sweeper's again.
        self.0.traces_left.notify_one();
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Writes how nodes stand.
    pub(super) async fn save(&self, id: &DeploymentId, nodes: &[(usize, NodeSummary)]) {
        if let Err(error) = self.0.store.save_nodes(id, nodes).await {
            tracing::error!(deployment = %id, "a node's result is not in the store: {}", explain(&error));
        }
    }

    /// All deployments, newest first.
    pub fn list(&self) -> Vec<Listed> {
        let mut list: Vec<_> = self.known().values().map(|known| Listed::of(&known.summary)).collect();
        list.sort_by(|a, b| b.deployment.cmp(&a.deployment));
        list
    }

    /// Addresses of the nodes that are not yet as they were found, or still wait for their turn.
    pub fn nodes_under_way(&self) -> Vec<String> {
        let all = self.known();
        let waits = |(_, node): &&(String, NodeSummary)| node.result == NodeResult::Running;
        let nodes = all.values().filter(|known| known.lives()).flat_map(|known| &known.summary.nodes);
        nodes.filter(waits).map(|(address, _)| address.clone()).collect()
    }

    /// A deployment, and its exit code once it has ended.
    pub fn get(&self, id: &DeploymentId) -> Option<(Summary, Option<Exit>)> {
        let summary = self.known().get(id)?.summary.clone();
        let exit = summary.ended.is_some().then(|| summary.exit());
        Some((summary, exit))
    }

    /// What a deployment found its nodes to be.
    pub fn inventories(&self, id: &DeploymentId) -> HashMap<String, Inventory> {
        self.known().get(id).map(|known| known.inventories.clone()).unwrap_or_default()
    }

    /// What baselines can be named, by their ids and versions.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The number of the newest event: what is read of deployments after this call has at least it in it.
    pub fn newest_event(&self) -> u64 {
        self.0.events.newest()
    }

    /// Changes whenever a deployment begins or ends.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// A reader of all events that are kept, or of those after a number, and of those to come.
    pub fn follow(&self, after: Option<u64>) -> Follow {
        Follow::new(self.0.events.clone(), after)
    }

    /// Whether a deployment has ended, or is not known.
    pub fn has_ended(&self, id: &DeploymentId) -> bool {
        !self.known().get(id).is_some_and(Known::lives)
    }

    /// Events after a number, and those to come.
    pub fn events(&self, after: Option<u64>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        self.0.events.read(after)
    }

    /// Waits until a deployment has ended.
    pub async fn ended(&self, id: &DeploymentId) -> Option<(Summary, Exit)> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.has_ended(id) {
                return self.get(id).map(|(summary, _)| (summary.clone(), summary.exit()));
            }
            changes.changed().await.ok()?;
        }
    }
}
