//! The recovery is killed as well: after a kill at each step of the cycle, every start that would take up or take back
//! what was left is killed in turn, each a bit further on, until one comes to its end. The node has then what the
//! baseline says, or what it had, and nothing else.
//!
//! Each step has a node and a store of its own, so that all of them share one lab.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::lab::{Lab, difference};
use crate::operator::{Run, Running, Thing, baseline, besides, run};
use crate::serve::{Serve, id};

const STEPS: [&str; 15] = [
    "connect",
    "look",
    "copy",
    "start",
    "open",
    "join",
    "inventory",
    "plan",
    "send",
    "install",
    "verify",
    "stop",
    "remove",
    "close",
    "disconnect",
];

/// More than the cycle and a recovery have steps together.
const STARTS_MAX: usize = 40;

/// Long enough to be met while it runs; once begun it is never interrupted.
const SLOW: &str =
    "echo run >> /var/lib/thing-runs; for i in 1 2 3 4; do sleep 0.2; done; echo 2.0 > /var/lib/thing\n";

/// One node, and the store of the box that is killed over and over.
struct Scene<'a> {
    lab: &'a Lab,
    k: usize,
    state: String,
    fleet: PathBuf,
    before: String,
}

impl<'a> Scene<'a> {
    fn set(lab: &'a Lab, k: usize, payload: &Path) -> Self {
        let nodes = [(k, lab.node_address(k))];
        // Opened in any case: a rule is a trace more.
        let options = "open_firewall = \"yes\"";
        let fleet = lab.fleet_at(&format!("fleet-{k}.toml"), &nodes, payload.to_str().unwrap(), options);
        Self { lab, k, state: format!("state-{k}"), fleet, before: lab.snapshot(k) }
    }

    /// A deployment that is killed when it begins the first step that is in `at`, and which step that was.
    fn deploy_killed(&self, at: impl Fn(&str) -> bool) -> (Run, Option<String>) {
        let mut met = None;
        let arguments = ["deploy", self.fleet.to_str().unwrap(), "--json"];
        let run = Running::spawn(&mut self.lab.carena_in(&self.state, &arguments)).watch(|running, event| {
            let step = event["step"].as_str().unwrap_or_default();
            if met.is_none() && event["state"] == "started" && at(step) {
                running.signal(Signal::SIGKILL);
                met = Some(step.to_owned());
            }
        });
        (run, met)
    }

    fn killed_at(&self, step: &str) {
        let (run, met) = self.deploy_killed(|begun| begun == step);
        assert!(met.is_some(), "{step} was never begun: {}", run.all);
    }

    fn sweep(&self) -> std::process::Command {
        self.lab.carena_in(&self.state, &["sweep", "--json"])
    }

    /// As it was found, the component apart, and by the box's own journal too.
    fn is_as_found(&self, told: &str) {
        let left = difference(&self.before, &besides(&self.lab.snapshot(self.k), &["thing"]));
        assert_eq!(left, "", "node {}, {told}", self.k);
        let swept = run(&mut self.sweep());
        assert_eq!(swept.exit, 3, "{told}: not all was taken back: {}", swept.all);
    }
}

/// Every step on its own node, some at a time.
fn on_every_step(work: impl Fn(&Scene<'_>, &str) + Sync) {
    const AT_ONCE: usize = 5;
    let lab = Lab::up(STEPS.len());
    let payload = baseline(&lab, "slow", &[Thing::new("thing", SLOW)]);
    let steps: Vec<_> = (1..).zip(STEPS).collect();
    for some in steps.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for (k, step) in some {
                let (lab, payload, work) = (&lab, &payload, &work);
                scope.spawn(move || work(&Scene::set(lab, *k, payload), step));
            }
        });
    }
}

#[test]
fn a_deployment_killed_at_every_step_and_again_at_every_step_of_its_recovery_ends_well() {
    on_every_step(|scene, step| {
        scene.killed_at(step);
        let mut killed = HashSet::new();
        let done = loop {
            let (run, met) = scene.deploy_killed(|begun| !killed.contains(begun));
            match met {
                Some(begun) => killed.insert(begun),
                None => break run,
            };
            assert!(killed.len() < STARTS_MAX, "{step}: {killed:?}");
        };
        println!("killed at {step}, then at {killed:?}");
        let told = format!("killed at {step}, then at {killed:?}: {}", done.all);
        // 3: the installer, which nothing interrupts, had finished by itself.
        assert!(matches!(done.exit, 0 | 3), "{told}");
        // At its last step all was done but for the result.
        assert_eq!(killed.is_empty(), step == "disconnect", "{told}");
        assert_eq!(
            scene.lab.on_node(scene.k, "cat /var/lib/thing /var/lib/thing-runs"),
            "2.0\nrun\n",
            "{told}"
        );
        scene.is_as_found(&told);
    });
}

#[test]
fn a_sweep_after_a_kill_at_every_step_is_killed_further_and_further_on_and_ends_well() {
    /// By so much each sweep lives longer than the one before.
    const FURTHER_MS: u32 = 60;
    on_every_step(|scene, step| {
        scene.killed_at(step);
        let mut kills = 0;
        let swept = loop {
            let after = format!("{}", f64::from(FURTHER_MS * (kills + 1)) / 1000.0);
            let mut command = scene.lab.hub_command("timeout");
            command.args(["--signal=KILL", &after]).arg(env!("CARGO_BIN_EXE_carena"));
            command.args(["sweep", "--json", "--state"]).arg(scene.lab.dir().join(&scene.state));
            let run = run(&mut command);
            // Killed, or rather whoever waits for it.
            if ![-1, 137].contains(&run.exit) {
                break run;
            }
            kills += 1;
        };
        println!("killed at {step}, the sweep {kills} times");
        let told = format!("killed at {step}, the sweep {kills} times: {}", swept.all);
        let nothing_left = ["connect", "look", "disconnect"].contains(&step);
        assert!(matches!(swept.exit, 0 | 3) && (kills > 0 || nothing_left), "{told}");
        scene.is_as_found(&told);
    });
}

#[test]
fn a_serve_killed_over_and_over_while_it_recovers_ends_its_deployment_well() {
    /// By so many events each life is longer than the one before.
    const FURTHER: usize = 16;
    let lab = Lab::up(8);
    let nodes: Vec<usize> = (1..=8).collect();
    let before: Vec<String> = nodes.iter().map(|k| lab.snapshot(*k)).collect();
    let mut serve = Serve::start(&lab);
    let deployment = serve.deploy(&serve.fleet(&nodes));
    let mut lives = 1;
    // The stream ends with the deployment.
    while serve.watch(&format!("deployment={}", id(&deployment)), "").iter().take(FURTHER * lives).count()
        == FURTHER * lives
    {
        serve.signal(Signal::SIGKILL);
        serve.wait();
        lives += 1;
        serve = Serve::start(&lab);
    }
    println!("{lives} lives");
    let report = serve.get(&deployment).json();
    assert!(lives > 3 && matches!(report["exit"].as_i64(), Some(0 | 3)), "{lives} lives: {report}");
    drop(serve);
    for (k, before) in nodes.iter().zip(before) {
        assert_eq!(lab.on_node(*k, "cat /var/lib/carena-demo/version"), "1.2.0\n", "node {k}: {report}");
        assert_eq!(
            difference(&before, &besides(&lab.snapshot(*k), &["carena-demo"])),
            "",
            "node {k}: {report}"
        );
    }
    let swept = run(&mut lab.carena(&["sweep", "--json"]));
    assert_eq!(swept.exit, 3, "{}", swept.all);
}
