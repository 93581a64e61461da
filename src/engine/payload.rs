//! Payloads on the node: on their way, stopped half-way, or there and verified.
//!
//! However bytes come, fetched or pushed, they go through one [`Partial`]: written, hashed, counted. What was taken in
//! stays when a transfer stops, so the next one, by whatever path, goes on at the byte. What does not hash to what
//! was announced is removed: [`Verified`] is the only way out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::linux;
use crate::digest::{Hasher, Sha256, Verified};
use crate::wire::frame::CHUNK_BYTES_MAX;
use crate::wire::message::{
    Failure, FailureKind, Fetch, Notice, PUSH_WINDOW_BYTES_MAX, Push, Reply, Transfer,
};

/// Bytes that must stay free on the node.
const SPARE_BYTES: u64 = 1024 * 1024;

/// Pieces that may wait to be written: what an honest box has on the way.
pub const CHUNKS_MAX: usize = PUSH_WINDOW_BYTES_MAX / CHUNK_BYTES_MAX + 1;

/// The request to be answered: the connection's number and the request's.
pub type Asker = (u64, u32);

/// A failure with its kind.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

/// A payload as far as it has come.
pub struct Partial {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    sha256: Sha256,
    size: u64,
    done: u64,
    /// How often it was taken up again.
    pub resumes: u32,
}

impl Partial {
    /// Goes on with what has come, or begins.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn take_up(
        begun: Option<Self>,
        directory: &Path,
        sha256: Sha256,
        size: u64,
    ) -> Result<Self, Failure> {
        let Some(mut partial) = begun else { return Self::begin(directory, sha256, size) };
        partial.resumes += u32::from(partial.done > 0);
        Ok(partial)
    }

    /// Nothing has come yet; there is room for all of it.
    fn begin(directory: &Path, sha256: Sha256, size: u64) -> Result<Self, Failure> {
        let path = directory.join(sha256.to_string());
        let node = |error: io::Error| failure(FailureKind::Node, format!("{}: {error}", path.display()));
        let free = linux::free_bytes(directory).map_err(node)?;
        if free < size.saturating_add(SPARE_BYTES) {
            let text = format!("{size} bytes are needed in {}, {free} are free", directory.display());
            return Err(failure(FailureKind::Node, text));
        }
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o700)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(node)?;
        Ok(Self { path, file, hasher: Hasher::new(), sha256, size, done: 0, resumes: 0 })
    }

    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether all are.
    pub fn is_complete(&self) -> bool {
        self.done == self.size
    }

    /// Takes the next bytes in. More than was announced is left out: the digest judges.
    ///
    /// # Errors
    /// [`Failure`] when they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let room = usize::try_from(self.size - self.done).unwrap_or(usize::MAX);
        let part = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.file.write_all(part).map_err(|error| {
            failure(FailureKind::Node, format!("writing {}: {error}", self.path.display()))
        })?;
        self.hasher.update(part);
        self.done += part.len() as u64;
        Ok(())
    }

    /// Vouches for the whole.
    ///
    /// # Errors
    /// [`Failure`] when the bytes are not the announced ones; they are gone then.
    pub fn finish(self) -> Result<Arrived, Failure> {
        // Closed, or it could not be run as a program.
        drop(self.file);
        match Verified::check(self.path.clone(), self.hasher, self.sha256) {
            Ok(payload) => Ok(Arrived { payload, bytes: self.done, resumes: self.resumes }),
            Err(mismatch) => {
                let _ = std::fs::remove_file(&self.path);
                Err(failure(FailureKind::Corrupt, format!("the payload is corrupt: {mismatch}")))
            }
        }
    }
}

/// A payload that is there.
pub struct Arrived {
    /// The file, vouched for.
    pub payload: Verified<PathBuf>,
    /// Bytes that came over the network for it.
    pub bytes: u64,
    /// How often it was taken up again.
    pub resumes: u32,
}

impl Arrived {
    fn reply(&self) -> Reply {
        Reply::Fetched { bytes: self.bytes, resumes: self.resumes }
    }
}

/// How a transfer ended.
pub type Ended = Result<Arrived, Box<Stopped>>;

/// A transfer that ended too early.
pub struct Stopped {
    failure: Failure,
    /// What is left to go on with.
    partial: Option<Partial>,
}

impl Stopped {
    /// Stopped where `partial` stands.
    pub fn at(partial: Partial, kind: FailureKind, why: impl Into<String>) -> Box<Self> {
        Box::new(Self { failure: failure(kind, why), partial: Some(partial) })
    }
}

/// Nothing is left to go on with.
impl From<Failure> for Box<Stopped> {
    fn from(failure: Failure) -> Self {
        Self::new(Stopped { failure, partial: None })
    }
}

/// How a payload is to come.
pub enum Job {
    /// Fetched from the box.
    Fetch(Box<Fetch>),
    /// Pushed by it.
    Push(Push),
}

