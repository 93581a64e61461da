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

/// Firmware that leads from one version to the next only, each active after a restart, like many a BIOS. What is
/// installed is `.new` until the node boots; the installer refuses anything but the version it follows.
const ACTIVE: &str = "p=/var/lib/bios; b=/proc/sys/kernel/random/boot_id; \
    if [ -e $p.new ] && ! cmp -s $p.boot $b; then cat $p.new; else cat $p; fi";
const CHAIN: [(&str, &str); 3] = [("1.39", "1.40"), ("1.40", "1.50"), ("1.50", "2.0")];

/// The chain's baseline, on nodes that have its first version.
fn chain(lab: &Lab, nodes: &[usize], options: &str) -> std::path::PathBuf {
    let mut things = Vec::new();
    for ((from, to), (id, extra)) in CHAIN.iter().zip([
        ("step", ""),
        ("step2", "requires = [\"step\"]"),
        ("last", "requires = [\"step2\"]"),
    ]) {
        let script = format!(
            "echo {to} >> /var/lib/bios-runs\nnow=$({ACTIVE})\n[ \"$now\" = {from} ] || exit 7\n\
             p=/var/lib/bios; b=/proc/sys/kernel/random/boot_id\n\
             for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done\n\
             echo $now > $p; echo {to} > $p.new; cat $b > $p.boot; exit 10\n"
        );
        let read_back = format!("{{ command = [\"/bin/sh\", \"-c\", {ACTIVE:?}] }}");
        things.push(Thing { read_back, extra, ..Thing::new(id, &script) });
    }
    let path = baseline(lab, "chain", &things);
    let manifest = path.join("baseline.toml");
    let mut text = std::fs::read_to_string(&manifest).unwrap();
    for (_, to) in CHAIN {
        text = text.replacen("version = \"2.0\"\nformat", &format!("version = \"{to}\"\n format"), 1);
    }
    std::fs::write(&manifest, text).unwrap();
    for k in nodes {
        lab.on_node(*k, "echo 1.39 > /var/lib/bios");
    }
    lab.fleet(nodes, path.to_str().unwrap(), options)
}

/// What the node has apart from the chain's own; the root's overlay is mounted under another name after a restart.
fn apart_from_chain(lab: &Lab, k: usize) -> String {
    let lines = besides(&lab.snapshot(k), &["bios"]);
    lines.lines().filter(|line| !line.starts_with("overlay / ")).map(|line| format!("{line}\n")).collect()
}

fn restarts(run: &Run) -> usize {
    run.events.iter().filter(|event| is(event, "reboot", "done")).count()
}

#[test]
fn a_chain_of_prerequisites_is_gone_in_hops_with_a_restart_between() {
    let lab = Lab::up(2);
    let fleet = chain(&lab, &[1, 2], "");
    let before = [apart_from_chain(&lab, 1), apart_from_chain(&lab, 2)];
    let dry = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json", "--dry-run"]));
    assert_eq!(dry.outcomes(&lab, 1), ["would-update"; 3], "{}", dry.all);
    for said in
        ["3 of 3 components, in 3 hops", "in hop 2, once step is active", "in hop 3, once step2 is active"]
    {
        assert!(dry.all.contains(said), "{said} in {}", dry.all);
    }
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}", done.all);
    assert_eq!(restarts(&done), 6, "{}", done.all);
    for k in [1, 2] {
        assert_eq!(done.outcomes(&lab, k), ["updated"; 3], "{}", done.all);
        let components = done.node(&lab, k)["components"].as_array().unwrap();
        for (component, (from, to)) in components.iter().zip(CHAIN) {
            assert_eq!((&component["from"], &component["to"]), (&from.into(), &to.into()), "{component}");
        }
        assert_eq!(lab.on_node(k, "cat /var/lib/bios-runs"), "1.40\n1.50\n2.0\n");
        assert_eq!(apart_from_chain(&lab, k), before[k - 1], "node {k}");
    }
    let again = deploy(&lab, &fleet);
    assert_eq!(
        (again.exit, again.outcomes(&lab, 1)),
        (3, vec!["newer-installed", "newer-installed", "current"])
    );
}

