//! A controller as the kernel's admin ioctl shows it: commands, Identify Controller, the log page of firmware slots.
//!
//! Sections are those of the NVM Express Base Specification 2.0. Nothing here decides what is sent.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use nix::libc;

/// A controller as this module talks to it.
pub trait Admin {
    /// Sends a command with its data, either way, and returns its status: code type and code (4.2.3).
    ///
    /// # Errors
    /// Those of the system: the command was not carried out.
    fn send(&mut self, command: Command, data: &mut [u8]) -> io::Result<u16>;
}

/// An admin command, as far as these need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Its code.
    pub opcode: u8,
    /// Namespace; all of them where that means the controller.
    pub nsid: u32,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// How long it may take, milliseconds; 0 is the kernel's own bound. Past it the kernel resets the controller.
    pub timeout_ms: u32,
}

/// Figure 138, opcodes for admin commands.
pub const IDENTIFY: u8 = 0x06;
/// See [`IDENTIFY`].
pub const GET_LOG_PAGE: u8 = 0x02;
/// See [`IDENTIFY`].
pub const FIRMWARE_COMMIT: u8 = 0x10;
/// See [`IDENTIFY`].
pub const FIRMWARE_DOWNLOAD: u8 = 0x11;

/// Bytes of Identify Controller, and of a log page's part that is read.
const IDENTIFY_BYTES: usize = 4096;
const SLOTS_BYTES: usize = 512;

/// A unit of Identify Controller's FWUG, and what is sent at once where it gives none.
const PIECE_BYTES: usize = 4096;

/// Images are sent in whole dwords (5.12).
const DWORD_BYTES: usize = 4;

/// Seven slots at most (5.11).
const SLOTS_MAX: u8 = 7;

/// The least that a command which writes firmware is given.
const FIRMWARE_MIN: Duration = Duration::from_secs(600);

/// What such a command is given beyond the time in which the controller processes nothing else (MTFA).
const FIRMWARE_SLACK: Duration = Duration::from_secs(60);

/// Status values of these commands: 4.2.3.1 (generic), 5.11 and 5.12 (command specific).
pub fn words(status: u16) -> String {
    let name = match status {
        0x001 => "Invalid Command Opcode",
        0x002 => "Invalid Field in Command",
        0x004 => "Data Transfer Error",
        0x006 => "Internal Error",
        0x106 => "Invalid Firmware Slot",
        0x107 => "Invalid Firmware Image",
        0x112 => "Firmware Activation Requires Maximum Time Violation",
        0x113 => "Firmware Activation Prohibited",
        0x114 => "Overlapping Range",
        _ => "refused",
    };
    format!("{name} (status {status:03x}h)")
}

/// What Identify Controller says, as far as firmware goes (5.17.2.1).
pub struct Identity {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision that is active.
    pub revision: String,
    /// Whether it takes Firmware Image Download and Firmware Commit.
    pub takes_firmware: bool,
    /// How many slots it has.
    pub slots: u8,
    first_is_read_only: bool,
    /// Bytes of a piece, but for the last one.
    pub piece_bytes: usize,
    /// What the length of a piece is a multiple of, the last one's too.
    pub granularity: usize,
    /// How long a command that writes firmware may take, milliseconds.
    pub firmware_ms: u32,
}

