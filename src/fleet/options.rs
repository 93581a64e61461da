//! How a whole deployment is run: the fleet file's `[options]`.
//!
//! Every option has a value that is right for most fleets; a fleet file names only what differs. Nothing here is
//! particular to a node, and nothing is a secret: options are kept in the store, so that a deployment can be retried.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::firmware::signature::Unsigned;

/// Longest message to logged-in users, bytes.
const MESSAGE_BYTES_MAX: usize = 1_000;

/// How the whole deployment is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether the node's firewall may be opened.
    pub open_firewall: OpenFirewall,
    /// Whether nodes are rebooted.
    pub reboot: Reboot,
    /// Seconds between telling logged-in users and the reboot; a cancel in this time prevents it.
    pub reboot_delay_s: u32,
    /// What logged-in users are told; empty for a text of ours.
    pub reboot_message: String,
    /// Seconds a rebooted node may take until it can be logged in to again. Servers with much memory take many minutes.
    pub reboot_wait_s: u32,
    /// What to do with versions that are there already.
    pub mode: Mode,
    /// Whether the baseline may be used though nobody who is trusted has signed it.
    pub unsigned: Unsigned,
    /// Nodes at once.
    pub parallel: u16,
    /// How many nodes are tried before the others: `[1, "10%", "rest"]`. Empty: all, `parallel` at once. A wave begins
    /// when the one before has ended with fewer than `failures_max` failed nodes so far (with 0: with none).
    pub waves: Vec<Wave>,
    /// Groups of nodes that come one after another; nodes of other groups, or of none, come last, together.
    pub order: Vec<String>,
    /// No new node is begun after this many have failed; 0 = never stop.
    pub failures_max: u32,
    /// Payload bytes per second, of all nodes together; 0 = no limit.
    pub bandwidth_max: u64,
    /// Seconds after which an engine that hears nothing takes itself away.
    pub lease_s: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            open_firewall: OpenFirewall::Auto,
            reboot: Reboot::IfNeeded,
            reboot_delay_s: 0,
            reboot_message: String::new(),
            reboot_wait_s: 1_200,
            mode: Mode::Upgrade,
            unsigned: Unsigned::Refuse,
            parallel: 64,
            waves: Vec::new(),
            order: Vec::new(),
            failures_max: 0,
            bandwidth_max: 0,
            lease_s: 300,
        }
    }
}

impl Options {
    /// Why the options make no sense, if so.
    pub(super) fn fault(&self) -> Option<String> {
        if self.parallel == 0 {
            return Some("parallel = 0 would never begin".into());
        }
        if !(10..=86_400).contains(&self.lease_s) {
            return Some(format!("lease_s = {}; it is 10 to 86400 seconds", self.lease_s));
        }
        // Less would look like a dead connection to the node that waits for its share.
        if self.bandwidth_max > 0 && self.bandwidth_max < 1_024 * u64::from(self.parallel) {
            return Some(format!(
                "bandwidth_max = {} is less than 1024 bytes a second for each of {} parallel nodes",
                self.bandwidth_max, self.parallel
            ));
        }
        if self.reboot_delay_s > 86_400 {
            return Some(format!("reboot_delay_s = {}; it is at most 86400 seconds", self.reboot_delay_s));
        }
        if !(10..=86_400).contains(&self.reboot_wait_s) {
            return Some(format!("reboot_wait_s = {}; it is 10 to 86400 seconds", self.reboot_wait_s));
        }
        if self.reboot_message.len() > MESSAGE_BYTES_MAX || self.reboot_message.contains('\0') {
            return Some(format!("reboot_message is longer than {MESSAGE_BYTES_MAX} bytes, or no text"));
        }
        if let Some(rest) = self.waves.iter().position(|wave| *wave == Wave::Rest)
            && rest + 1 != self.waves.len()
        {
            return Some("waves: \"rest\" comes last".into());
        }
        let doubled =
            |(index, name): (usize, &String)| self.order.iter().skip(index + 1).any(|other| other == name);
        self.order
            .iter()
            .enumerate()
            .find(|group| doubled(*group))
            .map(|(_, name)| format!("order: group {name} stands twice"))
    }
}

