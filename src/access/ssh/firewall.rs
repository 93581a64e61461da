//! Which firewall a node has, and where in it the one rule of ours belongs.
//!
//! Asked only when the engine's port does not answer, by one script that changes nothing: it reads what is loaded,
//! and never runs a tool that would load a table to look at it. The choice is made here. firewalld, where it runs,
//! is asked to do it, since it would not know of a rule made behind its back. Otherwise the rule goes to the head
//! of the chain that blocks. Several may block, and an accept in one does not overrule a drop in another: then one
//! rule cannot be enough, the likeliest chain is taken, and if the port stays shut the deployment takes another path.
//! Hooks before the input hook (raw, ingress) are not looked at: what drops there is meant to.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::wire::firewall::{FirewallTool, Flavour, Known, NftFamily, firewalld_priority};
use crate::wire::id::{DeploymentId, NodeName};

/// What stands between the box and a port of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firewall {
    /// It can be opened with this tool; the others block as well.
    Openable {
        /// Where the rule goes.
        tool: FirewallTool,
        /// Other chains that block, for people.
        others: Vec<String>,
    },
    /// Nothing on the node blocks this address family.
    Absent,
    /// The family's tool is missing, so that it can neither be seen nor opened.
    Unseen {
        /// What would be needed.
        missing: &'static str,
        /// What the node has for the other family.
        other: Option<&'static str>,
    },
}

/// Why the port cannot be opened, or what else blocks it.
impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Openable { tool, others } if others.is_empty() => write!(f, "{tool}"),
            Self::Openable { tool, others } => write!(f, "{tool}; {} may block it too", others.join(", ")),
            Self::Absent => {
                f.write_str("no firewall on the node blocks it, so something on the way there does")
            }
            Self::Unseen { missing, other } => {
                let family = if *missing == "iptables" { "IPv4" } else { "IPv6" };
                write!(f, "the node has no {missing} and no nft, so its {family} firewall cannot be opened")?;
                other.map_or(Ok(()), |other| write!(f, " (it has {other}, which is for the other family)"))
            }
        }
    }
}

/// A listing of nft that is longer is cut down on the node to what matters: some have a rule for each of a hundred thousand
/// addresses. A shorter one travels as it is, which spares the node two processes. What matters are whole words: a set, a
/// counter or the prefix of a log may have "drop" in its name.
const NFT_BYTES_MAX: usize = 16 * 1024;

/// The script that tells what [`read`] understands. `$1` is the connection as the node sees it. A program says what it works
/// on by its name, or by being the same file as one whose name says it; only others are asked.
pub fn script(from: IpAddr) -> String {
    let (tables, names) =
        if from.is_ipv4() { ("iptables", "ip_tables_names") } else { ("ip6tables", "ip6_tables_names") };
    format!(
        r#"has() {{
    IFS=:
    for place in $PATH; do [ ! -x $place/$1 ] || {{ found=$place/$1; unset IFS; return 0; }}; done
    unset IFS found; return 1
}}
runs() {{
    for comm in /proc/[0-9]*/comm; do read -r name < $comm && [ "$name" = $1 ] && return 0; done 2>/dev/null
    return 1
}}
if has firewall-cmd && runs firewalld; then
    echo "firewalld $(firewall-cmd --get-default-zone)"
    firewall-cmd --get-active-zones | sed "s/^/zone /"
    set -- $1
    ip -o addr show to ${{3%%%*}} 2>/dev/null | while read -r number link rest; do echo "interface $link"; done
else
on_nft= legacy=
for tool in nft iptables ip6tables; do has $tool && echo "tool $tool"; done
has {tables}-nft && on_nft=$found && echo "program {tables}-nft nf_tables"
has {tables}-legacy && echo "program {tables}-legacy legacy"
if has {tables}; then
    [ "$found" -ef "$on_nft" ] && version=nf_tables || version=$({tables} -V 2>/dev/null)
    echo "program {tables} $version"
    case $version in *nf_tables*) on_nft=$found ;; esac
