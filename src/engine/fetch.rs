//! A payload from the box over HTTPS, resumed at the byte where it stopped. Memory does not grow with the payload.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::payload::{Ended, Partial, Stopped};
use super::session::{Done, Worker};
use super::unpack::Unpacking;
use crate::wire::message::{Failure, FailureKind, Fetch, Probe};

/// Bytes written and hashed at once, if so many are there.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes taken from the kernel at once: the TLS library asks for 4 KiB at a time, which would be a system call each.
const SOCKET_BYTES: usize = 64 * 1024;

/// Bytes of a response's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A connection attempt, a handshake, and any silence in a transfer, last at most this: longer than the pauses of a
/// lossy network, short enough that another path is taken while the operator still watches.
const SILENCE_MAX: Duration = Duration::from_secs(8);

/// How often a silent transfer looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Attempts in a row without a new byte.
const ATTEMPTS_MAX: u32 = 4;

/// Between two notices.
const NOTICE_EVERY: Duration = Duration::from_millis(250);

/// A TCP connection that is read in large pieces.
struct Socket(BufReader<TcpStream>);

impl Socket {
    /// Whether bytes are there that the kernel need not be asked for.
    fn holds_more(&self) -> bool {
        !self.0.buffer().is_empty()
    }
}

impl io::Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl io::Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

type Connection = StreamOwned<ClientConnection, Socket>;

/// Why an attempt ended.
enum Broken {
    /// The network: to be tried again.
    Network(io::Error),
    /// The node's disk, or bytes that are wrong: not.
    Disk(Failure),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Network(error)
    }
}

/// Fetches and verifies, from where `begun` stands.
pub fn fetch(
    job: &Fetch,
    begun: Option<Partial>,
    directory: &Path,
    tls: &Arc<ClientConfig>,
    worker: &Worker,
) -> Ended {
    let mut partial = Partial::take_up(begun, directory, job.sha256, job.size)?;
    let (mut fruitless, mut packed) = (0, None);
    let progress = |partial: &Partial, packed: &Option<Unpacking>| {
        (partial.done(), packed.as_ref().map_or(0, |packed| packed.received))
    };
    while !partial.is_complete() {
        let before = progress(&partial, &packed);
        let result = attempt(job, &mut partial, &mut packed, tls, worker);
        if worker.should_stop() {
            return Err(Stopped::at(partial, FailureKind::Cancelled, "the transfer was stopped"));
        }
        let error = match result {
            Ok(()) => continue,
            Err(Broken::Disk(failure)) => return Err(failure.into()),
            Err(Broken::Network(error)) => error,
        };
        fruitless = if progress(&partial, &packed) > before { 0 } else { fruitless + 1 };
        partial.resumes += 1;
        if fruitless >= ATTEMPTS_MAX {
            let (address, port) = (&job.address, job.port);
            let text = format!("the box at {address} port {port} gives no payload to this node: {error}");
            return Err(Stopped::at(partial, FailureKind::Unreachable, text));
        }
        pause(Duration::from_millis(200 << fruitless), worker);
    }
    Ok(partial.finish()?)
}

