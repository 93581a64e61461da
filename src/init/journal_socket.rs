//! The appliance's end of the journald socket, so that `serve` logs here as it does on any Linux host.
//!
//! Speaks systemd's native protocol: a record is a datagram or, when it is too large for one, a sealed memory file
//! that comes along with an empty datagram. The sender blocks when the queue is full, so the thread only receives: it
//! must never log through tracing, and nothing it does may wait for the sender. Keeps the last records in a bounded
//! ring; warnings and worse go to the consoles. Who sent a record is not asked (SO_PASSCRED): every process of the
//! appliance is this program.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use heapless::HistoryBuf;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::{InitError, screen};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Senders of one network namespace share this bound on queued datagrams; the kernel's 10 is soon full.
const QUEUE_LENGTH_FILE: &str = "/proc/sys/net/unix/max_dgram_qlen";
const QUEUE_LENGTH: &str = "512";
/// The largest datagram that fits a socket's default buffer.
const RECORD_BYTES_MAX: usize = 208 * 1024;
/// The largest record taken from a memory file.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// The kernel's own limit for one message (SCM_MAX_FD): the list is never cut, so every descriptor is seen and closed.
const DESCRIPTORS_MAX: usize = 253;
/// With all of these nobody can change the file any more, nor shorten it while it is read.
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);
/// Records kept, for when `serve` dies.
const RECORDS: usize = 16;
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

/// What was said last, oldest first.
pub fn last_messages() -> Vec<String> {
    let Ok(ring) = RING.lock() else { return Vec::new() };
    ring.oldest_ordered().map(|record| record.message.to_string()).collect()
}

fn receive(socket: &UnixDatagram) {
    let mut buffer = vec![0_u8; RECORD_BYTES_MAX];
    loop {
        let Some(record) = next(socket, &mut buffer) else { continue };
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

/// Waits for a datagram; `None` for one that is no record.
fn next(socket: &UnixDatagram, buffer: &mut [u8]) -> Option<Record> {
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let (length, files) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
        let mut files = Vec::new();
        for item in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(descriptors) = item {
                // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
                files.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, files)
    };
    match <[OwnedFd; 1]>::try_from(files) {
        Ok([file]) => parse(&read_sealed(file)?),
        Err(none) if none.is_empty() => parse(buffer.get(..length)?),
        // All of them are closed here.
        Err(_) => None,
    }
}

/// The bytes of a memory file that nobody can change any more, if it is one and not too large.
fn read_sealed(file: OwnedFd) -> Option<Vec<u8>> {
    // Only memory files have seals: anything else is refused by this call.
    let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS).ok()?);
    let file = File::from(file);
    let length = file.metadata().ok()?.len();
    if !seals.contains(SEALS) || length > FILE_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0_u8; usize::try_from(length).ok()?];
    // From the beginning, wherever the sender left the file's position.
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
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

    /// Sends `bytes` as tracing-journald does what is too large for a datagram; returns what arrives.
    fn through_a_file(bytes: &[u8], seals: SealFlag, copies: usize) -> Option<Record> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        use nix::sys::socket::{ControlMessage, sendmsg};
        use std::io::Write as _;
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut file = File::from(memfd_create(c"record", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.write_all(bytes).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let descriptors = vec![file.as_raw_fd(); copies];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(theirs.as_raw_fd(), &[], &rights, MsgFlags::empty(), None).unwrap();
        next(&ours, &mut [0; 64])
    }

    #[test]
    fn a_record_in_a_sealed_file_is_read_whole() {
        let mut bytes = b"BALLAST=".to_vec();
        bytes.resize(1 << 20, b'x');
        bytes.extend_from_slice(b"\nMESSAGE=large\n");
        assert_eq!(through_a_file(&bytes, SEALS, 1).unwrap().message, "large");
    }

    #[test]
    fn files_that_can_change_are_too_large_or_too_many_are_refused() {
        assert_eq!(through_a_file(b"MESSAGE=x\n", SEALS.difference(SealFlag::F_SEAL_WRITE), 1), None);
        assert_eq!(through_a_file(b"MESSAGE=x\n", SEALS, 2), None);
        let mut bytes = b"MESSAGE=x\nBALLAST=".to_vec();
        bytes.resize(usize::try_from(FILE_BYTES_MAX).unwrap() + 1, b'x');
        assert_eq!(through_a_file(&bytes, SEALS, 1), None);
    }

    #[test]
    fn what_is_no_memory_file_is_refused() {
        let pipe = nix::unistd::pipe().unwrap();
        assert_eq!(read_sealed(pipe.0), None);
    }
}
