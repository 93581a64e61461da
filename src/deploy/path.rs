//! How control and payload travel to a node, and what happens when a way is lost.
//!
//! `direct`: control to the engine's port, payload fetched by the node. `push`: the node cannot reach the box, so
//! payload travels down the control connection. `tunnel`: nothing but SSH leads there, so both travel inside it. A
//! way that is lost is taken again first, then the next one; a change of path is no failure. It gives up only when
//! the engine is gone, or must be, since its lease has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::access::control::{ControlError, Duplex};
use crate::access::driver::{AccessError, Engine, Ground, Tunnel, TunnelEnd};
use crate::https::Registration;
use crate::wire::message::{Failure, FailureKind, Probe, Reply, Request};

use super::authority::Authority;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{State, Step};

/// How long the node may take to reach the box: a round trip of a satellite, and one lost packet.
const PROBE_BACK_MS: u32 = 1_500;

/// A port that answered before and is joined again may take so long.
const REJOIN_MAX: Duration = Duration::from_secs(3);

/// Pause after the first round of failed attempts; doubled each time, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How often one engine is joined again at most: an end, should one drop every connection at once.
const REJOINS_MAX: u32 = 100;

/// A question that is no transfer and no installation is answered by then: a version query may take 30 s, a sick disk
/// longer.
const ASK_MAX: Duration = Duration::from_secs(120);

fn no_answer() -> CycleError {
    let message = format!("the engine has no answer after {} s", ASK_MAX.as_secs());
    ControlError::Engine(Failure { kind: FailureKind::Node, message }).into()
}

/// How control and payload travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Control to the engine's port, payload fetched by the node.
    Direct,
    /// Control to the engine's port, payload down the same connection.
    Push,
    /// Both inside SSH.
    Tunnel,
}

impl Path {
    /// As it stands in events and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Push => "push",
            Self::Tunnel => "tunnel",
        }
    }
}

/// How a payload is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bring {
    /// The node fetches it.
    Fetch,
    /// The box pushes it.
    Push,
}

/// Whether a cancel ends what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// Yes.
    OnCancel,
    /// No: something is being written on the node.
    Never,
}

/// An engine of ours runs on the node, and this is how it is talked to.
pub struct Established {
    /// The conversation with it, at this moment.
    pub engine: Arc<dyn Engine>,
    /// What the node is.
    pub ground: Ground,
    /// What both sides prove themselves with.
    pub authority: Authority,
    /// How payloads are brought.
    pub bring: Bring,
    /// The engine's directory.
    pub directory: String,
    /// The engine's port.
    pub address: SocketAddr,
    /// The SSH session that control is inside of, if it is.
    pub tunnel: Option<TunnelEnd>,
    /// The engine may fetch payloads from the box as long as this lives.
    pub payloads: Registration,
    /// How often it was joined again.
    pub rejoins: u32,
}

impl Established {
    /// The path taken.
    pub fn path(&self) -> Path {
        match (&self.tunnel, self.bring) {
            (Some(_), _) => Path::Tunnel,
            (None, Bring::Fetch) => Path::Direct,
            (None, Bring::Push) => Path::Push,
        }
    }

    /// Ends the conversation, so that the SSH session is free again.
    pub async fn close(&mut self) {
        self.engine.close().await;
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.ended().await;
        }
    }
}