fn attempt(
    job: &Fetch,
    partial: &mut Partial,
    packed: &mut Option<Unpacking>,
    tls: &Arc<ClientConfig>,
    worker: &Worker,
) -> Result<(), Broken> {
    let (mut connection, first) = request(job, tls, partial.done(), packed)?;
    connection.sock.0.get_ref().set_read_timeout(Some(LOOK_EVERY))?;
    let mut take = |bytes: &[u8], partial: &mut Partial| {
        let taken = match packed {
            Some(packed) => packed.write(bytes, partial),
            None => partial.write(bytes),
        };
        taken.map_err(Broken::Disk)
    };
    take(&first, partial)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut heard, mut noticed) = (Instant::now(), Instant::now());
    while !partial.is_complete() && !worker.should_stop() {
        if noticed.elapsed() >= NOTICE_EVERY {
            noticed = Instant::now();
            worker.tell(Done::Progress(job.sha256, partial.done()));
        }
        match fill(&mut connection, &mut chunk) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => {
                heard = Instant::now();
                take(chunk.get(..n).unwrap_or_default(), partial)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && heard.elapsed() < SILENCE_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads what there is, as far as it fits. Waits for the first byte, and for the rest of a TLS record that has begun to
/// arrive, each at most [`LOOK_EVERY`]. An error after the first byte comes again with the next call.
fn fill(connection: &mut Connection, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = connection.read(chunk)?;
    while filled > 0 && connection.sock.holds_more() {
        match chunk.get_mut(filled..).map(|rest| connection.read(rest)) {
            Some(Ok(n @ 1..)) => filled += n,
            _ => break,
        }
    }
    Ok(filled)
}

/// Waits, but not longer than until it should stop.
fn pause(length: Duration, worker: &Worker) {
    let end = Instant::now() + length;
    while Instant::now() < end && !worker.should_stop() {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Why the box's HTTPS port cannot be reached; none when it can.
pub fn probe(job: &Probe) -> Option<String> {
    let bound = Duration::from_millis(u64::from(job.bound_ms));
    let reached = resolve(&job.address, job.port).and_then(|to| TcpStream::connect_timeout(&to, bound));
    reached.err().map(|error| error.to_string())
}

fn connect(address: &str, port: u16, name: &str, tls: &Arc<ClientConfig>) -> io::Result<Connection> {
    let stream = TcpStream::connect_timeout(&resolve(address, port)?, SILENCE_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let socket = Socket(BufReader::with_capacity(SOCKET_BYTES, stream));
    Ok(StreamOwned::new(ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?, socket))
}

/// Sends the request; returns the connection and the first bytes of the body. A payload is asked for packed from its
/// beginning, and on as it was begun; from any other byte on as it is.
fn request(
    job: &Fetch,
    tls: &Arc<ClientConfig>,
    from: u64,
    packed: &mut Option<Unpacking>,
) -> Result<(Connection, Vec<u8>), Broken> {
    let mut connection = connect(&job.address, job.port, &job.server_name, tls)?;
    let (wanted, how) = match packed {
        Some(Unpacking { received, tag, .. }) => {
            (206, format!("Accept-Encoding: zstd\r\nRange: bytes={received}-\r\nIf-Range: {tag}\r\n"))
        }
        None if from > 0 => (206, format!("Range: bytes={from}-\r\n")),
        None => (200, "Accept-Encoding: zstd\r\n".to_owned()),
    };
    write!(
        connection,
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{how}\r\n",
        job.path, job.server_name
    )?;
    connection.flush()?;
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = connection.read(&mut chunk)?;
        if n == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        head.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(length) =
            response.parse(&head).map_err(|error| io::Error::other(error.to_string()))?
        {
            if response.code != Some(wanted) {
                // The box has packed it anew, perhaps: what was unpacked is right, the rest is asked for as it is.
                *packed = None;
                return Err(io::Error::other(format!("HTTP status {}", response.code.unwrap_or(0))).into());
            }
            if wanted == 200 && header(&response, "content-encoding") == "zstd" {
                let tag = header(&response, "etag").to_owned();
                *packed = Some(Unpacking::begin(tag).map_err(Broken::Disk)?);
            }
            return Ok((connection, head.split_off(length)));
        }
    }
}

/// A header's value; empty when there is none.
fn header<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> &'a str {
    let named = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    named.and_then(|header| std::str::from_utf8(header.value).ok()).unwrap_or_default().trim()
}

/// An address with its zone, as `SSH_CONNECTION` writes it: never a name, so nothing is asked of the node's resolver.
fn resolve(text: &str, port: u16) -> io::Result<SocketAddr> {
    if let Some((literal, zone)) = text.split_once('%') {
        let index = nix::net::if_::if_nametoindex(zone)?;
        let literal = literal.parse().map_err(io::Error::other)?;
        return Ok(std::net::SocketAddrV6::new(literal, port, 0, index).into());
    }
    Ok(SocketAddr::new(text.parse().map_err(io::Error::other)?, port))
}
