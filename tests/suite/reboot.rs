//! Restarts between installing and verifying, of nodes that really stop and start.

use std::time::Duration;

use crate::lab::Lab;
use crate::operator::{Run, Running, Thing, baseline, besides, deploy, is, run};

fn boot_id(lab: &Lab, k: usize) -> String {
    lab.on_node(k, "cat /proc/sys/kernel/random/boot_id")
}

fn fleet(lab: &Lab, nodes: &[usize], options: &str) -> std::path::PathBuf {
    let path = baseline(lab, "restarting", &[Thing::after_restart("bios")]);
    lab.fleet(nodes, path.to_str().unwrap(), options)
}

#[test]
fn nodes_are_restarted_their_active_version_is_read_and_nothing_is_left() {
    let lab = Lab::up(2);
    // `wall` of the nodes, to hear what users are told.
    for k in [1, 2] {
        lab.on_node(k, "printf \"#!/bin/sh\\ncat > /var/lib/told\\n\" > /usr/bin/wall");
    }
    // The kernel names the root's overlay another way when it is mounted a second time.
    let settled = |k| -> String {
        let lines = besides(&lab.snapshot(k), &["bios", "told"]);
        lines.lines().filter(|line| !line.starts_with("overlay / ")).map(|line| format!("{line}\n")).collect()
    };
    let before = [settled(1), settled(2)];
    let boots = [boot_id(&lab, 1), boot_id(&lab, 2)];
    let done = deploy(&lab, &fleet(&lab, &[1, 2], "reboot_message = \"Save your work\"\nreboot_delay_s = 1"));
    assert_eq!(done.exit, 0, "{}", done.all);
    for k in [1, 2] {
        assert_eq!(done.outcomes(&lab, k), ["updated"]);
        assert_eq!(done.node(&lab, k)["components"][0]["to"], "2.0");
        assert_ne!(boot_id(&lab, k), boots[k - 1]);
        assert_eq!(lab.on_node(k, "cat /var/lib/told"), "Save your work (in 1 s).\n");
        assert_eq!(settled(k), before[k - 1], "node {k}");
        assert!(done.first(&lab, k, "disconnect", "done") < done.first(&lab, k, "reboot", "started"));
        assert!(done.first(&lab, k, "return", "done") < done.events.len());
    }
}

#[test]
fn without_permission_the_need_is_reported_and_with_always_it_is_done_in_any_case() {
    let lab = Lab::up(2);
    let boot = boot_id(&lab, 1);
    let never = deploy(&lab, &fleet(&lab, &[1], "reboot = \"never\""));
    assert_eq!((never.exit, never.outcomes(&lab, 1)), (1, vec!["updated-reboot-needed"]), "{}", never.all);
    assert_eq!(boot_id(&lab, 1), boot);
    let boot = boot_id(&lab, 2);
    let plain = baseline(&lab, "plain", &[Thing::new("thing", "echo 2.0 > /var/lib/thing\n")]);
    let always = deploy(&lab, &lab.fleet(&[2], plain.to_str().unwrap(), "reboot = \"always\""));
    assert_eq!((always.exit, always.outcomes(&lab, 2)), (0, vec!["updated"]), "{}", always.all);
    assert_ne!(boot_id(&lab, 2), boot);
}

#[test]
fn a_failed_component_keeps_the_node_up() {
    let lab = Lab::up(1);
    let path = baseline(&lab, "half", &[Thing::after_restart("bios"), Thing::new("bad", "exit 7\n")]);
    let boot = boot_id(&lab, 1);
    let done = deploy(&lab, &lab.fleet(&[1], path.to_str().unwrap(), ""));
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (253, vec!["updated-reboot-needed", "failed"]));
    assert!(done.all.contains("not restarted, because not every component ended well"), "{}", done.all);
    assert_eq!(boot_id(&lab, 1), boot);
}

#[test]
fn a_node_that_does_not_come_back_is_a_failure_that_says_since_when() {
    let lab = Lab::up(1);
    let fleet = fleet(&lab, &[1], "reboot_wait_s = 10");
    std::fs::write(lab.dir().join("node1.off"), "").unwrap();
    let done = deploy(&lab, &fleet);
    std::fs::remove_file(lab.dir().join("node1.off")).unwrap();
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (253, vec!["unverified"]), "{}", done.all);
    let error = done.node(&lab, 1)["error"].as_str().unwrap();
    assert!(error.contains("return: the node was restarted at 20"), "{error}");
    assert!(error.contains("is not back after 1"), "{error}");
    // Nothing was left on it to be swept: it was clean before it went down.
    assert_eq!(done.node(&lab, 1)["outstanding_traces"].as_array().unwrap().len(), 0);
    lab.wait_for_node(1, Duration::from_secs(30));
    let later = run(&mut lab.carena(&["deploy", "--retry", done.id(), "--json"]));
    assert_eq!((later.exit, later.outcomes(&lab, 1)), (3, vec!["current"]), "{}", later.all);
}

/// Cancels at the first event of `step` with `state`.
fn cancel_at(lab: &Lab, options: &str, step: &str, state: &str) -> Run {
    let fleet = fleet(lab, &[1], options);
    let mut cancelled = false;
    Running::start(lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
        if is(event, step, state) && !std::mem::replace(&mut cancelled, true) {
            running.signal(nix::sys::signal::Signal::SIGINT);
        }
    })
}

#[test]
fn a_cancel_before_the_restart_prevents_it() {
    let lab = Lab::up(1);
    let boot = boot_id(&lab, 1);
    let done = cancel_at(&lab, "reboot_delay_s = 600", "reboot", "progress");
    assert_eq!(done.outcomes(&lab, 1), ["updated-reboot-needed"], "{}", done.all);
    assert_eq!((done.exit, &done.node(&lab, 1)["result"]), (253, &"cancelled".into()));
    assert_eq!(boot_id(&lab, 1), boot);
}

#[test]
fn a_cancel_while_the_node_restarts_ends_the_waiting_and_says_so() {
    let lab = Lab::up(1);
    std::fs::write(lab.dir().join("node1.off"), "").unwrap();
    let done = cancel_at(&lab, "reboot_wait_s = 600", "return", "started");
    assert_eq!(done.outcomes(&lab, 1), ["unverified"], "{}", done.all);
    assert_eq!(done.node(&lab, 1)["components"][0]["why"], "cancelled while the node restarted");
}
