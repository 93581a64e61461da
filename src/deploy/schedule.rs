//! Deployments: begun, listed, watched, cancelled; many nodes at once, within the fleet's limits.
//!
//! One task per deployment hands out nodes to at most `parallel` tasks. A task that panics is that node's failure,
//! never the deployment's. The store gets the summary whenever a node ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError};
use crate::error::{Hinted, explain};
use crate::firmware::outcome::Exit;
use crate::fleet::{Fleet, Node};
use crate::https::Registry;
use crate::wire::id::DeploymentId;
use crate::wire::inventory::Inventory;

use super::cycle::Cycle;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::events::EventLog;
use super::recover::{self, Swept};
use super::run::Run;
use super::store::{Store, StoreError};

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

struct Known {
    summary: Summary,
    cancel: watch::Sender<bool>,
    inventories: HashMap<String, Inventory>,
}

struct Inner {
    store: Store,
    cache: Cache,
    registry: Registry,
    https_port: u16,
    events: Arc<EventLog>,
    known: Mutex<HashMap<DeploymentId, Known>>,
    ended: watch::Sender<u64>,
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
            ended: watch::Sender::new(0),
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
        recover::sweep(&self.0.store, |journalled| {
            let same = |node: &&Node| node.host() == journalled.host() && node.port == journalled.port;
            fleet.and_then(|fleet| fleet.nodes.iter().find(same)).cloned()
        })
        .await
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
        self.0.store.save(&summary).await?;
        let cancel = watch::Sender::new(false);
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
            cancel: cancel.clone(),
        });
        let known = Known { summary, cancel, inventories: HashMap::new() };
        {
            let mut all = self.known();
            if all.len() >= LISTED_MAX {
                let oldest =
                    all.iter().filter(|(_, known)| known.summary.ended.is_some()).map(|(id, _)| id).min();
                if let Some(oldest) = oldest.cloned() {
                    all.remove(&oldest);
                }
            }
            all.insert(deployment.clone(), known);
        }
        let deployments = self.clone();
        tokio::spawn(async move { deployments.carry_out(run, fleet.nodes).await });
        Ok(deployment)
    }

    async fn carry_out(&self, run: Arc<Run>, nodes: Vec<Node>) {
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
                let task = tasks.spawn(async move { Cycle::new(&run, index, &node).complete().await });
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
            known.summary.clone()
        });
        self.save(summary).await;
        self.0.ended.send_modify(|count| *count += 1);
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

    /// Cancels: nothing new starts, what is being written finishes, then everything is taken back. False when
    /// there is no such deployment.
    pub fn cancel(&self, id: &DeploymentId) -> bool {
        let mut known = self.known();
        let found = known.get_mut(id);
        if let Some(known) = found {
            known.summary.cancelled = true;
            known.cancel.send_replace(true);
            return true;
        }
        false
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
        result: NodeResult::Failed,
        path: None,
        error: Some("BUG: this node's task ended without a result; please report it with the log".into()),
        components: Vec::new(),
        outstanding_traces: vec!["whatever the journal lists; run carena sweep".into()],
    }
}
