//! The driver that leads to the node in memory: every question and every act passes the fuse, before and after.
//!
//! What takes several steps on a real node takes them here, too, so that a box can die between them. A connection to a
//! node that was restarted meanwhile is lost.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, SignatureScheme};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::fuse::Fuse;
use super::node::{self, Node, Rule};
use crate::access::control::{ControlError, Duplex, Identity};
use crate::access::driver::{
    AccessError, Copied, Driver, Engine, EngineImage, Firewall, Ground, NodeSession, Opened, Place, Source,
    Target, Tunnel, TunnelEnd, Undone,
};
use crate::access::engine_image::Unpacker;
use crate::access::undo::{Armed, EngineFiles, EngineProcess, EntryId, FirewallRule, Undo};
use crate::paths::{ENGINE_MARKER_FILE, ENGINE_PROGRAM};
use crate::wire::PROTOCOL;
use crate::wire::claim::Claim;
use crate::wire::firewall::{FirewallTool, Flavour};
use crate::wire::id::DeploymentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::{
    Failure, FailureKind, Install, Installing, Notice, Push, ReadBack, Reply, Request, StartConfig, Started,
    Status,
};

/// The box, as the node sees it.
pub const BOX: &str = "fd00::1";

/// Whoever stops an engine waits so long for its end.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Between two looks at something that takes time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Which ways there are between box and node.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    /// The engine's port can be opened.
    pub port: bool,
    /// The node reaches the box.
    pub back: bool,
}

/// The n-th node's address.
pub fn address(index: usize) -> String {
    format!("fd00::{:x}", index + 2)
}

/// All nodes, each by its address.
pub struct Fakes(pub Vec<Fake>);

impl Fakes {
    /// Inside SSH no address is told: there is one node then.
    fn at(&self, host: &str) -> &Fake {
        let index = (0..self.0.len()).find(|index| address(*index) == host);
        &self.0[index.unwrap_or_default()]
    }
}

/// One process of the box, as one node meets it. Cloning shares it.
#[derive(Clone)]
pub struct Fake {
    pub index: usize,
    pub node: Arc<Mutex<Node>>,
    pub fuse: Arc<Fuse>,
    pub ways: Ways,
}

impl Fake {
    fn node(&self) -> MutexGuard<'_, Node> {
        let mut node = self.node.lock().unwrap();
        node.settle();
        node
    }

    /// Something asked of the node or done to it, with the fuse on both sides.
    async fn act<T>(&self, what: &'static str, act: impl FnOnce(&mut Node) -> T) -> T {
        self.fuse.pass(what).await;
        let done = act(&mut self.node());
        self.fuse.pass(what).await;
        done
    }
}

#[async_trait]
impl Driver for Fakes {
    async fn connect(&self, target: &Target) -> Result<Box<dyn NodeSession>, AccessError> {
        let fake = self.at(&target.address);
        let boot = fake.act("connect", |node| node.boots).await;
        Ok(Box::new(Session { fake: fake.clone(), boot }))
    }

    async fn reach(&self, address: SocketAddr, bound: Duration) -> io::Result<Box<dyn Duplex>> {
        let fake = self.at(&address.ip().to_string());
        if fake.ways.port && fake.node().is_open() {
            return Ok(Box::new(tokio::io::duplex(1).0));
        }
        tokio::time::sleep(bound).await;
        Err(io::ErrorKind::TimedOut.into())
    }

    async fn join(
        &self,
        stream: Box<dyn Duplex>,
        address: &str,
        identity: &Identity<'_>,
    ) -> Result<Arc<dyn Engine>, ControlError> {
        let host = address.parse().map_or_else(|_| String::new(), |known: SocketAddr| known.ip().to_string());
        let fake = self.at(&host);
        let join = |node: &mut Node| node.join(identity.deployment, |ca_pem| proves(identity, ca_pem));
        match fake.act("join", join).await {
            Some(number) => {
                Ok(Arc::new(Conversation { fake: fake.clone(), number, stream: Mutex::new(Some(stream)) }))
            }
            None => {
                let (address, source) = (address.to_owned(), io::ErrorKind::UnexpectedEof.into());
                Err(ControlError::Handshake { address, source })
            }
        }
    }
}

