//! A deployment that goes on after its box died: engines that still run are joined again, engines that are gone are
//! swept and their node begins anew.
//!
//! What it takes is kept while an engine runs: its keys, its port, and how far the node had come, sealed. What an
//! installer did meanwhile the engine itself knows, so no installer ever runs a second time. It must never trust a
//! record for more than where to look.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Reply, Request};

use super::Deployments;
use super::authority::{Authority, Kept};
use super::cycle::Cycle;
use super::error::CycleError;
use super::establish::reach;
use super::event::{ComponentSummary, NodeResult, NodeSummary, State, Step, Summary};
use super::path::{Bring, Established, Interrupt};
use super::recover;
use super::schedule::StartError;

/// An engine that was reached before answers within this, or another path is taken.
const PROBE: Duration = Duration::from_secs(2);

/// What is kept of a node while an engine runs there.
#[derive(Serialize, Deserialize)]
struct Record {
    keys: Kept,
    directory: String,
    port: u16,
    /// Versions before anything was installed.
    from: Vec<(ComponentId, Option<String>)>,
    /// How every component ended, once all have.
    done: Option<Vec<ComponentSummary>>,
}

/// What a resumed node knows of before.
#[derive(Default)]
pub struct Before {
    /// Versions before anything was installed.
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

impl Cycle<'_> {
    fn place_of_record(&self) -> String {
        format!("{}/{}", self.run.deployment, self.index)
    }

    /// Keeps what it takes to go on, should the box die; without a vault there is nothing to keep it in.
    ///
    /// # Errors
    /// [`CycleError`] of the store.
    pub(super) async fn keep(
        &self,
        established: &Established,
        from: &[(ComponentId, Option<String>)],
        done: Option<&[ComponentSummary]>,
    ) -> Result<(), CycleError> {
        let Some(vault) = &self.run.vault else { return Ok(()) };
        let record = Record {
            keys: established.authority.kept.clone(),
            directory: established.directory.clone(),
            port: established.address.port(),
            from: from.to_vec(),
            done: done.map(<[_]>::to_vec),
        };
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(&record).map_err(|_| CycleError::Protocol)?);
        let sealed = vault.seal(&self.place_of_record(), &plain).map_err(|_| CycleError::Protocol)?;
        Ok(self.run.store.keep_engine(&self.run.deployment, self.index, sealed).await?)
    }

    async fn record(&self) -> Result<Option<Record>, CycleError> {
        let Some(vault) = &self.run.vault else { return Ok(None) };
        let sealed = self.run.store.engine(&self.run.deployment, self.index).await?;
        let plain = sealed.and_then(|sealed| vault.open(&self.place_of_record(), &sealed).ok());
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// The engine that an earlier process of this box left running for this node; none when the node begins anew.
    /// Where everything was done already, [`Cycle::components`] is full.
    ///
    /// # Errors
    /// [`CycleError`].
    pub(super) async fn resume(&mut self) -> Result<Option<Established>, CycleError> {
        if !self.run.resumed {
            return Ok(None);
        }
        let here = recover::place(self.node);
        let outstanding = self.run.store.outstanding().await?.into_iter();
        self.armed = outstanding
            .filter(|left| left.deployment == self.run.deployment && recover::place(&left.node) == here)
            .map(|left| (left.entry, left.undo))
            .collect();
        if self.armed.is_empty() {
            return Ok(None);
        }
        if let Some(record) = self.record().await? {
            if let Some(done) = record.done {
                self.components = done;
                return Ok(None);
            }
            match self.rejoin_kept(record).await {
                Ok(established) => return Ok(Some(established)),
                Err(CycleError::Cancelled) => return Err(CycleError::Cancelled),
                Err(error) => {
                    let why = format!("the engine cannot be joined again: {}", crate::error::chain(&error));
                    self.run.tell(&self.node.address, Step::Recover, State::Progress, Some(why));
                }
            }
        }
        // What is left of the dead run goes first; what cannot is an error of the copy, and listed at the end.
        let armed = self.armed.clone();
        if !self.unwind().await.is_empty() {
            self.armed = armed;
        }
        Ok(None)
    }

    async fn rejoin_kept(&mut self, record: Record) -> Result<Established, CycleError> {
        self.connect().await?;
        self.enter(Step::Look)?;
        let run = self.run;
        let ground = run.unless_cancelled(self.session()?.look()).await??;
        if ground.claim.as_ref().is_none_or(|claim| claim.deployment != run.deployment) {
            return Err(CycleError::EngineGone);
        }
        self.tell(State::Done, Some("the engine still runs".into()));
        let authority = Authority::from_kept(record.keys)?;
        let payloads = run.serve_payloads(&authority);
        let mut address = self.session()?.peer_address();
        address.set_port(record.port);
        let port = reach(address, PROBE).await.ok_or_else(|| "it does not answer".to_owned());
        let (engine, tunnel, blocked) = self.join(port, address, &record.directory, &authority).await?;
        let mut established = Established {
            engine: Arc::new(engine),
            ground,
            authority,
            bring: Bring::Fetch,
            directory: record.directory,
            address,
            tunnel,
            payloads,
            rejoins: 0,
        };
        self.choose(&mut established, blocked).await?;
        let status = self.ask(&mut established, Request::Status, Interrupt::OnCancel).await?;
        let Reply::Status(status) = status else { return Err(CycleError::Protocol) };
        self.before = Before {
            from: record.from,
            begun: status.installed.into_iter().chain(status.installing.map(|one| one.component)).collect(),
        };
        Ok(established)
    }
}

impl Deployments {
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
            if same && found.is_none() && !summary.cancelled {
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

    async fn close(&self, mut summary: Summary) {
        summary.ended = Some(crate::clock::now_rfc3339());
        for (_, node) in &mut summary.nodes {
            if node.result == NodeResult::Running {
                let error = Some("the box's process ended before this node did".to_owned());
                *node = NodeSummary { error, ..NodeSummary::new(NodeResult::Failed) };
            }
        }
        self.save(Some(summary)).await;
    }
}
