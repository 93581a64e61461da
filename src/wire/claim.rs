//! The claim of an engine on its node: one engine at a time, whoever sent it.
//!
//! An engine binds two abstract unix sockets: [`LOCK`], which only one process can have, and one whose name says who
//! holds it. Abstract names vanish with the process, so a claim is never a leftover; and any user reads them in
//! `/proc/net/unix`, so a box knows who holds a node before it has changed anything there.

use std::net::IpAddr;

use super::id::DeploymentId;

/// The abstract name that only one engine of a node can have.
pub const LOCK: &str = "carena-engine";

/// Who holds a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The protocol of the engine.
    pub protocol: u16,
    /// Whose engine it is.
    pub deployment: DeploymentId,
    /// Since when, seconds after 1970 by the node's clock.
    pub since: u64,
    /// The box that started it, as the node sees it.
    pub box_address: IpAddr,
}

impl Claim {
    /// The abstract name that says so: at most 106 of the 107 bytes there can be.
    pub fn name(&self) -> String {
        format!("{LOCK}/{}/{}/{}/{}", self.protocol, self.deployment, self.since, self.box_address)
    }

    /// Reads a name as `/proc/net/unix` shows it, with or without the `@` in front.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix('@').unwrap_or(name);
        let mut words = name.strip_prefix(LOCK)?.strip_prefix('/')?.splitn(4, '/');
        Some(Self {
            protocol: words.next()?.parse().ok()?,
            deployment: words.next()?.parse().ok()?,
            since: words.next()?.parse().ok()?,
            box_address: words.next()?.trim().parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_back_from_its_name_which_fits_a_socket() {
        let claim = Claim {
            protocol: u16::MAX,
            deployment: "01900000-0000-7000-8000-000000000000".parse().unwrap(),
            since: 9_999_999_999,
            box_address: "fd00:ca12:3456:7890:abcd:ef12:3456:7890".parse().unwrap(),
        };
        assert!(claim.name().len() <= 107, "{}", claim.name().len());
        assert_eq!(Claim::parse(&claim.name()), Some(claim.clone()));
        assert_eq!(Claim::parse(&format!("@{}", claim.name())), Some(claim));
        for other in ["@carena-engine", "@/tmp/.X11-unix/X0", "carena-engine/1/x"] {
            assert_eq!(Claim::parse(other), None);
        }
    }
}