/// Whether the box has a certificate of the CA that the engine was started with.
fn proves(identity: &Identity<'_>, ca_pem: &str) -> bool {
    let own = identity.tls.client_auth_cert_resolver.resolve(&[], &[SignatureScheme::ECDSA_NISTP256_SHA256]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crate::https::provider());
    let verifier = verifier.build().unwrap();
    own.is_some_and(|own| verifier.verify_client_cert(&own.cert[0], &[], UnixTime::now()).is_ok())
}

struct Session {
    fake: Fake,
    boot: u32,
}

fn refused(what: &'static str, code: i64) -> AccessError {
    AccessError::Script { what, code, stderr: "as a real node would".into() }
}

impl Session {
    async fn act<T>(&self, what: &'static str, act: impl FnOnce(&mut Node) -> T) -> Result<T, AccessError> {
        let boot = self.boot;
        let act = |node: &mut Node| (node.boots == boot).then(|| act(node));
        self.fake.act(what, act).await.ok_or(AccessError::Lost { source: russh::Error::Disconnect })
    }

    async fn stop(&self, undo: &EngineProcess) -> Result<Undone, String> {
        if self.fake.node().is_stopped(undo) {
            return Ok(Undone::AlreadyGone);
        }
        self.fake.node().tell_to_stop();
        self.fake.fuse.pass("the engine was told to end").await;
        let end = tokio::time::Instant::now() + STOP_MAX;
        while !self.fake.node().is_stopped(undo) {
            if tokio::time::Instant::now() >= end {
                return Err("an installation is still running".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Undone::Done)
    }
}

#[async_trait]
impl NodeSession for Session {
    fn fingerprint(&self) -> &str {
        "SHA256:fake"
    }

    fn peer_address(&self) -> SocketAddr {
        format!("[{}]:22", address(self.fake.index)).parse().unwrap()
    }

    fn round_trip(&self) -> Duration {
        Duration::from_millis(1)
    }

    async fn look(&mut self) -> Result<Ground, AccessError> {
        self.act("look", |node| Ground {
            arch: "x86_64".into(),
            kernel: "6".into(),
            box_address: BOX.parse().unwrap(),
            box_address_text: BOX.into(),
            places: vec![Place { path: "/var/tmp".into(), free_bytes: u64::MAX, free_files: None }],
            unfit: Vec::new(),
            unpacker: Unpacker::Zstd,
            claim: node.engine().map(|engine| Claim {
                protocol: PROTOCOL,
                deployment: engine.deployment.clone(),
                since: 0,
                box_address: BOX.parse().unwrap(),
            }),
            clock_ahead_s: 0,
        })
        .await
    }

    async fn copy_engine(
        &mut self,
        armed: Armed<EngineFiles>,
        deployment: &DeploymentId,
        _: &Ground,
        _: &'static EngineImage,
    ) -> Result<Copied, AccessError> {
        let directory = armed.undo().directory.as_str();
        let is_new = |node: &mut Node| match node.directories.contains_key(directory) {
            true => false,
            false => node.directories.insert(directory.to_owned(), node::Directory::default()).is_none(),
        };
        if !self.act("the engine's directory is made", is_new).await? {
            return Err(refused("copying the engine", 31));
        }
        for (name, text) in [(ENGINE_MARKER_FILE, deployment.as_str()), (ENGINE_PROGRAM, "program")] {
            self.act("a file of the engine is written", |node| {
                let found = node.directories.get_mut(directory).unwrap();
                found.files.insert(name.to_owned(), text.to_owned());
            })
            .await?;
        }
        Ok(Copied { bytes: 1 })
    }

    async fn start_engine(
        &mut self,
        armed: Armed<EngineProcess>,
        config: &StartConfig,
    ) -> Result<Started, AccessError> {
        let directory = &armed.undo().directory;
        let start = |node: &mut Node| {
            let process = node.has_program(directory).then(|| node.start(directory, config))??;
            node.directories.get_mut(directory)?.pid = Some(process);
            Some(process)
        };
        let (pid, began) =
            self.act("start", start).await?.ok_or_else(|| refused("starting the engine", 1))?;
        Ok(Started { pid, start_time: began.into(), port: config.port })
    }

    async fn firewall(&mut self, _: IpAddr, _: &DeploymentId) -> Result<Firewall, AccessError> {
        let tool = FirewallTool::Iptables { program: "ip6tables".parse().unwrap(), flavour: Flavour::Nft };
        self.act("firewall", |_| Firewall::Openable { tool, others: Vec::new() }).await
    }

    async fn open_port(
        &mut self,
        armed: Armed<FirewallRule>,
        directory: &str,
    ) -> Result<Opened, AccessError> {
        let rule = &armed.undo().rule;
        let note = |node: &mut Node| {
            let noted = node.directories.get_mut(directory).map(|found| found.rule = Some(rule.clone()));
            noted.ok_or_else(|| refused("opening the port", 36))
        };
        self.act("the rule is noted", note).await??;
        self.act("the port is opened", |node| {
            if !node.rules.contains(&Rule::Carena(rule.clone().into())) {
                node.rules.insert(0, Rule::Carena(rule.clone().into()));
            }
        })
        .await?;
        Ok(Opened)
    }

    async fn undo(
        &mut self,
        deployment: &DeploymentId,
        undos: &[(EntryId, Undo)],
    ) -> Result<Vec<(EntryId, Result<Undone, String>)>, AccessError> {
        let mut results = Vec::new();
        for (entry, undo) in undos {
            let result = match undo {
                Undo::EngineProcess(undo) => {
                    self.act("an engine is to be stopped", |_| ()).await?;
                    self.stop(undo).await
                }
                Undo::EngineFiles(undo) => {
                    self.act("files are removed", |node| node.remove(undo, deployment)).await?
                }
                Undo::FirewallRule(undo) => Ok(self.act("a port is closed", |node| node.close(undo)).await?),
            };
            results.push((*entry, result));
        }
        Ok(results)
    }

    async fn attach(&mut self, directory: &str) -> Result<Tunnel, AccessError> {
        let is_there = self.act("attach", |node| node.runs(directory)).await?;
        let (stream, mut ours) = tokio::io::duplex(1);
        let end = tokio::spawn(async move {
            // Until the box lets go of it.
            let _ = ours.read(&mut [0]).await;
            Some(u32::from(!is_there))
        });
        Ok(Tunnel { stream: Box::new(stream), end: TunnelEnd::of(end) })
    }

    async fn rest(&mut self) {}

    async fn boot_id(&mut self) -> Result<String, AccessError> {
        self.act("boot id", |node| node.boot_id()).await
    }

    async fn tell_users(&mut self, _: &str) -> Result<(), AccessError> {
        self.act("tell users", |_| ()).await
    }

    async fn restart(&mut self) -> Result<(), AccessError> {
        self.act("restart", Node::restart).await
    }

    async fn close(self: Box<Self>) {}
}

/// A conversation with the node's engine.
struct Conversation {
    fake: Fake,
    number: u64,
    stream: Mutex<Option<Box<dyn Duplex>>>,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(engine) = self.fake.node.lock().unwrap().engine_mut() {
            engine.leave(self.number);
        }
    }
}

fn failure(kind: FailureKind, message: &str) -> ControlError {
    Failure { kind, message: message.into() }.into()
}

impl Conversation {
    /// Asks the engine, if it is still there and this is the conversation that counts.
    async fn act<T>(&self, what: &'static str, act: impl FnOnce(&mut Node) -> T) -> Result<T, ControlError> {
        let number = self.number;
        let act =
            |node: &mut Node| node.engine().is_some_and(|engine| engine.hears(number)).then(|| act(node));
        self.fake.act(what, act).await.ok_or(ControlError::Lost)
    }

