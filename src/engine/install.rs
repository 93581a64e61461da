//! Runs an installer, in a process group of its own, its output kept in bounds; and reads versions back.
//!
//! A running installer is never interrupted by a cancel, a lost box or the end of the lease. It is ended only when it
//! shows no life, neither output nor CPU time, for a time no honest installer needs.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lease::PATH;
use super::session::{Done, Worker};
use crate::paths::ENGINE_BUSY_FILE;
use crate::wire::message::{Failure, FailureKind, Install, LOG_TAIL_BYTES, Notice, ReadBack, Reply};

/// Without any sign of life for this long, or ten times its expected duration, an installer is ended.
const LIFELESS_MIN: Duration = Duration::from_secs(600);

/// A program that tells a version is done by then.
const READ_BACK_MAX: Duration = Duration::from_secs(30);

/// Bytes of a version.
const VERSION_BYTES_MAX: u64 = 4096;

/// Between two looks at a running program.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs the installer to its end.
pub fn install(id: u32, job: &Install, payload: &Path, directory: &Path, worker: &Worker) -> Reply {
    let busy = directory.join(ENGINE_BUSY_FILE);
    // The box's last resort, killing the engine, asks for this file first.
    if let Err(error) = std::fs::File::create(&busy) {
        return failed(format!("{}: {error}", busy.display()));
    }
    let reply = run(id, job, payload, worker);
    let _ = std::fs::remove_file(&busy);
    reply
}

fn failed(message: String) -> Reply {
    Reply::Failed(Failure { kind: FailureKind::Node, message })
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

fn run(id: u32, job: &Install, payload: &Path, worker: &Worker) -> Reply {
    let Some(mut command) = program(&job.command, &payload.to_string_lossy()) else {
        return failed("the install command is empty".into());
    };
    let Ok((reader, writer)) = std::io::pipe() else {
        return failed("no pipe for the installer's output".into());
    };
    let Ok(second) = writer.try_clone() else { return failed("no pipe for the installer's output".into()) };
    command.stdout(writer).stderr(second);
    let began = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "this is the installer")]
    let spawned = command.spawn();
    // Drops this side's ends of the pipe, so that it ends with the installer.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            return failed(format!("starting {}: {error}", job.command.first().map_or("", |word| word)));
        }
    };
    let tail = Arc::new(Mutex::new((VecDeque::new(), Instant::now())));
    let reading = std::thread::spawn({
        let tail = tail.clone();
        move || keep_tail(reader, &tail)
    });
    let lifeless = LIFELESS_MIN.max(Duration::from_secs(u64::from(job.expected_s) * 10));
    let (mut noticed, mut cpu, mut cpu_at) = (Instant::now(), 0, Instant::now());
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return failed(format!("waiting for the installer: {error}")),
        }
        if noticed.elapsed() >= Duration::from_secs(1) {
            noticed = Instant::now();
            let used = cpu_time(child.id());
            if used != cpu {
                (cpu, cpu_at) = (used, Instant::now());
            }
            let (line, said_at) = {
                let kept = tail.lock().unwrap_or_else(PoisonError::into_inner);
                (last_line(&kept.0), kept.1)
            };
            let seconds = began.elapsed().as_secs();
            worker.tell(Done::Notice(id, Notice::Installing { seconds, line }));
            if cpu_at.elapsed() > lifeless && said_at.elapsed() > lifeless {
                end_group(&child);
            }
        }
        std::thread::park_timeout(LOOK_EVERY);
    };
    // What the installer left in the background may hold the pipe: its output is not waited for.
    let waited = Instant::now();
    while !reading.is_finished() && waited.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(LOOK_EVERY);
    }
    let kept = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes: Vec<u8> = kept.0.iter().copied().collect();
    Reply::Installed {
        code: status.code(),
        signal: status.signal(),
        log_tail: String::from_utf8_lossy(&bytes).into_owned(),
        seconds: began.elapsed().as_secs(),
    }
}

fn keep_tail(mut reader: std::io::PipeReader, tail: &Mutex<(VecDeque<u8>, Instant)>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        let mut kept = tail.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0.extend(chunk.get(..n).unwrap_or_default());
        let surplus = kept.0.len().saturating_sub(LOG_TAIL_BYTES);
        kept.0.drain(..surplus);
        kept.1 = Instant::now();
    }
}

fn last_line(kept: &VecDeque<u8>) -> heapless::String<200> {
    let bytes: Vec<u8> = kept.iter().rev().take(400).rev().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    let mut short = heapless::String::new();
    for character in line.chars().filter(|character| !character.is_control()) {
        if short.push(character).is_err() {
            break;
        }
    }
    short
}

/// CPU time of a process in clock ticks, its ended children included: fields 14 to 17 of `/proc/PID/stat`.
fn cpu_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn end_group(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// The installed version of a component; none when it is not installed.
pub fn read_back(how: &ReadBack) -> Reply {
    match how {
        ReadBack::File(path) => match std::fs::File::open(path) {
            Ok(file) => Reply::Version(first_line(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Reply::Version(None),
            Err(error) => failed(format!("{path}: {error}")),
        },
        ReadBack::Command(command) => ask(command),
    }
}

fn first_line(from: impl std::io::Read) -> Option<String> {
    let mut line = Vec::new();
    BufReader::new(from).take(VERSION_BYTES_MAX).read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    (!line.is_empty()).then_some(line)
}

fn ask(command: &[String]) -> Reply {
    let Some(mut program) = program(command, "") else {
        return failed("the read-back command is empty".into());
    };
    program.stdout(Stdio::piped()).stderr(Stdio::null());
    #[expect(clippy::disallowed_methods, reason = "the component's own version query")]
    let spawned = program.spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Reply::Version(None),
        Err(error) => return failed(format!("{}: {error}", command.first().map_or("", |word| word))),
    };
    let Some(output) = child.stdout.take() else { return Reply::Version(None) };
    let reading = std::thread::spawn(move || first_line(output));
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > READ_BACK_MAX {
            end_group(&child);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
    Reply::Version(reading.join().ok().flatten())
}
