//! Deployments: begun, listed, watched, cancelled; many nodes at once, within the fleet's limits.
//!
//! One task per deployment hands out nodes to at most `parallel` tasks. A task that panics is that node's failure,
//! never the deployment's. The store gets the summary whenever a node ends.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError};
use crate::error::{Hinted, explain};
use crate::firmware::baseline::Baseline;
use crate::firmware::outcome::Exit;
use crate::fleet::{Fleet, Node};
use crate::https::Registry;
use crate::wire::id::DeploymentId;
use crate::wire::inventory::Inventory;

use super::cycle::Cycle;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::events::EventLog;
use super::recover::{self, Left, Place, Swept};
use super::run::Run;
use super::store::{Store, StoreError};
use super::summary::Counts;

/// Deployments kept in memory for listing; the store keeps all.
const LISTED_MAX: usize = 1_000;

/// Nodes of ended deployments kept in memory, with what was found on them: some kilobytes each.
const LISTED_NODES_MAX: usize = 5_000;

/// Why a deployment was not begun.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The baseline cannot be used.
    #[error(transparent)]
    Baseline(#[from] CacheError),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A node is in a deployment that runs.
    #[error("node {node} is in deployment {deployment}, which still runs")]
    Busy {
        /// As given now.
        node: String,
        /// The one that has it.
        deployment: DeploymentId,
    },
    /// This process ends.
    #[error("the service is being stopped")]
    Closing,
}

impl Hinted for StartError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Baseline(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Busy { .. } => Some("wait for its end, cancel it, or leave the node out".into()),
            Self::Closing => Some("start it again when the service is back; no node was touched".into()),
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
            cancelled: summary.cancelled,
            nodes: summary.counts(),
            exit: summary.report().exit,
        }
    }
}

struct Known {
    summary: Summary,
    cancel: watch::Sender<bool>,
    inventories: HashMap<String, Inventory>,
    /// Its nodes; empty once it has ended.
    places: HashSet<Place>,
}

impl Known {
    fn lives(&self) -> bool {
        self.summary.ended.is_none()
    }
}

struct Inner {
    store: Store,
    cache: Cache,
    registry: Registry,
    https_port: u16,
    events: Arc<EventLog>,
    known: Mutex<HashMap<DeploymentId, Known>>,
    /// Grows whenever a deployment begins or ends.
    changes: watch::Sender<u64>,
    closing: AtomicBool,
}

