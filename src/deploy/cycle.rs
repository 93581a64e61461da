//! The cycle: everything done to one node, step by step, and everything taken back.
//!
//! Forward: connect, look, copy, start, open, join, inventory, plan, send, install, verify. Then always, whatever
//! happened: stop, remove, close, disconnect. Where a component is active only after a restart, the node is restarted
//! then, and all of that is gone once more for verifying and for what had to wait: one hop, and as many as it takes.
//! There is no commit. Each step that changes the node arms its undo first; the unwind takes back what was armed, also
//! the step that was never seen to finish. It must never interrupt a running flash: a cancel waits for it.

use std::time::Duration;

use crate::access::driver::NodeSession;
use crate::access::undo::{EntryId, Undo};
use crate::error::chain;
use crate::firmware::outcome::Outcome;
use crate::fleet::Node;
use crate::wire::id::ComponentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::{Reply, Request};

use super::before::Before;
use super::cancel::CANCELLED;
use super::error::{CycleError, on_node};
use super::event::{ComponentSummary, NodeResult, NodeSummary, State, Step};
use super::install;
use super::path::{Established, Interrupt, Path};
use super::resume::{Restarting, Resumed, Stage};
use super::run::Run;
use super::verify;

/// An engine that is told to stop says goodbye within this; if not, the unwind ends it.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// One node's way through a deployment.
pub struct Cycle<'a> {
    /// The deployment it belongs to.
    pub run: &'a Run,
    /// Its number in the fleet.
    pub index: usize,
    /// The node.
    pub node: &'a Node,
    pub(super) step: Step,
    pub(super) session: Option<Box<dyn NodeSession>>,
    /// What the unwind takes back.
    pub(super) armed: Vec<(EntryId, Undo)>,
    /// How control and payload travel, once known.
    pub(super) path: Option<(Path, String)>,
    /// What is known of before, where this goes on after its box died.
    pub(super) before: Before,
    /// The components, as far as they have come.
    pub components: Vec<ComponentSummary>,
    /// Those of them that were installed and not yet seen active after a restart.
    pub(super) fresh: Vec<ComponentId>,
    /// The node was told to restart, and is not back yet.
    pub(super) restarting: Option<Restarting>,
    /// The component whose installer was started last.
    pub(super) under_way: Option<ComponentId>,
    /// What the node is, once known.
    pub inventory: Option<Box<Inventory>>,
}

impl<'a> Cycle<'a> {
    /// A cycle that has not begun.
    pub fn new(run: &'a Run, index: usize, node: &'a Node) -> Self {
        Self {
            run,
            index,
            node,
            step: Step::Connect,
            session: None,
            armed: Vec::new(),
            path: None,
            before: Before::default(),
            components: Vec::new(),
            fresh: Vec::new(),
            restarting: None,
            under_way: None,
            inventory: None,
        }
    }

    /// The whole cycle. Returns when the node is as it was found, or when that could not be reached.
    pub async fn complete(mut self) -> (NodeSummary, Option<Box<Inventory>>) {
        let mut forward = self.steps().await;
        self.tell_end(&forward);
        let mut failed_at = self.step;
        let mut outstanding_traces = self.unwind().await;
        // Only a node without any trace of ours is restarted. Each hop installs something, so they come to an end.
        while forward.is_ok() && outstanding_traces.is_empty() && self.wants_reboot() {
            forward = self.reboot().await;
            self.tell_end(&forward);
            failed_at = self.step;
            outstanding_traces = self.unwind().await;
        }
        let (mut result, error) = match &forward {
            Ok(()) => (NodeResult::Done, None),
            Err(CycleError::Cancelled) => (NodeResult::Cancelled, None),
            Err(error) => (NodeResult::Failed, Some(on_node(&self.node.address, failed_at, error))),
        };
        let why = match &forward {
            Ok(()) => None,
            Err(CycleError::Cancelled) => Some(CANCELLED),
            Err(_) => Some("the node failed before"),
        };
        if let (Err(error), Some(id)) = (&forward, self.under_way.take()) {
            self.doubt(id, error);
        }
        let untold = self.before.untold(&self.components);
        self.components.extend(untold);
        install::fill_in(self.run, &mut self.components, why);
        if result == NodeResult::Done
            && self.components.iter().any(|component| component.outcome.is_failure())
        {
            result = NodeResult::Failed;
        }
        if result == NodeResult::Done && self.components.iter().any(|component| self.was_cancelled(component))
        {
            result = NodeResult::Cancelled;
        }
        let (path, path_why) = self.path.take().map(|(path, why)| (path.name().to_owned(), why)).unzip();
        let components = std::mem::take(&mut self.components);
        (NodeSummary { result, path, path_why, error, components, outstanding_traces }, self.inventory)
    }