fi
while read -r name; do [ $name != filter ] || legacy=1; done 2>/dev/null < /proc/net/{names}
if [ "$legacy" ]; then
    echo legacy
    for program in {tables}-legacy {tables}; do
        has $program && [ ! "$found" -ef "$on_nft" ] && $program -w 5 -S && break
    done | sed -n "s/^-P INPUT /policy /p; s/^-A \([^ ]*\) .*-[jg] \([^ ]*\).*/jump \1 \2/p" | sort -u
fi
if has nft; then
    rules=$(nft -t list ruleset 2>/dev/null) || rules=$(nft list ruleset 2>/dev/null)
    if [ ${{#rules}} -le {NFT_BYTES_MAX} ]; then
        echo nft; printf "%s\n" "$rules"
    else
        echo nft-brief
        printf "%s\n" "$rules" | grep -oE "^table.*|^.chain.*|flags dormant|^..type.*|[[:space:]](jump|goto) [^ ,;}}]+|[[:space:]\"](drop|reject|REJECT|DROP)([[:space:],;\"]|\$)" | uniq
    fi
    rules=
elif [ "$on_nft" ]; then
    echo iptables-nft
    $on_nft-save 2>/dev/null |
        sed -n "/^\*/p; s/^:INPUT \([^ ]*\).*/policy \1/p; s/^-A \([^ ]*\) .*-[jg] \([^ ]*\).*/jump \1 \2/p" | uniq
fi
fi
:"#
    )
}

/// A chain that sees what comes in, and how surely it blocks.
struct Chain {
    tool: FirewallTool,
    blocks: Blocks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blocks {
    No,
    /// A rule in it, or in a chain it jumps to, drops or rejects something.
    ByRule,
    /// Whatever no rule accepts.
    ByPolicy,
}

/// Understands what the script said; none when it makes no sense.
pub fn read(said: &str, from: IpAddr, deployment: &DeploymentId) -> Option<Firewall> {
    if let Some(zone) = firewalld_zone(said, from) {
        let zone = zone.parse().ok()?;
        let tool = FirewallTool::Firewalld { zone, priority: firewalld_priority(deployment) };
        return Some(Firewall::Openable { tool, others: Vec::new() });
    }
    let programs = Programs::of(said);
    let mut chains: Vec<Chain> = Vec::new();
    chains.extend(iptables_chain(
        section(said, "legacy"),
        programs.of_flavour(Flavour::Legacy),
        Flavour::Legacy,
    ));
    let listed = section(said, "nft").into_iter().chain(section(said, "nft-brief")).collect();
    chains.extend(nft_chains(listed, from, &programs));
    let saved = section(said, "iptables-nft");
    chains.extend(iptables_chain(filter_table(saved), programs.of_flavour(Flavour::Nft), Flavour::Nft));
    chains.retain(|chain| chain.blocks > Blocks::No);
    // The surest first; among equals the order they were found in.
    chains.sort_by_key(|chain| std::cmp::Reverse(chain.blocks));
    let mut chains = chains.into_iter();
    Some(match chains.next() {
        Some(first) => Firewall::Openable {
            tool: first.tool,
            others: chains.map(|chain| chain.tool.to_string()).collect(),
        },
        None => unseen(said, from, &programs).unwrap_or(Firewall::Absent),
    })
}

/// What the same words show of the deployment's own rule. Only nft's whole listing has the comments, and only where no
/// match is foreign to it: `xt match "comment"`, before nft 1.0.3 `# xt_comment`.
pub fn known(said: &str, tool: &FirewallTool, deployment: &DeploymentId) -> Known {
    let is_listed =
        matches!(tool, FirewallTool::Nft { .. } | FirewallTool::Iptables { flavour: Flavour::Nft, .. });
    let listed = section(said, "nft");
    let comment = format!("carena:{deployment}");
    let may_be_ours = |line: &&str| [comment.as_str(), "xt ", "xt_"].iter().any(|sign| line.contains(sign));
    let is_whole = listed.iter().any(|line| line.starts_with("table "));
    if is_listed && is_whole && !listed.iter().any(may_be_ours) { Known::Absent } else { Known::Nothing }
}

fn unseen(said: &str, from: IpAddr, programs: &Programs) -> Option<Firewall> {
    let has = |tool: &str| said.lines().any(|line| line.strip_prefix("tool ") == Some(tool));
    let (missing, other) = if from.is_ipv4() { ("iptables", "ip6tables") } else { ("ip6tables", "iptables") };
    let legacy_unseen =
        said.lines().any(|line| line == "legacy") && programs.of_flavour(Flavour::Legacy).is_none();
    let none = !has("nft") && programs.0.is_empty();
    // A node with no tool at all has none that was set up; one with the other family's has been thought about.
    (legacy_unseen || (none && has(other)))
        .then(|| Firewall::Unseen { missing, other: has(other).then_some(other) })
}

/// The programs of one family by what they work on.
struct Programs(Vec<(NodeName, Flavour)>);

impl Programs {
    fn of(said: &str) -> Self {
        let program = |line: &str| {
            let (name, version) = line.strip_prefix("program ")?.split_once(' ')?;
            // Programs older than the flavours do not name theirs.
            let flavour = if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy };
            Some((name.parse().ok()?, flavour))
        };
        let mut programs: Vec<_> = said.lines().filter_map(program).collect();
        // The plain name is the shortest.
        programs.sort_by_key(|(name, _): &(NodeName, Flavour)| name.as_str().len());
        Self(programs)
    }

    /// The plain name comes first where it is the right one: that is what an administrator would type.
    fn of_flavour(&self, flavour: Flavour) -> Option<&NodeName> {
        self.0.iter().find(|(_, other)| *other == flavour).map(|(name, _)| name)
    }
}

/// The lines after the one that is `name`, up to the next section.
fn section<'a>(said: &'a str, name: &str) -> Vec<&'a str> {
    let heads = ["legacy", "nft", "nft-brief", "iptables-nft"];
    let mut lines = said.lines().skip_while(|line| *line != name);
    lines.next();
    lines.take_while(|line| !heads.contains(line)).collect()
}

