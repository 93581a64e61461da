//! The promise, on real nodes: what is installed is what the baseline says, and every node is left as it was found,
//! whatever happens in between.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use carena::digest::Sha256;
use serde_json::Value;

use crate::lab::Lab;

pub struct Run {
    pub exit: i32,
    pub summary: Value,
    pub stderr: String,
    pub all: String,
}

pub fn run(command: &mut Command) -> Run {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let last = stdout.lines().last().unwrap_or("null");
    Run {
        exit: output.status.code().unwrap(),
        summary: serde_json::from_str::<Value>(last).unwrap_or_default()["summary"].clone(),
        all: format!("{stdout}{stderr}"),
        stderr,
    }
}

impl Run {
    pub fn node(&self, lab: &Lab, k: usize) -> &Value {
        &self.summary["nodes"][lab.node_address(k)]
    }
}

pub fn deploy(lab: &Lab, fleet: &Path) -> Run {
    run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]))
}

/// A baseline of one component whose installer is `script`.
pub fn baseline(lab: &Lab, name: &str, script: &str) -> PathBuf {
    let directory = lab.dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("payload"), script).unwrap();
    let manifest = format!(
        "id = \"{name}\"\nversion = \"1\"\ntitle = \"test\"\n[[component]]\nid = \"thing\"\ntitle = \"test\"\n\
         version = \"2.0\"\nformat = \"plain\"\npayload = \"payload\"\nsha256 = \"{}\"\nsize = {}\nexpected_s = 5\n\
         install = {{ command = [\"/bin/sh\", \"{{payload}}\"] }}\nread_back = {{ file = \"/var/lib/thing\" }}\n",
        Sha256::of(script.as_bytes()),
        script.len()
    );
    std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
    directory
}

#[test]
fn eight_nodes_are_updated_and_left_as_found() {
    let lab = Lab::up(8);
    let nodes: Vec<usize> = (1..=8).collect();
    let before: Vec<_> = nodes.iter().map(|k| lab.snapshot(*k)).collect();
    let fleet = lab.fleet(&nodes, "demo", "");
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}", done.all);
    for k in &nodes {
        assert_eq!(done.node(&lab, *k)["components"][0]["outcome"], "updated");
        assert_eq!(lab.on_node(*k, "cat /var/lib/carena-demo/version"), "1.2.0\n");
        let after = lab.snapshot(*k);
        let kept: String = after.lines().filter(|line| !line.contains("/var/lib/carena-demo")).collect();
        assert_eq!(kept, before[*k - 1].replace('\n', ""), "node {k}");
    }
    // Nothing is needed a second time, and the secrets are nowhere.
    let again = deploy(&lab, &fleet);
    assert_eq!(again.exit, 3, "{}", again.all);
    let secret = std::fs::read_to_string(lab.dir().join("op.secret")).unwrap();
    let secret = secret.trim();
    assert!(!done.all.contains(secret));
    let store = Command::new("grep").args(["-rqF", secret]).arg(lab.dir().join("state")).status().unwrap();
    assert_eq!(store.code(), Some(1), "the password is in the store");
}

#[test]
fn failing_and_corrupt_payloads_are_failures_and_leave_nothing() {
    let lab = Lab::up(2);
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let failing = baseline(&lab, "failing", "echo no such device; exit 7\n");
    let done = deploy(&lab, &lab.fleet(&[1, 2], failing.to_str().unwrap(), ""));
    assert_eq!(done.exit, 253, "{}", done.all);
    let component = &done.node(&lab, 1)["components"][0];
    assert_eq!(component["outcome"], "failed");
    assert!(component["why"].as_str().unwrap().contains("exit code 7: no such device"), "{component}");

    let corrupt = baseline(&lab, "corrupt", "echo 2.0 > /var/lib/thing\n");
    std::fs::write(corrupt.join("payload"), "echo 2.1 > /var/lib/thing\n").unwrap();
    let done = deploy(&lab, &lab.fleet(&[1, 2], corrupt.to_str().unwrap(), ""));
    assert_eq!(done.exit, 253, "{}", done.all);
    assert!(done.node(&lab, 2)["components"][0]["why"].as_str().unwrap().contains("corrupt"));

    let lying = baseline(&lab, "lying", "exit 0\n");
    let done = deploy(&lab, &lab.fleet(&[1], lying.to_str().unwrap(), ""));
    assert_eq!(done.node(&lab, 1)["components"][0]["outcome"], "unverified", "{}", done.all);
    assert_eq!([lab.snapshot(1), lab.snapshot(2)], before);
}

