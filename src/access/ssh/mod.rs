//! Linux nodes over SSH: one connection and one login for everything, few processes on the node.
//!
//! [`Session`] connects; [`login`] proves who the user is, [`exec`] runs commands as root, through any [`login_shell`];
//! [`node`] is what is done on a node, [`script`] the shell that does it; [`ground`] and [`firewall`] are what is found
//! there. [`driver`] gives all of it to deployments. A hostile server gets nothing: it may open no channel, and a password is sent once.

mod driver;
mod error;
mod exec;
mod firewall;
mod ground;
mod login;
mod login_shell;
mod node;
mod restart;
mod script;
mod shell;
mod stream;
mod tunnel;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use russh::client;
use russh::keys::HashAlg;
use russh::{Channel, Preferred, cipher, kex};

use crate::secret::Secret;
use crate::wire::firewall::Known;

use stream::Prompt;

pub use super::engine_image::{EngineImage, Unpacker};
pub use driver::Ssh;
pub use error::AccessError;
pub use firewall::Firewall;
pub use ground::{Ground, NoPlace, Place};
pub use node::{Copied, Opened, Undone};

/// A TCP connection takes at most this.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Key exchange and login take at most this: PAM may ask a slow directory.
const LOGIN_MAX: Duration = Duration::from_secs(30);

/// sshd drops connections at random when many arrive at once (`MaxStartups`): tried again so often.
const DROPPED_TRIES: u32 = 4;

/// An OpenSSH or PKCS #8 private key.
#[derive(Clone)]
pub struct Key {
    /// The key file's text.
    pub pem: Secret,
    /// What decrypts it.
    pub passphrase: Option<Secret>,
}

/// How root's rights are had.
#[derive(Clone)]
pub enum Privilege {
    /// The user is root.
    Root,
    /// By sudo.
    Sudo {
        /// The login's password, which sudo takes unless `targetpw` or `rootpw` is set.
        login: Option<Secret>,
        /// The one that was given for sudo.
        own: Option<Secret>,
    },
    /// By su.
    Su {
        /// root's password.
        password: Option<Secret>,
    },
}

/// Which host key is accepted.
pub enum HostKeyPolicy {
    /// Any: there was no visit before.
    FirstUse,
    /// The one with this fingerprint, `SHA256:…`.
    Pinned(String),
}

/// A node and how to get in.
pub struct Target {
    /// Literal without brackets, `%zone` allowed, or a name.
    pub address: String,
    /// SSH port.
    pub port: u16,
    /// User.
    pub user: String,
    /// The key, if the user has one here.
    pub key: Option<Key>,
    /// The password, also where PAM asks for it interactively.
    pub password: Option<Secret>,
    /// Root's rights.
    pub privilege: Privilege,
    /// Host key.
    pub host_key: HostKeyPolicy,
}

/// A connection to a node, logged in.
pub struct Session {
    handle: client::Handle<Guard>,
    host_key: String,
    local: SocketAddr,
    peer: SocketAddr,
    round_trip: Duration,
    user: String,
    privilege: Privilege,
    /// Whether commands get a terminal: sudo or su has asked for one.
    terminal: bool,
    /// Root's shell, once there is one.
    shell: Option<shell::RootShell>,
    /// The same, while the engine works.
    resting: Option<shell::Resting>,
    /// Shell by which root's shells note themselves in the engine's directory, once that is known.
    note: Option<String>,
    /// What the last look at the firewall has shown of the deployment's own rule.
    rule: Known,
}

/// Judges the host key, and rejects every channel a server would open: nothing here ever asked for one.
struct Guard {
    pinned: Option<String>,
    found: Arc<Mutex<String>>,
}

macro_rules! reject_channels {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        async fn $name(
            &mut self,
            _: Channel<client::Msg>,
            $($argument: $type,)*
            reply: client::ChannelOpenHandle,
            _: &mut client::Session,
        ) -> Result<(), russh::Error> {
            // Dropped unanswered, the handle rejects.
            drop(reply);
            Ok(())
        }
    )*};
}

impl client::Handler for Guard {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let found = key.public_key().fingerprint(HashAlg::Sha256).to_string();
        let accepted = self.pinned.as_ref().is_none_or(|pinned| *pinned == found);
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(accepted)
    }

    reject_channels! {
        server_channel_open_forwarded_tcpip(_a: &str, _b: u32, _c: &str, _d: u32);
        server_channel_open_forwarded_streamlocal(_a: &str);
        server_channel_open_agent_forward();
        server_channel_open_session();
        server_channel_open_direct_tcpip(_a: &str, _b: u32, _c: &str, _d: u32);
        server_channel_open_direct_streamlocal(_a: &str);
        server_channel_open_x11(_a: &str, _b: u32);
    }
}

