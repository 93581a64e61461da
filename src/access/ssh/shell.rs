//! A shell with root's rights for all scripts of a visit: one login shell and one sudo for the way in and the way back.
//! While the engine works it rests, and ends when that takes longer.
//!
//! Each command by itself would cost the node a channel, a login shell, sudo with its PAM modules and a shell, several
//! milliseconds of CPU each. So one loop runs there, reads a script, runs it itself, and says how it ended. A script that
//! fails ends the loop too: what it did not read of its input must never be taken for a script.

use std::time::Duration;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The loop. A script is its number of lines, then the lines: nothing of it runs before all of it is there. Both
/// streams are one, as on a terminal. `TMOUT` would end a read in some shells. Scripts run in the loop's own shell, as a
/// process for each would cost the node half a millisecond; one that exits ends the loop, and the trap tells how.
const LOOP: &str = r#"unset TMOUT
exec 2>&1
while IFS= read -r line; do
case $line in carena-script\ *) ;; *) exit 0 ;; esac
lines=${line#* }
script=
while [ $lines -gt 0 ] && IFS= read -r line; do
script="$script$line
"
lines=$((lines-1))
done
[ $lines -eq 0 ] || exit 0
echo carena-begun
set -- "$carena_connection"
trap 'printf "\ncarena-ended $?\n"' EXIT
eval "$script"
code=$?
trap - EXIT
printf "\ncarena-ended $code\n"
[ $code -eq 0 ] || exit 0
done"#;

/// The loop, as a shell begins it; first it notes itself by `note`, see [`crate::wire::root_shell::note_own_script`].
pub fn script(note: Option<&str>) -> String {
    format!("carena_connection=$1\n{}\n{LOOP}", note.unwrap_or_default())
}

const BEGUN: &str = "carena-begun\n";

/// At the start of a line, before the exit code.
const ENDED: &str = "carena-ended ";

/// Most bytes kept of a script's output; of more, the middle is left out.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes kept of the end in any case: how the script ended is told there.
const OUTPUT_END_BYTES: usize = 256;

/// Bytes of a packet, the most that OpenSSH takes. For each packet that arrives sshd copies what its program has not read
/// yet: an engine in few large packets costs the node 18 ms of CPU less than in many small ones.
const PACKET_BYTES: usize = 32 * 1024;

/// Packets that are sent before the node has to say that its program reads them. One more than those after which OpenSSH
/// says so (its `channel_check_window`), and a bound for what waits in this process for each node.
const PACKETS_AHEAD: usize = 4;

/// A server that says so only later still gets the next ones after this: 4 MB/s.
const AHEAD_MAX: Duration = Duration::from_millis(30);

/// One that has said so before will say it again, when its turn comes on a busy machine. Nothing is lost by waiting: what
/// is sent to it meanwhile would only wait in this process, the whole engine for each of many nodes.
const TAKEN_MAX: Duration = Duration::from_secs(2);

/// A shell that rests ends after this. One that waits would outlive a connection that is cut without a word; it is noted on
/// the node and would be found, but later.
const REST_MAX: Duration = Duration::from_secs(5);

/// It ends within this when it is told to, or with the connection.
const END_MAX: Duration = Duration::from_secs(2);

/// The loop is there, and waits.
pub struct RootShell {
    reader: ChannelReadHalf,
    writer: ChannelWriteHalf<Msg>,
}

/// A shell that nobody needs at the moment.
pub struct Resting {
    want: oneshot::Sender<()>,
    task: JoinHandle<Option<RootShell>>,
}

impl Resting {
    /// The shell, if it has not ended meanwhile.
    pub async fn wake(self) -> Option<RootShell> {
        // Refused by a task that ends it just now.
        let _ = self.want.send(());
        self.task.await.ok().flatten()
    }
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
        /// What it said, on both streams.
        said: String,
    },
}

impl RootShell {
    /// On a channel where [`LOOP`] has been started and is ready.
    pub fn new(reader: ChannelReadHalf, writer: ChannelWriteHalf<Msg>) -> Self {
        Self { reader, writer }
    }