impl Job {
    /// Which payload, and its size.
    pub fn payload(&self) -> (Sha256, u64) {
        match self {
            Self::Fetch(fetch) => (fetch.sha256, fetch.size),
            Self::Push(push) => (push.sha256, push.size),
        }
    }
}

/// A transfer under way.
pub struct Coming {
    asker: Asker,
    /// Set to end it where it is.
    pub stop: Arc<AtomicBool>,
    /// Where pieces go, when it is pushed.
    pub pieces: Option<SyncSender<Vec<u8>>>,
    /// What is to follow when it has ended.
    then: Option<(Asker, Job)>,
    /// Who gave it up, and is answered when it has ended, whatever follows.
    abandoned: Vec<Asker>,
    done: u64,
    total: u64,
    since: Instant,
}

enum Payload {
    Coming(Coming),
    Stopped(Partial),
    Here(Arrived),
}

/// All payloads of this engine.
#[derive(Default)]
pub struct Payloads(HashMap<Sha256, Payload>);

/// What a transfer's end brings.
#[derive(Default)]
pub struct After {
    /// Whom to answer what.
    pub answers: Vec<(Asker, Reply)>,
    /// What is to be begun.
    pub next: Option<(Asker, Job)>,
}

/// What is to be done for one who asks for a payload.
pub enum Next {
    /// Answer.
    Answer(Reply),
    /// Begin with what there is, if there is something.
    Begin(Option<Partial>),
    /// Nothing now: it comes, or what comes is stopped first.
    Wait,
}

impl Payloads {
    /// Someone asks for a payload.
    pub fn ask(&mut self, asker: Asker, job: Job) -> (Next, Option<Job>) {
        let (sha256, _) = job.payload();
        match self.0.get_mut(&sha256) {
            Some(Payload::Here(arrived)) => return (Next::Answer(arrived.reply()), None),
            Some(Payload::Coming(coming)) => {
                let goes_on = !coming.stop.load(Ordering::Relaxed);
                if let (Job::Fetch(_), None, true) = (&job, &coming.pieces, goes_on) {
                    coming.asker = asker;
                } else {
                    coming.stop();
                    coming.then = Some((asker, job));
                }
                return (Next::Wait, None);
            }
            Some(Payload::Stopped(_)) | None => {}
        }
        let partial = match self.0.remove(&sha256) {
            Some(Payload::Stopped(partial)) => Some(partial),
            _ => None,
        };
        (Next::Begin(partial), Some(job))
    }

    /// A transfer has begun.
    pub fn begun(
        &mut self,
        asker: Asker,
        (sha256, total): (Sha256, u64),
        stop: Arc<AtomicBool>,
        pieces: Option<SyncSender<Vec<u8>>>,
    ) {
        let (then, abandoned, since) = (None, Vec::new(), Instant::now());
        let coming = Coming { asker, stop, pieces, then, abandoned, done: 0, total, since };
        self.0.insert(sha256, Payload::Coming(coming));
    }

    /// A transfer has come further; whom to tell, and what.
    pub fn progress(&mut self, sha256: Sha256, done: u64) -> Option<(Asker, Notice)> {
        let Some(Payload::Coming(coming)) = self.0.get_mut(&sha256) else { return None };
        coming.done = done;
        let notice = match coming.pieces {
            Some(_) => Notice::Pushed { done },
            None => Notice::Fetching { done, total: coming.total },
        };
        Some((coming.asker, notice))
    }

    /// A transfer has ended: whom to answer what, and what follows.
    pub fn ended(&mut self, sha256: Sha256, ended: Ended) -> After {
        let Some(Payload::Coming(coming)) = self.0.remove(&sha256) else { return After::default() };
        let (reply, asker, next) = match (ended, coming.then) {
            (Ok(arrived), then) => {
                let reply = arrived.reply();
                self.0.insert(sha256, Payload::Here(arrived));
                (reply, Some(then.map_or(coming.asker, |(asker, _)| asker)), None)
            }
            (Err(stopped), then) => {
                if let Some(partial) = stopped.partial {
                    self.0.insert(sha256, Payload::Stopped(partial));
                }
                (Reply::Failed(stopped.failure), then.is_none().then_some(coming.asker), then)
            }
        };
        let mut askers = coming.abandoned;
        askers.extend(asker.filter(|asker| !askers.contains(asker)));
        let answers = askers.into_iter().map(|asker| (asker, reply.clone())).collect();
        After { answers, next }
    }

    /// A piece from the box; false when it sent more than it may. A piece nobody waits for any more is left out.
    pub fn piece(&self, asker: Asker, bytes: Vec<u8>) -> bool {
        let waiting = self.0.values().find_map(|payload| match payload {
            Payload::Coming(coming) if coming.asker == asker => coming.pieces.as_ref(),
            _ => None,
        });
        waiting.is_none_or(|pieces| {
            !matches!(pieces.try_send(bytes), Err(std::sync::mpsc::TrySendError::Full(_)))
        })
    }

