//! The way back: every trace of a cycle taken back, whatever happened before, over the cycle's connection or a new one.
//!
//! It works on what is journalled, so it serves the cycle that has just ended and the sweep after a crash alike. It
//! must never touch what it cannot identify as ours: that is each undo's own check on the node.

use std::time::Duration;

use crate::access::driver::{Driver, NodeSession};
use crate::access::undo::{EntryId, Undo};
use crate::fleet::{Node, credentials};
use crate::wire::id::DeploymentId;

use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{State, Step};
use super::store::Store;

/// How often an unwind tries to reach the node again when the connection was lost.
const RECONNECTS: u32 = 3;

impl Cycle<'_> {
    /// Takes every trace back, newest process first; returns what could not be.
    pub(super) async fn unwind(&mut self) -> Vec<String> {
        let mut order = std::mem::take(&mut self.armed);
        order.sort_by_key(|(_, undo)| turn(undo));
        let steps = |undo: &Undo| match undo {
            Undo::EngineProcess(_) => Step::Stop,
            Undo::EngineFiles(_) => Step::Remove,
            Undo::FirewallRule(_) => Step::Close,
        };
        let mut outstanding = Vec::new();
        if !order.is_empty() {
            for (_, undo) in &order {
                self.run.tell(&self.node.address, steps(undo), State::Started, None);
            }
            let session = self.session.take();
            let (driver, store) = (&*self.run.driver, &self.run.store);
            let (session, results) =
                take_back(driver, store, self.node, &self.run.deployment, session, &order).await;
            self.session = session;
            for ((_, undo), result) in order.iter().zip(results) {
                self.step = steps(undo);
                match result {
                    Ok(()) => self.tell(State::Undone, None),
                    Err(StillThere { why, .. }) => {
                        self.tell(State::Failed, Some(format!("{undo}: {why}")));
                        outstanding.push(format!("{undo}: {why}"));
                    }
                }
            }
        }
        if let Some(session) = self.session.take() {
            self.run.tell(&self.node.address, Step::Disconnect, State::Started, None);
            session.close().await;
            self.run.tell(&self.node.address, Step::Disconnect, State::Done, None);
        }
        outstanding
    }
}

/// The order in which traces go: a process before the files it lives in, its port after it.
fn turn(undo: &Undo) -> u8 {
    match undo {
        Undo::EngineProcess(_) => 0,
        Undo::EngineFiles(_) => 1,
        Undo::FirewallRule(_) => 2,
    }
}

/// Connects to a node, and pins what it proves itself with at the first visit.
///
/// # Errors
/// [`CycleError`].
pub async fn connect(
    driver: &dyn Driver,
    store: &Store,
    node: &Node,
) -> Result<Box<dyn NodeSession>, CycleError> {
    let pinned = store.pin(node.host(), node.port).await?;
    let target = credentials::target(node, pinned.clone())?;
    let session = driver.connect(&target).await?;
    if pinned.is_none() {
        store.set_pin(node.host(), node.port, session.fingerprint()).await?;
    }
    Ok(session)
}

/// Why a trace is still there.
#[derive(Debug, Clone)]
pub struct StillThere {
    /// In words.
    pub why: String,
    /// The credentials were looked at and refused: trying again by itself would lock the account.
    pub refused: bool,
}

/// Takes `undos` back in their order, over `session` if it still lives, else over a new one, and marks in the
/// store what is gone. One result for each.
pub async fn take_back(
    driver: &dyn Driver,
    store: &Store,
    node: &Node,
    deployment: &DeploymentId,
    mut session: Option<Box<dyn NodeSession>>,
    undos: &[(EntryId, Undo)],
) -> (Option<Box<dyn NodeSession>>, Vec<Result<(), StillThere>>) {
    let mut ordered = undos.to_vec();
    ordered.sort_by_key(|(_, undo)| turn(undo));
    let mut last = StillThere { why: "the node could not be reached".to_owned(), refused: false };
    for attempt in 0..=RECONNECTS {
        let mut live = match session.take() {
            Some(session) => session,
            None => match connect(driver, store, node).await {
                Ok(session) => session,
                Err(error) => {
                    last = StillThere { why: crate::error::explain(&error), refused: error.is_final() };
                    if last.refused {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
                    continue;
                }
            },
        };
        match live.undo(deployment, &ordered).await {
            Ok(results) => {
                let gone =
                    results.iter().filter(|(_, result)| result.is_ok()).map(|(entry, _)| *entry).collect();
                let still = |why| StillThere { why, refused: false };
                let mut marked =
                    store.undone(gone).await.map_err(|error| still(crate::error::explain(&error)));
                let told = undos.iter().map(|(entry, _)| {
                    let result = results.iter().find(|(other, _)| other == entry);
                    match result {
                        Some((_, Ok(_))) => std::mem::replace(&mut marked, Ok(())),
                        Some((_, Err(why))) => Err(still(why.clone())),
                        None => Err(still("the node did not say whether it is gone".to_owned())),
                    }
                });
                return (Some(live), told.collect());
            }
            Err(error) => {
                last = StillThere { why: crate::error::explain(&error), refused: error.is_final() };
                if last.refused {
                    break;
                }
            }
        }
    }
    (None, undos.iter().map(|_| Err(last.clone())).collect())
}
