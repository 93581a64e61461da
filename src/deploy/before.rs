//! What was asked of a node before this moment, kept so that a box that dies asks for nothing twice.
//!
//! A version tells what is in place, not what an installer did: one that needs a restart changes no version, one that
//! failed may have changed half of it. So each installer is noted before it is asked for. As long as its engine runs,
//! the engine's word counts; once that is gone, an installer that was asked for is never asked for again in the same
//! deployment, and how it ended is told as far as it is known. A hop between two restarts ends with all of it told.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::firmware::component::Component;
use crate::firmware::outcome::Outcome;
use crate::wire::id::ComponentId;

use super::event::ComponentSummary;

/// What is known of a node from before.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Before {
    /// Versions before this hop installed anything.
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
}

impl Before {
    /// The plan: these are to be done, and this is what the node has of them.
    pub fn plan(&mut self, to_do: impl Iterator<Item = (ComponentId, Option<String>)>) {
        // What was asked for is no part of the plan any more, and its version before is still to be told.
        let (lost, asked) = (&self.lost, &self.asked);
        self.from.retain(|(id, _)| lost.contains(id) || asked.contains(id));
        self.from.extend(to_do);
    }

    /// An installer is asked for.
    pub fn ask(&mut self, id: &ComponentId) {
        self.asked.push(id.clone());
    }

    /// What is kept while an engine works: what this hop has asked for is taken out of what is done and fresh, since the
    /// engine knows better as long as it runs.
    pub fn kept(&self, done: &mut Vec<ComponentSummary>, fresh: &mut Vec<ComponentId>) -> Self {
        let here = |id: &ComponentId| self.was_asked(id);
        let ended = done.extract_if(.., |component| here(&component.id)).collect::<Vec<_>>();
        fresh.retain(|id| !here(id));
        let mut kept = self.clone();
        // What was known of lost ones stays until they are told again.
        kept.ended.retain(|old| !ended.iter().any(|new| new.id == old.id));
        kept.ended.extend(ended);
        kept
    }

    /// Everything that was asked for has been told.
    pub fn hop_ended(&mut self) {
        *self = Self::default();
    }

    /// The engine was joined again, and says which installers have begun.
    pub fn joined(&mut self, begun: Vec<ComponentId>) {
        self.begun = begun;
    }

    /// What is left to know when the engine is gone.
    pub fn without_engine(mut self) -> Self {
        self.lost.append(&mut self.asked);
        self.begun.clear();
        self
    }

    fn from(&self, id: &ComponentId) -> Option<String> {
        self.from.iter().find(|(other, _)| other == id)?.1.clone()
    }

    /// Whether a component's installer has begun; then also the version before it.
    pub fn begun(&self, id: &ComponentId) -> Option<Option<String>> {
        self.begun.contains(id).then(|| self.from(id))
    }

    /// Whether a component's installer was asked of an engine that is gone.
    pub fn is_lost(&self, id: &ComponentId) -> bool {
        self.lost.contains(id)
    }

    /// Whether a component's installer was asked for in this hop, or of an engine that is gone.
    pub fn was_asked(&self, id: &ComponentId) -> bool {
        self.asked.contains(id) || self.lost.contains(id)
    }

    /// How a component ended whose installer was asked of an engine that is gone; `active` is what the node has now.
    pub fn lost(&self, component: &Component, active: Option<&str>) -> Option<ComponentSummary> {
        let mut summary = self.told(&component.id)?;
        let is_it = |version: &str| component.order_of(version) == Some(Ordering::Equal);
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
                       could not be joined again";
            ComponentSummary::new(id, self.from(id), None, Outcome::Unverified(why.into()))
        }))
    }
}
