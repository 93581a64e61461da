//! The command line: parses, composes, prints. Deployments run in its own process, with no server at all.
//!
//! It holds no power the library lacks. Standard output is for results (`--json`: one object a line), standard
//! error for progress and errors. Secrets are never arguments.

mod deploy;
mod progress;
mod setup;
mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::firmware::outcome::Exit;
use crate::paths::HTTPS_PORT;

pub use progress::{complain, signalled};
pub use setup::{Ended, state};

/// Firmware deployment for isolated networks: reaches every node, updates it, and leaves it as it was found.
#[derive(Parser)]
#[command(name = "carena", version, after_help = EXITS)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXITS: &str = "Exit codes: 0 done, 1 done and a reboot is needed, 3 nothing was needed, \
    253 a component or a node failed, 254 bad input, 255 anything else.";

#[derive(Subcommand)]
enum Verb {
    /// Bring a fleet of nodes to a baseline
    #[command(after_help = DEPLOY_HELP)]
    Deploy(Deploy),
    /// Tell what the nodes of a fleet are, and change nothing that stays
    Inventory(Common),
    /// Take back what dead runs left on nodes
    Sweep(Sweep),
    /// Serve the web console and the API until told to end
    Serve(Serve),
}

const DEPLOY_HELP: &str = "Example fleet file:
  baseline = \"demo\"               # an id in the cache, or a directory
  [options]
  open_firewall = \"auto\"          # auto | yes | no
  [[node]]
  address = \"fd00:ca::11\"
  user = \"operator\"
  password_file = \"op.secret\"     # or key_file
  privilege = \"sudo\"              # root | sudo

Ctrl-C cancels: what is being written finishes, then every trace is taken back.";

#[derive(Args)]
struct Common {
    /// The fleet file
    fleet: PathBuf,
    /// One JSON object a line instead of progress bars and a table
    #[arg(long)]
    json: bool,
    /// Directory of the store: journal, pinned host keys, results
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct Deploy {
    #[command(flatten)]
    common: Common,
    /// Plan only: nothing is sent or installed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Sweep {
    /// Fleet file with usable credentials, where those in the journal are not
    #[arg(long, value_name = "FLEET.toml")]
    fleet: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Directory of the store
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// What `carena serve` is told.
#[derive(Args)]
pub struct Serve {
    /// Directory of the store: journal, certificate, results
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Port of the console, the API and the engines
    #[arg(long, default_value_t = HTTPS_PORT)]
    pub port: u16,
    /// Started by init of the appliance: the network is ours too
    #[arg(long, hide = true, requires = "init_fd")]
    pub appliance: bool,
    /// The socket to init
    #[arg(long, hide = true)]
    pub init_fd: Option<i32>,
}

/// Runs the command line of this process; `serve` is composed above it.
pub fn main<F: Future<Output = Result<Exit, Ended>>>(serve: impl FnOnce(Serve) -> F) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked = !error.use_stderr();
            // Help and errors go where clap sends them; a closed pipe there is nobody's problem.
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { Exit::BadInput as u8 });
        }
    };
    setup::log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("carena: starting: {error}"));
            return ExitCode::from(Exit::Other as u8);
        }
    };
    let ended = runtime.block_on(async {
        match arguments.verb {
            Verb::Deploy(deploy) => deploy::deploy(&deploy.common, deploy.dry_run).await,
            Verb::Inventory(common) => deploy::inventory(&common).await,
            Verb::Sweep(sweep) => sweep::sweep(sweep.fleet.as_deref(), sweep.state, sweep.json).await,
            Verb::Serve(told) => serve(told).await,
        }
    });
    // Blocking reads of a terminal must not hold the end up.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(ended) => {
            complain(&format!("carena: {}", ended.message));
            ExitCode::from(ended.exit as u8)
        }
    }
}