/// Whether the node's firewall may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenFirewall {
    /// Only if the engine's port does not answer.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// Whether nodes are rebooted. A node with a component that failed or could not be verified is not rebooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// Never; what needs one is reported.
    Never,
    /// When a component needs one.
    IfNeeded,
    /// When anything was installed.
    Always,
}

/// What to do with versions that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Older versions only.
    Upgrade,
    /// Newer ones too.
    Downgrade,
    /// The same one too.
    Rewrite,
}

/// How many nodes a wave has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wave {
    /// So many.
    Nodes(u32),
    /// So many per cent of the fleet, rounded up.
    Percent(u8),
    /// All that are left.
    Rest,
}

impl Wave {
    /// How many nodes of a fleet of `fleet` nodes, `left` of which are in no wave yet.
    pub fn nodes(self, fleet: usize, left: usize) -> usize {
        let wanted = match self {
            Self::Nodes(nodes) => usize::try_from(nodes).unwrap_or(usize::MAX),
            Self::Percent(percent) => (fleet * usize::from(percent)).div_ceil(100),
            Self::Rest => left,
        };
        wanted.min(left)
    }
}

impl Serialize for Wave {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nodes(nodes) => serializer.serialize_u32(*nodes),
            Self::Percent(percent) => serializer.serialize_str(&format!("{percent}%")),
            Self::Rest => serializer.serialize_str("rest"),
        }
    }
}

impl<'de> Deserialize<'de> for Wave {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Wave;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of nodes, a share like \"10%\", or \"rest\"")
            }

            fn visit_u64<E: de::Error>(self, nodes: u64) -> Result<Wave, E> {
                let unexpected = || E::invalid_value(de::Unexpected::Unsigned(nodes), &self);
                let nodes = u32::try_from(nodes).ok().filter(|nodes| *nodes > 0);
                nodes.map(Wave::Nodes).ok_or_else(unexpected)
            }

            fn visit_i64<E: de::Error>(self, nodes: i64) -> Result<Wave, E> {
                self.visit_u64(u64::try_from(nodes).unwrap_or(0))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Wave, E> {
                if text == "rest" {
                    return Ok(Wave::Rest);
                }
                let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
                let percent = percent.filter(|percent| (1..=100).contains(percent));
                percent.map(Wave::Percent).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Options, String> {
        let options: Options = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        options.fault().map_or(Ok(options), Err)
    }

    #[test]
    fn waves_are_numbers_shares_and_the_rest() {
        let options = read("waves = [1, \"10%\", \"rest\"]").unwrap();
        assert_eq!(options.waves, [Wave::Nodes(1), Wave::Percent(10), Wave::Rest]);
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&json).unwrap().waves, options.waves);
        assert_eq!(
            (Wave::Percent(10).nodes(11, 10), Wave::Rest.nodes(11, 8), Wave::Nodes(9).nodes(11, 2)),
            (2, 8, 2)
        );
    }

    #[test]
    fn options_that_make_no_sense_are_refused_in_words() {
        for (text, said) in [
            ("waves = [0]", "number of nodes"),
            ("waves = [-1]", "number of nodes"),
            ("waves = [\"110%\"]", "10%"),
            ("waves = [\"rest\", 1]", "comes last"),
            ("order = [\"a\", \"b\", \"a\"]", "twice"),
            ("reboot_wait_s = 1", "reboot_wait_s"),
            ("reboot = \"sometimes\"", "sometimes"),
            ("lease_s = 1", "lease_s"),
            ("parallel = 0", "never begin"),
            ("bandwidth_max = 9000", "64 parallel nodes"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}
