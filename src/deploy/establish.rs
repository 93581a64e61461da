//! The way in: connect, look, copy, start, open, join. At its end an engine of ours runs on the node and talks to us.
//!
//! It is one function so that it can be gone a second time: after a reboot of the node, and in the middle of a
//! deployment that goes on. Each step that changes the node arms its undo first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::control::{ControlError, EngineClient};
use crate::access::ssh::{EngineImage, Firewall, Ground, Session};
use crate::access::undo::{EngineFiles, EngineProcess, EntryId, FirewallRule, Ledger, Undo, arm};
use crate::fleet::{Node, OpenFirewall};
use crate::https::Registration;
use crate::wire::PROTOCOL;
use crate::wire::firewall::RuleSpec;
use crate::wire::id::DeploymentId;
use crate::wire::message::StartConfig;

use super::authority::Authority;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{State, Step};
use super::store::{Store, StoreError};
use super::unwind::connect;

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

/// An engine of ours runs on the node, and this is how it is talked to.
pub struct Established {
    /// The conversation with it.
    pub engine: Arc<EngineClient>,
    /// What the node is.
    pub ground: Ground,
    /// What both sides prove themselves with.
    pub authority: Authority,
    /// How control and payload travel.
    pub path: &'static str,
    /// The engine may fetch payloads from the box as long as this lives.
    pub payloads: Registration,
}

/// Whether something accepts connections there within `bound`.
async fn port_answers(address: SocketAddr, bound: Duration) -> bool {
    matches!(tokio::time::timeout(bound, tokio::net::TcpStream::connect(address)).await, Ok(Ok(_)))
}

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
        let payloads = self.run.serve_payloads(&authority);

        let ledger = NodeLedger { store: &self.run.store, deployment: &deployment, node: self.node };
        self.copy(&ledger, &ground, &directory).await?;
        let port = self.start(&ledger, &ground, &directory, &authority).await?;
        let mut address = self.session()?.peer_address();
        address.set_port(port);
        self.open(&ledger, &ground, &directory, address).await?;
        self.session()?.rest().await;

        self.enter(Step::Join)?;
        let identity = authority.identity(&deployment, self.run.options.lease_s);
        let joining = async {
            let lost = |source| ControlError::Handshake { address: address.to_string(), source };
            let stream = tokio::net::TcpStream::connect(address).await.map_err(lost)?;
            EngineClient::join(Box::new(stream), &address.to_string(), &identity).await
        };
        let (engine, _) = self.run.unless_cancelled(joining).await??;
        self.tell(State::Done, None);
        Ok(Established { engine: Arc::new(engine), ground, authority, path: "direct", payloads })
    }

    async fn connect(&mut self) -> Result<(), CycleError> {
        self.enter(Step::Connect)?;
        let session = self.run.unless_cancelled(connect(&self.run.store, self.node)).await??;
        self.tell(State::Done, Some(session.host_key().to_owned()));
        self.session = Some(session);
        Ok(())
    }

    async fn look(&mut self) -> Result<(Ground, String), CycleError> {
        self.enter(Step::Look)?;
        let run = self.run;
        let ground = run.unless_cancelled(self.session()?.look()).await??;
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
            certificate_pem: authority.engine_certificate_pem.clone(),
            key_pem: authority.engine_key_pem.clone(),
            ca_pem: authority.ca_pem.clone(),
            port: crate::paths::ENGINE_PORT,
            lease_s: self.run.options.lease_s,
            box_address: ground.box_address,
        };
        let started = self.session()?.start_engine(process, &config).await?;
        self.tell(State::Done, Some(format!("port {}", started.port)));
        Ok(started.port)
    }

    /// The SSH connection.
    ///
    /// # Errors
    /// [`CycleError::Protocol`] when there is none.
    pub fn session(&mut self) -> Result<&mut Session, CycleError> {
        self.session.as_mut().ok_or(CycleError::Protocol)
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

    /// Opens the engine's port in the node's firewall, if that is wanted and needed.
    async fn open(
        &mut self,
        ledger: &NodeLedger<'_>,
        ground: &Ground,
        directory: &str,
        engine: SocketAddr,
    ) -> Result<(), CycleError> {
        let wanted = self.run.options.open_firewall;
        let port = engine.port();
        let probe = (self.session()?.round_trip() * PROBE_ROUND_TRIPS).clamp(PROBE_BOUNDS.0, PROBE_BOUNDS.1);
        if wanted != OpenFirewall::Yes && port_answers(engine, probe).await {
            return Ok(());
        }
        if wanted == OpenFirewall::No {
            let why = "open_firewall = \"no\" forbids to open it".to_owned();
            return Err(CycleError::PortBlocked { port, why });
        }
        let found = self.session()?.firewall(ground.box_address, ledger.deployment).await?;
        let Firewall::Openable { tool, .. } = found.clone() else {
            if wanted == OpenFirewall::Yes && port_answers(engine, PROBE_OPENED).await {
                return Ok(());
            }
            return Err(CycleError::PortBlocked { port, why: found.to_string() });
        };
        let deployment = ledger.deployment.clone();
        let rule = RuleSpec { tool, deployment, from: ground.box_address, port };
        let armed = arm(ledger, FirewallRule { rule }).await?;
        self.armed.push((armed.entry(), armed.undo().clone().into()));
        self.enter(Step::Open)?;
        self.session()?.open_port(armed, directory).await?;
        if !port_answers(engine, PROBE_OPENED).await {
            let why = format!("it was opened by {found}, so something else blocks it");
            return Err(CycleError::PortBlocked { port, why });
        }
        self.tell(State::Done, Some(format!("port {port}, {found}")));
        Ok(())
    }
}
