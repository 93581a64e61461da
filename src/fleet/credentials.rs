//! What opens a node, read at the moment it is needed from where the fleet points.
//!
//! It goes from a file (or the API's memory) into the SSH connection and nowhere else.

use std::path::{Path, PathBuf};

use super::file::{Node, PrivilegeKind};
use crate::access::ssh::{HostKeyPolicy, Key, Privilege, Target};
use crate::error::Hinted;
use crate::secret::Secret;

/// Why a node's credentials are not there.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A named file cannot be read.
    #[error("{what} file {}", path.display())]
    File {
        /// Which.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Neither password nor key.
    #[error("no password and no key for user {user}")]
    Missing {
        /// The user.
        user: String,
    },
    /// The address cannot be one.
    #[error("address \"{address}\": {why}")]
    Address {
        /// As written.
        address: String,
        /// Why.
        why: String,
    },
}

impl Hinted for CredentialError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { .. } => "check the path and who may read it".into(),
            Self::Missing { .. } => "name a password_file or a key_file for this node".into(),
            Self::Address { .. } => "correct the node's address".into(),
        })
    }
}

/// Everything needed to reach `node`; `pinned` is the host key seen at an earlier visit.
///
/// # Errors
/// [`CredentialError`].
pub fn target(node: &Node, pinned: Option<String>) -> Result<Target, CredentialError> {
    if let Some(why) = node.address_fault() {
        return Err(CredentialError::Address { address: node.address.clone(), why });
    }
    let password = match (&node.password, &node.password_file) {
        (Some(password), _) => Some(password.clone()),
        (None, Some(path)) => Some(read("password", path)?),
        (None, None) => None,
    };
    let key = match (&node.key_file, &node.key_passphrase_file) {
        (Some(path), passphrase) => Some(Key {
            pem: read_whole("key", path)?,
            passphrase: passphrase.as_ref().map(|path| read("key passphrase", path)).transpose()?,
        }),
        (None, _) => None,
    };
    if key.is_none() && password.is_none() {
        return Err(CredentialError::Missing { user: node.user.clone() });
    }
    let own = node.privilege_password_file.as_ref();
    let own = own.map(|path| read("privilege password", path)).transpose()?;
    let privilege = match node.privilege {
        PrivilegeKind::Root => Privilege::Root,
        PrivilegeKind::Sudo => Privilege::Sudo { login: password.clone(), own },
        PrivilegeKind::Su => Privilege::Su { password: own },
    };
    let host_key = match node.host_key.clone().or(pinned) {
        Some(fingerprint) => HostKeyPolicy::Pinned(fingerprint),
        None => HostKeyPolicy::FirstUse,
    };
    Ok(Target {
        address: node.host().to_owned(),
        port: node.port,
        user: node.user.clone(),
        key,
        password,
        privilege,
        host_key,
    })
}

fn read_whole(what: &'static str, path: &Path) -> Result<Secret, CredentialError> {
    let text = std::fs::read_to_string(path);
    text.map(Secret::new).map_err(|source| CredentialError::File { what, path: path.to_owned(), source })
}

/// A password is the file's first line: editors add the line's end.
fn read(what: &'static str, path: &Path) -> Result<Secret, CredentialError> {
    let whole = read_whole(what, path)?;
    Ok(Secret::new(whole.reveal().lines().next().unwrap_or_default().to_owned()))
}
