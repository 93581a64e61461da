//! A deployment succeeds on the worst of the networks: each direction is cut by real rules, before and in the middle,
//! and the bytes that had arrived are not sent again.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::deployment::{Run, apart_from_thing, baseline, baseline_of, deploy, deploy_watched};
use crate::lab::Lab;
use crate::operator::{self, Thing};

/// The box's HTTPS ports and the engines', as the product tries them.
const BACK: &str = "tcp dport 63002-63065";
const THERE: &str = "tcp dport 62286-62317";

/// A payload of so many MiB whose installer is quick.
fn large(lab: &Lab, mebibytes: usize) -> PathBuf {
    baseline_of(lab, "large", "echo 2.0 > /var/lib/thing", mebibytes * 1024 * 1024)
}

/// Cuts what a node sends to the box's port, or what reaches the engine's, by a table in front of all others.
fn cut(lab: &Lab, k: usize, hook: &str, matches: &str, verdict: &str) {
    let said = lab.on_node(
        k,
        &format!(
            "nft add table inet cut && nft 'add chain inet cut {hook} {{ type filter hook {hook} priority -10; }}' &&
             nft add rule inet cut {hook} {matches} {verdict} && echo cut"
        ),
    );
    assert_eq!(said, "cut\n");
}

fn mend(lab: &Lab, k: usize) {
    lab.on_node(k, "nft delete table inet cut");
}

/// Deploys, and does something at the `count`th progress of a payload to some node.
fn deploy_and(lab: &Lab, fleet: &Path, count: usize, mut act: impl FnMut()) -> Run {
    let mut met = 0;
    let run = deploy_watched(lab, fleet, |event| {
        if event["step"] == "send" && event["bytes"]["done"].as_u64().is_some_and(|done| done > 0) {
            met += 1;
            if met == count {
                act();
            }
        }
        None
    });
    assert!(met >= count, "the payload was never on its way: {}", run.all);
    run
}

/// What a node's transfer took: bytes, and how often it was taken up again.
fn sent(run: &Run, lab: &Lab, k: usize) -> (u64, u32) {
    let message = run.all.lines().find_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        let wanted =
            event["node"] == lab.node_address(k) && event["step"] == "send" && event["state"] == "done";
        wanted.then(|| event["message"].as_str().unwrap().to_owned())
    });
    let message = message.unwrap_or_else(|| panic!("nothing was sent: {}", run.all));
    let numbers: Vec<u64> = message.split(' ').filter_map(|word| word.parse().ok()).collect();
    (numbers[0], u32::try_from(numbers[1]).unwrap())
}

#[track_caller]
fn assert_path(run: &Run, lab: &Lab, k: usize, path: &str, why: &str) {
    let node = run.node(lab, k);
    assert_eq!(node["components"][0]["outcome"], "updated", "{}", run.all);
    assert_eq!(node["path"], path, "{}", run.all);
    assert!(node["path_why"].as_str().unwrap().contains(why), "{node}");
    assert_eq!(lab.on_node(k, "cat /var/lib/thing"), "2.0\n");
}

#[test]
fn an_open_network_is_direct_and_a_blocked_way_back_is_push() {
    let lab = Lab::up(3);
    let before = [apart_from_thing(&lab, 1), apart_from_thing(&lab, 2), apart_from_thing(&lab, 3)];
    cut(&lab, 2, "output", BACK, "drop");
    cut(&lab, 3, "output", BACK, "reject");
    let payload = large(&lab, 4);
    let done = deploy(&lab, &lab.fleet(&[1, 2, 3], payload.to_str().unwrap(), ""));
    assert_path(&done, &lab, 1, "direct", "fetches from the box");
    for k in [2, 3] {
        assert_path(&done, &lab, k, "push", "return traffic blocked");
        assert_eq!(sent(&done, &lab, k).1, 0);
        mend(&lab, k);
    }
    assert_eq!([apart_from_thing(&lab, 1), apart_from_thing(&lab, 2), apart_from_thing(&lab, 3)], before);
}

