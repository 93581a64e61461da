//! The messages between a box and its engine.
//!
//! The box asks ([`ToEngine`], numbered), the engine answers with the same number ([`FromEngine::Reply`]) when it
//! has the answer, in any order, and in between sends [`FromEngine::Notice`]. Any message from the box renews the
//! lease. No message carries a password; the one private key travels in [`StartConfig`], over the SSH channel's
//! standard input only.

use std::net::IpAddr;

use heapless::String as Short;
use serde::{Deserialize, Serialize};

use super::id::{ComponentId, DeploymentId};
use super::inventory::Inventory;
use crate::digest::Sha256;

/// What `carena-engine start` reads from its standard input, as one frame.
#[derive(Clone, Serialize, Deserialize)]
pub struct StartConfig {
    /// [`super::PROTOCOL`] of the box.
    pub protocol: u16,
    /// Whose engine it is.
    pub deployment: DeploymentId,
    /// The engine's certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM (PKCS #8). Never written to disk.
    pub key_pem: String,
    /// The deployment's CA, PEM: who may talk to the engine, and whom it fetches from.
    pub ca_pem: String,
    /// First port to try, see [`crate::paths::ENGINE_PORT`].
    pub port: u16,
    /// Seconds without a word from the box after which the engine takes itself away.
    pub lease_s: u32,
    /// The box's address as the node sees it.
    pub box_address: IpAddr,
}

/// What `carena-engine start` prints on its standard output, as one line of JSON, once it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id of the engine that stays.
    pub pid: u32,
    /// Its start time, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// The port it listens on.
    pub port: u16,
}

/// One message from the box.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToEngine {
    /// Chosen by the box; the reply bears it.
    pub id: u32,
    /// What is asked.
    pub request: Request,
}

/// What a box asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// First message of every connection.
    Hello {
        /// [`super::PROTOCOL`] of the box.
        protocol: u16,
        /// Whose engine the box expects.
        deployment: DeploymentId,
    },
    /// Renews the lease, nothing else.
    Renew,
    /// What the node is.
    Inventory,
    /// The version of a component as the node has it now.
    ReadBack(ReadBack),
    /// Fetch a payload into the engine's directory and verify it. Asked for again, on whatever connection, it goes on
    /// where it stands.
    Fetch(Box<Fetch>),
    /// Install a fetched or pushed payload.
    Install(Install),
    /// No new work is taken from now on; what is being installed finishes. Answered when idle.
    Cancel,
    /// Finish a running installation, then end the process. Answered just before. Every version of an engine, past
    /// and future, understands these bytes.
    Stop,
    /// Whether the box's HTTPS port can be reached from the node.
    Probe(Box<Probe>),
    /// Take a payload from this connection, where the node cannot fetch it. The engine says with
    /// [`Notice::Pushed`] from which byte on; the box sends pieces ([`super::frame::encode_chunk`]) and never has
    /// more than [`PUSH_WINDOW_BYTES_MAX`] on the way that were not acknowledged by further notices.
    Push(Push),
    /// What the engine is doing. Answered at any moment.
    Status,
    /// The result of an installation whose connection was lost: at once if it has ended, else when it does.
    Outcome {
        /// The component.
        component: ComponentId,
    },
    /// End the transfer of one payload where it is; whoever asked for it is answered "cancelled". What has come stays, so
    /// that it can be taken up again. Answered at once, also when nothing comes.
    Abandon {
        /// The payload.
        sha256: Sha256,
    },
    /// What the node's fwupd lists. Apart from the inventory: it takes a program of the node's, and most nodes need it not.
    Fwupd,
}

/// Most pushed bytes on the way that are not acknowledged.
pub const PUSH_WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// A way back to be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// As in [`Fetch`].
    pub address: String,
    /// As in [`Fetch`].
    pub port: u16,
    /// Milliseconds it may take.
    pub bound_ms: u32,
}

/// A payload that comes down the control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Its identity, as in [`Fetch`].
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
}

/// How the installed version of a component is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReadBack {
    /// The first line of a file, without white space at its ends.
    File(String),
    /// The first line of a program's standard output: program and arguments, no shell. A program that fails tells no
    /// version: the answer is a failure.
    Command(Vec<String>),
}

/// A payload to fetch over HTTPS from the box, with the deployment's certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetch {
    /// Its identity; also what the file is called in the engine's directory.
    pub sha256: Sha256,
    /// Its size in bytes; more than this is refused.
    pub size: u64,
    /// Addresses of the box as the node sees them, a zone included where one is needed (`fe80::1%eth0`).
    pub address: String,
    /// The box's HTTPS port.
    pub port: u16,
    /// The name in the box's certificate, also sent as SNI.
    pub server_name: Short<253>,
    /// Path of the URL.
    pub path: Short<253>,
}

/// An installation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Install {
    /// For the log and the notices.
    pub component: ComponentId,
    /// The fetched payload.
    pub sha256: Sha256,
    /// What installs it.
    pub how: How,
    /// Expected duration, seconds; the engine warns past it and ends only an installer that shows no progress
    /// (no output and no CPU time used) for ten times this, and at least ten minutes.
    pub expected_s: u32,
    /// Where its maker's installer keeps a log of its own; what it wrote there is told when it fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<String>,
}

/// What installs a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Program and arguments, no shell; an argument `{payload}` is replaced by the payload's path.
    Command(Vec<String>),
    /// The node's own fwupd, on all devices that it finds the payload to be for. The payload is an LVFS cabinet.
    Fwupd(FwupdAllows),
    /// The engine itself, on NVMe disks.
    Nvme(Nvme),
}

