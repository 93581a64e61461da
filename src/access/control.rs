//! The box's side of the conversation with an engine: TLS 1.3 to its port, requests answered in any order.
//!
//! One task owns the connection: it sends, receives, matches replies by number, and renews the lease. Silence for
//! longer than the lease ends the conversation with an error for every request that waits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::wire::PROTOCOL;
use crate::wire::frame::{self, FrameError, HEADER_BYTES};
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Failure, FromEngine, Notice, Reply, Request, ToEngine};

/// TCP, TLS and the first answer take at most this.
const JOIN_MAX: Duration = Duration::from_secs(15);

/// Requests that may wait to be sent.
const QUEUE_MAX: usize = 32;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No connection.
    #[error("the engine at {address} cannot be reached")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not prove itself, or takes too long to.
    #[error("the engine at {address} does not answer as ours")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is another one.
    #[error("the engine speaks protocol {protocol} for deployment {deployment}")]
    Other {
        /// Its protocol.
        protocol: u16,
        /// Its deployment.
        deployment: DeploymentId,
    },
    /// The connection ended.
    #[error("the connection to the engine was lost")]
    Lost,
    /// A message that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What the engine itself says.
    #[error(transparent)]
    Engine(#[from] Failure),
}

struct Ask {
    request: Request,
    notices: Option<mpsc::Sender<Notice>>,
    answer: oneshot::Sender<Reply>,
}

/// A conversation with an engine. Dropping it ends the connection; the engine then waits for its lease.
pub struct EngineClient {
    asks: mpsc::Sender<Ask>,
}

/// Whether something accepts connections there within `bound`.
pub async fn port_answers(address: SocketAddr, bound: Duration) -> bool {
    matches!(tokio::time::timeout(bound, TcpStream::connect(address)).await, Ok(Ok(_)))
}

impl EngineClient {
    /// Connects, and makes sure it is the right engine. Also returns what it is installing, if anything.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn connect(
        address: SocketAddr,
        tls: Arc<ClientConfig>,
        server_name: &str,
        deployment: &DeploymentId,
        lease_s: u32,
    ) -> Result<(Self, Option<ComponentId>), ControlError> {
        let failed = |source| ControlError::Handshake { address, source };
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let join = async {
            let stream = TcpStream::connect(address)
                .await
                .map_err(|source| ControlError::Connect { address, source })?;
            stream.set_nodelay(true).map_err(failed)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
            let (asks, queue) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(converse(stream, queue, Duration::from_secs(u64::from(lease_s))));
            let client = Self { asks };
            let hello = Request::Hello { protocol: PROTOCOL, deployment: deployment.clone() };
            match client.request(hello).await? {
                Reply::Hello { protocol: PROTOCOL, deployment: theirs, installing }
                    if theirs == *deployment =>
                {
                    Ok((client, installing))
                }
                Reply::Hello { protocol, deployment, .. } => {
                    Err(ControlError::Other { protocol, deployment })
                }
                _ => Err(ControlError::Lost),
            }
        };
        let late = || failed(std::io::Error::from(std::io::ErrorKind::TimedOut));
        tokio::time::timeout(JOIN_MAX, join).await.map_err(|_| late())?
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Engine`] when the engine says why not.
    pub async fn request(&self, request: Request) -> Result<Reply, ControlError> {
        self.ask(request, None).await
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
        self.ask(request, Some(notices)).await
    }

    async fn ask(
        &self,
        request: Request,
        notices: Option<mpsc::Sender<Notice>>,
    ) -> Result<Reply, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { request, notices, answer }).await.map_err(|_| ControlError::Lost)?;
        match answered.await.map_err(|_| ControlError::Lost)? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok(reply),
        }
    }
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;
type Waiting = HashMap<u32, (oneshot::Sender<Reply>, Option<mpsc::Sender<Notice>>)>;

/// Owns the connection until either side ends it. Whatever waits then is answered by its sender's end.
async fn converse(stream: Stream, mut queue: mpsc::Receiver<Ask>, lease: Duration) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (frames, mut arrived) = mpsc::channel(QUEUE_MAX);
    let reading = tokio::spawn(async move {
        while let Ok(message) = receive(&mut reader).await {
            if frames.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut waiting = Waiting::new();
    let mut next = 0_u32;
    // A third of the lease: two renewals may be lost. Each is answered, so two without an answer mean silence.
    let mut renew = tokio::time::interval(lease / 3);
    let mut unanswered = 0;
    loop {
        let ask = tokio::select! {
            message = arrived.recv() => {
                let Some(message) = message else { break };
                unanswered = 0;
                deliver(message, &mut waiting);
                continue;
            }
            ask = queue.recv() => {
                let Some(ask) = ask else { break };
                ask
            }
            _ = renew.tick() => {
                unanswered += 1;
                if unanswered > 3 {
                    break;
                }
                let (answer, _) = oneshot::channel();
                Ask { request: Request::Renew, notices: None, answer }
            }
        };
        next += 1;
        waiting.insert(next, (ask.answer, ask.notices));
        let sent = match frame::encode(&ToEngine { id: next, request: ask.request }) {
            Ok(bytes) => writer.write_all(&bytes).await.is_ok() && writer.flush().await.is_ok(),
            Err(_) => waiting.remove(&next).is_some(),
        };
        if !sent {
            break;
        }
    }
    // A goodbye that does not arrive changes nothing.
    let _ = writer.shutdown().await;
    reading.abort();
}

fn deliver(message: FromEngine, waiting: &mut Waiting) {
    match message {
        FromEngine::Reply { id, reply } => {
            if let Some((answer, _)) = waiting.remove(&id) {
                let _ = answer.send(reply);
            }
        }
        FromEngine::Notice { id, notice } => {
            if let Some((_, Some(notices))) = waiting.get(&id) {
                let _ = notices.try_send(notice);
            }
        }
    }
}

async fn receive(reader: &mut tokio::io::ReadHalf<Stream>) -> Result<FromEngine, ControlError> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await.map_err(|_| ControlError::Lost)?;
    let mut body = vec![0; frame::body_bytes(header)?];
    reader.read_exact(&mut body).await.map_err(|_| ControlError::Lost)?;
    Ok(frame::decode(&body)?)
}
