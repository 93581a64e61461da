//! The way in: connect, look, copy, start, open, join. At its end an engine of ours runs on the node and talks to us.
//!
//! It is one function so that it can be gone a second time: after a reboot of the node, and in the middle of a
//! deployment that goes on. Each step that changes the node arms its undo first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::control::{ControlError, Duplex};
use crate::access::driver::{AccessError, Engine, EngineImage, Firewall, Ground, NodeSession, TunnelEnd};
use crate::access::undo::{EngineFiles, EngineProcess, EntryId, FirewallRule, Ledger, Undo, arm};
use crate::error::chain;
use crate::fleet::{Node, OpenFirewall};
use crate::wire::PROTOCOL;
use crate::wire::firewall::RuleSpec;
use crate::wire::id::DeploymentId;
use crate::wire::message::StartConfig;

use super::authority::Authority;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{State, Step};
use super::path::{Bring, Established};
use super::resume::Stage;
use super::store::{Store, StoreError};

/// How long the engine's port may take to answer, in round trips to the node: the kernel answers, in one. A port that a
/// firewall drops never answers, and this is the price of finding out. A lost packet makes an open port look closed;
/// then a rule is added that was not needed, and taken back.
const PROBE_ROUND_TRIPS: u32 = 4;

/// At least this, for a busy node; at most that.
const PROBE_BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The same after the port was opened: now it should answer, so a slow network gets its time.
const PROBE_OPENED: Duration = Duration::from_secs(5);

/// Bytes that must stay free beside engine and payloads.
const ROOM_MARGIN_BYTES: u64 = 8 * 1024 * 1024;

/// Files beside the payloads: directory, program, marker, pid, rule, and what an installer may unpack.
const ROOM_MARGIN_FILES: u64 = 64;

/// The journal of one node: what is armed here bears its address.
struct NodeLedger<'a> {
    store: &'a Store,
    deployment: &'a DeploymentId,
    node: &'a Node,
}

impl Ledger for NodeLedger<'_> {
    type Error = StoreError;

    async fn record(&self, undo: &Undo) -> Result<EntryId, StoreError> {
        self.store.arm(self.deployment, self.node, undo).await
    }
}

