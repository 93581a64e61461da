//! A deployment's failed nodes, taken up again as a deployment of their own.
//!
//! What failed, was skipped, was cancelled, or was under way when the box died is tried again, with the fleet as the
//! store keeps it or as it is given now. The store holds no password, so those are asked for or given again. What is
//! done is left alone.

use crate::error::Hinted;
use crate::fleet::{Fleet, Node};
use crate::wire::id::DeploymentId;

use super::Deployments;
use super::event::{NodeResult, Summary};
use super::schedule::{Intent, StartError};
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
            Self::Store(error) => error.hint(),
            Self::Start(error) => error.hint(),
        }
    }
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
    address.trim_start_matches('[').trim_end_matches(']') == node.host()
}
