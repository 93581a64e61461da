//! A deployment that goes on after its box died: engines that still run are joined again, engines that are gone are
//! swept and their node begins anew.
//!
//! What it takes is kept while an engine runs: its keys, its port, and how far the node had come, sealed. What an
//! installer did meanwhile the engine itself knows, so no installer ever runs a second time. It must never trust a
//! record for more than where to look.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::error::explain;
use crate::fleet::{Fleet, Node};
use crate::secret::Secret;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Reply, Request};

use super::Deployments;
use super::authority::{Authority, Kept};
use super::cycle::Cycle;
use super::deployments::{Intent, StartError};
use super::error::CycleError;
use super::event::{ComponentSummary, NodeResult, NodeSummary, State, Step, Summary};
use super::path::{Bring, Established, Interrupt};
use super::recover;
use super::run::Run;
use super::store::StoreError;

/// An engine that was reached before answers within this, or another path is taken.
const PROBE: Duration = Duration::from_secs(2);

/// What is kept of a node while a deployment works on it.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The engine there; none while the node restarts.
    engine: Option<Engine>,
    /// Versions before this hop installed anything.
    from: Vec<(ComponentId, Option<String>)>,
    /// How components ended, as far as that was known.
    done: Vec<ComponentSummary>,
    /// Those that were not yet seen active after a restart.
    fresh: Vec<ComponentId>,
    stage: Stage,
}

/// What it takes to join an engine again.
#[derive(Serialize, Deserialize)]
struct Engine {
    keys: Kept,
    directory: String,
    port: u16,
}

/// How far a node had come.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The engine works; what it installed meanwhile it knows itself.
    Working,
    /// All that this hop can do is done.
    Worked,
    /// The node was told to restart.
    Restarting(Restarting),
}

/// A restart that was asked for.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Restarting {
    /// The boot id before.
    pub(super) boot_id: String,
    /// When it was asked for, RFC 3339.
    pub(super) since: String,
}

/// Where a node goes on.
pub(super) enum Resumed {
    /// At its engine, which still runs.
    Joined(Box<Established>),
    /// After this hop's work.
    Worked,
    /// At the way in.
    Anew,
}

/// What a resumed node knows of before.
#[derive(Default)]
pub struct Before {
    /// Versions before this hop installed anything.
    pub from: Vec<(ComponentId, Option<String>)>,
    /// Components whose installer has begun.
    pub begun: Vec<ComponentId>,
}

impl Before {
    /// Whether a component's installer has begun; then also the version before it.
    pub fn begun(&self, id: &ComponentId) -> Option<Option<String>> {
        self.begun.contains(id).then(|| self.from.iter().find(|(other, _)| other == id)?.1.clone())
    }
}

/// The place a sealed value is bound to.
fn place(deployment: &DeploymentId, name: &str) -> String {
    format!("{deployment}/{name}")
}

/// The beginning of the name of what is kept of one node; its number follows.
const RECORD: &str = "engine ";

/// The name of what is kept of a whole deployment.
const CREDENTIALS: &str = "credentials";

/// What a service needs to go on with a deployment by itself.
#[derive(Serialize, Deserialize)]
struct Credentials {
    dry_run: bool,
    /// What came with the fleet itself, by the number of the node.
    nodes: Vec<NodeSecrets>,
}

/// A node's secrets that stand in no file.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
struct NodeSecrets {
    password: Option<String>,
    key: Option<String>,
    key_passphrase: Option<String>,
    privilege_password: Option<String>,
}

impl NodeSecrets {
    fn of(node: &Node) -> Self {
        let text = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.reveal().to_owned());
        Self {
            password: text(&node.password),
            key: text(&node.key),
            key_passphrase: text(&node.key_passphrase),
            privilege_password: text(&node.privilege_password),
        }
    }

    fn give(&self, node: &mut Node) {
        let secret = |text: &Option<String>| text.clone().map(Secret::new);
        node.password = secret(&self.password);
        node.key = secret(&self.key);
        node.key_passphrase = secret(&self.key_passphrase);
        node.privilege_password = secret(&self.privilege_password);
    }
}

