//! The box's HTTPS port: one listener, many certificates, chosen by the name the client asks for (SNI).
//!
//! A deployment adds a name per node, whose certificate and client verifier belong to that node alone, and takes it
//! away when done; the console is the default. TLS 1.3 only. Everything is bounded: connections, handshakes,
//! headers, request bodies ([`body`]). It must never answer a name nobody added, unless there is a default. [`identity`]
//! is the box's own certificate, which the console is served with.

pub mod body;
pub mod identity;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::LazyConfigAcceptor;
use tower::ServiceExt as _;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_024;

/// Connections at once from one address: nobody takes all places. Many nodes may stand behind one address.
const CONNECTIONS_PER_PEER_MAX: usize = CONNECTIONS_MAX / 2;

/// A client that has not finished its handshake by then is let go.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The same for the head of a request.
const HEADER_MAX: Duration = Duration::from_secs(10);

/// Bytes of a response that wait to be sent, or of a request's head: one chunk of a payload. The library's own bound is
/// 400 KiB, which with 64 nodes would be the most of what the box needs.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Pause after an accept that failed for want of descriptors, until connections have ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The one provider of TLS cryptography: ring.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

type Site = (Arc<ServerConfig>, Router);

/// What stands before the port and lets nobody through that it does not know: the box's own packet filter.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Lets a node come to the port until the result is dropped. Returns once it may come.
    async fn admit(&self, node: SocketAddr, deployment: &str) -> Box<dyn Send + Sync>;
}

/// Names and what is served under them. Cloning shares it.
#[derive(Clone, Default)]
pub struct Registry {
    sites: Arc<RwLock<Sites>>,
    gate: Option<Arc<dyn Gate>>,
}

#[derive(Default)]
struct Sites {
    by_name: HashMap<String, Site>,
    default: Option<Site>,
}

/// A name in the registry; dropping it takes the name away.
#[must_use = "dropped, it takes the name away"]
pub struct Registration {
    registry: Registry,
    name: String,
    /// Kept for as long as the name is served.
    _admitted: Option<Box<dyn Send + Sync>>,
}

impl Registration {
    /// The same, and this node may come to the port as long as the name is served.
    pub async fn for_node(mut self, node: SocketAddr, deployment: &str) -> Self {
        if let Some(gate) = self.registry.gate.clone() {
            self._admitted = Some(gate.admit(node, deployment).await);
        }
        self
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.sites.write().unwrap_or_else(PoisonError::into_inner).by_name.remove(&self.name);
    }
}

impl Registry {
    /// Nothing is served.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, behind a gate.
    pub fn behind(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Serves `app` under `name`.
    pub fn add(&self, name: &str, tls: Arc<ServerConfig>, app: Router) -> Registration {
        let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
        sites.by_name.insert(name.to_owned(), (tls, app));
        Registration { registry: self.clone(), name: name.to_owned(), _admitted: None }
    }

    /// Serves `app` under every other name, and to clients that name none.
    pub fn set_default(&self, tls: Arc<ServerConfig>, app: Router) {
        self.sites.write().unwrap_or_else(PoisonError::into_inner).default = Some((tls, app));
    }

    fn find(&self, name: Option<&str>) -> Option<Site> {
        let sites = self.sites.read().unwrap_or_else(PoisonError::into_inner);
        name.and_then(|name| sites.by_name.get(name)).or(sites.default.as_ref()).cloned()
    }
}

/// The bound port.
pub struct Listener {
    socket: TcpListener,
    port: u16,
}

impl Listener {
    /// Binds `port` or one of the `tries - 1` after it, on all addresses of both families.
    ///
    /// # Errors
    /// Those of the last try.
    pub fn bind(port: u16, tries: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in port..port.saturating_add(tries.max(1)) {
            match bind(port) {
                Ok(socket) => return Ok(Self { port: socket.local_addr()?.port(), socket }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The port it got.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves until `shutdown` ends.
    pub async fn serve(self, registry: Registry, shutdown: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let peers = Peers::default();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                accepted = self.socket.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(counted) = peers.enter(peer.ip().to_canonical()) else { continue };
            let place = tokio::select! {
                () = &mut shutdown => return,
                place = places.clone().acquire_owned() => place,
            };
            let Ok(place) = place else { return };
            let registry = registry.clone();
            tokio::spawn(async move {
                if let Err(error) = connection(stream, peer, &registry).await {
                    tracing::debug!(%peer, error = %error, "connection ended");
                }
                drop((place, counted));
            });
        }
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection that is counted until it is dropped.
struct Counted(Peers, IpAddr);

impl Peers {
    fn all(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, peer: IpAddr) -> Option<Counted> {
        let mut all = self.all();
        let count = all.entry(peer).or_default();
        if *count >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Counted(self.clone(), peer))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.0.all();
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

/// Both families by one socket; a machine without IPv6 gets IPv4 alone.
fn bind(port: u16) -> io::Result<TcpListener> {
    let listen = |socket: tokio::net::TcpSocket, address: SocketAddr| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    match tokio::net::TcpSocket::new_v6() {
        Ok(socket) => {
            // Whatever `net.ipv6.bindv6only` is here, ipv6(7).
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &false)?;
            listen(socket, (Ipv6Addr::UNSPECIFIED, port).into())
        }
        Err(_) => listen(tokio::net::TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into()),
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    registry: &Registry,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let site = registry.find(start.client_hello().server_name());
        let Some((tls, app)) = site else {
            return Err(io::Error::other("nothing is served under this name"));
        };
        Ok((start.into_stream(tls).await?, app))
    };
    let (stream, app) = tokio::time::timeout(HANDSHAKE_MAX, handshake).await??;
    let first = Arc::new(Notify::new());
    let asked = first.clone();
    let service = TowerToHyperService::new(app.map_request(move |mut request: Request<Incoming>| {
        asked.notify_one();
        request.extensions_mut().insert(peer);
        request.map(|incoming| Body::new(body::Timed::new(incoming)))
    }));
    let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_MAX).max_buf_size(BUFFER_BYTES_MAX);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(20)));
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    // The library's own bound begins once it knows which HTTP is spoken: who says nothing would keep his place.
    tokio::select! {
        ended = &mut serving => return ended,
        asked = tokio::time::timeout(HEADER_MAX, first.notified()) => asked?,
    }
    serving.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places() {
        let peers = Peers::default();
        let one: IpAddr = "fd00::1".parse().unwrap();
        let mut counted: Vec<_> = std::iter::from_fn(|| peers.enter(one)).take(CONNECTIONS_MAX).collect();
        assert_eq!(counted.len(), CONNECTIONS_PER_PEER_MAX);
        assert!(peers.enter("fd00::2".parse().unwrap()).is_some());
        counted.pop();
        assert!(peers.enter(one).is_some());
        drop(counted);
        assert!(peers.all().is_empty());
    }
}
