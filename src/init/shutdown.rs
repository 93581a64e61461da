//! The way down: `serve` is asked to end and waited for, then ended, then the machine goes.
//!
//! `serve` needs its time: an installer that writes a node's firmware is never interrupted, and every node is left as
//! it was found before the machine goes. So the bound is long, what is waited for is on the screen, and whoever
//! cannot wait asks a second time. The decision is apart from the act, so that it can be tested. It must always come
//! to an end.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
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

/// What `serve` gets to end its cycles. A system ROM takes up to half an hour to be written.
pub const SERVE_STOP_MAX: Duration = Duration::from_secs(45 * 60);
/// What a killed process gets to be gone.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// A second wish counts this long after the one before: keys that are held down repeat many times a second.
const RELEASED: Duration = Duration::from_secs(2);

/// A shutdown under way.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// How the machine goes down in the end.
    pub exit: Exit,
    since: Instant,
    last_wish: Instant,
    forced: bool,
    killed: Option<Instant>,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait until then, or until something happens.
    Wait(Instant),
    /// End `serve`.
    Kill,
    /// Everything has ended, or never will.
    Leave,
}

impl Stop {
    /// Somebody wants the machine to go down.
    pub fn begin(exit: Exit, now: Instant) -> Self {
        Self { exit, since: now, last_wish: now, forced: false, killed: None }
    }

    /// Somebody wants it again. The later wish says how.
    pub fn wished_again(&mut self, exit: Exit, now: Instant) {
        self.exit = exit;
        self.forced |= now.saturating_duration_since(self.last_wish) >= RELEASED;
        self.last_wish = now;
    }

    /// What to do now.
    pub fn next(&mut self, serve_alive: bool, now: Instant) -> Next {
        let over = |since: Instant, bound: Duration| now.saturating_duration_since(since) >= bound;
        match self.killed {
            _ if !serve_alive => Next::Leave,
            Some(killed) if over(killed, KILL_WAIT) => Next::Leave,
            Some(killed) => Next::Wait(killed + KILL_WAIT),
            None if self.forced || over(self.since, SERVE_STOP_MAX) => {
                self.killed = Some(now);
                Next::Kill
            }
            None => Next::Wait(self.since + SERVE_STOP_MAX),
        }
    }
}

/// Waits without a condition; for the few places where there is none.
pub fn pause(time: Duration) {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [], timeout);
}

/// Leaves the machine. Does not return, whatever the kernel says.
pub fn leave(exit: Exit) -> ! {
    let (word, mode) = match exit {
        Exit::Reboot => ("restarting", RebootMode::RB_AUTOBOOT),
        Exit::PowerOff => ("powering off", RebootMode::RB_POWER_OFF),
        Exit::Halt => ("halted", RebootMode::RB_HALT_SYSTEM),
    };
    screen::say(word);
    // Everybody but us: nothing writes any more when the file systems are flushed. All of those that init mounts are
    // in memory, so there is none to unmount.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    sync();
    // Comes back only with a refusal.
    let Err(error): Result<Infallible, _> = reboot(mode);
    screen::say(&format!("the kernel refused: {error}"));
    loop {
        pause(Duration::from_secs(3600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leaves_as_soon_as_serve_has_ended() {
        let now = Instant::now();
        let mut stop = Stop::begin(Exit::Reboot, now);
        assert_eq!(stop.next(true, now), Next::Wait(now + SERVE_STOP_MAX));
        assert_eq!(stop.next(false, now), Next::Leave);
    }

    #[test]
    fn a_serve_that_never_ends_is_killed_and_one_that_cannot_be_killed_is_left() {
        let begun = Instant::now();
        let mut stop = Stop::begin(Exit::PowerOff, begun);
        let now = begun + SERVE_STOP_MAX;
        assert_eq!(stop.next(true, now), Next::Kill);
        assert_eq!(stop.next(true, now), Next::Wait(now + KILL_WAIT));
        assert_eq!(stop.next(true, now + KILL_WAIT), Next::Leave);
    }

    #[test]
    fn a_second_press_forces_and_a_held_key_does_not() {
        let begun = Instant::now();
        let mut held = Stop::begin(Exit::Reboot, begun);
        let mut now = begun;
        for _ in 0..300 {
            now += Duration::from_millis(33);
            held.wished_again(Exit::Reboot, now);
        }
        assert!(matches!(held.next(true, now), Next::Wait(_)));
        now += RELEASED;
        held.wished_again(Exit::PowerOff, now);
        assert_eq!(held.next(true, now), Next::Kill);
        assert_eq!(held.exit, Exit::PowerOff);
    }
}
