//! Deployments: begun, listed, watched; many nodes at once, within the fleet's limits.
//!
//! One task per deployment hands the nodes out in the order of [`Turns`]. Cancelling is in `cancel`, retrying in
//! `retry`, taking back what is left in `sweeper`. A task that panics is that node's failure,
//! never the deployment's. The store gets the summary whenever a node ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError};
use crate::error::{Hinted, explain};
use crate::firmware::outcome::Exit;
use crate::fleet::{Fleet, Node};
use crate::https::Registry;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::inventory::Inventory;

use super::cancel::Cancels;
use super::cycle::Cycle;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::events::EventLog;
use super::run::Run;
use super::store::{Store, StoreError};
use super::turns::Turns;

/// Why a node or a component was not done, in the operator's words.
pub const CANCELLED: &str = "cancelled by the operator";

/// Deployments kept in memory for listing; the store keeps all.
const LISTED_MAX: usize = 1_000;

/// Why a deployment was not begun.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The baseline cannot be used.
    #[error(transparent)]
    Baseline(#[from] CacheError),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Hinted for StartError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Baseline(error) => error.hint(),
            Self::Store(error) => error.hint(),
        }
    }
}

/// Whether components are installed or only planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Install.
    Install,
    /// Plan only: everything but sending and installing is done.
    DryRun,
}

pub(super) struct Known {
    pub(super) summary: Summary,
    pub(super) cancels: watch::Sender<Cancels>,
    pub(super) components: Vec<ComponentId>,
    /// With their passwords, where the API gave some; kept while a trace may be left.
    pub(super) nodes: Arc<[Node]>,
    inventories: HashMap<String, Inventory>,
}

pub(super) struct Inner {
    pub(super) store: Store,
    cache: Cache,
    registry: Registry,
    https_port: u16,
    pub(super) events: Arc<EventLog>,
    known: Mutex<HashMap<DeploymentId, Known>>,
    ended: watch::Sender<u64>,
    /// One sweep at a time: two would ask a node twice at once.
    pub(super) sweeping: tokio::sync::Mutex<()>,
    /// A node ended with traces that could not be taken back.
    pub(super) traces_left: Notify,
}

/// All deployments of this process. Cloning shares them.
#[derive(Clone)]
pub struct Deployments(pub(super) Arc<Inner>);

impl Deployments {
    /// Over a store, a cache, and the box's HTTPS server at `https_port`.
    pub fn new(store: Store, cache: Cache, registry: Registry, https_port: u16) -> Self {
        Self(Arc::new(Inner {
            store,
            cache,
            registry,
            https_port,
            events: Arc::new(EventLog::new()),
            known: Mutex::default(),
            ended: watch::Sender::new(0),
            sweeping: tokio::sync::Mutex::default(),
            traces_left: Notify::new(),
        }))
    }

    pub(super) fn known(&self) -> MutexGuard<'_, HashMap<DeploymentId, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a deployment. It goes on by itself.
    ///
    /// # Errors
    /// [`StartError`]; no node was touched.
    pub async fn start(&self, fleet: Fleet, intent: Intent) -> Result<DeploymentId, StartError> {
        self.begin(fleet, intent, None).await
    }

    pub(super) async fn begin(
        &self,
        fleet: Fleet,
        intent: Intent,
        retry_of: Option<DeploymentId>,
    ) -> Result<DeploymentId, StartError> {
        let id = uuid::Uuid::now_v7().to_string();
        let deployment: DeploymentId = id.parse().map_err(|_| StartError::Store(StoreError::Closed))?;
        let opened = self.0.cache.open(&fleet.baseline)?;
        let summary = Summary {
            deployment: deployment.clone(),
            retry_of,
            started: crate::clock::now_rfc3339(),
            ended: None,
            baseline: format!("{} {}", opened.baseline.id, opened.baseline.version),
            cancelled: false,
            nodes: fleet
                .nodes
                .iter()
                .map(|node| (node.address.clone(), NodeSummary::new(NodeResult::Running)))
                .collect(),
        };
        self.0.store.begin(&summary, &fleet).await?;
        let cancels = watch::Sender::new(Cancels::default());
        let nodes: Arc<[Node]> = fleet.nodes.into();
        let run = Run {
            deployment: deployment.clone(),
            store: self.0.store.clone(),
            events: self.0.events.clone(),
            payloads: opened.payloads.paced(fleet.options.bandwidth_max),
            baseline: opened.baseline,
            options: Arc::new(fleet.options),
            dry_run: intent == Intent::DryRun,
            registry: self.0.registry.clone(),
            https_port: self.0.https_port,
            index: 0,
            cancels: cancels.clone(),
        };
        let components = run.baseline.components.iter().map(|component| component.id.clone()).collect();
        let known = Known { summary, cancels, components, nodes: nodes.clone(), inventories: HashMap::new() };
        self.remember(&deployment, known);
        let deployments = self.clone();
        tokio::spawn(async move { deployments.carry_out(run, nodes).await });
        Ok(deployment)
    }

    fn remember(&self, id: &DeploymentId, known: Known) {
        let mut all = self.known();
        if all.len() >= LISTED_MAX {
            let ended = all.iter().filter(|(_, known)| known.summary.ended.is_some());
            if let Some(oldest) = ended.map(|(id, _)| id).min().cloned() {
                all.remove(&oldest);
            }
        }
        all.insert(id.clone(), known);
    }

