//! The box's side of the conversation with an engine: TLS 1.3 over whatever stream leads there, requests answered in
//! any order.
//!
//! One task writes, one reads and matches replies by number. The lease is renewed often, and each renewal is
//! answered: silence for a few of them ends the conversation with an error for every request that waits, so that
//! the box can join again, by another path, long before the lease ends. [`super::push`] sends payloads in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::client::TlsStream;

use crate::wire::PROTOCOL;
use crate::wire::frame::{self, FrameError, HEADER_BYTES};
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Failure, FromEngine, Notice, Reply, Request, ToEngine};

/// TLS and the first answer take at most this.
const JOIN_MAX: Duration = Duration::from_secs(15);

/// An old engine that is told to leave says goodbye within this.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// A goodbye is said by then, or not at all.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// A closed conversation has ended by then, unless a message of the other side's never goes out.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Requests that may wait to be sent.
const QUEUE_MAX: usize = 32;

/// The lease is renewed at least this often, or in a third of itself.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(4);

/// Renewals without any answer that are silence.
const RENEWALS_MAX: u32 = 3;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It does not prove itself, or takes too long to.
    #[error("the engine at {address} does not answer as ours")]
    Handshake {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is another one.
    #[error("the engine speaks protocol {protocol} for deployment {deployment}; it was told to leave")]
    Other {
        /// Its protocol.
        protocol: u16,
        /// Its deployment.
        deployment: DeploymentId,
    },
    /// The connection ended.
    #[error("the connection to the engine was lost")]
    Lost,
    /// A payload could not be read on the box.
    #[error("the payload cannot be read on the box")]
    Payload(#[source] std::io::Error),
    /// A message that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What the engine itself says.
    #[error(transparent)]
    Engine(#[from] Failure),
}

/// Whom the engine must prove to be, and the box to it.
pub struct Identity<'a> {
    /// The box's certificate and the CA.
    pub tls: Arc<ClientConfig>,
    /// The name in the engine's certificate.
    pub server_name: &'a str,
    /// The deployment.
    pub deployment: &'a DeploymentId,
    /// Its lease, seconds.
    pub lease_s: u32,
}

/// What leads to an engine: a TCP connection, or streams of a command over SSH.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

type Stream = TlsStream<Box<dyn Duplex>>;
type Answer = (oneshot::Sender<Reply>, Option<mpsc::Sender<Notice>>);

/// Requests that wait for their answer; none once the conversation has ended.
#[derive(Default)]
struct Waiting(Mutex<Option<HashMap<u32, Answer>>>);

impl Waiting {
    fn open() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<u32, Answer>) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
    }

    /// Whoever waits learns of the end by its sender's.
    fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A conversation with an engine. Dropping it ends the connection; the engine then waits for its lease.
pub struct EngineClient {
    requests: mpsc::Sender<Vec<u8>>,
    /// Pieces of payloads: sent only when no request waits, one at a time.
    pub(super) pieces: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    next: AtomicU32,
    close: watch::Sender<bool>,
}

