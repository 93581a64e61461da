//! What is particular to Linux: leaving the terminal, process start time, the listening socket, free room.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6, sockopt};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

use crate::paths::ENGINE_PORT_TRIES;
use crate::wire::message::Started;

/// Leaves a process behind that is nobody's child, and returns what it says once it stands: `stay` prepares there,
/// and what it returns beside is run there to the end.
///
/// # Errors
/// Those of `stay`, as text, and of the system.
pub fn detach<F: FnOnce()>(stay: impl FnOnce() -> io::Result<(Started, F)>) -> io::Result<Started> {
    let (reader, writer) = pipe()?;
    // SAFETY: this process has one thread; the child uses no lock that another thread could hold.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = String::new();
            std::fs::File::from(reader).take(64 * 1024).read_to_string(&mut said)?;
            let _ = nix::sys::wait::waitpid(child, None);
            serde_json::from_str::<Result<Started, String>>(&said)
                .map_err(|_| io::Error::other("it ended at once"))?
                .map_err(io::Error::other)
        }
        ForkResult::Child => {
            drop(reader);
            let code = child(stay, std::fs::File::from(writer));
            std::process::exit(code)
        }
    }
}

fn child<F: FnOnce()>(stay: impl FnOnce() -> io::Result<(Started, F)>, mut told: std::fs::File) -> i32 {
    let prepared = (|| {
        setsid()?;
        // SAFETY: as above; a second time, so that no terminal can be had again.
        if let ForkResult::Parent { .. } = unsafe { fork() }? {
            return Ok(None);
        }
        std::env::set_current_dir("/")?;
        // The login's streams, so that the SSH channel can end.
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        // Closed by its owner here: its number must not be closed again once something else bears it.
        drop(null);
        close_inherited(told.as_raw_fd());
        stay().map(Some)
    })();
    let (result, run) = match prepared {
        Ok(None) => return 0,
        Ok(Some((started, run))) => (Ok(started), Some(run)),
        Err(error) => (Err(io::Error::to_string(&error)), None),
    };
    let _ = told.write_all(&serde_json::to_vec(&result).unwrap_or_default());
    drop(told);
    if let Some(run) = run {
        run();
    }
    0
}

/// Descriptors that sudo or a login shell left open.
fn close_inherited(keep: i32) {
    for fd in 3..256 {
        if fd != keep {
            // SAFETY: this process has opened nothing yet but `keep`; what is closed here is not ours.
            unsafe { nix::libc::close(fd) };
        }
    }
}

/// Start time of a process: field 22 of `/proc/PID/stat`, proc(5).
///
/// # Errors
/// Those of reading it.
pub fn start_time_of(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in field 2 may hold anything, so count from the last parenthesis: that is field 3.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let field = fields.and_then(|fields| fields.split(' ').nth(19)).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

/// Listens on the first free port from `first` on, on all addresses of both families.
///
/// # Errors
/// Those of the last try.
pub fn listen(first: u16) -> io::Result<(TcpListener, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in first..first.saturating_add(ENGINE_PORT_TRIES) {
        let bound = listen_on_both(port).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Err(error),
            // A node without IPv6.
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        });
        match bound {
            Ok(listener) => return Ok((listener, port)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One socket for both families, whatever the node's `net.ipv6.bindv6only` is: ipv6(7).
fn listen_on_both(port: u16) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet6, SockType::Stream, flags, SockProtocol::Tcp)?;
    socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let address = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    socket::bind(socket.as_raw_fd(), &address)?;
    socket::listen(&socket, socket::Backlog::new(128)?)?;
    Ok(socket.into())
}

/// Listens on a socket that only root may open; none where the file system has no sockets.
pub fn listen_in(path: &Path) -> Option<UnixListener> {
    let listener = UnixListener::bind(path).ok()?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).ok()?;
    Some(listener)
}

/// Seconds after 1970 by the node's clock.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Bytes free where `path` is.
///
/// # Errors
/// Those of the system.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}
