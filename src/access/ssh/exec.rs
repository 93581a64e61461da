//! Scripts on the node with root's rights: the way to root's shell, and running one script after the other in it.
//!
//! The shell says [`READY`] when it runs with root's rights. Only then is anything sent to it: before that, sudo or su
//! could be reading, and would take a key for a password. A password is sent when it is asked for, once. At a second
//! question the asking program is killed before it can count another attempt against the account: a lost input
//! would be one. A terminal is asked for only where sudo or su wants one, and it is raw: no byte is changed by it.

use std::time::Duration;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, Sig};

use super::error::AccessError;
use super::login_shell::{self, Become, PROCESS, READY};
use super::shell::{self, Ended, RootShell};
use super::{Privilege, Session};
use crate::secret::Secret;

/// Most bytes kept of a command's output and of its errors.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// How often a session is asked for: the waits between double from 20 ms and come to a second and a quarter.
const SESSION_TRIES: u32 = 6;

/// A killed program is gone by then, or cannot be killed.
const KILL_MAX: Duration = Duration::from_secs(1);

/// A terminal that changes nothing: no echo, no line editing, no signals, no flow control, no line ends (RFC 4254
/// section 8). The speeds are there because some servers set them to 0 otherwise, which hangs up.
const RAW: &[(Pty, u32)] = &[
    (Pty::ECHO, 0),
    (Pty::ICANON, 0),
    (Pty::ISIG, 0),
    (Pty::IEXTEN, 0),
    (Pty::ICRNL, 0),
    (Pty::INLCR, 0),
    (Pty::IGNCR, 0),
    (Pty::IXON, 0),
    (Pty::IXOFF, 0),
    (Pty::IXANY, 0),
    (Pty::OPOST, 0),
    (Pty::ONLCR, 0),
    (Pty::CS8, 1),
    (Pty::TTY_OP_ISPEED, 38_400),
    (Pty::TTY_OP_OSPEED, 38_400),
];

/// What a command said.
pub struct Output {
    /// What the script itself said, on both streams.
    pub said: String,
}

/// A script that has begun.
pub(super) struct Begun {
    pub(super) reader: ChannelReadHalf,
    pub(super) writer: ChannelWriteHalf<Msg>,
    seen: Seen,
}

/// What came of one try.
#[derive(Default)]
struct Seen {
    /// What sudo was told to ask with.
    prompt: String,
    /// Everything before [`READY`], both streams.
    before: Vec<u8>,
    /// How much of it was looked at for questions.
    read: usize,
    /// Questions for a password.
    asked: u32,
    ready: bool,
    stdout: Vec<u8>,
    code: Option<i64>,
}

impl Session {
    /// Runs `body` as root; `what` names it in errors. It knows how much it reads of `input`.
    pub(super) async fn run(
        &mut self,
        what: &'static str,
        body: &str,
        input: &[u8],
        limit: Duration,
    ) -> Result<Output, AccessError> {
        // Taken out, so that a shell with which anything went wrong is not used again.
        let mut shell = self.wake().await;
        let done = tokio::time::timeout(limit, self.run_in(&mut shell, what, body, input)).await;
        match (done, shell) {
            (Ok(Ok(output)), shell) => {
                self.shell = shell;
                Ok(output)
            }
            (Ok(Err(error)), _) => Err(error),
            (Err(_), shell) => {
                if let Some(shell) = shell {
                    shell.abandon().await;
                }
                Err(AccessError::ScriptTimedOut { what, seconds: limit.as_secs() })
            }
        }
    }

    async fn run_in(
        &mut self,
        kept: &mut Option<RootShell>,
        what: &'static str,
        body: &str,
        input: &[u8],
    ) -> Result<Output, AccessError> {
        let lost = |source| AccessError::Lost { source };
        let mut ended = Ended::NeverBegun;
        if let Some(shell) = kept {
            ended = shell.run(body, input).await.map_err(lost)?;
        }
        if ended == Ended::NeverBegun {
            // There was none, or it had ended while nobody used it.
            ended = kept.insert(self.open_shell().await?).run(body, input).await.map_err(lost)?;
        }
        match ended {
            Ended::With { code: 0, said } => Ok(Output { said }),
            Ended::With { code, said } => {
                if let Some(shell) = kept.take() {
                    shell.end().await;
                }
                let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                Err(AccessError::Script { what, code, stderr: lines.join("; ") })
            }
            Ended::NeverBegun | Ended::Lost => Err(lost(russh::Error::Disconnect)),
        }
    }

    /// A shell with root's rights.
    async fn open_shell(&mut self) -> Result<RootShell, AccessError> {
        // The loop says nothing before it is asked to run something, so nothing came along.
        let body = shell::script(self.note.as_deref());
        let (Begun { reader, writer, .. }, _) = self.begin_stream(&body).await?;
        Ok(RootShell::new(reader, writer))
    }