impl Identity {
    /// Asks the controller.
    ///
    /// # Errors
    /// Why it does not tell, in words.
    pub fn ask(device: &mut dyn Admin) -> Result<Self, String> {
        let mut data = vec![0; IDENTIFY_BYTES];
        let command = Command { opcode: IDENTIFY, nsid: 0, cdw10: 1, cdw11: 0, timeout_ms: 0 };
        match device.send(command, &mut data) {
            Ok(0) => {}
            Ok(status) => return Err(format!("Identify Controller: {}", words(status))),
            Err(error) => return Err(format!("Identify Controller: {error}")),
        }
        let byte = |at: usize| data.get(at).copied().unwrap_or_default();
        let frmw = byte(260);
        // Unit: 100 ms.
        let mtfa = Duration::from_millis(100) * u32::from(u16::from_le_bytes([byte(270), byte(271)]));
        let firmware = FIRMWARE_MIN.max(mtfa + FIRMWARE_SLACK);
        let (piece_bytes, granularity) = match byte(319) {
            // No information, and no restriction: whatever is sent more than the image may be refused with it.
            0 | 0xff => (PIECE_BYTES, DWORD_BYTES),
            units => (PIECE_BYTES * usize::from(units), PIECE_BYTES * usize::from(units)),
        };
        Ok(Self {
            serial: text(data.get(4..24)),
            model: text(data.get(24..64)),
            revision: text(data.get(64..72)),
            takes_firmware: byte(256) & 1 << 2 != 0,
            slots: (frmw >> 1 & 0b111).clamp(1, SLOTS_MAX),
            first_is_read_only: frmw & 1 != 0,
            piece_bytes,
            granularity,
            firmware_ms: u32::try_from(firmware.as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// A slot that may be written, another than the active one if there is one; 0 leaves it to the controller.
    pub fn choose(&self, active: Option<u8>) -> u8 {
        let Some(active) = active else { return 0 };
        let first = if self.first_is_read_only { 2 } else { 1 };
        let writable = first..=self.slots;
        let other = writable.clone().find(|slot| *slot != active);
        other.or(writable.contains(&active).then_some(active)).unwrap_or(0)
    }
}

/// The log page Firmware Slot Information, 03h.
pub struct Slots {
    /// The slot whose image runs.
    pub active: u8,
    /// Active after the next reset; 0 when that changes nothing.
    pub next: u8,
    data: Vec<u8>,
}

impl Slots {
    /// Asks the controller; none when it does not tell.
    pub fn ask(device: &mut dyn Admin) -> Option<Self> {
        let mut data = vec![0; SLOTS_BYTES];
        let dwords = u32::try_from(SLOTS_BYTES / 4).ok()?;
        let cdw10 = (dwords - 1) << 16 | 0x03;
        let command = Command { opcode: GET_LOG_PAGE, nsid: u32::MAX, cdw10, cdw11: 0, timeout_ms: 0 };
        let status = device.send(command, &mut data).ok()?;
        let afi = *data.first()?;
        (status == 0 && afi & 0b111 != 0).then_some(Self {
            active: afi & 0b111,
            next: afi >> 4 & 0b111,
            data,
        })
    }

    /// The revision that a slot holds; none when it is empty.
    pub fn revision(&self, slot: u8) -> Option<String> {
        let at = 8 * usize::from(slot);
        let revision = text(self.data.get(at..at + 8));
        (slot != 0 && !revision.is_empty()).then_some(revision)
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    let text = String::from_utf8_lossy(bytes.unwrap_or_default());
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

/// `struct nvme_admin_cmd`, linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12_to_15: [u32; 4],
    timeout_ms: u32,
    result: u32,
}

/// `NVME_IOCTL_ADMIN_CMD`: `_IOWR('N', 0x41, struct nvme_admin_cmd)`.
const NVME_IOCTL_ADMIN_CMD: libc::c_ulong = 3 << 30
    | (std::mem::size_of::<Passthrough>() as libc::c_ulong) << 16
    | (b'N' as libc::c_ulong) << 8
    | 0x41;

/// A controller's character device.
pub struct Device(std::fs::File);

impl Device {
    /// Opens `/dev/nvme0` and the like.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(controller: &str) -> io::Result<Self> {
        Ok(Self(std::fs::File::open(Path::new("/dev").join(controller))?))
    }
}

impl Admin for Device {
    fn send(&mut self, command: Command, data: &mut [u8]) -> io::Result<u16> {
        let mut request = Passthrough {
            opcode: command.opcode,
            nsid: command.nsid,
            address: if data.is_empty() { 0 } else { data.as_mut_ptr() as u64 },
            data_bytes: u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            cdw10: command.cdw10,
            cdw11: command.cdw11,
            timeout_ms: command.timeout_ms,
            ..Passthrough::default()
        };
        // SAFETY: the request is the structure that this ioctl takes; its address and length are those of `data`, which
        // is borrowed for writing until the call has returned.
        let status = unsafe { libc::ioctl(self.0.as_raw_fd(), NVME_IOCTL_ADMIN_CMD as _, &raw mut request) };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        // The retry and more bits above the code type say nothing about what became of it.
        Ok(u16::try_from(status & 0x7ff).unwrap_or(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_has_the_number_of_the_kernels_header() {
        assert_eq!(std::mem::size_of::<Passthrough>(), 72);
        assert_eq!(NVME_IOCTL_ADMIN_CMD, 0xc048_4e41);
    }
}
