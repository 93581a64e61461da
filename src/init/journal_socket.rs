//! The appliance's end of the journald socket, so that `serve` logs here as it does on any Linux host.
//!
//! The sender blocks when the queue is full, so the thread only receives: it must never log through tracing, and
//! nothing it does may wait for the sender. Keeps the last records in a bounded ring; warnings and worse go to the
//! consoles. Large records (sent as a file descriptor) are dropped: nothing here sends them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use heapless::HistoryBuf;

use super::{InitError, screen};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Senders of one network namespace share this bound on queued datagrams; the kernel's 10 is soon full.
const QUEUE_LENGTH_FILE: &str = "/proc/sys/net/unix/max_dgram_qlen";
const QUEUE_LENGTH: &str = "512";
/// The largest datagram that fits a socket's default buffer.
const RECORD_BYTES_MAX: usize = 208 * 1024;
/// Records kept.
const RECORDS: usize = 256;
/// syslog(3) LOG_WARNING: this and lower numbers go to the consoles.
const WARNING: u8 = 4;

/// A record, cut to what a person reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    priority: u8,
    message: heapless::String<240>,
}

static RING: Mutex<HistoryBuf<Record, RECORDS>> = Mutex::new(HistoryBuf::new());

/// Binds the socket and starts the thread that empties it.
pub fn start() -> Result<(), InitError> {
    #[expect(clippy::disallowed_methods, reason = "a kernel setting, not a file that must last")]
    let _ = std::fs::write(QUEUE_LENGTH_FILE, QUEUE_LENGTH);
    if let Some(directory) = std::path::Path::new(SOCKET).parent() {
        std::fs::create_dir_all(directory).map_err(InitError::file(SOCKET))?;
    }
    let _ = std::fs::remove_file(SOCKET);
    let socket = UnixDatagram::bind(SOCKET).map_err(InitError::file(SOCKET))?;
    // `serve` runs as another user.
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o666))
        .map_err(InitError::file(SOCKET))?;
    std::thread::Builder::new()
        .name("journal".into())
        .spawn(move || receive(&socket))
        .map_err(InitError::file(SOCKET))?;
    Ok(())
}

fn receive(socket: &UnixDatagram) {
    let mut buffer = vec![0_u8; RECORD_BYTES_MAX];
    loop {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let Some(record) = parse(buffer.get(..length).unwrap_or_default()) else { continue };
        if record.priority <= WARNING {
            screen::say(&record.message);
        } else {
            screen::note(&record.message);
        }
        if let Ok(mut ring) = RING.lock() {
            ring.write(record);
        }
    }
}

/// systemd's native protocol: `KEY=value\n`, or `KEY\n`, eight bytes of little-endian length, value, `\n`.
fn parse(mut bytes: &[u8]) -> Option<Record> {
    let mut record = Record { priority: 6, ..Record::default() };
    let mut seen = false;
    while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
        let (line, rest) = bytes.split_at(end);
        let rest = rest.get(1..)?;
        let (key, value) = match line.iter().position(|&byte| byte == b'=') {
            Some(equals) => {
                bytes = rest;
                (line.get(..equals)?, line.get(equals + 1..)?)
            }
            None => {
                let (length, rest) = rest.split_first_chunk::<8>()?;
                let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
                let value = rest.get(..length)?;
                bytes = rest.get(length.checked_add(1)?..)?;
                (line, value)
            }
        };
        match key {
            b"MESSAGE" => {
                seen = true;
                for character in String::from_utf8_lossy(value).chars() {
                    let character = if character.is_control() { ' ' } else { character };
                    if record.message.push(character).is_err() {
                        break;
                    }
                }
            }
            b"PRIORITY" => record.priority = std::str::from_utf8(value).ok()?.parse().ok()?,
            _ => {}
        }
    }
    seen.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_field_are_read() {
        let mut bytes = b"PRIORITY=4\nMESSAGE\n".to_vec();
        bytes.extend_from_slice(&3_u64.to_le_bytes());
        bytes.extend_from_slice(b"a\nb\nF_X=1\n");
        let record = parse(&bytes).unwrap();
        assert_eq!((record.priority, record.message.as_str()), (4, "a b"));
    }

    #[test]
    fn a_length_beyond_the_datagram_is_refused() {
        let mut bytes = b"MESSAGE\n".to_vec();
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn an_empty_probe_is_no_record() {
        assert_eq!(parse(b""), None);
    }
}
