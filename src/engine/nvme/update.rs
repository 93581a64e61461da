//! One controller brought to a revision: Firmware Image Download (5.12), then Firmware Commit (5.11).
//!
//! The image goes into another slot than the active one where there is one, so that the old one stays. It becomes active
//! at the next reset, which is the node's restart: an activation without one would stop the disk for seconds while it is
//! in use. It must never write a disk that was not planned, or that has another revision than it was planned with.

use std::io::Read;
use std::path::Path;

use super::admin::{Admin, Command, Device, FIRMWARE_COMMIT, FIRMWARE_DOWNLOAD, Identity, Slots, words};
use crate::wire::message::{Nvme, NvmeDisk};

/// How it ended on one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// The revision was active already.
    WasThere,
    /// It was not planned with, or not with the revision it has.
    Left,
    /// It is active after the node's restart.
    AfterRestart,
}

impl Ended {
    /// For the log.
    pub fn words(self) -> &'static str {
        match self {
            Self::WasThere => "the revision is active already",
            Self::Left => {
                "left as it is: it is not one of those that were planned, with the revision it had then"
            }
            Self::AfterRestart => "active after a restart",
        }
    }
}

/// Brings an image to one controller, as `nvme0`; `tell` hears how far it is.
///
/// # Errors
/// Why not, in words.
pub fn update(
    controller: &str,
    job: &Nvme,
    image: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<Ended, String> {
    let mut device = Device::open(controller).map_err(|error| format!("/dev/{controller}: {error}"))?;
    let bytes = std::fs::metadata(image).map_err(|error| error.to_string())?.len();
    let mut file = std::fs::File::open(image).map_err(|error| error.to_string())?;
    bring(&mut device, job, &mut file, bytes, tell)
}

fn bring(
    device: &mut dyn Admin,
    job: &Nvme,
    image: &mut dyn Read,
    bytes: u64,
    tell: &mut dyn FnMut(String),
) -> Result<Ended, String> {
    let identity = Identity::ask(device)?;
    if identity.model != job.model {
        return Err(format!("it is a {} and not a {}", identity.model, job.model));
    }
    let is_it = |disk: &NvmeDisk| disk.serial == identity.serial && disk.revision == identity.revision;
    let is_again = identity.revision == job.version;
    if !job.disks.iter().any(is_it) {
        return Ok(if is_again { Ended::WasThere } else { Ended::Left });
    }
    if !identity.takes_firmware {
        return Err("it takes no firmware (Identify Controller, OACS bit 2)".into());
    }
    let slots = Slots::ask(device);
    if !is_again && let Some(slots) = &slots {
        if slots.revision(slots.next).is_some_and(|revision| revision == job.version) {
            return Ok(Ended::AfterRestart);
        }
        let held = (1..=identity.slots).find(|slot| slots.revision(*slot).as_ref() == Some(&job.version));
        if let Some(slot) = held {
            tell(format!("slot {slot} holds {} already", job.version));
            return commit(device, &identity, slot, Action::ActivateAtReset);
        }
    }
    let slot = identity.choose(slots.map(|slots| slots.active));
    download(device, &identity, image, bytes, tell)?;
    tell(format!("committing to slot {slot}"));
    commit(device, &identity, slot, Action::ReplaceAtReset)
}

fn download(
    device: &mut dyn Admin,
    identity: &Identity,
    image: &mut dyn Read,
    bytes: u64,
    tell: &mut dyn FnMut(String),
) -> Result<(), String> {
    let piece_bytes = identity.piece_bytes;
    let mut piece = vec![0; piece_bytes];
    let (mut offset, mut told) = (0_u64, None);
    while offset < bytes {
        let length = piece_bytes.min(usize::try_from(bytes - offset).unwrap_or(piece_bytes));
        // Filled up, as erased flash is.
        let padded = length.next_multiple_of(identity.granularity).min(piece_bytes);
        let piece = piece.get_mut(..padded).unwrap_or_default();
        piece.fill(0xff);
        let data = piece.get_mut(..length).unwrap_or_default();
        image.read_exact(data).map_err(|error| format!("reading the image: {error}"))?;
        let dwords = u32::try_from(padded / 4).map_err(|_| "the controller's granularity is odd")?;
        let at = u32::try_from(offset / 4).map_err(|_| "the image is too long")?;
        let timeout_ms = identity.firmware_ms;
        let command =
            Command { opcode: FIRMWARE_DOWNLOAD, nsid: 0, cdw10: dwords - 1, cdw11: at, timeout_ms };
        let sent = device.send(command, piece).map_err(|error| error.to_string());
        let status = sent.map_err(|error| format!("Firmware Image Download at byte {offset}: {error}"))?;
        if status != 0 {
            return Err(format!("Firmware Image Download at byte {offset}: {}", words(status)));
        }
        offset += length as u64;
        let percent = offset * 100 / bytes;
        if told != Some(percent) {
            told = Some(percent);
            tell(format!("Writing: {percent}%"));
        }
    }
    Ok(())
}

/// Commit Action, 5.11.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    ReplaceAtReset = 1,
    ActivateAtReset = 2,
}

