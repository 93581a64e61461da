//! The one rule that lets the box reach its engine, spelled the same by whoever opens or closes it.
//!
//! The box opens it over SSH and closes it in the unwind; the engine closes it when its lease ends. Both run the
//! shell from here, so the rule that is removed is exactly the rule that was added. It names one port, one source
//! address and the deployment; it lives in the kernel (or in firewalld's memory) only, and nothing is written to
//! the node's configuration. It must never match anything wider, and closing must never remove a rule that is not
//! ours: the deployment's id in the comment is what tells, and in firewalld, which has no comments, the priority.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::id::{DeploymentId, NodeName};
use crate::digest::Sha256;

/// Seconds after which firewalld takes the rule back by itself, should box and engine both be gone: longer than a
/// deployment to one node, shorter than anybody would want to find the rule there.
const FIREWALLD_TIMEOUT_S: u32 = 12 * 3600;

/// Exit code of [`RuleSpec::close_script`] when there was nothing to close any more.
pub const ALREADY_CLOSED: i32 = 3;

/// Which kernel part an `iptables` program works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// nf_tables: `iptables-nft`.
    Nft,
    /// x_tables: `iptables-legacy`.
    Legacy,
}

/// The address families a table of nf_tables can have that see a node's own traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NftFamily {
    /// Both.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl NftFamily {
    /// As nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// What the node's firewall is managed with, and where in it the rule goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum FirewallTool {
    /// The head of the chain INPUT; ufw too, which only fills the same tables.
    Iptables {
        /// `ip6tables`, or with the flavour behind it: `ip6tables-legacy`.
        program: NodeName,
        /// What it works on.
        flavour: Flavour,
    },
    /// The head of a base chain at the input hook.
    Nft {
        /// The table's family.
        family: NftFamily,
        /// The table.
        table: NodeName,
        /// The chain.
        chain: NodeName,
    },
    /// A rich rule in the zone that the box's packets meet.
    Firewalld {
        /// The zone.
        zone: NodeName,
        /// See [`firewalld_priority`].
        priority: i16,
    },
}

/// The tool and where, for people.
impl fmt::Display for FirewallTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables { program, .. } => write!(f, "{program}"),
            Self::Nft { family, table, chain } => write!(f, "nft {} {table} {chain}", family.name()),
            Self::Firewalld { zone, .. } => write!(f, "firewalld zone {zone}"),
        }
    }
}

/// The one field of a rich rule that is free to mark it as ours, made of the deployment's id. Negative: in front of
/// the zone's other rules, firewalld.richlanguage(5).
pub fn firewalld_priority(deployment: &DeploymentId) -> i16 {
    let digest = Sha256::of(deployment.as_str().as_bytes());
    let [first, second, ..] = *digest.as_bytes();
    i16::from_be_bytes([first | 0x80, second])
}

/// What a look at the node's rules has shown of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is not there.
    Absent,
    /// Nothing: it may be there already.
    Nothing,
}

/// The rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// What adds and deletes it.
    pub tool: FirewallTool,
    /// Whose rule it is; stands in its comment.
    pub deployment: DeploymentId,
    /// The box, as the node sees it: the only source let in.
    pub from: IpAddr,
    /// The engine's port.
    pub port: u16,
}

impl RuleSpec {
    /// Shell that adds the rule in front of all others, unless it is there already: a second one would stay when one is
    /// taken back. No value in it needs quoting: each is an id, a number, an address or a [`NodeName`].
    pub fn open_script(&self, known: Known) -> String {
        match (&self.tool, known) {
            (FirewallTool::Iptables { program, .. }, Known::Absent) => {
                format!("{program} -w 5 -I INPUT 1 {}", self.iptables_matches())
            }
            (FirewallTool::Iptables { program, .. }, Known::Nothing) => {
                let matches = self.iptables_matches();
                // Only 1 says that it is not there; a locked or unreadable table says something else, and nothing is added.
                format!(
                    "said=$({program} -w 5 -C INPUT {matches} 2>&1)\n\
                     case $? in 0) ;; 1) {program} -w 5 -I INPUT 1 {matches} ;; *) echo $said; exit 1 ;; esac"
                )
            }
            (FirewallTool::Nft { family, table, chain }, known) => {
                let place = format!("{} {table} {chain}", family.name());
                let add = format!(
                    "nft insert rule {place} {} saddr {} tcp dport {} accept comment \"\\\"carena:{}\\\"\"",
                    if self.from.is_ipv4() { "ip" } else { "ip6" },
                    self.from,
                    self.port,
                    self.deployment
                );
                match known {
                    Known::Absent => add,
                    Known::Nothing => format!(
                        "rules=$(nft list chain {place} 2>&1) || {{ echo $rules; exit 1; }}\n\
                         case $rules in *\"{}\"*) ;; *) {add} ;; esac",
                        self.nft_tail()
                    ),
                }
            }
            (FirewallTool::Firewalld { zone, .. }, _) => format!(
                "firewall-cmd --zone={zone} --timeout={FIREWALLD_TIMEOUT_S} --add-rich-rule=\"{}\" >/dev/null",
                self.rich_rule()
            ),
        }
    }

