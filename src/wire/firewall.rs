//! The one rule that lets the box reach its engine, spelled the same by whoever opens or closes it.
//!
//! The box opens it over SSH and closes it in the unwind; the engine closes it when its lease ends. Both take
//! the arguments from here, so the rule that is removed is exactly the rule that was added. It names one port,
//! one source address and the deployment; it must never match anything wider.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::id::DeploymentId;

/// The node's tool for one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallTool {
    /// `iptables`, for IPv4.
    Iptables,
    /// `ip6tables`, for IPv6.
    Ip6tables,
}

impl FirewallTool {
    /// The tool for the family of `address`.
    pub fn for_address(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Iptables } else { Self::Ip6tables }
    }

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
        }
    }
}

/// The rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// The tool that adds and deletes it.
    pub tool: FirewallTool,
    /// Whose rule it is; stands in its comment.
    pub deployment: DeploymentId,
    /// The box, as the node sees it: the only source let in.
    pub from: IpAddr,
    /// The engine's port.
    pub port: u16,
}

impl RuleSpec {
    /// Chain and match, as they follow `-I`, `-D` or `-C`. No argument needs quoting.
    pub fn arguments(&self) -> Vec<String> {
        let host = if self.from.is_ipv4() { 32 } else { 128 };
        [
            "INPUT",
            "-s",
            &format!("{}/{host}", self.from),
            "-p",
            "tcp",
            "-m",
            "tcp",
            "--dport",
            &self.port.to_string(),
            "-m",
            "comment",
            "--comment",
            &format!("carena:{}", self.deployment),
            "-j",
            "ACCEPT",
        ]
        .map(str::to_owned)
        .to_vec()
    }
}
