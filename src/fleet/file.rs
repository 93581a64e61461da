//! The fleet file: TOML from the command line, the same fields as JSON from the API.
//!
//! Unknown fields are refused, with file and line: a misspelt option that is silently ignored is found out on the
//! wrong server. A node with an address that cannot be right fails alone; the others still run.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::Options;
use crate::error::Hinted;
use crate::secret::Secret;

/// Most nodes in one fleet.
pub const NODES_MAX: usize = 10_000;

/// What to bring to which nodes. As it is serialised, into the store, it holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// An id in the cache, or a directory.
    pub baseline: String,
    /// How.
    #[serde(default)]
    pub options: Options,
    /// Where.
    #[serde(rename = "node", alias = "nodes", default)]
    pub nodes: Vec<Node>,
}

/// A node. Files are named, not read: what is kept of a node (in the journal) holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Literal in any notation, `%zone` and brackets allowed, or a name.
    pub address: String,
    /// SSH port.
    #[serde(default = "ssh_port")]
    pub port: u16,
    /// How it is reached.
    #[serde(default)]
    pub access: AccessKind,
    /// The group it belongs to, for `[options] order`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Never two nodes with the same name here at once: the members of a cluster, two paths to one disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<String>,
    /// User to log in as.
    pub user: String,
    /// File with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// File with an OpenSSH private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// File with the passphrase that decrypts the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_passphrase_file: Option<PathBuf>,
    /// How root's rights are had.
    #[serde(default)]
    pub privilege: PrivilegeKind,
    /// File with the password that sudo asks for, if it is not the login's; or root's, which su asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privilege_password_file: Option<PathBuf>,
    /// The host key's fingerprint, `SHA256:…`, if it is known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The password itself. This and what follows: from the API or a prompt only, refused in a file, never kept.
    #[serde(default, skip_serializing)]
    pub password: Option<Secret>,
    /// The private key itself.
    #[serde(default, skip_serializing)]
    pub key: Option<Secret>,
    /// The passphrase that decrypts the key.
    #[serde(default, skip_serializing)]
    pub key_passphrase: Option<Secret>,
    /// The password that sudo or su asks for, if it is not the login's.
    #[serde(default, skip_serializing)]
    pub privilege_password: Option<Secret>,
}

fn ssh_port() -> u16 {
    22
}

/// How a node is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessKind {
    /// SSH.
    #[default]
    Ssh,
}

/// How root's rights are had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivilegeKind {
    /// The user is root.
    #[default]
    Root,
    /// By sudo.
    Sudo,
    /// By su.
    Su,
}

/// Why a fleet cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The file cannot be read.
    #[error("fleet file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not what a fleet looks like.
    #[error("{place}: {why}")]
    Syntax {
        /// File and line, or "request".
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Well-formed, but makes no sense.
    #[error("{place}: {why}")]
    Invalid {
        /// File, or "request".
        place: String,
        /// What is wrong.
        why: String,
    },
}

impl Hinted for FleetError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "give the path of a readable fleet file".into(),
            Self::Syntax { .. } | Self::Invalid { .. } => {
                "correct it and start again; no node was touched".into()
            }
        })
    }
}