    /// Shell that removes the rule and no other. Its code is 0, [`ALREADY_CLOSED`] when it was gone (the node was rebooted,
    /// its firewall reloaded), or another one; then `$why` says why it could not.
    pub fn close_script(&self) -> String {
        let body = match &self.tool {
            FirewallTool::Iptables { program, flavour } => self.close_iptables(program, *flavour),
            FirewallTool::Nft { family, table, chain } => self.close_nft(family.name(), table, chain),
            FirewallTool::Firewalld { zone, .. } => format!(
                "why=$(firewall-cmd --zone={zone} --remove-rich-rule=\"{}\" 2>&1)\ncode=$?\n\
                 case $why in *NOT_ENABLED*|*INVALID_ZONE*) return {ALREADY_CLOSED} ;; esac\n\
                 case $code in 0) return 0 ;; 252) return {ALREADY_CLOSED} ;; *) return 1 ;; esac",
                self.rich_rule()
            ),
        };
        format!("close_rule() {{\n{body}\n}}\nclose_rule")
    }

    /// A look at a table that is not loaded would load it: after a reboot there may be none.
    fn close_iptables(&self, program: &NodeName, flavour: Flavour) -> String {
        let names = if self.from.is_ipv4() { "ip_tables_names" } else { "ip6_tables_names" };
        let guard = match flavour {
            Flavour::Nft => String::new(),
            Flavour::Legacy => format!("grep -qsx filter /proc/net/{names} || return {ALREADY_CLOSED}\n"),
        };
        let matches = self.iptables_matches();
        // Opening never doubles a rule, so one is all there is. A deletion that fails has deleted nothing, or there was
        // nothing: only a second look tells.
        format!(
            "{guard}why=$({program} -w 5 -D INPUT {matches} 2>&1) && return 0\n\
             {program} -w 5 -C INPUT {matches} 2>/dev/null\n\
             case $? in 1) return {ALREADY_CLOSED} ;; *) return 1 ;; esac"
        )
    }

    fn close_nft(&self, family: &str, table: &NodeName, chain: &NodeName) -> String {
        let place = format!("{family} {table} {chain}");
        format!(
            "rules=$(nft -a list chain {place} 2>&1) || case $rules in\n\
             *\"No such file\"*) return {ALREADY_CLOSED} ;;\n\
             *) why=$rules; return 1 ;;\n\
             esac\n\
             handles=$(echo \"$rules\" | grep -F \"{}\" | sed \"s/.*# handle //\")\n\
             [ \"$handles\" ] || return {ALREADY_CLOSED}\n\
             for handle in $handles; do why=$(nft delete rule {place} handle $handle 2>&1) || return 1; done",
            self.nft_tail()
        )
    }

    /// How a listing of the rule ends, in a shell's double quotes: port, verdict and whose it is. The address is
    /// left out because nft may list it in another notation.
    fn nft_tail(&self) -> String {
        format!("tcp dport {} accept comment \\\"carena:{}\\\"", self.port, self.deployment)
    }

    fn iptables_matches(&self) -> String {
        let host = if self.from.is_ipv4() { 32 } else { 128 };
        format!(
            "-s {}/{host} -p tcp -m tcp --dport {} -m comment --comment carena:{} -j ACCEPT",
            self.from, self.port, self.deployment
        )
    }

    fn rich_rule(&self) -> String {
        let family = if self.from.is_ipv4() { "ipv4" } else { "ipv6" };
        let priority = match self.tool {
            FirewallTool::Firewalld { priority, .. } => priority,
            _ => 0,
        };
        format!(
            "rule priority={priority} family={family} source address={} port port={} protocol=tcp accept",
            self.from, self.port
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(tool: FirewallTool) -> RuleSpec {
        let deployment = "0190-test".parse().unwrap();
        RuleSpec { tool, deployment, from: "fd00:ca::1".parse().unwrap(), port: 62286 }
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    /// These bytes stand in journals. If this test fails, do not change the test.
    #[test]
    fn the_journalled_form_is_frozen() {
        let tools = [
            (
                FirewallTool::Iptables { program: name("ip6tables-legacy"), flavour: Flavour::Legacy },
                r#"{"kind":"iptables","program":"ip6tables-legacy","flavour":"legacy"}"#,
            ),
            (
                FirewallTool::Nft { family: NftFamily::Inet, table: name("filter"), chain: name("input") },
                r#"{"kind":"nft","family":"inet","table":"filter","chain":"input"}"#,
            ),
            (
                FirewallTool::Firewalld { zone: name("public"), priority: -7 },
                r#"{"kind":"firewalld","zone":"public","priority":-7}"#,
            ),
        ];
        for (tool, written) in tools {
            let whole =
                format!(r#"{{"tool":{written},"deployment":"0190-test","from":"fd00:ca::1","port":62286}}"#);
            assert_eq!(serde_json::to_string(&rule(tool.clone())).unwrap(), whole);
            assert_eq!(serde_json::from_str::<RuleSpec>(&whole).unwrap(), rule(tool));
        }
    }

    #[test]
    fn a_journal_cannot_carry_shell_into_a_script() {
        let forged = r#"{"kind":"nft","family":"inet","table":"x; reboot","chain":"input"}"#;
        assert!(serde_json::from_str::<FirewallTool>(forged).is_err());
    }

    #[test]
    fn the_mark_of_a_firewalld_rule_is_negative_and_the_deployments_own() {
        let of = |id: &str| firewalld_priority(&id.parse().unwrap());
        assert!(of("0190-test") < 0 && of("0190-tesu") < 0);
        assert_ne!(of("0190-test"), of("0190-tesu"));
    }
}
