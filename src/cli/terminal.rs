//! The terminal: lines out, passwords and signals in. The only place of the command line that touches it.
//!
//! Standard output is for results, standard error for everything else. A closed pipe is not an error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fleet::Fleet;
use crate::secret::Secret;

/// A line on standard output.
pub fn say(line: &str) {
    // Flushed at each line: a reader on a pipe must see an event before the act it announces.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line on standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The terminal's settings before its echo was switched off.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Asks at the terminal for passwords that the fleet names nowhere; none when the operator gives up. Without a terminal
/// the node fails with a hint.
pub async fn ask_passwords(mut fleet: Fleet, signals: &mut Signals) -> Option<Fleet> {
    if !std::io::stdin().is_terminal() {
        return Some(fleet);
    }
    let asking = tokio::task::spawn_blocking(move || {
        ask_each(&mut fleet);
        fleet
    });
    tokio::select! {
        asked = asking => asked.ok(),
        _ = signals.next() => {
            restore_echo();
            complain("");
            None
        }
    }
}

fn ask_each(fleet: &mut Fleet) {
    for node in &mut fleet.nodes {
        if node.password_file.is_none() && node.key_file.is_none() && node.password.is_none() {
            node.password = ask(&format!("Password of {} at {}: ", node.user, node.address));
        }
    }
}

/// Reads a line with the terminal's echo off.
fn ask(prompt: &str) -> Option<Secret> {
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).ok()?;
    let _ = write!(std::io::stderr(), "{prompt}");
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    restore_echo();
    complain("");
    // The end of input is no password, not an empty one.
    (read.ok()? > 0).then(|| Secret::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn restore_echo() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &before);
    }
}

/// What the world outside wants of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Ctrl-C, or a polite request to end.
    End,
    /// The terminal went away. Deployments go on without it.
    HangUp,
}

/// Signals from now on; without it the first would end the process with everything it has begun.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Listens from now on, until the process ends.
    ///
    /// # Errors
    /// Those of the system.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next wish.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::End,
            _ = self.terminate.recv() => Wish::End,
            _ = self.hang_up.recv() => Wish::HangUp,
        }
    }
}
