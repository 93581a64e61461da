//! The conversation with the box: one connection at a time, every request answered, work done by threads.
//!
//! One loop waits for the box, for the workers, for the signal to end and for the lease. It never blocks on work, so
//! a question is answered at any moment. A lost connection stops no work but a push, which waits to be taken up
//! again: the box joins anew, or the lease ends. It must never end the process while an installer runs.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::payload::{Asker, Ended, Job, Next, Payloads, failure};
use super::peer::{Arrival, Peer, Stream};
use super::tls::Tls;
use super::{fetch, fwupd, install, inventory, lease, payload, push};
use crate::digest::Sha256;
use crate::wire::PROTOCOL;
use crate::wire::id::ComponentId;
use crate::wire::message::{
    Failure, FailureKind, FromEngine, Install, Installed, Installing, Notice, Reply, Request, StartConfig,
    Status, ToEngine,
};

/// A handshake is over by then, or the connection is closed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Results of installations whose log is kept too: at 128 KiB each, 2 MiB.
const LOGS_MAX: usize = 16;

/// Connections at once; one is the box's, the others have not proved themselves yet.
const PEERS_MAX: usize = 16;

/// Whoever asks an engine to end waits at most this long for it, see the box's script that stops it (5 s).
const STOPPED_MAX: Duration = Duration::from_secs(10);

/// What a worker thread hands to the loop.
pub enum Done {
    /// Bytes of a payload that are there.
    Progress(Sha256, u64),
    /// The installer is alive.
    Installing {
        /// Since so many seconds.
        seconds: u64,
        /// Its last line.
        line: heapless::String<200>,
    },
    /// A transfer has ended.
    Payload(Sha256, Ended),
    /// An installer has ended, or could not be run.
    Installed(Result<Installed, Failure>),
    /// Any other answer.
    Answer(Asker, Reply),
}

/// How a worker reaches the loop, and learns that it should stop.
#[derive(Clone)]
pub struct Worker {
    sender: mpsc::Sender<Done>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// Hands over and wakes the loop.
    pub fn tell(&self, done: Done) {
        // The loop outlives its workers; a full pipe means it is awake already.
        let _ = self.sender.send(done);
        let _ = nix::unistd::write(&self.wake, b"x");
    }

    /// Whether the work should end where it is.
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Where the box may come in.
pub struct Doors {
    /// The port.
    pub tcp: TcpListener,
    /// The socket in the engine's directory; none where the file system has no sockets.
    pub unix: Option<UnixListener>,
}

struct Running {
    component: ComponentId,
    since: Instant,
    asker: Asker,
}

struct Engine {
    config: StartConfig,
    directory: PathBuf,
    tls: Tls,
    worker: Worker,
    peers: Vec<Peer>,
    connections: u64,
    payloads: Payloads,
    installing: Option<Running>,
    installed: VecDeque<(ComponentId, Result<Installed, Failure>)>,
    /// Requests to be answered when nothing is installed or fetched any more.
    when_idle: Vec<Asker>,
    cancelled: bool,
    /// Since when it is to end.
    stop: Option<Instant>,
    began: Instant,
    heard: Instant,
}

/// Serves until the box says stop, a signal says so, or the lease ends.
pub fn serve(doors: &Doors, port: u16, directory: PathBuf, config: StartConfig, tls: Tls) {
    let Ok((woken, wake)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC)
    else {
        return;
    };
    let (sender, done) = mpsc::channel();
    let worker = Worker { sender, wake: Arc::new(wake), stop: Arc::default() };
    let Ok(signals) = lease::signals() else { return };
    let nonblocking = doors.tcp.set_nonblocking(true).is_ok()
        && doors.unix.as_ref().is_none_or(|unix| unix.set_nonblocking(true).is_ok());
    if !nonblocking {
        return;
    }
    let mut engine = Engine::new(config, directory, tls, worker);
    loop {
        engine.peers.iter_mut().for_each(Peer::flush);
        if let Some(since) = engine.stop
            && engine.idle()
        {
            // Whoever said so has given up waiting by then: nobody else takes files and rule away.
            if since.elapsed() > STOPPED_MAX {
                lease::take_oneself_away(&engine.config, &engine.directory, port);
            }
            return;
        }
        if engine.lease_over() && engine.idle() {
            lease::take_oneself_away(&engine.config, &engine.directory, port);
            return;
        }
        engine.wait(doors, &woken, signals.as_fd());
        engine.accept(doors);
        let mut drained = [0; 64];
        while nix::unistd::read(&woken, &mut drained).is_ok_and(|n| n > 0) {}
        while let Ok(done) = done.try_recv() {
            engine.done(done);
        }
        if matches!(signals.read_signal(), Ok(Some(_))) {
            engine.cancel();
            engine.stop.get_or_insert_with(Instant::now);
        }
        engine.read();
    }
}

impl Engine {
    fn new(config: StartConfig, directory: PathBuf, tls: Tls, worker: Worker) -> Self {
        Self {
            config,
            directory,
            tls,
            worker,
            peers: Vec::new(),
            connections: 0,
            payloads: Payloads::default(),
            installing: None,
            installed: VecDeque::new(),
            when_idle: Vec::new(),
            cancelled: false,
            stop: None,
            began: Instant::now(),
            heard: Instant::now(),
        }
    }

