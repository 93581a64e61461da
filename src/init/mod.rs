//! PID 1 of the appliance: brings the machine up, keeps `serve` alive, takes the machine down.
//!
//! It runs on one thread around one `poll` (the journal socket has a thread of its own), parses nothing that comes
//! from the network, and holds no state worth keeping: what matters lives in `serve` and its journal. It must
//! never return and never panic the kernel: a phase that fails is told on the consoles and the next one is
//! tried, a panic ends in a bounded reboot.

pub mod confine;
mod journal_socket;
mod listen;
mod modules;
mod mounts;
mod power;
pub mod report;
mod screen;
mod shutdown;
mod supervise;
mod turn;
mod uevents;

use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use listen::Serve;
use modules::{Modules, Stage};
use power::Buttons;
use shutdown::Exit;
use supervise::Supervisor;
use uevents::Uevents;

/// What can go wrong while the machine comes up. None of these ends PID 1.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// One or more file systems are missing.
    #[error("not mounted: {0}")]
    Mounts(String),
    /// A file of the boot could not be read or made.
    #[error("{path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A system call was refused.
    #[error("{what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        cause: Errno,
    },
}

impl InitError {
    fn call(what: &'static str) -> impl Fn(Errno) -> Self {
        move |cause| Self::Call { what, cause }
    }

    fn file(path: &str) -> impl Fn(std::io::Error) -> Self {
        move |cause| Self::File { path: path.to_owned(), cause }
    }
}

/// Everything PID 1 holds open.
#[derive(Default)]
struct Machine {
    signals: Option<SignalFd>,
    modules: Modules,
    uevents: Option<Uevents>,
    buttons: Buttons,
    stage: Stage,
    supervisor: Supervisor,
    serve: Serve,
}

type Phase = (&'static str, fn(&mut Machine) -> Result<(), InitError>);

/// The boot, in its order. The name is the one in the log.
const PHASES: [Phase; 9] = [
    ("mounts", |_| {
        let mounted = mounts::mount_all();
        screen::open();
        mounted
    }),
    ("signals", block_signals),
    ("name", |_| nix::unistd::sethostname("carena").map_err(InitError::call("naming the machine"))),
    ("journal", |_| journal_socket::start()),
    ("modules", |machine| {
        machine.modules = Modules::read()?;
        Ok(())
    }),
    ("coldplug", coldplug),
    ("packet filter", |machine| {
        for name in PACKET_FILTER {
            machine.modules.load(name);
        }
        for (setting, value) in CONNECTIONS {
            #[expect(clippy::disallowed_methods, reason = "a kernel setting, not a file that must last")]
            std::fs::write(setting, value).map_err(InitError::file(setting))?;
        }
        Ok(())
    }),
    ("buttons", |machine| {
        machine.buttons.find_all();
        Ok(())
    }),
    ("serve", |machine| {
        machine.supervisor.begin(Instant::now());
        turn::serve_due(machine);
        Ok(())
    }),
];

/// What the firewall of `serve` needs of the kernel, which it has no right to load. The first is a checksum that the others
/// ask the kernel for while they are loaded, so no list of dependencies has it.
const PACKET_FILTER: [&str; 5] = ["crc32c_generic", "nf_tables", "nft_compat", "nft_limit", "xt_conntrack"];

/// What the kernel remembers of connections. By default as few as a small machine's memory suggests, and each for two minutes
/// after its end: a neighbour that opens and closes what it may would fill that, and nodes would be kept out.
const CONNECTIONS: [(&str, &str); 2] = [
    ("/proc/sys/net/netfilter/nf_conntrack_max", "32768"),
    ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "10"),
];

/// How long a PID 1 that has panicked shows why before it restarts the machine.
const PANIC_SHOWN: Duration = Duration::from_secs(10);

/// The whole life of the machine, from the kernel's hand-over to its reset.
pub fn run() -> ! {
    panic::set_hook(Box::new(|info| screen::say(&format!("BUG: init: {info}"))));
    let exit = panic::catch_unwind(AssertUnwindSafe(live)).unwrap_or_else(|_| {
        screen::say(&format!("init failed, restarting the machine in {} s", PANIC_SHOWN.as_secs()));
        shutdown::pause(PANIC_SHOWN);
        Exit::Reboot
    });
    shutdown::leave(exit)
}

fn live() -> Exit {
    let mut machine = Machine::default();
    for (name, phase) in PHASES {
        let begun = Instant::now();
        let result = phase(&mut machine);
        match result {
            Ok(()) => screen::note(&format!("{name}: {:.3} s", begun.elapsed().as_secs_f64())),
            Err(error) => screen::say(&format!("{name}: {}", crate::error::chain(&error))),
        }
    }
    turn::until_down(&mut machine)
}

/// Signals are read from a descriptor, never handled. Ctrl-Alt-Del becomes SIGINT instead of an instant reset.
fn block_signals(machine: &mut Machine) -> Result<(), InitError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2] {
        set.add(signal);
    }
    set.thread_block().map_err(InitError::call("blocking signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    machine.signals =
        Some(SignalFd::with_flags(&set, flags).map_err(InitError::call("opening the signals"))?);
    // Refused in a PID namespace that is not the machine's own: there is no Ctrl-Alt-Del to take.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    Ok(())
}

/// The socket is opened before the buses are read: a device that appears in between is seen by both.
fn coldplug(machine: &mut Machine) -> Result<(), InitError> {
    machine.uevents = Some(Uevents::open()?);
    for name in ["button", "evdev"] {
        machine.modules.load(name);
    }
    machine.modules.load_for_present_devices(machine.stage);
    turn::drain_uevents(machine);
    Ok(())
}
