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
    #[error("user {user} was not let in (the server would take: {methods})")]
    AuthRejected {
        /// The user.
        user: String,
        /// What the server would take.
        methods: String,
    },
    /// The key file is none, or is encrypted.
    #[error("the private key cannot be read: not an OpenSSH key, or encrypted")]
    KeyUnusable,
    /// Not root.
    #[error("user {user} is not root")]
    NotRoot {
        /// The user.
        user: String,
    },
    /// sudo wants a password that there is not.
    #[error("sudo asks user {user} for a password, and none is given")]
    SudoNeedsPassword {
        /// The user.
        user: String,
    },
    /// sudo does not take the password.
    #[error("sudo does not take the password of user {user}")]
    SudoPasswordWrong {
        /// The user.
        user: String,
    },
    /// sudo refuses.
    #[error("sudo refuses user {user}: {why}")]
    SudoRefused {
        /// The user.
        user: String,
        /// sudo's own words.
        why: String,
    },
    /// A command on the node failed.
    #[error("{what} failed on the node with exit code {code}: {stderr}")]
    Script {
        /// What was to be done.
        what: &'static str,
        /// Exit code, or -1 when there was none.
        code: i64,
        /// What it said.
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
            Self::AuthRejected { .. } => "check user and password or key; it was tried once",
            Self::KeyUnusable => "give an OpenSSH private key without a passphrase",
            Self::NotRoot { .. } => "set privilege = \"sudo\" for this node",
            Self::SudoNeedsPassword { .. } => "name a privilege_password_file",
            Self::SudoPasswordWrong { .. } => "correct the password; it was tried once",
            Self::SudoRefused { .. } => "let this user run sudo on the node, or use another",
            Self::Script { .. } | Self::Answer { .. } | Self::ScriptTimedOut { .. } => return None,
            Self::Lost { .. } => "check the network; what was left on the node is listed and swept later",
        };
        Some(hint.to_owned())
    }
}
