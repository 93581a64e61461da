//! Deployments of one component that a test makes: the shortest way to say what is installed, and what may be left.

use std::path::{Path, PathBuf};
use std::process::Child;

use carena::digest::Sha256;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::operator::Running;
pub use crate::operator::{Run, deploy, ended, run};

/// A deployment under way: `meet` is told every event as it is printed, and may send a signal.
pub fn deploy_watched(lab: &Lab, fleet: &Path, mut meet: impl FnMut(&Value) -> Option<Signal>) -> Run {
    let running = Running::start(lab, &["deploy", fleet.to_str().unwrap(), "--json"]);
    running.watch(|running, event| {
        if let Some(signal) = meet(event) {
            running.signal(signal);
        }
    })
}

/// Sends a signal to a `carena` that the lab started.
pub fn kill(child: &Child, signal: Signal) {
    // nsenter waits for carena, its only child; carena is the one that is meant.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let pid = children.split_whitespace().next().map_or(child.id(), |pid| pid.parse().unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// A baseline of one component, version 2.0, whose installer is `script` and whose version is in `/var/lib/thing`.
pub fn baseline(lab: &Lab, name: &str, script: &str) -> PathBuf {
    baseline_of(lab, name, script, 0)
}

/// The same, with a payload padded by incompressible bytes to `bytes`.
pub fn baseline_of(lab: &Lab, name: &str, script: &str, bytes: usize) -> PathBuf {
    let directory = lab.dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let mut payload = format!("{script}\nexit $?\n").into_bytes();
    let mut state = 1_u64;
    while payload.len() < bytes {
        // Incompressible, and never a byte a shell would stop at: it has left before.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        payload.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    let manifest = format!(
        "id = \"{name}\"\nversion = \"1\"\ntitle = \"test\"\n[[component]]\nid = \"thing\"\ntitle = \"test\"\n\
         version = \"2.0\"\nformat = \"plain\"\npayload = \"payload\"\nsha256 = \"{}\"\nsize = {}\nexpected_s = 5\n\
         install = {{ command = [\"/bin/sh\", \"{{payload}}\"] }}\nread_back = {{ file = \"/var/lib/thing\" }}\n",
        Sha256::of(&payload),
        payload.len()
    );
    std::fs::write(directory.join("payload"), payload).unwrap();
    std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
    directory
}

/// What a node has apart from the component's own file.
pub fn apart_from_thing(lab: &Lab, k: usize) -> String {
    let snapshot = lab.snapshot(k);
    snapshot.lines().filter(|line| *line != "/var/lib/thing").map(|line| format!("{line}\n")).collect()
}