fn filter_table(saved: Vec<&str>) -> Vec<&str> {
    let after = saved.into_iter().skip_while(|line| *line != "*filter").skip(1);
    after.take_while(|line| !line.starts_with('*')).collect()
}

/// INPUT of the table filter, from `policy P` and `jump CHAIN TARGET`.
fn iptables_chain(lines: Vec<&str>, program: Option<&NodeName>, flavour: Flavour) -> Option<Chain> {
    let policy = lines.iter().find_map(|line| line.strip_prefix("policy "))?;
    let mut jumps: HashMap<&str, Vec<&str>> = HashMap::new();
    for (chain, target) in lines.iter().filter_map(|line| line.strip_prefix("jump ")?.split_once(' ')) {
        jumps.entry(chain).or_default().push(target);
    }
    let stops = |target: &str| matches!(target, "DROP" | "REJECT");
    let blocks = blocks(policy.eq_ignore_ascii_case("DROP"), "INPUT", &jumps, &stops);
    let tool = FirewallTool::Iptables { program: program?.clone(), flavour };
    Some(Chain { tool, blocks })
}

/// Base chains of type filter at the input hook, from nft's own listing cut down to what matters.
fn nft_chains(lines: Vec<&str>, from: IpAddr, programs: &Programs) -> Vec<Chain> {
    let mut found = Vec::new();
    let mut tables: Vec<Vec<&str>> = Vec::new();
    for line in lines {
        match tables.last_mut() {
            Some(table) if !line.starts_with("table ") => table.push(line),
            _ => tables.push(vec![line]),
        }
    }
    for table in tables.iter().filter(|table| !table.iter().any(|line| line.contains("flags dormant"))) {
        found.extend(nft_table(table, from, programs).unwrap_or_default());
    }
    found
}

