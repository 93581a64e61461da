//! The command line: parses, composes, prints. Deployments run in its own process, with no server at all.
//!
//! It holds no power the library lacks. Standard output is for results (`--json`: one object a line), standard
//! error for progress and errors. Secrets are never arguments.

mod abort;
mod baseline;
mod cache;
mod control;
mod deploy;
mod firmware;
mod foreign;
mod import;
mod progress;
mod setup;
mod sweep;
mod table;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::deploy::deployments::Intent;
use crate::firmware::outcome::Exit;
use crate::paths::HTTPS_PORT;
use crate::wire::id::{ComponentId, DeploymentId};

pub use control::Control;
pub use setup::{Ended, state};
pub use terminal::{Signals, Wish, complain};

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
    /// Cancel a running deployment, one node of it, or one component
    #[command(after_help = ABORT_HELP)]
    Abort(Abort),
    /// Tell what the nodes of a fleet are, and change nothing that stays
    Inventory(Inventory),
    /// Take back what dead runs left on nodes
    Sweep(Sweep),
    /// Look into firmware files
    #[command(subcommand)]
    Firmware(Firmware),
    /// Make, compare and carry baselines; say whose signatures count
    Baseline(baseline::BaselineCommand),
    /// Bring baselines into the cache, list and check what is there, remove what is not needed
    Cache(cache::Cache),
    /// Serve the web console and the API until told to end
    Serve(Serve),
}

#[derive(Subcommand)]
enum Firmware {
    /// Tell what a firmware file is, what it is for and whether it is intact
    #[command(after_help = SHOW_HELP)]
    Show(Show),
}

const SHOW_HELP: &str = "Examples:
  carena firmware show fakedevice124.cab --trust LVFS-CA.pem
  carena firmware show spp.iso --member packages/ilo6.fwpkg

The format is recognised by content. Checksums that the file carries are always compared. With --trust, an LVFS cabinet must \
be signed by one of these certificates, or by one that leads to them; signatures of other formats are not checked here.

Exit codes: 0 read, 254 not a known format, malformed, or not what its checksums and signatures say.";

#[derive(Args)]
struct Show {
    /// The firmware file; or a directory or ISO image with a catalogue, or a directory with a baseline.toml
    file: PathBuf,
    /// A member of that directory or ISO image instead, read in place
    #[arg(long, value_name = "PATH")]
    member: Option<String>,
    /// Certificates in PEM form that signatures must lead to; may be given several times
    #[arg(long, value_name = "CERT")]
    trust: Vec<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

const DEPLOY_HELP: &str = "Example fleet file:
  baseline = \"demo\"               # an id in the cache, or a directory
  [options]
  open_firewall = \"auto\"          # auto | yes | no
  reboot = \"if-needed\"            # never | if-needed | always
  reboot_delay_s = 60              # logged-in users are told; a cancel until then prevents it
  waves = [1, \"10%\", \"rest\"]      # the next wave begins only if all nodes so far went well
  unsigned = \"refuse\"             # accept: use this baseline though nobody who is trusted has signed it
  failures_max = 0                 # no new node begins after so many failed; 0 = no limit
  order = [\"edge\", \"core\"]        # groups, one after another
  bandwidth_max = 50_000_000       # payload bytes a second, of all nodes together
  [[node]]
  address = \"fd00:ca::11\"
  user = \"operator\"
  password_file = \"op.secret\"     # or key_file, with key_passphrase_file
  privilege = \"sudo\"              # root | sudo | su, with privilege_password_file
  group = \"edge\"
  exclusive = \"cluster-a\"         # never two nodes of the same cluster at once

Ctrl-C cancels: what is being written finishes, then every trace is taken back.

A component whose prerequisite is active only after a restart waits for it: the node is restarted and the deployment goes
on there, for chains of any length. With reboot = \"never\" it is skipped and says what to restart for.

With --dry-run everything but sending and installing is done, and each component says what would happen and why;
exit code 0: something would be installed, 3: nothing is needed, 253: a node could not be looked at.";

const ABORT_HELP: &str = "It reaches a deployment of `carena deploy` or `carena serve` with the same state directory. \
    Nothing new starts, what is being written finishes, then every trace is taken back.";

#[derive(Args)]
struct Common {
    /// One JSON object a line instead of progress bars and a table
    #[arg(long)]
    json: bool,
    /// Directory of the store: journal, pinned host keys, results
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct Deploy {
    /// The fleet file
    #[arg(required_unless_present = "retry")]
    fleet: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
    /// Plan only: nothing is sent or installed
    #[arg(long)]
    dry_run: bool,
    /// Take up again what is not done of an earlier deployment; with a fleet file, as that says
    #[arg(long, value_name = "DEPLOYMENT")]
    retry: Option<DeploymentId>,
}

#[derive(Args)]
struct Inventory {
    /// The fleet file
    fleet: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Abort {
    /// The deployment's id
    deployment: DeploymentId,
    /// Only this node
    #[arg(long, value_name = "ADDRESS")]
    node: Option<String>,
    /// Only this component, on that node or on all
    #[arg(long, value_name = "ID")]
    component: Option<ComponentId>,
    /// Directory of the store
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct Sweep {
    /// Fleet file with usable credentials, where those in the journal are not
    #[arg(long, value_name = "FLEET.toml")]
    fleet: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Keep trying for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u32,
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

/// Runs the command line of this process; `serve` is composed above it, and `confine` is asked before it has threads.
pub fn main<F: Future<Output = Result<Exit, Ended>>>(
    confine: impl FnOnce(&Serve),
    serve: impl FnOnce(Serve) -> F,
) -> ExitCode {
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
    if let Verb::Serve(told) = &arguments.verb {
        confine(told);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("carena: starting: {error}"));
            return ExitCode::from(Exit::Other as u8);
        }
    };
    let ended = runtime.block_on(async {
        match arguments.verb {
            Verb::Deploy(told) => {
                let intent = if told.dry_run { Intent::DryRun } else { Intent::Install };
                let order = deploy::Order { retry: told.retry, fleet: told.fleet };
                deploy::deploy(order, &told.common, intent).await
            }
            Verb::Abort(told) => abort::abort(told.deployment, told.node, told.component, told.state).await,
            Verb::Inventory(told) => deploy::inventory(told.fleet, &told.common).await,
            Verb::Sweep(told) => {
                let wait = Duration::from_secs(u64::from(told.wait));
                sweep::sweep(told.fleet.as_deref(), told.state, told.json, wait).await
            }
            Verb::Firmware(Firmware::Show(told)) => {
                firmware::show(&told.file, told.member.as_deref(), &told.trust, told.json)
            }
            Verb::Baseline(told) => baseline::baseline(told),
            Verb::Cache(told) => cache::cache(told),
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