#[test]
fn without_permission_to_restart_a_chain_says_what_is_needed_and_the_next_run_goes_on() {
    let lab = Lab::up(1);
    let fleet = chain(&lab, &[1], "reboot = \"never\"");
    let first = deploy(&lab, &fleet);
    assert_eq!(first.outcomes(&lab, 1), ["updated-reboot-needed", "skipped", "skipped"], "{}", first.all);
    assert_eq!(first.exit, 1, "{}", first.all);
    let why = first.node(&lab, 1)["components"][1]["why"].as_str().unwrap();
    assert!(why.contains("needs step active first: restart the node and deploy again"), "{why}");
    lab.restart(1);
    let second = deploy(&lab, &fleet);
    assert_eq!(second.outcomes(&lab, 1), ["current", "updated-reboot-needed", "skipped"], "{}", second.all);
}

#[test]
fn a_node_that_does_not_come_back_in_the_middle_of_a_chain_ends_there() {
    let lab = Lab::up(1);
    let fleet = chain(&lab, &[1], "reboot_wait_s = 20");
    let off = lab.dir().join("node1.off");
    // It comes back the first time; the second time it stays away.
    let done = Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|_, event| {
        if is(event, "return", "done") {
            std::fs::write(&off, "").unwrap();
        }
    });
    std::fs::remove_file(&off).unwrap();
    assert_eq!(done.exit, 253, "{}", done.all);
    assert_eq!(done.outcomes(&lab, 1), ["updated", "unverified", "skipped"], "{}", done.all);
    let error = done.node(&lab, 1)["error"].as_str().unwrap();
    assert!(error.contains("is not back after"), "{error}");
    assert_eq!(done.node(&lab, 1)["outstanding_traces"].as_array().unwrap().len(), 0);
    lab.wait_for_node(1, Duration::from_secs(30));
    let rest = run(&mut lab.carena(&["deploy", "--retry", done.id(), "--json"]));
    assert_eq!(rest.exit, 0, "{}", rest.all);
    assert_eq!(rest.outcomes(&lab, 1), ["newer-installed", "current", "updated"], "{}", rest.all);
}

/// Kills the command line at the `count`th such event and starts it again: it goes on in the right hop.
fn killed_in_a_chain(step: &str, state: &str, count: usize) {
    let lab = Lab::up(1);
    let fleet = chain(&lab, &[1], "");
    let before = apart_from_chain(&lab, 1);
    let mut met = 0;
    let killed =
        Running::start(&lab, &["deploy", fleet.to_str().unwrap(), "--json"]).watch(|running, event| {
            met += usize::from(is(event, step, state));
            if met == count {
                running.signal(nix::sys::signal::Signal::SIGKILL);
            }
        });
    assert!(met >= count, "never met: {}", killed.all);
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}\n{}", killed.all, done.all);
    assert_eq!(done.outcomes(&lab, 1), ["updated"; 3], "{}\n{}", killed.all, done.all);
    assert_eq!(restarts(&killed) + restarts(&done), 3, "{}\n{}", killed.all, done.all);
    assert_eq!(lab.on_node(1, "cat /var/lib/bios-runs"), "1.40\n1.50\n2.0\n", "{}", done.all);
    assert_eq!(apart_from_chain(&lab, 1), before);
}

#[test]
fn killed_when_the_node_was_told_to_restart_it_is_not_restarted_twice() {
    killed_in_a_chain("reboot", "done", 1);
}

#[test]
fn killed_before_a_restart_it_is_made() {
    killed_in_a_chain("disconnect", "done", 1);
}

#[test]
fn killed_when_the_node_is_back_the_second_hop_begins() {
    killed_in_a_chain("return", "done", 1);
}

#[test]
fn killed_on_the_second_way_in_the_second_hop_begins_again() {
    killed_in_a_chain("copy", "started", 2);
}

#[test]
fn killed_while_the_second_hop_installs_the_installer_runs_once() {
    killed_in_a_chain("install", "progress", 2);
}

#[test]
fn killed_while_the_second_hop_is_taken_back_the_third_follows() {
    killed_in_a_chain("stop", "started", 2);
}