#[test]
fn a_blocked_port_is_a_tunnel_even_where_the_firewall_may_be_opened() {
    let lab = Lab::up(3);
    let before = [apart_from_thing(&lab, 1), apart_from_thing(&lab, 2), apart_from_thing(&lab, 3)];
    cut(&lab, 1, "input", THERE, "drop");
    cut(&lab, 2, "input", THERE, "reject");
    cut(&lab, 3, "input", THERE, "drop");
    lab.on_node(3, &format!("nft 'add chain inet cut output {{ type filter hook output priority -10; }}'; nft add rule inet cut output {BACK} reject"));
    let payload = large(&lab, 4);
    let done = deploy(&lab, &lab.fleet(&[1, 2, 3], payload.to_str().unwrap(), ""));
    for k in [1, 2, 3] {
        assert_path(&done, &lab, k, "tunnel", "blocked");
        assert_eq!(sent(&done, &lab, k).1, 0);
        mend(&lab, k);
    }
    assert_eq!([apart_from_thing(&lab, 1), apart_from_thing(&lab, 2), apart_from_thing(&lab, 3)], before);
}

#[test]
fn without_leave_to_open_no_firewall_is_touched_and_one_session_without_forwarding_is_enough() {
    let lab = Lab::up(2);
    for k in [1, 2] {
        let set = "printf 'MaxSessions 1\\nAllowTcpForwarding no\\n' >> /etc/ssh/sshd_config; kill -HUP 1";
        lab.on_node(k, set);
    }
    let before = [apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)];
    let rules = "{ ip6tables-save; nft -s list ruleset; } | sed -e 's/\\[[0-9:]*\\]//' -e /^#/d";
    let witness =
        format!("{{ {rules}; }} > /var/lib/thing\nmv /var/lib/thing /tmp/rules\necho 2.0 > /var/lib/thing\n");
    let found = [lab.on_node(1, rules), lab.on_node(2, rules)];
    let payload = baseline(&lab, "witness", &witness);
    let done = deploy(&lab, &lab.fleet(&[1, 2], payload.to_str().unwrap(), "open_firewall = \"no\""));
    for k in [1, 2] {
        assert_path(&done, &lab, k, "tunnel", "open_firewall = \"no\"");
        assert_eq!(lab.on_node(k, "cat /tmp/rules; rm /tmp/rules"), found[k - 1]);
    }
    assert!(!done.all.contains("\"step\":\"open\""), "{}", done.all);
    assert!(!done.all.contains("\"state\":\"retry\""), "{}", done.all);
    assert_eq!([apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)], before);
}

/// One byte of the payload flipped on its way in, by whatever path it comes: the engine refuses it before an installer
/// sees it. Flipped back, it is installed.
#[test]
fn a_flipped_byte_is_refused_on_every_path_before_it_is_run() {
    const PATHS: [(usize, &str); 3] = [(1, "direct"), (2, "push"), (3, "tunnel")];
    let lab = Lab::up(PATHS.len());
    let before = PATHS.map(|(k, _)| apart_from_thing(&lab, k));
    cut(&lab, 2, "output", BACK, "reject");
    cut(&lab, 3, "input", THERE, "reject");
    let payload = large(&lab, 1);
    let fleet = lab.fleet(&[1, 2, 3], payload.to_str().unwrap(), "");
    let flip = || {
        let mut bytes = std::fs::read(payload.join("payload")).unwrap();
        bytes[700_000] ^= 1;
        std::fs::write(payload.join("payload"), bytes).unwrap();
    };
    flip();
    let refused = deploy(&lab, &fleet);
    assert_eq!(refused.exit, 253, "{}", refused.all);
    for (k, path) in PATHS {
        let node = refused.node(&lab, k);
        let component = &node["components"][0];
        assert_eq!((&node["path"], &component["outcome"]), (&path.into(), &"failed".into()), "{node}");
        assert!(component["why"].as_str().unwrap().contains("the payload is corrupt"), "{component}");
        assert_eq!(lab.on_node(k, "ls /var/lib/thing 2>/dev/null"), "", "{path}");
    }
    flip();
    let done = deploy(&lab, &fleet);
    for (k, path) in PATHS {
        assert_path(&done, &lab, k, path, "");
        if k > 1 {
            mend(&lab, k);
        }
        assert_eq!(apart_from_thing(&lab, k), before[k - 1], "{path}");
    }
}

