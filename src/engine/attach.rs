//! `carena-engine attach`: joins its standard streams with the running engine's socket, so that a box that has nothing
//! but its SSH connection talks to the engine through it. It understands nothing of what it passes on; TLS is inside.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::paths::ENGINE_SOCKET;

/// Passes bytes on, both ways, until the engine ends the conversation.
///
/// # Errors
/// Those of joining.
pub fn attach(directory: &Path) -> io::Result<()> {
    let mut engine = UnixStream::connect(directory.join(ENGINE_SOCKET))?;
    let mut towards = engine.try_clone()?;
    // Files, not the library's streams: those wait for the end of a line.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut input, &mut towards);
        // The box has gone: the engine sees the end, and ends its side, which ends this process.
        let _ = towards.shutdown(Shutdown::Write);
    });
    io::copy(&mut engine, &mut output).map(drop)
}
