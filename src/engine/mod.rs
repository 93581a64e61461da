//! The engine: started by a box on a node, it tells what the node is, fetches payloads, installs them, and goes.
//!
//! Blocking and small: no runtime, no console. [`linux`] holds what is particular to the system, [`claim`] keeps a
//! second engine away, [`session`] is the conversation with the box, [`attach`] lets it in through SSH, [`fetch`],
//! [`push`] and [`install`] are the work, [`fwupd`] what the node's own tool does of it, [`nvme`] what needs no tool,
//! [`inventory`] what the node is. When its box falls silent for the lease it closes its port, removes itself and ends. It must never interrupt a running installation, and never write outside
//! its own directory.

mod attach;
mod claim;
mod family;
mod fetch;
mod fwupd;
mod install;
mod inventory;
mod lease;
mod linux;
mod log;
mod nvme;
mod payload;
mod peer;
mod provider;
mod push;
mod session;
mod tls;
mod unpack;
mod vendor_log;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use crate::error::chain;
use crate::wire::PROTOCOL;
use crate::wire::claim::Claim;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::message::{StartConfig, Started};

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// Arguments.
    #[error(
        "usage: carena-engine start|attach --directory DIR; start reads its configuration on standard input"
    )]
    Usage,
    /// What is on standard input.
    #[error("the configuration on standard input is not understood")]
    Config(#[source] Box<dyn std::error::Error>),
    /// Another version.
    #[error("the box speaks protocol {0}, this engine {PROTOCOL}")]
    Protocol(u16),
    /// Certificates.
    #[error("the certificates of the box cannot be used")]
    Tls(#[from] tls::TlsError),
    /// The system.
    #[error("{0}")]
    System(&'static str, #[source] std::io::Error),
}

/// Runs the engine's program.
pub fn main() -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "carena-engine: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn command() -> Result<(), StartError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["start", "--directory", directory] => {
            let line = serde_json::to_string(&start(Path::new(directory))?).unwrap_or_default();
            let _ = writeln!(std::io::stdout(), "{line}");
            Ok(())
        }
        ["attach", "--directory", directory] => attach::attach(Path::new(directory))
            .map_err(|error| StartError::System("joining the running engine", error)),
        _ => Err(StartError::Usage),
    }
}

/// The foreground part: reads the configuration, leaves the engine behind, tells where it listens.
fn start(directory: &Path) -> Result<Started, StartError> {
    let config = read_config()?;
    if config.protocol != PROTOCOL {
        return Err(StartError::Protocol(config.protocol));
    }
    let tls = tls::Tls::new(&config)?;
    linux::detach(|| stay(directory, config, tls))
        .map_err(|error| StartError::System("starting the engine", error))
}

/// The part that stays, up to the point where it listens; `run` is the rest.
fn stay(
    directory: &Path,
    config: StartConfig,
    tls: tls::Tls,
) -> std::io::Result<(Started, impl FnOnce() + use<>)> {
    let pid = std::process::id();
    let start_time = linux::start_time_of(pid)?;
    // Before anything else: this is how the box finds and stops the engine, whatever happens next.
    let pid_file = directory.join(crate::paths::ENGINE_PID_FILE);
    crate::durable::replace(&pid_file, format!("{pid} {start_time}\n").as_bytes(), 0o600)?;
    let held = claim::claim(&Claim {
        protocol: PROTOCOL,
        deployment: config.deployment.clone(),
        since: linux::now(),
        box_address: config.box_address,
    })?;
    let (tcp, port) = linux::listen(config.port)?;
    let unix = linux::listen_in(&directory.join(crate::paths::ENGINE_SOCKET));
    let directory = directory.to_owned();
    let run = move || {
        session::serve(&session::Doors { tcp, unix }, port, directory, config, tls);
        drop(held);
    };
    Ok((Started { pid, start_time, port }, run))
}

fn read_config() -> Result<StartConfig, StartError> {
    let failed = |error: Box<dyn std::error::Error>| StartError::Config(error);
    let mut input = std::io::stdin().lock();
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).map_err(|error| failed(error.into()))?;
    let mut body =
        zeroize::Zeroizing::new(vec![0; frame::body_bytes(header).map_err(|error| failed(error.into()))?]);
    input.read_exact(&mut body).map_err(|error| failed(error.into()))?;
    frame::decode(&body).map_err(|error| failed(error.into()))
}
