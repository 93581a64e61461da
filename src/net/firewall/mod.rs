//! The appliance's own firewall: default drop, and the box's port opened for the nodes of running deployments.
//!
//! [`rules`] says what comes in, [`nftables`] brings it into the kernel. One task applies what is wanted, so a wave of nodes
//! that come and go costs one batch, not one each. It is raised on the appliance only, before the first link is up: the
//! ruleset of a distribution's host is not ours, and must never be replaced.

mod nftables;
pub mod rules;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use rules::{Family, Guest, Guests, Policy};

/// A batch that the kernel refused is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// A guest's rule is there by then, or its node finds the port closed and takes another path.
const ADMIT_MAX: Duration = Duration::from_secs(2);

/// What is wanted, and since how many changes.
#[derive(Debug, Clone, Default)]
struct Wanted {
    version: u64,
    guests: Guests,
}

/// The raised firewall. Cloning shares it.
#[derive(Clone)]
pub struct Firewall {
    wanted: Arc<watch::Sender<Wanted>>,
    applied: watch::Receiver<u64>,
}

/// A node that is let in; dropping it takes its rule away, once nothing else needs it.
#[must_use = "dropped, it takes the rule away"]
pub struct Admitted {
    wanted: Arc<watch::Sender<Wanted>>,
    guest: Guest,
}

impl Guest {
    /// A node at the other end of a connection.
    pub fn at(node: SocketAddr, deployment: &str) -> Self {
        let zone = match node {
            SocketAddr::V6(node) if node.scope_id() != 0 => Some(node.scope_id()),
            _ => None,
        };
        let interface = zone.and_then(|zone| {
            // Of a link that has gone meanwhile it gives an empty name, and no error.
            let name = nix::net::if_::if_indextoname(zone).ok()?.to_string_lossy().into_owned();
            (!name.is_empty()).then_some(name)
        });
        Self { address: node.ip().to_canonical(), interface, deployment: deployment.to_owned() }
    }
}

impl Firewall {
    /// Puts the rules in place, and keeps them as they are wanted from now on. Where the kernel refuses them they are tried
    /// again and again: until then nothing is filtered, which is told as an error. Returns after the first try.
    pub async fn raise(policy: Policy) -> Self {
        let wanted = watch::Sender::new(Wanted::default());
        let (done, applied) = watch::channel(0);
        let raised = apply(&policy, Guests::new()).await.inspect_err(|error| {
            tracing::error!("the box has no firewall yet ({error}): keep it on a network you trust");
        });
        tokio::spawn(keep(policy, raised.is_ok(), wanted.subscribe(), done));
        Self { wanted: Arc::new(wanted), applied }
    }

    /// Lets a node come to the box's port, as long as the result lives. Returns when its rule is in place, or could not be
    /// brought there in time.
    pub async fn admit(&self, guest: Guest) -> Admitted {
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            *wanted.guests.entry(guest.clone()).or_default() += 1;
            wanted.version += 1;
            version = wanted.version;
        });
        let admitted = Admitted { wanted: self.wanted.clone(), guest };
        let mut applied = self.applied.clone();
        if tokio::time::timeout(ADMIT_MAX, applied.wait_for(|applied| *applied >= version)).await.is_err() {
            tracing::warn!(node = %admitted.guest.address, "the box's firewall does not let it in yet");
        }
        admitted
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.wanted.send_modify(|wanted| {
            if let Some(times) = wanted.guests.get_mut(&self.guest) {
                *times -= 1;
                if *times == 0 {
                    wanted.guests.remove(&self.guest);
                }
            }
            wanted.version += 1;
        });
    }
}

/// Applies what is wanted whenever that changes, until nobody can want anything any more.
async fn keep(policy: Policy, raised: bool, mut wanted: watch::Receiver<Wanted>, done: watch::Sender<u64>) {
    let mut last = raised.then(Guests::new);
    if last.is_none() {
        tokio::time::sleep(RETRY).await;
        wanted.mark_changed();
    }
    while wanted.changed().await.is_ok() {
        let Wanted { version, guests } = wanted.borrow_and_update().clone();
        // Asked for twice is one rule.
        if last.as_ref().is_none_or(|last| !guests.keys().eq(last.keys())) {
            if let Err(error) = apply(&policy, guests.clone()).await {
                tracing::error!(%error, "the box's firewall cannot be changed");
                tokio::time::sleep(RETRY).await;
                wanted.mark_changed();
                continue;
            }
            if last.is_none() {
                tracing::info!("the box's firewall is up");
            }
            last = Some(guests);
        }
        let _ = done.send(version);
    }
}

async fn apply(policy: &Policy, guests: Guests) -> io::Result<()> {
    let chains = [Family::V6, Family::V4].map(|family| (family, rules::input(family, policy, &guests)));
    tokio::task::spawn_blocking(move || nftables::replace(&chains)).await.map_err(io::Error::other)?
}
