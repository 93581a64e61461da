//! What every verb needs first: the log, the store, the HTTPS server for engines.

use std::path::PathBuf;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cache::Cache;
use crate::deploy::Deployments;
use crate::deploy::store::Store;
use crate::deploy::vault::{KEY_FILE, Vault};
use crate::error::explain;
use crate::firmware::outcome::Exit;
use crate::https::{Listener, Registry};
use crate::paths::{HTTPS_PORT, STATE_ROOT};

/// How many ports from [`HTTPS_PORT`] on are tried, so that several command lines can run at once.
const HTTPS_PORT_TRIES: u16 = 64;

/// Why a verb ended early.
pub struct Ended {
    /// The exit code.
    pub exit: Exit,
    /// What is said on standard error.
    pub message: String,
}

impl Ended {
    /// With what the error says.
    pub fn with(exit: Exit, error: &(impl crate::error::Hinted + 'static)) -> Self {
        Self { exit, message: explain(error) }
    }
}

/// Sends the log to journald, where there is one. Its absence is no error: progress is on the terminal.
pub fn log() {
    if let Ok(journald) = tracing_journald::layer() {
        let filter = tracing_subscriber::EnvFilter::new("info");
        let _ = tracing_subscriber::registry().with(filter).with(journald).try_init();
    }
}

/// Where the store is, unless `--state` says so: the system's place for root, the user's own for others.
pub fn state(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| {
        let home = || std::env::var_os("HOME").map(PathBuf::from);
        if nix::unistd::geteuid().is_root() {
            return PathBuf::from(STATE_ROOT);
        }
        home().map_or_else(|| PathBuf::from("carena-state"), |home| home.join(".local/state/carena"))
    })
}

/// The store, and a server for engines on the first free port.
pub fn deployments(given: Option<PathBuf>) -> Result<Deployments, Ended> {
    let directory = state(given);
    let store = Store::open(&directory).map_err(|error| Ended::with(Exit::Other, &error))?;
    let listener = Listener::bind(HTTPS_PORT, HTTPS_PORT_TRIES).map_err(|error| Ended {
        exit: Exit::Other,
        message: format!("no free port from {HTTPS_PORT} on for the engines to fetch from: {error}"),
    })?;
    let registry = Registry::new();
    let port = listener.port();
    // Served until the process ends: engines fetch as long as a deployment runs.
    tokio::spawn(listener.serve(registry.clone(), std::future::pending()));
    let vault = Vault::in_directory(&directory).map_err(|error| Ended {
        exit: Exit::Other,
        message: format!("the key in {}: {error}", directory.join(KEY_FILE).display()),
    })?;
    Ok(Deployments::new(store, Cache::at(&directory), registry, port).sealed_by(vault))
}
