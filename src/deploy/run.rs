//! One deployment under way, as one of its nodes sees it: what all share, and what is cancelled for this one.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::access::driver::{Driver, NodeSession};
use crate::cache::Payloads;
use crate::firmware::baseline::Baseline;
use crate::fleet::{Node, Options};
use crate::https::{Registration, Registry};
use crate::wire::id::{ComponentId, DeploymentId};

use super::authority::Authority;
use super::cancel::Cancels;
use super::error::CycleError;
use super::event::{Event, HowFar, State, Step};
use super::events::EventLog;
use super::store::Store;
use super::unwind;
use super::vault::Vault;

/// A deployment as one of its nodes sees it. Cloning shares everything.
#[derive(Clone)]
pub struct Run {
    /// Its id.
    pub deployment: DeploymentId,
    /// How its nodes are reached.
    pub driver: Arc<dyn Driver>,
    /// Where its undo values go.
    pub store: Store,
    /// Where its events go.
    pub events: Arc<EventLog>,
    /// What is brought.
    pub baseline: Arc<Baseline>,
    /// What has to be told of the baseline on every node: that nobody who is trusted has signed it.
    pub warning: Option<Arc<str>>,
    /// Its bytes.
    pub payloads: Payloads,
    /// How.
    pub options: Arc<Options>,
    /// Nothing is installed, only planned.
    pub dry_run: bool,
    /// The box's HTTPS server.
    pub registry: Registry,
    /// Its port.
    pub https_port: u16,
    /// The node's number in the fleet.
    pub index: usize,
    /// What seals what is kept of running engines; none on a box that keeps nothing.
    pub vault: Option<Arc<Vault>>,
    /// It goes on where a dead process of this box left it.
    pub resumed: bool,
    /// What the operator cancels, of the whole deployment.
    pub cancels: watch::Sender<Cancels>,
}

impl Run {
    /// The same deployment, seen by another node.
    pub fn for_node(&self, index: usize) -> Self {
        Self { index, ..self.clone() }
    }

    /// The same, for what must be done whether the operator has cancelled or not.
    pub fn uncancelled(&self) -> Self {
        Self { cancels: watch::Sender::new(Cancels::default()), ..self.clone() }
    }

    /// Whether the operator has cancelled this node, or everything.
    pub fn is_cancelled(&self) -> bool {
        self.cancels.borrow().node(self.index)
    }

    /// Whether the operator has cancelled this component on this node.
    pub fn is_component_cancelled(&self, component: &ComponentId) -> bool {
        self.cancels.borrow().component(self.index, component)
    }

    /// Returns when the operator has cancelled this node, or everything.
    pub async fn cancelled(&self) {
        let mut cancels = self.cancels.subscribe();
        if cancels.wait_for(|cancels| cancels.node(self.index)).await.is_err() {
            // The sender is ours and lives as long as we do; were it gone, nobody could cancel any more.
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the operator has cancelled this component on this node.
    pub async fn component_cancelled(&self, component: &ComponentId) {
        let mut cancels = self.cancels.subscribe();
        if cancels.wait_for(|cancels| cancels.component(self.index, component)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// `work`, given up when the operator cancels. For work that changes nothing on a node.
    ///
    /// # Errors
    /// [`CycleError::Cancelled`].
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, CycleError> {
        tokio::select! {
            result = work => Ok(result),
            () = self.cancelled() => Err(CycleError::Cancelled),
        }
    }

    /// Connects to a node, and pins what it proves itself with at the first visit.
    ///
    /// # Errors
    /// [`CycleError`].
    pub async fn connect(&self, node: &Node) -> Result<Box<dyn NodeSession>, CycleError> {
        unwind::connect(&*self.driver, &self.store, node).await
    }

    /// Lets the engine with these certificates, and nobody else, fetch this deployment's payloads; `node` may come to the
    /// box's port from now on.
    pub async fn serve_payloads(&self, authority: &Authority, node: SocketAddr) -> Registration {
        let (name, tls) = (&authority.kept.box_name, authority.server.clone());
        self.registry.add(name, tls, self.payloads.router()).for_node(node, self.deployment.as_str()).await
    }

    /// Tells where a node is.
    pub fn tell(&self, node: &str, step: Step, state: State, message: Option<String>) {
        self.publish(node, step, state, None, None, message);
    }

    /// Tells how far a component is.
    pub fn tell_component(
        &self,
        node: &str,
        step: Step,
        component: &ComponentId,
        far: Option<HowFar>,
        message: Option<String>,
    ) {
        self.publish(node, step, State::Progress, Some(component.clone()), far, message);
    }

    fn publish(
        &self,
        node: &str,
        step: Step,
        state: State,
        component: Option<ComponentId>,
        far: Option<HowFar>,
        message: Option<String>,
    ) {
        match state {
            State::Failed => tracing::warn!(deployment = %self.deployment, node, step = step.name(), message),
            _ => tracing::info!(deployment = %self.deployment, node, step = step.name(), ?state, message),
        }
        let event = Event::new(&self.deployment, node, step, state);
        let (bytes, percent) = match far {
            Some(HowFar::Bytes(bytes)) => (Some(bytes), None),
            Some(HowFar::Percent(percent)) => (None, Some(percent)),
            None => (None, None),
        };
        self.events.publish(Event { component, bytes, percent, message, ..event });
    }
}
