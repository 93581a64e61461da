//! What was asked of a node before this moment, kept so that a box that dies asks for nothing twice.
//!
//! A version tells what is in place, not what an installer did: one that needs a restart changes no version, one that
//! failed may have changed half of it. So each installer is noted before it is asked for. As long as its engine runs,
//! the engine's word counts; once that is gone, an installer that was asked for is never asked for again in the same
//! deployment, and how it ended is told as far as it is known. The same goes for the restart of a node.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::firmware::component::Component;
use crate::firmware::outcome::Outcome;
use crate::firmware::version;
use crate::wire::id::ComponentId;

use super::event::ComponentSummary;

/// What is known of a node from before.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Before {
    /// Versions before anything was installed.
    from: Vec<(ComponentId, Option<String>)>,
    /// Components whose installer has begun, by the word of the engine that was joined again.
    #[serde(skip)]
    begun: Vec<ComponentId>,
    /// Components whose installer the engine that runs was asked for.
    asked: Vec<ComponentId>,
    /// The same of engines that are gone.
    lost: Vec<ComponentId>,
    /// How those of both have ended that have.
    ended: Vec<ComponentSummary>,
    /// The boot that the node was to be restarted from, once that was asked for.
    pub restart: Option<String>,
}

impl Before {
    /// The plan: these are to be done, and this is what the node has of them.
    pub fn plan(&mut self, to_do: impl Iterator<Item = (ComponentId, Option<String>)>) {
        let lost = &self.lost;
        self.from.retain(|(id, _)| lost.contains(id));
        self.from.extend(to_do);
    }

    /// An installer is asked for.
    pub fn ask(&mut self, id: &ComponentId) {
        self.asked.push(id.clone());
    }

    /// This is how components have ended so far.
    pub fn note(&mut self, done: &[ComponentSummary]) {
        let installed = |id: &ComponentId| self.asked.contains(id) || self.lost.contains(id);
        self.ended = done.iter().filter(|component| installed(&component.id)).cloned().collect();
    }

    /// The engine was joined again, and says which installers have begun.
    pub fn joined(&mut self, begun: Vec<ComponentId>) {
        self.begun = begun;
    }

    /// The engine is gone, and with it whatever only it knew.
    pub fn engine_gone(&mut self) {
        self.lost.append(&mut self.asked);
        self.begun.clear();
    }

    fn from(&self, id: &ComponentId) -> Option<String> {
        self.from.iter().find(|(other, _)| other == id)?.1.clone()
    }

    /// Whether a component's installer has begun; then also the version before it.
    pub fn begun(&self, id: &ComponentId) -> Option<Option<String>> {
        self.begun.contains(id).then(|| self.from(id))
    }

    /// How a component ended whose installer was asked of an engine that is gone; `active` is what the node has now.
    pub fn lost(&self, component: &Component, active: Option<&str>) -> Option<ComponentSummary> {
        let mut summary = self.told(&component.id)?;
        let is_it = |version: &str| version::compare(version, &component.version) == Ordering::Equal;
        let is_there = active.is_some_and(is_it);
        // A version that was there before proves nothing.
        let has_come = is_there && !summary.from.as_deref().is_some_and(is_it);
        summary.outcome = match summary.outcome {
            Outcome::UpdatedRebootNeeded | Outcome::Unverified(_) if has_come => Outcome::Updated,
            Outcome::Updated if !is_there => {
                let active = active.unwrap_or("no version");
                Outcome::Unverified(format!("it was updated, but {active} is read back now"))
            }
            other => other,
        };
        summary.to = active.map(ToOwned::to_owned);
        Some(summary)
    }

    /// What was lost and is not among `told`, for a node that nobody looks at any more.
    pub fn untold(&self, told: &[ComponentSummary]) -> Vec<ComponentSummary> {
        let untold = self.lost.iter().filter(|id| !told.iter().any(|other| other.id == **id));
        untold.filter_map(|id| self.told(id)).collect()
    }

    fn told(&self, id: &ComponentId) -> Option<ComponentSummary> {
        if !self.lost.contains(id) {
            return None;
        }
        let known = self.ended.iter().find(|other| other.id == *id).cloned();
        Some(known.unwrap_or_else(|| {
            let why = "the box died after its installer was asked for, and the engine that would know how it ended \
                       is gone";
            ComponentSummary::new(id, self.from(id), None, Outcome::Unverified(why.into()))
        }))
    }
}
