//! A deployment's failed nodes, taken up again as a deployment of their own.
//!
//! What failed, was skipped, was cancelled, or was under way when the box died is tried again, with the fleet as the
//! store keeps it or as it is given now. The store holds no password, so those are asked for or given again. What is
//! done is left alone.

use std::collections::HashMap;

use serde::Deserialize;

use crate::error::Hinted;
use crate::fleet::{Fleet, Node, canonical};
use crate::secret::Secret;
use crate::wire::id::DeploymentId;

use super::Deployments;
use super::deployments::{Intent, StartError};
use super::event::{NodeResult, Summary};
use super::store::StoreError;

/// Why nothing is retried.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// Not in the store.
    #[error("the store has no deployment {id}")]
    Unknown {
        /// As asked for.
        id: DeploymentId,
    },
    /// It has not ended.
    #[error("deployment {id} still runs")]
    Running {
        /// Which.
        id: DeploymentId,
    },
    /// From a version that did not keep the fleet.
    #[error("the fleet of deployment {id} was not kept")]
    NoFleet {
        /// Which.
        id: DeploymentId,
    },
    /// Everything is done.
    #[error("no node of deployment {id} failed")]
    NothingFailed {
        /// Which.
        id: DeploymentId,
    },
    /// None of what failed is in the fleet given.
    #[error("none of the failed nodes of deployment {id} is in the fleet file")]
    NotInFleet {
        /// Which.
        id: DeploymentId,
    },
    /// Credentials for a node that is not retried.
    #[error("credentials are given for node {node}, which is not among those that are retried")]
    NotRetried {
        /// As given.
        node: String,
    },
    /// Nothing opens a node.
    #[error("no password and no key for user {user} on node {node}")]
    Missing {
        /// The node.
        node: String,
        /// Its user.
        user: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new deployment.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Hinted for RetryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("give its whole id, and the --state it ran with".into()),
            Self::Running { .. } => Some("wait for it to end, or abort it".into()),
            Self::NoFleet { .. } => Some("give the fleet file too".into()),
            Self::NotInFleet { .. } => Some("give the fleet file it was begun with, or none".into()),
            Self::NothingFailed { .. } => None,
            Self::NotRetried { .. } => Some("leave them out; no node was touched".into()),
            Self::Missing { .. } => Some(
                "the box keeps none after a deployment's end: send \"credentials\", or \"nodes\" with some for each \
                 address; no node was touched"
                    .into(),
            ),
            Self::Store(error) => error.hint(),
            Self::Start(error) => error.hint(),
        }
    }
}

/// What opens nodes again: the store keeps no secret.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    password: Option<Secret>,
    key: Option<Secret>,
    key_passphrase: Option<Secret>,
    privilege_password: Option<Secret>,
}

/// Gives a retried fleet its credentials: those of its address, else those for all. A file that the fleet names is as
/// good as a secret.
///
/// # Errors
/// [`RetryError::NotRetried`], [`RetryError::Missing`].
pub fn give(
    fleet: &mut Fleet,
    all: &Credentials,
    each: &HashMap<String, Credentials>,
) -> Result<(), RetryError> {
    let is_retried = |address: &&String| fleet.nodes.iter().any(|node| same_host(address, node));
    if let Some(node) = each.keys().find(|address| !is_retried(address)) {
        return Err(RetryError::NotRetried { node: node.clone() });
    }
    for node in &mut fleet.nodes {
        let own = each.iter().find(|(address, _)| same_host(address, node)).map(|(_, own)| own);
        let given = own.unwrap_or(all).clone();
        (node.password, node.key) = (given.password, given.key);
        (node.key_passphrase, node.privilege_password) = (given.key_passphrase, given.privilege_password);
        let files = [&node.password_file, &node.key_file];
        if node.password.is_none() && node.key.is_none() && files.iter().all(|file| file.is_none()) {
            return Err(RetryError::Missing { node: node.address.clone(), user: node.user.clone() });
        }
    }
    Ok(())
}

impl Deployments {
    /// The fleet of a deployment, reduced to the nodes that are not done; `given` replaces what the store has.
    ///
    /// # Errors
    /// [`RetryError`].
    pub async fn failed_fleet(&self, id: &DeploymentId, given: Option<Fleet>) -> Result<Fleet, RetryError> {
        if self.get(id).is_some_and(|(summary, _)| summary.ended.is_none()) {
            return Err(RetryError::Running { id: id.clone() });
        }
        let unknown = || RetryError::Unknown { id: id.clone() };
        let (summary, kept) = self.0.store.load(id).await?.ok_or_else(unknown)?;
        let from_file = given.is_some();
        let mut fleet = given.or(kept).ok_or_else(|| RetryError::NoFleet { id: id.clone() })?;
        let failed = failed(&summary);
        if failed.is_empty() {
            return Err(RetryError::NothingFailed { id: id.clone() });
        }
        fleet.nodes.retain(|node| failed.iter().any(|address| same_host(address, node)));
        match fleet.nodes.is_empty() {
            true if from_file => Err(RetryError::NotInFleet { id: id.clone() }),
            true => Err(RetryError::NothingFailed { id: id.clone() }),
            false => Ok(fleet),
        }
    }

    /// Begins a deployment that is remembered as the retry of another; `fleet` is from [`Self::failed_fleet`].
    ///
    /// # Errors
    /// [`StartError`]; no node was touched.
    pub async fn retry(
        &self,
        id: &DeploymentId,
        fleet: Fleet,
        intent: Intent,
    ) -> Result<DeploymentId, StartError> {
        self.begin(fleet, intent, Some(id.clone())).await
    }
}

/// The nodes that are not done. What was under way when the box died is among them.
fn failed(summary: &Summary) -> Vec<String> {
    let undone = summary.nodes.iter().filter(|(_, node)| node.result != NodeResult::Done);
    undone.map(|(address, _)| address.clone()).collect()
}

fn same_host(address: &str, node: &Node) -> bool {
    canonical(address) == node.canonical_host()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Fleet {
        let node = |k: u8| format!("[[node]]\naddress = \"fd00::{k}\"\nuser = \"operator\"\n");
        toml::from_str(&format!("baseline = \"demo\"\n{}{}", node(1), node(2))).unwrap()
    }

    fn credentials(text: &str) -> Credentials {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_node_gets_its_own_credentials_or_those_for_all() {
        let mut fleet = fleet();
        let each = HashMap::from([("[fd00::2]".to_owned(), credentials(r#"{"key": "pem"}"#))]);
        give(&mut fleet, &credentials(r#"{"password": "all"}"#), &each).unwrap();
        assert_eq!(fleet.nodes[0].password.as_ref().unwrap().reveal(), "all");
        assert!(fleet.nodes[1].password.is_none() && fleet.nodes[1].key.is_some());
    }

    #[test]
    fn a_node_that_nothing_opens_is_named_and_so_is_one_that_is_not_retried() {
        let nobody = Credentials::default();
        let missing = give(&mut fleet(), &nobody, &HashMap::new()).unwrap_err();
        assert_eq!(missing.to_string(), "no password and no key for user operator on node fd00::1");
        let each = HashMap::from([("fd00::9".to_owned(), nobody.clone())]);
        assert!(matches!(give(&mut fleet(), &nobody, &each), Err(RetryError::NotRetried { .. })));
        let mut by_file = fleet();
        by_file.nodes.iter_mut().for_each(|node| node.password_file = Some("/x".into()));
        assert!(give(&mut by_file, &nobody, &HashMap::new()).is_ok());
    }
}
