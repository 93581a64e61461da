//! The node's own fwupd: what it lists, and LVFS cabinets installed through it.
//!
//! Where its daemon runs, `fwupdmgr` asks that: `fwupdtool` would stop it, and it must stay as it was found. Where none
//! runs, `fwupdtool` does the work in its own process, and no daemon is started. What fwupd keeps for a question goes
//! into the engine's directory. An installation is noted in fwupd's own state, as every other: it needs that to finish
//! after a restart what it has begun. Its JSON is not looked into here: the box does that.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::install::{finish, node};
use super::lease::PATH;
use super::session::Worker;
use crate::wire::message::{Failure, FwupdAllows, Installed, Reply};

/// Looking for devices takes a fraction of a second, on machines with much slow hardware several.
const ASK_MAX: Duration = Duration::from_secs(120);

/// Bytes of an answer. As JSON in a message each could become six, which still fits a frame; a device takes about 1 KiB.
const ANSWER_BYTES_MAX: usize = 160 * 1024;

/// Bytes read of an answer, before its white space is taken out.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Where `fwupdtool` is on distributions that do not have it in the path.
const ELSEWHERE: [&str; 2] = ["/usr/libexec/fwupd", "/usr/lib/fwupd"];

/// Where the kernel shows its processes.
const PROC: &str = "/proc";

/// Held by `fwupdtool` while it works, and left behind by it; the second where there is no directory for locks.
const LOCKS: [&str; 2] = ["/run/lock/fwupdtool", "/run/fwupdtool"];

/// fwupd's word for "there is nothing": an answer like any other.
const NOTHING_TO_DO: i32 = 2;

/// How long what fwupd left running may take to end.
const AGENT_END_MAX: Duration = Duration::from_secs(2);

/// What fwupd lists, as JSON.
pub fn list(directory: &Path, worker: &Worker) -> Reply {
    let told = Fwupd::find(directory).and_then(|fwupd| {
        let _traces = Traces::note();
        fwupd.ask("get-devices", State::Engines, &|| worker.should_stop())
    });
    told.map_or_else(Reply::Failed, Reply::Fwupd)
}

/// Installs a cabinet: `run` runs the command as every installer is run.
///
/// # Errors
/// [`Failure`] when there is no fwupd, or it could not be run.
pub fn install(
    allows: FwupdAllows,
    payload: &Path,
    directory: &Path,
    run: impl FnOnce(Command) -> Result<Installed, Failure>,
) -> Result<Installed, Failure> {
    let fwupd = Fwupd::find(directory)?;
    let _traces = Traces::note();
    let mut command = fwupd.command(State::Nodes);
    // Without a device: fwupdtool takes one that is named twice, and writes it twice.
    command.arg("install").arg(payload).arg("--no-reboot-check");
    command.args(allows.older.then_some("--allow-older"));
    command.args(allows.reinstall.then_some("--allow-reinstall"));
    let mut installed = run(command)?;
    // Whether a restart is needed, and whether anything was tried at all, stands nowhere else: wanted also of an engine
    // that is told to stop.
    installed.told = fwupd.ask("get-history", State::Nodes, &|| false).ok();
    Ok(installed)
}

/// Whose state fwupd works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A throw-away one in the engine's directory.
    Engines,
    /// fwupd's own on the node.
    Nodes,
}

struct Fwupd {
    program: PathBuf,
    scratch: PathBuf,
}

impl Fwupd {
    fn find(directory: &Path) -> Result<Self, Failure> {
        let name = if daemon_runs(Path::new(PROC)) { "fwupdmgr" } else { "fwupdtool" };
        let mut places = PATH.split(':').chain(ELSEWHERE).map(|place| Path::new(place).join(name));
        let program = places.find(|path| path.is_file()).ok_or_else(|| node("not installed".into()))?;
        let scratch = directory.join("fwupd");
        for name in ["state", "cache"] {
            let made = std::fs::create_dir_all(scratch.join(name));
            made.map_err(|error| node(format!("{}: {error}", scratch.display())))?;
        }
        Ok(Self { program, scratch })
    }

    fn command(&self, state: State) -> Command {
        let mut command = Command::new(&self.program);
        // UTF-8, or its dots and names become question marks; a home where nothing of it is looked for.
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("NO_COLOR", "1");
        command.env("HOME", &self.scratch).env("CACHE_DIRECTORY", self.scratch.join("cache"));
        if state == State::Engines {
            command.env("STATE_DIRECTORY", self.scratch.join("state"));
        }
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        command
    }

