//! Deployments of this process: begun, gone on with, ended in order.
//!
//! [`Deployments`] is what console and command line hold. What begins is entered here, and here two deployments are
//! kept from the same node; how its nodes are handed out is `schedule`, how it stands is `known`. It must never begin
//! anything once the process is to end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, watch};

use crate::access::driver::Driver;
use crate::cache::{Cache, CacheError, OpenBaseline};
use crate::error::{Hinted, explain};
use crate::fleet::{Fleet, Node};
use crate::https::Registry;
use crate::wire::id::DeploymentId;

use super::cancel::{Cancel, CancelError, Cancels};
use super::event::{NodeResult, NodeSummary, Summary};
use super::events::EventLog;
use super::known::Known;
use super::recover;
use super::run::Run;
use super::store::{Store, StoreError};
use super::vault::Vault;

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

pub(super) struct Inner {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) store: Store,
    pub(super) cache: Cache,
    registry: Registry,
    https_port: u16,
    pub(super) events: Arc<EventLog>,
    known: Mutex<HashMap<DeploymentId, Known>>,
    /// Grows whenever a deployment begins or ends.
    pub(super) changes: watch::Sender<u64>,
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

    /// What reads manifests and judges signatures, beside the tasks that wait for nodes.
    ///
    /// # Errors
    /// [`CacheError::Broken`].
    pub async fn with_cache<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cache) -> T + Send + 'static,
    ) -> Result<T, CacheError> {
        let cache = self.0.cache.clone();
        let done = tokio::task::spawn_blocking(move || work(&cache)).await;
        done.map_err(|_| CacheError::Broken)
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
        let (name, unsigned) = (fleet.baseline.clone(), fleet.options.unsigned);
        let opened = self.with_cache(move |cache| cache.open(&name, unsigned)).await??;
        let summary = Summary {
            deployment: deployment.clone(),
            retry_of,
            started: crate::clock::now_rfc3339(),
            ended: None,
            baseline: format!("{} {}", opened.baseline.id, opened.baseline.version),
            manifest: Some(opened.manifest),
            signature: Some(opened.standing.clone()),
            cancelled: false,
            nodes: fleet
                .nodes
                .iter()
                .map(|node| (node.address.clone(), NodeSummary::new(NodeResult::Running)))
                .collect(),
        };
        self.run(summary, fleet, opened, intent, Cancels::default(), Origin::New).await
    }

    /// Goes on with a deployment of this box that has not ended, under its own id.
    pub(super) async fn go_on(&self, summary: Summary, fleet: Fleet) -> Result<DeploymentId, StartError> {
        // Not a newer version that was imported meanwhile.
        let version = summary.baseline.split_once(' ').map_or("", |(_, version)| version).to_owned();
        let (name, unsigned) = (fleet.baseline.clone(), fleet.options.unsigned);
        let began = summary.manifest.map(|manifest| (manifest, summary.signature.clone()));
        let reopen = move |cache: &Cache| cache.reopen(&name, &version, began, unsigned);
        let opened = self.with_cache(reopen).await??;
        let cancels = self.0.store.cancels(&summary.deployment).await?;
        self.run(summary, fleet, opened, Intent::Install, cancels, Origin::Resumed).await
    }

    async fn run(
        &self,
        summary: Summary,
        fleet: Fleet,
        opened: OpenBaseline,
        intent: Intent,
        cancels: Cancels,
        origin: Origin,
    ) -> Result<DeploymentId, StartError> {
        let deployment = summary.deployment.clone();
        let cancels = watch::Sender::new(cancels);
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
            warning: opened.standing.warning().map(Into::into),
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

    /// Takes nothing new, cancels everything and waits until every node is as it was found.
    pub async fn shut_down(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        let running: Vec<_> = self.list().into_iter().filter(|listed| listed.ended.is_none()).collect();
        // All of them at once, before any is waited for: a slow disk must not let the last ones go on.
        let all = |_: &Known| Ok(Cancel::All);
        let cancelled = running.iter().filter_map(|listed| self.cancel_running(&listed.deployment, all).ok());
        let cancelled = cancelled.count();
        tracing::info!(cancelled, "the deployments that run are cancelled");
        for listed in &running {
            // One that has just ended need not be cancelled; what the store misses is told in the log.
            let durable = self.cancel_for_good(&listed.deployment, &Cancel::All).await;
            if let Err(error @ CancelError::Store(_)) = durable {
                tracing::error!(deployment = %listed.deployment, "{}", explain(&error));
            }
        }
        for listed in &running {
            self.ended(&listed.deployment).await;
        }
    }
}