/// 12 MiB at 4 MiB a second, cut after the first of them.
fn cut_in_the_middle(cuts: &[(&str, &str)], verdict: &str, path: &str, why: &str) {
    let lab = Lab::up(1);
    let before = apart_from_thing(&lab, 1);
    let payload = large(&lab, 12);
    let fleet = lab.fleet(&[1], payload.to_str().unwrap(), "bandwidth_max = 4_194_304");
    let done = deploy_and(&lab, &fleet, 4, || {
        for (hook, matches) in cuts {
            cut(&lab, 1, hook, matches, verdict);
        }
    });
    assert_path(&done, &lab, 1, path, why);
    let (bytes, resumes) = sent(&done, &lab, 1);
    assert_eq!(bytes, std::fs::metadata(payload.join("payload")).unwrap().len(), "sent twice: {}", done.all);
    assert!(resumes > 0, "{}", done.all);
    mend(&lab, 1);
    assert_eq!(apart_from_thing(&lab, 1), before);
}

#[test]
fn a_way_back_that_is_dropped_in_the_middle_goes_on_as_push() {
    cut_in_the_middle(&[("output", BACK)], "drop", "push", "return traffic lost");
}

#[test]
fn a_way_back_that_is_rejected_in_the_middle_goes_on_as_push() {
    cut_in_the_middle(&[("output", BACK)], "reject with tcp reset", "push", "return traffic lost");
}

#[test]
fn a_port_and_a_way_back_that_are_dropped_in_the_middle_go_on_as_tunnel() {
    cut_in_the_middle(&[("output", BACK), ("input", THERE)], "drop", "tunnel", "answers no more");
}

#[test]
fn a_port_and_a_way_back_that_are_rejected_in_the_middle_go_on_as_tunnel() {
    let cuts = [("output", BACK), ("input", THERE)];
    cut_in_the_middle(&cuts, "reject with tcp reset", "tunnel", "answers no more");
}

#[test]
fn a_push_whose_port_is_cut_in_the_middle_goes_on_as_tunnel_at_the_byte() {
    let lab = Lab::up(2);
    let before = [apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)];
    let payload = large(&lab, 12);
    for k in [1, 2] {
        cut(&lab, k, "output", BACK, "reject");
    }
    let fleet = lab.fleet(&[1, 2], payload.to_str().unwrap(), "bandwidth_max = 8_388_608");
    let done = deploy_and(&lab, &fleet, 6, || {
        for (k, verdict) in [(1, "drop"), (2, "reject with tcp reset")] {
            let chain = "nft 'add chain inet cut input { type filter hook input priority -10; }'";
            lab.on_node(k, &format!("{chain}; nft add rule inet cut input {THERE} {verdict}"));
        }
    });
    for k in [1, 2] {
        assert_path(&done, &lab, k, "tunnel", "answers no more");
        let size = std::fs::metadata(payload.join("payload")).unwrap().len();
        let (bytes, resumes) = sent(&done, &lab, k);
        assert!(bytes == size && resumes > 0, "{bytes} of {size}, {resumes}: {}", done.all);
        mend(&lab, k);
    }
    assert_eq!([apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)], before);
}

#[test]
fn a_cable_that_is_pulled_for_a_while_is_no_failure() {
    let lab = Lab::up(2);
    let before = [apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)];
    let payload = large(&lab, 12);
    let fleet = lab.fleet(&[1, 2], payload.to_str().unwrap(), "bandwidth_max = 8_388_608");
    let pull = |k: usize, seconds: u32| {
        let script = format!("ip link set v{k} down; sleep {seconds}; ip link set v{k} up");
        lab.hub_command("sh").args(["-c", &script]).spawn().unwrap()
    };
    let mut cables = Vec::new();
    let done = deploy_and(&lab, &fleet, 6, || cables.extend([pull(1, 1), pull(2, 30)]));
    for (k, mut cable) in [1, 2].into_iter().zip(cables) {
        cable.wait().unwrap();
        assert_eq!(done.node(&lab, k)["components"][0]["outcome"], "updated", "{}", done.all);
        let size = std::fs::metadata(payload.join("payload")).unwrap().len();
        assert_eq!(sent(&done, &lab, k).0, size);
    }
    assert_eq!(done.exit, 0);
    assert_eq!([apart_from_thing(&lab, 1), apart_from_thing(&lab, 2)], before);
}

