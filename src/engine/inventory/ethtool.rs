//! Driver and firmware version of a network interface: `ETHTOOL_GDRVINFO` by the SIOCETHTOOL ioctl
//! (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

/// `SIOCETHTOOL`, linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `ETHTOOL_GDRVINFO`.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo`: 196 bytes.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// What the driver says.
pub struct Driver {
    /// Its name.
    pub driver: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The firmware's version.
    pub firmware: Option<String>,
    /// The bus address.
    pub bus: Option<String>,
}

/// Asks the driver of `interface`.
///
/// # Errors
/// Those of the ioctl; EOPNOTSUPP for an interface without a driver that answers.
pub fn driver(interface: &str) -> io::Result<Driver> {
    let socket =
        std::net::UdpSocket::bind(("::", 0)).or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))?;
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 64],
    };
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    // SAFETY: the request points to a live drvinfo of the size this command writes.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim().to_owned();
        (!text.is_empty() && text != "N/A").then_some(text)
    };
    let _ = info.rest;
    Ok(Driver {
        driver: text(&info.driver),
        version: text(&info.version),
        firmware: text(&info.firmware),
        bus: text(&info.bus),
    })
}
