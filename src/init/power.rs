//! The power button: an input device that has the key KEY_POWER.
//!
//! Only such devices are kept open; what a keyboard without that key types is never read here.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NONBLOCK};

/// linux/input-event-codes.h
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// KEY_MAX is 0x2ff: one bit a key.
const KEY_BYTES: usize = 0x300 / 8;
/// struct input_event on 64-bit: two 8-byte times, type, code, value.
const EVENT_BYTES: usize = 24;

nix::ioctl_read_buf!(event_bits_of_keys, b'E', 0x20 + 1, u8);

/// The machine's power buttons.
#[derive(Default)]
pub struct Buttons {
    open: Vec<(PathBuf, File)>,
}

impl Buttons {
    /// Opens the buttons that are there now.
    pub fn find_all(&mut self) {
        for entry in std::fs::read_dir("/dev/input").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("event") {
                self.add(&entry.path());
            }
        }
    }

    /// Keeps the device open if it is a power button.
    pub fn add(&mut self, path: &Path) {
        if self.open.iter().any(|(known, _)| known == path) {
            return;
        }
        let flags = O_NONBLOCK | O_CLOEXEC;
        if let Ok(file) = File::options().read(true).custom_flags(flags).open(path)
            && has_power_key(&file)
        {
            self.open.push((path.to_owned(), file));
        }
    }

    /// The descriptors to wait on.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.iter().map(|(_, file)| file.as_fd())
    }

    /// Whether a button was pressed since the last call. A device that is gone is closed.
    pub fn pressed(&mut self) -> bool {
        let mut pressed = false;
        self.open.retain_mut(|(_, file)| {
            let mut event = [0_u8; EVENT_BYTES];
            loop {
                match file.read(&mut event) {
                    Ok(EVENT_BYTES) => pressed |= is_power_press(&event),
                    Ok(_) => return false,
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        pressed
    }
}

fn has_power_key(file: &File) -> bool {
    let mut bits = [0_u8; KEY_BYTES];
    // SAFETY: the buffer is ours and as long as the request says; the kernel writes no more than that.
    let asked = unsafe { event_bits_of_keys(file.as_raw_fd(), &mut bits) };
    let byte = bits.get(usize::from(KEY_POWER / 8)).copied().unwrap_or_default();
    asked.is_ok() && byte & (1 << (KEY_POWER % 8)) != 0
}

fn is_power_press(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let mut event = [0_u8; EVENT_BYTES];
        event[16..18].copy_from_slice(&EV_KEY.to_ne_bytes());
        event[18..20].copy_from_slice(&KEY_POWER.to_ne_bytes());
        event[20..24].copy_from_slice(&1_i32.to_ne_bytes());
        assert!(is_power_press(&event));
        event[20] = 0;
        assert!(!is_power_press(&event));
    }
}
