//! A shell with root's rights for all scripts of the way in, and another for the way back: two login shells and two sudos
//! a cycle. None waits on the node in between, while the engine works.
//!
//! Each command by itself would cost the node a channel, a login shell, sudo with its PAM modules and a shell, several
//! milliseconds of CPU each. So one loop runs there, reads a script as one line, runs it in a subshell, and says how it
//! ended. A script that fails ends the loop too: what it did not read of its input must never be taken for a script.

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

/// The loop. `TMOUT` would end a read in some shells.
pub const LOOP: &str = r#"unset TMOUT
[ -t 2 ] && streams=1 || streams=2
while IFS= read -r line; do
    case $line in carena-script\ *) ;; *) exit 0 ;; esac
    echo carena-begun
    ( eval "$(printf %b "${line#carena-script }")" )
    code=$?
    [ $streams -eq 1 ] || echo carena-ended >&2
    printf "\ncarena-ended $code $streams\n"
    [ $code -eq 0 ] || exit 0
done"#;

const BEGUN: &str = "carena-begun\n";

/// At the start of a line, before the exit code and the number of streams; alone on a line on the second stream.
const ENDED: &str = "carena-ended";

/// Most bytes kept of a script's output and of its errors.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a packet, the most that OpenSSH takes. For each packet that arrives sshd copies what its program has not read
/// yet: an engine in few large packets costs the node 18 ms of CPU less than in many small ones.
const PACKET_BYTES: usize = 32 * 1024;

/// The loop is there, and waits.
pub struct RootShell {
    reader: ChannelReadHalf,
    writer: ChannelWriteHalf<Msg>,
}

/// What came of a script.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The loop was gone before it took the script: nothing was done.
    NeverBegun,
    /// The channel ended before the script did.
    Lost,
    /// It ran to its end.
    With {
        /// Its exit code.
        code: i64,
        /// Standard output.
        stdout: String,
        /// Standard error; on a terminal that is in `stdout`.
        stderr: String,
    },
}

#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl RootShell {
    /// On a channel where [`LOOP`] has been started and is ready.
    pub fn new(reader: ChannelReadHalf, writer: ChannelWriteHalf<Msg>) -> Self {
        Self { reader, writer }
    }

    /// Runs `body`, and sends `input` once it runs: the script must know how much it reads.
    ///
    /// # Errors
    /// Those of sending; the shell is then of no use any more.
    pub async fn run(&mut self, body: &str, input: &[u8]) -> Result<Ended, russh::Error> {
        let mut heard = Heard::default();
        // A channel that is gone refuses; what it had to say is read below.
        let _ = self.writer.data_bytes(line(body).into_bytes()).await;
        let writer = &self.writer;
        let feed = async {
            for packet in input.chunks(PACKET_BYTES) {
                writer.data_bytes(packet.to_vec()).await?;
            }
            Ok::<_, russh::Error>(())
        };
        tokio::pin!(feed);
        let mut fed = false;
        loop {
            let message = tokio::select! {
                message = self.reader.wait() => message,
                sent = &mut feed, if heard.begun() && !fed => {
                    sent?;
                    fed = true;
                    continue;
                }
            };
            match message {
                None if heard.begun() => return Ok(Ended::Lost),
                None => return Ok(Ended::NeverBegun),
                Some(ChannelMsg::Data { data }) => keep(&mut heard.stdout, &data),
                Some(ChannelMsg::ExtendedData { data, .. }) => keep(&mut heard.stderr, &data),
                Some(_) => {}
            }
            if let Some(ended) = heard.ended() {
                return Ok(ended);
            }
        }
    }

    /// Ends the loop and what it was started by, so that none of it is left when the connection goes.
    pub async fn end(mut self) {
        // What is not a script ends it. A shell that is gone already refuses.
        let _ = self.writer.data_bytes(&b"carena-end\n"[..]).await;
        while self.reader.wait().await.is_some() {}
    }

    /// Gives the channel up, whatever runs there.
    pub async fn abandon(self) {
        let _ = self.writer.close().await;
    }
}

