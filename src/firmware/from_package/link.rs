//! What packages say of each other becomes requirements and conflicts of one baseline.
//!
//! A version that another package needs first (1.40 before 2.x) is a prerequisite, where the baseline brings one; the plan
//! makes hops of it. Where it brings none that is for the same machines, the version must be there already. An older version
//! of the same thing that nothing needs is left out: nobody wants it written first.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::coverage::{covers, narrow};
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
    divide(&mut made);
    older_first(&mut made);
    (made.into_iter().map(|one| one.component).collect(), left_out)
}

/// Where a newer version of the same thing is for some of the machines only, those are not the older one's any more.
fn divide(made: &mut [Made]) {
    let all = made.to_vec();
    let is_required = |id: &ComponentId| all.iter().any(|other| other.component.requires.contains(id));
    for one in made.iter_mut().filter(|one| !is_required(&one.component.id)) {
        let is_newer = |other: &&Made| {
            let order = one.component.order_of(&other.component.version);
            order == Some(Ordering::Greater) && is_version_of(other, one) && !is_step_of(one, other)
        };
        let newer: Vec<_> = all.iter().filter(is_newer).map(|other| other.component.rules.clone()).collect();
        for rules in newer {
            narrow(&mut one.component.rules, &rules);
        }
    }
}

/// Whether two packages are versions of one thing, as far as names tell.
fn is_version_of(other: &Made, one: &Made) -> bool {
    other.component.format == one.component.format
        && other.offers.iter().any(|offer| one.offers.contains(offer))
}

/// Whether the newer one asks for the older one, which is for some of its machines only and so is not required.
fn is_step_of(older: &Made, newer: &Made) -> bool {
    let is_asked = |ask: &Requirement| offers(older, ask) && holds(&older.component, ask);
    newer.asks.iter().any(is_asked) && !covers(&older.component.rules, &newer.component.rules)
}

