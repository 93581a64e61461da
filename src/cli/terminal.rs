//! The terminal: lines out, passwords and signals in. The only place of the command line that touches it.
//!
//! Standard output is for results, standard error for everything else. A closed pipe is not an error.

use std::io::{IsTerminal as _, Write as _};

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

/// Asks at the terminal for passwords that the fleet names nowhere. Without a terminal the node fails with a hint.
pub fn ask_passwords(fleet: &mut Fleet) {
    if !std::io::stdin().is_terminal() {
        return;
    }
    for node in &mut fleet.nodes {
        if node.password_file.is_none() && node.key_file.is_none() && node.password.is_none() {
            node.password = ask(&format!("Password of {} at {}: ", node.user, node.address));
        }
    }
}

/// Reads a line with the terminal's echo off.
fn ask(prompt: &str) -> Option<Secret> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).ok()?;
    let _ = write!(std::io::stderr(), "{prompt}");
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    complain("");
    read.ok()?;
    Some(Secret::new(line.trim_end_matches(['\r', '\n']).to_owned()))
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

/// Returns at Ctrl-C or a polite request to end.
pub async fn signalled() {
    let Ok(mut signals) = Signals::listen() else { return std::future::pending().await };
    while signals.next().await != Wish::End {}
}
