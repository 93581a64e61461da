//! Why a node's cycle stopped, by the part that says so.

use std::net::IpAddr;

use crate::access::control::ControlError;
use crate::access::driver::{AccessError, NoPlace};
use crate::error::{Hinted, chain};
use crate::fleet::credentials::CredentialError;
use crate::wire::id::DeploymentId;

use super::authority::AuthorityError;
use super::event::Step;
use super::reboot::RebootError;
use super::store::StoreError;

/// Why a node's cycle stopped.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    /// The operator cancelled.
    #[error("cancelled by the operator")]
    Cancelled,
    /// No credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The node cannot be reached or changed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The engine.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's restart.
    #[error(transparent)]
    Reboot(#[from] RebootError),
    /// Certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Not a node this version can update.
    #[error("the node is {found}; this version has an engine for Linux on x86_64 only")]
    Architecture {
        /// What it is.
        found: String,
    },
    /// Nowhere to put engine and payloads.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// Another engine is there.
    #[error("the node is held by deployment {deployment} of the box at {box_address} since {since}")]
    Held {
        /// Whose engine it is.
        deployment: DeploymentId,
        /// Whose deployment.
        box_address: IpAddr,
        /// RFC 3339, by the box's clock.
        since: String,
    },
    /// The engine has ended by itself, or was ended by someone else.
    #[error("the engine is gone")]
    EngineGone,
    /// What an earlier process of this box kept of the node is there, and of no use.
    #[error("what the box kept of this node before it died cannot be read: {why}")]
    Record {
        /// Why.
        why: String,
    },
    /// An answer that does not fit its question.
    #[error("the engine answered something else than was asked")]
    Protocol,
}

impl CycleError {
    /// Whether trying again with the same credentials can only end the same, or worse: with a locked account.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Credentials(_) => true,
            Self::Access(error) => error.is_final(),
            _ => false,
        }
    }
}

impl Hinted for CycleError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Credentials(error) => error.hint(),
            Self::Access(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Reboot(error) => error.hint(),
            Self::Place(error) => error.hint(),
            Self::Held { .. } => Some(
                "wait until it has ended; the engine of a box that is silent takes itself away after its lease"
                    .into(),
            ),
            Self::EngineGone => Some("the node may have restarted; deploy again to see what it has".into()),
            Self::Record { .. } => Some(
                "the vault's key was changed or the store is damaged; look at the versions the node has, then deploy \
                 again"
                    .into(),
            ),
            Self::Architecture { .. } => Some("leave this node out of the fleet".into()),
            Self::Cancelled | Self::Control(_) | Self::Authority(_) | Self::Protocol => None,
        }
    }
}

/// One message for a person: the node, the step, what was seen, what to do.
pub fn on_node(node: &str, step: Step, error: &CycleError) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{node}: {}: {}{hint}", step.name(), chain(error))
}
