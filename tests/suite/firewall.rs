//! The node's firewall, whatever manages it: one rule from one source to one port while it is needed, and then
//! byte for byte what was there before. The judges are the tools of each kind.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use carena::wire::firewall::{
    ALREADY_CLOSED, FirewallTool, Flavour, Known, NftFamily, RuleSpec, firewalld_priority,
};
use serde_json::Value;

use crate::deployment::{baseline, deploy, run};
use crate::lab::Lab;

const NONE: &str = "for t in iptables ip6tables; do $t -P INPUT ACCEPT; $t -F; done; nft flush ruleset\n";

const NFT: &str = "nft -f - <<E
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        tcp dport 22 accept
    }
}
E";

/// Blocks by the last rule of a chain that the base chain jumps to, beside one that blocks nothing.
const NFT_TWO: &str = "nft -f - <<E
table inet open {
    chain input {
        type filter hook input priority -5; policy accept;
        tcp dport 1 counter accept
    }
}
table inet shut {
    chain rest {
        tcp dport 22 accept
        tcp dport 1024-65535 reject with tcp reset
    }
    chain input {
        type filter hook input priority 0; policy accept;
        ct state established,related accept
        jump rest
    }
}
E";

/// As old distributions ship it: all is let in until the last rule.
const LEGACY: &str = "for t in iptables-legacy ip6tables-legacy; do
    $t -A INPUT -i lo -j ACCEPT; $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    $t -A INPUT -p tcp --dport 22 -j ACCEPT; $t -A INPUT -p ipv6-icmp -j ACCEPT; $t -A INPUT -p tcp -j REJECT
done";