    /// Runs `body` and sends `input` for it: the script must know how much it reads.
    ///
    /// # Errors
    /// Those of sending; the shell is then of no use any more.
    pub async fn run(&mut self, body: &str, input: &[u8]) -> Result<Ended, russh::Error> {
        let mut heard = Vec::new();
        // A channel that is gone refuses; what it had to say is read below.
        let _ = self.writer.data_bytes(framed(body).into_bytes()).await;
        let writer = &self.writer;
        let (room, mut taken) = tokio::sync::mpsc::channel(1);
        let feed = async {
            let mut patience = AHEAD_MAX;
            for (sent, packet) in input.chunks(PACKET_BYTES).enumerate() {
                if sent > 0 && sent % PACKETS_AHEAD == 0 {
                    // Late is no harm: the window is what holds the sender back in the end.
                    if tokio::time::timeout(patience, taken.recv()).await.is_ok() {
                        patience = TAKEN_MAX;
                    }
                }
                writer.data_bytes(packet.to_vec()).await?;
                // The connection's task sends this one before the next is made.
                tokio::task::yield_now().await;
            }
            Ok::<_, russh::Error>(())
        };
        tokio::pin!(feed);
        let mut fed = false;
        loop {
            let message = tokio::select! {
                message = self.reader.wait() => message,
                sent = &mut feed, if begun(&heard) && !fed => {
                    sent?;
                    fed = true;
                    continue;
                }
            };
            match message {
                None if begun(&heard) => return Ok(Ended::Lost),
                None => return Ok(Ended::NeverBegun),
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    keep(&mut heard, &data);
                }
                Some(ChannelMsg::WindowAdjusted { .. }) => {
                    let _ = room.try_send(());
                }
                Some(_) => {}
            }
            if let Some(ended) = ended(&heard) {
                return Ok(ended);
            }
        }
    }

    /// Ends the loop and what it was started by, so that none of it is left when the connection goes.
    pub async fn end(mut self) {
        let end = async {
            // What is not a script ends it. A shell that is gone already refuses.
            let _ = self.writer.data_bytes(&b"carena-end\n"[..]).await;
            while self.reader.wait().await.is_some() {}
        };
        // A node that hangs is left to its own connection timeouts.
        let _ = tokio::time::timeout(END_MAX, end).await;
    }

    /// Lets it rest: it ends by itself, unless it is wanted before.
    pub fn rest(self) -> Resting {
        let (want, wanted) = oneshot::channel();
        let task = tokio::spawn(async move {
            tokio::select! {
                _ = wanted => Some(self),
                () = tokio::time::sleep(REST_MAX) => {
                    self.end().await;
                    None
                }
            }
        });
        Resting { want, task }
    }

    /// Gives the channel up, whatever runs there.
    pub async fn abandon(self) {
        let _ = self.writer.close().await;
    }
}

fn begun(heard: &[u8]) -> bool {
    heard.starts_with(BEGUN.as_bytes())
}

/// The last line says how it ended.
fn ended(heard: &[u8]) -> Option<Ended> {
    let text = heard.strip_suffix(b"\n")?;
    let start = text.iter().rposition(|byte| *byte == b'\n')?;
    let code = std::str::from_utf8(text.get(start + 1..)?).ok()?.strip_prefix(ENDED)?.parse().ok()?;
    let said = String::from_utf8_lossy(text.get(BEGUN.len()..start)?).into_owned();
    Some(Ended::With { code, said })
}

/// A script as the loop reads it. Indentation, comments and empty lines are for people: the node's shell reads byte by byte.
fn framed(body: &str) -> String {
    let for_people = |line: &&str| line.is_empty() || line.starts_with('#');
    let lines: Vec<&str> = body.lines().map(str::trim_start).filter(|line| !for_people(line)).collect();
    format!("carena-script {}\n{}\n", lines.len(), lines.join("\n"))
}

