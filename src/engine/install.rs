//! Runs an installer, in a process group of its own, its output kept in bounds; and reads versions back.
//!
//! A running installer is never interrupted by a cancel, a lost box or the end of the lease. It is ended only when it and
//! all that it has started show no life, neither output nor CPU time, for a time no honest installer needs. What it
//! unpacks goes into the engine's directory, and is gone when it has ended.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::lease::PATH;
use super::log::Log;
use super::session::{Done, Worker};
use super::{family, fwupd, linux, nvme, vendor_log};
use crate::paths::{ENGINE_BUSY_FILE, ENGINE_WORK_DIRECTORY};
use crate::wire::message::{Failure, FailureKind, How, Install, Installed, ReadBack, Reply};

/// Without any sign of life for this long, or ten times its expected duration, an installer is ended.
const LIFELESS_MIN: Duration = Duration::from_secs(600);

/// A program that tells a version is done by then.
const READ_BACK_MAX: Duration = Duration::from_secs(30);

/// Bytes of a version.
const VERSION_BYTES_MAX: u64 = 4096;

/// Between two looks at a running program.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The same through everything that a process holds.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_millis(200);

/// Runs the installer to its end.
///
/// # Errors
/// [`Failure`] when it could not be run.
pub fn install(
    job: &Install,
    payload: &Path,
    directory: &Path,
    worker: &Worker,
) -> Result<Installed, Failure> {
    let busy = directory.join(ENGINE_BUSY_FILE);
    // Whoever would kill the engine or take its directory away asks this file first: whose process is the installer's.
    let mut noted = File::create(&busy).map_err(|error| node(format!("{}: {error}", busy.display())))?;
    let mut run = |command, work: Option<PathBuf>| run(command, work.as_deref(), job, worker, &mut noted);
    let result = match &job.how {
        How::Command(words) => in_work_directory(directory, |work| {
            let program = program(words, &payload.to_string_lossy());
            let mut program = program.ok_or_else(|| node("the install command is empty".into()))?;
            program.current_dir(work);
            // Self-extracting archives unpack to one of these.
            for name in ["TMPDIR", "TMP", "TEMP"] {
                program.env(name, work);
            }
            run(program, Some(work.to_owned()))
        }),
        How::Fwupd(allows) => fwupd::install(*allows, payload, directory, |command| run(command, None)),
        How::Nvme(what) => {
            // No program does this: it is the engine itself that must not be ended.
            note(&mut noted, std::process::id());
            Ok(nvme::install(what, payload, worker))
        }
    };
    let _ = std::fs::remove_file(&busy);
    result
}

/// A directory for what an installer unpacks, only as long as it runs.
fn in_work_directory<T>(
    directory: &Path,
    work: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let path = directory.join(ENGINE_WORK_DIRECTORY);
    // One that could not be taken away before.
    let _ = std::fs::remove_dir_all(&path);
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| node(format!("{}: {error}", path.display())))?;
    let result = work(&path);
    // What is left goes with the engine's directory.
    let _ = std::fs::remove_dir_all(&path);
    result
}

/// A failure of the node's.
pub fn node(message: String) -> Failure {
    Failure { kind: FailureKind::Node, message }
}

fn failed(message: String) -> Reply {
    Reply::Failed(node(message))
}

fn program(command: &[String], payload: &str) -> Option<Command> {
    let mut words = command.iter().map(|word| word.replace("{payload}", payload));
    let mut program = Command::new(words.next()?);
    program
        .args(words)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .env("HOME", "/root")
        .current_dir("/");
    program.stdin(Stdio::null()).process_group(0);
    Some(program)
}

/// Runs a program to its end, and what it leaves in `work` to its end too.
fn run(
    mut command: Command,
    work: Option<&Path>,
    job: &Install,
    worker: &Worker,
    noted: &mut File,
) -> Result<Installed, Failure> {
    let no_pipe = |error| node(format!("no pipe for the installer's output: {error}"));
    let (reader, writer) = std::io::pipe().map_err(no_pipe)?;
    let second = writer.try_clone().map_err(no_pipe)?;
    command.stdout(writer).stderr(second);
    let (began, began_at) = (Instant::now(), SystemTime::now());
    family::keep_orphans();
    #[expect(clippy::disallowed_methods, reason = "this is the installer")]
    let spawned = command.spawn();
    let name = command.get_program().to_string_lossy().into_owned();
    // Drops this side's ends of the pipe, so that it ends with the installer.
    drop(command);
    let mut child = spawned.map_err(|error| node(format!("starting {name}: {error}")))?;
    note(noted, child.id());
    let log = Arc::new(Mutex::new(Log::new()));
    let reading = std::thread::spawn({
        let log = log.clone();
        move || keep(reader, &log)
    });
    let mut life = Life::new(job, began);
    let status = watch(&mut child, &mut life, &log, worker)?;
    if let Some(work) = work {
        outlast(work, &mut life, &log, worker, noted);
    }
    // What the installer left in the background may hold the pipe: its output is not waited for.
    let waited = Instant::now();
    while !reading.is_finished() && waited.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(LOOK_EVERY);
    }
    let log = log.lock().unwrap_or_else(PoisonError::into_inner).text();
    let seconds = began.elapsed().as_secs();
    let logs = if status.success() { Vec::new() } else { vendor_log::read(&job.logs, &log, began_at) };
    Ok(Installed { code: status.code(), signal: status.signal(), log, seconds, told: None, logs })
}

fn note(noted: &mut File, pid: u32) {
    if let Ok(since) = linux::start_time_of(pid) {
        // A full disk: then the engine's own process is all that tells of the installation.
        let _ = writeln!(noted, "{pid} {since}");
    }
}

