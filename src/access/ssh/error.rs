//! Why a node cannot be reached or changed, with what was seen and what to do.

use crate::error::Hinted;

/// Why a node cannot be reached or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The name is not known.
    #[error("{address} is not known")]
    NameNotFound {
        /// The name.
        address: String,
        /// What the resolver says.
        #[source]
        source: std::io::Error,
    },
    /// The name has no address.
    #[error("{address} has no address")]
    NoAddress {
        /// The name.
        address: String,
    },
    /// The zone is no interface of the box.
    #[error("{address}: the box has no interface {zone}")]
    NoZone {
        /// As written.
        address: String,
        /// The zone.
        zone: String,
    },
    /// Nothing listens.
    #[error("port {port} of {address} is closed: connection refused")]
    Refused {
        /// The node.
        address: String,
        /// The port.
        port: u16,
    },
    /// No answer.
    #[error("port {port} of {address} does not answer")]
    TimedOut {
        /// The node.
        address: String,
        /// The port.
        port: u16,
    },
    /// No way there.
    #[error("port {port} of {address} cannot be reached")]
    Unreachable {
        /// The node.
        address: String,
        /// The port.
        port: u16,
        /// What the network says.
        #[source]
        source: std::io::Error,
    },
    /// The server hung up before the login.
    #[error("the SSH server ended the connection before the login")]
    Dropped {
        /// What was seen.
        #[source]
        source: russh::Error,
    },
    /// The login takes too long.
    #[error("the login did not end within {seconds} s")]
    LoginTimedOut {
        /// Seconds.
        seconds: u64,
    },
    /// Another key than before.
    #[error("the host key has changed: {pinned} was pinned, {found} was found")]
    HostKeyChanged {
        /// Before.
        pinned: String,
        /// Now.
        found: String,
    },
    /// Not let in.
    #[error("user {user} was not let in ({}the server would take: {methods})", accepted_text(accepted))]
    AuthRejected {
        /// The user.
        user: String,
        /// What the server would take.
        methods: String,
        /// What it has accepted before.
        accepted: String,
    },
    /// The server asks something that no password answers.
    #[error("the server asks user {user} something that is not answered here: \"{question}\"")]
    Question {
        /// The user.
        user: String,
        /// The question.
        question: String,
    },
    /// The key file is none.
    #[error("the private key cannot be read: it is neither an OpenSSH nor a PKCS #8 key")]
    KeyUnusable,
    /// The key is encrypted.
    #[error("the private key is encrypted, and no passphrase is given")]
    KeyEncrypted,
    /// The key stays encrypted.
    #[error("the passphrase does not open the private key")]
    PassphraseWrong,
    /// Not root.
    #[error("user {user} is not root")]
    NotRoot {
        /// The user.
        user: String,
    },
    /// The server runs something else than what was asked, or nothing.
    #[error("the server did not run our command but answered: \"{said}\"")]
    NotRun {
        /// The last line of what came instead.
        said: String,
    },
    /// The server opens no session.
    #[error("the SSH server opens no session")]
    NoSession {
        /// What was seen.
        #[source]
        source: russh::Error,
    },
    /// sudo or su wants a password that there is not.
    #[error("{tool} asks user {user} for the password of {whose}, and none is given")]
    PrivilegeNeedsPassword {
        /// sudo or su.
        tool: &'static str,
        /// The user.
        user: String,
        /// Whose password is asked for.
        whose: String,
    },
    /// sudo or su does not take the password.
    #[error("{tool} does not take the password of user {whose}")]
    PrivilegePasswordWrong {
        /// sudo or su.
        tool: &'static str,
        /// Whose password was asked for.
        whose: String,
    },
    /// sudo or su refuses.
    #[error("{tool} refuses user {user}: {why}")]
    PrivilegeRefused {
        /// sudo or su.
        tool: &'static str,
        /// The user.
        user: String,
        /// Its own words.
        why: String,
    },
    /// The node does not let the engine run.
    #[error("the node does not let a program run in {directory}, though its mount would: {said}")]
    ExecDenied {
        /// The engine's directory.
        directory: String,
        /// What the shell said, and which security modules the node has.
        said: String,
    },
    /// A command on the node failed.
    #[error("{what} failed on the node with exit code {code}: {stderr}")]
    Script {
        /// What was to be done.
        what: &'static str,
        /// Exit code, or -1 when there was none.
        code: i64,
        /// What it said, on both streams.
        stderr: String,
    },
    /// A command on the node takes too long.
    #[error("{what} did not end within {seconds} s on the node")]
    ScriptTimedOut {
        /// What was to be done.
        what: &'static str,
        /// Seconds.
        seconds: u64,
    },
    /// An answer that is not understood.
    #[error("{what}: the node's answer is not understood: {seen}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// The beginning of the answer.
        seen: String,
    },
    /// The connection broke.
    #[error("the SSH connection was lost")]
    Lost {
        /// What was seen.
        #[source]
        source: russh::Error,
    },
}

