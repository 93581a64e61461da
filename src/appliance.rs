//! The composition root of `serve`: firewall, network, store, recovery, HTTPS, console, in this order.
//!
//! On the appliance init starts it and hands a socket over, on which it is told where the console is; the network is
//! then ours too. On any other host it is the same service over the host's network. Recovery of dead runs begins at
//! once and holds nothing up: a node that does not answer must not keep the others waiting. It must never write the token
//! anywhere but to the console it was started from, or where that is a log, to a file of its user's.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::Cache;
use crate::cli::{Control, Ended, Serve, Signals, Wish, complain, state};
use crate::console::{self, Token};
use crate::deploy::Deployments;
use crate::deploy::store::Store;
use crate::deploy::vault::{KEY_FILE, Vault};
use crate::error::{chain, explain};
use crate::firmware::outcome::Exit;
use crate::https::identity::Identity;
use crate::https::{Gate, Listener, Registry};
use crate::init;
use crate::init::report::{Ready, Report, STOPPING_NAMES_MAX, Stopping};
use crate::net::{
    self,
    firewall::{
        Firewall,
        rules::{Guest, Policy, Prefix},
    },
};
use crate::paths::TOKEN_FILE;

/// How often is looked whether the nodes that are waited for have become fewer.
const STOPPING_LOOK: Duration = Duration::from_secs(1);

/// On the appliance, gives up what `serve` never needs. One that cannot be confined serves all the same: a box that is of no
/// use is worse, and its user and capabilities are few already.
pub fn confine(told: &Serve) {
    if !told.appliance {
        return;
    }
    match init::confine::confine(&state(told.state.clone())) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("the kernel does not limit the files that serve may write"),
        Err(error) => tracing::error!("serve is not confined: {}", chain(&error)),
    }
}