fn keep(kept: &mut Vec<u8>, data: &[u8]) {
    kept.extend_from_slice(data);
    let end = kept.len().saturating_sub(OUTPUT_END_BYTES);
    if end > OUTPUT_BYTES_MAX {
        kept.drain(OUTPUT_BYTES_MAX..end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::ssh::script as scripts;
    use crate::access::undo::{EngineFiles, EngineProcess, Undo};
    use crate::paths::{ENGINE_MARKER_FILE, ENGINE_PID_FILE, ENGINE_SHELLS_FILE};
    use crate::wire::root_shell;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// Feeds the loop in a real shell; returns what it says.
    fn through(shell: &str, input: &[u8]) -> Vec<u8> {
        noted_through(shell, None, input)
    }

    /// The same, of a shell that notes itself first.
    fn noted_through(shell: &str, note: Option<&str>, input: &[u8]) -> Vec<u8> {
        let mut command = Command::new(shell);
        command.args(["-c", &script(note), "sh", "::1 1 ::2 22"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[expect(clippy::disallowed_methods, reason = "the shells are what is tested")]
        let mut child = command.spawn().unwrap();
        // A loop that has ended does not read on.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn a_script_runs_as_it_is_written_and_its_end_is_told() {
        let body = "echo \"$1\"; printf '%s|' 'a\\\\b' \"tab\there\" '\\n'\n\n    # why\n    echo oh >&2\nprintf cut";
        for shell in ["dash", "bash"] {
            let said = "::1 1 ::2 22\na\\\\b|tab\there|\\n|oh\ncut".to_owned();
            let heard = through(shell, framed(body).as_bytes());
            assert_eq!(ended(&heard).unwrap(), Ended::With { code: 0, said }, "{shell}");
        }
    }

    #[test]
    fn what_a_failed_script_did_not_read_is_never_run() {
        let made = tempfile::tempdir().unwrap();
        let trap = made.path().join("made");
        let garbage = format!("carena-script 1\ntouch {}\ntouch {0}\n", trap.display());
        for shell in ["dash", "bash"] {
            let input = [framed("echo no >&2; exit 31").as_bytes(), garbage.as_bytes()].concat();
            let heard = through(shell, &input);
            assert_eq!(ended(&heard).unwrap(), Ended::With { code: 31, said: "no\n".into() });
            assert!(!trap.exists(), "{shell}");
        }
    }

    #[test]
    fn a_script_that_was_cut_off_is_not_run() {
        let made = tempfile::tempdir().unwrap();
        let trap = made.path().join("made");
        for shell in ["dash", "bash"] {
            let whole = framed(&format!("touch {}\n:\n:", trap.display()));
            for cut in [whole.len() - 1, whole.len() - 4] {
                let heard = through(shell, whole.get(..cut).unwrap().as_bytes());
                assert!(heard.is_empty() && !trap.exists(), "{shell} {cut}");
            }
        }
    }

    #[test]
    fn a_script_takes_its_own_input_and_the_next_one_follows() {
        for shell in ["dash", "bash"] {
            let input =
                [framed("head -c 5 | wc -c").as_bytes(), b"12\n45", framed("echo next").as_bytes()].concat();
            let said = String::from_utf8(through(shell, &input)).unwrap();
            assert_eq!(said, "carena-begun\n5\n\ncarena-ended 0\ncarena-begun\nnext\n\ncarena-ended 0\n");
        }
    }

    /// The engine's directory as a visit left it, with these files in it, and a new shell that takes it back.
    fn taken_back(shell: &str, files: &[(&str, &str)]) -> (String, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("carena-0190-test");
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            crate::durable::write(&directory.join(name), text.as_bytes(), 0o600).unwrap();
        }
        let (path, deployment) = (directory.to_str().unwrap().to_owned(), "0190-test".parse().unwrap());
        let note = root_shell::note_own_script(&path, &deployment);
        let undos = [
            (1, Undo::from(EngineProcess { directory: path.clone() })),
            (2, Undo::from(EngineFiles { directory: path })),
        ];
        // The note's own file, where there is one, is seen before it is removed with the rest.
        let body = format!("ls {}\n{}", directory.display(), scripts::undo(&deployment, &undos));
        let heard = noted_through(shell, Some(&note), framed(&body).as_bytes());
        (String::from_utf8(heard).unwrap(), root)
    }

    #[test]
    fn a_half_made_directory_is_taken_back_by_a_new_shell() {
        for shell in ["dash", "bash"] {
            // Cut before the marker, in it, and after it.
            for (marker, notes) in [(None, false), (Some("0190-t"), false), (Some("0190-test"), true)] {
                let files: Vec<_> = marker.iter().map(|marker| (ENGINE_MARKER_FILE, *marker)).collect();
                let (said, root) = taken_back(shell, &files);
                assert!(said.contains("undo 1 gone\nundo 2 done\n"), "{shell} {marker:?}: {said}");
                assert_eq!(
                    said.lines().any(|line| line == ENGINE_SHELLS_FILE),
                    notes,
                    "{shell} {marker:?}: {said}"
                );
                assert!(!root.path().join("carena-0190-test").exists(), "{shell} {marker:?}");
            }
        }
    }

    #[test]
    fn a_shell_notes_itself_in_no_directory_of_others() {
        for shell in ["dash", "bash"] {
            let (said, root) = taken_back(shell, &[(ENGINE_MARKER_FILE, "0190-other"), ("theirs", "")]);
            assert!(said.contains("undo 2 failed"), "{shell}: {said}");
            let left = std::fs::read_dir(root.path().join("carena-0190-test")).unwrap();
            assert_eq!(left.count(), 2, "{shell}");
        }
    }

    #[test]
    fn an_empty_note_of_a_process_does_not_end_the_shell() {
        for shell in ["dash", "bash"] {
            let noted =
                [(ENGINE_PID_FILE, "\n"), (ENGINE_SHELLS_FILE, "\n\n"), (ENGINE_MARKER_FILE, "0190-test")];
            let (said, root) = taken_back(shell, &noted);
            assert!(said.contains("undo 1 gone\nundo 2 done\n"), "{shell}: {said}");
            assert!(!root.path().join("carena-0190-test").exists(), "{shell}");
        }
    }
}
