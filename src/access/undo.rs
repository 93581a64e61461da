//! Undo values, and the token without which no node is changed.
//!
//! Every change on a node has a value here that says how to take it back, made *before* the act. [`arm`] writes it
//! to a [`Ledger`] and returns only when it is durable; the [`Armed`] it returns is the argument that the acting
//! method consumes, and nothing else can make one: a change whose undo is not journalled does not compile.
//!
//! ```compile_fail
//! use carena::access::undo::{Armed, EngineFiles};
//! // Only `arm` makes the token.
//! let forged = Armed { entry: 1, undo: EngineFiles { directory: "/tmp/x".into() } };
//! ```
//!
//! There is no commit: success, failure and cancel all take every trace back, newest first. Each undo is
//! idempotent ("already gone" is success) and checks identity before it touches anything.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::firewall::RuleSpec;

/// Number of a journalled undo in its ledger.
pub type EntryId = i64;

/// The engine's directory on the node: the program, its marker, fetched payloads.
/// Identity: the marker file in it holds the deployment's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFiles {
    /// Absolute path. Its last part is `carena-` and the deployment's id.
    pub directory: String,
}

/// The engine's process. Identity: pid and start time in the pid file that the engine itself writes into its
/// directory before anything else; no such file means that it never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineProcess {
    /// The engine's directory.
    pub directory: String,
}

/// The rule in the node's firewall. Identity: the rule itself, with the deployment's id in its comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// The rule.
    pub rule: RuleSpec,
}

/// Any undo, as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Undo {
    /// Remove the engine's directory.
    EngineFiles(EngineFiles),
    /// Stop the engine.
    EngineProcess(EngineProcess),
    /// Close the port.
    FirewallRule(FirewallRule),
}

impl From<EngineFiles> for Undo {
    fn from(undo: EngineFiles) -> Self {
        Self::EngineFiles(undo)
    }
}

impl From<EngineProcess> for Undo {
    fn from(undo: EngineProcess) -> Self {
        Self::EngineProcess(undo)
    }
}

impl From<FirewallRule> for Undo {
    fn from(undo: FirewallRule) -> Self {
        Self::FirewallRule(undo)
    }
}

/// What the undo takes back, for people.
impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EngineFiles(files) => write!(f, "engine files in {}", files.directory),
            Self::EngineProcess(process) => write!(f, "engine process of {}", process.directory),
            Self::FirewallRule(FirewallRule { rule }) => {
                write!(f, "{} rule for port {} from {}", rule.tool, rule.port, rule.from)
            }
        }
    }
}

/// Where undo values are kept, durably.
pub trait Ledger: Send + Sync {
    /// Why a value could not be kept.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Keeps `undo`; returns only when it would survive a power cut.
    fn record(&self, undo: &Undo) -> impl Future<Output = Result<EntryId, Self::Error>> + Send;
}

/// The token of one change: its undo is journalled. Consumed by the method that makes the change.
#[derive(Debug)]
#[must_use = "the undo is journalled: now make the change it belongs to"]
pub struct Armed<U> {
    entry: EntryId,
    undo: U,
}

impl<U> Armed<U> {
    /// The undo.
    pub fn undo(&self) -> &U {
        &self.undo
    }

    /// Its number in the ledger.
    pub fn entry(&self) -> EntryId {
        self.entry
    }
}

/// Journals `undo` and returns the token for its change.
///
/// # Errors
/// The ledger's; nothing may then be changed on the node.
pub async fn arm<U, L>(ledger: &L, undo: U) -> Result<Armed<U>, L::Error>
where
    U: Clone + Into<Undo> + Send,
    L: Ledger,
{
    let entry = ledger.record(&undo.clone().into()).await?;
    Ok(Armed { entry, undo })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// **If this test fails, do not change the test**: journals of every earlier version must be taken back.
    #[test]
    fn the_journal_reads_as_it_always_did() {
        for text in [
            r#"{"kind":"engine-files","directory":"/var/tmp/carena-0190-a"}"#,
            r#"{"kind":"engine-process","directory":"/var/tmp/carena-0190-a"}"#,
            r#"{"kind":"firewall-rule","rule":{"tool":{"kind":"iptables","program":"ip6tables","flavour":"nft"},"deployment":"0190-a","from":"fd00::1","port":62286}}"#,
            r#"{"kind":"firewall-rule","rule":{"tool":{"kind":"iptables","program":"iptables-legacy","flavour":"legacy"},"deployment":"0190-a","from":"192.0.2.1","port":62286}}"#,
            r#"{"kind":"firewall-rule","rule":{"tool":{"kind":"nft","family":"inet","table":"filter","chain":"input"},"deployment":"0190-a","from":"fd00::1","port":62286}}"#,
            r#"{"kind":"firewall-rule","rule":{"tool":{"kind":"firewalld","zone":"public","priority":-5},"deployment":"0190-a","from":"fd00::1","port":62286}}"#,
        ] {
            let undo: Undo = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&undo).unwrap(), text);
        }
    }
}