/// NVMe disks whose firmware the payload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nvme {
    /// Their model, as Identify Controller tells it.
    pub model: String,
    /// The firmware revision that the payload brings.
    pub version: String,
    /// Also where that is active already.
    pub rewrite: bool,
}

impl Nvme {
    /// The code of [`Installed`]: the revision is active.
    pub const DONE: i32 = 0;
    /// It is active after a restart.
    pub const AFTER_RESTART: i32 = 1;
    /// It was active already.
    pub const CURRENT: i32 = 2;
    /// There is no disk of this model.
    pub const NONE: i32 = 3;
    /// The last line of the log says why.
    pub const FAILED: i32 = 4;
}

/// What fwupd does only when it is told to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwupdAllows {
    /// An older version than the one that is there.
    pub older: bool,
    /// The version that is there.
    pub reinstall: bool,
}

/// One message from the engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromEngine {
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u32,
        /// The answer.
        reply: Reply,
    },
    /// Something on the way to an answer.
    Notice {
        /// The request it belongs to.
        id: u32,
        /// What.
        notice: Notice,
    },
}

/// What an engine answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// [`super::PROTOCOL`] of the engine.
        protocol: u16,
        /// Whose engine it is.
        deployment: DeploymentId,
        /// The component being installed at this moment, if any.
        installing: Option<ComponentId>,
    },
    /// Done, with nothing more to say (`Renew`, `Cancel`, `Stop`).
    Done,
    /// To `Inventory`.
    Inventory(Box<Inventory>),
    /// To `ReadBack`: the version, or none when the component is not installed.
    Version(Option<String>),
    /// To `Fetch` and `Push`: the payload is there and verified.
    Fetched {
        /// Its size, as it is there: unpacked, however it came.
        bytes: u64,
        /// How often the transfer was taken up again where it had stopped.
        resumes: u32,
    },
    /// To `Install` and `Outcome`: the installer has ended.
    Installed(Installed),
    /// The request could not be carried out.
    Failed(Failure),
    /// To `Probe`.
    Probed {
        /// Why the box cannot be reached; none when it can.
        blocked: Option<String>,
    },
    /// To `Status`.
    Status(Box<Status>),
    /// To `Fwupd`: its own JSON, `{"Devices":[…]}`.
    Fwupd(String),
}

/// How an installer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Its exit code, or none when a signal ended it.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Its output (standard output and error): all of it, or its beginning and its end with a line between that says
    /// how much was left out; at most [`LOG_HEAD_BYTES`] and [`LOG_TAIL_BYTES`].
    pub log: String,
    /// How long it ran.
    pub seconds: u64,
    /// What it tells beside, for `How::Fwupd`: the history of its updates, its own JSON; none when it could not be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    /// The end of each log that the installer wrote to beside its output: those of [`Install::logs`] and those that its
    /// output names. Empty when it ended with 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<VendorLog>,
}

/// A log that an installer has written on the node. It stays there: it is the installation's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VendorLog {
    /// Its path.
    pub path: String,
    /// Its end, at most [`VENDOR_LOG_BYTES`].
    pub text: String,
}

/// Logs told of, and bytes of each: with the output 152 KiB, which as JSON still fits a frame.
pub const VENDOR_LOGS_MAX: usize = 3;

/// Bytes of a vendor's log, from its end.
pub const VENDOR_LOG_BYTES: usize = 8 * 1024;

/// Bytes kept of the beginning of an installer's output.
pub const LOG_HEAD_BYTES: usize = 32 * 1024;

/// Bytes kept of its end. With the head 128 KiB: as JSON, each byte could become six, which still fits a frame.
pub const LOG_TAIL_BYTES: usize = 96 * 1024;

/// What an engine is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whose engine it is.
    pub deployment: DeploymentId,
    /// Seconds since it was started.
    pub seconds: u64,
    /// What is being installed.
    pub installing: Option<Installing>,
    /// Payloads under way.
    pub transfers: Vec<Transfer>,
    /// Components whose installer has ended.
    pub installed: Vec<ComponentId>,
}

/// An installation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installing {
    /// The component.
    pub component: ComponentId,
    /// Seconds since it began.
    pub seconds: u64,
}

/// A payload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its identity.
    pub sha256: Sha256,
    /// Bytes that are there.
    pub done: u64,
    /// Of.
    pub total: u64,
    /// Seconds since it began.
    pub seconds: u64,
}

/// What went on since.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notice {
    /// Bytes of the payload that are there. At most four a second.
    Fetching {
        /// There.
        done: u64,
        /// Of.
        total: u64,
    },
    /// The installer runs since so many seconds. At most one a second.
    Installing {
        /// Seconds.
        seconds: u64,
        /// Its last line of output, shortened.
        line: Short<200>,
    },
    /// So many bytes of a pushed payload are on the node's disk; the first one says where to begin.
    Pushed {
        /// There.
        done: u64,
    },
}

/// Why an engine refused or failed, as a kind for programs and a text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// What was seen; names files and addresses.
    pub message: String,
}

/// Kinds of failure that the box treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request makes no sense to this engine: another protocol, another deployment, an unknown payload.
    Refused,
    /// The box could not be reached from the node for the payload.
    Unreachable,
    /// The payload is not what was announced.
    Corrupt,
    /// No room, no permission, an input or output error on the node.
    Node,
    /// The work was cancelled before it began.
    Cancelled,
    /// Anything newer than this reader.
    #[serde(other)]
    Other,
}
