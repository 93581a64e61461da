//! A deployment whose box is killed goes on where it was when it is started again, under its own id; no installer
//! runs twice, and no node is left with a trace.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::deployment::{Run, baseline_of, deploy, deploy_watched, run};
use crate::lab::Lab;
use crate::operator::{Thing, baseline, is};

/// Counts its runs, and takes its time.
const SLOW: &str =
    "echo run >> /var/lib/thing-runs\nfor i in 1 2 3 4 5 6; do sleep 0.5; done\necho 2.0 > /var/lib/thing";

fn apart_from_things(lab: &Lab, k: usize) -> String {
    let snapshot = lab.snapshot(k);
    snapshot
        .lines()
        .filter(|line| !line.starts_with("/var/lib/thing"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Kills the command line at an event, and starts it again. Both nodes are updated and as they were found.
fn killed_at(options: &str, at: impl Fn(&Value) -> bool) -> (Lab, Run, Run) {
    let lab = Lab::up(2);
    let before = [apart_from_things(&lab, 1), apart_from_things(&lab, 2)];
    let payload = baseline_of(&lab, "slow", SLOW, 2 * 1024 * 1024);
    let fleet = lab.fleet(&[1, 2], payload.to_str().unwrap(), options);
    let mut met = false;
    let killed = deploy_watched(&lab, &fleet, |event| {
        let now = !met && at(event);
        met |= now;
        now.then_some(Signal::SIGKILL)
    });
    assert!(met, "never met: {}", killed.all);
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}\n{}", killed.all, done.all);
    let id = |run: &Run| {
        let first: Value = serde_json::from_str(run.all.lines().next().unwrap()).unwrap();
        first["deployment"].as_str().unwrap().to_owned()
    };
    assert_eq!(id(&killed), id(&done));
    for k in [1, 2] {
        assert_eq!(done.component(&lab, k)["outcome"], "updated", "node {k}: {}", done.all);
        assert_eq!(lab.on_node(k, "cat /var/lib/thing-runs"), "run\n", "node {k}: {}", done.all);
        assert_eq!(lab.on_node(k, "cat /var/lib/thing"), "2.0\n");
    }
    assert_eq!([apart_from_things(&lab, 1), apart_from_things(&lab, 2)], before);
    // It has ended: the next one is another.
    let next = deploy(&lab, &fleet);
    assert_eq!(next.exit, 3, "{}", next.all);
    assert_ne!(id(&next), id(&done));
    (lab, killed, done)
}

#[test]
fn killed_while_copying_the_nodes_begin_anew() {
    killed_at("", |event| event["step"] == "copy");
}

#[test]
fn killed_while_sending_the_transfer_goes_on() {
    let options = "bandwidth_max = 1_048_576";
    let (_, _, done) =
        killed_at(options, |event| event["bytes"]["done"].as_u64().is_some_and(|done| done > 0));
    assert!(done.all.contains("the engine still runs"), "{}", done.all);
}

#[test]
fn killed_while_installing_the_installer_runs_once() {
    let (_, _, done) = killed_at("", |event| event["step"] == "install" && event["state"] == "progress");
    assert!(done.all.contains("the engine still runs"), "{}", done.all);
    assert!(!done.all.contains("\"step\":\"copy\""), "{}", done.all);
}

#[test]
fn killed_while_installing_inside_ssh_the_installer_runs_once() {
    let options = "open_firewall = \"no\"";
    let (lab, _, done) =
        killed_at(options, |event| event["step"] == "install" && event["state"] == "progress");
    assert_eq!(done.node(&lab, 1)["path"], "tunnel");
}

#[test]
fn killed_while_verifying_the_result_is_heard_again() {
    killed_at("", |event| event["step"] == "verify");
}

#[test]
fn killed_while_taking_back_the_result_stands() {
    killed_at("", |event| event["step"] == "stop");
}

#[test]
fn another_fleet_takes_the_old_one_back_first_and_keys_are_in_no_database() {
    let lab = Lab::up(2);
    let before = [apart_from_things(&lab, 1), apart_from_things(&lab, 2)];
    let payload = baseline_of(&lab, "slow", SLOW, 0);
    let mut met = false;
    let fleet = lab.fleet(&[1, 2], payload.to_str().unwrap(), "");
    deploy_watched(&lab, &fleet, |event| {
        let now = !met && event["step"] == "send";
        met |= now;
        now.then_some(Signal::SIGKILL)
    });
    let state = lab.dir().join("state");
    let grep =
        std::process::Command::new("grep").arg("-rqa").arg("PRIVATE KEY").arg(&state).status().unwrap();
    assert_eq!(grep.code(), Some(1), "a key is in {}", state.display());
    let other = deploy(&lab, &lab.fleet(&[1, 2], "demo", ""));
    assert_eq!(other.exit, 0, "{}", other.all);
    let left = |k| {
        apart_from_things(&lab, k)
            .lines()
            .filter(|line| !line.contains("carena-demo"))
            .collect::<Vec<_>>()
            .join("\n")
            + "\n"
    };
    assert_eq!([left(1), left(2)], before);
}

/// Cancels a part at node 1's first sign of an installation, kills the command line as soon as that is acknowledged,
/// and starts it again: it goes on, and has not forgotten.
fn killed_after_a_cancel(options: &str, part: impl Fn(&Lab) -> Vec<String>) -> (Lab, Run) {
    let lab = Lab::up(2);
    let before = [apart_from_things(&lab, 1), apart_from_things(&lab, 2)];
    let things = [
        Thing::new("thing", &format!("{SLOW}\nexit 0\n")),
        Thing::new("thing-two", "echo 2.0 > /var/lib/thing-two\n"),
    ];
    let path = baseline(&lab, "two", &things);
    let fleet = lab.fleet(&[1, 2], path.to_str().unwrap(), options);
    let mut met = false;
    let killed = deploy_watched(&lab, &fleet, |event| {
        let now = is(event, "install", "progress") && event["node"] == *lab.node_address(1);
        if !now || std::mem::replace(&mut met, true) {
            return None;
        }
        let mut abort = vec!["abort".to_owned(), event["deployment"].as_str().unwrap().to_owned()];
        abort.extend(part(&lab));
        let abort = run(&mut lab.carena(&abort.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(abort.exit, 0, "{}", abort.all);
        Some(Signal::SIGKILL)
    });
    assert!(met, "never met: {}", killed.all);
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}\n{}", killed.all, done.all);
    assert_eq!(done.id(), killed.events[0]["deployment"].as_str().unwrap());
    for k in [1, 2] {
        let runs = lab.on_node(k, "cat /var/lib/thing-runs 2>/dev/null");
        assert!(runs.lines().count() <= 1, "node {k}: {}", done.all);
    }
    assert_eq!([apart_from_things(&lab, 1), apart_from_things(&lab, 2)], before);
    (lab, done)
}

#[test]
fn a_cancelled_node_stays_cancelled_when_the_box_dies_and_its_flash_is_heard_to_its_end() {
    let node = |lab: &Lab| vec!["--node".to_owned(), lab.node_address(1)];
    let (lab, done) = killed_after_a_cancel("", node);
    assert_eq!(done.node(&lab, 1)["result"], "cancelled", "{}", done.all);
    assert_eq!(done.outcomes(&lab, 1), ["updated", "skipped"], "{}", done.all);
    assert_eq!(done.node(&lab, 1)["components"][1]["why"], "cancelled by the operator");
    assert_eq!(done.node(&lab, 2)["result"], "done", "{}", done.all);
    assert_eq!(done.outcomes(&lab, 2), ["updated", "updated"], "{}", done.all);
}

#[test]
fn a_node_that_was_cancelled_while_it_waited_never_begins_after_the_box_died() {
    let node = |lab: &Lab| vec!["--node".to_owned(), lab.node_address(2)];
    let (lab, done) = killed_after_a_cancel("parallel = 1", node);
    assert_eq!(done.outcomes(&lab, 1), ["updated", "updated"], "{}", done.all);
    assert_eq!(done.node(&lab, 2)["result"], "skipped");
    assert_eq!(done.node(&lab, 2)["error"], "cancelled by the operator");
    assert_eq!(lab.on_node(2, "ls /var/lib/thing 2>/dev/null"), "");
}

#[test]
fn a_cancelled_component_stays_cancelled_when_the_box_dies() {
    let component = |_: &Lab| vec!["--component".to_owned(), "thing-two".to_owned()];
    let (lab, done) = killed_after_a_cancel("", component);
    for k in [1, 2] {
        assert_eq!(done.outcomes(&lab, k), ["updated", "skipped"], "{}", done.all);
        assert_eq!(done.node(&lab, k)["result"], "cancelled");
        assert_eq!(lab.on_node(k, "ls /var/lib/thing-two 2>/dev/null"), "");
    }
}
