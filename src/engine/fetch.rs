//! A payload from the box over HTTPS, resumed at the byte where it stopped, hashed on its way to the disk.
//!
//! What does not hash to what was announced is removed and never returned: [`Verified`] is the only way out. Memory
//! does not grow with the payload.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::linux;
use super::session::{Done, Worker};
use crate::digest::{Hasher, Verified};
use crate::wire::message::{Failure, FailureKind, Fetch, Notice};

/// Bytes read at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes of a response's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A connection attempt, and any silence in a transfer, last at most this.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Attempts in a row without a new byte.
const ATTEMPTS_MAX: u32 = 5;

/// Between two notices.
const NOTICE_EVERY: Duration = Duration::from_millis(250);

/// Bytes that must stay free on the node.
const SPARE_BYTES: u64 = 1024 * 1024;

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Fetches and verifies; returns the file, the bytes that came, and how often it was taken up again.
///
/// # Errors
/// [`Failure`], in words for the box's operator.
pub fn fetch(
    id: u32,
    job: &Fetch,
    directory: &Path,
    tls: &Arc<ClientConfig>,
    worker: &Worker,
) -> Result<(Verified<PathBuf>, u64, u32), Failure> {
    let path = directory.join(job.sha256.to_string());
    let node = |error: io::Error| failure(FailureKind::Node, format!("{}: {error}", path.display()));
    let free = linux::free_bytes(directory).map_err(node)?;
    if free < job.size + SPARE_BYTES {
        let text = format!("{} bytes are needed in {}, {free} are free", job.size, directory.display());
        return Err(failure(FailureKind::Node, text));
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o700)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(node)?;
    let result = transfer(id, job, &mut file, tls, worker);
    drop(file);
    let verified = result.and_then(|(hasher, bytes, resumes)| {
        let verified = Verified::check(path.clone(), hasher, job.sha256).map_err(|mismatch| {
            failure(FailureKind::Corrupt, format!("the payload is corrupt: {mismatch}"))
        })?;
        Ok((verified, bytes, resumes))
    });
    if verified.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    verified
}

fn failure(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}

fn transfer(
    id: u32,
    job: &Fetch,
    file: &mut File,
    tls: &Arc<ClientConfig>,
    worker: &Worker,
) -> Result<(Hasher, u64, u32), Failure> {
    let mut hasher = Hasher::new();
    let (mut done, mut fruitless, mut resumes) = (0_u64, 0, 0);
    let mut noticed = Instant::now();
    let mut chunk = vec![0; CHUNK_BYTES];
    while done < job.size {
        let before = done;
        let mut attempt = || -> io::Result<()> {
            let (mut connection, first) = request(job, tls, done)?;
            let mut ready = first;
            loop {
                if !ready.is_empty() {
                    let room = usize::try_from(job.size - done).unwrap_or(usize::MAX);
                    let part = ready.get(..ready.len().min(room)).unwrap_or_default();
                    file.write_all(part)
                        .map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))?;
                    hasher.update(part);
                    done += part.len() as u64;
                }
                if done == job.size || worker.is_cancelled() {
                    return Ok(());
                }
                if noticed.elapsed() >= NOTICE_EVERY {
                    noticed = Instant::now();
                    worker.tell(Done::Notice(id, Notice::Fetching { done, total: job.size }));
                }
                let n = connection.read(&mut chunk)?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                ready.clear();
                ready.extend_from_slice(chunk.get(..n).unwrap_or_default());
            }
        };
        let result = attempt();
        if worker.is_cancelled() {
            return Err(failure(FailureKind::Cancelled, "cancelled".into()));
        }
        let Err(error) = result else { continue };
        if error.kind() == io::ErrorKind::StorageFull {
            return Err(failure(FailureKind::Node, format!("writing the payload: {error}")));
        }
        fruitless = if done > before { 0 } else { fruitless + 1 };
        resumes += 1;
        if fruitless >= ATTEMPTS_MAX {
            let text = format!(
                "the box at {} port {} gives no payload to this node: {error}",
                job.address, job.port
            );
            return Err(failure(FailureKind::Unreachable, text));
        }
        pause(Duration::from_millis(200 << fruitless), worker);
    }
    Ok((hasher, done, resumes))
}

/// Waits, but not longer than until a cancel.
fn pause(length: Duration, worker: &Worker) {
    let end = Instant::now() + length;
    while Instant::now() < end && !worker.is_cancelled() {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Sends the request; returns the connection and the first bytes of the body.
fn request(job: &Fetch, tls: &Arc<ClientConfig>, from: u64) -> io::Result<(Connection, Vec<u8>)> {
    let stream = TcpStream::connect_timeout(&address(&job.address, job.port)?, SILENCE_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let name = ServerName::try_from(job.server_name.to_string()).map_err(io::Error::other)?;
    let mut connection =
        StreamOwned::new(ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?, stream);
    let range = if from > 0 { format!("Range: bytes={from}-\r\n") } else { String::new() };
    write!(
        connection,
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{range}\r\n",
        job.path, job.server_name
    )?;
    connection.flush()?;
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = connection.read(&mut chunk)?;
        if n == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(length) =
            response.parse(&head).map_err(|error| io::Error::other(error.to_string()))?
        {
            let wanted = if from > 0 { 206 } else { 200 };
            if response.code != Some(wanted) {
                return Err(io::Error::other(format!("HTTP status {}", response.code.unwrap_or(0))));
            }
            return Ok((connection, head.split_off(length)));
        }
    }
}

/// An address with its zone, as `SSH_CONNECTION` writes it.
fn address(text: &str, port: u16) -> io::Result<SocketAddr> {
    if let Some((literal, zone)) = text.split_once('%') {
        let index = nix::net::if_::if_nametoindex(zone)?;
        let literal = literal.parse().map_err(io::Error::other)?;
        return Ok(std::net::SocketAddrV6::new(literal, port, 0, index).into());
    }
    (text, port).to_socket_addrs()?.next().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}
