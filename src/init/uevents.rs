//! The kernel's announcements of devices, from its netlink socket.
//!
//! Only messages from the kernel itself (port 0) are read: any process may send to the group. Must never block.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

use super::InitError;

/// The kernel's own limit for one event (UEVENT_BUFFER_SIZE) is 2048; the header line comes on top.
const EVENT_BYTES_MAX: usize = 4096;
/// Room for a few hundred events that come while a module is being loaded.
const RECEIVE_BYTES: usize = 1 << 20;
/// The kernel's multicast group.
const KERNEL_GROUP: u32 = 1;

/// The socket.
pub struct Uevents {
    socket: OwnedFd,
}

/// What the socket gives.
pub enum Heard {
    /// An event.
    Event(Uevent),
    /// More came than there was room for: what is there now must be looked at.
    Lost,
}

/// The fields of an event that init cares for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// "add", "bind", "change", "remove", …
    pub action: String,
    /// "pci", "input", …
    pub subsystem: String,
    /// What to look up in `modules.alias`.
    pub modalias: Option<String>,
    /// The node under /dev.
    pub devname: Option<String>,
}

impl Uevents {
    /// Opens the socket and joins the kernel's group.
    pub fn open() -> Result<Self, InitError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)
            .map_err(InitError::call("opening the uevent socket"))?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))
            .map_err(InitError::call("listening for uevents"))?;
        Ok(Self { socket })
    }

    /// The next thing that has already arrived.
    pub fn next(&self) -> Option<Heard> {
        let mut buffer = [0_u8; EVENT_BYTES_MAX];
        loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if from.pid() == 0 => {
                    return Some(Heard::Event(parse(buffer.get(..length).unwrap_or_default())));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Some(Heard::Lost),
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `add@/devices/…\0ACTION=add\0SUBSYSTEM=pci\0MODALIAS=…\0`
fn parse(message: &[u8]) -> Uevent {
    let mut event = Uevent::default();
    for field in message.split(|&byte| byte == 0) {
        let Some((key, value)) = std::str::from_utf8(field).ok().and_then(|field| field.split_once('='))
        else {
            continue;
        };
        match key {
            "ACTION" => event.action = value.to_owned(),
            "SUBSYSTEM" => event.subsystem = value.to_owned(),
            "MODALIAS" => event.modalias = Some(value.to_owned()),
            "DEVNAME" => event.devname = Some(value.to_owned()),
            _ => {}
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_by_its_fields() {
        let event = parse(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=input\0DEVNAME=input/event0\0SEQNUM=1\0");
        assert_eq!(event.action, "add");
        assert_eq!(event.subsystem, "input");
        assert_eq!(event.devname.as_deref(), Some("input/event0"));
        assert_eq!(event.modalias, None);
    }

    #[test]
    fn rubbish_is_an_empty_event() {
        assert_eq!(parse(b"\xff\xfe\0no equals\0\0"), Uevent::default());
    }
}
