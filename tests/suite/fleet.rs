//! Many nodes under one will: waves, order, limits, dry runs, retries, and cancelling a part of it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::operator::{Running, Thing, baseline, besides, deploy, is, run};

/// Fails on nodes where `/var/lib/broken` is.
const MAY_FAIL: &str = "[ ! -e /var/lib/broken ] || exit 7; echo 2.0 > /var/lib/thing\n";

#[test]
fn a_failed_first_wave_keeps_the_others_untouched_and_a_retry_takes_up_what_is_not_done() {
    let lab = Lab::up(3);
    let path = baseline(&lab, "may-fail", &[Thing::new("thing", MAY_FAIL)]);
    lab.on_node(1, "touch /var/lib/broken");
    let fleet = lab.fleet(&[1, 2, 3], path.to_str().unwrap(), "waves = [1, \"rest\"]");
    let failed = deploy(&lab, &fleet);
    assert_eq!(failed.exit, 253, "{}", failed.all);
    assert_eq!(failed.node(&lab, 1)["result"], "failed");
    for k in [2, 3] {
        assert_eq!(failed.node(&lab, k)["result"], "skipped");
        assert_eq!(failed.node(&lab, k)["error"], "a node of an earlier wave failed");
        assert_eq!(lab.on_node(k, "cat /var/lib/thing"), "");
    }
    lab.on_node(1, "rm /var/lib/broken");
    // Without the fleet file: the store has it.
    let retried = run(&mut lab.carena(&["deploy", "--retry", failed.id(), "--json"]));
    assert_eq!(retried.exit, 0, "{}", retried.all);
    assert_eq!(retried.summary["retry_of"], failed.summary["deployment"]);
    assert!(retried.first(&lab, 1, "result", "done") < retried.first(&lab, 2, "connect", "started"));
    let nothing = run(&mut lab.carena(&["deploy", "--retry", retried.id()]));
    assert_eq!(nothing.exit, 254, "{}", nothing.all);
    assert!(nothing.stderr.contains("no node of deployment"), "{}", nothing.stderr);
}

#[test]
fn too_many_failures_stop_new_nodes_and_only_the_failed_are_retried() {
    let lab = Lab::up(3);
    let path = baseline(&lab, "may-fail", &[Thing::new("thing", MAY_FAIL)]);
    lab.on_node(2, "touch /var/lib/broken");
    let fleet = lab.fleet(&[1, 2, 3], path.to_str().unwrap(), "parallel = 1\nfailures_max = 1");
    let failed = deploy(&lab, &fleet);
    assert_eq!(failed.exit, 253, "{}", failed.all);
    let results: Vec<_> = [1, 2, 3].iter().map(|k| failed.node(&lab, *k)["result"].clone()).collect();
    assert_eq!(results, ["done", "failed", "skipped"]);
    assert_eq!(failed.node(&lab, 3)["error"], "1 nodes failed before (failures_max)");
    lab.on_node(2, "rm /var/lib/broken");
    let retried =
        run(&mut lab.carena(&["deploy", "--retry", failed.id(), fleet.to_str().unwrap(), "--json"]));
    assert_eq!(retried.exit, 0, "{}", retried.all);
    assert_eq!(retried.summary["nodes"].as_object().unwrap().len(), 2, "{}", retried.all);
}

#[test]
fn groups_come_in_order_and_a_cluster_is_never_down_twice() {
    let lab = Lab::up(3);
    let path = baseline(&lab, "plain", &[Thing::new("thing", "echo 2.0 > /var/lib/thing\n")]);
    let fleet = lab.fleet(&[1, 2, 3], path.to_str().unwrap(), "order = [\"first\"]");
    let mut text = std::fs::read_to_string(&fleet).unwrap();
    for (k, more) in [(1, "exclusive = \"pair\""), (2, "exclusive = \"pair\""), (3, "group = \"first\"")] {
        let address = format!("address = \"{}\"\n", lab.node_address(k));
        text = text.replace(&address, &format!("{address}{more}\n"));
    }
    std::fs::write(&fleet, text).unwrap();
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}", done.all);
    assert!(done.first(&lab, 3, "result", "done") < done.first(&lab, 1, "connect", "started"));
    assert!(done.first(&lab, 1, "result", "done") < done.first(&lab, 2, "connect", "started"));
}