impl EngineClient {
    /// Begins a conversation over `stream`, which leads to `address`, and makes sure it is the right engine. Also
    /// returns what it is installing, if anything. An engine of another protocol is told to leave.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn join(
        stream: Box<dyn Duplex>,
        address: &str,
        identity: &Identity<'_>,
    ) -> Result<(Self, Option<ComponentId>), ControlError> {
        let failed = |source| ControlError::Handshake { address: address.to_owned(), source };
        let name = ServerName::try_from(identity.server_name.to_owned())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let join = async {
            let tls = tokio_rustls::TlsConnector::from(identity.tls.clone());
            let stream = tls.connect(name, stream).await.map_err(failed)?;
            let client = Self::over(stream, Duration::from_secs(u64::from(identity.lease_s)));
            let hello = Request::Hello { protocol: PROTOCOL, deployment: identity.deployment.clone() };
            match client.request(hello).await? {
                Reply::Hello { protocol: PROTOCOL, deployment, installing }
                    if deployment == *identity.deployment =>
                {
                    Ok((client, installing))
                }
                Reply::Hello { protocol, deployment, .. } => {
                    // It understands this whatever its version is; if not, the unwind ends it.
                    let _ = tokio::time::timeout(LEAVE_MAX, client.request(Request::Stop)).await;
                    Err(ControlError::Other { protocol, deployment })
                }
                _ => Err(ControlError::Lost),
            }
        };
        let late = || failed(std::io::Error::from(std::io::ErrorKind::TimedOut));
        tokio::time::timeout(JOIN_MAX, join).await.map_err(|_| late())?
    }

    fn over(stream: Stream, lease: Duration) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let (pieces, queued_pieces) = mpsc::channel(1);
        let waiting = Arc::new(Waiting::open());
        let close = watch::Sender::new(false);
        let (reader, writer) = tokio::io::split(stream);
        let heard = Arc::new(Mutex::new(Instant::now()));
        let conversation = Conversation {
            renew_every: RENEW_EVERY_MAX.min(lease / 3).max(Duration::from_millis(100)),
            heard: heard.clone(),
        };
        let closing = close.subscribe();
        let held = waiting.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = conversation.write(writer, queue, queued_pieces, closing) => {}
                () = read(reader, &held, &heard) => {}
            }
            held.end();
        });
        Self { requests, pieces, waiting, next: AtomicU32::new(0), close }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Engine`] when the engine says why not.
    pub async fn request(&self, request: Request) -> Result<Reply, ControlError> {
        self.ask(request, None).await?.1.await
    }

    /// The same, with what happens on the way. A reader that is too slow misses notices, never the answer.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub async fn request_with_notices(
        &self,
        request: Request,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Reply, ControlError> {
        self.ask(request, Some(notices)).await?.1.await
    }

    /// Asks; returns the request's number and what waits for the answer.
    pub(super) async fn ask(
        &self,
        request: Request,
        notices: Option<mpsc::Sender<Notice>>,
    ) -> Result<(u32, impl Future<Output = Result<Reply, ControlError>> + use<>), ControlError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = frame::encode(&ToEngine { id, request })?;
        let (answer, answered) = oneshot::channel();
        self.waiting.with(|waiting| waiting.insert(id, (answer, notices))).ok_or(ControlError::Lost)?;
        self.requests.send(bytes).await.map_err(|_| ControlError::Lost)?;
        Ok((id, async move {
            match answered.await.map_err(|_| ControlError::Lost)? {
                Reply::Failed(failure) => Err(failure.into()),
                reply => Ok(reply),
            }
        }))
    }

    /// Ends the conversation and waits until its stream is let go.
    pub async fn close(&self) {
        self.close.send_replace(true);
        // The queue is dropped with the stream; a task that hangs is left to itself.
        let _ = tokio::time::timeout(CLOSE_MAX, self.requests.closed()).await;
    }
}

struct Conversation {
    renew_every: Duration,
    heard: Arc<Mutex<Instant>>,
}

impl Conversation {
    /// Sends what waits, requests first, until the box has nothing more to say or the engine falls silent.
    async fn write(
        self,
        mut writer: WriteHalf<Stream>,
        mut requests: mpsc::Receiver<Vec<u8>>,
        mut pieces: mpsc::Receiver<Vec<u8>>,
        mut closing: watch::Receiver<bool>,
    ) {
        // A renewal bears a number that no request gets in the life of a connection; its answer is matched by nobody.
        let renewal = frame::encode(&ToEngine { id: u32::MAX, request: Request::Renew }).unwrap_or_default();
        let first = tokio::time::Instant::now() + self.renew_every;
        let mut renew = tokio::time::interval_at(first, self.renew_every);
        loop {
            let bytes = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => break,
                _ = renew.tick() => {
                    let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                    if heard.elapsed() > self.renew_every * RENEWALS_MAX {
                        return;
                    }
                    renewal.clone()
                }
                request = requests.recv() => {
                    let Some(request) = request else { break };
                    request
                }
                Some(piece) = pieces.recv() => piece,
            };
            let send = async { writer.write_all(&bytes).await.is_ok() && writer.flush().await.is_ok() };
            // A stream that takes nothing for so long is as silent as one that says nothing.
            if !matches!(tokio::time::timeout(self.renew_every * RENEWALS_MAX, send).await, Ok(true)) {
                return;
            }
        }
        // A goodbye that does not arrive changes nothing.
        let _ = tokio::time::timeout(GOODBYE_MAX, writer.shutdown()).await;
    }
}

async fn read(mut reader: ReadHalf<Stream>, waiting: &Waiting, heard: &Mutex<Instant>) {
    while let Ok(message) = receive(&mut reader).await {
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        match message {
            FromEngine::Reply { id, reply } => {
                if let Some((answer, _)) = waiting.with(|waiting| waiting.remove(&id)).flatten() {
                    let _ = answer.send(reply);
                }
            }
            FromEngine::Notice { id, notice } => {
                waiting.with(|waiting| {
                    if let Some((_, Some(notices))) = waiting.get(&id) {
                        let _ = notices.try_send(notice);
                    }
                });
            }
        }
    }
}

async fn receive(reader: &mut ReadHalf<Stream>) -> Result<FromEngine, ControlError> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await.map_err(|_| ControlError::Lost)?;
    let mut body = vec![0; frame::body_bytes(header)?];
    reader.read_exact(&mut body).await.map_err(|_| ControlError::Lost)?;
    Ok(frame::decode(&body)?)
}