    /// Hands the nodes out as their turns come, until every one has its result.
    async fn carry_out(&self, run: Run, nodes: Arc<[Node]>) {
        let mut turns = Turns::new(&nodes, &run.options);
        let mut tasks = JoinSet::new();
        let mut indices = HashMap::new();
        let mut cancels = run.cancels.subscribe();
        loop {
            let withdrawn: Vec<usize> = cancels.borrow_and_update().nodes().collect();
            for index in withdrawn.into_iter().filter(|index| turns.withdraw(*index)) {
                self.skip(&run, index, CANCELLED).await;
            }
            while !run.cancels.borrow().all()
                && let Some(index) = turns.hand_out()
            {
                let (run, nodes) = (run.for_node(index), nodes.clone());
                let task = tasks.spawn(async move {
                    let Some(node) = nodes.get(index) else { return (broken(), None) };
                    Cycle::new(&run, index, node).complete().await
                });
                indices.insert(task.id(), index);
            }
            let ended = tokio::select! {
                ended = tasks.join_next_with_id() => ended,
                Ok(()) = cancels.changed() => continue,
            };
            let (task, node) = match ended {
                None => break,
                Some(Ok(ended)) => ended,
                Some(Err(error)) => (error.id(), (broken(), None)),
            };
            let Some(index) = indices.remove(&task) else { continue };
            turns.ended(index, node.0.result == NodeResult::Failed);
            self.node_ended(&run, index, node).await;
        }
        let why = match run.options.failures_max {
            _ if run.cancels.borrow().all() => CANCELLED.to_owned(),
            0 => "a node of an earlier wave failed".to_owned(),
            max => format!("{max} nodes failed before (failures_max)"),
        };
        for index in turns.left() {
            self.skip(&run, index, &why).await;
        }
        let summary = self.known().get_mut(&run.deployment).map(|known| {
            known.summary.ended = Some(crate::clock::now_rfc3339());
            known.summary.clone()
        });
        self.save(summary).await;
        self.0.ended.send_modify(|count| *count += 1);
    }

    async fn skip(&self, run: &Run, index: usize, why: &str) {
        let skipped = NodeSummary { error: Some(why.to_owned()), ..NodeSummary::new(NodeResult::Skipped) };
        self.node_ended(run, index, (skipped, None)).await;
    }

    async fn node_ended(
        &self,
        run: &Run,
        index: usize,
        (node, inventory): (NodeSummary, Option<Box<Inventory>>),
    ) {
        let traces_left = !node.outstanding_traces.is_empty();
        let summary = self.known().get_mut(&run.deployment).and_then(|known| {
            let address = known.summary.nodes.get(index).map(|(address, _)| address.clone())?;
            if let Some(inventory) = inventory {
                known.inventories.insert(address.clone(), *inventory);
            }
            let state = if node.result == NodeResult::Done { State::Done } else { State::Failed };
            let message = node.error.clone().or_else(|| match node.result {
                NodeResult::Cancelled => Some(CANCELLED.into()),
                _ => None,
            });
            *known.summary.node_mut(index)? = node;
            run.tell(&address, Step::Result, state, message);
            Some(known.summary.clone())
        });
        self.save(summary).await;
        if traces_left {
            self.0.traces_left.notify_one();
        }
    }

    pub(super) async fn save(&self, summary: Option<Summary>) {
        if let Some(summary) = summary
            && let Err(error) = self.0.store.save(&summary).await
        {
            tracing::error!(deployment = %summary.deployment, "the summary is not in the store: {}", explain(&error));
        }
    }

    /// All deployments, newest first.
    pub fn list(&self) -> Vec<Summary> {
        let mut list: Vec<_> = self.known().values().map(|known| known.summary.clone()).collect();
        list.sort_by(|a, b| b.deployment.cmp(&a.deployment));
        list
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

    /// Events after a number, and those to come.
    pub fn events(&self, after: Option<u64>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        self.0.events.read(after)
    }

    /// Waits until a deployment has ended.
    pub async fn ended(&self, id: &DeploymentId) -> Option<(Summary, Exit)> {
        let mut ended = self.0.ended.subscribe();
        loop {
            ended.borrow_and_update();
            match self.get(id)? {
                (summary, Some(exit)) => return Some((summary, exit)),
                (_, None) => ended.changed().await.ok()?,
            }
        }
    }

    /// Cancels everything and waits until every node is as it was found.
    pub async fn shut_down(&self) {
        let running: Vec<_> = self.list().into_iter().filter(|summary| summary.ended.is_none()).collect();
        for summary in &running {
            self.cancel(&summary.deployment);
        }
        for summary in &running {
            self.ended(&summary.deployment).await;
        }
    }
}

/// A node whose task panicked. Its traces are in the journal and are swept by the next recovery.
fn broken() -> NodeSummary {
    NodeSummary {
        error: Some("BUG: this node's task ended without a result; please report it with the log".into()),
        outstanding_traces: vec!["whatever the journal lists; run carena sweep".into()],
        ..NodeSummary::new(NodeResult::Failed)
    }
}
