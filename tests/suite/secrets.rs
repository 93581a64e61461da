//! No secret is where another person could find it: a deployment with planted secrets runs while every process's
//! arguments and environment are searched, on the box and on the nodes; then its output, its log, its store, and what
//! it wrote on the nodes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::deployment::{baseline, ended};
use crate::journal::Journal;
use crate::lab::Lab;

/// Prints each place in any process's arguments or environment that holds a needle, until the file `done` appears.
/// The hub sees the processes of all its nodes.
const SEARCH: &str = "needles=$1; done=$2
while :; do
    grep -aslFf $needles /proc/[0-9]*/cmdline /proc/[0-9]*/environ && echo found
    [ ! -e $done ] || exit 0
done";

/// Secrets of this run, one a line, in a file that only `grep -f` reads.
struct Needles(PathBuf);

impl Needles {
    /// The lab's secrets, one that is wrong, and a line from the middle of the private key.
    fn of(lab: &Lab) -> Self {
        let read = |name: &str| std::fs::read_to_string(lab.dir().join(name)).unwrap();
        let wrong = "a-planted-secret-that-opens-nothing";
        std::fs::write(lab.dir().join("wrong.secret"), format!("{wrong}\n")).unwrap();
        let key = read("id_ed25519");
        let inner = key.lines().nth(3).unwrap();
        let needles = Self(lab.dir().join("needles"));
        needles.write(&[read("op.secret").trim(), read("root.secret").trim(), wrong, inner]);
        needles
    }

    fn write(&self, secrets: &[&str]) {
        assert!(secrets.iter().all(|secret| secret.len() >= 16), "too short to be unique");
        std::fs::write(&self.0, secrets.join("\n")).unwrap();
    }

    fn are_in_text(&self, text: &[u8]) -> bool {
        let mut grep =
            Command::new("grep").args(["-qaFf"]).arg(&self.0).stdin(Stdio::piped()).spawn().unwrap();
        // grep ends at the first match, and does not read on.
        let _ = grep.stdin.take().unwrap().write_all(text);
        grep.wait().unwrap().success()
    }

    fn are_in_files(&self, root: &Path) -> String {
        let found = Command::new("grep").args(["-rslaFf"]).arg(&self.0).arg(root).output().unwrap();
        String::from_utf8(found.stdout).unwrap()
    }

    /// The files of a node, in every place that one could write to, with a needle in them.
    fn are_on_node(&self, lab: &Lab, k: usize) -> String {
        let search = "grep -rslaFf - /run /tmp /var/tmp /root /home /dev/shm /var/lib /var/log";
        let mut grep = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab"))
            .arg("exec")
            .arg(lab.dir())
            .args([&format!("node{k}"), "--", "sh", "-c", search])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        grep.stdin.take().unwrap().write_all(&std::fs::read(&self.0).unwrap()).unwrap();
        String::from_utf8(grep.wait_with_output().unwrap().stdout).unwrap()
    }
}

/// Searches all processes while `work` goes on; returns what was found.
fn searching<T>(lab: &Lab, needles: &Needles, work: impl FnOnce() -> T) -> (T, String) {
    let done = lab.dir().join("searched");
    let _ = std::fs::remove_file(&done);
    let search = lab
        .hub_command("sh")
        .args(["-c", SEARCH, "sh"])
        .args([&needles.0, &done])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let result = work();
    std::fs::write(&done, "").unwrap();
    (result, String::from_utf8(search.wait_with_output().unwrap().stdout).unwrap())
}

/// The search itself finds what is planted: in an argument on a node, in an environment on the box.
#[test]
fn planted_secrets_are_found_by_the_search() {
    let lab = Lab::up(1);
    let needles = Needles::of(&lab);
    let secret = std::fs::read_to_string(lab.dir().join("op.secret")).unwrap().trim().to_owned();
    let ((), found) = searching(&lab, &needles, || {
        lab.on_node(1, &format!("sh -c 'sleep 0.3' {secret}"));
    });
    assert!(found.contains("cmdline"), "{found}");
    let ((), found) = searching(&lab, &needles, || {
        lab.hub_command("sleep").arg("0.3").env("PLANTED", &secret).status().unwrap();
    });
    assert!(found.contains("environ"), "{found}");
    assert!(needles.are_in_text(format!("x{secret}y").as_bytes()) && !needles.are_in_text(b"nothing"));
    lab.on_node(1, &format!("echo {secret} > /var/tmp/planted"));
    assert_eq!(needles.are_on_node(&lab, 1), "/var/tmp/planted\n");
}

