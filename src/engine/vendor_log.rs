//! Logs that makers' installers write beside their output: read after a failure, and left where they are.
//!
//! Which ones: those the format is known for, and those the installer's output names. Only what has changed since the
//! installer was started counts: an old log says nothing of this run. Only regular files are read, and never more of
//! one than its end.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use crate::wire::message::{VENDOR_LOG_BYTES, VENDOR_LOGS_MAX, VendorLog};

/// Where an output may name a log: whoever keeps one elsewhere does not mean it to be found.
const PLACES: [&str; 4] = ["/var/", "/opt/", "/tmp/", "/root/"];

/// What the names of logs end with.
const ENDINGS: [&str; 4] = [".log", ".txt", ".out", ".xml"];

/// Times of files may be a tick behind the clock.
const TICK: Duration = Duration::from_secs(1);

/// The ends of the logs that were written to since `began`.
pub fn read(known: &[String], output: &str, began: SystemTime) -> Vec<VendorLog> {
    let mut paths: Vec<&str> = Vec::new();
    for path in known.iter().map(String::as_str).chain(named(output)) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let since = began.checked_sub(TICK).unwrap_or(began);
    let ends = paths.into_iter().filter_map(|path| Some((path, end(path, since)?)));
    ends.take(VENDOR_LOGS_MAX).map(|(path, text)| VendorLog { path: path.to_owned(), text }).collect()
}

/// Paths of logs in a text, those that were named last first.
fn named(output: &str) -> impl Iterator<Item = &str> {
    let words = output.split(|c: char| c.is_whitespace() || "\"'<>()[]=,;".contains(c)).rev();
    let paths = words.map(|word| word.trim_end_matches(['.', ':']));
    paths.filter(|path| {
        PLACES.iter().any(|place| path.starts_with(place))
            && ENDINGS.iter().any(|ending| path.ends_with(ending))
    })
}

fn end(path: &str, since: SystemTime) -> Option<String> {
    // A named pipe must not hold the engine, and a link of somebody else's must not lead root elsewhere.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY | nix::libc::O_NOFOLLOW)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let is_of_this_run = metadata.is_file() && metadata.modified().is_ok_and(|modified| modified >= since);
    is_of_this_run.then(|| tail(&mut file, metadata.len()))?
}

fn tail(file: &mut File, size: u64) -> Option<String> {
    let from = size.saturating_sub(VENDOR_LOG_BYTES as u64);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(VENDOR_LOG_BYTES as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let begins_within_a_line = from > 0;
    let whole = text.split_once('\n').filter(|_| begins_within_a_line).map_or(&*text, |(_, rest)| rest);
    Some(whole.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_found_where_the_output_names_them() {
        let output = "see /var/log/dell/a.log.\nerror (\"/opt/x/b.txt\"): /etc/shadow /var/lib/secret /var/log/dell/a.log";
        assert_eq!(
            named(output).collect::<Vec<_>>(),
            ["/var/log/dell/a.log", "/opt/x/b.txt", "/var/log/dell/a.log"]
        );
    }

    #[test]
    fn only_the_end_of_what_was_written_since_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let lines: String = (0..2000).map(|line| format!("line {line}\n")).collect();
        crate::durable::write(&directory.path().join("long"), lines.as_bytes(), 0o644).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink("long", path("link")).unwrap();
        let known = ["none", "directory", "link", "long"].map(path);
        let told = read(&known, "", SystemTime::now());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].text.ends_with("line 1999\n") && told[0].text.starts_with("line "));
        assert!(told[0].text.len() <= VENDOR_LOG_BYTES);
        assert!(read(&known, "", SystemTime::now() + Duration::from_secs(60)).is_empty());
        // The worst that JSON can make of all of it still is one frame.
        let worst = VendorLog { path: "x".repeat(1000), text: "\u{1}".repeat(VENDOR_LOG_BYTES) };
        let log =
            "\u{1}".repeat(crate::wire::message::LOG_HEAD_BYTES + crate::wire::message::LOG_TAIL_BYTES + 64);
        assert!(crate::wire::frame::encode(&(log, vec![worst; VENDOR_LOGS_MAX])).is_ok());
    }
}
