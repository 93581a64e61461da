//! The network of the appliance: links up, addresses there, a word when they change, and its firewall.
//!
//! All of it by netlink. Router advertisements and duplicate address detection are the kernel's; this part
//! only switches them on, before a link comes up. It must never remove an address or a route it did not set.

pub mod firewall;
mod links;
pub mod settings;

use std::net::IpAddr;
use std::path::PathBuf;

pub use links::{Address, Watch, addresses, bring_up, watch};
pub use settings::Settings;

use crate::error::Hinted;

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A word of the kernel command line.
    #[error("kernel command line: \"{word}\": {why}")]
    Setting {
        /// As it stands there.
        word: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file of the kernel.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The netlink socket.
    #[error("netlink cannot be opened")]
    Open(#[source] std::io::Error),
    /// The kernel refused a request.
    #[error("{what}")]
    Request {
        /// What was asked.
        what: String,
        /// Why not.
        #[source]
        cause: rtnetlink::Error,
    },
    /// Static addresses are set, and there is no link to put them on.
    #[error("no link for the static addresses: {wanted}")]
    NoLink {
        /// The link asked for.
        wanted: String,
    },
    /// A gateway that no static address can reach.
    #[error("gateway {gateway} has no address of its family beside it")]
    LoneGateway {
        /// The gateway.
        gateway: IpAddr,
    },
}

impl Hinted for NetError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Setting { .. } => Some("correct it in the boot loader's entry and restart".into()),
            Self::NoLink { .. } => Some("check carena.interface and the cables".into()),
            Self::LoneGateway { .. } => Some("give carena.address=ADDRESS/PREFIX of the same family".into()),
            Self::File { .. } | Self::Open(_) | Self::Request { .. } => None,
        }
    }
}
