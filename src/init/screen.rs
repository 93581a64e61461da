//! Where PID 1 is heard: the kernel's log for everything, all consoles for what a person must see.
//!
//! Serial and screen get the same lines. A console that does not take bytes (no such port, flow control) is
//! skipped: nothing here may block or fail the boot.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc::{O_CLOEXEC, O_NOCTTY, O_NONBLOCK};
use nix::time::{ClockId, clock_gettime};

struct Screen {
    kmsg: Option<File>,
    consoles: Vec<File>,
}

static SCREEN: OnceLock<Screen> = OnceLock::new();

/// The two consoles a machine of this kind has, whatever the kernel was told to use.
const CONSOLES: [&str; 2] = ["ttyS0", "tty0"];

/// Opens the log and every console that is there. Once; later calls change nothing.
pub fn open() {
    SCREEN.get_or_init(|| {
        let mut consoles: Vec<File> = console_names().iter().filter_map(|name| open_console(name)).collect();
        if consoles.is_empty() {
            // Not on a machine's consoles (PID 1 of a namespace): what the parent gave is the screen.
            consoles.extend(std::io::stdout().as_fd_owned());
        }
        Screen { kmsg: OpenOptions::new().write(true).open("/dev/kmsg").ok(), consoles }
    });
}

trait AsOwned {
    fn as_fd_owned(&self) -> Option<File>;
}

impl AsOwned for std::io::Stdout {
    fn as_fd_owned(&self) -> Option<File> {
        use std::os::fd::AsFd;
        self.as_fd().try_clone_to_owned().ok().map(File::from)
    }
}

/// The kernel's active consoles and the usual two, each once.
fn console_names() -> Vec<String> {
    let active = std::fs::read_to_string("/proc/consoles").unwrap_or_default();
    let mut names: Vec<String> = CONSOLES.iter().map(|&name| name.to_owned()).collect();
    for name in active.lines().filter_map(|line| line.split_whitespace().next()) {
        // ttyS1 and the like; a tty1 beside tty0 would be the same screen twice.
        if name.starts_with("ttyS") && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// A port that the kernel lists but the machine lacks opens, but is no terminal.
fn open_console(name: &str) -> Option<File> {
    let flags = O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(format!("/dev/{name}")).ok()?;
    file.is_terminal().then_some(file)
}

/// For the record: the kernel's log only.
pub fn note(line: &str) {
    if let Some(mut kmsg) = SCREEN.get().and_then(|screen| screen.kmsg.as_ref()) {
        // 6 is "informational"; one write is one record, so a line break would end it early.
        let _ = kmsg.write_all(format!("<6>carena: {}\n", line.replace('\n', " ")).as_bytes());
    }
}

/// For a person: all consoles, and the record.
pub fn say(line: &str) {
    note(line);
    show(&format!("carena: {line}\n"));
}

/// Text as it is, on all consoles and not in the log: what only someone at the machine may see.
pub fn show(text: &str) {
    for mut console in SCREEN.get().iter().flat_map(|screen| screen.consoles.iter()) {
        let _ = console.write_all(text.replace('\n', "\r\n").as_bytes());
    }
}

/// Since the kernel started.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
