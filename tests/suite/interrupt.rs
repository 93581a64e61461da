//! Every step of the cycle, interrupted once: by SIGKILL, after which a second run first takes back what the first
//! left and then does the whole work; and by the operator's Ctrl-C. The nodes are left as they were found.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::deployment::{Run, apart_from_thing, baseline, deploy, deploy_watched, run};
use crate::lab::Lab;

/// Long enough to be met while it runs.
const SLOW: &str = "for i in 1 2 3 4; do sleep 0.2; done; echo 2.0 > /var/lib/thing";

/// A lab of two nodes, and what they were like.
struct Scene {
    lab: Lab,
    fleet: std::path::PathBuf,
    before: [String; 2],
}

impl Scene {
    fn set() -> Self {
        let lab = Lab::up(2);
        let before = [lab.snapshot(1), lab.snapshot(2)];
        let slow = baseline(&lab, "slow", SLOW);
        let fleet = lab.fleet(&[1, 2], slow.to_str().unwrap(), "");
        Self { lab, fleet, before }
    }

    /// Sends `signal` when the first node begins `step`.
    fn interrupt(&self, step: &str, signal: Signal) -> Run {
        let mut met = false;
        let interrupted = deploy_watched(&self.lab, &self.fleet, |event| {
            let now = !met && event["step"] == step && event["state"] == "started";
            met |= now;
            now.then_some(signal)
        });
        assert!(met, "the step {step} was never begun: {}", interrupted.all);
        interrupted
    }

    fn is_as_found(&self, when: &str) {
        for k in [1, 2] {
            assert_eq!(apart_from_thing(&self.lab, k), self.before[k - 1], "node {k}, {when}");
        }
    }

    fn version(&self, k: usize) -> String {
        self.lab.on_node(k, "cat /var/lib/thing 2>/dev/null")
    }
}

/// Killed, and started again.
fn killed_at(step: &str) {
    let scene = Scene::set();
    scene.interrupt(step, Signal::SIGKILL);
    let again = deploy(&scene.lab, &scene.fleet);
    // 3: the installer, which nothing interrupts, had finished by itself.
    assert!(matches!(again.exit, 0 | 3), "killed at {step}: {}", again.all);
    for k in [1, 2] {
        let outcome = &again.component(&scene.lab, k)["outcome"];
        assert!(outcome == "updated" || outcome == "current", "killed at {step}: {}", again.all);
        assert_eq!(scene.version(k), "2.0\n", "killed at {step}");
    }
    scene.is_as_found(step);
    let swept = run(&mut scene.lab.carena(&["sweep", "--json"]));
    assert_eq!(swept.exit, 3, "killed at {step}, and not all was taken back: {}", swept.all);
}

/// Cancelled: what a node has is what its result says, and nothing else.
fn cancelled_at(step: &str) {
    let scene = Scene::set();
    let cancelled = scene.interrupt(step, Signal::SIGINT);
    assert!(cancelled.stderr.contains("cancelling"), "{step}: {}", cancelled.all);
    let mut all_done = true;
    for k in [1, 2] {
        let node = cancelled.node(&scene.lab, k);
        let installed = node["components"][0]["outcome"] == "updated";
        assert_eq!(scene.version(k), if installed { "2.0\n" } else { "" }, "{step}: {}", cancelled.all);
        assert_eq!(node["outstanding_traces"], Value::Array(Vec::new()), "{step}");
        let result = node["result"].as_str().unwrap();
        let told: &[&str] = if installed { &["done", "cancelled"] } else { &["cancelled", "skipped"] };
        assert!(told.contains(&result), "{step}: {}", cancelled.all);
        all_done &= result == "done";
    }
    assert_eq!(cancelled.exit, if all_done { 0 } else { 253 }, "{step}: {}", cancelled.all);
    scene.is_as_found(step);
}

#[test]
fn a_killed_run_is_swept_without_the_fleet_file() {
    let scene = Scene::set();
    scene.interrupt("install", Signal::SIGKILL);
    let swept = run(&mut scene.lab.carena(&["sweep", "--json"]));
    assert_eq!(swept.exit, 0, "{}", swept.all);
    scene.is_as_found("after sweep");
}

macro_rules! interrupted {
    ($how:ident: $($name:ident $step:literal;)*) => {$(
        #[test]
        fn $name() {
            $how($step);
        }
    )*};
}

interrupted! { killed_at:
    killed_at_connect "connect";
    killed_at_look "look";
    killed_at_copy "copy";
    killed_at_start "start";
    killed_at_open "open";
    killed_at_join "join";
    killed_at_inventory "inventory";
    killed_at_plan "plan";
    killed_at_send "send";
    killed_at_install "install";
    killed_at_verify "verify";
    killed_at_stop "stop";
    killed_at_remove "remove";
    killed_at_close "close";
    killed_at_disconnect "disconnect";
}

interrupted! { cancelled_at:
    cancelled_at_connect "connect";
    cancelled_at_look "look";
    cancelled_at_copy "copy";
    cancelled_at_start "start";
    cancelled_at_open "open";
    cancelled_at_join "join";
    cancelled_at_inventory "inventory";
    cancelled_at_plan "plan";
    cancelled_at_send "send";
    cancelled_at_install "install";
    cancelled_at_verify "verify";
    cancelled_at_stop "stop";
    cancelled_at_remove "remove";
    cancelled_at_close "close";
    cancelled_at_disconnect "disconnect";
}