/// The chains of one table; none when it does not see packets from there, or is not understood.
fn nft_table(lines: &[&str], from: IpAddr, programs: &Programs) -> Option<Vec<Chain>> {
    let mut head = lines.first()?.split_whitespace().skip(1);
    let family = match head.next()? {
        "inet" => NftFamily::Inet,
        "ip" if from.is_ipv4() => NftFamily::Ip,
        "ip6" if from.is_ipv6() => NftFamily::Ip6,
        _ => return None,
    };
    let table: NodeName = head.next()?.parse().ok()?;
    let (mut chain, mut bases) = ("", Vec::new());
    let mut jumps: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in lines {
        let words: Vec<&str> =
            line.split_whitespace().map(|word| word.trim_end_matches([',', ';'])).collect();
        match words.as_slice() {
            ["chain", name, ..] => chain = name,
            ["type", "filter", "hook", "input", ..] => bases.push((chain, line.contains("policy drop"))),
            _ => {
                let targets = jumps.entry(chain).or_default();
                let follow = |pair: &[&'_ str]| matches!(pair.first(), Some(&("jump" | "goto")));
                targets.extend(words.windows(2).filter(|pair| follow(pair)).filter_map(|pair| pair.get(1)));
                let stops =
                    |word: &&&str| matches!(word.trim_matches('"'), "drop" | "reject" | "REJECT" | "DROP");
                targets.extend(words.iter().find(stops).map(|_| "drop"));
            }
        }
    }
    let chains = bases.into_iter().filter_map(|(name, drops)| {
        let blocks = blocks(drops, name, &jumps, &|target| target == "drop");
        // A chain that iptables made is opened with iptables, so that its own listing shows the rule.
        let made_by_iptables = table.as_str() == "filter" && name == "INPUT" && family != NftFamily::Inet;
        let tool = match programs.of_flavour(Flavour::Nft) {
            Some(program) if made_by_iptables => {
                FirewallTool::Iptables { program: program.clone(), flavour: Flavour::Nft }
            }
            _ => FirewallTool::Nft { family, table: table.clone(), chain: name.parse().ok()? },
        };
        Some(Chain { tool, blocks })
    });
    Some(chains.collect())
}

/// Whether packets can end in `chain` or in any chain reached from it.
fn blocks(
    by_policy: bool,
    chain: &str,
    jumps: &HashMap<&str, Vec<&str>>,
    stops: &dyn Fn(&str) -> bool,
) -> Blocks {
    if by_policy {
        return Blocks::ByPolicy;
    }
    let (mut seen, mut ahead) = (HashSet::from([chain]), vec![chain]);
    while let Some(chain) = ahead.pop() {
        for target in jumps.get(chain).into_iter().flatten() {
            if stops(target) {
                return Blocks::ByRule;
            }
            if seen.insert(target) {
                ahead.push(target);
            }
        }
    }
    Blocks::No
}

/// The zone that packets from `from` meet: by source, else by interface, else the default one (firewalld.zones(5)).
fn firewalld_zone(said: &str, from: IpAddr) -> Option<String> {
    let default = said.lines().find_map(|line| line.strip_prefix("firewalld "))?.trim();
    let interface = said.lines().find_map(|line| line.strip_prefix("interface "));
    let (mut zone, mut by_source, mut by_interface) = ("", None, None);
    for line in said.lines().filter_map(|line| line.strip_prefix("zone ")) {
        if let Some(sources) = line.trim_start().strip_prefix("sources:") {
            let meets = sources.split_whitespace().any(|source| contains(source, from));
            by_source = by_source.or(meets.then_some(zone));
        } else if let Some(interfaces) = line.trim_start().strip_prefix("interfaces:") {
            let meets = interfaces.split_whitespace().any(|other| Some(other) == interface);
            by_interface = by_interface.or(meets.then_some(zone));
        } else if !line.starts_with(' ') {
            // Newer versions mark the default one: "public (default)".
            zone = line.split(' ').next().unwrap_or_default();
        }
    }
    Some(by_source.or(by_interface).unwrap_or(default).to_owned())
}

/// Whether `address` is in `network`, written as `ADDRESS` or `ADDRESS/BITS`.
fn contains(network: &str, address: IpAddr) -> bool {
    let (base, bits) = network.split_once('/').unwrap_or((network, "128"));
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let top = |value: u128, width: u32| value.checked_shr(width.saturating_sub(bits)).unwrap_or(0);
    match (base, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => top(a.to_bits().into(), 32) == top(b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => top(a.to_bits(), 128) == top(b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(said: &str, from: &str) -> String {
        match read(said, from.parse().unwrap(), &"0190-test".parse().unwrap()).unwrap() {
            Firewall::Openable { tool, others } => format!("{tool} {others:?}"),
            other => other.to_string(),
        }
    }

    #[test]
    fn the_zone_is_found_by_source_then_interface_then_default() {
        let said = "firewalld public\nzone work\nzone   interfaces: eth0\nzone near (default)\n\
                    zone   sources: 10.0.0.0/8 fd00::/16\ninterface eth0\n";
        assert!(choose(said, "fd00:ca::1").starts_with("firewalld zone near"));
        assert!(choose(said, "10.9.9.9").starts_with("firewalld zone near"));
        assert!(choose(said, "2001:db8::1").starts_with("firewalld zone work"));
        assert!(choose(&said.replace("eth0\n", "eth1\n"), "192.0.2.1").starts_with("firewalld zone "));
        assert!(choose("firewalld public\n", "192.0.2.1").starts_with("firewalld zone public"));
    }

    #[test]
    fn the_chain_that_blocks_is_chosen_and_jumps_are_followed() {
        let nft = "tool nft\nnft\ntable inet a {\n\tchain in {\n\t\ttype filter hook input priority filter; policy accept;\n\
                   \t\tiif \"eth0\" jump more\n\tchain more {\n\t\ttcp dport 9 reject with tcp reset\n\
                   table inet b {\n\tchain out {\n\t\ttype filter hook output priority filter; policy drop;\n\
                   \tchain in {\n\t\ttype filter hook input priority filter; policy accept;\n";
        assert_eq!(choose(nft, "fd00::1"), "nft inet a in []");
        let two = format!(
            "{nft}table ip6 filter {{\n\tchain INPUT {{\n\t\ttype filter hook input priority filter; policy drop;\n"
        );
        assert_eq!(choose(&two, "fd00::1"), "nft ip6 filter INPUT [\"nft inet a in\"]");
        assert_eq!(
            choose(&two, "192.0.2.1"),
            "nft inet a in []",
            "the other family's table sees nothing of it"
        );
        let with =
            format!("program ip6tables-nft nf_tables\nprogram ip6tables ip6tables v1.8.9 (nf_tables)\n{two}");
        assert_eq!(choose(&with, "fd00::1"), "ip6tables [\"nft inet a in\"]");
    }

    #[test]
    fn a_rule_is_known_to_be_absent_only_where_every_comment_can_be_read() {
        let deployment = "0190-test".parse().unwrap();
        let tool = FirewallTool::Iptables { program: "ip6tables".parse().unwrap(), flavour: Flavour::Nft };
        let knows = |rule: &str| {
            let said = format!("nft\ntable ip6 filter {{\n\tchain INPUT {{\n\t\t{rule}\n\t}}\n}}\n");
            known(&said, &tool, &deployment)
        };
        assert_eq!(knows("tcp dport 22 counter accept comment \"carena:0190-other\""), Known::Absent);
        assert_eq!(knows("tcp dport 22 counter accept comment \"carena:0190-test\""), Known::Nothing);
        assert_eq!(knows("tcp dport 22 xt match \"comment\" counter accept"), Known::Nothing);
        assert_eq!(knows("tcp dport 22 # xt_comment counter accept"), Known::Nothing);
    }

    #[test]
    fn iptables_flavours_are_told_apart_and_a_missing_tool_is_named() {
        let programs = "program iptables iptables v1.8.9 (nf_tables)\nprogram iptables-legacy iptables v1.8.9 (legacy)\n";
        let legacy =
            format!("{programs}legacy\npolicy ACCEPT\njump INPUT filter-in\njump filter-in REJECT\n");
        assert_eq!(choose(&legacy, "10.0.0.1"), "iptables-legacy []");
        let saved =
            format!("{programs}iptables-nft\n*nat\npolicy DROP\n*filter\npolicy ACCEPT\njump INPUT DROP\n");
        assert_eq!(choose(&saved, "10.0.0.1"), "iptables []");
        assert!(choose("tool iptables\n", "fd00::1").contains("no ip6tables and no nft"));
        assert!(choose("tool ip6tables\n", "10.0.0.1").contains("no iptables and no nft"));
        assert!(choose(programs, "10.0.0.1").contains("no firewall on the node"));
        assert!(choose("", "10.0.0.1").contains("no firewall on the node"));
    }
}