/// It is active after a reset, also where the controller says which one it takes: 5.11, "Requires … Reset".
fn commit(device: &mut dyn Admin, identity: &Identity, slot: u8, action: Action) -> Result<Ended, String> {
    let cdw10 = (action as u32) << 3 | u32::from(slot);
    let timeout_ms = identity.firmware_ms;
    let command = Command { opcode: FIRMWARE_COMMIT, nsid: 0, cdw10, cdw11: 0, timeout_ms };
    match device.send(command, &mut []) {
        Ok(0 | 0x10b | 0x110 | 0x111) => Ok(Ended::AfterRestart),
        Ok(status) => Err(format!("Firmware Commit: {}", words(status))),
        Err(error) => Err(format!("Firmware Commit: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::admin::{GET_LOG_PAGE, IDENTIFY};
    use super::*;

    /// A controller by the letter of the specification: it takes what may be sent, and refuses the rest.
    struct Controller {
        frmw: u8,
        fwug: u8,
        mtfa: u16,
        oacs: u8,
        afi: u8,
        revisions: [&'static str; 7],
        image: Vec<u8>,
        commits: Vec<u32>,
        firmware_ms: Vec<u32>,
        /// Answers to commits, the first one first.
        statuses: Vec<u16>,
    }

    impl Controller {
        fn new(frmw: u8) -> Self {
            Self {
                frmw,
                fwug: 2,
                mtfa: 0,
                oacs: 1 << 2,
                afi: 1,
                revisions: ["OLD", "", "", "", "", "", ""],
                image: Vec::new(),
                commits: Vec::new(),
                firmware_ms: Vec::new(),
                statuses: Vec::new(),
            }
        }
    }

    fn put(data: &mut [u8], at: usize, text: &str, length: usize) {
        data[at..at + length].fill(b' ');
        data[at..at + text.len()].copy_from_slice(text.as_bytes());
    }

    impl Admin for Controller {
        fn send(&mut self, command: Command, data: &mut [u8]) -> io::Result<u16> {
            match command.opcode {
                IDENTIFY if command.cdw10 == 1 => {
                    put(data, 4, "S1", 20);
                    put(data, 24, "MODEL X", 40);
                    put(data, 64, self.revisions[usize::from(self.afi & 7) - 1], 8);
                    (data[256], data[260], data[319]) = (self.oacs, self.frmw, self.fwug);
                    assert_eq!(command.timeout_ms, 0);
                    data[270..272].copy_from_slice(&self.mtfa.to_le_bytes());
                    Ok(0)
                }
                GET_LOG_PAGE => {
                    assert_eq!(command.timeout_ms, 0);
                    assert_eq!((command.nsid, command.cdw10, data.len()), (u32::MAX, 0x7f_0003, 512));
                    data[0] = self.afi;
                    for (slot, revision) in self.revisions.iter().enumerate() {
                        put(data, 8 * (slot + 1), revision, 8);
                    }
                    Ok(0)
                }
                FIRMWARE_DOWNLOAD => {
                    let granularity =
                        if [0, 0xff].contains(&self.fwug) { 4 } else { 4096 * usize::from(self.fwug) };
                    self.firmware_ms.push(command.timeout_ms);
                    assert_eq!(data.len(), 4 * (command.cdw10 as usize + 1), "NUMD is 0's based");
                    if !data.len().is_multiple_of(granularity)
                        || 4 * command.cdw11 as usize != self.image.len()
                    {
                        return Ok(0x114);
                    }
                    self.image.extend_from_slice(data);
                    Ok(0)
                }
                FIRMWARE_COMMIT => {
                    self.commits.push(command.cdw10);
                    self.firmware_ms.push(command.timeout_ms);
                    Ok(if self.statuses.is_empty() { 0 } else { self.statuses.remove(0) })
                }
                _ => Ok(1),
            }
        }
    }

    fn job(revision: &str) -> Nvme {
        let disk = NvmeDisk { serial: "S1".into(), revision: revision.into() };
        Nvme { model: "MODEL X".into(), version: "NEW".into(), disks: vec![disk] }
    }

    /// Where the disk is planned with this revision.
    fn run(controller: &mut Controller, planned: &str) -> Result<Ended, String> {
        let image: Vec<u8> = (0..20_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let job = job(planned);
        let ended = bring(controller, &job, &mut image.as_slice(), image.len() as u64, &mut |_| {});
        if !controller.image.is_empty() {
            let (written, filled) = controller.image.split_at(image.len());
            assert!(written == image && filled.iter().all(|byte| *byte == 0xff));
        }
        ended
    }

    #[test]
    fn an_image_goes_in_whole_pieces_into_a_slot_that_is_not_active() {
        let mut one = Controller::new(1 << 1);
        assert_eq!(run(&mut one, "OLD"), Ok(Ended::AfterRestart));
        assert_eq!(one.image.len(), 3 * 8192);
        assert_eq!(one.commits, [1 << 3 | 1], "one slot: that one, active at the next reset");
        let mut three = Controller::new(1 << 4 | 3 << 1);
        assert_eq!(run(&mut three, "OLD"), Ok(Ended::AfterRestart));
        assert_eq!(three.commits, [1 << 3 | 2], "no I/O is stopped, also where the controller could");
        let mut read_only = Controller::new(2 << 1 | 1);
        (read_only.afi, read_only.revisions[1]) = (2, "NEW");
        assert_eq!(run(&mut read_only, "NEW"), Ok(Ended::AfterRestart));
        assert_eq!(read_only.commits, [1 << 3 | 2], "the first slot is read-only");
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let mut active = Controller::new(2 << 1);
        active.revisions[0] = "NEW";
        assert_eq!(run(&mut active, "OLD"), Ok(Ended::WasThere));
        let mut waiting = Controller::new(2 << 1);
        (waiting.afi, waiting.revisions[1]) = (2 << 4 | 1, "NEW");
        assert_eq!(run(&mut waiting, "OLD"), Ok(Ended::AfterRestart));
        assert!(waiting.commits.is_empty(), "it only waits for a restart");
        let mut held = Controller::new(2 << 1);
        held.revisions[1] = "NEW";
        assert_eq!(run(&mut held, "OLD"), Ok(Ended::AfterRestart));
        assert_eq!(held.commits, [2 << 3 | 2]);
        assert!([active, waiting, held].iter().all(|controller| controller.image.is_empty()));
    }

    #[test]
    fn only_a_planned_disk_with_its_planned_revision_is_written() {
        // Planned at 1; meanwhile, or for another disk of the model, there is something newer.
        for newer in ["3", "1.1"] {
            let mut disk =
                Controller { revisions: [newer, "", "", "", "", "", ""], ..Controller::new(2 << 1) };
            assert_eq!(run(&mut disk, "1"), Ok(Ended::Left));
            assert!(disk.image.is_empty() && disk.commits.is_empty(), "{newer}");
        }
        let mut other = Controller::new(2 << 1);
        let mut job = job("OLD");
        job.disks[0].serial = "S2".into();
        assert_eq!(bring(&mut other, &job, &mut io::empty(), 4, &mut |_| {}), Ok(Ended::Left));
        job.disks.clear();
        assert_eq!(bring(&mut other, &job, &mut io::empty(), 4, &mut |_| {}), Ok(Ended::Left));
        assert!(other.image.is_empty() && other.commits.is_empty());
    }

    #[test]
    fn without_a_granularity_nothing_is_sent_beyond_the_image() {
        for fwug in [0, 0xff] {
            let mut controller = Controller { fwug, ..Controller::new(2 << 1) };
            assert_eq!(run(&mut controller, "OLD"), Ok(Ended::AfterRestart));
            assert_eq!(controller.image.len(), 20_000);
        }
    }

    #[test]
    fn what_writes_firmware_has_the_time_the_controller_asks_for() {
        // Units of 100 ms.
        for (mtfa, firmware_ms) in [(0, 600_000), (5_000, 600_000), (u16::MAX, 6_613_500)] {
            let mut controller = Controller { mtfa, ..Controller::new(2 << 1) };
            assert_eq!(run(&mut controller, "OLD"), Ok(Ended::AfterRestart));
            assert!(controller.firmware_ms.iter().all(|ms| *ms == firmware_ms), "{mtfa}");
            assert_eq!(controller.firmware_ms.len(), 4);
        }
    }

    #[test]
    fn what_the_controller_says_of_a_commit_is_told() {
        for reset in [0x10b, 0x110, 0x111] {
            let mut controller = Controller { statuses: vec![reset], ..Controller::new(1 << 4 | 2 << 1) };
            assert_eq!(run(&mut controller, "OLD"), Ok(Ended::AfterRestart));
        }
        let mut refuses = Controller { statuses: vec![0x107], ..Controller::new(2 << 1) };
        let why = "Firmware Commit: Invalid Firmware Image (status 107h)";
        assert_eq!(run(&mut refuses, "OLD"), Err(why.into()));
        let mut unable = Controller { oacs: 0, ..Controller::new(2 << 1) };
        assert_eq!(
            run(&mut unable, "OLD").unwrap_err(),
            "it takes no firmware (Identify Controller, OACS bit 2)"
        );
        let mut other = Controller::new(2 << 1);
        let job = Nvme { model: "MODEL Y".into(), ..job("OLD") };
        let ended = bring(&mut other, &job, &mut io::empty(), 0, &mut |_| {});
        assert_eq!(ended, Err("it is a MODEL X and not a MODEL Y".into()));
    }
}
