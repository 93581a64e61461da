//! What is done on a node: look, copy, start, open, and take all of it back.

use std::net::IpAddr;
use std::time::Duration;

use super::error::AccessError;
use super::firewall::{self, Firewall};
use super::ground::{self, Ground, LOOK};
use super::{EngineImage, Session, script};
use crate::access::undo::{Armed, EngineFiles, EngineProcess, EntryId, FirewallRule, Undo};
use crate::wire::firewall::Known;
use crate::wire::frame;
use crate::wire::id::DeploymentId;
use crate::wire::message::{StartConfig, Started};
use crate::wire::root_shell;

/// A look, a rule: a few processes on a busy node.
const SHORT: Duration = Duration::from_secs(30);

/// The engine over a slow link: 1 MB at 10 kB/s.
const COPY_MAX: Duration = Duration::from_secs(120);

/// Taking back: each of a few traces may wait 10 s.
const UNDO_MAX: Duration = Duration::from_secs(60);

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
        let said = self.run("look", LOOK, &[], SHORT).await?.said;
        if !ground::is_root(&said) {
            return Err(AccessError::NotRoot { user: self.user.clone() });
        }
        let now_s = crate::clock::now_s();
        Ground::read(&said, now_s).ok_or_else(|| not_understood("look", &said))
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
        let directory = &armed.undo().directory;
        // This script notes the shell that runs it; those that come after note themselves.
        self.note = Some(root_shell::note_own_script(directory, deployment));
        let body = script::copy(directory, deployment, ground.unpacker, packed.len(), image.unpacked_bytes());
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
        let directory = &armed.undo().directory;
        let input = zeroize::Zeroizing::new(
            frame::encode(config).map_err(|error| not_understood(what, &error.to_string()))?,
        );
        let said = match self.run(what, &script::start(directory), &input, SHORT).await {
            Ok(output) => output.said,
            Err(AccessError::Script { code: script::EXEC_DENIED, stderr, .. }) => {
                return Err(AccessError::ExecDenied { directory: directory.clone(), said: stderr });
            }
            Err(error) => return Err(error),
        };
        // A shell may have something to say at its end, too.
        let started = said.lines().find_map(|line| serde_json::from_str(line.trim()).ok());
        started.ok_or_else(|| not_understood(what, &said))
    }

    /// Which firewall stands between `from` and the node's ports. Changes nothing.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn firewall(
        &mut self,
        from: IpAddr,
        deployment: &DeploymentId,
    ) -> Result<Firewall, AccessError> {
        let what = "looking at the firewall";
        let said = self.run(what, &firewall::script(from), &[], SHORT).await?.said;
        let found = firewall::read(&said, from, deployment).ok_or_else(|| not_understood(what, &said))?;
        if let Firewall::Openable { tool, .. } = &found {
            self.rule = firewall::known(&said, tool, deployment);
        }
        Ok(found)
    }

    /// Opens the port that `armed` closes, for the engine in `directory`, which learns of it.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn open_port(
        &mut self,
        armed: Armed<FirewallRule>,
        directory: &str,
    ) -> Result<Opened, AccessError> {
        let what = "opening the port";
        let noted = serde_json::to_string(&armed.undo().rule)
            .map_err(|error| not_understood(what, &error.to_string()))?;
        // It is known once: after this it may be there.
        let known = std::mem::replace(&mut self.rule, Known::Nothing);
        self.run(what, &script::open(armed.undo(), directory, &noted, known), &[], SHORT).await?;
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
        let files = undos.iter().find_map(|(_, undo)| script::as_files(undo));
        let note = files.map(|files| root_shell::note_own_script(&files.directory, deployment));
        self.note = note.or(self.note.take());
        let said = self.run("taking back", &script::undo(deployment, undos), &[], UNDO_MAX).await?.said;
        Ok(said.lines().filter_map(undone).collect())
    }
}

fn not_understood(what: &'static str, said: &str) -> AccessError {
    AccessError::Answer { what, seen: said.trim().chars().take(200).collect() }
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
