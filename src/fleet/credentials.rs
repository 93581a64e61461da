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
    let password = given(&node.password, || read("password", node.password_file.as_deref()))?;
    let passphrase =
        given(&node.key_passphrase, || read("key passphrase", node.key_passphrase_file.as_deref()))?;
    let key = given(&node.key, || read_whole("key", node.key_file.as_deref()))?;
    let key = key.map(|pem| Key { pem, passphrase });
    if key.is_none() && password.is_none() {
        return Err(CredentialError::Missing { user: node.user.clone() });
    }
    let own = given(&node.privilege_password, || {
        read("privilege password", node.privilege_password_file.as_deref())
    })?;
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

/// What was given itself, else what a file holds.
fn given(
    secret: &Option<Secret>,
    file: impl FnOnce() -> Result<Option<Secret>, CredentialError>,
) -> Result<Option<Secret>, CredentialError> {
    secret.clone().map_or_else(file, |secret| Ok(Some(secret)))
}

fn read_whole(what: &'static str, path: Option<&Path>) -> Result<Option<Secret>, CredentialError> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| CredentialError::File { what, path: path.to_owned(), source })?;
    Ok(Some(Secret::new(text)))
}

/// A password is the file's first line: editors add the line's end.
fn read(what: &'static str, path: Option<&Path>) -> Result<Option<Secret>, CredentialError> {
    let first = |whole: Secret| Secret::new(whole.reveal().lines().next().unwrap_or_default().to_owned());
    Ok(read_whole(what, path)?.map(first))
}
