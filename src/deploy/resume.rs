//! A deployment that goes on after its box died: engines that still run are joined again, engines that are gone are
//! swept and their node begins anew.
//!
//! What it takes is kept while an engine runs: its keys, its port, and how far the node had come, sealed. What an
//! installer did meanwhile the engine itself knows, so no installer ever runs a second time. It must never trust a
//! record for more than where to look.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::error::{chain, explain};
use crate::firmware::component::Component;
use crate::firmware::outcome::Outcome;
use crate::fleet::{Fleet, Node};
use crate::secret::Secret;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Reply, Request};

use super::Deployments;
use super::authority::{Authority, Kept};
use super::before::Before;
use super::cycle::Cycle;
use super::deployments::{Intent, StartError};
use super::error::CycleError;
use super::event::{ComponentSummary, NodeResult, NodeSummary, State, Step, Summary};
use super::path::{Bring, Established, Interrupt};
use super::recover;
use super::run::Run;
use super::store::StoreError;
use super::vault::Vault;

/// An engine that was reached before answers within this, or another path is taken.
const PROBE: Duration = Duration::from_secs(2);

/// What is kept of a node while a deployment works on it.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The engine there; none while the node restarts.
    engine: Option<Engine>,
    /// What was asked of the node in this hop.
    before: Before,
    /// How components ended, as far as that was known; while an engine works, without what it was asked for.
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

/// The place a sealed value is bound to.
fn place(deployment: &DeploymentId, name: &str) -> String {
    format!("{deployment}/{name}")
}

