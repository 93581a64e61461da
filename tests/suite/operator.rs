//! The operator's side of a test: baselines made for it, fleets, and the command line run and read.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use carena::digest::Sha256;
use serde_json::Value;

use crate::lab::Lab;

/// A command that has ended.
pub struct Run {
    pub exit: i32,
    pub summary: Value,
    pub events: Vec<Value>,
    pub stderr: String,
    pub all: String,
}

impl Run {
    fn read(exit: i32, stdout: String, stderr: String) -> Self {
        let mut events: Vec<Value> =
            stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let last = events.pop_if(|last| last.get("summary").is_some()).unwrap_or_default();
        Self { exit, summary: last["summary"].clone(), events, all: format!("{stdout}{stderr}"), stderr }
    }

    pub fn node(&self, lab: &Lab, k: usize) -> &Value {
        &self.summary["nodes"][lab.node_address(k)]
    }

    /// The first component of a node.
    pub fn component(&self, lab: &Lab, k: usize) -> &Value {
        &self.node(lab, k)["components"][0]
    }

    pub fn id(&self) -> &str {
        self.summary["deployment"].as_str().unwrap()
    }

    /// Outcomes of a node's components, in their order.
    pub fn outcomes(&self, lab: &Lab, k: usize) -> Vec<&str> {
        let components = self.node(lab, k)["components"].as_array().unwrap();
        components.iter().map(|component| component["outcome"].as_str().unwrap()).collect()
    }

    /// The number of the first such event of a node.
    pub fn first(&self, lab: &Lab, k: usize, step: &str, state: &str) -> usize {
        let address = lab.node_address(k);
        let is =
            |event: &Value| event["node"] == *address && event["step"] == step && event["state"] == state;
        self.events
            .iter()
            .position(is)
            .unwrap_or_else(|| panic!("no {step} {state} of node {k}: {}", self.all))
    }
}

pub fn run(command: &mut Command) -> Run {
    ended(command.stdin(Stdio::null()).output().unwrap())
}

pub fn ended(output: std::process::Output) -> Run {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run::read(output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

pub fn deploy(lab: &Lab, fleet: &Path) -> Run {
    run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]))
}

pub fn sweep(lab: &Lab) -> Run {
    run(&mut lab.carena(&["sweep", "--json"]))
}

/// A command line that runs, each of whose events is handed to the test.
pub struct Running {
    child: Child,
}

impl Running {
    pub fn start(lab: &Lab, arguments: &[&str]) -> Self {
        Self::spawn(&mut lab.carena(arguments))
    }

    /// One that a test has prepared.
    pub fn spawn(command: &mut Command) -> Self {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    /// The process itself: the lab's script and nsenter become it by exec, or have it as their child.
    pub fn pid(&self) -> nix::unistd::Pid {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let pid = children.split_whitespace().next().map_or(id, |pid| pid.parse().unwrap());
        nix::unistd::Pid::from_raw(pid.cast_signed())
    }

    /// The same, once the script has become the program.
    pub fn pid_when_started(&self) -> nix::unistd::Pid {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let pid = self.pid();
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "carena" {
                return pid;
            }
            assert!(std::time::Instant::now() < end, "carena was not started: {name}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// What was started: the program itself, or nsenter, which waits for it.
    pub fn parent(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its resident memory, KiB: what it has now (`VmRSS`) and the most it has had (`VmHWM`). Zeros when it has ended.
    pub fn memory_kib(&self) -> [u64; 2] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        ["VmRSS:", "VmHWM:"].map(|name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            value.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
        })
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        // One that has just ended cannot be signalled, and need not be.
        let _ = nix::sys::signal::kill(self.pid(), signal);
    }

    /// Does something while the process stands still.
    pub fn while_paused(&self, work: impl FnOnce()) {
        use nix::sys::signal::{Signal, kill};
        self.signal(Signal::SIGSTOP);
        work();
        self.signal(Signal::SIGCONT);
        // nsenter stops itself with its child.
        let _ = kill(self.parent(), Signal::SIGCONT);
    }

    /// To the end; `each` may act on what happens.
    pub fn watch(mut self, mut each: impl FnMut(&Self, &Value)) -> Run {
        let stdout = self.child.stdout.take().unwrap();
        let mut stderr = self.child.stderr.take().unwrap();
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut said = String::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            each(&self, &serde_json::from_str(&line).unwrap_or_default());
            said.push_str(&line);
            said.push('\n');
        }
        let status = self.child.wait().unwrap();
        Run::read(status.code().unwrap_or(-1), said, complaints.join().unwrap())
    }
}

/// Whether an event is this one, of any node.
pub fn is(event: &Value, step: &str, state: &str) -> bool {
    event["step"] == step && event["state"] == state
}

/// A component made for a test: version 2.0, read back from `/var/lib/ID` unless it says otherwise.
pub struct Thing<'a> {
    pub id: &'a str,
    pub payload: Vec<u8>,
    pub read_back: String,
    pub extra: &'a str,
}

impl<'a> Thing<'a> {
    pub fn new(id: &'a str, script: &str) -> Self {
        let read_back = format!("{{ file = \"/var/lib/{id}\" }}");
        Self { id, payload: script.as_bytes().to_vec(), read_back, extra: "" }
    }

    /// Active only after a restart, like real firmware: until then the old version is read back.
    pub fn after_restart(id: &'a str) -> Self {
        let file = format!("/var/lib/{id}");
        let boot = "/proc/sys/kernel/random/boot_id";
        let ask =
            format!("[ -e {file} ] || exit 0; if cmp -s {file} {boot}; then echo 1.0; else echo 2.0; fi");
        let read_back = format!("{{ command = [\"/bin/sh\", \"-c\", {ask:?}] }}");
        Self { read_back, ..Self::new(id, &format!("cat {boot} > {file}; exit 10\n")) }
    }
}

pub fn baseline(lab: &Lab, name: &str, things: &[Thing<'_>]) -> PathBuf {
    let directory = lab.dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let mut manifest = format!("id = {name:?}\nversion = \"1\"\ntitle = \"test\"\n");
    for Thing { id, payload, read_back, extra } in things {
        std::fs::write(directory.join(id), payload).unwrap();
        manifest.push_str(&format!(
            "[[component]]\nid = {id:?}\ntitle = \"test\"\nversion = \"2.0\"\nformat = \"plain\"\npayload = {id:?}\n\
             sha256 = \"{}\"\nsize = {}\nexpected_s = 5\nread_back = {read_back}\n{extra}\n\
             install = {{ command = [\"/bin/sh\", \"{{payload}}\"], exit = {{ 0 = \"done\", 10 = \"reboot-needed\" }} }}\n",
            Sha256::of(payload),
            payload.len()
        ));
    }
    std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
    directory
}

/// What a snapshot has beside the components' own files under `/var/lib`.
pub fn besides(snapshot: &str, things: &[&str]) -> String {
    let own = |line: &str| things.iter().any(|id| line.starts_with(&format!("/var/lib/{id}")));
    snapshot.lines().filter(|line| !own(line)).map(|line| format!("{line}\n")).collect()
}
