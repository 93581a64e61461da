//! One command on the node with root's rights, its input and its output.
//!
//! The script says [`READY`] when it runs. Only then is its input sent: before that, sudo could be reading, and
//! would take a key for a password. The password is sent when sudo asks, once; a second prompt ends it.

use std::time::Duration;

use russh::ChannelMsg;

use super::error::AccessError;
use super::{Session, script};

/// First line of every script's output.
pub const READY: &str = "carena-ready\n";

/// Most bytes kept of a command's output and of its errors.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// What a command said.
pub struct Output {
    /// Standard output after [`READY`].
    pub stdout: String,
}

impl Session {
    /// Runs `body` as root; `what` names it in errors.
    pub(super) async fn run(
        &mut self,
        what: &'static str,
        body: &str,
        input: &[u8],
        limit: Duration,
    ) -> Result<Output, AccessError> {
        let seconds = limit.as_secs();
        tokio::time::timeout(limit, self.run_unbounded(what, body, input))
            .await
            .map_err(|_| AccessError::ScriptTimedOut { what, seconds })?
    }

    async fn run_unbounded(
        &mut self,
        what: &'static str,
        body: &str,
        input: &[u8],
    ) -> Result<Output, AccessError> {
        let lost = |source| AccessError::Lost { source };
        let prompt = format!("carena-{}:", uuid::Uuid::now_v7().simple());
        let shell = script::shell(body);
        let command = match &self.sudo {
            None => shell,
            Some(_) => format!("sudo -S -p {prompt} {shell}"),
        };
        let mut channel = self.handle.channel_open_session().await.map_err(lost)?;
        channel.exec(true, command).await.map_err(lost)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut code, mut asked, mut fed) = (None, 0, false);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => keep(&mut stdout, &data),
                ChannelMsg::ExtendedData { data, .. } => keep(&mut stderr, &data),
                ChannelMsg::ExitStatus { exit_status } => code = Some(i64::from(exit_status)),
                _ => {}
            }
            let prompts = String::from_utf8_lossy(&stderr).matches(&prompt).count();
            if prompts > asked {
                asked = prompts;
                let user = self.user.clone();
                let password = match self.sudo.as_ref().and_then(Option::as_ref) {
                    None => return give_up(&channel, AccessError::SudoNeedsPassword { user }).await,
                    Some(_) if asked > 1 => {
                        return give_up(&channel, AccessError::SudoPasswordWrong { user }).await;
                    }
                    Some(password) => password,
                };
                let line = zeroize::Zeroizing::new(format!("{}\n", password.reveal()));
                channel.data(line.as_bytes()).await.map_err(lost)?;
            }
            if !fed && stdout.starts_with(READY.as_bytes()) {
                fed = true;
                channel.data(input).await.map_err(lost)?;
                channel.eof().await.map_err(lost)?;
            }
        }
        let said = String::from_utf8_lossy(&stderr).replace(&prompt, "");
        let said = said.trim();
        if !fed {
            return Err(self.refusal(what, code, asked, said));
        }
        match code {
            Some(0) => {
                let whole = String::from_utf8_lossy(&stdout);
                Ok(Output { stdout: whole.strip_prefix(READY).unwrap_or(&whole).to_owned() })
            }
            None => Err(lost(russh::Error::Disconnect)),
            Some(code) => Err(AccessError::Script { what, code, stderr: said.to_owned() }),
        }
    }

    /// Why the script never ran.
    fn refusal(&self, what: &'static str, code: Option<i64>, asked: usize, said: &str) -> AccessError {
        let user = self.user.clone();
        match (code, &self.sudo) {
            (None, _) => AccessError::Lost { source: russh::Error::Disconnect },
            (Some(_), Some(_)) if asked > 0 && said.contains("incorrect password") => {
                AccessError::SudoPasswordWrong { user }
            }
            (Some(_), Some(_)) => AccessError::SudoRefused { user, why: said.to_owned() },
            (Some(code), None) => AccessError::Script { what, code, stderr: said.to_owned() },
        }
    }
}

fn keep(kept: &mut Vec<u8>, data: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend(data.iter().take(room));
}

async fn give_up<T>(
    channel: &russh::Channel<russh::client::Msg>,
    error: AccessError,
) -> Result<T, AccessError> {
    // Closing ends sudo's reading; whether the node hears it changes nothing.
    let _ = channel.close().await;
    Err(error)
}
