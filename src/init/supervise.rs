//! Keeps `serve` running: what state it is in, when it is started again, and how it is started.
//!
//! The decision is a table of state and event, apart from the act, so that it can be tested. `serve` is this same
//! program with few rights: a user of its own, two capabilities, and no way to gain more.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, Uid, pipe2, setgroups, setresgid, setresuid};

/// User and group of `serve`.
pub const SERVE_ID: u32 = 990;
/// linux/capability.h: binding low ports, and configuring the network.
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_LAST: u32 = 63;

/// The first wait after a death; doubled with each one that follows soon.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two starts.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A life this long is a good one: the next death counts as the first.
const GOOD_LIFE: Duration = Duration::from_secs(30);

/// Where `serve` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Not wanted yet.
    #[default]
    Idle,
    /// To be started at a time, after so many short lives.
    Due { at: Instant, deaths: u32 },
    /// Alive since a time.
    Running { pid: Pid, since: Instant, deaths: u32 },
    /// Asked to end, and not to be started again.
    Ending { pid: Pid },
}

/// What is there when `serve` is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, and nothing was begun.
    Nothing,
    /// The process that is to end.
    Alive(Pid),
    /// It has died and waits to be started again: what it had begun on nodes nobody takes back now.
    Dead,
}

/// Decides when `serve` is started.
#[derive(Debug, Default)]
pub struct Supervisor {
    state: State,
}

impl Supervisor {
    /// `serve` is wanted from now on.
    pub fn begin(&mut self, now: Instant) {
        self.state = State::Due { at: now, deaths: 0 };
    }

    /// Whether `serve` is to be started now.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Due { at, .. } if at <= now)
    }

    /// When there is something to do, if that is known.
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            State::Due { at, .. } => Some(at),
            State::Idle | State::Running { .. } | State::Ending { .. } => None,
        }
    }

    /// The running process.
    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } | State::Ending { pid } => Some(pid),
            State::Idle | State::Due { .. } => None,
        }
    }

    /// It was started.
    pub fn started(&mut self, pid: Pid, now: Instant) {
        if let State::Due { deaths, .. } = self.state {
            self.state = State::Running { pid, since: now, deaths };
        }
    }

    /// It is not wanted any more, and not started again.
    pub fn end(&mut self) -> Found {
        let (state, found) = match self.state {
            State::Running { pid, .. } | State::Ending { pid } => (State::Ending { pid }, Found::Alive(pid)),
            State::Due { deaths: 1.., .. } => (State::Idle, Found::Dead),
            State::Due { deaths: 0, .. } | State::Idle => (State::Idle, Found::Nothing),
        };
        self.state = state;
        found
    }

    /// It died, or could not be started. Returns the time until the next start, if there is one.
    pub fn ended(&mut self, now: Instant) -> Option<Duration> {
        let deaths = match self.state {
            State::Running { since, .. } if now.saturating_duration_since(since) >= GOOD_LIFE => 1,
            State::Running { deaths, .. } | State::Due { deaths, .. } => deaths.saturating_add(1),
            State::Idle | State::Ending { .. } => {
                self.state = State::Idle;
                return None;
            }
        };
        let wait = backoff(deaths);
        self.state = State::Due { at: now + wait, deaths };
        Some(wait)
    }
}

fn backoff(deaths: u32) -> Duration {
    let factor = 1_u32.checked_shl(deaths.saturating_sub(1)).unwrap_or(u32::MAX);
    BACKOFF_FIRST.saturating_mul(factor).min(BACKOFF_MAX)
}

/// A started `serve`: its pid, our end of its report socket, and what it prints.
pub struct Child {
    /// The process.
    pub pid: Pid,
    /// Reports arrive here.
    pub report: OwnedFd,
    /// Standard output and error.
    pub output: OwnedFd,
}

/// Starts `serve`.
pub fn start() -> io::Result<Child> {
    let (report, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, socket_flags())?;
    fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?;
    let (output, input) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let inherited = theirs.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("carena")
        .args([
            "serve",
            "--state",
            crate::paths::STATE_ROOT,
            "--appliance",
            "--init-fd",
            &inherited.to_string(),
        ])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    // SAFETY: between fork and exec only system calls are made and nothing is allocated or locked; PID 1 holds no
    // lock that the child would need.
    unsafe { command.pre_exec(move || prepare(inherited)) };
    #[expect(clippy::disallowed_methods, reason = "the one child of init; its reaper waits for it")]
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(Child { pid: Pid::from_raw(pid), report, output })
}

fn socket_flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