/// Waits for the installer's end, and tells of it meanwhile.
fn watch(
    child: &mut Child,
    life: &mut Life,
    log: &Mutex<Log>,
    worker: &Worker,
) -> Result<ExitStatus, Failure> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => return Err(node(format!("waiting for the installer: {error}"))),
        }
        if life.is_over(log, worker) {
            end_group(child);
            family::end();
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// An installer may end while a flash tool that it has started goes on with what was unpacked: until nothing below the
/// engine holds anything in `work`, it is not taken away.
fn outlast(work: &Path, life: &mut Life, log: &Mutex<Log>, worker: &Worker, noted: &mut File) {
    let mut known = Vec::new();
    loop {
        let mut left = family::holding(work);
        left.sort_unstable();
        if left.is_empty() {
            return;
        }
        if left != known {
            // The first one listed is who is asked for, so none that has ended may stand there. While it is empty, the
            // engine's own process is.
            let _ = noted.set_len(0).and_then(|()| noted.rewind());
            left.iter().for_each(|pid| note(noted, *pid));
            known = left;
        }
        if life.is_over(log, worker) {
            family::end();
        }
        std::thread::park_timeout(LOOK_AT_ALL_EVERY);
    }
}

/// Signs of life of an installer and of all that it has started.
struct Life {
    lifeless: Duration,
    began: Instant,
    noticed: Instant,
    cpu: u64,
    cpu_at: Instant,
}

impl Life {
    fn new(job: &Install, began: Instant) -> Self {
        let lifeless = LIFELESS_MIN.max(Duration::from_secs(u64::from(job.expected_s) * 10));
        Self { lifeless, began, noticed: began, cpu: 0, cpu_at: began }
    }

    /// Looks once a second, and tells of the installer; whether there has been no sign of life for too long.
    fn is_over(&mut self, log: &Mutex<Log>, worker: &Worker) -> bool {
        if self.noticed.elapsed() < Duration::from_secs(1) {
            return false;
        }
        self.noticed = Instant::now();
        let used = family::cpu_time();
        if used != self.cpu {
            (self.cpu, self.cpu_at) = (used, Instant::now());
        }
        let (line, said_at) = {
            let log = log.lock().unwrap_or_else(PoisonError::into_inner);
            (log.last_line(), log.said_at())
        };
        worker.tell(Done::Installing { seconds: self.began.elapsed().as_secs(), line });
        self.cpu_at.elapsed() > self.lifeless && said_at.elapsed() > self.lifeless
    }
}

fn keep(mut reader: std::io::PipeReader, log: &Mutex<Log>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        log.lock().unwrap_or_else(PoisonError::into_inner).take(chunk.get(..n).unwrap_or_default());
    }
}

fn end_group(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// The installed version of a component; none when it is not installed.
pub fn read_back(how: &ReadBack, worker: &Worker) -> Reply {
    match how {
        ReadBack::File(path) => match std::fs::File::open(path) {
            Ok(file) => match first_line(file) {
                Ok(version) => Reply::Version(version),
                // Not the same as nothing installed: what is there is not known.
                Err(error) => failed(format!("{path}: {error}")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Reply::Version(None),
            Err(error) => failed(format!("{path}: {error}")),
        },
        ReadBack::Command(command) => ask(command, worker),
    }
}

fn first_line(from: impl std::io::Read) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    BufReader::new(from).take(VERSION_BYTES_MAX).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    Ok((!line.is_empty()).then_some(line))
}

/// A program that fails says nothing of what is installed: only one that ends well and prints nothing says "nothing".
fn ask(command: &[String], worker: &Worker) -> Reply {
    let name = command.first().map_or("", |word| word);
    let Some(mut program) = program(command, "") else {
        return failed("the read-back command is empty".into());
    };
    program.stdout(Stdio::piped()).stderr(Stdio::null());
    match finish(program, first_line, READ_BACK_MAX, &|| worker.should_stop()) {
        Ok((status, version)) if status.success() => Reply::Version(version),
        Ok((status, _)) => failed(format!("{name}: {status}")),
        Err(why) => failed(format!("{name}: {why}")),
    }
}

/// Runs a program that only tells something to its end, and reads what it tells. Past `bound`, or when it
/// is not wanted any more, it is ended with all of its group.
///
/// # Errors
/// Why not, in words.
pub fn finish<T: Send + 'static>(
    mut program: Command,
    read: impl FnOnce(ChildStdout) -> std::io::Result<T> + Send + 'static,
    bound: Duration,
    is_unwanted: &dyn Fn() -> bool,
) -> Result<(ExitStatus, T), String> {
    #[expect(clippy::disallowed_methods, reason = "a query, which changes nothing")]
    let spawned = program.spawn();
    let mut child = spawned.map_err(|error| error.to_string())?;
    let output = child.stdout.take().ok_or("no pipe")?;
    let reading = std::thread::spawn(move || read(output));
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() > bound || is_unwanted() => end_group(&child),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        std::thread::park_timeout(LOOK_EVERY);
    };
    if began.elapsed() > bound && !status.success() {
        return Err(format!("{status} after {} s without an end", bound.as_secs()));
    }
    // What the program left in the background may hold the pipe: it is not waited for.
    let waited = Instant::now();
    while !reading.is_finished() && waited.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(LOOK_EVERY);
    }
    if !status.success() && !reading.is_finished() {
        return Err(status.to_string());
    }
    if !reading.is_finished() {
        return Err("its output does not end".into());
    }
    match reading.join() {
        Ok(Ok(told)) => Ok((status, told)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its output cannot be read".into()),
    }
}
