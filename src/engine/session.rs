//! The conversation with the box: one connection at a time, every request answered, work done by threads.
//!
//! One loop waits for the box, for the workers, for the signal to end and for the lease. It never blocks on work, so
//! a question is answered at any moment. A lost connection stops no work: the box joins again, or the lease ends.
//! It must never end the process while an installer runs.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::ServerConnection;

use super::tls::Tls;
use super::{fetch, install, inventory, lease};
use crate::digest::{Sha256, Verified};
use crate::wire::PROTOCOL;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::id::ComponentId;
use crate::wire::message::{Failure, FailureKind, FromEngine, Notice, Reply, Request, StartConfig, ToEngine};

/// A handshake is over by then, or the connection is closed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// What a worker thread hands to the loop.
pub enum Done {
    /// Something on the way.
    Notice(u32, Notice),
    /// A payload is there, or not.
    Fetched(u32, Result<(Verified<PathBuf>, u64, u32), Failure>),
    /// An installer has ended.
    Installed(u32, Reply),
    /// Any other answer.
    Answer(u32, Reply),
}

/// How a worker reaches the loop, and learns that it should stop.
#[derive(Clone)]
pub struct Worker {
    sender: mpsc::Sender<Done>,
    wake: Arc<OwnedFd>,
    cancelled: Arc<AtomicBool>,
}

impl Worker {
    /// Hands over and wakes the loop.
    pub fn tell(&self, done: Done) {
        // The loop outlives its workers; a full pipe means it is awake already.
        let _ = self.sender.send(done);
        let _ = nix::unistd::write(&self.wake, b"x");
    }

    /// Whether the work should end where it can.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

struct Peer {
    stream: TcpStream,
    tls: ServerConnection,
    arrived: Vec<u8>,
    since: Instant,
    greeted: bool,
}

struct Engine {
    config: StartConfig,
    directory: PathBuf,
    port: u16,
    tls: Tls,
    worker: Worker,
    peers: Vec<Peer>,
    payloads: HashMap<Sha256, Verified<PathBuf>>,
    fetching: u32,
    installing: Option<ComponentId>,
    /// Requests to be answered when nothing is installed or fetched any more.
    when_idle: Vec<u32>,
    stop: bool,
    heard: Instant,
}

/// Serves until the box says stop, a signal says so, or the lease ends.
pub fn serve(listener: &TcpListener, port: u16, directory: PathBuf, config: StartConfig, tls: Tls) {
    let Ok((woken, wake)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC)
    else {
        return;
    };
    let (sender, done) = mpsc::channel();
    let worker = Worker { sender, wake: Arc::new(wake), cancelled: Arc::default() };
    let Ok(signals) = lease::signals() else { return };
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    let mut engine = Engine {
        config,
        directory,
        port,
        tls,
        worker,
        peers: Vec::new(),
        payloads: HashMap::new(),
        fetching: 0,
        installing: None,
        when_idle: Vec::new(),
        stop: false,
        heard: Instant::now(),
    };
    loop {
        engine.flush();
        if engine.stop && engine.idle() {
            return;
        }
        if engine.lease_over() && engine.idle() {
            lease::take_oneself_away(&engine.config, &engine.directory, engine.port);
            return;
        }
        engine.wait(listener, &woken, signals.as_fd());
        engine.accept(listener);
        let mut drained = [0; 64];
        while nix::unistd::read(&woken, &mut drained).is_ok_and(|n| n > 0) {}
        while let Ok(done) = done.try_recv() {
            engine.done(done);
        }
        if matches!(signals.read_signal(), Ok(Some(_))) {
            engine.cancel();
            engine.stop = true;
        }
        engine.read();
    }
}

impl Engine {
    fn idle(&self) -> bool {
        self.installing.is_none() && self.fetching == 0
    }

    fn lease_over(&mut self) -> bool {
        let over = self.heard.elapsed() >= Duration::from_secs(u64::from(self.config.lease_s));
        if over {
            self.cancel();
        }
        over
    }

    fn cancel(&mut self) {
        self.worker.cancelled.store(true, Ordering::Relaxed);
    }

