//! The way down, bounded at every step: `serve` is asked, then ended, then the machine goes.
//!
//! `serve` gets time to take back what it has on nodes (its journal finishes the rest after a restart). Must
//! always end: a machine that hangs in its shutdown is worse than one that loses a line of log.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::poll::{PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use super::screen;

/// How the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Starts again.
    Reboot,
    /// Off.
    PowerOff,
    /// Stands still.
    Halt,
}

/// What `serve` gets to end its cycles and close its store.
const SERVE_STOP: Duration = Duration::from_secs(10);
/// What a killed process gets to be gone.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Between two looks for a dead process.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits without a condition; for the few places where there is none.
pub fn pause(time: Duration) {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [], timeout);
}

/// Asks `serve` to end, and ends it when it does not.
pub fn stop_serve(pid: Option<Pid>) {
    let Some(pid) = pid else { return };
    let _ = kill(pid, Signal::SIGTERM);
    if gone_within(pid, SERVE_STOP) {
        return;
    }
    screen::say(&format!("serve did not stop in {} s: killed", SERVE_STOP.as_secs()));
    let _ = kill(pid, Signal::SIGKILL);
    gone_within(pid, KILL_WAIT);
}

fn gone_within(pid: Pid, bound: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < bound {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => pause(LOOK_AGAIN),
            _ => return true,
        }
    }
    false
}

/// Leaves the machine. Does not return, whatever the kernel says.
pub fn leave(exit: Exit) -> ! {
    let (word, mode) = match exit {
        Exit::Reboot => ("restarting", RebootMode::RB_AUTOBOOT),
        Exit::PowerOff => ("powering off", RebootMode::RB_POWER_OFF),
        Exit::Halt => ("halted", RebootMode::RB_HALT_SYSTEM),
    };
    screen::say(word);
    sync();
    let _ = umount2(crate::paths::STATE_ROOT, MntFlags::MNT_DETACH);
    // Comes back only with a refusal.
    let Err(error): Result<Infallible, _> = reboot(mode);
    screen::say(&format!("the kernel refused: {error}"));
    loop {
        pause(Duration::from_secs(3600));
    }
}