    /// An answer as JSON, without its white space.
    fn ask(&self, what: &str, state: State, is_unwanted: &dyn Fn() -> bool) -> Result<String, Failure> {
        let name = self.program.display();
        let mut command = self.command(state);
        command.args([what, "--json"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let read = |from: std::process::ChildStdout| {
            use std::io::Read as _;
            let mut text = Vec::new();
            from.take(READ_BYTES_MAX).read_to_end(&mut text).map(|_| text)
        };
        let finished = finish(command, read, ASK_MAX, is_unwanted);
        let (status, text) = finished.map_err(|why| node(format!("{name}: {why}")))?;
        let text = compact(&String::from_utf8_lossy(&text));
        if !status.success() && status.code() != Some(NOTHING_TO_DO) {
            let said: String = text.chars().take(400).collect();
            return Err(node(format!("{name} {what}: {status}: {said}")));
        }
        if text.len() > ANSWER_BYTES_MAX {
            return Err(node(format!("{name} {what}: its answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        Ok(text)
    }
}

/// JSON without the white space between its words.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !c.is_ascii_whitespace()
    };
    json.chars().filter(keep).collect()
}

fn processes(root: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.file_name().is_some_and(is_number))
}

fn is_number(name: &OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

/// All distributions have the daemon as `…/fwupd/fwupd`. One in a container is not this node's: it has other process
/// ids. Its mount namespace says nothing, since systemd gives the node's own daemon another one too. What is not told
/// counts as the node's: an `fwupdtool` beside a daemon is worse than an `fwupdmgr` that finds none.
fn daemon_runs(root: &Path) -> bool {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/pid")).ok();
    let own = namespace(&root.join("self"));
    processes(root).any(|process| {
        let is_daemon = std::fs::read_link(process.join("exe")).is_ok_and(|program| is_daemon(&program));
        is_daemon && namespace(&process).is_none_or(|other| own.as_ref().is_none_or(|own| *own == other))
    })
}

/// A daemon that is older than its program, which was replaced by an upgrade, still runs.
fn is_daemon(program: &Path) -> bool {
    let program = program.as_os_str().as_bytes();
    Path::new(OsStr::from_bytes(program.strip_suffix(b" (deleted)").unwrap_or(program)))
        .ends_with("fwupd/fwupd")
}

/// Key agents of fwupd's keyrings: they outlive the process that asked for a signature to be checked.
fn agents() -> Vec<i32> {
    let is_agent = |process: &PathBuf| {
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"gpg-agent"))
            && words.any(|word| word.ends_with(b"/fwupd/gnupg"))
    };
    let number = |process: PathBuf| process.file_name()?.to_str()?.parse().ok();
    processes(Path::new(PROC)).filter(is_agent).filter_map(number).collect()
}

/// What `fwupdtool` leaves behind; taken away when this is dropped, as far as it was not there before.
struct Traces {
    /// Those that were not there.
    locks: Vec<&'static str>,
    /// Those that were there.
    agents: Vec<i32>,
}

impl Traces {
    fn note() -> Self {
        let locks = LOCKS.into_iter().filter(|lock| !Path::new(lock).exists()).collect();
        Self { locks, agents: agents() }
    }

    fn new_agents(&self) -> Vec<i32> {
        agents().into_iter().filter(|pid| !self.agents.contains(pid)).collect()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        for lock in &self.locks {
            let _ = std::fs::remove_file(lock);
        }
        let began = Instant::now();
        for pid in self.new_agents() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        while began.elapsed() < AGENT_END_MAX && !self.new_agents().is_empty() {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_daemon_is_seen_also_after_an_upgrade_and_no_containers() {
        let (own, other) = ("pid:[4026531836]", "pid:[4026532001]");
        let runs = |program: &str, namespace: Option<&str>| {
            let proc = tempfile::tempdir().unwrap();
            for (process, program, namespace) in
                [("self", "/carena", Some(own)), ("7", program, namespace), ("8", "/bin/sh", Some(own))]
            {
                let process = proc.path().join(process);
                std::fs::create_dir_all(process.join("ns")).unwrap();
                std::os::unix::fs::symlink(program, process.join("exe")).unwrap();
                if let Some(namespace) = namespace {
                    std::os::unix::fs::symlink(namespace, process.join("ns/pid")).unwrap();
                }
            }
            daemon_runs(proc.path())
        };
        for program in ["/usr/libexec/fwupd/fwupd", "/usr/lib/fwupd/fwupd (deleted)"] {
            assert!(runs(program, Some(own)) && runs(program, None), "{program}");
            assert!(!runs(program, Some(other)), "{program} of a container");
        }
        assert!(!runs("/usr/libexec/fwupd/fwupdtool", Some(own)));
    }

    #[test]
    fn only_white_space_between_words_is_taken_out() {
        let json = "{\n  \"Name\" : \"A \\\"b\\\\\",\n  \"Flags\" : [\n    \"x y\"\n  ]\n}\n";
        assert_eq!(compact(json), "{\"Name\":\"A \\\"b\\\\\",\"Flags\":[\"x y\"]}");
    }
}