/// All deployments of this process. Cloning shares them.
#[derive(Clone)]
pub struct Deployments(Arc<Inner>);

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
            changes: watch::Sender::new(0),
            closing: AtomicBool::new(false),
        }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<DeploymentId, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what earlier, dead runs left; before anything else is begun.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recover(&self, fleet: Option<&Fleet>) -> Result<Vec<Swept>, StoreError> {
        let known: HashMap<Place, &Node> =
            fleet.iter().flat_map(|fleet| &fleet.nodes).map(|node| (recover::place(node), node)).collect();
        let knows = |journalled: &Node| known.get(&recover::place(journalled)).map(|node| (*node).clone());
        recover::sweep(&self.0.store, |deployment| self.lives(deployment), knows).await
    }

    fn lives(&self, deployment: &DeploymentId) -> bool {
        self.known().get(deployment).is_some_and(Known::lives)
    }

    /// Begins a deployment. It goes on by itself.
    ///
    /// # Errors
    /// [`StartError`]; no node was touched.
    pub async fn start(&self, fleet: Fleet, intent: Intent) -> Result<DeploymentId, StartError> {
        let id = uuid::Uuid::now_v7().to_string();
        let deployment: DeploymentId = id.parse().map_err(|_| StartError::Store(StoreError::Closed))?;
        let opened = self.0.cache.open(&fleet.baseline)?;
        let waiting = || NodeSummary {
            result: NodeResult::Running,
            path: None,
            error: None,
            components: Vec::new(),
            outstanding_traces: Vec::new(),
        };
        let summary = Summary {
            deployment: deployment.clone(),
            started: crate::clock::now_rfc3339(),
            ended: None,
            baseline: format!("{} {}", opened.baseline.id, opened.baseline.version),
            cancelled: false,
            nodes: fleet.nodes.iter().map(|node| (node.address.clone(), waiting())).collect(),
        };
        let cancel = watch::Sender::new(false);
        self.enter(
            &fleet,
            Known {
                summary: summary.clone(),
                cancel: cancel.clone(),
                inventories: HashMap::new(),
                places: fleet.nodes.iter().map(recover::place).collect(),
            },
        )?;
        if let Err(error) = self.0.store.save(&summary).await {
            self.known().remove(&deployment);
            return Err(error.into());
        }
        let run = Arc::new(Run {
            deployment: deployment.clone(),
            store: self.0.store.clone(),
            events: self.0.events.clone(),
            baseline: opened.baseline,
            payloads: opened.payloads,
            options: fleet.options,
            dry_run: intent == Intent::DryRun,
            registry: self.0.registry.clone(),
            https_port: self.0.https_port,
            cancel,
        });
        self.0.changes.send_modify(|count| *count += 1);
        let deployments = self.clone();
        tokio::spawn(async move { deployments.carry_out(run, fleet.nodes).await });
        Ok(deployment)
    }

    /// Makes it known, unless one of its nodes is taken. One lock for the look and the entry: of two that want the
    /// same node at once, one gets it.
    fn enter(&self, fleet: &Fleet, entered: Known) -> Result<(), StartError> {
        let mut all = self.known();
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(StartError::Closing);
        }
        for (id, other) in all.iter().filter(|(_, other)| other.lives()) {
            if let Some(node) = fleet.nodes.iter().find(|node| other.places.contains(&recover::place(node))) {
                return Err(StartError::Busy { node: node.address.clone(), deployment: id.clone() });
            }
        }
        let ended = |all: &HashMap<DeploymentId, Known>| {
            let ended = all.iter().filter(|(_, known)| !known.lives());
            let nodes: usize = ended.clone().map(|(_, known)| known.summary.nodes.len()).sum();
            (nodes, ended.map(|(id, _)| id).min().cloned())
        };
        while let (nodes, Some(oldest)) = ended(&all)
            && (all.len() >= LISTED_MAX || nodes > LISTED_NODES_MAX)
        {
            all.remove(&oldest);
        }
        all.insert(entered.summary.deployment.clone(), entered);
        Ok(())
    }

    /// What dead deployments left, by node.
    async fn left_behind(&self) -> HashMap<Place, Vec<Left>> {
        let mut by_place: HashMap<Place, Vec<Left>> = HashMap::new();
        match recover::left(&self.0.store, |deployment| self.lives(deployment)).await {
            Ok(left) => left.into_iter().for_each(|left| {
                by_place.entry(recover::place(&left.node)).or_default().push(left);
            }),
            // Whatever is wrong with the journal stops each node before its first change.
            Err(error) => tracing::error!("the journal: {}", explain(&error)),
        }
        by_place
    }

    async fn carry_out(&self, run: Arc<Run>, nodes: Vec<Node>) {
        let mut left = self.left_behind().await;
        let mut tasks = JoinSet::new();
        let mut indices = HashMap::new();
        let mut waiting = nodes.into_iter().enumerate();
        let mut failures = 0;
        loop {
            let stopped = |failures| run.options.failures_max > 0 && failures >= run.options.failures_max;
            while tasks.len() < usize::from(run.options.parallel) && !run.is_cancelled() && !stopped(failures)
            {
                let Some((index, node)) = waiting.next() else { break };
                let run = run.clone();
                let earlier = left.remove(&recover::place(&node)).unwrap_or_default();
                let task = tasks.spawn(async move {
                    let still_there = recover::before(&run, &node, earlier).await;
                    let (mut summary, inventory) = Cycle::new(&run, index, &node).complete().await;
                    summary.outstanding_traces.extend(still_there);
                    (summary, inventory)
                });
                indices.insert(task.id(), index);
            }
            let Some(ended) = tasks.join_next_with_id().await else { break };
            let (task, node) = match ended {
                Ok((task, node)) => (task, node),
                Err(error) => (error.id(), (broken(), None)),
            };
            let Some(index) = indices.remove(&task) else { continue };
            if node.0.result == NodeResult::Failed {
                failures += 1;
            }
            self.node_ended(&run, index, node).await;
        }
        for (index, _) in waiting {
            let why =
                if run.is_cancelled() { "cancelled by the operator" } else { "too many nodes failed before" };
            let skipped = NodeSummary {
                result: NodeResult::Skipped,
                path: None,
                error: Some(why.to_owned()),
                components: Vec::new(),
                outstanding_traces: Vec::new(),
            };
            self.node_ended(&run, index, (skipped, None)).await;
        }
        let summary = self.known().get_mut(&run.deployment).map(|known| {
            known.summary.ended = Some(crate::clock::now_rfc3339());
            known.summary.cancelled = *known.cancel.borrow();
            known.places = HashSet::new();
            known.summary.clone()
        });
        self.save(summary).await;
        self.0.changes.send_modify(|count| *count += 1);
    }

    async fn node_ended(
        &self,
        run: &Run,
        index: usize,
        (node, inventory): (NodeSummary, Option<Box<Inventory>>),
    ) {
        let summary = self.known().get_mut(&run.deployment).and_then(|known| {
            let address = known.summary.nodes.get(index).map(|(address, _)| address.clone())?;
            if let Some(inventory) = inventory {
                known.inventories.insert(address.clone(), *inventory);
            }
            let state = if node.result == NodeResult::Done { State::Done } else { State::Failed };
            let message = node.error.clone().or_else(|| match node.result {
                NodeResult::Cancelled => Some("cancelled by the operator".into()),
                _ => None,
            });
            *known.summary.node_mut(index)? = node;
            run.tell(&address, Step::Result, state, message);
            Some(known.summary.clone())
        });
        self.save(summary).await;
    }

    async fn save(&self, summary: Option<Summary>) {
        if let Some(summary) = summary
            && let Err(error) = self.0.store.save(&summary).await
        {
            tracing::error!(deployment = %summary.deployment, "the summary is not in the store: {}", explain(&error));
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

    /// Cancels: nothing new starts, what is being written finishes, then everything is taken back. False when
    /// there is no such deployment.
    pub fn cancel(&self, id: &DeploymentId) -> bool {
        let mut known = self.known();
        let found = known.get_mut(id);
        let Some(known) = found else { return false };
        if known.lives() {
            known.summary.cancelled = true;
            known.cancel.send_replace(true);
        }
        true
    }

    /// The baselines that can be named by their id.
    pub fn baselines(&self) -> Vec<Baseline> {
        self.0.cache.baselines()
    }

    /// The number of the newest event: what is read of deployments after this call has at least it in it.
    pub fn newest_event(&self) -> u64 {
        self.0.events.newest()
    }

    /// Changes whenever a deployment begins or ends.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
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
            match self.get(id)? {
                (summary, Some(exit)) => return Some((summary, exit)),
                (_, None) => changes.changed().await.ok()?,
            }
        }
    }

    /// Takes nothing new, cancels everything and waits until every node is as it was found.
    pub async fn shut_down(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        let running: Vec<_> = self.list().into_iter().filter(|listed| listed.ended.is_none()).collect();
        for listed in &running {
            self.cancel(&listed.deployment);
        }
        for listed in &running {
            self.ended(&listed.deployment).await;
        }
    }
}

/// A node whose task panicked. Its traces are in the journal and are swept by the next recovery.
fn broken() -> NodeSummary {
    NodeSummary {
        result: NodeResult::Failed,
        path: None,
        error: Some("BUG: this node's task ended without a result; please report it with the log".into()),
        components: Vec::new(),
        outstanding_traces: vec!["whatever the journal lists; run carena sweep".into()],
    }
}
