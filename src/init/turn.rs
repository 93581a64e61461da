//! The loop of PID 1: waits for signals, devices, buttons and `serve`, and answers each.
//!
//! One `poll`, level-triggered: what is missed in one turn is there in the next. Leaves only with the way the
//! machine is to go down.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use heapless::HistoryBuf;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::modules::Stage;
use super::report::{REPORT_BYTES_MAX, Ready, Report};
use super::shutdown::Exit;
use super::{Machine, screen, supervise};

/// How many of its last lines are shown when `serve` dies.
const LAST_LINES: usize = 16;

/// What `serve` has said and not yet finished saying.
#[derive(Default)]
struct Heard {
    report: Vec<u8>,
    output: Vec<u8>,
    last: HistoryBuf<String, LAST_LINES>,
    ready_told: bool,
}

/// Turns until somebody asks for the end.
pub fn until_asked_to_stop(machine: &mut Machine) -> Exit {
    let mut heard = Heard::default();
    loop {
        wait(machine);
        if let Some(exit) = signalled(machine) {
            return exit;
        }
        drain_uevents(machine);
        if machine.buttons.pressed() {
            screen::say("power button");
            return Exit::PowerOff;
        }
        listen(machine, &mut heard);
        reap(machine, &mut heard);
        serve_due(machine);
    }
}

fn wait(machine: &Machine) {
    let fds = machine.signals.iter().map(AsFd::as_fd);
    let fds = fds.chain(machine.uevents.iter().map(AsFd::as_fd)).chain(machine.buttons.fds());
    let fds = fds.chain(machine.report.iter().chain(machine.output.iter()).map(AsFd::as_fd));
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Without a signal descriptor deaths are only seen by looking.
    let longest = if machine.signals.is_some() { PollTimeout::NONE } else { PollTimeout::from(1000_u16) };
    let timeout = machine.supervisor.wakes_at().map_or(longest, |at| {
        let left = at.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let _ = poll(&mut fds, timeout);
}

fn signalled(machine: &Machine) -> Option<Exit> {
    let signals = machine.signals.as_ref()?;
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        let exit = match signal {
            // What the kernel makes of Ctrl-Alt-Del.
            Some(Signal::SIGINT | Signal::SIGTERM) => Exit::Reboot,
            Some(Signal::SIGUSR2) => Exit::PowerOff,
            Some(Signal::SIGUSR1) => Exit::Halt,
            _ => continue,
        };
        screen::say(signal.map_or("signal", Signal::as_str));
        return Some(exit);
    }
    None
}

/// Loads modules for new devices and opens new buttons, until nothing new is there.
pub fn drain_uevents(machine: &mut Machine) {
    while let Some(event) = machine.uevents.as_ref().and_then(super::Uevents::next) {
        if event.action != "add" {
            continue;
        }
        if let Some(modalias) = &event.modalias {
            machine.modules.load_for(modalias);
        }
        if let ("input", Some(devname)) = (event.subsystem.as_str(), &event.devname) {
            machine.buttons.add(&Path::new("/dev").join(devname));
        }
    }
}

/// Starts `serve` when it is due.
pub fn serve_due(machine: &mut Machine) {
    let now = Instant::now();
    if !machine.supervisor.is_due(now) {
        return;
    }
    match supervise::start() {
        Ok(child) => {
            screen::note(&format!("serve: pid {}", child.pid));
            machine.supervisor.started(child.pid, now);
            machine.report = Some(child.report);
            machine.output = Some(child.output);
        }
        Err(error) => {
            let wait = machine.supervisor.ended(now);
            screen::say(&format!("serve cannot be started: {error}; again in {:.1} s", wait.as_secs_f64()));
        }
    }
}

fn listen(machine: &mut Machine, heard: &mut Heard) {
    if !read_available(&machine.report, &mut heard.report) {
        machine.report = None;
    }
    if !read_available(&machine.output, &mut heard.output) {
        machine.output = None;
    }
    while let Some(line) = take_line(&mut heard.report) {
        match Report::parse(&line) {
            Ok(Report::Ready(ready)) => {
                tell_ready(&ready, heard);
                machine.modules.load_for_present_devices(Stage::Everything);
            }
            // The message may hold the token: only that it came is told.
            Err(_) => screen::say("serve sent a report that cannot be read"),
        }
    }
    while let Some(line) = take_line(&mut heard.output) {
        let line = String::from_utf8_lossy(&line).into_owned();
        screen::note(&format!("serve: {line}"));
        heard.last.write(line);
    }
}

/// False at the end. What is longer than a line may be is dropped.
fn read_available(from: &Option<std::os::fd::OwnedFd>, into: &mut Vec<u8>) -> bool {
    let Some(fd) = from else { return true };
    let Ok(mut file) = fd.try_clone().map(File::from) else { return false };
    let mut buffer = [0_u8; 4096];
    // Bounded, so that a chatty `serve` does not keep signals waiting.
    for _ in 0..16 {
        match file.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => into.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
        if into.len() > REPORT_BYTES_MAX && !into.contains(&b'\n') {
            into.clear();
        }
    }
    true
}

fn take_line(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = buffer.iter().position(|&byte| byte == b'\n')?;
    let mut line: Vec<u8> = buffer.drain(..=end).collect();
    line.pop();
    Some(line)
}

/// The first report of a boot carries its time. The token goes to the consoles only, never to the log.
fn tell_ready(ready: &Ready, heard: &mut Heard) {
    if !heard.ready_told {
        heard.ready_told = true;
        screen::say(&format!("ready {:.3} s", screen::since_boot().as_secs_f64()));
    }
    let mut text = String::from("\n  Carena\n");
    for url in &ready.urls {
        text.push_str(&format!("  console      {url}\n"));
    }
    if ready.urls.is_empty() {
        text.push_str("  console      no address yet\n");
    }
    text.push_str(&format!(
        "  certificate  sha256 {}\n  token        {}\n\n",
        ready.fingerprint, ready.token
    ));
    screen::show(&text);
}

/// Takes every dead process; orphans of others are only taken.
fn reap(machine: &mut Machine, heard: &mut Heard) {
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) if status.pid().is_some() && status.pid() == machine.supervisor.pid() => {
                died(machine, heard, status);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn died(machine: &mut Machine, heard: &mut Heard, status: WaitStatus) {
    listen(machine, heard);
    let wait = machine.supervisor.ended(Instant::now());
    let how = match status {
        WaitStatus::Exited(_, code) => format!("exited with {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was ended by {}", signal.as_str()),
        other => format!("ended: {other:?}"),
    };
    screen::say(&format!("serve {how}; again in {:.1} s", wait.as_secs_f64()));
    for line in heard.last.oldest_ordered() {
        screen::show(&format!("  {line}\n"));
    }
    *heard = Heard { ready_told: heard.ready_told, ..Heard::default() };
    machine.report = None;
    machine.output = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_one_by_one_and_the_rest_waits() {
        let mut buffer = b"one\ntwo\nthr".to_vec();
        assert_eq!(take_line(&mut buffer).unwrap(), b"one");
        assert_eq!(take_line(&mut buffer).unwrap(), b"two");
        assert_eq!(take_line(&mut buffer), None);
        assert_eq!(buffer, b"thr");
    }
}