    fn idle(&self) -> bool {
        self.installing.is_none() && self.payloads.idle()
    }

    fn lease_over(&mut self) -> bool {
        let over = self.heard.elapsed() >= Duration::from_secs(u64::from(self.config.lease_s));
        if over {
            // Not cancelled: a box that comes back while an installer still runs goes on.
            self.payloads.stop();
        }
        over
    }

    fn cancel(&mut self) {
        self.cancelled = true;
        self.payloads.stop();
    }

    fn wait(&self, doors: &Doors, woken: &OwnedFd, signals: std::os::fd::BorrowedFd<'_>) {
        let mut fds = vec![
            PollFd::new(doors.tcp.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals, PollFlags::POLLIN),
        ];
        fds.extend(doors.unix.as_ref().map(|unix| PollFd::new(unix.as_fd(), PollFlags::POLLIN)));
        for peer in &self.peers {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, peer.wants_write());
            fds.push(PollFd::new(peer.fd(), wanted));
        }
        // A second is fine enough for the lease and for handshakes; everything else wakes the poll.
        let _ = poll(&mut fds, PollTimeout::from(1_000_u16));
    }

    fn accept(&mut self, doors: &Doors) {
        while let Ok((stream, _)) = doors.tcp.accept() {
            let _ = stream.set_nodelay(true);
            if stream.set_nonblocking(true).is_ok() {
                self.connected(Box::new(stream));
            }
        }
        while let Some(Ok((stream, _))) = doors.unix.as_ref().map(UnixListener::accept) {
            if stream.set_nonblocking(true).is_ok() {
                self.connected(Box::new(stream));
            }
        }
    }

    fn connected(&mut self, stream: Box<dyn Stream>) {
        self.connections += 1;
        if self.peers.len() < PEERS_MAX
            && let Ok(peer) = Peer::new(self.connections, stream, self.tls.server.clone())
        {
            self.peers.push(peer);
        }
    }

    fn read(&mut self) {
        let mut arrivals = Vec::new();
        for peer in &mut self.peers {
            peer.read();
            loop {
                match peer.next() {
                    Ok(Some(arrival)) => {
                        peer.greeted = true;
                        arrivals.push((peer.number, arrival));
                    }
                    Ok(None) => break,
                    // What is not understood ends the connection, not the engine.
                    Err(_) => peer.end(),
                }
            }
            if !peer.greeted && peer.since.elapsed() > HANDSHAKE_MAX {
                peer.end();
            }
        }
        // A box that comes again has given its old connection up.
        let last = self.peers.iter().rev().find(|peer| peer.greeted).map(|peer| peer.number);
        for peer in &mut self.peers {
            if peer.greeted && Some(peer.number) != last {
                peer.end();
            }
        }
        for (number, arrival) in arrivals {
            self.heard = Instant::now();
            match arrival {
                Arrival::Message(ToEngine { id, request }) => self.request((number, id), request),
                Arrival::Chunk(id, bytes) => {
                    if !self.payloads.piece((number, id), bytes)
                        && let Some(peer) = self.peer(number)
                    {
                        peer.end();
                    }
                }
            }
        }
        let ended = self.peers.extract_if(.., |peer| peer.has_ended()).map(|peer| peer.number);
        for number in ended.collect::<Vec<_>>() {
            self.payloads.connection_ended(number);
        }
    }