#[test]
fn payloads_of_all_nodes_together_keep_to_the_bandwidth() {
    let lab = Lab::up(2);
    let mut thing = Thing::new("thing", "echo 2.0 > /var/lib/thing\nexit 0\n");
    thing.payload.resize(1_000_000, b'#');
    let path = baseline(&lab, "big", &[thing]);
    let options = "parallel = 2\nbandwidth_max = 1_000_000";
    let fleet = lab.fleet(&[1, 2], path.to_str().unwrap(), options);
    let (mut begun, mut ended) = (None, None);
    let done = Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|_, event| {
        if is(event, "send", "started") {
            begun.get_or_insert_with(Instant::now);
        }
        if is(event, "send", "done") {
            ended = Some(Instant::now());
        }
    });
    assert_eq!(done.exit, 0, "{}", done.all);
    let took = ended.unwrap() - begun.unwrap();
    assert!(took >= Duration::from_millis(1_850), "2 MB at 1 MB/s took {took:?}");
    assert!(took < Duration::from_secs(20), "the limit is one, not a block: {took:?}");
}

#[test]
fn a_dry_run_says_what_would_happen_and_why_and_changes_nothing() {
    let lab = Lab::up(2);
    let mut other = Thing::new("other", "exit 1\n");
    other.extra = "match = { os = \"plan9\" }";
    let mut second = Thing::new("second", "echo 2.0 > /var/lib/second\n");
    second.extra = "requires = [\"thing\"]";
    let thing = Thing::new("thing", "echo 2.0 > /var/lib/thing\n");
    let path = baseline(&lab, "mixed", &[thing, second, other]);
    lab.on_node(1, "echo 1.5 > /var/lib/thing; echo 2.1 > /var/lib/second");
    let fleet = lab.fleet(&[1, 2], path.to_str().unwrap(), "");
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let dry = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json", "--dry-run"]));
    assert_eq!(dry.exit, 0, "{}", dry.all);
    assert_eq!(dry.outcomes(&lab, 1), ["newer-installed", "not-applicable", "would-update"]);
    assert_eq!(dry.outcomes(&lab, 2), ["not-applicable", "would-update", "would-update"]);
    for said in ["1.5 is installed, 2.0 is newer", "nothing is installed, 2.0 would be", "plan9", "27 bytes"]
    {
        assert!(dry.all.contains(said), "{said} in {}", dry.all);
    }
    assert_eq!([lab.snapshot(1), lab.snapshot(2)], before);
    assert_eq!(lab.on_node(1, "cat /var/lib/thing"), "1.5\n");

    assert_eq!(deploy(&lab, &fleet).exit, 0);
    let settled = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--dry-run"]));
    assert_eq!(settled.exit, 3, "{}", settled.all);
    assert!(settled.all.contains("dry run: nothing was installed"), "{}", settled.all);
    assert!(settled.all.contains("2 nodes: 2 done (exit code 3)"), "{}", settled.all);
}

/// Two components, the first slow enough to be met while it runs.
fn slow_then_quick(lab: &Lab) -> std::path::PathBuf {
    let slow = "i=0; while [ $i -lt 40 ]; do sleep 0.05; i=$((i+1)); done; echo 2.0 > /var/lib/slow\n";
    let things = [Thing::new("slow", slow), Thing::new("quick", "echo 2.0 > /var/lib/quick\n")];
    baseline(lab, "two", &things)
}

/// Aborts with `more` when `k` begins to install, and compares the nodes with what they were.
fn abort_at_install(lab: &Lab, k: usize, more: &[&str]) -> crate::operator::Run {
    let fleet = lab.fleet(&[1, 2], slow_then_quick(lab).to_str().unwrap(), "");
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let mut aborted = false;
    let done = Running::start(lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|_, event| {
        if !aborted && is(event, "install", "started") && event["node"] == *lab.node_address(k) {
            aborted = true;
            let mut arguments = vec!["abort", event["deployment"].as_str().unwrap()];
            arguments.extend(more);
            let abort = run(&mut lab.carena(&arguments));
            assert_eq!(abort.exit, 0, "{}", abort.all);
            let unknown =
                run(&mut lab.carena(&["abort", event["deployment"].as_str().unwrap(), "--node", "::9"]));
            assert_eq!(unknown.exit, 254, "{}", unknown.all);
        }
    });
    for k in [1, 2] {
        assert_eq!(besides(&lab.snapshot(k), &["slow", "quick"]), before[k - 1], "node {k}");
    }
    done
}

#[test]
fn one_node_is_cancelled_its_flash_finishes_and_the_others_go_on() {
    let lab = Lab::up(2);
    let done = abort_at_install(&lab, 1, &["--node", &lab.node_address(1)]);
    assert_eq!(done.exit, 253, "{}", done.all);
    assert_eq!(done.node(&lab, 1)["result"], "cancelled");
    assert_eq!(done.outcomes(&lab, 1), ["updated", "skipped"]);
    assert_eq!(lab.on_node(1, "cat /var/lib/slow /var/lib/quick"), "2.0\n");
    assert_eq!(done.outcomes(&lab, 2), ["updated", "updated"]);
    let nobody = run(&mut lab.carena(&["abort", done.id()]));
    assert_eq!(nobody.exit, 254);
    assert!(nobody.stderr.contains("no carena answers"), "{}", nobody.stderr);
}

