//! One controller brought to a revision: Firmware Image Download (5.12), then Firmware Commit (5.11).
//!
//! The image goes into another slot than the active one where there is one, so that the old one stays.

use std::io::Read;
use std::path::Path;

use super::admin::{
    Admin, Command, Device, FIRMWARE_COMMIT, FIRMWARE_DOWNLOAD, Identity, MAXIMUM_TIME_VIOLATION, Slots,
    words,
};

/// What is to be written.
pub struct Job<'a> {
    /// Model, Identify Controller bytes 24 to 63.
    pub model: &'a str,
    /// The revision that the image brings.
    pub version: &'a str,
    /// Also where that is active already.
    pub rewrite: bool,
}

/// How it ended on one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// The revision was active already.
    WasThere,
    /// It is active now.
    Active,
    /// It is active after the node's restart.
    AfterRestart,
}

impl Ended {
    /// For the log.
    pub fn words(self) -> &'static str {
        match self {
            Self::WasThere => "the revision is active already",
            Self::Active => "active now",
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
    job: &Job<'_>,
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
    job: &Job<'_>,
    image: &mut dyn Read,
    bytes: u64,
    tell: &mut dyn FnMut(String),
) -> Result<Ended, String> {
    let identity = Identity::ask(device)?;
    if identity.model != job.model {
        return Err(format!("it is a {} and not a {}", identity.model, job.model));
    }
    if identity.revision == job.version && !job.rewrite {
        return Ok(Ended::WasThere);
    }
    if !identity.takes_firmware {
        return Err("it takes no firmware (Identify Controller, OACS bit 2)".into());
    }
    let slots = Slots::ask(device);
    if !job.rewrite
        && let Some(slots) = &slots
    {
        if slots.revision(slots.next).is_some_and(|revision| revision == job.version) {
            return Ok(Ended::AfterRestart);
        }
        let held = (1..=identity.slots).find(|slot| slots.revision(*slot).as_deref() == Some(job.version));
        if let Some(slot) = held {
            tell(format!("slot {slot} holds {} already", job.version));
            return ended(commit(device, slot, Action::ActivateAtReset)?);
        }
    }
    let slot = identity.choose(slots.map(|slots| slots.active));
    download(device, image, bytes, identity.piece_bytes, tell)?;
    tell(format!("committing to slot {slot}"));
    if !identity.activates_without_reset {
        return ended(commit(device, slot, Action::ReplaceAtReset)?);
    }
    match commit(device, slot, Action::ReplaceNow) {
        Ok(0) => Ok(Ended::Active),
        Ok(MAXIMUM_TIME_VIOLATION) => ended(commit(device, slot, Action::ReplaceAtReset)?),
        status => ended(status?),
    }
}

fn download(
    device: &mut dyn Admin,
    image: &mut dyn Read,
    bytes: u64,
    piece_bytes: usize,
    tell: &mut dyn FnMut(String),
) -> Result<(), String> {
    let mut piece = vec![0; piece_bytes];
    let (mut offset, mut told) = (0_u64, None);
    while offset < bytes {
        let length = piece_bytes.min(usize::try_from(bytes - offset).unwrap_or(piece_bytes));
        let (data, rest) = piece.split_at_mut(length);
        image.read_exact(data).map_err(|error| format!("reading the image: {error}"))?;
        // Pieces and offsets are multiples of the granularity: the last one is filled up, as erased flash is.
        rest.fill(0xff);
        let dwords = u32::try_from(piece_bytes / 4).map_err(|_| "the controller's granularity is odd")?;
        let at = u32::try_from(offset / 4).map_err(|_| "the image is too long")?;
        let command = Command { opcode: FIRMWARE_DOWNLOAD, nsid: 0, cdw10: dwords - 1, cdw11: at };
        let sent = device.send(command, &mut piece).map_err(|error| error.to_string());
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
    ReplaceNow = 3,
}

fn commit(device: &mut dyn Admin, slot: u8, action: Action) -> Result<u16, String> {
    let cdw10 = (action as u32) << 3 | u32::from(slot);
    let command = Command { opcode: FIRMWARE_COMMIT, nsid: 0, cdw10, cdw11: 0 };
    device.send(command, &mut []).map_err(|error| format!("Firmware Commit: {error}"))
}

/// What a commit's status says where nothing was to become active at once, or could not: 5.11, "Requires … Reset".
fn ended(status: u16) -> Result<Ended, String> {
    match status {
        0 | 0x10b | 0x110 | 0x111 => Ok(Ended::AfterRestart),
        _ => Err(format!("Firmware Commit: {}", words(status))),
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
        oacs: u8,
        afi: u8,
        revisions: [&'static str; 7],
        image: Vec<u8>,
        commits: Vec<u32>,
        /// Answers to commits, the first one first.
        statuses: Vec<u16>,
    }

    impl Controller {
        fn new(frmw: u8) -> Self {
            Self {
                frmw,
                fwug: 2,
                oacs: 1 << 2,
                afi: 1,
                revisions: ["OLD", "", "", "", "", "", ""],
                image: Vec::new(),
                commits: Vec::new(),
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
                    put(data, 24, "MODEL X", 40);
                    put(data, 64, self.revisions[usize::from(self.afi & 7) - 1], 8);
                    (data[256], data[260], data[319]) = (self.oacs, self.frmw, self.fwug);
                    Ok(0)
                }
                GET_LOG_PAGE => {
                    assert_eq!((command.nsid, command.cdw10, data.len()), (u32::MAX, 0x7f_0003, 512));
                    data[0] = self.afi;
                    for (slot, revision) in self.revisions.iter().enumerate() {
                        put(data, 8 * (slot + 1), revision, 8);
                    }
                    Ok(0)
                }
                FIRMWARE_DOWNLOAD => {
                    let granularity = 4096 * usize::from(self.fwug);
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
                    Ok(if self.statuses.is_empty() { 0 } else { self.statuses.remove(0) })
                }
                _ => Ok(1),
            }
        }
    }

    fn run(controller: &mut Controller, rewrite: bool) -> Result<Ended, String> {
        let image: Vec<u8> = (0..20_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let job = Job { model: "MODEL X", version: "NEW", rewrite };
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
        assert_eq!(run(&mut one, false), Ok(Ended::AfterRestart));
        assert_eq!(one.image.len(), 3 * 8192);
        assert_eq!(one.commits, [1 << 3 | 1], "one slot: that one, active at the next reset");
        let mut three = Controller::new(1 << 4 | 3 << 1);
        assert_eq!(run(&mut three, false), Ok(Ended::Active));
        assert_eq!(three.commits, [3 << 3 | 2], "active at once where the controller can");
        let mut read_only = Controller::new(2 << 1 | 1);
        read_only.afi = 2;
        assert_eq!(run(&mut read_only, true), Ok(Ended::AfterRestart));
        assert_eq!(read_only.commits, [1 << 3 | 2], "the first slot is read-only");
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let mut active = Controller::new(2 << 1);
        active.revisions[0] = "NEW";
        assert_eq!(run(&mut active, false), Ok(Ended::WasThere));
        let mut waiting = Controller::new(2 << 1);
        (waiting.afi, waiting.revisions[1]) = (2 << 4 | 1, "NEW");
        assert_eq!(run(&mut waiting, false), Ok(Ended::AfterRestart));
        assert!(waiting.commits.is_empty(), "it only waits for a restart");
        let mut held = Controller::new(2 << 1);
        held.revisions[1] = "NEW";
        assert_eq!(run(&mut held, false), Ok(Ended::AfterRestart));
        assert_eq!(held.commits, [2 << 3 | 2]);
        assert!([active, waiting, held].iter().all(|controller| controller.image.is_empty()));
    }

    #[test]
    fn what_the_controller_says_of_a_commit_is_told() {
        for reset in [0x10b, 0x110, 0x111] {
            let mut controller = Controller { statuses: vec![reset], ..Controller::new(1 << 4 | 2 << 1) };
            assert_eq!(run(&mut controller, false), Ok(Ended::AfterRestart));
        }
        let mut slow = Controller { statuses: vec![0x112], ..Controller::new(1 << 4 | 2 << 1) };
        assert_eq!(run(&mut slow, false), Ok(Ended::AfterRestart));
        assert_eq!(slow.commits, [3 << 3 | 2, 1 << 3 | 2]);
        let mut refuses = Controller { statuses: vec![0x107], ..Controller::new(2 << 1) };
        let why = "Firmware Commit: Invalid Firmware Image (status 107h)";
        assert_eq!(run(&mut refuses, false), Err(why.into()));
        let mut unable = Controller { oacs: 0, ..Controller::new(2 << 1) };
        assert_eq!(
            run(&mut unable, false).unwrap_err(),
            "it takes no firmware (Identify Controller, OACS bit 2)"
        );
        let mut other = Controller::new(2 << 1);
        let job = Job { model: "MODEL Y", version: "NEW", rewrite: false };
        let ended = bring(&mut other, &job, &mut io::empty(), 0, &mut |_| {});
        assert_eq!(ended, Err("it is a MODEL X and not a MODEL Y".into()));
    }
}
