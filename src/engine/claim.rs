//! One engine at a time on a node: the claim is held by the process and by nothing else, so its death releases it.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::wire::claim::{Claim, LOCK};

/// Where the kernel lists unix sockets.
const SOCKETS: &str = "/proc/net/unix";

/// The claim; dropping it releases the node.
pub struct Held {
    _lock: UnixListener,
    _told: UnixListener,
}

/// Claims the node.
///
/// # Errors
/// In words, who holds it and since when.
pub fn claim(claim: &Claim) -> io::Result<Held> {
    let bind = |name: &str| UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?);
    match bind(LOCK) {
        Ok(lock) => Ok(Held { _lock: lock, _told: bind(&claim.name())? }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text = match holder() {
                Some(holder) => format!(
                    "this node is held by deployment {} of the box at {} for {} s",
                    holder.deployment,
                    holder.box_address,
                    claim.since.saturating_sub(holder.since)
                ),
                None => "this node is held by another engine".to_owned(),
            };
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
        Err(error) => Err(error),
    }
}

fn holder() -> Option<Claim> {
    let sockets = std::fs::read_to_string(SOCKETS).ok()?;
    sockets.lines().find_map(|line| Claim::parse(line.split(' ').next_back()?))
}