impl Cycle<'_> {
    fn name_of_record(&self) -> String {
        format!("{RECORD}{}", self.index)
    }

    /// Keeps what it takes to go on, should the box die; without a vault there is nothing to keep it in.
    ///
    /// # Errors
    /// [`CycleError`] of the store.
    pub(super) async fn keep(
        &self,
        established: Option<&Established>,
        stage: Stage,
    ) -> Result<(), CycleError> {
        let Some(vault) = &self.run.vault else { return Ok(()) };
        let engine = established.map(|established| Engine {
            keys: established.authority.kept.clone(),
            directory: established.directory.clone(),
            port: established.address.port(),
        });
        let (from, done, fresh) = (self.before.from.clone(), self.components.clone(), self.fresh.clone());
        let record = Record { engine, from, done, fresh, stage };
        let plain = Zeroizing::new(serde_json::to_vec(&record).map_err(|_| CycleError::Protocol)?);
        let (deployment, name) = (&self.run.deployment, self.name_of_record());
        let sealed = vault.seal(&place(deployment, &name), &plain).map_err(|_| CycleError::Protocol)?;
        Ok(self.run.store.keep_sealed(deployment, name, sealed).await?)
    }

    async fn record(&self) -> Result<Option<Record>, CycleError> {
        let Some(vault) = &self.run.vault else { return Ok(None) };
        let (deployment, name) = (&self.run.deployment, self.name_of_record());
        let bound = place(deployment, &name);
        let sealed = self.run.store.sealed(deployment, name).await?;
        let plain = sealed.and_then(|sealed| vault.open(&bound, &sealed).ok());
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Where this node goes on after an earlier process of this box died: in the same hop, with what was known then.
    ///
    /// # Errors
    /// [`CycleError`].
    pub(super) async fn resume(&mut self) -> Result<Resumed, CycleError> {
        if !self.run.resumed {
            return Ok(Resumed::Anew);
        }
        let here = recover::place(self.node);
        let outstanding = self.run.store.outstanding().await?.into_iter();
        self.armed = outstanding
            .filter(|left| left.deployment == self.run.deployment && recover::place(&left.node) == here)
            .map(|left| (left.entry, left.undo))
            .collect();
        let Some(record) = self.record().await? else {
            self.take_back_first().await;
            return Ok(Resumed::Anew);
        };
        (self.components, self.fresh) = (record.done, record.fresh);
        match record.stage {
            Stage::Working => {}
            Stage::Worked => return Ok(Resumed::Worked),
            Stage::Restarting(restarting) => {
                self.restarting = Some(restarting);
                return Ok(Resumed::Worked);
            }
        }
        if let Some(engine) = record.engine.filter(|_| !self.armed.is_empty()) {
            match self.rejoin_kept(engine, record.from).await {
                Ok(established) => return Ok(Resumed::Joined(Box::new(established))),
                Err(error) => {
                    let why = format!("the engine cannot be joined again: {}", crate::error::chain(&error));
                    self.run.tell(&self.node.address, Step::Recover, State::Progress, Some(why));
                }
            }
        }
        self.take_back_first().await;
        Ok(Resumed::Anew)
    }

    /// What is left of the dead run goes first; what cannot is an error of the copy, and listed at the end.
    async fn take_back_first(&mut self) {
        let armed = self.armed.clone();
        if !armed.is_empty() && !self.unwind().await.is_empty() {
            self.armed = armed;
        }
    }

    /// Joins an engine again, also for a node that is cancelled: joining changes nothing there, and an installer that
    /// runs is to be heard to its end.
    async fn rejoin_kept(
        &mut self,
        kept: Engine,
        from: Vec<(ComponentId, Option<String>)>,
    ) -> Result<Established, CycleError> {
        let run = self.run.uncancelled();
        let mut cycle = Cycle::new(&run, self.index, self.node);
        cycle.before.from = from;
        let result = cycle.join_kept(kept).await;
        (self.step, self.session) = (cycle.step, cycle.session.take());
        (self.path, self.before) = (cycle.path.take(), cycle.before);
        result
    }

    async fn join_kept(&mut self, kept: Engine) -> Result<Established, CycleError> {
        self.connect().await?;
        self.enter(Step::Look)?;
        let run = self.run;
        let ground = run.unless_cancelled(self.session()?.look()).await??;
        if ground.claim.as_ref().is_none_or(|claim| claim.deployment != run.deployment) {
            return Err(CycleError::EngineGone);
        }
        self.tell(State::Done, Some("the engine still runs".into()));
        let authority = Authority::from_kept(kept.keys)?;
        let payloads = run.serve_payloads(&authority);
        let mut address = self.session()?.peer_address();
        address.set_port(kept.port);
        let port = run.driver.reach(address, PROBE).await.map_err(|_| "it does not answer".to_owned());
        let (engine, tunnel, blocked) = self.join(port, address, &kept.directory, &authority).await?;
        let mut established = Established {
            engine,
            ground,
            authority,
            bring: Bring::Fetch,
            directory: kept.directory,
            address,
            tunnel,
            payloads,
            rejoins: 0,
        };
        self.choose(&mut established, blocked).await?;
        let status = self.ask(&mut established, Request::Status, Interrupt::OnCancel).await?;
        let Reply::Status(status) = status else { return Err(CycleError::Protocol) };
        let installing = status.installing.map(|one| one.component);
        self.before.begun = status.installed.into_iter().chain(installing).collect();
        Ok(established)
    }
}