/// What was sealed for a place; why not, in words.
fn opened<T: DeserializeOwned>(vault: Option<&Vault>, place: &str, sealed: &[u8]) -> Result<T, String> {
    let vault = vault.ok_or("this box has no key to open it with")?;
    let plain = vault.open(place, sealed).map_err(|error| error.to_string())?;
    serde_json::from_slice(&plain).map_err(|error| format!("it is not what this version writes: {error}"))
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
        let (mut done, mut fresh) = (self.components.clone(), self.fresh.clone());
        let before = match stage {
            Stage::Working => self.before.kept(&mut done, &mut fresh),
            Stage::Worked | Stage::Restarting(_) => Before::default(),
        };
        let record = Record { engine, before, done, fresh, stage };
        let plain = Zeroizing::new(serde_json::to_vec(&record).map_err(|_| CycleError::Protocol)?);
        let (deployment, name) = (&self.run.deployment, self.name_of_record());
        let sealed = vault.seal(&place(deployment, &name), &plain).map_err(|_| CycleError::Protocol)?;
        Ok(self.run.store.keep_sealed(deployment, name, sealed).await?)
    }

    async fn record(&self) -> Result<Option<Record>, CycleError> {
        let (deployment, name) = (&self.run.deployment, self.name_of_record());
        let bound = place(deployment, &name);
        let Some(sealed) = self.run.store.sealed(deployment, name).await? else { return Ok(None) };
        opened(self.run.vault.as_deref(), &bound, &sealed).map(Some).map_err(|why| CycleError::Record { why })
    }

    /// Nothing may be asked for a second time of what may have been done: nobody can say what was.
    fn doubt_all(&mut self, error: &CycleError) {
        let why = chain(error);
        let doubted = |component: &Component| {
            ComponentSummary::new(&component.id, None, None, Outcome::Unverified(why.clone()))
        };
        self.components = self.run.baseline.components.iter().map(doubted).collect();
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
        let record = match self.record().await {
            Ok(Some(record)) => record,
            // It was not come to anything yet that cannot be done again.
            Ok(None) => {
                self.take_back_first().await;
                return Ok(Resumed::Anew);
            }
            Err(error) => {
                self.step = Step::Recover;
                self.doubt_all(&error);
                return Err(error);
            }
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
            match self.rejoin_kept(engine, record.before.clone()).await {
                Ok(established) => return Ok(Resumed::Joined(Box::new(established))),
                Err(error) => {
                    let why = format!("the engine cannot be joined again: {}", chain(&error));
                    self.run.tell(&self.node.address, Step::Recover, State::Progress, Some(why));
                }
            }
        }
        self.before = record.before.without_engine();
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
    async fn rejoin_kept(&mut self, kept: Engine, before: Before) -> Result<Established, CycleError> {
        let run = self.run.uncancelled();
        let mut cycle = Cycle::new(&run, self.index, self.node);
        cycle.before = before;
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
        self.session()?.rest().await;
        self.tell(State::Done, Some("the engine still runs".into()));
        let authority = Authority::from_kept(kept.keys)?;
        let mut address = self.session()?.peer_address();
        let payloads = run.serve_payloads(&authority, address).await;
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
        self.before.joined(status.installed.into_iter().chain(installing).collect());
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

    /// What was kept of a deployment's credentials, if anything was; within, why it does not open.
    async fn credentials(
        &self,
        deployment: &DeploymentId,
    ) -> Result<Option<Result<Credentials, String>>, StoreError> {
        let sealed = self.0.store.sealed(deployment, CREDENTIALS.to_owned()).await?;
        let vault = self.0.vault.get().map(|vault| &**vault);
        let place = place(deployment, CREDENTIALS);
        Ok(sealed.map(|sealed| {
            let credentials = opened(vault, &place, &sealed);
            credentials.map_err(|why| format!("the credentials it kept cannot be read: {why}"))
        }))
    }

    /// Goes on with every deployment that a dead process of this box left unfinished and whose credentials are
    /// there. The others are closed; their traces are the sweep's. Returns those that go on.
    ///
    /// # Errors
    /// [`StoreError`]; one that cannot go on for another reason is closed.
    pub async fn resume_all(&self) -> Result<Vec<DeploymentId>, StoreError> {
        let mut resumed = Vec::new();
        for (summary, kept) in self.0.store.unfinished().await? {
            let known = match (kept, self.credentials(&summary.deployment).await?) {
                (Some(fleet), Some(Ok(credentials))) if !credentials.dry_run => Ok((fleet, credentials)),
                (_, Some(Err(why))) => Err(why),
                (Some(_), Some(Ok(_))) => Err("it was a dry run".to_owned()),
                (Some(_), None) => Err("its credentials were not kept".to_owned()),
                (None, _) => Err("its fleet was not kept".to_owned()),
            };
            let (mut fleet, credentials) = match known {
                Ok(known) => known,
                Err(why) => {
                    self.close(summary, &why).await?;
                    continue;
                }
            };
            fleet.nodes.iter_mut().zip(&credentials.nodes).for_each(|(node, secrets)| secrets.give(node));
            match self.go_on(summary.clone(), fleet).await {
                Ok(deployment) => resumed.push(deployment),
                Err(error) => {
                    self.close(summary, &explain(&error)).await?;
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
            let why = match self.credentials(&summary.deployment).await? {
                Some(Err(why)) => why,
                Some(Ok(known)) if known.dry_run => "it was a dry run".to_owned(),
                _ if same && found.is_none() => {
                    found = Some(summary);
                    continue;
                }
                _ => "another fleet is deployed now".to_owned(),
            };
            if !self.known().contains_key(&summary.deployment) {
                self.close(summary, &why).await?;
            }
        }
        match found {
            Some(summary) => self.go_on(summary, fleet.clone()).await.map(Some),
            None => Ok(None),
        }
    }

    /// Ends a deployment that does not go on. What it left on its nodes is listed until the sweep has taken it back.
    async fn close(&self, summary: Summary, why: &str) -> Result<(), StoreError> {
        tracing::error!(deployment = %summary.deployment, "cannot go on: {why}");
        let error = format!("the box's process ended before this node did, and it does not go on: {why}");
        let mut left: HashMap<String, Vec<String>> = HashMap::new();
        for entry in self.0.store.outstanding().await? {
            if entry.deployment == summary.deployment {
                let trace = format!("{}: not taken back yet", entry.undo);
                left.entry(entry.node.address).or_default().push(trace);
            }
        }
        let open =
            summary.nodes.iter().enumerate().filter(|(_, (_, node))| node.result == NodeResult::Running);
        let failed = |(index, (address, _)): (usize, &(String, NodeSummary))| {
            let mut failed =
                NodeSummary { error: Some(error.clone()), ..NodeSummary::new(NodeResult::Failed) };
            failed.outstanding_traces = left.remove(address).unwrap_or_default();
            (index, failed)
        };
        let failed: Vec<_> = open.map(failed).collect();
        self.save(&summary.deployment, &failed).await;
        if let Err(error) = self.0.store.end(&summary.deployment, &crate::clock::now_rfc3339()).await {
            tracing::error!(deployment = %summary.deployment, "its end is not in the store: {}", explain(&error));
        }
        Ok(())
    }

    /// The nodes that a dead process of this box has begun, by their number: something is journalled or kept of them.
    /// Where the store does not say, all may have.
    pub(super) async fn begun(&self, run: &Run, nodes: &[Node]) -> BTreeSet<usize> {
        if !run.resumed {
            return BTreeSet::new();
        }
        match self.noted(run, nodes).await {
            Ok(begun) => begun,
            Err(error) => {
                let deployment = &run.deployment;
                tracing::error!(%deployment, "which nodes have begun is not known, all may have: {}", explain(&error));
                (0..nodes.len()).collect()
            }
        }
    }

    async fn noted(&self, run: &Run, nodes: &[Node]) -> Result<BTreeSet<usize>, StoreError> {
        let names = self.0.store.sealed_names(&run.deployment).await?;
        let kept = names.iter().filter_map(|name| name.strip_prefix(RECORD)?.parse().ok());
        let outstanding = self.0.store.outstanding().await?.into_iter();
        let places: HashSet<_> = outstanding
            .filter(|left| left.deployment == run.deployment)
            .map(|left| recover::place(&left.node))
            .collect();
        let journalled = nodes.iter().enumerate().filter(|(_, node)| places.contains(&recover::place(node)));
        Ok(kept.chain(journalled.map(|(index, _)| index)).collect())
    }
}
