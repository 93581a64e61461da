//! Deployments: begun, listed, watched; many nodes at once, within the fleet's limits.
//!
//! One task per deployment hands the nodes out in the order of [`Turns`]. Cancelling is in `cancel`, retrying in
//! `retry`, taking back what is left in `sweeper`. A task that panics is that node's failure,
//! never the deployment's. The store gets the summary whenever a node ends.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;

use crate::access::driver::Driver;
use crate::cache::{Cache, CacheError, OpenBaseline};
use crate::error::{Hinted, explain};
use crate::firmware::baseline::Baseline;
use crate::firmware::outcome::Exit;
use crate::fleet::{Fleet, Node};
use crate::https::Registry;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::inventory::Inventory;

use super::cancel::Cancels;
use super::cycle::Cycle;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::events::EventLog;
use super::follow::Follow;
use super::recover::{self, Left, Place};
use super::run::Run;
use super::store::{Store, StoreError};
use super::summary::Counts;
use super::turns::Turns;
use super::vault::Vault;

/// Why a node or a component was not done, in the operator's words.
pub const CANCELLED: &str = "cancelled by the operator";

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

/// Whether a deployment begins, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    New,
    Resumed,
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

pub(super) struct Known {
    pub(super) summary: Summary,
    pub(super) cancels: watch::Sender<Cancels>,
    pub(super) components: Vec<ComponentId>,
    /// With their passwords, where the API gave some; kept while a trace may be left.
    pub(super) nodes: Arc<[Node]>,
    inventories: HashMap<String, Inventory>,
    /// Its nodes; empty once it has ended.
    pub(super) places: HashSet<Place>,
}

impl Known {
    fn lives(&self) -> bool {
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

pub(super) struct Inner {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) store: Store,
    cache: Cache,
    registry: Registry,
    https_port: u16,
    pub(super) events: Arc<EventLog>,
    known: Mutex<HashMap<DeploymentId, Known>>,
    /// Grows whenever a deployment begins or ends.
    changes: watch::Sender<u64>,
    closing: AtomicBool,
    /// What seals what is kept of running engines.
    pub(super) vault: OnceLock<Arc<Vault>>,
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
        Self::over(crate::access::drivers(), store, cache, registry, https_port)
    }

    /// The same, with nodes that are reached by `driver`.
    pub fn over(
        driver: Arc<dyn Driver>,
        store: Store,
        cache: Cache,
        registry: Registry,
        https_port: u16,
    ) -> Self {
        Self(Arc::new(Inner {
            driver,
            store,
            cache,
            registry,
            https_port,
            events: Arc::new(EventLog::new()),
            known: Mutex::default(),
            changes: watch::Sender::new(0),
            closing: AtomicBool::new(false),
            vault: OnceLock::new(),
            sweeping: tokio::sync::Mutex::default(),
            traces_left: Notify::new(),
        }))
    }

    /// Keeps what it takes to go on after a crash, sealed by this vault.
    #[must_use = "the deployments with the vault are what is returned"]
    pub fn sealed_by(self, vault: Vault) -> Self {
        // Given once, when the process begins.
        let _ = self.0.vault.set(Arc::new(vault));
        self
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
        self.run(summary, fleet, opened, intent, Origin::New).await
    }

    /// Goes on with a deployment of this box that has not ended, under its own id.
    pub(super) async fn go_on(&self, summary: Summary, fleet: Fleet) -> Result<DeploymentId, StartError> {
        let opened = self.0.cache.open(&fleet.baseline)?;
        self.run(summary, fleet, opened, Intent::Install, Origin::Resumed).await
    }

