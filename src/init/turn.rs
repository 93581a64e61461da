//! The loop of PID 1: waits for signals, devices, buttons and `serve`, and answers each.
//!
//! One `poll`, level-triggered: what is missed in one turn is there in the next. Leaves only when the machine is to
//! go down and `serve` has ended; until then it goes on with all of its work, so that a person sees what is waited
//! for and is heard when he cannot wait.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::listen::{Serve, ready_text, stopping_text};
use super::modules::Stage;
use super::report::Report;
use super::shutdown::{Exit, Next, SERVE_STOP_MAX, Stop};
use super::supervise::Found;
use super::uevents::Heard;
use super::{Machine, journal_socket, screen, supervise};

/// What a person has to know when nobody takes back any more what is on nodes.
const LEFT: &str = "what may be left on nodes is taken back when this machine is up again; until then engines let a \
    running installation finish, and remove themselves when their lease is over";

/// Turns until the machine is to be left.
pub fn until_down(machine: &mut Machine) -> Exit {
    let mut stop: Option<Stop> = None;
    loop {
        wait(machine, stop.as_ref());
        if let Some(exit) = wish(machine) {
            match &mut stop {
                Some(stop) => stop.wished_again(exit, Instant::now()),
                None => stop = Some(begin_stop(machine, exit)),
            }
        }
        drain_uevents(machine);
        listen(machine);
        reap(machine);
        match &mut stop {
            None => serve_due(machine),
            Some(stop) => {
                if let Some(exit) = go_on_stopping(machine, stop) {
                    return exit;
                }
            }
        }
    }
}

fn wait(machine: &Machine, stop: Option<&Stop>) {
    let fds = machine.signals.iter().map(AsFd::as_fd);
    let fds = fds.chain(machine.uevents.iter().map(AsFd::as_fd)).chain(machine.buttons.fds());
    let fds = fds.chain(machine.serve.files().map(AsFd::as_fd));
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Without a signal descriptor deaths are only seen by looking; so are they, for safety, on the way down.
    let look = PollTimeout::from(1000_u16);
    let longest = if machine.signals.is_some() && stop.is_none() { PollTimeout::NONE } else { look };
    let timeout = machine.supervisor.wakes_at().map_or(longest, |at| {
        let left = at.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let _ = poll(&mut fds, timeout);
}

/// How somebody wants the machine to go down.
fn wish(machine: &mut Machine) -> Option<Exit> {
    if machine.buttons.pressed() {
        screen::say("power button");
        return Some(Exit::PowerOff);
    }
    let signals = machine.signals.as_ref()?;
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        let (said, exit) = match signal {
            Some(Signal::SIGINT) => ("Ctrl-Alt-Del", Exit::Reboot),
            Some(Signal::SIGTERM) => ("SIGTERM", Exit::Reboot),
            Some(Signal::SIGUSR2) => ("SIGUSR2", Exit::PowerOff),
            Some(Signal::SIGUSR1) => ("SIGUSR1", Exit::Halt),
            _ => continue,
        };
        screen::say(said);
        return Some(exit);
    }
    None
}

fn begin_stop(machine: &mut Machine, exit: Exit) -> Stop {
    match machine.supervisor.end() {
        Found::Alive(pid) => {
            screen::say(&format!(
                "serve is asked to end: what is being written on nodes is finished, then all is taken back \
                 (at most {} min; ask again to end it at once)",
                SERVE_STOP_MAX.as_secs() / 60
            ));
            let _ = kill(pid, Signal::SIGTERM);
        }
        // A service that dies again and again would only hold the machine up.
        Found::Dead => screen::say(&format!("serve has died and is not started again: {LEFT}")),
        Found::Nothing => {}
    }
    Stop::begin(exit, Instant::now())
}

fn go_on_stopping(machine: &Machine, stop: &mut Stop) -> Option<Exit> {
    let serve = machine.supervisor.pid();
    match stop.next(serve.is_some(), Instant::now()) {
        Next::Wait(_) => None,
        Next::Kill => {
            screen::say(&format!("serve is ended before its time: {LEFT}"));
            let _ = serve.map(|pid| kill(pid, Signal::SIGKILL));
            None
        }
        Next::Leave => Some(stop.exit),
    }
}

/// Loads modules for new devices and opens new buttons, until nothing new is there.
pub fn drain_uevents(machine: &mut Machine) {
    while let Some(heard) = machine.uevents.as_ref().and_then(super::Uevents::next) {
        let event = match heard {
            Heard::Event(event) => event,
            Heard::Lost => {
                machine.modules.load_for_present_devices(machine.stage);
                machine.buttons.find_all();
                continue;
            }
        };
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
            machine.serve = Serve::new(child);
        }
        Err(error) => {
            let again = again(machine.supervisor.ended(now));
            screen::say(&format!("serve cannot be started: {error}{again}"));
        }
    }
}

fn again(wait: Option<std::time::Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!("; again in {:.1} s", wait.as_secs_f64()))
}

fn listen(machine: &mut Machine) {
    for report in machine.serve.listen() {
        match report {
            Report::Ready(ready) => {
                // The first report of a boot carries its time, and only then is there time for disks.
                if machine.stage == Stage::WithoutDisks {
                    screen::say(&format!("ready {:.3} s", screen::since_boot().as_secs_f64()));
                    machine.stage = Stage::Everything;
                    machine.modules.load_for_present_devices(machine.stage);
                }
                screen::show(&ready_text(&ready));
            }
            Report::Stopping(stopping) => screen::say(&stopping_text(&stopping)),
        }
    }
}

/// Takes every dead process; orphans of others are only taken.
fn reap(machine: &mut Machine) {
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) if status.pid().is_some() && status.pid() == machine.supervisor.pid() => {
                died(machine, status);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn died(machine: &mut Machine, status: WaitStatus) {
    listen(machine);
    let how = match status {
        WaitStatus::Exited(_, code) => format!("exited with {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was ended by {}", signal.as_str()),
        other => format!("ended: {other:?}"),
    };
    let wait = machine.supervisor.ended(Instant::now());
    let serve = std::mem::take(&mut machine.serve);
    if wait.is_none() {
        return match status {
            WaitStatus::Exited(_, 0) => screen::note(&format!("serve {how}")),
            _ => screen::say(&format!("serve {how}: {LEFT}")),
        };
    }
    screen::say(&format!("serve {how}{}", again(wait)));
    for line in serve.last_lines().chain(&journal_socket::last_messages()) {
        screen::show(&format!("  {line}\n"));
    }
}