const FIREWALLD: &str = "mkdir -p /run/dbus; dbus-daemon --system --fork
    firewalld --nofork --nopid </dev/null >/dev/null 2>&1 &
    n=0; until [ \"$(firewall-cmd --state 2>/dev/null)\" = running ]; do [ $n -lt 200 ] || exit 1; n=$((n+1)); sleep 0.1; done
    # Everything that is read is loaded once, so that nothing comes later by itself.
    firewall-cmd --list-all >/dev/null";

/// The interface is bound to a zone that is not the default one.
const FIREWALLD_ZONE: &str = "firewall-cmd --zone=work --change-interface=eth0 >/dev/null";

/// A chain that ends in REJECT, behind a jump.
const REJECT: &str = "for t in iptables ip6tables; do
    $t -N gate; $t -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; $t -A INPUT -j gate
    $t -A gate -p tcp --dport 22 -j ACCEPT; $t -A gate -p tcp -j REJECT
done";

/// Rules that look like ours: a dead run's of another deployment, and the customer's own without a comment, both
/// behind a rule that drops.
const LOOKALIKES: &str = "
    ip6tables -I INPUT 1 -s fd00:ca::1 -p tcp --dport 62286 -j DROP
    ip6tables -I INPUT 2 -s fd00:ca::1 -p tcp -m tcp --dport 62286 -j ACCEPT
    ip6tables -I INPUT 3 -s fd00:ca::1 -p tcp -m tcp --dport 62286 -m comment --comment carena:0190-dead -j ACCEPT";

const UFW: &str = "ufw allow 22/tcp >/dev/null; ufw --force enable >/dev/null";

/// What each kind of tool lists.
const LISTING: &str = "nft -s list ruleset; for t in iptables-save ip6tables-save iptables-legacy-save ip6tables-legacy-save; do
    $t | sed -e 's/\\[[0-9:]*\\]//' -e /^#/d
done 2>/dev/null; command -v firewall-cmd >/dev/null && grep -qsx firewalld /proc/[0-9]*/comm && firewall-cmd --list-all-zones";

/// Node, how it is made, what opens it.
fn flavours() -> BTreeMap<usize, (String, &'static str)> {
    let none = |then: &str| format!("{NONE}{then}");
    BTreeMap::from([
        (1, (String::new(), "ip6tables")),
        (2, (none(&format!("{FIREWALLD}\n{FIREWALLD_ZONE}")), "firewalld zone work")),
        (3, (none(UFW), "ip6tables")),
        (4, (none(NFT), "nft inet filter input")),
        (5, (none(LEGACY), "ip6tables-legacy")),
        // Without nft, the program that saves the rules tells of them.
        (6, (none(&format!("{REJECT}; rm /usr/sbin/nft")), "ip6tables")),
        (7, (none(NFT_TWO), "nft inet shut input")),
        (8, ("rm /usr/sbin/ip6tables*".to_owned(), "nft ip6 filter INPUT")),
        (9, (LOOKALIKES.to_owned(), "ip6tables")),
    ])
}

/// A component that keeps a listing of what the firewall was while it was installed.
fn witness(lab: &Lab, first: &str) -> std::path::PathBuf {
    baseline(
        lab,
        "witness",
        &format!("{first}\n{{ {LISTING}\n}} > /var/lib/thing-rules\necho 2.0 > /var/lib/thing\n"),
    )
}

/// Lines of `during` that are not in `before`, counted.
fn added(before: &str, during: &str) -> Vec<String> {
    let mut rest: Vec<&str> = before.lines().collect();
    let is_new = |line: &&str| match rest.iter().position(|other| other == line) {
        Some(index) => {
            rest.remove(index);
            false
        }
        None => true,
    };
    during.lines().filter(is_new).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn every_kind_of_firewall_is_opened_by_one_rule_and_left_as_it_was() {
    let lab = Lab::up(9);
    let flavours = flavours();
    for (k, (setup, _)) in &flavours {
        lab.on_node(*k, setup);
    }
    let before: BTreeMap<_, _> =
        flavours.keys().map(|k| (*k, (lab.snapshot(*k), lab.on_node(*k, LISTING)))).collect();
    let nodes: Vec<usize> = flavours.keys().copied().collect();
    let done = deploy(&lab, &lab.fleet(&nodes, witness(&lab, "").to_str().unwrap(), ""));
    assert_eq!(done.exit, 0, "{}", done.all);
    for (k, (_, opener)) in &flavours {
        let opened = format!(
            "\"node\":\"{}\",\"step\":\"open\",\"state\":\"done\",\"message\":\"port 62286, {opener}",
            lab.node_address(*k)
        );
        assert!(done.all.contains(&opened), "node {k}: {opened} in {}", done.all);
        let during = lab.on_node(*k, "cat /var/lib/thing-rules; rm /var/lib/thing /var/lib/thing-rules");
        let (snapshot, listing) = &before[k];
        let added = added(listing, &during);
        // The same rule in the listing of each tool that sees it, and nothing else.
        assert!((1..=2).contains(&added.len()), "node {k}: {added:?}");
        for rule in &added {
            assert!(["fd00:ca::1", "62286"].iter().all(|part| rule.contains(part)), "node {k}: {rule}");
        }
        let marked = added.iter().filter(|rule| rule.contains("carena:")).count();
        assert_eq!(marked, usize::from(*k != 2), "node {k}: {added:?}");
        assert_eq!(lab.on_node(*k, LISTING), *listing, "node {k}");
        assert_eq!(lab.snapshot(*k), *snapshot, "node {k}");
    }
}

#[test]
fn without_a_firewall_no_rule_is_made_and_a_missing_tool_is_named() {
    let lab = Lab::up(4);
    lab.on_node(1, NONE);
    lab.on_node(2, "rm /usr/sbin/ip6tables* /usr/sbin/nft");
    // By its IPv4 address, over iptables.
    lab.on_node(4, "rm /usr/sbin/iptables* /usr/sbin/nft");
    let before: Vec<_> = (1..=4).map(|k| lab.snapshot(k)).collect();
    let fleet = lab.fleet(&[1, 2, 3, 4], witness(&lab, "").to_str().unwrap(), "");
    let text = std::fs::read_to_string(&fleet).unwrap();
    let text = text.replace(&lab.node_address(3), "10.202.1.3").replace(&lab.node_address(4), "10.202.1.4");
    std::fs::write(&fleet, text).unwrap();
    let done = deploy(&lab, &fleet);
    assert_eq!(done.summary["nodes"][lab.node_address(1)]["result"], "done", "{}", done.all);
    assert!(
        !done.all.contains(&format!("\"node\":\"{}\",\"step\":\"open\"", lab.node_address(1))),
        "{}",
        done.all
    );
    assert!(done.all.contains(
        "\"node\":\"10.202.1.3\",\"step\":\"open\",\"state\":\"done\",\"message\":\"port 62286, iptables\""
    ));
    for said in [
        "the node has no ip6tables and no nft, so its IPv6 firewall cannot be opened (it has iptables, which is for the other family)",
        "the node has no iptables and no nft, so its IPv4 firewall cannot be opened (it has ip6tables, which is for the other family)",
    ] {
        assert!(done.all.contains(said), "{said} in {}", done.all);
    }
    let rules = lab.on_node(3, "cat /var/lib/thing-rules");
    assert!(
        rules
            .contains("-A INPUT -s 10.202.0.1/32 -p tcp -m tcp --dport 62286 -m comment --comment \"carena:"),
        "{rules}"
    );
    for k in 1..=4 {
        lab.on_node(k, "rm -f /var/lib/thing /var/lib/thing-rules");
        assert_eq!(lab.snapshot(k), before[k - 1], "node {k}");
    }
}

#[test]
fn a_silent_box_leaves_no_rule_in_any_kind_of_firewall() {
    let lab = Lab::up(9);
    let flavours = flavours();
    for (k, (setup, _)) in &flavours {
        lab.on_node(*k, setup);
    }
    let nodes: Vec<usize> = flavours.keys().copied().collect();
    let before: Vec<_> = nodes.iter().map(|k| lab.snapshot(*k)).collect();
    let slow = baseline(&lab, "slow", "sleep 3\n");
    let fleet = lab.fleet(&nodes, slow.to_str().unwrap(), "lease_s = 10");
    let mut child =
        lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut installing = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap_or_default();
        installing += usize::from(event["step"] == "install" && event["state"] == "started");
        if installing == nodes.len() {
            break;
        }
    }
    assert_eq!(installing, nodes.len());
    crate::deployment::kill(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    // The installer ends, then the lease, then nothing is left.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for (k, before) in nodes.iter().zip(&before) {
        while lab.snapshot(*k) != *before {
            assert!(std::time::Instant::now() < end, "node {k}: {}", lab.snapshot(*k));
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
    // The journal does not know of it; its undo finds everything gone.
    let swept = run(&mut lab.carena(&["sweep", "--json"]));
    assert_eq!(swept.exit, 0, "{}", swept.all);
}

/// A listing of more than a megabyte, cut down to the words that matter; what only has one in its name blocks nothing.
#[test]
fn a_huge_ruleset_is_understood_and_left_as_it_was() {
    let lab = Lab::up(1);
    lab.on_node(
        1,
        &format!(
            "{NONE}{{
                echo 'table inet early {{ set drop_v6 {{ type ipv6_addr; }}; counter drop_x {{ }}; chain input {{'
                echo 'type filter hook input priority -5; policy accept; ip6 saddr @drop_v6 accept'
                echo 'iifname \"drop0\" accept; ip6 saddr fd03::1 log prefix \"dropped: \" counter name drop_x accept'
                echo '}}; }}'
                echo 'table inet filter {{ chain more {{ ip6 saddr fd02::1 accept; }}; chain input {{'
                echo 'type filter hook input priority 0; policy accept; iif lo accept'
                echo 'ct state established,related accept; meta l4proto ipv6-icmp accept; tcp dport 22 accept'
                n=0
                while [ $n -lt 20000 ]; do
                    printf 'ip6 saddr fd01::%x counter jump more\nip6 saddr fd01::%x counter drop\n' $n $n
                    n=$((n+1))
                done
                echo 'tcp dport 1024-65535 drop; }}; }}'
            }} | nft -f -"
        ),
    );
    let before = lab.on_node(1, "nft -s list ruleset");
    assert!(before.len() > 1024 * 1024, "{} bytes", before.len());
    let done = deploy(&lab, &lab.fleet(&[1], witness(&lab, "").to_str().unwrap(), ""));
    assert_eq!(done.exit, 0, "{}", done.all);
    let opened = "\"step\":\"open\",\"state\":\"done\",\"message\":\"port 62286, nft inet filter input";
    assert!(done.all.contains(opened), "{}", done.all);
    assert!(lab.on_node(1, "nft -s list ruleset") == before, "the ruleset is another one");
}

#[test]
fn each_undo_is_idempotent_and_touches_nothing_of_its_shape_that_is_not_ours() {
    let lab = Lab::up(4);
    lab.on_node(2, &format!("{NONE}{LEGACY}"));
    lab.on_node(3, &format!("{NONE}{NFT}"));
    lab.on_node(4, &format!("{NONE}{FIREWALLD}"));
    let name = |text: &str| text.parse().unwrap();
    let iptables = |program, flavour| FirewallTool::Iptables { program: name(program), flavour };
    let nft = FirewallTool::Nft { family: NftFamily::Inet, table: name("filter"), chain: name("input") };
    let (ours, theirs) = ("0190-ours".parse().unwrap(), "0190-ourselves".parse().unwrap());
    let firewalld = |id| FirewallTool::Firewalld { zone: name("public"), priority: firewalld_priority(id) };
    for (k, tool, other) in [
        (1, iptables("ip6tables", Flavour::Nft), None),
        (2, iptables("ip6tables-legacy", Flavour::Legacy), None),
        (3, nft, None),
        (4, firewalld(&ours), Some(firewalld(&theirs))),
    ] {
        let rule = |tool: FirewallTool, deployment: &carena::wire::id::DeploymentId, port| RuleSpec {
            tool,
            deployment: deployment.clone(),
            from: "fd00:ca::1".parse().unwrap(),
            port,
        };
        let code = |script: &str| {
            lab.on_node(k, &format!("( {script}\n) >/dev/null 2>&1; echo $?")).trim().to_owned()
        };
        let other_tool = other.unwrap_or_else(|| tool.clone());
        // Another deployment's of the same shape, and another port of ours.
        for same in [rule(other_tool, &theirs, 62286), rule(tool.clone(), &ours, 62287)] {
            assert_eq!(code(&same.open_script(Known::Nothing)), "0", "node {k}");
        }
        let before = lab.on_node(k, LISTING);
        let mine = rule(tool, &ours, 62286);
        assert_eq!(code(&mine.open_script(Known::Nothing)), "0", "node {k}");
        let open = lab.on_node(k, LISTING);
        assert_eq!(code(&mine.open_script(Known::Nothing)), "0", "node {k}");
        assert_eq!(
            lab.on_node(k, LISTING),
            open,
            "node {k}: a rule of the same deployment and port is not doubled"
        );
        assert_ne!(open, before, "node {k}");
        // A look that fails says nothing: a second rule would stay when one is taken back.
        if let FirewallTool::Iptables { program, flavour } = &mine.tool {
            let busy = format!("{program}-busy");
            lab.on_node(
                k,
                &format!(
                    "printf '#!/bin/sh\\ncase \"$*\" in *\" -C \"*) exit 4 ;; esac\\nexec {program} \"$@\"\\n' \
                     > /usr/local/sbin/{busy}; chmod 755 /usr/local/sbin/{busy}"
                ),
            );
            let program = busy.parse().unwrap();
            let busy =
                RuleSpec { tool: FirewallTool::Iptables { program, flavour: *flavour }, ..mine.clone() };
            assert_eq!(code(&busy.open_script(Known::Nothing)), "1", "node {k}");
            assert_eq!(lab.on_node(k, LISTING), open, "node {k}");
        }
        assert_eq!(code(&mine.close_script()), "0", "node {k}");
        assert_eq!(lab.on_node(k, LISTING), before, "node {k}");
        assert_eq!(code(&mine.close_script()), ALREADY_CLOSED.to_string(), "node {k}");
        // A reload, or a reboot: the rules, then whole tables, are gone, and looking for ours makes none.
        lab.on_node(k, "command -v firewall-cmd >/dev/null && firewall-cmd --reload || true");
        assert_eq!(code(&mine.close_script()), ALREADY_CLOSED.to_string(), "node {k}");
        lab.on_node(
            k,
            "kill $(grep -lsx firewalld /proc/[0-9]*/comm | cut -d/ -f3) 2>/dev/null; nft flush ruleset",
        );
        let empty = lab.on_node(k, "nft list ruleset");
        assert_eq!(code(&mine.close_script()), ALREADY_CLOSED.to_string(), "node {k}");
        assert_eq!(lab.on_node(k, "nft list ruleset"), empty, "node {k}");
    }
}
