//! Restarting a node, and knowing that it was restarted: the kernel's boot id is another one afterwards.
//!
//! Nothing is scheduled on the node: the box waits, and asks for the restart when it is time. A box that dies
//! before has restarted nothing, and there is nothing to take back.

use std::time::Duration;

use super::Session;
use super::error::AccessError;

/// Each of these is one short command.
const SHORT: Duration = Duration::from_secs(30);

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// The service manager where there is one, else what every system has. Returns at once; the node then goes down.
const RESTART: &str = "if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then
    systemctl --no-ask-password reboot
elif command -v shutdown >/dev/null; then
    shutdown -r now
else
    reboot
fi";

/// `wall` reads what it says from its standard input, which has no end here.
fn tell_users(bytes: usize) -> String {
    format!("head -c {bytes} | if command -v wall >/dev/null; then wall; else cat >/dev/null; fi")
}

impl Session {
    /// The kernel's random id of this boot (`random(4)`).
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn boot_id(&mut self) -> Result<String, AccessError> {
        let what = "asking for the boot id";
        let said = self.run(what, BOOT_ID, &[], SHORT).await?.said;
        match said.trim() {
            "" => Err(AccessError::Answer { what, seen: said }),
            id => Ok(id.to_owned()),
        }
    }

    /// Tells users who are logged in at a terminal.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn tell_users(&mut self, message: &str) -> Result<(), AccessError> {
        let message = format!("{message}\n");
        self.run("telling users", &tell_users(message.len()), message.as_bytes(), SHORT).await.map(drop)
    }

    /// Restarts the node, now. The connection may end before the answer: that is no error, the boot id will tell.
    ///
    /// # Errors
    /// [`AccessError`] when the node refuses.
    pub async fn restart(&mut self) -> Result<(), AccessError> {
        match self.run("restarting", RESTART, &[], SHORT).await {
            Ok(_) | Err(AccessError::Lost { .. } | AccessError::ScriptTimedOut { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