#[test]
fn bad_nodes_are_told_in_one_message_and_the_others_are_done() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[1, 2], "demo", "");
    std::fs::write(lab.dir().join("wrong.secret"), "not the password\n").unwrap();
    let mut text = std::fs::read_to_string(&fleet).unwrap();
    text = text.replacen("op.secret", "wrong.secret", 1);
    for (address, rest) in
        [("no-such-host.invalid", ""), ("fd00:ca::1", "port = 2222\n"), ("fd00:ca::zz", "")]
    {
        text.push_str(&format!(
            "[[node]]\naddress = \"{address}\"\nuser = \"root\"\nkey_file = \"id_ed25519\"\n{rest}"
        ));
    }
    std::fs::write(&fleet, text).unwrap();
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}", done.all);
    for said in [
        "fd00:ca::11: connect: user operator was not let in",
        "no-such-host.invalid: connect: no-such-host.invalid is not known",
        "port 2222 of fd00:ca::1 is closed",
        "address \\\"fd00:ca::zz\\\": it is neither an IPv6 nor an IPv4 address",
    ] {
        assert!(done.all.contains(said), "{said} in {}", done.all);
    }
    assert_eq!(lab.on_node(2, "cat /var/lib/carena-demo/version"), "1.2.0\n");
    let unknown = run(&mut lab.carena(&["deploy", lab.fleet(&[1], "nope", "").to_str().unwrap()]));
    assert_eq!(unknown.exit, 254, "{}", unknown.all);
    assert!(unknown.stderr.contains("there is no baseline \"nope\""));
}

#[test]
fn a_changed_host_key_stops_the_node_with_both_fingerprints() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[2], "demo", "");
    assert_eq!(deploy(&lab, &fleet).exit, 0);
    let key = "/etc/ssh/ssh_host_ed25519_key";
    lab.on_node(2, &format!("rm {key}; ssh-keygen -q -t ed25519 -N \"\" -f {key}; kill -HUP 1"));
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}", done.all);
    assert_eq!(done.all.matches("SHA256:").count() % 2, 0);
    assert!(done.all.contains("the host key has changed: SHA256:"), "{}", done.all);
}

/// Sends a signal to a `carena` that the lab started.
pub fn kill(child: &std::process::Child, signal: nix::sys::signal::Signal) {
    // nsenter has become carena by exec, behind the lab's script: the child's own process.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let pid = children.split_whitespace().next().map_or(child.id(), |pid| pid.parse().unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// Kills or cancels at the first event of each step, then makes sure that nothing is left.
fn interrupt_at(step: &str, signal: nix::sys::signal::Signal) {
    let lab = Lab::up(2);
    let before = [lab.snapshot(1), lab.snapshot(2)];
    // Long enough to be met while it runs.
    let slow = baseline(&lab, "slow", "for i in 1 2 3 4; do sleep 0.2; done; echo 2.0 > /var/lib/thing\n");
    let fleet = lab.fleet(&[1, 2], slow.to_str().unwrap(), "");
    let mut child =
        lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut met = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap_or_default();
        if !met && event["step"] == step && event["state"] == "started" {
            met = true;
            kill(&child, signal);
        }
    }
    child.wait().unwrap();
    assert!(met, "the step {step} was never begun");
    if signal == nix::sys::signal::Signal::SIGKILL {
        let swept = run(&mut lab.carena(&["sweep", "--json"]));
        assert!(matches!(swept.exit, 0 | 3), "{step}: {}", swept.all);
    }
    let left = |k| -> String {
        lab.snapshot(k)
            .lines()
            .filter(|line| *line != "/var/lib/thing")
            .map(|line| format!("{line}\n"))
            .collect()
    };
    assert_eq!([left(1), left(2)], before, "{step}");
}

macro_rules! interrupted {
    ($($name:ident $step:literal $signal:ident;)*) => {$(
        #[test]
        fn $name() {
            interrupt_at($step, nix::sys::signal::Signal::$signal);
        }
    )*};
}

interrupted! {
    killed_at_connect "connect" SIGKILL;
    killed_at_look "look" SIGKILL;
    killed_at_copy "copy" SIGKILL;
    killed_at_start "start" SIGKILL;
    killed_at_open "open" SIGKILL;
    killed_at_join "join" SIGKILL;
    killed_at_inventory "inventory" SIGKILL;
    killed_at_send "send" SIGKILL;
    killed_at_install "install" SIGKILL;
    killed_at_verify "verify" SIGKILL;
    killed_at_stop "stop" SIGKILL;
    cancelled_at_connect "connect" SIGINT;
    cancelled_at_look "look" SIGINT;
    cancelled_at_copy "copy" SIGINT;
    cancelled_at_start "start" SIGINT;
    cancelled_at_open "open" SIGINT;
    cancelled_at_join "join" SIGINT;
    cancelled_at_send "send" SIGINT;
    cancelled_at_install "install" SIGINT;
    cancelled_at_verify "verify" SIGINT;
}