impl Cycle<'_> {
    /// All steps of the way in.
    ///
    /// # Errors
    /// [`CycleError`]; what was armed until then is taken back by the unwind.
    pub async fn establish(&mut self) -> Result<Established, CycleError> {
        self.connect().await?;
        let (ground, place) = self.look().await?;
        let deployment = self.run.deployment.clone();
        let directory = format!("{place}/carena-{deployment}");
        let authority = Authority::new(&deployment, self.index)?;
        let payloads = self.run.serve_payloads(&authority, self.session()?.peer_address()).await;

        let ledger = NodeLedger { store: &self.run.store, deployment: &deployment, node: self.node };
        self.copy(&ledger, &ground, &directory).await?;
        let port = self.start(&ledger, &ground, &directory, &authority).await?;
        let mut address = self.session()?.peer_address();
        address.set_port(port);
        let port = self.open(&ledger, &ground, &directory, address).await?;
        self.session()?.rest().await;
        let (engine, tunnel, blocked) = self.join(port, address, &directory, &authority).await?;
        let mut established = Established {
            engine,
            ground,
            authority,
            bring: Bring::Fetch,
            directory,
            address,
            tunnel,
            payloads,
            rejoins: 0,
        };
        self.choose(&mut established, blocked).await?;
        self.keep(Some(&established), Stage::Working).await?;
        Ok(established)
    }

    /// Joins the engine by its port, or, where that is blocked, through SSH; then also why.
    pub(super) async fn join(
        &mut self,
        port: Result<Box<dyn Duplex>, String>,
        address: SocketAddr,
        directory: &str,
        authority: &Authority,
    ) -> Result<(Arc<dyn Engine>, Option<TunnelEnd>, Option<String>), CycleError> {
        self.enter(Step::Join)?;
        let run = self.run;
        let blocked = match port {
            Ok(stream) => {
                let joining = self.join_port(address, Some(stream), authority);
                match run.unless_cancelled(joining).await? {
                    Ok(engine) => {
                        self.tell(State::Done, None);
                        return Ok((engine, None, None));
                    }
                    Err(error @ ControlError::Other { .. }) => return Err(error.into()),
                    Err(error) => {
                        format!("the engine's port {} is of no use ({})", address.port(), chain(&error))
                    }
                }
            }
            Err(why) => format!("the engine's port {} is blocked ({why})", address.port()),
        };
        let joining = self.join_tunnel(directory, authority);
        let (engine, tunnel) = run.unless_cancelled(joining).await??;
        self.tell(State::Done, Some("inside SSH".into()));
        Ok((engine, Some(tunnel), Some(blocked)))
    }

    /// Finds out how payloads travel, before any is sent.
    pub(super) async fn choose(
        &mut self,
        established: &mut Established,
        blocked: Option<String>,
    ) -> Result<(), CycleError> {
        self.enter(Step::Path)?;
        let why = match blocked {
            Some(blocked) => {
                established.bring = Bring::Push;
                format!("{blocked}: control and payload travel inside SSH")
            }
            None => match self.probe_back(&*established.engine, &established.ground).await? {
                None => "the engine's port answers, and the node fetches from the box".to_owned(),
                Some(why) => {
                    established.bring = Bring::Push;
                    let port = self.run.https_port;
                    format!(
                        "return traffic blocked (node to box, port {port}: {why}): payload travels down the control connection"
                    )
                }
            },
        };
        self.took(established.path(), why);
        Ok(())
    }

    pub(super) async fn connect(&mut self) -> Result<(), CycleError> {
        self.enter(Step::Connect)?;
        let session = self.run.unless_cancelled(self.run.connect(self.node)).await??;
        self.tell(State::Done, Some(session.fingerprint().to_owned()));
        self.session = Some(session);
        Ok(())
    }

    async fn look(&mut self) -> Result<(Ground, String), CycleError> {
        self.enter(Step::Look)?;
        let run = self.run;
        let ground = run.unless_cancelled(self.session()?.look()).await??;
        // An engine of this deployment may still run: a node that was restarted, a box that was.
        if let Some(claim) = ground.claim.clone().filter(|claim| claim.deployment != run.deployment) {
            let since = i64::try_from(claim.since).unwrap_or(0) - ground.clock_ahead_s;
            let (deployment, box_address) = (claim.deployment, claim.box_address);
            return Err(CycleError::Held { deployment, box_address, since: crate::clock::rfc3339(since) });
        }
        let place = self.place(&ground)?;
        if let Some(warning) = ground.clock_warning() {
            self.tell(State::Progress, Some(warning));
        }
        self.tell(State::Done, Some(format!("{} {}, {place}", ground.arch, ground.kernel)));
        Ok((ground, place))
    }

    async fn copy(
        &mut self,
        ledger: &NodeLedger<'_>,
        ground: &Ground,
        directory: &str,
    ) -> Result<(), CycleError> {
        if self.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let files = arm(ledger, EngineFiles { directory: directory.to_owned() }).await?;
        self.armed.push((files.entry(), files.undo().clone().into()));
        self.enter(Step::Copy)?;
        self.session()?.copy_engine(files, ledger.deployment, ground, EngineImage::embedded()).await?;
        self.tell(State::Done, None);
        Ok(())
    }

    /// Starts the engine; returns the port it listens on.
    async fn start(
        &mut self,
        ledger: &NodeLedger<'_>,
        ground: &Ground,
        directory: &str,
        authority: &Authority,
    ) -> Result<u16, CycleError> {
        let process = arm(ledger, EngineProcess { directory: directory.to_owned() }).await?;
        self.armed.push((process.entry(), process.undo().clone().into()));
        self.enter(Step::Start)?;
        let config = StartConfig {
            protocol: PROTOCOL,
            deployment: ledger.deployment.clone(),
            certificate_pem: authority.kept.engine_certificate_pem.clone(),
            key_pem: authority.kept.engine_key_pem.clone(),
            ca_pem: authority.kept.ca_pem.clone(),
            port: crate::paths::ENGINE_PORT,
            lease_s: self.run.options.lease_s,
            box_address: ground.box_address,
        };
        let started = self.session()?.start_engine(process, &config).await?;
        self.tell(State::Done, Some(format!("port {}", started.port)));
        Ok(started.port)
    }

    /// The connection to the node.
    ///
    /// # Errors
    /// [`CycleError::Protocol`] when there is none.
    pub fn session(&mut self) -> Result<&mut (dyn NodeSession + 'static), CycleError> {
        self.session.as_deref_mut().ok_or(CycleError::Protocol)
    }

    /// Where engine and payloads go: the first place of the node with room for all of them.
    fn place(&self, ground: &Ground) -> Result<String, CycleError> {
        if ground.arch != "x86_64" {
            return Err(CycleError::Architecture { found: ground.arch.clone() });
        }
        let payloads: u64 = self.run.baseline.components.iter().map(|component| component.size).sum();
        let bytes = EngineImage::embedded().unpacked_bytes() + payloads + ROOM_MARGIN_BYTES;
        let files = self.run.baseline.components.len() as u64 + ROOM_MARGIN_FILES;
        Ok(ground.place(bytes, files)?.path.clone())
    }

    /// Opens the engine's port in the node's firewall, if that is wanted and needed. A port that stays blocked is no
    /// failure: the reason is returned, and another path taken.
    async fn open(
        &mut self,
        ledger: &NodeLedger<'_>,
        ground: &Ground,
        directory: &str,
        engine: SocketAddr,
    ) -> Result<Result<Box<dyn Duplex>, String>, CycleError> {
        let wanted = self.run.options.open_firewall;
        let probe = (self.session()?.round_trip() * PROBE_ROUND_TRIPS).clamp(PROBE_BOUNDS.0, PROBE_BOUNDS.1);
        let driver = &self.run.driver;
        if wanted != OpenFirewall::Yes
            && let Ok(stream) = driver.reach(engine, probe).await
        {
            return Ok(Ok(stream));
        }
        if wanted == OpenFirewall::No {
            return Ok(Err("open_firewall = \"no\"".into()));
        }
        let found = self.session()?.firewall(ground.box_address, ledger.deployment).await?;
        let Firewall::Openable { tool, .. } = found.clone() else {
            if wanted == OpenFirewall::Yes
                && let Ok(stream) = driver.reach(engine, PROBE_OPENED).await
            {
                return Ok(Ok(stream));
            }
            return Ok(Err(found.to_string()));
        };
        let (deployment, port) = (ledger.deployment.clone(), engine.port());
        let rule = RuleSpec { tool, deployment, from: ground.box_address, port };
        let armed = arm(ledger, FirewallRule { rule }).await?;
        self.armed.push((armed.entry(), armed.undo().clone().into()));
        self.enter(Step::Open)?;
        match self.session()?.open_port(armed, directory).await {
            Ok(_) => {}
            Err(error @ AccessError::Script { .. }) => {
                let why = chain(&error);
                self.tell(State::Failed, Some(why.clone()));
                return Ok(Err(why));
            }
            Err(error) => return Err(error.into()),
        }
        let stream = self.run.driver.reach(engine, PROBE_OPENED).await;
        self.tell(State::Done, Some(format!("port {port}, {found}")));
        Ok(stream.map_err(|_| format!("opened by {found}, so something else blocks it")))
    }
}