impl Cycle<'_> {
    /// Tells which path is taken, and why.
    pub fn took(&mut self, path: Path, why: String) {
        self.run.tell(&self.node.address, Step::Path, State::Done, Some(format!("{}: {why}", path.name())));
        self.path = Some((path, why));
    }

    /// Asks; a question whose connection is lost is asked again over another. For questions that change nothing.
    ///
    /// # Errors
    /// [`CycleError`].
    pub async fn ask(
        &mut self,
        established: &mut Established,
        request: Request,
        interrupt: Interrupt,
    ) -> Result<Reply, CycleError> {
        loop {
            let (run, engine) = (self.run, established.engine.clone());
            let asking = tokio::time::timeout(ASK_MAX, engine.request(request.clone()));
            let answer = match interrupt {
                Interrupt::OnCancel => run.unless_cancelled(asking).await?,
                Interrupt::Never => asking.await,
            };
            match answer {
                Err(_) => return Err(no_answer()),
                Ok(Err(ControlError::Lost)) => self.rejoin(established, interrupt).await?,
                Ok(answer) => return Ok(answer?),
            }
        }
    }

    /// Joins the engine by its port; `stream` may be there already.
    pub(super) async fn join_port(
        &self,
        address: SocketAddr,
        stream: Option<Box<dyn Duplex>>,
        authority: &Authority,
    ) -> Result<Arc<dyn Engine>, ControlError> {
        let failed = |source| ControlError::Handshake { address: address.to_string(), source };
        let stream = match stream {
            Some(stream) => stream,
            None => self.run.driver.reach(address, REJOIN_MAX).await.map_err(failed)?,
        };
        let identity = authority.identity(&self.run.deployment, self.run.options.lease_s);
        self.run.driver.join(stream, &address.to_string(), &identity).await
    }

    /// Joins the engine through SSH, over a new connection if the old one is lost.
    pub(super) async fn join_tunnel(
        &mut self,
        directory: &str,
        authority: &Authority,
    ) -> Result<(Arc<dyn Engine>, TunnelEnd), CycleError> {
        let Tunnel { stream, end } = self.attach(directory).await?;
        let identity = authority.identity(&self.run.deployment, self.run.options.lease_s);
        match self.run.driver.join(stream, "the end of SSH", &identity).await {
            Ok(engine) => Ok((engine, end)),
            // The command's own end says that no engine was there to be joined.
            Err(error) => match end.ended().await {
                Some(code) if code != 0 => Err(CycleError::EngineGone),
                _ => Err(error.into()),
            },
        }
    }

    async fn attach(&mut self, directory: &str) -> Result<Tunnel, CycleError> {
        if let Some(session) = &mut self.session {
            match session.attach(directory).await {
                Err(AccessError::Lost { .. } | AccessError::ScriptTimedOut { .. }) => self.session = None,
                done => return Ok(done?),
            }
        }
        let session = self.run.connect(self.node).await?;
        Ok(self.session.insert(session).attach(directory).await?)
    }

    /// Whether the node reaches the box's HTTPS port; if not, why.
    pub(super) async fn probe_back(
        &self,
        engine: &dyn Engine,
        ground: &Ground,
    ) -> Result<Option<String>, CycleError> {
        let probe = Probe {
            address: ground.box_address_text.clone(),
            port: self.run.https_port,
            bound_ms: PROBE_BACK_MS,
        };
        let asking = tokio::time::timeout(ASK_MAX, engine.request(Request::Probe(Box::new(probe))));
        match self.run.unless_cancelled(asking).await?.map_err(|_| no_answer())?? {
            Reply::Probed { blocked } => Ok(blocked),
            _ => Err(CycleError::Protocol),
        }
    }

    /// Joins an engine whose connection was lost: by its port while that answers, then through SSH, again and again
    /// until its lease must have ended.
    ///
    /// # Errors
    /// [`CycleError`]: the engine is gone, or cannot be reached by any path.
    pub async fn rejoin(
        &mut self,
        established: &mut Established,
        interrupt: Interrupt,
    ) -> Result<(), CycleError> {
        let before = established.path();
        let say = |text: &str| Some(text.to_owned());
        self.run.tell(&self.node.address, Step::Path, State::Retry, say("the control connection was lost"));
        established.close().await;
        established.rejoins += 1;
        let deadline = Instant::now() + Duration::from_secs(u64::from(self.run.options.lease_s));
        let mut pause = PAUSE_MIN;
        while established.rejoins <= REJOINS_MAX {
            let run = self.run;
            let attempt = self.attempt(established, before);
            let result = match interrupt {
                Interrupt::OnCancel => run.unless_cancelled(attempt).await?,
                Interrupt::Never => attempt.await,
            };
            match result {
                Ok(()) => return Ok(()),
                Err(CycleError::EngineGone) => return Err(CycleError::EngineGone),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(error) => {
                    let text = crate::error::chain(&error);
                    self.run.tell(&self.node.address, Step::Path, State::Retry, Some(text));
                }
            }
            match interrupt {
                Interrupt::OnCancel => run.unless_cancelled(tokio::time::sleep(pause)).await?,
                Interrupt::Never => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Err(ControlError::Lost.into())
    }

    /// One round: the port, then SSH.
    async fn attempt(&mut self, established: &mut Established, before: Path) -> Result<(), CycleError> {
        if before != Path::Tunnel {
            match self.join_port(established.address, None, &established.authority).await {
                Ok(engine) => {
                    established.engine = engine;
                    let why = "the engine's port answers again".to_owned();
                    self.took(established.path(), why);
                    return Ok(());
                }
                Err(error @ ControlError::Other { .. }) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let (engine, end) = self.join_tunnel(&established.directory, &established.authority).await?;
        established.engine = engine;
        established.tunnel = Some(end);
        let why = match before {
            Path::Tunnel => "joined again inside SSH".to_owned(),
            _ => format!(
                "the engine's port {} answers no more: control travels inside SSH",
                established.address.port()
            ),
        };
        self.took(Path::Tunnel, why);
        Ok(())
    }
}
