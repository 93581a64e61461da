//! What happens in a deployment, as programs and people read it: one event a line.
//!
//! The field names are a contract with everything that reads `--json` or the API. An event never carries a
//! secret: its texts come from errors and versions, which hold none.

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::firmware::outcome::Outcome;
use crate::firmware::signature::Standing;
use crate::wire::id::{ComponentId, DeploymentId};

/// The steps of the cycle, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Traces of earlier, dead runs are taken back.
    Recover,
    /// The SSH connection.
    Connect,
    /// What the node is, before anything is changed.
    Look,
    /// The engine's files.
    Copy,
    /// The engine's process.
    Start,
    /// The port in the node's firewall.
    Open,
    /// TLS with the engine.
    Join,
    /// How control and payload travel, and why; told again when it changes.
    Path,
    /// What the node has.
    Inventory,
    /// What is to be done with it.
    Plan,
    /// Payloads to the node.
    Send,
    /// The installer.
    Install,
    /// Logged-in users are told, then the node is restarted.
    Reboot,
    /// The restarted node is waited for.
    Return,
    /// The version read back.
    Verify,
    /// The engine ends.
    Stop,
    /// Its files go.
    Remove,
    /// The port is closed.
    Close,
    /// The SSH connection ends.
    Disconnect,
    /// The node's result; `message` says it in words.
    Result,
}

impl Step {
    /// The step's name as it stands in events and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recover => "recover",
            Self::Connect => "connect",
            Self::Look => "look",
            Self::Copy => "copy",
            Self::Start => "start",
            Self::Open => "open",
            Self::Join => "join",
            Self::Path => "path",
            Self::Inventory => "inventory",
            Self::Plan => "plan",
            Self::Send => "send",
            Self::Install => "install",
            Self::Reboot => "reboot",
            Self::Return => "return",
            Self::Verify => "verify",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Close => "close",
            Self::Disconnect => "disconnect",
            Self::Result => "result",
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Begun; for a step that changes the node: its undo is journalled, the change comes now.
    Started,
    /// On the way; `bytes` or `message` says how far.
    Progress,
    /// Tried again.
    Retry,
    /// Done.
    Done,
    /// Failed; `message` says why.
    Failed,
    /// A trace was taken back (`stop`, `remove`, `close`).
    Undone,
}

/// Bytes that are there, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// There.
    pub done: u64,
    /// Of.
    pub total: u64,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowFar {
    /// A transfer.
    Bytes(Bytes),
    /// An installer, as it says itself.
    Percent(u8),
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with each event of this process; the `id:` of a server-sent event.
    #[serde(default)]
    pub sequence: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// The deployment.
    pub deployment: DeploymentId,
    /// The node's address as the operator wrote it.
    pub node: String,
    /// The step.
    pub step: Step,
    /// Where it stands.
    pub state: State,
    /// The component, where the step is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<ComponentId>,
    /// How far a transfer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
    /// How far an installer is, as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Event {
    /// Now, with nothing but where a node is; numbered when it is published.
    pub fn new(deployment: &DeploymentId, node: &str, step: Step, state: State) -> Self {
        Self {
            sequence: 0,
            time: crate::clock::now_rfc3339(),
            deployment: deployment.clone(),
            node: node.to_owned(),
            step,
            state,
            component: None,
            bytes: None,
            percent: None,
            message: None,
        }
    }
}

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeResult {
    /// Waits for its turn or is under way.
    Running,
    /// Every component ended well, or nothing was needed.
    Done,
    /// A component or a step failed.
    Failed,
    /// The operator cancelled before everything was done.
    Cancelled,
    /// Never begun, because too many others failed or the deployment was cancelled.
    Skipped,
}

/// A component on a node: what was there, what there is, and how that came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentSummary {
    /// The component.
    pub id: ComponentId,
    /// Version before; none when it was not installed or not read.
    pub from: Option<String>,
    /// Version read back at the end; none when not read.
    pub to: Option<String>,
    /// What a failed installer said: its beginning and its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl ComponentSummary {
    /// Without a log.
    pub fn new(id: &ComponentId, from: Option<String>, to: Option<String>, outcome: Outcome) -> Self {
        Self { id: id.clone(), from, to, log: None, outcome }
    }
}

/// A node in the summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// How it ended.
    pub result: NodeResult,
    /// How control and payload travelled in the end: "direct", "push" or "tunnel".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why not another way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_why: Option<String>,
    /// What failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Each component of the plan.
    pub components: Vec<ComponentSummary>,
    /// What could not be taken back, for people. Empty when the node is as it was found.
    pub outstanding_traces: Vec<String>,
}

impl NodeSummary {
    /// With a result and nothing else.
    pub fn new(result: NodeResult) -> Self {
        let (components, outstanding_traces) = (Vec::new(), Vec::new());
        Self { result, path: None, path_why: None, error: None, components, outstanding_traces }
    }
}

/// A whole deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The deployment whose nodes it takes up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<DeploymentId>,
    /// RFC 3339, UTC.
    pub started: String,
    /// RFC 3339, UTC; none while it runs.
    pub ended: Option<String>,
    /// The baseline.
    pub baseline: String,
    /// The SHA-256 of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Sha256>,
    /// Why it may be used: who signed it, or that the operator accepts it unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Standing>,
    /// Whether the operator has cancelled it.
    pub cancelled: bool,
    /// Nodes by address, in the fleet's order; in JSON an object whose members keep that order.
    #[serde(with = "super::summary::by_address")]
    pub nodes: Vec<(String, NodeSummary)>,
}