impl Fleet {
    /// Reads a fleet file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// [`FleetError`], with file and line.
    pub fn read(path: &Path) -> Result<Self, FleetError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| FleetError::Read { path: path.to_owned(), source })?;
        let mut fleet: Self = toml::from_str(&text).map_err(|error| {
            let line =
                error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            FleetError::Syntax {
                place: format!("{}:{line}", path.display()),
                why: error.message().to_owned(),
            }
        })?;
        // Absolute, because it is kept: a sweep or a retry may be called from another directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let base = absolute.parent().unwrap_or(Path::new("/"));
        if fleet.baseline.contains('/') {
            fleet.baseline = base.join(&fleet.baseline).to_string_lossy().into_owned();
        }
        for node in &mut fleet.nodes {
            if let Some((field, _)) = node.secrets().into_iter().find(|(_, secret)| secret.is_some()) {
                let why = format!(
                    "node {}: a {field} may not stand in the fleet file; name a {field}_file",
                    node.address
                );
                return Err(FleetError::Invalid { place: path.display().to_string(), why });
            }
            for file in node.files_mut() {
                *file = file.take().map(|file| base.join(file));
            }
        }
        fleet.check(&path.display().to_string())?;
        Ok(fleet)
    }

    /// Takes a fleet from the API. Files cannot be named there: they would be the box's.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn from_json(value: serde_json::Value) -> Result<Self, FleetError> {
        let place = "request".to_owned();
        let mut fleet: Self = serde_json::from_value(value)
            .map_err(|error| FleetError::Syntax { place: place.clone(), why: error.to_string() })?;
        let names_files = |node: &mut Node| node.files_mut().into_iter().any(|file| file.is_some());
        if let Some(node) = fleet.nodes.iter_mut().find_map(|node| names_files(node).then_some(node)) {
            let why = format!(
                "node {}: a request cannot name files of the box; send the password or key itself",
                node.address
            );
            return Err(FleetError::Invalid { place, why });
        }
        if fleet.baseline.contains('/') {
            let why = "a request names a baseline by its id".to_owned();
            return Err(FleetError::Invalid { place, why });
        }
        fleet.check(&place)?;
        Ok(fleet)
    }

    fn check(&self, place: &str) -> Result<(), FleetError> {
        let invalid = |why: String| Err(FleetError::Invalid { place: place.to_owned(), why });
        if self.nodes.is_empty() {
            return invalid("no node is named".into());
        }
        if self.nodes.len() > NODES_MAX {
            return invalid(format!("{} nodes; at most {NODES_MAX} in one deployment", self.nodes.len()));
        }
        if let Some(why) = self.options.fault() {
            return invalid(why);
        }
        let grouped = |name: &&String| self.nodes.iter().any(|node| node.group.as_ref() == Some(name));
        if let Some(name) = self.options.order.iter().find(|name| !grouped(name)) {
            return invalid(format!("order: no node is of group {name}"));
        }
        let mut seen = std::collections::HashSet::new();
        for node in &self.nodes {
            let (key, passphrase) = (&node.key_file, &node.key_passphrase_file);
            if passphrase.is_some() && key.is_none() {
                return invalid(format!("node {}: key_passphrase_file without key_file", node.address));
            }
            // Events and results are told by address, so an address stands for one node.
            if !seen.insert(node.canonical_host()) {
                return invalid(format!("node {} is named twice", node.address));
            }
        }
        Ok(())
    }
}

/// One spelling of a node's address or name, whatever its notation: without brackets, as the standard library writes it.
pub fn canonical(address: &str) -> String {
    let host = bare(address);
    host.parse::<IpAddr>().map_or_else(
        |_| host.trim_end_matches('.').to_ascii_lowercase(),
        |address| address.to_canonical().to_string(),
    )
}

fn bare(address: &str) -> &str {
    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address)
}