/// What is left that could be for one machine: the older version never comes after the newer one, which may only be
/// staged and not yet be read back.
fn older_first(made: &mut [Made]) {
    for first in 0..made.len() {
        for second in first + 1..made.len() {
            let is_wrong = made.get(first).zip(made.get(second)).is_some_and(|(one, other)| {
                let order = other.component.order_of(&one.component.version);
                is_version_of(other, one) && order == Some(Ordering::Greater)
            });
            if is_wrong {
                made.swap(first, second);
            }
        }
    }
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

/// Of those that will do, the oldest: the shortest way that the maker allows. One that is not for every machine would keep
/// the others waiting for what never comes to them.
fn require(component: &mut Component, own: &[String], ask: &Requirement, all: &[Made]) {
    let is_own = ask.subject.as_ref().is_some_and(|subject| own.contains(subject));
    let is_before = |other: &Component| component.order_of(&other.version) == Some(Ordering::Less);
    let mut found: Option<&Component> = None;
    for other in all.iter().filter(|other| offers(other, ask)).map(|other| &other.component) {
        let is_everywhere = covers(&other.rules, &component.rules);
        let fits =
            other.id != component.id && is_everywhere && holds(other, ask) && (!is_own || is_before(other));
        let is_older = |than: &Component| than.order_of(&other.version) == Some(Ordering::Less);
        if fits && found.is_none_or(is_older) {
            found = Some(other);
        }
    }
    match found {
        Some(other) if !component.requires.contains(&other.id) => component.requires.push(other.id.clone()),
        Some(_) => {}
        None if is_own && !component.read_back.is_none() && ask.compare.as_deref() == Some("ge") => {
            let need = Need::of(component.read_back.clone(), component.version_format);
            component.needs.push(Need { at_least: ask.version.clone(), ..need });
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
            covers(&other.component.rules, &component.rules)
                && is_version_of(other, one)
                && !is_step_of(one, other)
        };
        let is_newer =
            |other: &&Made| component.order_of(&other.component.version) == Some(Ordering::Greater);
        let newer = made.iter().filter(is_same).find(is_newer)?;
        let (newer, version) = (&newer.component.id, &newer.component.version);
        Some((index, format!("{newer} brings {version}, which is newer than {}", component.version)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::Baseline;

    /// A BIOS package as Dell's are: all of them are component 159.
    fn bios(id: &str, version: &str, systems: &[&str], first: Option<&str>) -> Made {
        let text = format!(
            "id = \"x\"\nversion = \"1\"\ntitle = \"t\"\n[[component]]\nid = \"{id}\"\ntitle = \"BIOS\"\n\
             version = \"{version}\"\nversion_format = \"dell\"\nformat = \"dell-dup\"\npayload = \"{id}.BIN\"\n\
             sha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\nread_back = \"bios\"\nmatch = {{ dell_system = {systems:?} }}\n",
            0
        );
        let component = Baseline::parse(&text, "x").unwrap().components.remove(0);
        let ask = |version: &str| Requirement {
            kind: "component".into(),
            subject: Some("159".into()),
            compare: Some("ge".into()),
            version: Some(version.into()),
            ..Requirement::default()
        };
        let asks = first.into_iter().map(ask).collect();
        Made { offers: vec!["159".into()], asks, ..Made::alone(component) }
    }

    fn linked(made: Vec<Made>) -> (Vec<Component>, Vec<String>) {
        let (components, left_out) = link(made);
        (components, left_out.into_iter().map(|one| one.id.to_string()).collect())
    }

    const R730: &str = "0627 R730";
    const R740: &str = "0715 R740";

    #[test]
    fn a_prerequisite_is_of_the_same_machine_or_must_be_there_already() {
        let other = bios("other", "2.5.0", &[R740], None);
        let (components, left_out) =
            linked(vec![other.clone(), bios("new", "2.10.0", &[R730], Some("2.4.0"))]);
        assert!(left_out.is_empty(), "{left_out:?}");
        let new = components.iter().find(|one| one.id.as_str() == "new").unwrap();
        assert!(new.requires.is_empty(), "{:?}", new.requires);
        assert_eq!(new.needs[0].at_least.as_deref(), Some("2.4.0"));
        // One that is for these machines and others.
        let both = bios("both", "2.6.0", &[R730, R740], None);
        let (components, _) = linked(vec![other, both, bios("new", "2.10.0", &[R730], Some("2.4.0"))]);
        let new = components.iter().find(|one| one.id.as_str() == "new").unwrap();
        assert_eq!(new.requires, ["both".parse().unwrap()]);
        assert!(new.needs.is_empty());
    }

    #[test]
    fn an_older_version_is_left_out_where_a_newer_one_is_for_all_of_its_machines() {
        let made = vec![bios("new", "2.10.0", &[R730, R740], None), bios("old", "2.5.0", &[R730], None)];
        let (components, left_out) = linked(made);
        assert_eq!((components.len(), left_out), (1, vec!["old".to_owned()]));
        let made = vec![bios("one", "2.10.0", &[R740], None), bios("two", "2.5.0", &[R730], None)];
        assert_eq!(linked(made).0.len(), 2, "of two machines");
    }

    #[test]
    fn an_older_version_keeps_only_the_machines_that_the_newer_one_is_not_for() {
        let made = vec![bios("new", "2.10.0", &[R740], None), bios("old", "2.5.0", &[R730, R740], None)];
        let (components, left_out) = linked(made);
        assert!(left_out.is_empty());
        let systems = |id: &str| {
            let one = components.iter().find(|one| one.id.as_str() == id).unwrap();
            one.rules.dell_system.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!((systems("old"), systems("new")), (vec![R730.to_owned()], vec![R740.to_owned()]));
    }

    #[test]
    fn a_step_for_some_machines_stays_and_comes_before_the_newer_version() {
        let made =
            vec![bios("new", "2.10.0", &[R730, R740], Some("2.4.0")), bios("step", "2.5.0", &[R730], None)];
        let (components, left_out) = linked(made);
        assert!(left_out.is_empty());
        let ids: Vec<&str> = components.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["step", "new"]);
        assert_eq!(components[1].needs[0].at_least.as_deref(), Some("2.4.0"));
    }
}
