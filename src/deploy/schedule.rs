//! Which node of a deployment begins when: one task hands them out in the order of [`Turns`], until each has its result.
//!
//! What becomes of a node is the cycle's business, how that is kept is `known`'s. A task that panics is that node's
//! failure, never the deployment's. It must never leave a node of a dead process alone that has begun: also cancelled, and
//! whatever has failed, it is taken up first, so that what runs there is heard to its end and everything is taken back.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::{Id, JoinSet};

use crate::error::explain;
use crate::fleet::Node;

use super::cancel::CANCELLED;
use super::cycle::Cycle;
use super::deployments::Deployments;
use super::event::{NodeResult, NodeSummary, State, Step};
use super::recover::{self, Left, Place, Swept};
use super::run::Run;
use super::turns::Turns;

/// The nodes of one deployment that are under way.
struct UnderWay {
    run: Run,
    nodes: Arc<[Node]>,
    /// What dead deployments left, by node.
    left: HashMap<Place, Vec<Left>>,
    /// Each says whether its node failed.
    tasks: JoinSet<bool>,
    indices: HashMap<Id, usize>,
}

impl UnderWay {
    /// A node begins, after what dead deployments left there is taken back. It has its result when its task ends.
    fn begin(&mut self, deployments: &Deployments, index: usize) {
        let (run, nodes) = (self.run.for_node(index), self.nodes.clone());
        let earlier = nodes.get(index).and_then(|node| self.left.remove(&recover::place(node)));
        let deployments = deployments.clone();
        let task = self.tasks.spawn(async move {
            let Some(node) = nodes.get(index) else { return true };
            let swept = recover::before(&run, node, earlier.unwrap_or_default()).await;
            deployments.correct(&swept).await;
            let (mut summary, inventory) = Cycle::new(&run, index, node).complete().await;
            summary.outstanding_traces.extend(swept.iter().filter_map(Swept::still_there));
            let failed = summary.result == NodeResult::Failed;
            if let Some(inventory) = inventory {
                deployments.found(&run.deployment, &node.address, *inventory);
            }
            // Here, not where the next one is handed out: of many that end at once the store writes all together.
            deployments.nodes_ended(&run, vec![(index, summary)]).await;
            failed
        });
        self.indices.insert(task.id(), index);
    }
}

impl Deployments {
    /// What dead deployments left, by node.
    async fn left_behind(&self) -> HashMap<Place, Vec<Left>> {
        let mut by_place: HashMap<Place, Vec<Left>> = HashMap::new();
        match recover::left(&self.0.store, |id, node| self.is_live(id, node)).await {
            Ok(left) => left.into_iter().for_each(|left| {
                by_place.entry(recover::place(&left.node)).or_default().push(left);
            }),
            // Whatever is wrong with the journal stops each node before its first change.
            Err(error) => tracing::error!("the journal: {}", explain(&error)),
        }
        by_place
    }

    /// Hands the nodes out as their turns come, until every one has its result.
    pub(super) async fn carry_out(&self, run: Run, nodes: Arc<[Node]>) {
        let mut turns = Turns::new(&nodes, &run.options);
        self.tell_ended(&run, &mut turns);
        let mut cancels = run.cancels.subscribe();
        let left = self.left_behind().await;
        let (tasks, indices) = (JoinSet::new(), HashMap::new());
        let mut under_way = UnderWay { run: run.clone(), nodes: nodes.clone(), left, tasks, indices };
        // Also where enough have failed for no new one to begin: these are not new.
        for index in self.begun(&run, &nodes).await {
            if turns.take(index) {
                under_way.begin(self, index);
            }
        }
        self.withdraw_cancelled(&run, &mut turns).await;
        loop {
            while !run.cancels.borrow().all()
                && let Some(index) = turns.hand_out()
            {
                under_way.begin(self, index);
            }
            let ended = tokio::select! {
                biased;
                Ok(()) = cancels.changed() => {
                    self.withdraw_cancelled(&run, &mut turns).await;
                    continue;
                }
                ended = under_way.tasks.join_next_with_id() => ended,
            };
            let (task, failed) = match ended {
                None => break,
                Some(Ok(ended)) => ended,
                Some(Err(error)) => {
                    if let Some(index) = under_way.indices.get(&error.id()) {
                        self.nodes_ended(&run, vec![(*index, broken())]).await;
                    }
                    (error.id(), true)
                }
            };
            if let Some(index) = under_way.indices.remove(&task) {
                turns.ended(index, failed);
            }
        }
        let why = match run.options.failures_max {
            _ if run.cancels.borrow().all() => CANCELLED.to_owned(),
            0 => "a node of an earlier wave failed".to_owned(),
            max => format!("{max} nodes failed before (failures_max)"),
        };
        self.skip(&run, turns.left(), &why).await;
        self.deployment_ended(&run.deployment).await;
    }

    /// Nodes that had their result before the box died keep it.
    fn tell_ended(&self, run: &Run, turns: &mut Turns) {
        let nodes = self.known().get(&run.deployment).map(|known| known.summary.nodes.clone());
        for (index, (address, node)) in nodes.unwrap_or_default().into_iter().enumerate() {
            if node.result != NodeResult::Running && turns.withdraw(index) {
                let state = if node.result == NodeResult::Done { State::Done } else { State::Failed };
                turns.ended(index, node.result == NodeResult::Failed);
                run.tell(&address, Step::Result, state, node.error);
            }
        }
    }

    /// Nodes that wait for their turn and are cancelled one by one never begin.
    async fn withdraw_cancelled(&self, run: &Run, turns: &mut Turns) {
        let cancelled: Vec<usize> = run.cancels.borrow().nodes().collect();
        let withdrawn = cancelled.into_iter().filter(|index| turns.withdraw(*index)).collect();
        self.skip(run, withdrawn, CANCELLED).await;
    }

    async fn skip(&self, run: &Run, indices: Vec<usize>, why: &str) {
        let skipped = NodeSummary { error: Some(why.to_owned()), ..NodeSummary::new(NodeResult::Skipped) };
        self.nodes_ended(run, indices.into_iter().map(|index| (index, skipped.clone())).collect()).await;
    }
}

/// A node whose task panicked. Its traces are in the journal and are swept by the next recovery.
fn broken() -> NodeSummary {
    NodeSummary {
        error: Some("BUG: this node's task ended without a result; please report it with the log".into()),
        outstanding_traces: vec!["whatever the journal lists; run carena sweep".into()],
        ..NodeSummary::new(NodeResult::Failed)
    }
}