/// Node 1 by password and sudo, node 2 by key, node 3 with a wrong password, all with an installer that takes its
/// time.
#[test]
fn no_secret_is_in_processes_logs_store_output_or_on_the_nodes() {
    let lab = Lab::up(3);
    let needles = Needles::of(&lab);
    let journal = Journal::listen(&lab);
    let slow = baseline(&lab, "slow", "sleep 1.5; echo 2.0 > /var/lib/thing");
    let fleet = lab.fleet(&[1, 2, 3], slow.to_str().unwrap(), "");
    let text = std::fs::read_to_string(&fleet).unwrap();
    let (first, last) = text.rsplit_once("op.secret").unwrap();
    std::fs::write(&fleet, format!("{first}wrong.secret{last}")).unwrap();

    let mut keys_on_disk = String::new();
    let (run, found) = searching(&lab, &needles, || {
        let mut command = lab.carena(&["deploy", fleet.to_str().unwrap(), "--json"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        journal.wait_for_field("F_STEP", "install", Duration::from_secs(60));
        // The engine runs now: its key came over the SSH channel and is in its memory only.
        for k in [1, 2] {
            keys_on_disk += &lab.on_node(k, "grep -rsla 'BEGIN PRIVATE KEY' /var/tmp /tmp /run /dev/shm");
            let engine = lab.on_node(k, "ls -d /var/tmp/carena-*/ /tmp/carena-*/ 2>/dev/null");
            assert!(engine.contains("carena-"), "no engine on node {k} to look at");
        }
        ended(child.wait_with_output().unwrap())
    });
    assert_eq!(run.exit, 253, "{}", run.all);
    for k in [1, 2] {
        assert_eq!(run.component(&lab, k)["outcome"], "updated", "{}", run.all);
    }
    assert!(run.node(&lab, 3)["error"].as_str().unwrap().contains("was not let in"), "{}", run.all);

    assert_eq!(found, "", "in a process's arguments or environment");
    assert_eq!(keys_on_disk, "", "the engine's key is on a node's disk");
    assert!(!needles.are_in_text(run.all.as_bytes()), "in the output");
    journal.wait_for_field("F_NODE", "fd00:ca::13", Duration::from_secs(5));
    let logged = journal.text();
    assert!(!needles.are_in_text(logged.as_bytes()), "in the log");
    let state = lab.dir().join("state");
    assert!(std::fs::read_dir(&state).unwrap().count() > 0);
    assert_eq!(needles.are_in_files(&state), "", "in the store");
    for k in [1, 2, 3] {
        assert_eq!(needles.are_on_node(&lab, k), "", "on node {k}");
    }
}

/// The token of a served console is on the terminal that started it and nowhere else.
#[test]
fn the_token_is_in_no_process_log_or_store() {
    let lab = Lab::up(1);
    let needles = Needles::of(&lab);
    let journal = Journal::listen(&lab);
    let mut serve = lab.carena(&["serve"]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(serve.stderr.take().unwrap()));
    let token = lines.find_map(|line| line.unwrap().strip_prefix("token").map(|t| t.trim().to_owned()));
    needles.write(&[&token.unwrap()]);
    let (children, found) = searching(&lab, &needles, || {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", serve.id())).unwrap()
    });
    assert_eq!(found, "", "in a process's arguments or environment");
    let pid = children.split_whitespace().next().unwrap().parse().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(serve.wait().unwrap().success());
    assert!(!needles.are_in_text(journal.text().as_bytes()), "in the log");
    let state = lab.dir().join("state");
    assert!(std::fs::read_dir(&state).unwrap().count() > 0);
    assert_eq!(needles.are_in_files(&state), "", "in the store");
}