    /// Begins the script and answers what is asked before it runs. At its end the script is ready for its input, or
    /// the command has ended.
    pub(super) async fn begin(&self, body: &str) -> Result<Begun, AccessError> {
        let lost = |source| AccessError::Lost { source };
        let prompt = format!("carena-{}:", uuid::Uuid::now_v7().simple());
        let command = match &self.privilege {
            Privilege::Root => login_shell::command(body, &Become::Root),
            Privilege::Sudo { .. } => login_shell::command(body, &Become::Sudo { prompt: &prompt }),
            Privilege::Su { .. } => login_shell::command(body, &Become::Su),
        };
        let channel = self.open_session().await?;
        if self.terminal {
            channel.request_pty(true, "dumb", 80, 24, 0, 0, RAW).await.map_err(lost)?;
        }
        channel.exec(true, command).await.map_err(lost)?;
        let (mut reader, writer) = channel.split();
        let mut seen = Seen { prompt, ..Seen::default() };
        while !seen.ready {
            match reader.wait().await {
                None => break,
                Some(ChannelMsg::Failure) => {
                    // Whether the node hears of it changes nothing.
                    let _ = writer.close().await;
                    return Err(AccessError::NotRun { said: "the request was refused".into() });
                }
                Some(message) => seen.take(&message),
            }
            while let Some(whose) = self.question(&mut seen) {
                seen.asked += 1;
                let answer = match self.answer(whose.as_deref()) {
                    Ok(_) if seen.asked > 1 => Err(self.wrong(whose)),
                    answer => answer,
                };
                match answer {
                    Ok(password) => {
                        let line = zeroize::Zeroizing::new(format!("{}\n", password.reveal()));
                        writer.data(line.as_bytes()).await.map_err(lost)?;
                    }
                    Err(error) => {
                        self.kill(&seen, &mut reader, &writer).await;
                        return Err(error);
                    }
                }
            }
        }
        Ok(Begun { reader, writer, seen })
    }

    /// The next session channel. A server that allows one at a time (`MaxSessions 1`) may refuse it for the moment
    /// in which it still clears the last one away.
    async fn open_session(&self) -> Result<russh::Channel<Msg>, AccessError> {
        let mut tries = 0;
        loop {
            match self.handle.channel_open_session().await {
                Ok(channel) => return Ok(channel),
                Err(russh::Error::ChannelOpenFailure(_)) if tries < SESSION_TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(10 << tries)).await;
                }
                Err(source @ russh::Error::ChannelOpenFailure(_)) => {
                    return Err(AccessError::NoSession { source });
                }
                Err(source) => return Err(AccessError::Lost { source }),
            }
        }
    }

    /// Whether a password is asked for that was not asked for before, and whose, if the program says so.
    fn question(&self, seen: &mut Seen) -> Option<Option<String>> {
        // Before that, a login shell talks, and nobody there is owed a password.
        seen.process().filter(|_| !seen.ready)?;
        let text = String::from_utf8_lossy(seen.before.get(seen.read..)?).into_owned();
        let asked =
            text.split_once(&seen.prompt).and_then(|(_, rest)| Some(rest.split_once(':')?.0.to_owned()));
        // A sudo that does not know %p leaves it as it is.
        let asked = asked.map(|whose| Some(whose).filter(|whose| whose != "%p"));
        // su, and a sudo whose administrator wants his own words, ask at the end of what they say.
        let last = text.rsplit('\n').next().unwrap_or_default();
        let own_words = last.to_ascii_lowercase().contains("password") && last.trim_end().ends_with(':');
        let found = asked.or(own_words.then_some(None))?;
        seen.read = seen.before.len();
        Some(found)
    }

    /// The password for `whose` account.
    fn answer(&self, whose: Option<&str>) -> Result<&Secret, AccessError> {
        let user = self.user.clone();
        match &self.privilege {
            Privilege::Sudo { login, own } => {
                let of_user = whose.is_none_or(|whose| whose == self.user);
                let password = own.as_ref().or(login.as_ref().filter(|_| of_user));
                let whose = whose.unwrap_or(&user).to_owned();
                password.ok_or(AccessError::PrivilegeNeedsPassword { tool: "sudo", user, whose })
            }
            Privilege::Su { password } => password.as_ref().ok_or_else(|| {
                AccessError::PrivilegeNeedsPassword { tool: "su", user, whose: "root".into() }
            }),
            Privilege::Root => Err(AccessError::NotRoot { user }),
        }
    }

    fn wrong(&self, whose: Option<String>) -> AccessError {
        let (tool, default) = match self.privilege {
            Privilege::Su { .. } => ("su", "root"),
            _ => ("sudo", self.user.as_str()),
        };
        AccessError::PrivilegePasswordWrong { tool, whose: whose.unwrap_or_else(|| default.to_owned()) }
    }

    /// Ends the program that asks, by the server, or by its number where the server knows no signals.
    async fn kill(&self, seen: &Seen, reader: &mut ChannelReadHalf, writer: &ChannelWriteHalf<Msg>) {
        // Each of these may be refused; the next one is then tried, and at last the channel is closed anyway.
        let _ = writer.signal(Sig::KILL).await;
        let mut gone = ends(reader).await;
        if let (false, Some(process)) = (gone, seen.process())
            && let Ok(channel) = self.handle.channel_open_session().await
        {
            let _ = channel.exec(true, format!("/bin/sh -c 'kill -KILL {process}'")).await;
            gone = ends(reader).await;
        }
        if !gone {
            let _ = writer.close().await;
        }
    }

    /// Begins a script whose streams stay open both ways; whatever the script's own first bytes are comes along.
    pub(super) async fn begin_stream(&mut self, body: &str) -> Result<(Begun, Vec<u8>), AccessError> {
        let mut begun = self.begin(body).await?;
        if !begun.seen.ready && !self.terminal && wants_terminal(&begun.seen.said_before()) {
            self.terminal = true;
            begun = self.begin(body).await?;
        }
        if !begun.seen.ready {
            return Err(self.refusal(&begun.seen));
        }
        let first = std::mem::take(&mut begun.seen.stdout);
        Ok((begun, first))
    }

    /// Why the script never ran.
    fn refusal(&self, seen: &Seen) -> AccessError {
        let said = seen.said_before();
        let why = reason(&said, &seen.prompt);
        if seen.code.is_none() && why.is_empty() {
            return AccessError::Lost { source: russh::Error::Disconnect };
        }
        let tool = match self.privilege {
            Privilege::Root => return AccessError::NotRun { said: why },
            Privilege::Sudo { .. } => "sudo",
            Privilege::Su { .. } => "su",
        };
        // The outer script says its number before anything of the tool's.
        if seen.process().is_none() {
            return AccessError::NotRun { said: why };
        }
        let wrong = ["incorrect password", "Authentication failure"];
        if seen.asked > 0 && wrong.iter().any(|words| said.contains(words)) {
            return self.wrong(None);
        }
        AccessError::PrivilegeRefused { tool, user: self.user.clone(), why }
    }
}