    fn peer(&mut self, number: u64) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.number == number)
    }

    fn reply(&mut self, (number, id): Asker, reply: Reply) {
        if let Some(peer) = self.peer(number) {
            peer.send(&FromEngine::Reply { id, reply });
        }
    }

    fn notice(&mut self, (number, id): Asker, notice: Notice) {
        if let Some(peer) = self.peer(number) {
            peer.send(&FromEngine::Notice { id, notice });
        }
    }

    fn refuse(&mut self, asker: Asker, kind: FailureKind, message: &str) {
        self.reply(asker, Reply::Failed(failure(kind, message)));
    }

    fn request(&mut self, asker: Asker, request: Request) {
        match request {
            // Whether they fit is the box's to judge: it may be older or newer than this engine.
            Request::Hello { .. } => {
                let deployment = self.config.deployment.clone();
                let installing = self.installing.as_ref().map(|running| running.component.clone());
                self.reply(asker, Reply::Hello { protocol: PROTOCOL, deployment, installing });
            }
            Request::Renew => self.reply(asker, Reply::Done),
            Request::Status => {
                let status = Box::new(self.status());
                self.reply(asker, Reply::Status(status));
            }
            Request::Inventory => {
                self.answer(asker, || Reply::Inventory(Box::new(inventory::read())));
            }
            Request::Fwupd => {
                let directory = self.directory.clone();
                self.answer(asker, move || fwupd::list(&directory));
            }
            Request::ReadBack(read_back) => {
                self.answer(asker, move || install::read_back(&read_back));
            }
            Request::Probe(probe) => {
                self.answer(asker, move || Reply::Probed { blocked: fetch::probe(&probe) });
            }
            Request::Fetch(fetch) => self.bring(asker, Job::Fetch(fetch)),
            Request::Push(push) => self.bring(asker, Job::Push(push)),
            Request::Install(job) => self.install(asker, job),
            Request::Outcome { component } => self.outcome(asker, &component),
            Request::Abandon { sha256 } => {
                self.payloads.abandon(sha256);
                self.reply(asker, Reply::Done);
            }
            Request::Cancel => {
                self.cancel();
                self.when_idle.push(asker);
                self.answer_idle();
            }
            Request::Stop => {
                self.cancel();
                self.stop.get_or_insert_with(Instant::now);
                self.when_idle.push(asker);
                self.answer_idle();
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            deployment: self.config.deployment.clone(),
            seconds: self.began.elapsed().as_secs(),
            installing: self.installing.as_ref().map(|running| Installing {
                component: running.component.clone(),
                seconds: running.since.elapsed().as_secs(),
            }),
            transfers: self.payloads.transfers(),
            installed: self.installed.iter().map(|(component, _)| component.clone()).collect(),
        }
    }

    /// Answers from a thread of its own: the loop waits for nothing.
    fn answer(&self, asker: Asker, work: impl FnOnce() -> Reply + Send + 'static) {
        let worker = self.worker.clone();
        std::thread::spawn(move || worker.tell(Done::Answer(asker, work())));
    }

    fn bring(&mut self, asker: Asker, job: Job) {
        if self.cancelled {
            return self.refuse(asker, FailureKind::Cancelled, "cancelled");
        }
        match self.payloads.ask(asker, job) {
            (Next::Answer(reply), _) => self.reply(asker, reply),
            (Next::Begin(partial), Some(job)) => self.begin(asker, job, partial),
            (Next::Begin(_), None) | (Next::Wait, _) => {}
        }
    }

    fn begin(&mut self, asker: Asker, job: Job, partial: Option<payload::Partial>) {
        let which = job.payload();
        let worker = Worker { stop: Arc::default(), ..self.worker.clone() };
        let (stop, directory) = (worker.stop.clone(), self.directory.clone());
        let pieces = match job {
            Job::Fetch(fetch) => {
                let tls = self.tls.client.clone();
                std::thread::spawn(move || {
                    let ended = fetch::fetch(&fetch, partial, &directory, &tls, &worker);
                    worker.tell(Done::Payload(which.0, ended));
                });
                None
            }
            Job::Push(push) => {
                let (sender, pieces) = mpsc::sync_channel(payload::CHUNKS_MAX);
                std::thread::spawn(move || {
                    let ended = push::push(push, partial, &directory, &pieces, &worker);
                    worker.tell(Done::Payload(which.0, ended));
                });
                Some(sender)
            }
        };
        self.payloads.begun(asker, which, stop, pieces);
    }

    fn install(&mut self, asker: Asker, job: Install) {
        if self.cancelled {
            return self.refuse(asker, FailureKind::Cancelled, "cancelled");
        }
        if let Some(other) = &self.installing {
            let text = format!("{} is being installed", other.component);
            return self.refuse(asker, FailureKind::Refused, &text);
        }
        // Only what was brought and verified by this very process is ever run.
        let Some(path) = self.payloads.path(job.sha256).map(ToOwned::to_owned) else {
            return self.refuse(asker, FailureKind::Refused, "the payload is not here");
        };
        self.installing = Some(Running { component: job.component.clone(), since: Instant::now(), asker });
        let (worker, directory) = (self.worker.clone(), self.directory.clone());
        std::thread::spawn(move || {
            let result = install::install(&job, &path, &directory, &worker);
            worker.tell(Done::Installed(result));
        });
    }

    fn outcome(&mut self, asker: Asker, component: &ComponentId) {
        if let Some(running) = self.installing.as_mut().filter(|running| running.component == *component) {
            running.asker = asker;
            return;
        }
        let known = self.installed.iter().rev().find(|(other, _)| other == component);
        match known.map(|(_, result)| result.clone()) {
            Some(result) => self.reply(asker, installed(result)),
            None => self.refuse(asker, FailureKind::Refused, &format!("{component} was not installed here")),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Progress(sha256, bytes) => {
                if let Some((asker, notice)) = self.payloads.progress(sha256, bytes) {
                    self.notice(asker, notice);
                }
            }
            Done::Installing { seconds, line } => {
                if let Some(asker) = self.installing.as_ref().map(|running| running.asker) {
                    self.notice(asker, Notice::Installing { seconds, line });
                }
            }
            Done::Answer(asker, reply) => self.reply(asker, reply),
            Done::Installed(result) => self.has_installed(result),
            Done::Payload(sha256, ended) => {
                let payload::After { answers, next } = self.payloads.ended(sha256, ended);
                for (asker, reply) in answers {
                    match reply {
                        Reply::Failed(_) if self.cancelled => {
                            self.refuse(asker, FailureKind::Cancelled, "cancelled");
                        }
                        reply => self.reply(asker, reply),
                    }
                }
                if let Some((asker, job)) = next {
                    self.bring(asker, job);
                }
            }
        }
        self.answer_idle();
    }

    fn has_installed(&mut self, result: Result<Installed, Failure>) {
        let Some(running) = self.installing.take() else { return };
        self.reply(running.asker, installed(result.clone()));
        self.installed.push_back((running.component, result));
        let old = self.installed.len().saturating_sub(LOGS_MAX);
        for (_, result) in self.installed.iter_mut().take(old) {
            if let Ok(installed) = result {
                installed.log.clear();
                installed.logs.clear();
            }
        }
    }

    fn answer_idle(&mut self) {
        if self.idle() {
            for asker in std::mem::take(&mut self.when_idle) {
                self.reply(asker, Reply::Done);
            }
        }
    }
}

fn installed(result: Result<Installed, Failure>) -> Reply {
    result.map_or_else(Reply::Failed, Reply::Installed)
}