    /// A connection has ended: what was pushed over it waits to be taken up again.
    pub fn connection_ended(&mut self, number: u64) {
        for coming in self.coming_mut().filter(|coming| coming.asker.0 == number && coming.pieces.is_some()) {
            coming.stop();
        }
    }

    /// Everything under way ends where it is.
    pub fn stop(&mut self) {
        self.coming_mut().for_each(Coming::stop);
    }

    /// A transfer ends where it is, and none follows it.
    pub fn abandon(&mut self, sha256: Sha256) {
        if let Some(Payload::Coming(coming)) = self.0.get_mut(&sha256) {
            let asker = coming.then.take().map_or(coming.asker, |(asker, _)| asker);
            if !coming.abandoned.contains(&asker) {
                coming.abandoned.push(asker);
            }
            coming.stop();
        }
    }

    /// Whether nothing is under way.
    pub fn idle(&self) -> bool {
        !self.0.values().any(|payload| matches!(payload, Payload::Coming(_)))
    }

    /// The verified file, if it is there.
    pub fn path(&self, sha256: Sha256) -> Option<&Path> {
        match self.0.get(&sha256)? {
            Payload::Here(arrived) => Some(arrived.payload.get()),
            _ => None,
        }
    }

    /// What is under way.
    pub fn transfers(&self) -> Vec<Transfer> {
        let coming = self.0.iter().filter_map(|(sha256, payload)| match payload {
            Payload::Coming(coming) => Some(Transfer {
                sha256: *sha256,
                done: coming.done,
                total: coming.total,
                seconds: coming.since.elapsed().as_secs(),
            }),
            _ => None,
        });
        coming.collect()
    }

    fn coming_mut(&mut self) -> impl Iterator<Item = &mut Coming> {
        self.0.values_mut().filter_map(|payload| match payload {
            Payload::Coming(coming) => Some(coming),
            _ => None,
        })
    }
}

impl Coming {
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A push waits for pieces: without a sender there are none. The empty one keeps it known as a push.
        if self.pieces.is_some() {
            self.pieces = Some(std::sync::mpsc::sync_channel(0).0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(sha256: Sha256) -> Job {
        let (server_name, path) = (heapless::String::new(), heapless::String::new());
        Job::Fetch(Box::new(Fetch { sha256, size: 9, address: String::new(), port: 1, server_name, path }))
    }

    fn stopped(sha256: Sha256, directory: &Path) -> Ended {
        let partial = Partial::take_up(None, directory, sha256, 9).unwrap();
        Err(Stopped::at(partial, FailureKind::Cancelled, "the transfer was stopped"))
    }

    /// Under way for the first who asks.
    fn begun(sha256: Sha256) -> Payloads {
        let mut payloads = Payloads::default();
        assert!(matches!(payloads.ask((1, 1), fetch(sha256)), (Next::Begin(None), Some(_))));
        payloads.begun((1, 1), (sha256, 9), Arc::default(), None);
        payloads
    }

    #[test]
    fn who_gives_up_is_told_so_and_who_asks_next_is_served() {
        let (sha256, directory) = (Sha256::of(b"any"), tempfile::tempdir().unwrap());
        let mut payloads = begun(sha256);
        payloads.abandon(sha256);
        assert!(matches!(payloads.ask((1, 2), fetch(sha256)), (Next::Wait, None)));
        let after = payloads.ended(sha256, stopped(sha256, directory.path()));
        assert!(matches!(after.answers.as_slice(), [((1, 1), Reply::Failed(_))]), "{:?}", after.answers);
        let Some((asker, job)) = after.next else { panic!("nobody is served") };
        assert_eq!(asker, (1, 2));
        assert!(matches!(payloads.ask(asker, job), (Next::Begin(Some(_)), Some(_))), "it goes on");
    }

    #[test]
    fn all_who_give_up_are_told_so_once() {
        let (sha256, directory) = (Sha256::of(b"any"), tempfile::tempdir().unwrap());
        let mut payloads = begun(sha256);
        payloads.abandon(sha256);
        payloads.ask((1, 2), fetch(sha256));
        payloads.abandon(sha256);
        payloads.abandon(sha256);
        let after = payloads.ended(sha256, stopped(sha256, directory.path()));
        let mut askers: Vec<Asker> = after.answers.iter().map(|(asker, _)| *asker).collect();
        askers.sort_unstable();
        assert_eq!((askers, after.next.is_none()), (vec![(1, 1), (1, 2)], true));
    }

    #[test]
    fn who_asks_again_for_what_comes_is_answered_by_it() {
        let (sha256, directory) = (Sha256::of(b"any"), tempfile::tempdir().unwrap());
        let mut payloads = begun(sha256);
        assert!(matches!(payloads.ask((2, 1), fetch(sha256)), (Next::Wait, None)));
        let after = payloads.ended(sha256, stopped(sha256, directory.path()));
        assert!(matches!(after.answers.as_slice(), [((2, 1), Reply::Failed(_))]) && after.next.is_none());
    }
}