impl Heard {
    fn begun(&self) -> bool {
        self.stdout.starts_with(BEGUN.as_bytes())
    }

    /// The last line says how it ended; the second stream, where there is one, must have come to its end too.
    fn ended(&self) -> Option<Ended> {
        let text = self.stdout.strip_suffix(b"\n")?;
        let start = text.iter().rposition(|byte| *byte == b'\n')?;
        let last = std::str::from_utf8(text.get(start + 1..)?).ok()?;
        let (code, streams) = last.strip_prefix(ENDED)?.strip_prefix(' ')?.split_once(' ')?;
        let code = code.parse().ok()?;
        let mut stderr = String::from_utf8_lossy(&self.stderr).into_owned();
        if streams == "2" {
            stderr.truncate(stderr.strip_suffix(&format!("{ENDED}\n"))?.len());
        }
        let stdout = String::from_utf8_lossy(text.get(BEGUN.len()..start)?).into_owned();
        Some(Ended::With { code, stdout, stderr })
    }
}

/// A script as one line, for `printf %b`.
fn line(body: &str) -> String {
    format!("carena-script {}\n", body.replace('\\', "\\\\").replace('\n', "\\n"))
}

fn keep(kept: &mut Vec<u8>, data: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend(data.iter().take(room));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// Feeds the loop in a real shell; returns both streams.
    fn through(shell: &str, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut command = Command::new(shell);
        command.args(["-c", LOOP, "sh", "::1 1 ::2 22"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "the shells are what is tested")]
        let mut child = command.spawn().unwrap();
        // A loop that has ended does not read on.
        let _ = child.stdin.take().unwrap().write_all(input);
        let done = child.wait_with_output().unwrap();
        (done.stdout, done.stderr)
    }

    #[test]
    fn a_script_runs_as_it_is_written_and_its_end_is_told() {
        let body = "echo \"$1\"; printf '%s|' 'a\\\\b' \"tab\there\" '\\n'\necho oh >&2; printf cut";
        for shell in ["dash", "bash"] {
            let (stdout, stderr) = through(shell, line(body).as_bytes());
            let ended = Heard { stdout, stderr }.ended().unwrap();
            let stdout = "::1 1 ::2 22\na\\\\b|tab\there|\\n|cut".to_owned();
            assert_eq!(ended, Ended::With { code: 0, stdout, stderr: "oh\n".into() }, "{shell}");
        }
    }

    #[test]
    fn what_a_failed_script_did_not_read_is_never_run() {
        let made = tempfile::tempdir().unwrap();
        let trap = made.path().join("made");
        let garbage = format!("carena-script touch {}\ntouch {0}\n", trap.display());
        for shell in ["dash", "bash"] {
            let input = [line("echo no >&2; exit 31").as_bytes(), garbage.as_bytes()].concat();
            let (stdout, stderr) = through(shell, &input);
            let ended = Heard { stdout, stderr }.ended().unwrap();
            assert_eq!(ended, Ended::With { code: 31, stdout: String::new(), stderr: "no\n".into() });
            assert!(!trap.exists(), "{shell}");
        }
    }

    #[test]
    fn a_script_takes_its_own_input_and_the_next_one_follows() {
        for shell in ["dash", "bash"] {
            let input =
                [line("head -c 5 | wc -c").as_bytes(), b"12\n45", line("echo next").as_bytes()].concat();
            let (stdout, _) = through(shell, &input);
            let said = String::from_utf8(stdout).unwrap();
            assert_eq!(said, "carena-begun\n5\n\ncarena-ended 0 2\ncarena-begun\nnext\n\ncarena-ended 0 2\n");
        }
    }

    #[test]
    fn both_streams_are_waited_for() {
        let mut heard =
            Heard { stdout: b"carena-begun\nx\n\ncarena-ended 0 2\n".to_vec(), stderr: Vec::new() };
        assert_eq!(heard.ended(), None);
        heard.stderr = b"carena-ended\n".to_vec();
        assert!(matches!(heard.ended(), Some(Ended::With { code: 0, .. })));
    }
}
