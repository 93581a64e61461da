//! How a script gets through whatever login shell a user has, and from there to root's rights.
//!
//! The login shell reads the command line: bash, dash, fish and tcsh each have their own idea of quotes, backslashes,
//! exclamation marks and line ends. So a script travels as one line, in single quotes, without any of those: they
//! are `\0ooo` in it. All shells hand that on alike, and `/bin/sh` turns it back. No search path is relied on, and no password ever
//! stands in a command line.

use std::fmt::Write as _;

/// What the script says first, once it runs with root's rights. Whatever came before is not ours: a login shell
/// that greets, sudo's lecture.
pub const READY: &str = "carena-ready";

/// Before `READY`, on a line with its number: the process that asks for a password, to be ended when it asks twice.
pub const PROCESS: &str = "carena-process";

/// How the script comes to root's rights.
pub enum Become<'a> {
    /// The user has them.
    Root,
    /// By sudo, which asks with this text and the name of the user whose password it wants, then a colon.
    Sudo {
        /// The text.
        prompt: &'a str,
    },
    /// By su, which asks on its terminal in its own words. Not through root's own login shell, which might write
    /// to root's home.
    Su,
}

const SYSTEM: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; LC_ALL=C; export PATH LC_ALL";

/// The command line that runs `body` as root; in it `$1` is the connection as the node sees it.
pub fn command(body: &str, by: &Become<'_>) -> String {
    // A terminal in between, wanted or not, must hand on every byte as it is.
    let whole =
        format!("{SYSTEM}; umask 077; cd /; [ ! -t 0 ] || stty raw -echo 2>/dev/null; echo {READY}\n{body}");
    let root = decoded(&whole);
    let become_root = match by {
        Become::Root => return format!("/bin/sh -c '{root}' sh \"$SSH_CONNECTION\""),
        Become::Sudo { prompt } => format!("sudo -S -u root -p '{prompt}%p:' /bin/sh -c '{root}' sh \"$1\""),
        Become::Su => format!("script='{root}'; exec su -s /bin/sh root -c \"/bin/sh -c '$script' sh '$1'\""),
    };
    let exec = if matches!(by, Become::Su) { "" } else { "exec " };
    let outer = decoded(&format!("{SYSTEM}; echo {PROCESS} $$\n{exec}{become_root}"));
    format!("/bin/sh -c '{outer}' sh \"$SSH_CONNECTION\"")
}

/// What means itself in every shell's single quotes, and in the double quotes of `/bin/sh` inside them.
const PLAIN: &[u8] = b" ./:=,@+_-()[]{};|&<>*#?~^%";

/// Shell that evaluates `text`, without a single quote, an exclamation mark, a line end or a doubled backslash.
fn decoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || PLAIN.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // POSIX: %b knows \0 and up to three octal digits. Writing into a string does not fail.
            let _ = write!(encoded, "\\0{byte:03o}");
        }
    }
    format!("eval \"$(printf %b \"{encoded}\")\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn through(shell: &str, command: &str) -> String {
        #[expect(clippy::disallowed_methods, reason = "the shells are what is tested")]
        let done = Command::new(shell)
            .args(["-c", command])
            .env("SSH_CONNECTION", "fe80::1%eth0 4000 fe80::2%eth0 22")
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
    }

    #[test]
    fn every_login_shell_hands_a_script_on_unharmed() {
        let body =
            "echo \"$1\"; printf '%s|' 'a\\\\b' \"!x\" '#~*?{}' \"tab\there\" 'ü'\necho `echo $((1+2))`";
        let wanted = "carena-ready\nfe80::1%eth0 4000 fe80::2%eth0 22\na\\\\b|!x|#~*?{}|tab\there|ü|3\n";
        for shell in ["bash", "dash", "fish", "tcsh"] {
            assert_eq!(through(shell, &command(body, &Become::Root)), wanted, "{shell}");
        }
    }

    #[test]
    fn no_length_of_script_breaks_a_login_shell() {
        let body = format!("x='{}'; echo ${{#x}}", "!'\"'\"$;".repeat(1500));
        let body = body.replace("'\"'\"", "");
        for shell in ["bash", "dash", "fish", "tcsh"] {
            assert!(through(shell, &command(&body, &Become::Root)).contains("4500"), "{shell}");
        }
    }
}