impl Seen {
    fn take(&mut self, message: &ChannelMsg) {
        match message {
            ChannelMsg::Data { data } => self.output(data),
            ChannelMsg::ExtendedData { data, .. } => self.errors(data),
            ChannelMsg::ExitStatus { exit_status } => self.code = Some(i64::from(*exit_status)),
            _ => {}
        }
    }

    fn output(&mut self, data: &[u8]) {
        keep(&mut self.stdout, data);
        if self.ready {
            return;
        }
        keep(&mut self.before, data);
        let text = String::from_utf8_lossy(&self.stdout);
        let Some((_, after)) = text.split_once(READY) else { return };
        let after = after.strip_prefix('\r').unwrap_or(after);
        if let Some(after) = after.strip_prefix('\n') {
            (self.ready, self.stdout) = (true, after.as_bytes().to_vec());
        }
    }

    fn errors(&mut self, data: &[u8]) {
        keep(&mut self.before, data);
    }

    fn said_before(&self) -> String {
        String::from_utf8_lossy(&self.before).into_owned()
    }

    fn process(&self) -> Option<u32> {
        let said = self.said_before();
        let line = said.lines().find_map(|line| line.split_once(PROCESS))?;
        line.1.trim().parse().ok()
    }
}

/// The last thing said, which is the reason; without the question, and without our whole script in it.
fn reason(said: &str, prompt: &str) -> String {
    let mut parts = said.split(prompt);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    kept.extend(parts.filter_map(|part| part.split_once(':')).map(|(_, rest)| rest));
    let ours = |line: &str| line.is_empty() || line.contains(PROCESS);
    let last = kept.lines().map(str::trim).rev().find(|line| !ours(line)).unwrap_or_default();
    match (last.split_once('\''), last.rsplit_once('\'')) {
        (Some((before, script)), Some((_, after))) if script.len() > 200 => format!("{before}…{after}"),
        _ => last.chars().take(300).collect(),
    }
}

/// sudo's `requiretty`, and what old versions of su say.
fn wants_terminal(said: &str) -> bool {
    ["must have a tty", "must be a tty", "must be run from a terminal"]
        .iter()
        .any(|words| said.contains(words))
}

fn keep(kept: &mut Vec<u8>, data: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend(data.iter().take(room));
}

/// Whether the channel ends within [`KILL_MAX`].
async fn ends(reader: &mut ChannelReadHalf) -> bool {
    let end = async { while reader.wait().await.is_some() {} };
    tokio::time::timeout(KILL_MAX, end).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_prints_on_start_is_no_answer() {
        let mut seen = Seen::default();
        seen.output(b"Welcome!\n> caren");
        assert!(!seen.ready);
        seen.output(b"a-ready\r");
        assert!(!seen.ready);
        seen.output(b"\nuid 0\n");
        assert!(seen.ready);
        assert_eq!(seen.stdout, b"uid 0\n");
    }

    #[test]
    fn the_reason_is_the_last_line_without_the_script() {
        let long = "x".repeat(500);
        let said = format!(
            "We trust you have received the usual lecture\n\nSorry, user op is not allowed to execute '/bin/sh -c {long}' as root on node1.\n"
        );
        assert_eq!(reason(&said, "ask:"), "Sorry, user op is not allowed to execute … as root on node1.");
        assert_eq!(
            reason("carena-process 7\nask:op:op is not in the sudoers file.\n", "ask:"),
            "op is not in the sudoers file."
        );
    }
}
