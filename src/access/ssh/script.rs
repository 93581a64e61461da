//! The shell that runs on nodes: POSIX and small. What it looks like on its way is the business of [`super::login_shell`].
//!
//! Every value put into a script is an id, a path made of ids, a number or an address: none needs quoting. Each undo
//! checks identity first and takes "already gone" as success; none follows a link out of the engine's directory.

use crate::access::engine_image::Unpacker;
use crate::access::undo::{EngineFiles, EngineProcess, FirewallRule, Undo};
use crate::paths::{ENGINE_BUSY_FILE, ENGINE_MARKER_FILE, ENGINE_PID_FILE, ENGINE_PROGRAM, ENGINE_RULE_FILE};
use crate::wire::firewall::Known;
use crate::wire::id::DeploymentId;
use crate::wire::root_shell;

/// Makes the engine's directory, its marker first, and unpacks the program into it.
pub fn copy(
    directory: &str,
    deployment: &DeploymentId,
    unpacker: Unpacker,
    bytes: usize,
    unpacked: u64,
) -> String {
    let program = format!("$d/{ENGINE_PROGRAM}");
    let unpack = match unpacker.command() {
        Some(command) => format!("head -c {bytes} | {command} > {program} || exit 33"),
        // Nothing but its size tells that all of it is there.
        None => format!(
            "head -c {bytes} > {program} || exit 33\n\
             [ $(wc -c < {program}) -eq {unpacked} ] || {{ echo the engine arrived incomplete; exit 34; }}"
        ),
    };
    format!(
        "d={directory}\nmkdir $d || exit 31\n\
         printf %s {deployment} > $d/{ENGINE_MARKER_FILE} || exit 32\n\
         {}\n{unpack}\nchmod 700 {program}",
        root_shell::note_script("$d")
    )
}

/// Exit code of [`start`] when the node does not let the engine run; its errors then name what may forbid it.
pub const EXEC_DENIED: i64 = 126;

/// Starts the engine, which reads its configuration from standard input.
pub fn start(directory: &str) -> String {
    format!(
        r#"{directory}/{ENGINE_PROGRAM} start --directory {directory}
code=$?
if [ $code -eq {EXEC_DENIED} ]; then
    set -- $(cat /sys/kernel/security/lsm 2>/dev/null) $(grep -hsx fapolicyd /proc/[0-9]*/comm)
    [ $# -eq 0 ] || echo "the node has $*"
fi
[ $code -eq 0 ] || exit $code"#
    )
}

/// Joins the running engine's socket with the script's streams.
pub fn attach(directory: &str) -> String {
    format!("exec {directory}/{ENGINE_PROGRAM} attach --directory {directory}")
}

/// Notes the rule in the engine's directory, for its lease, and adds it.
pub fn open(rule: &FirewallRule, directory: &str, noted: &str, known: Known) -> String {
    format!(
        "printf %s '{noted}' > {directory}/{ENGINE_RULE_FILE} || exit 36\n{}",
        rule.rule.open_script(known)
    )
}

/// Takes everything back in the given order; one line `undo NUMBER done|gone|failed WHY` for each.
pub fn undo(deployment: &DeploymentId, undos: &[(i64, Undo)]) -> String {
    let mut script = helpers();
    // Should this visit be cut off as well, the next one finds its shell.
    for directory in undos.iter().filter_map(|(_, undo)| as_files(undo)).map(|files| &files.directory) {
        script.push_str(&root_shell::note_own_script(directory, deployment));
        script.push('\n');
    }
    // Functions, and no subshell for each: a process costs the node half a millisecond.
    if undos.iter().any(|(_, undo)| matches!(undo, Undo::EngineProcess(_))) {
        script.push_str(stop());
    }
    if undos.iter().any(|(_, undo)| matches!(undo, Undo::EngineFiles(_))) {
        script.push_str(&remove(deployment));
    }
    for (entry, undo) in undos {
        let body = match undo {
            Undo::EngineProcess(EngineProcess { directory }) => format!("d={directory}\nstop_engine"),
            Undo::EngineFiles(EngineFiles { directory }) => format!("d={directory}\nremove_files"),
            Undo::FirewallRule(FirewallRule { rule }) => rule.close_script(),
        };
        script.push_str(&format!("why=\n{body}\ntold $? {entry}\n"));
    }
    script
}

/// The engine's files, if that is what it is.
pub fn as_files(undo: &Undo) -> Option<&EngineFiles> {
    match undo {
        Undo::EngineFiles(files) => Some(files),
        _ => None,
    }
}

/// All of these are about the directory `$d`, so that its name travels once for each undo.
///
/// `mine`: whether the directory is one that root made. Anybody may make one of its name where it once was, and must
/// not get root to read, write or end anything by what he puts there. `-O` is not POSIX, but every shell that is a
/// `/bin/sh` has it.
///
/// `owner`: whose the directory is, by its marker, which has no line end.
///
/// `lives FILE`: whether the process lives whose id and start time stand in the file; `pid` is its id. A `shift` by more
/// than there is would end dash, and every undo with it.
///
/// `installing`: whether an installer runs. It is the process that the engine has noted; until that is noted, the
/// engine's word.
///
/// `told CODE NUMBER`: says how an undo ended; what failed has said `why`.
fn helpers() -> String {
    format!(
        r#"mine() {{ [ -d $d ] && [ ! -h $d ] && [ -O $d ]; }}
owner() {{ owner=; {{ read -r owner < $d/{ENGINE_MARKER_FILE}; }} 2>/dev/null; }}
lives() {{
    read -r pid began < $d/$1 2>/dev/null || return 1
    read -r stat < /proc/$pid/stat 2>/dev/null || return 1
    set -- ${{stat##*) }}
    [ "$1" != Z ] && [ $# -gt 19 ] && shift 19 && [ "$1" = "$began" ]
}}
alive() {{ lives {ENGINE_PID_FILE}; }}
installing() {{
    [ -e $d/{ENGINE_BUSY_FILE} ] || return 1
    if [ -s $d/{ENGINE_BUSY_FILE} ]; then lives {ENGINE_BUSY_FILE}; else alive; fi
}}
idle() {{ ! installing || {{ why="an installation is still running"; return 1; }}; }}
told() {{
    case $1 in 0) echo undo $2 done ;; 3) echo undo $2 gone ;; *) echo undo $2 failed $why ;; esac
}}
"#
    )
}

/// Returns 3 when it is already gone. The engine is asked to end; it is killed only when no installation runs.
fn stop() -> &'static str {
    r#"until_gone() {
    n=0
    while alive; do
        [ $n -lt 100 ] || return 1
        n=$((n+1)); sleep 0.05
    done
}
stop_engine() {
    mine && alive || return 3
    kill -TERM $pid 2>/dev/null
    until_gone && return
    idle || return 1
    alive && kill -KILL $pid 2>/dev/null
    until_gone || { why="process $pid does not end"; return 1; }
}
"#
}