#[test]
fn one_component_is_cancelled_on_every_node_and_the_rest_is_done() {
    let lab = Lab::up(2);
    let done = abort_at_install(&lab, 2, &["--component", "quick"]);
    assert_eq!(done.exit, 253, "{}", done.all);
    for k in [1, 2] {
        assert_eq!(done.outcomes(&lab, k), ["updated", "skipped"]);
        assert_eq!(done.node(&lab, k)["components"][1]["why"], "cancelled by the operator");
        assert_eq!(done.node(&lab, k)["result"], "cancelled");
    }
}

#[test]
fn a_component_that_is_cancelled_while_it_is_written_is_written_to_its_end() {
    let lab = Lab::up(2);
    let done = abort_at_install(&lab, 2, &["--node", &lab.node_address(2), "--component", "slow"]);
    assert_eq!(done.exit, 0, "{}", done.all);
    for k in [1, 2] {
        assert_eq!(done.outcomes(&lab, k), ["updated", "updated"], "{}", done.all);
    }
}

#[test]
fn a_second_ctrl_c_says_what_is_waited_for_and_breaks_nothing() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[1, 2], slow_then_quick(&lab).to_str().unwrap(), "");
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let mut pressed = 0;
    let done =
        Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
            // At the beginning of an installation, and again while it still runs.
            let now =
                if pressed == 0 { is(event, "install", "started") } else { is(event, "install", "progress") };
            if pressed < 2 && now {
                pressed += 1;
                running.signal(Signal::SIGINT);
            }
        });
    assert_eq!(done.exit, 253, "{}", done.all);
    assert!(done.stderr.contains("still cancelling; nothing new starts"), "{}", done.stderr);
    assert!(done.stderr.contains(": install since "), "{}", done.stderr);
    for k in [1, 2] {
        assert_eq!(besides(&lab.snapshot(k), &["slow", "quick"]), before[k - 1], "node {k}");
        assert_eq!(lab.on_node(k, "ls /var/lib/quick 2>/dev/null"), "");
    }
}

#[test]
fn a_lost_terminal_does_not_end_a_deployment() {
    let lab = Lab::up(1);
    let fleet = lab.fleet(&[1], slow_then_quick(&lab).to_str().unwrap(), "");
    let mut gone = false;
    let done =
        Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
            if is(event, "install", "started") && !std::mem::replace(&mut gone, true) {
                running.signal(Signal::SIGHUP);
            }
        });
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated", "updated"]), "{}", done.all);
    assert!(done.stderr.contains("the terminal is gone, the deployment goes on"), "{}", done.stderr);
}

#[test]
fn what_was_under_way_when_the_box_died_is_retried() {
    let lab = Lab::up(2);
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let fleet = lab.fleet(&[1, 2], slow_then_quick(&lab).to_str().unwrap(), "parallel = 1");
    let mut id = String::new();
    Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
        if is(event, "install", "started") {
            id = event["deployment"].as_str().unwrap().to_owned();
            running.signal(Signal::SIGKILL);
        }
    });
    let retried = run(&mut lab.carena(&["deploy", "--retry", &id, "--json"]));
    assert_eq!(retried.exit, 0, "{}", retried.all);
    assert_eq!(retried.outcomes(&lab, 2), ["updated", "updated"]);
    for k in [1, 2] {
        assert_eq!(lab.on_node(k, "cat /var/lib/slow /var/lib/quick"), "2.0\n2.0\n");
        assert_eq!(besides(&lab.snapshot(k), &["slow", "quick"]), before[k - 1], "node {k}");
    }
}

#[test]
fn a_service_is_reached_by_abort_too() {
    let lab = Lab::up(1);
    let mut serve = lab.carena(&["serve"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let socket = lab.dir().join("state/control");
    let end = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < end, "no socket in the state directory");
        std::thread::sleep(Duration::from_millis(50));
    }
    let refused = run(&mut lab.carena(&["abort", "0190-none"]));
    serve.kill().unwrap();
    serve.wait().unwrap();
    assert_eq!(refused.exit, 254, "{}", refused.all);
    assert!(refused.stderr.contains("no deployment 0190-none runs here (nothing runs)"), "{}", refused.all);
}