/// In the child: our signal mask off, the socket kept, and the rights dropped.
fn prepare(inherited: RawFd) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    // SAFETY: the descriptor is open in this process: it was inherited from the parent an instant ago.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(inherited) };
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    drop_rights()
}

/// capabilities(7): keep the two over the change of user, empty everything else, and make them ambient so that
/// they survive exec without file capabilities.
fn drop_rights() -> io::Result<()> {
    for capability in 0..=CAP_LAST {
        if capability != CAP_NET_ADMIN && capability != CAP_NET_BIND_SERVICE {
            // Fails above the kernel's last capability: there is nothing to drop there.
            let _ = prctl(libc::PR_CAPBSET_DROP, capability.into(), 0);
        }
    }
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    setgroups(&[])?;
    let (user, group) = (Uid::from_raw(SERVE_ID), Gid::from_raw(SERVE_ID));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    set_capabilities((1 << CAP_NET_ADMIN) | (1 << CAP_NET_BIND_SERVICE))?;
    for capability in [CAP_NET_ADMIN, CAP_NET_BIND_SERVICE] {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, capability.into())?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

fn prctl(option: i32, second: libc::c_ulong, third: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take plain numbers; the kernel reads no memory of ours.
    let result = unsafe { libc::prctl(option, second, third, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// struct __user_cap_header_struct and two __user_cap_data_struct of linux/capability.h, version 3.
fn set_capabilities(low: u32) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    // effective, permitted, inheritable; capabilities 0-31, then 32-63.
    let data: [u32; 6] = [low, low, low, 0, 0, 0];
    // SAFETY: both arrays have the layout the system call reads, and live through it.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_in_a_row_wait_longer_and_never_too_long() {
        let mut now = Instant::now();
        let mut supervisor = Supervisor::default();
        supervisor.begin(now);
        let mut waits = Vec::new();
        for _ in 0..40 {
            supervisor.started(Pid::from_raw(2), now);
            waits.push(supervisor.ended(now).unwrap());
            now += BACKOFF_MAX;
        }
        assert_eq!(waits[0], BACKOFF_FIRST);
        assert!(waits.is_sorted());
        assert_eq!(waits[39], BACKOFF_MAX);
    }

    #[test]
    fn a_long_life_forgets_earlier_deaths() {
        let now = Instant::now();
        let mut supervisor =
            Supervisor { state: State::Running { pid: Pid::from_raw(2), since: now, deaths: 9 } };
        assert_eq!(supervisor.ended(now + GOOD_LIFE), Some(BACKOFF_FIRST));
    }

    #[test]
    fn it_is_not_started_before_its_time() {
        let now = Instant::now();
        let mut supervisor = Supervisor::default();
        assert!(!supervisor.is_due(now));
        supervisor.begin(now);
        assert!(supervisor.is_due(now));
        supervisor.started(Pid::from_raw(2), now);
        assert_eq!((supervisor.pid(), supervisor.is_due(now)), (Some(Pid::from_raw(2)), false));
        let wait = supervisor.ended(now).unwrap();
        assert!(!supervisor.is_due(now) && supervisor.is_due(now + wait));
    }

    #[test]
    fn what_is_asked_to_end_is_not_started_again() {
        let now = Instant::now();
        let mut supervisor = Supervisor::default();
        supervisor.begin(now);
        supervisor.started(Pid::from_raw(2), now);
        assert_eq!(supervisor.end(), Found::Alive(Pid::from_raw(2)));
        assert_eq!(supervisor.pid(), Some(Pid::from_raw(2)));
        assert_eq!(supervisor.ended(now), None);
        assert_eq!((supervisor.pid(), supervisor.is_due(now)), (None, false));
    }

    #[test]
    fn in_every_state_an_end_finds_what_is_there_and_starts_nothing_again() {
        let (now, pid) = (Instant::now(), Pid::from_raw(2));
        for (state, found) in [
            (State::Idle, Found::Nothing),
            (State::Due { at: now, deaths: 0 }, Found::Nothing),
            (State::Due { at: now, deaths: 1 }, Found::Dead),
            (State::Due { at: now + BACKOFF_MAX, deaths: 9 }, Found::Dead),
            (State::Running { pid, since: now, deaths: 3 }, Found::Alive(pid)),
            (State::Ending { pid }, Found::Alive(pid)),
        ] {
            let mut supervisor = Supervisor { state };
            assert_eq!(supervisor.end(), found, "{state:?}");
            assert!(!supervisor.is_due(now + BACKOFF_MAX), "{state:?}");
            assert_eq!(supervisor.wakes_at(), None, "{state:?}");
        }
    }
}
