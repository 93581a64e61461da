//! Traces that could not be taken back are tried again, ever more slowly, for as long as the process lives.
//!
//! A node whose cable was pulled comes back at some time; then it is left as it was found without anybody's doing. The
//! deployment's summary lists what is still there, so it is corrected when that changes. It must never touch the
//! traces of a deployment that still runs in this process.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::explain;
use crate::fleet::{Fleet, Node};
use crate::wire::id::DeploymentId;

use super::Deployments;
use super::event::{Event, NodeResult, NodeSummary, State, Step, Summary};
use super::recover::{self, Left, Swept};
use super::store::StoreError;

/// Between the unwind that failed and the first time it is tried again; doubled after each failure.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The longest wait: a node that is back is clean within this.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The wait after a node has refused the credentials: once a day locks no account.
const REFUSED_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Which deployment on which node.
pub type At = (DeploymentId, String);

/// When a place is tried again, and how long it was waited for.
type Waiting = HashMap<At, (Instant, Duration)>;

impl Deployments {
    /// Takes back what is outstanding, now; what runs in this process excepted, and what is in `refused`.
    ///
    /// # Errors
    /// [`StoreError`] when the journal cannot be read; a node's failure is in its [`Swept`].
    pub async fn sweep(
        &self,
        fleet: Option<&Fleet>,
        refused: &HashSet<At>,
    ) -> Result<Vec<Swept>, StoreError> {
        let _alone = self.0.sweeping.lock().await;
        let mut left = recover::left(&self.0.store, |id, node| self.is_live(id, node)).await?;
        left.retain(|left| !refused.contains(&place(left)));
        Ok(self.take_back(left, fleet).await)
    }

