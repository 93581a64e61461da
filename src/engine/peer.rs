//! One connection of the box: TLS over whatever stream it came by, whole messages in, whole messages out.
//!
//! It never blocks. What the box does not read is kept up to a bound and then ends the connection, not the engine.

use std::io::{self, Read as _, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustls::{ServerConfig, ServerConnection};

use crate::wire::frame::{self, CHUNK_ID_BYTES, FrameError, HEADER_BYTES, Head};
use crate::wire::message::{FromEngine, Notice, ToEngine};

/// Bytes taken in before what they hold is looked at.
const READ_BYTES: usize = 128 * 1024;

/// Bytes that may wait for the box to read them.
const OUTGOING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// With more than this waiting, news on the way are left out: the answer matters.
const OUTGOING_BYTES_BUSY: usize = 256 * 1024;

/// What a connection comes by.
pub trait Stream: io::Read + io::Write + AsFd {}

impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// Something from the box.
pub enum Arrival {
    /// A message.
    Message(ToEngine),
    /// A piece of a payload, and the request it belongs to.
    Chunk(u32, Vec<u8>),
}

/// One connection.
pub struct Peer {
    /// Its number: an answer goes to the connection that asked, or nowhere.
    pub number: u64,
    /// Since when.
    pub since: Instant,
    /// Whether the box has proved itself and said something.
    pub greeted: bool,
    stream: Box<dyn Stream>,
    tls: ServerConnection,
    arrived: Vec<u8>,
    outgoing: Vec<u8>,
    ended: bool,
}

impl Peer {
    /// A connection that has just come.
    ///
    /// # Errors
    /// Those of the TLS library.
    pub fn new(number: u64, stream: Box<dyn Stream>, tls: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let tls = ServerConnection::new(tls)?;
        Ok(Self {
            number,
            since: Instant::now(),
            greeted: false,
            stream,
            tls,
            arrived: Vec::new(),
            outgoing: Vec::new(),
            ended: false,
        })
    }

    /// To wait for it.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether something waits to be sent.
    pub fn wants_write(&self) -> bool {
        self.tls.wants_write() || !self.outgoing.is_empty()
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ends it: nothing more is read or sent.
    pub fn end(&mut self) {
        self.ended = true;
        self.arrived.clear();
    }

    /// Takes in some of what has arrived.
    pub fn read(&mut self) {
        while self.arrived.len() < READ_BYTES && !self.ended {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => self.ended = true,
                Ok(_) => self.ended |= self.decrypt().is_err(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
    }

    fn decrypt(&mut self) -> io::Result<()> {
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        self.ended |= state.peer_has_closed();
        let from = self.arrived.len();
        self.arrived.resize(from + state.plaintext_bytes_to_read(), 0);
        self.tls.reader().read_exact(self.arrived.get_mut(from..).unwrap_or_default())
    }

    /// The next whole thing that has arrived, if there is one.
    ///
    /// # Errors
    /// [`FrameError`]: what is not understood ends the connection.
    pub fn next(&mut self) -> Result<Option<Arrival>, FrameError> {
        let Some((header, rest)) = self.arrived.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let (length, arrival) = match frame::head(*header)? {
            Head::Message(length) => {
                let Some(body) = rest.get(..length) else { return Ok(None) };
                (length, Arrival::Message(frame::decode(body)?))
            }
            Head::Chunk(length) => {
                let Some(body) = rest.get(..length) else { return Ok(None) };
                let (id, bytes) = body
                    .split_first_chunk::<CHUNK_ID_BYTES>()
                    .ok_or(FrameError::TooLong { bytes: length })?;
                (length, Arrival::Chunk(u32::from_be_bytes(*id), bytes.to_vec()))
            }
        };
        self.arrived.drain(..HEADER_BYTES + length);
        Ok(Some(arrival))
    }

    /// Lets a message wait for [`Self::flush`].
    pub fn send(&mut self, message: &FromEngine) {
        let news =
            matches!(message, FromEngine::Notice { notice, .. } if !matches!(notice, Notice::Pushed { .. }));
        if news && self.outgoing.len() > OUTGOING_BYTES_BUSY {
            return;
        }
        if let Ok(mut bytes) = frame::encode(message) {
            self.outgoing.append(&mut bytes);
            self.ended |= self.outgoing.len() > OUTGOING_BYTES_MAX;
        }
    }

    /// Sends what the box takes.
    pub fn flush(&mut self) {
        while self.wants_write() && !self.ended {
            // The TLS library holds so much and no more; the rest waits here.
            let taken = self.tls.writer().write(&self.outgoing).unwrap_or(0);
            self.outgoing.drain(..taken);
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
            if taken == 0 && !self.tls.wants_write() {
                // A handshake that is not over takes nothing yet.
                return;
            }
        }
    }
}