/// The files stay as long as an installation runs, whose payload they hold: also one whose engine is gone.
fn remove(deployment: &DeploymentId) -> String {
    format!(
        r#"remove_files() {{
    mine || return 3
    idle || return 1
    owner
    if [ "$owner" != {deployment} ]; then
        # On a full disk, or cut off, the marker is the beginning of what it should be, and alone.
        case {deployment} in
        "$owner"*) [ "$(ls -A $d)" != {ENGINE_MARKER_FILE} ] || rm -f $d/{ENGINE_MARKER_FILE} ;;
        esac
        why=$(rmdir $d 2>&1)
        return
    fi
    {}
    why=$(rm -rf $d 2>&1)
}}
"#,
        root_shell::end_script("$d")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn run(script: &str) -> String {
        #[expect(clippy::disallowed_methods, reason = "the shell is what is tested")]
        let done = Command::new("sh").arg("-c").arg(script).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    }

    fn id() -> DeploymentId {
        "0190-test".parse().unwrap()
    }

    #[test]
    fn files_are_removed_only_with_our_marker_and_twice_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("carena-0190-test");
        let undos = [(7, Undo::from(EngineFiles { directory: directory.to_str().unwrap().into() }))];
        assert!(run(&undo(&id(), &undos)).contains("undo 7 gone"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::File::create(directory.join("theirs")).unwrap();
        assert!(run(&undo(&id(), &undos)).contains("undo 7 failed"));
        assert!(directory.join("theirs").exists());
        // Not even an empty marker beside it makes it ours.
        std::fs::File::create(directory.join(ENGINE_MARKER_FILE)).unwrap();
        assert!(run(&undo(&id(), &undos)).contains("undo 7 failed"));
        assert!(directory.join("theirs").exists());
        crate::durable::write(&directory.join(ENGINE_MARKER_FILE), b"0190-test", 0o600).unwrap();
        assert!(run(&undo(&id(), &undos)).contains("undo 7 done"));
        assert!(!directory.exists());
        assert!(run(&undo(&id(), &undos)).contains("undo 7 gone"));
    }

    #[test]
    fn a_marker_that_did_not_fit_on_the_disk_is_still_ours() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("carena-0190-test");
        let undos = [(7, Undo::from(EngineFiles { directory: directory.to_str().unwrap().into() }))];
        for (marker, gone) in [("", true), ("0190-t", true), ("0190-other", false)] {
            std::fs::create_dir(&directory).unwrap();
            crate::durable::write(&directory.join(ENGINE_MARKER_FILE), marker.as_bytes(), 0o600).unwrap();
            assert_eq!(run(&undo(&id(), &undos)).contains("undo 7 done"), gone, "{marker}");
            assert_eq!(!directory.exists(), gone, "{marker}");
        }
    }

    #[test]
    fn a_shell_that_was_left_behind_ends_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("carena-0190-test");
        std::fs::create_dir(&directory).unwrap();
        crate::durable::write(&directory.join(ENGINE_MARKER_FILE), b"0190-test", 0o600).unwrap();
        let shell = |body: &str| {
            #[expect(clippy::disallowed_methods, reason = "real shells to end")]
            let child = Command::new("sh").args(["-c", body]).stdin(Stdio::piped()).spawn();
            child.unwrap()
        };
        let noted = root_shell::note_script(directory.to_str().unwrap());
        let mut ours = shell(&format!("{noted}; read -r end"));
        let mut theirs = shell("read -r end");
        let shells = directory.join(crate::paths::ENGINE_SHELLS_FILE);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !std::fs::read_to_string(&shells).is_ok_and(|text| text.ends_with('\n')) {
            assert!(std::time::Instant::now() < end, "the shell did not note itself");
            std::thread::yield_now();
        }
        // One whose number has gone to another process since.
        let all = format!("{}{} 1\n", std::fs::read_to_string(&shells).unwrap(), theirs.id());
        crate::durable::write(&shells, all.as_bytes(), 0o600).unwrap();
        let undos = [(7, Undo::from(EngineFiles { directory: directory.to_str().unwrap().into() }))];
        let reaper = std::thread::spawn(move || ours.wait().unwrap());
        assert!(run(&undo(&id(), &undos)).contains("undo 7 done"));
        assert!(!reaper.join().unwrap().success());
        assert!(theirs.try_wait().unwrap().is_none());
        theirs.kill().unwrap();
        theirs.wait().unwrap();
    }

    #[test]
    fn files_stay_under_a_running_installation_and_what_is_not_roots_is_not_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("carena-0190-test");
        std::fs::create_dir(&directory).unwrap();
        crate::durable::write(&directory.join(ENGINE_MARKER_FILE), b"0190-test", 0o600).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a real process that stands for the installer")]
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let began = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
        let busy = format!("{} {began}\n", child.id());
        crate::durable::write(&directory.join(ENGINE_BUSY_FILE), busy.as_bytes(), 0o600).unwrap();
        crate::durable::write(&directory.join(ENGINE_PID_FILE), busy.as_bytes(), 0o600).unwrap();
        let path = directory.to_str().unwrap();
        let undos = [
            (1, Undo::from(EngineProcess { directory: path.into() })),
            (2, Undo::from(EngineFiles { directory: path.into() })),
        ];
        let files = &undos[1..];
        assert!(run(&undo(&id(), files)).contains("undo 2 failed an installation is still running"));
        assert!(directory.exists());
        std::os::unix::fs::chown(&directory, Some(65534), Some(65534)).unwrap();
        let said = run(&undo(&id(), &undos));
        assert!(said.contains("undo 1 gone") && said.contains("undo 2 gone"), "{said}");
        assert!(directory.exists() && child.try_wait().unwrap().is_none());
        std::os::unix::fs::chown(&directory, Some(0), Some(0)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(run(&undo(&id(), files)).contains("undo 2 done"));
        assert!(!directory.exists());
    }

    #[test]
    fn a_process_is_stopped_only_when_it_began_when_ours_did() {
        let root = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a real process to stop")]
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let began = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
        let undos = [(1, Undo::from(EngineProcess { directory: root.path().to_str().unwrap().into() }))];
        let pid_file = root.path().join(ENGINE_PID_FILE);
        assert!(run(&undo(&id(), &undos)).contains("undo 1 gone"));
        crate::durable::write(&pid_file, format!("{} 1\n", child.id()).as_bytes(), 0o600).unwrap();
        assert!(run(&undo(&id(), &undos)).contains("undo 1 gone"));
        assert!(child.try_wait().unwrap().is_none());
        crate::durable::write(&pid_file, format!("{} {began}\n", child.id()).as_bytes(), 0o600).unwrap();
        assert!(run(&undo(&id(), &undos)).contains("undo 1 done"));
        assert!(!child.wait().unwrap().success());
    }
}