/// Serves until told to end; then cancels what runs and waits until every node is as it was found.
///
/// # Errors
/// [`Ended`], with what a person should know.
pub async fn serve(told: Serve) -> Result<Exit, Ended> {
    let other = |message: String| Ended { exit: Exit::Other, message };
    // First of all: a signal from now on ends it in order, whatever has begun by then.
    let mut signals = Signals::listen().map_err(|error| other(error.to_string()))?;
    let init = told.init_fd.filter(|_| told.appliance).map(init_socket).transpose();
    let init = init.map_err(|error| other(format!("the socket to init: {error}")))?;
    let mut registry = Registry::new();
    let mut left = net::Settings::default();
    if init.is_some() {
        // Before the first link is up.
        let firewall = Firewall::raise(Policy { port: told.port, console_from: console_from() }).await;
        registry = registry.behind(Arc::new(PacketFilter(firewall)));
        left = bring_network_up().await;
    }
    let directory = state(told.state);
    let store = Store::open(&directory).map_err(|error| Ended::with(Exit::Other, &error))?;
    let identity = Identity::open(&directory).map_err(|error| Ended::with(Exit::Other, &error))?;
    let token = Token::generate().map_err(|error| other(error.to_string()))?;
    let listener = Listener::bind(told.port, 1)
        .map_err(|error| other(format!("port {} cannot be bound: {error}", told.port)))?;
    let port = listener.port();
    let vault = Vault::in_directory(&directory)
        .map_err(|error| other(format!("the key in {}: {error}", directory.join(KEY_FILE).display())))?;
    let deployments = Deployments::new(store, Cache::at(&directory), registry.clone(), port).sealed_by(vault);
    let _control = Control::listen(&directory, deployments.clone())
        .inspect_err(|error| tracing::warn!(%error, "carena abort will not reach this process"));
    // What goes on is in use before the sweep looks.
    match deployments.resume_all().await {
        Ok(resumed) => {
            resumed.iter().for_each(|deployment| tracing::info!(%deployment, "goes on after a restart"));
        }
        Err(error) => tracing::error!("what was under way cannot go on: {}", explain(&error)),
    }
    // What dead runs left; on a node that is deployed to, before it is begun there.
    deployments.keep_sweeping();
    registry.set_default(identity.server.clone(), console::router(deployments.clone(), token.clone()));
    let (shutdown, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(listener.serve(registry, async {
        let _ = stopped.await;
    }));
    let ready = move |addresses: &[net::Address]| Ready {
        urls: addresses.iter().map(|address| url(address, port)).collect(),
        fingerprint: identity.fingerprint.clone(),
        token: token.reveal().to_owned(),
    };
    // systemd makes a log of what is printed, and a token must stand in none.
    let token_file = std::env::var_os("JOURNAL_STREAM").map(|_| directory.join(TOKEN_FILE));
    let last_words = init.as_ref().and_then(|socket| socket.try_clone().ok());
    let telling = tokio::spawn(tell_addresses(init, left, token_file.clone(), ready));
    while signals.next().await != Wish::End {}
    tokio::select! {
        () = deployments.shut_down() => {}
        () = tell_stopping(last_words, &deployments) => {}
    }
    telling.abort();
    let _ = shutdown.send(());
    let _ = serving.await;
    if let Some(file) = token_file {
        // Of no use any more, and replaced at the next start.
        let _ = std::fs::remove_file(file);
    }
    Ok(Exit::Done)
}

/// The descriptor that init left open for this process.
fn init_socket(fd: i32) -> std::io::Result<UnixStream> {
    // SAFETY: init opened it for us and named its number; nothing else in this process uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(socket)
}

/// The box's packet filter, as what stands before its HTTPS port.
struct PacketFilter(Firewall);

#[async_trait]
impl Gate for PacketFilter {
    async fn admit(&self, node: SocketAddr, deployment: &str) -> Box<dyn Send + Sync> {
        Box::new(self.0.admit(Guest::at(node, deployment)).await)
    }
}

/// A network that is wrong is told and lived with: the console may still be reachable over what there is. Returns what
/// could not be set because its link is not there yet.
async fn bring_network_up() -> net::Settings {
    let settings = net::Settings::from_kernel().unwrap_or_else(|error| {
        tracing::error!("{}", explain(&error));
        net::Settings::default()
    });
    let Err(error) = net::bring_up(&settings).await else { return net::Settings::default() };
    tracing::error!("{}", explain(&error));
    if matches!(error, net::NetError::NoLink { .. }) { settings } else { net::Settings::default() }
}

/// Where the console may be opened from. What was closed and cannot be read stays closed, but for nodes of running deployments.
fn console_from() -> Option<Vec<Prefix>> {
    net::settings::console_from().unwrap_or_else(|error| {
        tracing::error!("the console is open to nobody: {}", explain(&error));
        Some(Vec::new())
    })
}

/// Tells init, now and whenever that changes, which nodes are not yet as they were found. Does not end by itself.
async fn tell_stopping(init: Option<UnixStream>, deployments: &Deployments) {
    let Some(init) = init else { return std::future::pending().await };
    let mut last = 0;
    loop {
        tokio::time::sleep(STOPPING_LOOK).await;
        let nodes = deployments.nodes_under_way();
        if nodes.len() != last {
            last = nodes.len();
            let first = nodes.iter().take(STOPPING_NAMES_MAX).cloned().collect();
            let _ = Report::Stopping(Stopping { nodes: nodes.len(), first }).send(&init);
        }
    }
}

/// Tells where the console is, now and whenever that changes: init on the appliance, else the terminal, once.
async fn tell_addresses(
    init: Option<UnixStream>,
    left: net::Settings,
    token_file: Option<PathBuf>,
    ready: impl Fn(&[net::Address]) -> Ready,
) {
    let on_appliance = init.is_some();
    let mut last = None::<Ready>;
    let mut tell = |addresses: &[net::Address]| {
        let now = ready(addresses);
        if last.as_ref() == Some(&now) {
            return;
        }
        match &init {
            Some(socket) => {
                if let Err(error) = Report::Ready(now.clone()).send(socket) {
                    tracing::error!(%error, "init does not listen");
                }
            }
            None => {
                for url in &now.urls {
                    complain(&format!("console      {url}"));
                }
                complain(&format!("certificate  sha256 {}", now.fingerprint));
                let token = match &token_file {
                    None => now.token.clone(),
                    Some(file) => match crate::durable::write(file, now.token.as_bytes(), 0o600) {
                        Ok(()) => format!("in {}", file.display()),
                        Err(error) => format!("cannot be written to {}: {error}", file.display()),
                    },
                };
                complain(&format!("token        {token}"));
            }
        }
        last = Some(now);
    };
    let mut watch = match net::watch(left) {
        Ok(watch) if on_appliance => Some(watch),
        Ok(_) => None,
        Err(error) => {
            tracing::error!("{}", explain(&error));
            None
        }
    };
    let found = match &mut watch {
        Some(watch) => watch.now().await,
        None => net::addresses().await,
    };
    match found {
        Ok(addresses) => tell(&addresses),
        Err(error) => {
            tracing::error!("{}", explain(&error));
            tell(&[]);
        }
    }
    let Some(mut watch) = watch else { return };
    while let Some(changed) = watch.changed().await {
        match changed {
            Ok(addresses) => tell(&addresses),
            Err(error) => tracing::error!("{}", explain(&error)),
        }
    }
}

fn url(address: &net::Address, port: u16) -> String {
    match address.ip {
        IpAddr::V4(ip) => format!("https://{ip}:{port}"),
        IpAddr::V6(ip) if address.is_link_local() => format!("https://[{ip}%{}]:{port}", address.interface),
        IpAddr::V6(ip) => format!("https://[{ip}]:{port}"),
    }
}