    /// Looks again and again until there is an answer.
    async fn until<T>(&self, done: impl Fn(&Node) -> Option<T>) -> Result<T, ControlError> {
        loop {
            {
                let node = self.fake.node();
                if !node.engine().is_some_and(|engine| engine.hears(self.number)) {
                    return Err(ControlError::Lost);
                }
                if let Some(done) = done(&node) {
                    return Ok(done);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A payload is there from now on.
    async fn bring(&self, sha256: String, size: u64) -> Result<Reply, ControlError> {
        self.act("a payload is brought", |node| {
            let engine = node.engine_mut().unwrap();
            if engine.cancelled {
                return Err(failure(FailureKind::Cancelled, "cancelled"));
            }
            engine.payloads.insert(sha256);
            Ok(Reply::Fetched { bytes: size, resumes: 0 })
        })
        .await?
    }

    async fn install(&self, job: Install) -> Result<Reply, ControlError> {
        self.act("an installer is started", |node| {
            let engine = node.engine().unwrap();
            if engine.cancelled {
                return Err(failure(FailureKind::Cancelled, "cancelled"));
            }
            if engine.installing().is_some() || !engine.payloads.contains(&job.sha256.to_string()) {
                return Err(failure(FailureKind::Refused, "busy, or the payload is not here"));
            }
            node.install(&job);
            Ok(())
        })
        .await??;
        self.outcome(&job.component).await
    }

    async fn outcome(&self, component: &crate::wire::id::ComponentId) -> Result<Reply, ControlError> {
        let ended = self.until(|node| {
            let engine = node.engine()?;
            (engine.installing() != Some(component)).then(|| engine.result(component))
        });
        let result = ended.await?.ok_or_else(|| failure(FailureKind::Refused, "was not installed here"))?;
        self.fake.fuse.pass("an installer has ended").await;
        Ok(Reply::Installed(result))
    }

    async fn stop(&self) -> Result<Reply, ControlError> {
        // What is idle is gone at once, so that the answer is as good as lost; a busy one says nothing before its end.
        self.act("the engine is told to stop", Node::tell_to_stop).await?;
        loop {
            if self.fake.node().engine().is_none() {
                return Ok(Reply::Done);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn status(&self) -> Result<Reply, ControlError> {
        self.act("status", |node| {
            let engine = node.engine().unwrap();
            Reply::Status(Box::new(Status {
                deployment: engine.deployment.clone(),
                seconds: 0,
                installing: engine
                    .installing()
                    .map(|component| Installing { component: component.clone(), seconds: 0 }),
                transfers: Vec::new(),
                installed: engine.installed.iter().map(|(component, _)| component.clone()).collect(),
            }))
        })
        .await
    }
}

#[async_trait]
impl Engine for Conversation {
    async fn request(&self, request: Request) -> Result<Reply, ControlError> {
        match request {
            Request::Inventory => {
                let tell = |node: &mut Node| {
                    node.is_queried();
                    Reply::Inventory(Box::<Inventory>::default())
                };
                self.act("inventory", tell).await
            }
            Request::ReadBack(ReadBack::File(path)) => {
                self.fake.node().break_engine();
                let read = |node: &mut Node| {
                    node.is_queried();
                    node.firmware.get(&path).map(|firmware| firmware.active.clone())
                };
                Ok(Reply::Version(self.act("a version is read", read).await?))
            }
            Request::Fetch(fetch) => self.bring(fetch.sha256.to_string(), fetch.size).await,
            Request::Install(job) => self.install(job).await,
            Request::Outcome { component } => self.outcome(&component).await,
            Request::Status => self.status().await,
            Request::Stop => self.stop().await,
            Request::Cancel => {
                self.act("the engine is told to cancel", |node| node.engine_mut().unwrap().cancelled = true)
                    .await?;
                self.until(|node| (!node.is_installing()).then_some(Reply::Done)).await
            }
            Request::Probe(_) => {
                let blocked = (!self.fake.ways.back).then(|| "no answer".to_owned());
                self.act("probe", |_| Reply::Probed { blocked }).await
            }
            Request::Abandon { .. } => self.act("a payload is given up", |_| Reply::Done).await,
            Request::Fwupd => Err(failure(FailureKind::Node, "not installed")),
            Request::Hello { .. } | Request::Renew | Request::Push(_) | Request::ReadBack(_) => {
                Err(failure(FailureKind::Refused, "not asked this way"))
            }
        }
    }

    async fn request_with_notices(
        &self,
        request: Request,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Reply, ControlError> {
        let _ = notices.try_send(Notice::Installing { seconds: 0, line: "".try_into().unwrap() });
        self.request(request).await
    }

    async fn push(
        &self,
        job: Push,
        open: Source<'_>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Reply, ControlError> {
        let (mut source, mut there) = (open(0), 0);
        while there < job.size {
            let chunk = source.recv().await.unwrap().map_err(ControlError::Payload)?;
            there += chunk.len() as u64;
            progress(there);
        }
        self.bring(job.sha256.to_string(), job.size).await
    }

    async fn close(&self) {
        drop(self.stream.lock().unwrap().take());
        if let Some(engine) = self.fake.node().engine_mut() {
            engine.leave(self.number);
        }
    }
}