impl AccessError {
    /// Whether the same try again can only end the same: credentials were looked at and refused. Trying again would
    /// lock the account.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::HostKeyChanged { .. }
                | Self::AuthRejected { .. }
                | Self::Question { .. }
                | Self::KeyUnusable
                | Self::KeyEncrypted
                | Self::PassphraseWrong
                | Self::NotRoot { .. }
                | Self::NotRun { .. }
                | Self::PrivilegeNeedsPassword { .. }
                | Self::PrivilegePasswordWrong { .. }
                | Self::PrivilegeRefused { .. }
        )
    }
}

impl Hinted for AccessError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NameNotFound { .. } | Self::NoAddress { .. } => {
                "check the name, or write the node's address"
            }
            Self::NoZone { .. } => "name the box's own interface after %",
            Self::Refused { .. } => "start the node's SSH server, or correct the port",
            Self::TimedOut { .. } | Self::Unreachable { .. } => {
                "check that the node is on, the cable, and the firewalls between box and node"
            }
            Self::Dropped { .. } => "check the SSH server's log on the node; it may be limiting connections",
            Self::LoginTimedOut { .. } => "check the node's load and its directory service",
            Self::HostKeyChanged { .. } => {
                "find out why before going on: if the node was reinstalled, set host_key to the new fingerprint"
            }
            Self::AuthRejected { .. } => {
                "check user, password and key, and that there is one for each method; each was tried once"
            }
            Self::Question { .. } => "log in by hand once and answer it, or use a key",
            Self::KeyUnusable => "give a private key, not its .pub file",
            Self::KeyEncrypted => "name a key_passphrase_file",
            Self::PassphraseWrong => "correct the passphrase",
            Self::NotRoot { .. } => "set privilege = \"sudo\" or \"su\" for this node",
            Self::NotRun { .. } => "check the user's login shell, and ForceCommand in the node's sshd_config",
            Self::NoSession { .. } => "check MaxSessions in the node's sshd_config",
            Self::PrivilegeNeedsPassword { .. } => "name a privilege_password_file with that password",
            Self::PrivilegePasswordWrong { .. } => "correct the password; it was tried once",
            Self::PrivilegeRefused { .. } => "allow it to this user on the node, or use another",
            Self::ExecDenied { .. } => {
                "SELinux, AppArmor or fapolicyd on the node forbids it: allow it there for the time of the deployment"
            }
            Self::Script { .. } | Self::Answer { .. } | Self::ScriptTimedOut { .. } => return None,
            Self::Lost { .. } => "check the network; what was left on the node is listed and swept later",
        };
        Some(hint.to_owned())
    }
}

fn accepted_text(accepted: &str) -> String {
    if accepted.is_empty() { String::new() } else { format!("it has accepted the {accepted}; ") }
}
