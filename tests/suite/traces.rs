//! Traces that could not be taken back: listed, tried again, swept when the node is back; and undo run where it
//! could do harm: twice, after a restart, against what is not ours.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::operator::{Run, Running, Thing, baseline, besides, deploy, is, run, sweep};

/// Waits on the node for a file, so that the test decides how long it runs; about three minutes at most.
const HELD: &str = "i=0; while [ ! -e /var/lib/thing-go ] && [ $i -lt 3600 ]; do sleep 0.05; i=$((i+1)); done
echo 2.0 > /var/lib/thing\n";

/// Pulls node 1's cable when its port is opened, and freezes its engine, so that it cannot take itself away. Only the
/// engine: an installer that is just being started still has its name.
fn cut(lab: &Lab) {
    lab.on_node(1, "pkill -STOP -o carena-engine");
    lab.link(1, "down");
}

const OPTIONS: &str = "lease_s = 10\nopen_firewall = \"yes\"";

#[test]
fn a_lost_node_is_listed_and_swept_when_it_is_back() {
    let lab = Lab::up(1);
    let before = lab.snapshot(1);
    let path = baseline(&lab, "held", &[Thing::new("thing", HELD)]);
    let fleet = lab.fleet(&[1], path.to_str().unwrap(), OPTIONS);
    let lost = Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|_, event| {
        if is(event, "open", "started") {
            cut(&lab);
        }
    });
    assert_eq!(lost.exit, 253, "{}", lost.all);
    let traces = lost.node(&lab, 1)["outstanding_traces"].to_string();
    for trace in ["engine process of", "engine files in", "rule for port 62286"] {
        assert!(traces.contains(trace), "{trace} in {traces}");
    }
    let mut back = false;
    let swept = Running::start(&lab, &["sweep", "--json", "--wait", "200"]).watch(|_, trace| {
        if trace["outstanding"].is_string() && !std::mem::replace(&mut back, true) {
            // What was begun in spite of the cut may end; nothing is taken away under it.
            lab.on_node(1, "touch /var/lib/thing-go");
            lab.link(1, "up");
        }
    });
    assert_eq!(swept.exit, 0, "{}", swept.all);
    assert!(back, "it was never tried while the node was away: {}", swept.all);
    assert_eq!(besides(&lab.snapshot(1), &["thing"]), before);
    assert_eq!(sweep(&lab).exit, 3);
}

#[test]
fn a_process_that_lives_on_sweeps_by_itself_and_corrects_its_summary() {
    let lab = Lab::up(2);
    let before = lab.snapshot(1);
    let path = baseline(&lab, "held", &[Thing::new("thing", HELD)]);
    let fleet = lab.fleet(&[1, 2], path.to_str().unwrap(), OPTIONS);
    let first = lab.node_address(1);
    let mut gone = 0;
    let done = Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|_, event| {
        if event["node"] != *first {
            return;
        }
        if is(event, "open", "started") {
            cut(&lab);
        }
        if is(event, "result", "failed") {
            // What was begun in spite of the cut may end; nothing is taken away under it.
            lab.on_node(1, "touch /var/lib/thing-go");
            lab.link(1, "up");
        }
        if is(event, "recover", "undone") {
            gone += 1;
            if gone == 3 {
                assert_eq!(besides(&lab.snapshot(1), &["thing"]), before);
                lab.on_node(2, "touch /var/lib/thing-go");
            }
        }
    });
    assert_eq!(gone, 3, "{}", done.all);
    assert_eq!(done.node(&lab, 1)["outstanding_traces"].as_array().unwrap().len(), 0, "{}", done.all);
    assert_eq!(done.node(&lab, 2)["result"], "done");
    assert_eq!(done.exit, 253);
}

/// A box killed when its engine runs behind an open port: three traces, in a store that is copied.
fn killed(lab: &Lab) {
    let path = baseline(lab, "held", &[Thing::new("thing", HELD)]);
    let fleet = lab.fleet(&[1], path.to_str().unwrap(), "lease_s = 300\nopen_firewall = \"yes\"");
    let killed =
        Running::start(lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
            if is(event, "join", "done") {
                running.signal(Signal::SIGKILL);
            }
        });
    assert!(killed.summary.is_null(), "{}", killed.all);
    let copied =
        Command::new("cp").arg("-a").arg(lab.dir().join("state")).arg(lab.dir().join("copy")).status();
    assert!(copied.unwrap().success());
}

/// Sweeps with the copied store, which still lists everything.
fn sweep_again(lab: &Lab) -> Run {
    let state = lab.dir().join("copy");
    run(lab.hub_command(env!("CARGO_BIN_EXE_carena")).args(["sweep", "--json", "--state"]).arg(state))
}

#[test]
fn every_undo_can_be_run_twice() {
    let lab = Lab::up(1);
    let before = lab.snapshot(1);
    killed(&lab);
    for swept in [sweep(&lab), sweep_again(&lab)] {
        assert_eq!((swept.exit, swept.events.len()), (0, 3), "{}", swept.all);
        assert_eq!(lab.snapshot(1), before);
    }
}

#[test]
fn every_undo_can_be_run_after_the_node_was_restarted() {
    let lab = Lab::up(1);
    killed(&lab);
    lab.restart(1);
    assert!(lab.on_node(1, "ls /var/tmp").contains("carena-"), "the disk outlives the restart");
    let swept = sweep(&lab);
    assert_eq!((swept.exit, swept.events.len()), (0, 3), "{}", swept.all);
    assert_eq!(lab.on_node(1, "ls /var/tmp; ip6tables-save | grep carena; pgrep carena"), "");
}

#[test]
fn no_undo_touches_what_is_not_ours_under_the_same_name() {
    let lab = Lab::up(1);
    killed(&lab);
    // Another's rule on the same port, another's directory under our name, another's process under our number.
    lab.on_node(
        1,
        "ip6tables -I INPUT -p tcp --dport 62286 -s fd00:ca::1 -m comment --comment theirs -j ACCEPT
        cd /var/tmp/carena-*; kill -9 $(cut -d \" \" -f 1 pid)
        setsid sleep 600 >/dev/null 2>&1 & echo $! 1 > pid
        echo another > carena-deployment; echo precious > theirs",
    );
    let swept = sweep(&lab);
    assert_eq!(swept.exit, 253, "{}", swept.all);
    let still: Vec<_> = swept.events.iter().filter(|trace| trace["outstanding"].is_string()).collect();
    assert_eq!(still.len(), 1, "{}", swept.all);
    assert!(still[0]["trace"].as_str().unwrap().starts_with("engine files"), "{}", swept.all);
    assert_eq!(lab.on_node(1, "cat /var/tmp/carena-*/theirs"), "precious\n");
    assert_eq!(lab.on_node(1, "ps -e -o comm= | grep -c sleep"), "1\n");
    let rules = lab.on_node(1, "ip6tables-save");
    assert!(rules.contains("--comment theirs") && !rules.contains("carena:"), "{rules}");
}

#[test]
fn a_deployment_sweeps_what_an_earlier_one_left_before_it_begins() {
    let lab = Lab::up(1);
    let before = lab.snapshot(1);
    killed(&lab);
    let plain = baseline(&lab, "plain", &[Thing::new("thing", "echo 2.0 > /var/lib/thing\n")]);
    let done = deploy(&lab, &lab.fleet(&[1], plain.to_str().unwrap(), ""));
    assert_eq!(done.exit, 0, "{}", done.all);
    assert_eq!(besides(&lab.snapshot(1), &["thing"]), before);
}
