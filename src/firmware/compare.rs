//! What one baseline has that another has not: for whoever decides on the next one.

use serde::Serialize;

use super::baseline::Baseline;
use super::component::Component;
use crate::wire::id::ComponentId;

/// How a component differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, not alike.
    Changed,
}

/// A component that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The component.
    pub component: ComponentId,
    /// How.
    pub change: Change,
    /// Its version in the first.
    pub from: Option<String>,
    /// Its version in the second.
    pub to: Option<String>,
    /// What differs, by the manifest's names; `sha256` stands for the payload's content.
    pub fields: Vec<&'static str>,
}

/// Every difference, in the order of the second baseline; what only the first has comes last.
pub fn compare(first: &Baseline, second: &Baseline) -> Vec<Difference> {
    let of = |baseline: &Baseline, id: &ComponentId| {
        baseline.components.iter().find(|component| component.id == *id).cloned()
    };
    let version = |component: &Component| component.version.clone();
    let mut differences = Vec::new();
    for new in &second.components {
        let (change, from, fields) = match of(first, &new.id) {
            None => (Change::Added, None, Vec::new()),
            Some(old) => (Change::Changed, Some(version(&old)), fields(&old, new)),
        };
        if change == Change::Added || !fields.is_empty() {
            let to = Some(version(new));
            differences.push(Difference { component: new.id.clone(), change, from, to, fields });
        }
    }
    for old in first.components.iter().filter(|old| of(second, &old.id).is_none()) {
        let (component, from) = (old.id.clone(), Some(version(old)));
        differences.push(Difference {
            component,
            change: Change::Removed,
            from,
            to: None,
            fields: Vec::new(),
        });
    }
    differences
}

/// The fields in which two differ; a size follows from the content, a file's name means nothing.
fn fields(a: &Component, b: &Component) -> Vec<&'static str> {
    [
        ("version", a.version != b.version),
        ("version_format", a.version_format != b.version_format),
        ("sha256", a.sha256 != b.sha256),
        ("format", a.format != b.format),
        ("match", a.rules != b.rules),
        ("order", a.order != b.order),
        ("requires", a.requires != b.requires),
        ("conflicts", a.conflicts != b.conflicts),
        ("needs", a.needs != b.needs),
        ("only_if_installed", a.only_if_installed != b.only_if_installed),
        ("install", a.install != b.install),
        ("read_back", a.read_back != b.read_back),
        ("expected_s", a.expected_s != b.expected_s),
        ("title", a.title != b.title),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}
