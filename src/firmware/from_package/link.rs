//! What packages say of each other becomes requirements and conflicts of one baseline.
//!
//! A version that another package needs first (1.40 before 2.x) is a prerequisite, where the baseline brings one; the plan
//! makes hops of it. Where it brings none, the version must be there already. An older version of the same thing that
//! nothing needs is left out: nobody wants it written first.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Made, component_id};
use crate::firmware::component::Component;
use crate::firmware::formats::metadata::Requirement;
use crate::firmware::rules::Need;
use crate::wire::id::ComponentId;

/// A package that is in no baseline, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The component it would have been.
    pub id: ComponentId,
    /// In words.
    pub why: String,
}

/// Components as they stand in one baseline, and those that do not.
pub fn link(mut made: Vec<Made>) -> (Vec<Component>, Vec<LeftOut>) {
    tell_apart(&mut made);
    let all = made.clone();
    for one in &mut made {
        for ask in &one.asks {
            require(&mut one.component, &one.offers, ask, &all);
        }
        for avoid in &one.avoids {
            let others = all.iter().filter(|other| other.component.id != one.component.id);
            let met = others.filter(|other| offers(other, avoid) && holds(&other.component, avoid));
            one.component.conflicts.extend(met.map(|other| other.component.id.clone()));
        }
    }
    break_circles(&mut made);
    let mut left_out = Vec::new();
    while let Some((index, why)) = superseded(&made) {
        let id = made.remove(index).component.id;
        made.iter_mut().for_each(|other| other.component.conflicts.retain(|conflict| *conflict != id));
        left_out.push(LeftOut { id, why });
    }
    (made.into_iter().map(|one| one.component).collect(), left_out)
}

/// Two files of one name, as two versions of a package in two directories, get names of their own.
fn tell_apart(made: &mut [Made]) {
    let mut taken: BTreeSet<ComponentId> = BTreeSet::new();
    for one in made {
        let component = &mut one.component;
        let base = component.id.clone();
        let candidates = std::iter::once(base.to_string())
            .chain(std::iter::once(format!("{base}-{}", component.version)))
            .chain((2_u32..).map(|number| format!("{base}-{number}")));
        let mut free = candidates.filter_map(|name| component_id(&name)).filter(|id| !taken.contains(id));
        if let Some(id) = free.next() {
            component.id = id;
        }
        taken.insert(component.id.clone());
    }
}

fn offers(made: &Made, asked: &Requirement) -> bool {
    asked.subject.as_ref().is_some_and(|subject| made.offers.contains(subject))
}

/// Whether a component's version is what is asked for.
fn holds(component: &Component, asked: &Requirement) -> bool {
    let (Some(compare), Some(version)) = (&asked.compare, &asked.version) else { return true };
    let Some(order) = component.version_format.compare(&component.version, version) else { return false };
    match compare.as_str() {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "eq" => order.is_eq(),
        "ge" => order.is_ge(),
        "gt" => order.is_gt(),
        "ne" => order.is_ne(),
        _ => false,
    }
}

/// Of those that will do, the oldest: the shortest way that the maker allows.
fn require(component: &mut Component, own: &[String], ask: &Requirement, all: &[Made]) {
    let is_own = ask.subject.as_ref().is_some_and(|subject| own.contains(subject));
    let is_before = |other: &Component| component.order_of(&other.version) == Some(Ordering::Less);
    let mut found: Option<&Component> = None;
    for other in all.iter().filter(|other| offers(other, ask)).map(|other| &other.component) {
        let fits = other.id != component.id && holds(other, ask) && (!is_own || is_before(other));
        let is_older = |than: &Component| than.order_of(&other.version) == Some(Ordering::Less);
        if fits && found.is_none_or(is_older) {
            found = Some(other);
        }
    }
    match found {
        Some(other) if !component.requires.contains(&other.id) => component.requires.push(other.id.clone()),
        Some(_) => {}
        None if is_own && !component.read_back.is_none() && ask.compare.as_deref() == Some("ge") => {
            component.needs.push(Need {
                version_of: component.read_back.clone(),
                version_format: component.version_format,
                at_least: ask.version.clone(),
                after: None,
                at_most: None,
                before: None,
                exactly: None,
                not: Vec::new(),
            });
        }
        // Of something else, which only its installer can look for: it refuses where it is missing.
        None => {}
    }
}

/// Packages may need each other, for which their tool has ways; an order there is none.
fn break_circles(made: &mut [Made]) {
    for index in 0..made.len() {
        let wanted = made.get(index).map(|one| one.component.requires.clone()).unwrap_or_default();
        for id in wanted {
            let Some(own) = made.get(index).map(|one| one.component.id.clone()) else { continue };
            if reaches(made, &id, &own)
                && let Some(one) = made.get_mut(index)
            {
                one.component.requires.retain(|other| *other != id);
            }
        }
    }
}

/// Whether `from` requires `to`, by whatever way.
fn reaches(made: &[Made], from: &ComponentId, to: &ComponentId) -> bool {
    let (mut seen, mut edge) = (BTreeSet::new(), vec![from.clone()]);
    while let Some(id) = edge.pop() {
        if id == *to {
            return true;
        }
        if seen.insert(id.clone()) {
            let found = made.iter().find(|one| one.component.id == id);
            edge.extend(found.into_iter().flat_map(|one| one.component.requires.iter().cloned()));
        }
    }
    false
}

/// The first that a newer version of the same thing makes needless.
fn superseded(made: &[Made]) -> Option<(usize, String)> {
    made.iter().enumerate().find_map(|(index, one)| {
        let (component, id) = (&one.component, &one.component.id);
        if made.iter().any(|other| other.component.requires.contains(id)) {
            return None;
        }
        let is_same = |other: &&Made| {
            other.component.format == component.format
                && other.component.rules == component.rules
                && other.offers.iter().any(|offer| one.offers.contains(offer))
        };
        let is_newer =
            |other: &&Made| component.order_of(&other.component.version) == Some(Ordering::Greater);
        let newer = made.iter().filter(is_same).find(is_newer)?;
        let (newer, version) = (&newer.component.id, &newer.component.version);
        Some((index, format!("{newer} brings {version}, which is newer than {}", component.version)))
    })
}
