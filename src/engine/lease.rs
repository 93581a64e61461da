//! The second line of the promise: a box that fell silent is not waited for. The engine closes its port, removes its
//! directory, and ends. It touches only its own rule and a directory with its own marker.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::paths::ENGINE_MARKER_FILE;
use crate::wire::firewall::{FirewallTool, RuleSpec};
use crate::wire::message::StartConfig;

/// Where firewall tools are; a daemon's PATH may lack sbin.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Rules of ours there may be at most; an end for the loop should the tool misbehave.
const RULES_MAX: u32 = 8;

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
    let rule = RuleSpec {
        tool: FirewallTool::for_address(config.box_address),
        deployment: config.deployment.clone(),
        from: config.box_address,
        port,
    };
    for _ in 0..RULES_MAX {
        let mut tool = Command::new(rule.tool.program());
        tool.env_clear().env("PATH", PATH).args(["-w", "5", "-D"]).args(rule.arguments());
        tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        #[expect(clippy::disallowed_methods, reason = "the node's own firewall tool; no installer runs now")]
        let deleted = tool.status().is_ok_and(|status| status.success());
        if !deleted {
            break;
        }
    }
    let owner = std::fs::read_to_string(directory.join(ENGINE_MARKER_FILE));
    if owner.is_ok_and(|owner| owner.trim() == config.deployment.as_str()) {
        let _ = std::fs::remove_dir_all(directory);
    }
}