impl Deployments {
    /// Keeps what was given with the fleet and stands in no file; without a vault it is not kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn keep_credentials(
        &self,
        deployment: &DeploymentId,
        fleet: &Fleet,
        intent: Intent,
    ) -> Result<(), StoreError> {
        let Some(vault) = self.0.vault.get() else { return Ok(()) };
        let nodes = fleet.nodes.iter().map(NodeSecrets::of).collect();
        let credentials = Credentials { dry_run: intent == Intent::DryRun, nodes };
        let plain = Zeroizing::new(serde_json::to_vec(&credentials).map_err(StoreError::Record)?);
        let sealed = vault.seal(&place(deployment, CREDENTIALS), &plain);
        let sealed = sealed.map_err(|error| StoreError::Commit { why: error.to_string() })?;
        self.0.store.keep_sealed(deployment, CREDENTIALS.to_owned(), sealed).await
    }

    async fn credentials(&self, deployment: &DeploymentId) -> Result<Option<Credentials>, StoreError> {
        let Some(vault) = self.0.vault.get() else { return Ok(None) };
        let sealed = self.0.store.sealed(deployment, CREDENTIALS.to_owned()).await?;
        let plain = sealed.and_then(|sealed| vault.open(&place(deployment, CREDENTIALS), &sealed).ok());
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Goes on with every deployment that a dead process of this box left unfinished and whose credentials are
    /// there. The others are closed; their traces are the sweep's. Returns those that go on.
    ///
    /// # Errors
    /// [`StoreError`]; one that cannot go on for another reason is closed.
    pub async fn resume_all(&self) -> Result<Vec<DeploymentId>, StoreError> {
        let mut resumed = Vec::new();
        for (summary, kept) in self.0.store.unfinished().await? {
            let credentials = self.credentials(&summary.deployment).await?;
            let (Some(mut fleet), Some(credentials)) = (kept, credentials) else {
                self.close(summary).await;
                continue;
            };
            if credentials.dry_run {
                self.close(summary).await;
                continue;
            }
            fleet.nodes.iter_mut().zip(&credentials.nodes).for_each(|(node, secrets)| secrets.give(node));
            match self.go_on(summary.clone(), fleet).await {
                Ok(deployment) => resumed.push(deployment),
                Err(error) => {
                    tracing::error!(deployment = %summary.deployment, "cannot go on: {}", explain(&error));
                    self.close(summary).await;
                }
            }
        }
        Ok(resumed)
    }

    /// Goes on with the deployment of this very fleet that a dead process of this box left unfinished, under its own
    /// id. Other unfinished ones are closed; their traces are the sweep's.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn resume(&self, fleet: &Fleet) -> Result<Option<DeploymentId>, StartError> {
        let content = |fleet: &Fleet| serde_json::to_value(fleet).unwrap_or_default();
        let mut found = None;
        for (summary, kept) in self.0.store.unfinished().await? {
            let same = kept.is_some_and(|kept| content(&kept) == content(fleet));
            // What a dry run found is not what an installation has done.
            let dry = self.credentials(&summary.deployment).await?.is_some_and(|known| known.dry_run);
            if same && !dry && found.is_none() && !summary.cancelled {
                found = Some(summary);
            } else if !self.known().contains_key(&summary.deployment) {
                self.close(summary).await;
            }
        }
        match found {
            Some(summary) => self.go_on(summary, fleet.clone()).await.map(Some),
            None => Ok(None),
        }
    }

    async fn close(&self, summary: Summary) {
        let open =
            summary.nodes.iter().enumerate().filter(|(_, (_, node))| node.result == NodeResult::Running);
        let error = Some("the box's process ended before this node did".to_owned());
        let failed = NodeSummary { error, ..NodeSummary::new(NodeResult::Failed) };
        let failed: Vec<_> = open.map(|(index, _)| (index, failed.clone())).collect();
        self.save(&summary.deployment, &failed).await;
        if let Err(error) = self.0.store.end(&summary.deployment, &crate::clock::now_rfc3339()).await {
            tracing::error!(deployment = %summary.deployment, "its end is not in the store: {}", explain(&error));
        }
    }

    /// The nodes that a dead process of this box has begun, by their number: something is journalled or kept of them.
    pub(super) async fn begun(&self, run: &Run, nodes: &[Node]) -> HashSet<usize> {
        if !run.resumed {
            return HashSet::new();
        }
        let names = self.0.store.sealed_names(&run.deployment).await.unwrap_or_default();
        let kept = names.iter().filter_map(|name| name.strip_prefix(RECORD)?.parse().ok());
        let outstanding = self.0.store.outstanding().await.unwrap_or_default().into_iter();
        let places: HashSet<_> = outstanding
            .filter(|left| left.deployment == run.deployment)
            .map(|left| recover::place(&left.node))
            .collect();
        let journalled = nodes.iter().enumerate().filter(|(_, node)| places.contains(&recover::place(node)));
        kept.chain(journalled.map(|(index, _)| index)).collect()
    }
}