    /// An installer was started and its end was not seen: it may have written anything, and may still.
    fn doubt(&mut self, id: ComponentId, error: &CycleError) {
        let is_told = self.components.iter().any(|component| component.id == id);
        // What the engine refused because of a cancel was never started.
        if !is_told && !matches!(error, CycleError::Cancelled) {
            let outcome =
                Outcome::Unverified(format!("lost sight of while it was installed: {}", chain(error)));
            self.components.push(ComponentSummary { id, from: None, to: None, outcome, log: None });
        }
    }

    /// This is how a component ended.
    pub(super) fn has_installed(&mut self, summary: ComponentSummary) {
        if summary.outcome.is_change() && !self.run.dry_run {
            self.fresh.push(summary.id.clone());
        }
        self.components.push(summary);
    }

    fn was_cancelled(&self, component: &ComponentSummary) -> bool {
        matches!(component.outcome, Outcome::Skipped(_)) && self.run.is_component_cancelled(&component.id)
    }

    /// Tells the world where this node is.
    pub fn tell(&self, state: State, message: Option<String>) {
        self.run.tell(&self.node.address, self.step, state, message);
    }

    /// Enters a step, unless the deployment was cancelled.
    pub fn enter(&mut self, step: Step) -> Result<(), CycleError> {
        if self.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        self.step = step;
        self.tell(State::Started, None);
        Ok(())
    }

    fn tell_end(&self, result: &Result<(), CycleError>) {
        match result {
            Err(CycleError::Cancelled) => self.tell(State::Failed, Some(CANCELLED.into())),
            Err(error) => self.tell(State::Failed, Some(on_node(&self.node.address, self.step, error))),
            Ok(()) => {}
        }
    }

    async fn steps(&mut self) -> Result<(), CycleError> {
        let established = match self.resume().await? {
            Resumed::Joined(established) => *established,
            // The box died while it took everything back, or while the node restarted: that goes on.
            Resumed::Worked => return Ok(()),
            Resumed::Anew => match self.establish().await {
                Ok(established) => established,
                Err(error) => {
                    self.doubt_restarted(&error);
                    return Err(error);
                }
            },
        };
        self.employ(established).await
    }

    /// One hop: all of the engine's work, and its end.
    pub(super) async fn employ(&mut self, mut established: Established) -> Result<(), CycleError> {
        let mut result = self.work(&mut established).await;
        // Also of what failed or was cancelled: the engine that knows it ends now.
        let stage = if result.is_ok() { Stage::Worked } else { Stage::Working };
        result = result.and(self.keep(Some(&established), stage).await);
        if result.is_ok() {
            self.before.hop_ended();
        }
        self.dismiss(established).await;
        result
    }

    /// The engine ends by itself when asked; the unwind then finds it gone. An engine that cannot be asked any more is
    /// ended by the unwind, so the answer is of no use here.
    pub(super) async fn dismiss(&self, mut established: Established) {
        let _ = tokio::time::timeout(GOODBYE_MAX, established.engine.request(Request::Stop)).await;
        // With one SSH session at a time, the unwind needs the one that control may be inside of.
        established.close().await;
    }

    /// What the engine is there for: what the node is, what is to be done, and doing it.
    async fn work(&mut self, established: &mut Established) -> Result<(), CycleError> {
        // What an earlier process had installed before a restart, not what is heard now.
        let restarted = std::mem::take(&mut self.fresh);
        install::hear_begun(self, established).await?;
        if !restarted.is_empty() {
            let heard = std::mem::replace(&mut self.fresh, restarted);
            if let Err(error) = self.read_again(established).await {
                self.doubt_restarted(&error);
                return Err(error);
            }
            self.fresh = heard;
        }
        if install::is_settled(self) {
            return Ok(());
        }
        self.enter(Step::Inventory)?;
        match self.ask(established, Request::Inventory, Interrupt::OnCancel).await? {
            Reply::Inventory(inventory) => self.inventory = Some(inventory),
            _ => return Err(CycleError::Protocol),
        }
        if verify::asks_fwupd(self.run) {
            verify::ask_fwupd(self, established, Interrupt::OnCancel).await?;
        }
        self.tell(State::Done, None);
        install::all(self, established).await
    }
}