    async fn run(
        &self,
        summary: Summary,
        fleet: Fleet,
        opened: OpenBaseline,
        intent: Intent,
        origin: Origin,
    ) -> Result<DeploymentId, StartError> {
        let deployment = summary.deployment.clone();
        let cancels = watch::Sender::new(Cancels::default());
        let nodes: Arc<[Node]> = fleet.nodes.clone().into();
        let components = &opened.baseline.components;
        let known = Known {
            summary: summary.clone(),
            cancels: cancels.clone(),
            components: components.iter().map(|component| component.id.clone()).collect(),
            nodes: nodes.clone(),
            inventories: HashMap::new(),
            places: nodes.iter().map(recover::place).collect(),
        };
        self.enter(known)?;
        if origin == Origin::New
            && let Err(error) = self.0.store.begin(&summary, &fleet).await
        {
            self.known().remove(&deployment);
            return Err(error.into());
        }
        if let Err(error) = self.keep_credentials(&deployment, &fleet, intent).await {
            tracing::warn!(%deployment, "it will not go on after a crash by itself: {}", explain(&error));
        }
        let run = Run {
            deployment: deployment.clone(),
            driver: self.0.driver.clone(),
            store: self.0.store.clone(),
            events: self.0.events.clone(),
            payloads: opened.payloads.paced(fleet.options.bandwidth_max),
            baseline: opened.baseline,
            options: Arc::new(fleet.options),
            dry_run: intent == Intent::DryRun,
            registry: self.0.registry.clone(),
            https_port: self.0.https_port,
            index: 0,
            vault: self.0.vault.get().cloned(),
            resumed: origin == Origin::Resumed,
            cancels,
        };
        self.0.changes.send_modify(|count| *count += 1);
        let deployments = self.clone();
        tokio::spawn(async move { deployments.carry_out(run, nodes).await });
        Ok(deployment)
    }

    /// Makes it known, unless one of its nodes is taken. One lock for the look and the entry: of two that want the
    /// same node at once, one gets it.
    fn enter(&self, entered: Known) -> Result<(), StartError> {
        let mut all = self.known();
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(StartError::Closing);
        }
        for (id, other) in all.iter().filter(|(_, other)| other.lives()) {
            if let Some(node) = entered.nodes.iter().find(|node| other.places.contains(&recover::place(node)))
            {
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
        match recover::left(&self.0.store, |id, node| self.is_live(id, node)).await {
            Ok(left) => left.into_iter().for_each(|left| {
                by_place.entry(recover::place(&left.node)).or_default().push(left);
            }),
            // Whatever is wrong with the journal stops each node before its first change.
            Err(error) => tracing::error!("the journal: {}", explain(&error)),
        }
        by_place
    }

    /// Hands the nodes out as their turns come, until every one has its result.
    async fn carry_out(&self, run: Run, nodes: Arc<[Node]>) {
        let mut left = self.left_behind().await;
        let mut turns = Turns::new(&nodes, &run.options);
        self.tell_ended(&run, &mut turns);
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
                let earlier = nodes.get(index).and_then(|node| left.remove(&recover::place(node)));
                let task = tasks.spawn(async move {
                    let Some(node) = nodes.get(index) else { return (broken(), None) };
                    let still_there = recover::before(&run, node, earlier.unwrap_or_default()).await;
                    let (mut summary, inventory) = Cycle::new(&run, index, node).complete().await;
                    summary.outstanding_traces.extend(still_there);
                    (summary, inventory)
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
        let ended = Some(crate::clock::now_rfc3339());
        let summary = self.known().get(&run.deployment).map(|known| known.summary.clone());
        // In the store first: whoever hears of the end may end the process.
        self.save(summary.map(|summary| Summary { ended: ended.clone(), ..summary })).await;
        if let Some(known) = self.known().get_mut(&run.deployment) {
            known.summary.ended = ended;
            known.places = HashSet::new();
            known.forget_credentials();
        }
        // What was left on nodes that were never begun is the sweeper's again.
        self.0.traces_left.notify_one();
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Nodes that had their result before the box died keep it.
    fn tell_ended(&self, run: &Run, turns: &mut Turns) {
        let nodes = self.known().get(&run.deployment).map(|known| known.summary.nodes.clone());
        for (index, (address, node)) in nodes.unwrap_or_default().into_iter().enumerate() {
            if node.result != NodeResult::Running && turns.withdraw(index) {
                let state = if node.result == NodeResult::Done { State::Done } else { State::Failed };
                turns.ended(index, node.result == NodeResult::Failed);
                run.tell(&address, Step::Result, state, node.error);
            }
        }
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
        error: Some("BUG: this node's task ended without a result; please report it with the log".into()),
        outstanding_traces: vec!["whatever the journal lists; run carena sweep".into()],
        ..NodeSummary::new(NodeResult::Failed)
    }
}