    /// Goes on sweeping for as long as the process lives, each node at its own pace.
    pub fn keep_sweeping(&self) {
        let deployments = self.clone();
        tokio::spawn(async move {
            let mut waiting = Waiting::new();
            loop {
                if let Err(error) = deployments.sweep_due(&mut waiting).await {
                    tracing::error!("the journal cannot be swept: {}", explain(&error));
                    tokio::time::sleep(WAIT_MAX).await;
                    continue;
                }
                let next = waiting.values().map(|(due, _)| *due).min();
                tokio::select! {
                    () = deployments.0.traces_left.notified() => {}
                    () = async { tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
                }
            }
        });
    }

    /// Sweeps the places whose time has come.
    async fn sweep_due(&self, waiting: &mut Waiting) -> Result<(), StoreError> {
        let _alone = self.0.sweeping.lock().await;
        // A node that a deployment works on is that deployment's to clean; it does so before it begins there.
        let mut left =
            recover::left(&self.0.store, |id, node| self.is_live(id, node) || self.is_taken(node)).await?;
        let places: Vec<At> = left.iter().map(place).collect();
        waiting.retain(|place, _| places.contains(place));
        let now = Instant::now();
        // What a dead run left is tried at once; what an unwind of this process has just failed at, after a pause.
        let first = |id: &DeploymentId| if self.known().contains_key(id) { now + FIRST_WAIT } else { now };
        left.retain(|left| {
            waiting.entry(place(left)).or_insert_with(|| (first(&left.deployment), FIRST_WAIT)).0 <= now
        });
        let tried: Vec<At> = left.iter().map(place).collect();
        let swept = self.take_back(left, None).await;
        for tried in tried {
            let of = |trace: &&Swept| (&trace.deployment, &trace.node) == (&tried.0, &tried.1);
            let still = swept.iter().filter(of).any(|trace| trace.outstanding.is_some());
            let refused = swept.iter().filter(of).any(|trace| trace.refused);
            let wait = waiting.remove(&tried).map_or(FIRST_WAIT, |(_, wait)| wait);
            if refused {
                waiting.insert(tried, (Instant::now() + REFUSED_WAIT, REFUSED_WAIT));
            } else if still {
                waiting.insert(tried, (Instant::now() + wait, (wait * 2).min(WAIT_MAX)));
            }
        }
        Ok(())
    }

    async fn take_back(&self, left: Vec<Left>, fleet: Option<&Fleet>) -> Vec<Swept> {
        let swept =
            recover::sweep(&self.0.driver, &self.0.store, left, |id, node| self.knows(id, node, fleet)).await;
        for trace in &swept {
            let (state, message) = match &trace.outstanding {
                None => (State::Undone, trace.trace.clone()),
                Some(why) => (State::Retry, format!("still there: {}: {why}", trace.trace)),
            };
            let event = Event::new(&trace.deployment, &trace.node, Step::Recover, state);
            self.0.events.publish(Event { message: Some(message), ..event });
        }
        self.correct(&swept).await;
        swept
    }

    /// Whether a deployment of this process still works on the node, or will.
    pub(super) fn is_live(&self, id: &DeploymentId, node: &Node) -> bool {
        let known = self.known();
        let nodes = known.get(id).map(|known| known.summary.nodes.as_slice()).unwrap_or_default();
        nodes
            .iter()
            .any(|(address, summary)| *address == node.address && summary.result == NodeResult::Running)
    }

    /// Whether any deployment of this process still works on the node, or will.
    fn is_taken(&self, node: &Node) -> bool {
        let wanted = recover::place(node);
        let known = self.known();
        known.values().filter(|known| known.places.contains(&wanted)).any(|known| {
            let mut nodes = known.nodes.iter().zip(&known.summary.nodes);
            nodes.any(|(node, (_, summary))| {
                summary.result == NodeResult::Running && recover::place(node) == wanted
            })
        })
    }

    /// A node with better credentials than the journal has: given now, or by the API when the deployment began.
    fn knows(&self, id: &DeploymentId, node: &Node, fleet: Option<&Fleet>) -> Option<Node> {
        let same = |other: &&Node| recover::place(other) == recover::place(node);
        let given = fleet.and_then(|fleet| fleet.nodes.iter().find(same)).cloned();
        given.or_else(|| self.known().get(id)?.nodes.iter().find(same).cloned())
    }

    /// Makes the summaries say what is still there.
    pub(super) async fn correct(&self, swept: &[Swept]) {
        let mut places: Vec<At> =
            swept.iter().map(|trace| (trace.deployment.clone(), trace.node.clone())).collect();
        places.sort();
        places.dedup();
        for (id, node) in places {
            let here = swept.iter().filter(|trace| (&trace.deployment, &trace.node) == (&id, &node));
            let still =
                here.filter_map(|trace| Some(format!("{}: {}", trace.trace, trace.outstanding.as_ref()?)));
            let still: Vec<String> = still.collect();
            let known = self.known().get_mut(&id).map(|known| {
                let listed = list(&mut known.summary, &node, &still);
                known.forget_credentials();
                listed
            });
            let listed = match known {
                Some(listed) => listed,
                None => {
                    let stored = self.0.store.load(&id).await.ok().flatten();
                    stored.and_then(|(mut summary, _)| list(&mut summary, &node, &still))
                }
            };
            self.save(&id, listed.as_slice()).await;
            if still.is_empty() {
                self.forget_mentions(&id, &node).await;
            }
        }
    }

    /// Later deployments that found these traces on their node, and list them too, need not any more.
    async fn forget_mentions(&self, id: &DeploymentId, node: &str) {
        let mention = recover::mention(id);
        let mut corrected = Vec::new();
        for known in self.known().values_mut() {
            let nodes = known.summary.nodes.iter_mut().enumerate();
            for (index, (_, summary)) in nodes.filter(|(_, (address, _))| address == node) {
                let traces = &mut summary.outstanding_traces;
                if traces.iter().any(|trace| trace.ends_with(&mention)) {
                    traces.retain(|trace| !trace.ends_with(&mention));
                    corrected.push((known.summary.deployment.clone(), (index, summary.clone())));
                }
            }
        }
        for (id, node) in corrected {
            self.save(&id, &[node]).await;
        }
    }
}

fn place(left: &Left) -> At {
    (left.deployment.clone(), left.node.address.clone())
}

/// Lists what is still there; the node as it stands now, by its number.
fn list(summary: &mut Summary, node: &str, still: &[String]) -> Option<(usize, NodeSummary)> {
    let index = summary.nodes.iter().position(|(address, _)| address == node)?;
    let node = summary.node_mut(index)?;
    node.outstanding_traces = still.to_vec();
    Some((index, node.clone()))
}
