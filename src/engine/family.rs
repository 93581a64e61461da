//! The processes an installer has started, however they left it: by a session of their own, or by outliving their parent.
//!
//! The engine takes orphans in (a "subreaper"), so that all of them stay below it, and their CPU time tells whether an
//! installer still lives that itself only waits. Nothing else runs below the engine while an installer does but short
//! queries. It must never wait for a process by "any child": the installer's own end is its starter's to see.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// What is told of a process: proc(5), `/proc/PID/stat`.
struct Process {
    parent: i32,
    state: u8,
    /// Clock ticks, those of its ended and awaited children included: fields 14 to 17.
    ticks: u64,
}

/// From now on orphans below this process become its children.
pub fn keep_orphans() {
    // SAFETY: changes one attribute of this process; no memory is passed. Where the kernel refuses, orphans go to the
    // init process, and are only not seen.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// CPU time in clock ticks of everything below this process. It grows as long as anything there works; when a process
/// ends it may shrink, which is a sign of life too. Orphans that have ended are taken off the table.
pub fn cpu_time() -> u64 {
    let all = processes();
    let own = own();
    let below = below(&all, own);
    let mut ticks = 0;
    for (pid, process) in all.iter().filter(|(pid, _)| below.contains(pid)) {
        ticks += process.ticks;
        // An installer's own end is seen within milliseconds; what is a zombie for this look and is not a child that
        // somebody waits for would stay for ever.
        if process.state == b'Z' && process.parent == own && is_orphan(*pid) {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
    }
    ticks
}

/// Ends everything below this process.
pub fn end() {
    for pid in below(&processes(), own()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Processes below this one that run from a directory, stand in it or have a file in it open.
pub fn holding(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let below = below(&processes(), own());
    let is_held = |link: PathBuf| std::fs::read_link(link).is_ok_and(|path| path.starts_with(&directory));
    let holds = |pid: &i32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        ["cwd", "exe"].iter().any(|link| is_held(process.join(link)))
            || files.map(|file| file.path()).any(is_held)
    };
    below.iter().filter(|pid| holds(pid)).filter_map(|pid| u32::try_from(*pid).ok()).collect()
}

fn own() -> i32 {
    std::process::id().cast_signed()
}

/// What the engine starts itself leads a process group, and is waited for by whoever started it.
fn is_orphan(pid: i32) -> bool {
    nix::unistd::getpgid(Some(Pid::from_raw(pid))).is_ok_and(|group| group.as_raw() != pid)
}

fn processes() -> HashMap<i32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold anything, so count from the last parenthesis: that is field 3.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.bytes().next()?;
    let parent = fields.next()?.parse().ok()?;
    let ticks = fields.skip(9).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Process { parent, state, ticks })
}

fn below(all: &HashMap<i32, Process>, root: i32) -> HashSet<i32> {
    let mut below = HashSet::new();
    let mut edge = vec![root];
    while let Some(parent) = edge.pop() {
        for (pid, _) in all.iter().filter(|(_, process)| process.parent == parent) {
            if below.insert(*pid) {
                edge.push(*pid);
            }
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// The parent ends at once, the child works in a session of its own and says nothing.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a process that leaves its group and its parent")]
    fn what_has_left_its_group_and_its_parent_is_still_seen_and_ended() {
        keep_orphans();
        let script = "setsid sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & exit 0";
        let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        assert!(shell.wait().unwrap().success());
        let (begun, before) = (Instant::now(), cpu_time());
        while cpu_time() <= before {
            assert!(begun.elapsed() < Duration::from_secs(30), "no CPU time is seen");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        end();
        let begun = Instant::now();
        // Taken off the table as well, unless it leads its group: then the end of the engine does it.
        let lives = || {
            below(&processes(), own()).iter().any(|pid| process(*pid).is_some_and(|one| one.state != b'Z'))
        };
        while lives() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it still lives");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}