    fn wait(&self, listener: &TcpListener, woken: &OwnedFd, signals: std::os::fd::BorrowedFd<'_>) {
        let mut fds = vec![
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals, PollFlags::POLLIN),
        ];
        for peer in &self.peers {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, peer.tls.wants_write());
            fds.push(PollFd::new(peer.stream.as_fd(), wanted));
        }
        // A second is fine enough for the lease and for handshakes; everything else wakes the poll.
        let _ = poll(&mut fds, PollTimeout::from(1_000_u16));
    }

    fn accept(&mut self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            let tls = ServerConnection::new(self.tls.server.clone());
            let (Ok(tls), Ok(())) = (tls, stream.set_nonblocking(true)) else { continue };
            let _ = stream.set_nodelay(true);
            self.peers.push(Peer { stream, tls, arrived: Vec::new(), since: Instant::now(), greeted: false });
        }
    }

    fn read(&mut self) {
        let mut peers = std::mem::take(&mut self.peers);
        let mut messages = Vec::new();
        peers.retain_mut(|peer| {
            let alive = peer.read().is_ok_and(|alive| alive);
            let late = !peer.greeted && peer.since.elapsed() > HANDSHAKE_MAX;
            if !alive || late {
                return false;
            }
            loop {
                match peer.next() {
                    Ok(Some(message)) => {
                        peer.greeted = true;
                        messages.push(message);
                    }
                    Ok(None) => return true,
                    // What is not understood ends the connection, not the engine.
                    Err(_) => return false,
                }
            }
        });
        // A box that comes again has given its old connection up.
        if let Some(last) = peers.iter().rposition(|peer| peer.greeted) {
            let mut index = 0;
            peers.retain(|peer| {
                index += 1;
                !peer.greeted || index - 1 == last
            });
        }
        self.peers = peers;
        for message in messages {
            self.heard = Instant::now();
            self.request(message);
        }
    }

    fn flush(&mut self) {
        self.peers.retain_mut(|peer| {
            while peer.tls.wants_write() {
                match peer.tls.write_tls(&mut peer.stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return false,
                }
            }
            true
        });
    }

    fn send(&mut self, message: &FromEngine) {
        let Ok(bytes) = frame::encode(message) else { return };
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.greeted) {
            let _ = peer.tls.writer().write_all(&bytes);
        }
    }

    fn reply(&mut self, id: u32, reply: Reply) {
        self.send(&FromEngine::Reply { id, reply });
    }

    fn refuse(&mut self, id: u32, kind: FailureKind, message: &str) {
        self.reply(id, Reply::Failed(Failure { kind, message: message.to_owned() }));
    }

    fn request(&mut self, ToEngine { id, request }: ToEngine) {
        match request {
            Request::Hello { protocol, deployment } => {
                if protocol != PROTOCOL || deployment != self.config.deployment {
                    let text = format!("this engine serves deployment {}", self.config.deployment);
                    return self.refuse(id, FailureKind::Refused, &text);
                }
                let installing = self.installing.clone();
                self.reply(id, Reply::Hello { protocol: PROTOCOL, deployment, installing });
            }
            Request::Renew => self.reply(id, Reply::Done),
            Request::Inventory => {
                self.work(move |worker| {
                    worker.tell(Done::Answer(id, Reply::Inventory(Box::new(inventory::read()))));
                });
            }
            Request::ReadBack(read_back) => {
                self.work(move |worker| worker.tell(Done::Answer(id, install::read_back(&read_back))));
            }
            Request::Fetch(fetch) => {
                if self.worker.is_cancelled() {
                    return self.refuse(id, FailureKind::Cancelled, "cancelled");
                }
                self.fetching += 1;
                let (directory, tls) = (self.directory.clone(), self.tls.client.clone());
                self.work(move |worker| {
                    let result = fetch::fetch(id, &fetch, &directory, &tls, &worker);
                    worker.tell(Done::Fetched(id, result));
                });
            }
            Request::Install(job) => self.install(id, job),
            Request::Cancel => {
                self.cancel();
                self.when_idle.push(id);
                self.answer_idle();
            }
            Request::Stop => {
                self.cancel();
                self.stop = true;
                self.when_idle.push(id);
                self.answer_idle();
            }
        }
    }

    fn install(&mut self, id: u32, job: crate::wire::message::Install) {
        if self.worker.is_cancelled() {
            return self.refuse(id, FailureKind::Cancelled, "cancelled");
        }
        if let Some(other) = &self.installing {
            let text = format!("{other} is being installed");
            return self.refuse(id, FailureKind::Refused, &text);
        }
        // Only what was fetched and verified by this very process is ever run.
        let Some(path) = self.payloads.get(&job.sha256).map(|payload| payload.get().clone()) else {
            return self.refuse(id, FailureKind::Refused, "the payload was not fetched");
        };
        self.installing = Some(job.component.clone());
        let directory = self.directory.clone();
        self.work(move |worker| {
            let reply = install::install(id, &job, &path, &directory, &worker);
            worker.tell(Done::Installed(id, reply));
        });
    }

    fn work(&self, job: impl FnOnce(Worker) + Send + 'static) {
        let worker = self.worker.clone();
        std::thread::spawn(move || job(worker));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Notice(id, notice) => self.send(&FromEngine::Notice { id, notice }),
            Done::Answer(id, reply) => self.reply(id, reply),
            Done::Installed(id, reply) => {
                self.installing = None;
                self.reply(id, reply);
            }
            Done::Fetched(id, result) => {
                self.fetching = self.fetching.saturating_sub(1);
                match result {
                    Ok((payload, bytes, resumes)) => {
                        self.payloads.insert(payload.digest(), payload);
                        self.reply(id, Reply::Fetched { bytes, resumes });
                    }
                    Err(failure) => self.reply(id, Reply::Failed(failure)),
                }
            }
        }
        self.answer_idle();
    }

    fn answer_idle(&mut self) {
        if self.idle() {
            for id in std::mem::take(&mut self.when_idle) {
                self.reply(id, Reply::Done);
            }
        }
    }
}

impl Peer {
    /// Takes in what has arrived; false when the box has gone.
    fn read(&mut self) -> io::Result<bool> {
        loop {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain)?;
            self.arrived.append(&mut plain);
            if self.arrived.len() > frame::FRAME_BYTES_MAX + HEADER_BYTES {
                return Ok(false);
            }
        }
    }

    fn next(&mut self) -> Result<Option<ToEngine>, frame::FrameError> {
        let Some((header, rest)) = self.arrived.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = frame::body_bytes(*header)?;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = frame::decode(body)?;
        self.arrived.drain(..HEADER_BYTES + length);
        Ok(Some(message))
    }
}
