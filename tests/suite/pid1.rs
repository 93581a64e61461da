//! PID 1 and `serve` as the image has them, in namespaces instead of a machine, where both can be killed.
//!
//! Needs root and the release binary.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::boot::{in_namespaces, is_healthy_at, until};
use crate::image::release_binary;

/// The bounds end a hang; the machine may be busy.
const UP: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(60);
/// What an idle `serve` may keep in memory, in KiB.
const SERVE_IDLE_KIB_MAX: u64 = 24 * 1024;

struct Init(Child);

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Init {
    fn start() -> Self {
        let mut command = in_namespaces(&["--uts", "--ipc"]);
        let init = Self(command.arg(release_binary()).stdout(Stdio::null()).spawn().unwrap());
        until("/healthz", UP, || is_healthy_at("[::1]", &init.0));
        init
    }

    fn pid(&self) -> Option<Pid> {
        only_child(self.0.id().cast_signed())
    }

    fn serve(&self) -> Option<Pid> {
        only_child(self.pid()?.as_raw())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

fn only_child(pid: i32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some(Pid::from_raw(children.split_whitespace().next()?.parse().ok()?))
}

fn status(pid: Pid, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap().trim().to_owned()
}

#[test]
fn a_killed_serve_is_started_again() {
    let init = Init::start();
    let first = init.serve().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    until("another serve", UP, || init.serve().is_some_and(|pid| pid != first));
    until("/healthz again", UP, || is_healthy_at("[::1]", &init.0));
}

#[test]
fn serve_has_few_rights_and_needs_little_memory() {
    let init = Init::start();
    let serve = init.serve().unwrap();
    assert_eq!(status(serve, "Uid"), "990\t990\t990\t990");
    // CAP_NET_BIND_SERVICE (10) and CAP_NET_ADMIN (12), and no way to gain more.
    assert_eq!(status(serve, "CapEff"), "0000000000001400");
    assert_eq!(status(serve, "CapBnd"), "0000000000001400");
    assert_eq!(status(serve, "NoNewPrivs"), "1");
    assert_eq!(status(serve, "Seccomp"), "2");
    let resident = status(serve, "VmRSS").split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(resident <= SERVE_IDLE_KIB_MAX, "{resident} KiB");
}

#[test]
fn an_idle_box_goes_down_at_once() {
    let mut init = Init::start();
    kill(init.pid().unwrap(), Signal::SIGUSR2).unwrap();
    until("the end", DOWN, || init.has_ended());
}

#[test]
fn a_serve_that_hangs_holds_the_shutdown_until_it_is_asked_for_again() {
    let mut init = Init::start();
    let pid = init.pid().unwrap();
    kill(init.serve().unwrap(), Signal::SIGSTOP).unwrap();
    kill(pid, Signal::SIGUSR2).unwrap();
    // A held key does not count as a second wish: this goes on for longer than the bound for an idle box needs.
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        kill(pid, Signal::SIGUSR2).unwrap();
        assert!(!init.has_ended());
    }
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(!init.has_ended());
    kill(pid, Signal::SIGUSR2).unwrap();
    until("the end", DOWN, || init.has_ended());
}