/// Bytes that have gone to a node, by the counter of its cable.
fn bytes_to(lab: &Lab, k: usize) -> u64 {
    let output =
        lab.hub_command("ip").args(["-json", "-stats", "link", "show", &format!("v{k}")]).output().unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap_or_else(|| panic!("{links}"))
}

/// 24 MiB at 2 MiB a second, cancelled on its way; the next component is brought all the same.
fn a_cancelled_component_is_not_sent_any_more(path: &str) {
    const MEBIBYTE: u64 = 1024 * 1024;
    let lab = Lab::up(1);
    let mut large = Thing::new("thing", "echo 2.0 > /var/lib/thing\nexit 0\n");
    let mut state = 1_u64;
    while (large.payload.len() as u64) < 24 * MEBIBYTE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        large.payload.extend_from_slice(&state.to_le_bytes()[2..]);
    }
    let small = Thing::new("thing2", "echo 2.0 > /var/lib/thing2\n");
    let baseline = operator::baseline(&lab, "two", &[large, small]);
    if path == "push" {
        cut(&lab, 1, "output", BACK, "reject");
    }
    let fleet = lab.fleet(&[1], baseline.to_str().unwrap(), "bandwidth_max = 2_097_152");
    let mut aborted = None;
    let done = deploy_watched(&lab, &fleet, |event| {
        let on_its_way = event["bytes"]["done"].as_u64().is_some_and(|done| done > 0);
        if on_its_way && aborted.is_none() {
            let id = event["deployment"].as_str().unwrap();
            let abort = operator::run(&mut lab.carena(&["abort", id, "--component", "thing"]));
            assert_eq!(abort.exit, 0, "{}", abort.all);
            aborted = Some((bytes_to(&lab, 1), std::time::Instant::now()));
        }
        None
    });
    let (bytes, since) = aborted.expect("the payload was never on its way");
    let more = bytes_to(&lab, 1) - bytes;
    assert_eq!(done.node(&lab, 1)["path"], path, "{}", done.all);
    assert_eq!(done.outcomes(&lab, 1), ["skipped", "updated"], "{}", done.all);
    assert_eq!(done.node(&lab, 1)["components"][0]["why"], "cancelled by the operator");
    assert_eq!(done.node(&lab, 1)["result"], "cancelled");
    // The rest would be 22 MiB: what was on its way and everything else of the cycle is far less.
    assert!(more < 4 * MEBIBYTE, "{more} bytes after the cancel, in {:?}", since.elapsed());
    assert_eq!(lab.on_node(1, "ls /var/lib/thing 2>/dev/null"), "");
}

#[test]
fn a_component_that_is_cancelled_is_not_fetched_any_more() {
    a_cancelled_component_is_not_sent_any_more("direct");
}

#[test]
fn a_component_that_is_cancelled_is_not_pushed_any_more() {
    a_cancelled_component_is_not_sent_any_more("push");
}

/// `net.ipv6.bindv6only` is set by whoever hardens a machine: engine and box are reached by IPv4 all the same.
#[test]
fn ipv4_is_taken_where_ipv6_sockets_are_for_ipv6_alone() {
    const ALONE: &str = "echo 1 > /proc/sys/net/ipv6/bindv6only && cat /proc/sys/net/ipv6/bindv6only";
    let lab = Lab::up(2);
    assert_eq!(lab.on_node(2, ALONE), "1\n");
    let here = lab.hub_command("sh").args(["-c", ALONE]).output().unwrap();
    assert_eq!(here.stdout, b"1\n");
    let baseline = large(&lab, 1);
    let nodes = [(2, "10.202.1.2".to_owned())];
    let done = deploy(&lab, &lab.fleet_at("v4.toml", &nodes, baseline.to_str().unwrap(), ""));
    assert_eq!(done.exit, 0, "{}", done.all);
    assert_eq!(done.summary["nodes"]["10.202.1.2"]["path"], "direct", "{}", done.all);
}