impl Node {
    /// Every field that holds a secret, and what it is called.
    fn secrets(&self) -> [(&'static str, &Option<Secret>); 4] {
        [
            ("password", &self.password),
            ("key", &self.key),
            ("key_passphrase", &self.key_passphrase),
            ("privilege_password", &self.privilege_password),
        ]
    }

    /// Every field that names a file.
    fn files_mut(&mut self) -> [&mut Option<PathBuf>; 4] {
        [
            &mut self.password_file,
            &mut self.key_file,
            &mut self.key_passphrase_file,
            &mut self.privilege_password_file,
        ]
    }

    /// The address without brackets.
    pub fn host(&self) -> &str {
        bare(&self.address)
    }

    /// One spelling of the address or name: nodes with the same one are the same node.
    pub fn canonical_host(&self) -> String {
        canonical(&self.address)
    }

    /// Why the address cannot be one, if so.
    pub fn address_fault(&self) -> Option<String> {
        let host = self.host();
        let (literal, zone) =
            host.split_once('%').map_or((host, None), |(literal, zone)| (literal, Some(zone)));
        let looks_literal = literal.contains(':') || literal.chars().all(|c| c.is_ascii_digit() || c == '.');
        if looks_literal {
            return match (literal.parse::<IpAddr>(), zone) {
                (Err(_), _) => Some("it is neither an IPv6 nor an IPv4 address".into()),
                (Ok(IpAddr::V4(_)), Some(_)) => Some("an IPv4 address has no zone".into()),
                (Ok(IpAddr::V6(address)), None) if address.is_unicast_link_local() => {
                    Some("a link-local address needs its zone, as in fe80::1%eth0".into())
                }
                (Ok(_), Some("")) => Some("the zone after % is missing".into()),
                _ => None,
            };
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let name = literal.strip_suffix('.').unwrap_or(literal);
        let fits = zone.is_none() && name.len() <= 253 && name.split('.').all(label);
        (!fits).then(|| "it is neither an address nor a host name".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str) -> Node {
        toml::from_str(&format!("address = \"{address}\"\nuser = \"root\"")).unwrap()
    }

    #[test]
    fn addresses_in_every_notation_are_taken_and_others_refused() {
        for good in
            ["fd00:ca::11", "[fd00:ca::11]", "FD00:CA:0:0:0:0:0:11", "fe80::1%eth0", "10.0.0.1", "node-1.lab"]
        {
            assert_eq!(node(good).address_fault(), None, "{good}");
        }
        for bad in ["fd00:ca::zz", "fe80::1", "10.0.0.256", "", "a b", "10.0.0.1%eth0", "fd00::1%", "-x.lab"]
        {
            assert!(node(bad).address_fault().is_some(), "{bad}");
        }
    }

    #[test]
    fn a_fleet_file_is_refused_with_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.toml");
        let refuse = |text: &str| {
            crate::durable::write(&path, text.as_bytes(), 0o600).unwrap();
            crate::error::explain(&Fleet::read(&path).unwrap_err())
        };
        let nodes = "[[node]]\naddress = \"fd00::1\"\nuser = \"root\"\n";
        assert!(refuse(&format!("baseline = \"demo\"\nbasline = 1\n{nodes}")).contains("fleet.toml:2"));
        assert!(refuse("baseline = \"demo\"\n").contains("no node"));
        assert!(refuse(&format!("baseline = \"demo\"\n{nodes}password = \"x\"\n")).contains("password_file"));
        assert!(refuse(&format!("baseline = \"demo\"\n{nodes}key = \"x\"\n")).contains("name a key_file"));
        assert!(
            refuse(&format!("baseline = \"demo\"\n{nodes}key_passphrase_file = \"x\"\n"))
                .contains("without key_file")
        );
        assert!(refuse(&format!("baseline = \"demo\"\n{nodes}{nodes}")).contains("twice"));
        let again = nodes.replace("fd00::1", "[FD00:0::1]");
        assert!(refuse(&format!("baseline = \"demo\"\n{nodes}{again}")).contains("twice"));
        assert!(refuse(&format!("baseline = \"demo\"\n[options]\nlease_s = 1\n{nodes}")).contains("lease_s"));
    }

    #[test]
    fn a_request_cannot_name_files_of_the_box() {
        let value = serde_json::json!({"baseline": "demo", "nodes": [
            {"address": "fd00::1", "user": "root", "password_file": "/etc/shadow"}]});
        assert!(Fleet::from_json(value).unwrap_err().to_string().contains("cannot name files"));
    }

    #[test]
    fn what_is_kept_of_a_node_has_no_secret() {
        let mut node = node("fd00::1");
        let secret = Some(Secret::new("hunter2".into()));
        (node.password, node.key, node.key_passphrase) = (secret.clone(), secret.clone(), secret.clone());
        node.privilege_password = secret;
        assert!(!serde_json::to_string(&node).unwrap().contains("hunter2"));
    }
}
