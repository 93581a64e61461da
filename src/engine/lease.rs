//! The second line of the promise: a box that fell silent is not waited for. The engine closes its port, removes its
//! directory, and ends. It touches only its own rule and a directory with its own marker.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::paths::{ENGINE_MARKER_FILE, ENGINE_RULE_FILE};
use crate::wire::firewall::RuleSpec;
use crate::wire::message::StartConfig;
use crate::wire::root_shell;

/// Where firewall tools are; a daemon's PATH may lack sbin.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// SIGTERM, as something to poll. Blocked in this thread before any other is made.
///
/// # Errors
/// Those of the system.
pub fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Takes back what the box opened and copied. Nobody is there to hear of a failure; the box's sweep is next.
pub fn take_oneself_away(config: &StartConfig, directory: &Path, port: u16) {
    let ended = directory.to_str().map(root_shell::end_script);
    let closed = noted_rule(config, directory, port).map(|rule| rule.close_script());
    for script in [ended, closed].into_iter().flatten() {
        run(&script);
    }
    let owner = std::fs::read_to_string(directory.join(ENGINE_MARKER_FILE));
    if owner.is_ok_and(|owner| owner.trim() == config.deployment.as_str()) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// What the box noted in the engine's directory before it opened it; no note, no rule.
fn noted_rule(config: &StartConfig, directory: &Path, port: u16) -> Option<RuleSpec> {
    let noted = std::fs::read(directory.join(ENGINE_RULE_FILE)).ok()?;
    let rule: RuleSpec = serde_json::from_slice(&noted).ok()?;
    (rule.deployment == config.deployment && rule.port == port).then_some(rule)
}

fn run(script: &str) {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(script).env_clear().env("PATH", PATH).env("LC_ALL", "C");
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[expect(clippy::disallowed_methods, reason = "the node's own tools; no installer runs now")]
    let _ = shell.status();
}