fn config() -> Arc<client::Config> {
    Arc::new(client::Config {
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(15)),
        preferred: Preferred {
            // Post-quantum where the node can, cheap where it cannot.
            kex: Cow::Borrowed(&[
                kex::MLKEM768X25519_SHA256,
                // Of the two kinds of one strength the one that OpenSSH does in assembly: 3 ms of CPU less on the node.
                kex::ECDH_SHA2_NISTP256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::ECDH_SHA2_NISTP384,
                kex::ECDH_SHA2_NISTP521,
                kex::DH_G16_SHA512,
                kex::DH_G14_SHA256,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            cipher: Cow::Borrowed(&[
                cipher::AES_256_GCM,
                cipher::AES_128_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            ..Preferred::default()
        },
        ..client::Config::default()
    })
}

impl Session {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn connect(target: &Target) -> Result<Self, AccessError> {
        let mut tries = 0;
        loop {
            match Self::connect_once(target).await {
                Err(AccessError::Dropped { .. }) if tries < DROPPED_TRIES => {
                    tries += 1;
                    // Spread, so that the nodes dropped together do not come back together.
                    let spread = u64::from(uuid::Uuid::now_v7().as_bytes().last().copied().unwrap_or(0));
                    tokio::time::sleep(Duration::from_millis((100 << tries) + spread)).await;
                }
                done => return done,
            }
        }
    }

    async fn connect_once(target: &Target) -> Result<Self, AccessError> {
        let address = target.address.clone();
        let port = target.port;
        let peers = tokio::net::lookup_host(with_scope(&address, port)?)
            .await
            .map_err(|source| AccessError::NameNotFound { address: address.clone(), source })?;
        let mut last = AccessError::NoAddress { address: address.clone() };
        for peer in peers {
            let asked = Instant::now();
            match tokio::time::timeout(CONNECT_MAX, tokio::net::TcpStream::connect(peer)).await {
                Ok(Ok(stream)) => return Self::login(target, stream, peer, asked.elapsed()).await,
                Ok(Err(source)) if source.kind() == std::io::ErrorKind::ConnectionRefused => {
                    last = AccessError::Refused { address: address.clone(), port };
                }
                Ok(Err(source)) => last = AccessError::Unreachable { address: address.clone(), port, source },
                Err(_) => last = AccessError::TimedOut { address: address.clone(), port },
            }
        }
        Err(last)
    }

    async fn login(
        target: &Target,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        round_trip: Duration,
    ) -> Result<Self, AccessError> {
        let lost = |source| AccessError::Lost { source };
        let local = stream.local_addr().map_err(|source| lost(source.into()))?;
        let stream = Prompt::new(stream).map_err(|source| lost(source.into()))?;
        let found = Arc::new(Mutex::new(String::new()));
        let pinned = match &target.host_key {
            HostKeyPolicy::FirstUse => None,
            HostKeyPolicy::Pinned(fingerprint) => Some(fingerprint.clone()),
        };
        let guard = Guard { pinned: pinned.clone(), found: found.clone() };
        let work = async {
            let connected = client::connect_stream(config(), stream, guard).await;
            let key = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut handle = connected.map_err(|source| match (source, pinned) {
                (_, Some(pinned)) if !key.is_empty() && key != pinned => {
                    AccessError::HostKeyChanged { pinned, found: key.clone() }
                }
                (source, _) => AccessError::Dropped { source },
            })?;
            login::authenticate(&mut handle, target).await?;
            Ok((handle, key))
        };
        let (handle, host_key) = tokio::time::timeout(LOGIN_MAX, work)
            .await
            .map_err(|_| AccessError::LoginTimedOut { seconds: LOGIN_MAX.as_secs() })??;
        Ok(Self {
            handle,
            host_key,
            local,
            peer,
            round_trip,
            user: target.user.clone(),
            privilege: target.privilege.clone(),
            // su reads from its terminal; sudo says so when it wants one.
            terminal: matches!(target.privilege, Privilege::Su { .. }),
            shell: None,
            resting: None,
            note: None,
            rule: Known::Nothing,
        })
    }

    /// The host key's fingerprint, `SHA256:…`.
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// The box's end.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The node's end, its zone included.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer
    }

    /// How long the node took to accept the connection: one round trip.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Lets root's shell rest while only the engine works. It ends if that takes long; the next script then has another.
    pub fn rest(&mut self) {
        if let Some(shell) = self.shell.take() {
            self.resting = Some(shell.rest());
        }
    }

    /// Root's shell, if there is one still.
    async fn wake(&mut self) -> Option<shell::RootShell> {
        match self.resting.take() {
            Some(resting) => resting.wake().await,
            None => self.shell.take(),
        }
    }

    /// Ends root's shell: nothing of ours runs inside the connection then.
    async fn end_shell(&mut self) {
        if let Some(shell) = self.wake().await {
            shell.end().await;
        }
    }

    /// Ends the connection.
    pub async fn close(mut self) {
        self.end_shell().await;
        // The other side may be gone already; then there is nothing to say goodbye to.
        let _ = self.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    }
}

/// `fe80::1%eth0` with its interface as a number, as the resolver wants it.
fn with_scope(address: &str, port: u16) -> Result<(String, u16), AccessError> {
    let Some((literal, zone)) = address.split_once('%') else { return Ok((address.to_owned(), port)) };
    if zone.parse::<u32>().is_ok() {
        return Ok((address.to_owned(), port));
    }
    let index = nix::net::if_::if_nametoindex(zone)
        .map_err(|_| AccessError::NoZone { address: address.to_owned(), zone: zone.to_owned() })?;
    Ok((format!("{literal}%{index}"), port))
}
