//! What is done on a node: look, copy, start, open, and take all of it back.

use std::net::IpAddr;
use std::time::Duration;

use super::error::AccessError;
use super::{EngineImage, Session, Unpacker, script};
use crate::access::undo::{Armed, EngineFiles, EngineProcess, EntryId, FirewallRule, Undo};
use crate::wire::frame;
use crate::wire::id::DeploymentId;
use crate::wire::message::{StartConfig, Started};

/// A look, a rule: a few processes on a busy node.
const SHORT: Duration = Duration::from_secs(30);

/// The engine over a slow link: 1 MB at 10 kB/s.
const COPY_MAX: Duration = Duration::from_secs(120);

/// Taking back: each of a few traces may wait 10 s.
const UNDO_MAX: Duration = Duration::from_secs(60);

/// What the node is, before anything is changed.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Machine, as "x86_64".
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// The box's address as the node sees it.
    pub box_address: IpAddr,
    /// The same with the node's zone, where it needs one.
    pub box_address_text: String,
    /// Where programs may be put, best first.
    pub places: Vec<Place>,
    /// What the node unpacks with.
    pub unpacker: Unpacker,
}

/// A directory that root may write and run programs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path.
    pub path: String,
    /// Bytes free.
    pub free_bytes: u64,
}

/// The engine is on the node.
#[derive(Debug, Clone, Copy)]
pub struct Copied {
    /// Bytes that were sent for it.
    pub bytes: u64,
}

/// The port is open.
#[derive(Debug, Clone, Copy)]
pub struct Opened;

/// A trace is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// Now.
    Done,
    /// It was already.
    AlreadyGone,
}

impl Session {
    /// Finds out what the node is, and that root's rights are to be had. Changes nothing.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn look(&mut self) -> Result<Ground, AccessError> {
        let said = self.run("look", script::LOOK, &[], SHORT).await?.stdout;
        if self.sudo.is_none() && !said.lines().any(|line| line == "uid 0") {
            return Err(AccessError::NotRoot { user: self.user.clone() });
        }
        ground(&said)
            .ok_or_else(|| AccessError::Answer { what: "look", seen: said.chars().take(200).collect() })
    }

    /// Copies the engine into the directory that `armed` takes back.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn copy_engine(
        &mut self,
        armed: Armed<EngineFiles>,
        deployment: &DeploymentId,
        ground: &Ground,
        image: &'static EngineImage,
    ) -> Result<Copied, AccessError> {
        let packed = image.packed(ground.unpacker);
        let body = script::copy(
            &armed.undo().directory,
            deployment,
            packed.len(),
            ground.unpacker.command(),
            image.unpacked_bytes(),
        );
        self.run("copying the engine", &body, packed, COPY_MAX).await?;
        Ok(Copied { bytes: packed.len() as u64 })
    }

    /// Starts the engine that `armed` stops.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn start_engine(
        &mut self,
        armed: Armed<EngineProcess>,
        config: &StartConfig,
    ) -> Result<Started, AccessError> {
        let what = "starting the engine";
        let answer = |seen: String| AccessError::Answer { what, seen };
        let input =
            zeroize::Zeroizing::new(frame::encode(config).map_err(|error| answer(error.to_string()))?);
        let said = self.run(what, &script::start(&armed.undo().directory), &input, SHORT).await?.stdout;
        serde_json::from_str(said.trim()).map_err(|_| answer(said.chars().take(200).collect()))
    }

    /// Opens the port that `armed` closes.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn open_port(&mut self, armed: Armed<FirewallRule>) -> Result<Opened, AccessError> {
        self.run("opening the port", &script::open(armed.undo()), &[], SHORT).await?;
        Ok(Opened)
    }

    /// Takes `undos` back in their order, by one command. Each has its own result; one's failure stops none.
    ///
    /// # Errors
    /// [`AccessError`] when the node could not be asked.
    pub async fn undo(
        &mut self,
        deployment: &DeploymentId,
        undos: &[(EntryId, Undo)],
    ) -> Result<Vec<(EntryId, Result<Undone, String>)>, AccessError> {
        let said = self.run("taking back", &script::undo(deployment, undos), &[], UNDO_MAX).await?.stdout;
        Ok(said.lines().filter_map(undone).collect())
    }
}

/// `undo NUMBER done|gone|failed WHY`.
fn undone(line: &str) -> Option<(EntryId, Result<Undone, String>)> {
    let mut words = line.strip_prefix("undo ")?.splitn(3, ' ');
    let entry = words.next()?.parse().ok()?;
    let result = match words.next()? {
        "done" => Ok(Undone::Done),
        "gone" => Ok(Undone::AlreadyGone),
        _ => Err(words.next().unwrap_or("the node does not say why").to_owned()),
    };
    Some((entry, result))
}

fn ground(said: &str) -> Option<Ground> {
    let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let all =
        |key: &'static str| said.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(' '));
    let box_address_text = value("connection")?.split(' ').next()?.to_owned();
    let box_address: IpAddr = box_address_text.split('%').next()?.parse().ok()?;
    let mounts: Vec<(&str, bool)> =
        all("exec").map(|mount| (mount, true)).chain(all("noexec").map(|mount| (mount, false))).collect();
    let runs_programs = |path: &str| {
        let inside = |mount: &str| mount == "/" || path == mount || path.starts_with(&format!("{mount}/"));
        mounts
            .iter()
            .filter(|(mount, _)| inside(mount))
            .max_by_key(|(mount, _)| mount.len())
            .is_none_or(|(_, exec)| *exec)
    };
    let place = |line: &str| {
        // "PATH DEVICE BLOCKS USED AVAILABLE CAPACITY MOUNT", kilobytes, as `df -Pk` prints it.
        let mut words = line.split_whitespace();
        let path = words.next().filter(|path| runs_programs(path))?.to_owned();
        Some(Place { path, free_bytes: words.nth(3)?.parse::<u64>().ok()? * 1024 })
    };
    let has = |tool: &str| all("tool").any(|other| other == tool);
    let unpacker = if has("zstd") {
        Unpacker::Zstd
    } else if has("gzip") {
        Unpacker::Gzip
    } else {
        Unpacker::Plain
    };
    Some(Ground {
        arch: value("machine")?.to_owned(),
        kernel: value("kernel")?.to_owned(),
        box_address,
        box_address_text,
        places: all("place").filter_map(place).collect(),
        unpacker,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_understood_and_noexec_places_are_left_out() {
        let said = "uid 0\nmachine x86_64\nkernel 6.1.0\nconnection fe80::1%eth0 4000 fe80::2%eth0 22\ntool gzip\n\
            place /var/tmp /dev/sda1 100 10 90 10% /\nplace /tmp tmpfs 50 0 50 0% /tmp\n\
            noexec /tmp\nexec /\n";
        let ground = ground(said).unwrap();
        assert_eq!(ground.box_address_text, "fe80::1%eth0");
        assert_eq!(ground.places, [Place { path: "/var/tmp".into(), free_bytes: 92_160 }]);
        assert_eq!(ground.unpacker, Unpacker::Gzip);
        assert!(super::ground("garbage").is_none());
    }
}
