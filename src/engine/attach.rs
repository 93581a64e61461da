//! `carena-engine attach`: joins its standard streams with the running engine's socket, so that a box that has nothing
//! but its SSH connection talks to the engine through it. It understands nothing of what it passes on; TLS is inside.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::paths::ENGINE_SOCKET;

/// Bytes passed on at once: what a pipe holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Passes bytes on, both ways, until the engine ends the conversation.
///
/// # Errors
/// Those of joining.
pub fn attach(directory: &Path) -> io::Result<()> {
    let engine = UnixStream::connect(directory.join(ENGINE_SOCKET))?;
    let towards = engine.try_clone()?;
    // Files, not the library's streams: those wait for the end of a line.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::spawn(move || {
        let _ = pass_on(input, &towards);
        // The box has gone: the engine sees the end, and ends its side, which ends this process.
        let _ = towards.shutdown(Shutdown::Write);
    });
    pass_on(engine, output)
}

/// Not `io::copy`: that splices, and a splice from a socket that waits for its next byte holds the pipe's lock
/// meanwhile, so that sshd cannot read the bytes before it.
fn pass_on(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(buffer.get(..n).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
