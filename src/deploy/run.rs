//! One deployment under way: what all its nodes share.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cache::Payloads;
use crate::firmware::baseline::Baseline;
use crate::fleet::Options;
use crate::https::{Registration, Registry};
use crate::wire::id::{ComponentId, DeploymentId};

use super::authority::Authority;
use super::error::CycleError;
use super::event::{Bytes, Event, State, Step};
use super::events::EventLog;
use super::store::Store;

/// What all nodes of a deployment share.
pub struct Run {
    /// Its id.
    pub deployment: DeploymentId,
    /// Where its undo values go.
    pub store: Store,
    /// Where its events go.
    pub events: Arc<EventLog>,
    /// What is brought.
    pub baseline: Arc<Baseline>,
    /// Its bytes.
    pub payloads: Payloads,
    /// How.
    pub options: Options,
    /// Nothing is installed, only planned.
    pub dry_run: bool,
    /// The box's HTTPS server.
    pub registry: Registry,
    /// Its port.
    pub https_port: u16,
    /// Becomes true when the operator cancels.
    pub cancel: watch::Sender<bool>,
}

impl Run {
    /// Whether the operator has cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancel.borrow()
    }

    /// Returns when the operator has cancelled.
    pub async fn cancelled(&self) {
        let mut cancel = self.cancel.subscribe();
        if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
            // The sender is ours and lives as long as we do; were it gone, nobody could cancel any more.
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

    /// Lets the engine with these certificates, and nobody else, fetch this deployment's payloads.
    pub fn serve_payloads(&self, authority: &Authority) -> Registration {
        self.registry.add(&authority.box_name, authority.server.clone(), self.payloads.router())
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
        bytes: Option<Bytes>,
        message: Option<String>,
    ) {
        self.publish(node, step, State::Progress, Some(component.clone()), bytes, message);
    }

    fn publish(
        &self,
        node: &str,
        step: Step,
        state: State,
        component: Option<ComponentId>,
        bytes: Option<Bytes>,
        message: Option<String>,
    ) {
        match state {
            State::Failed => tracing::warn!(deployment = %self.deployment, node, step = step.name(), message),
            _ => tracing::info!(deployment = %self.deployment, node, step = step.name(), ?state, message),
        }
        self.events.publish(Event {
            sequence: 0,
            time: crate::clock::now_rfc3339(),
            deployment: self.deployment.clone(),
            node: node.to_owned(),
            step,
            state,
            component,
            bytes,
            message,
        });
    }
}
