//! A named set of components at versions, read from its `baseline.toml`.
//!
//! Unknown fields are refused with file and line; nothing is guessed about what goes onto a server.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use serde::{Deserialize, Serialize};

use super::component::{Component, Format};
use super::installed::VersionSource;
use crate::error::Hinted;
use crate::wire::id::{BaselineId, ComponentId};

/// The manifest's file name.
pub const MANIFEST: &str = "baseline.toml";

/// Most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Its name.
    pub id: BaselineId,
    /// Its version.
    pub version: String,
    /// For people.
    pub title: String,
    /// Its components, in the order of installation.
    #[serde(rename = "component", default)]
    pub components: Vec<Component>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {why}")]
pub struct BaselineError {
    /// File and line.
    pub place: String,
    /// What is wrong.
    pub why: String,
}

impl Hinted for BaselineError {
    fn hint(&self) -> Option<String> {
        Some("correct the baseline and start again; no node was touched".into())
    }
}

impl Baseline {
    /// Reads a manifest; `name` stands for the file in errors.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub fn parse(text: &str, name: &str) -> Result<Self, BaselineError> {
        let mut baseline: Self = toml::from_str(text).map_err(|error| {
            let line =
                error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            BaselineError { place: format!("{name}:{line}"), why: error.message().to_owned() }
        })?;
        baseline.check().map_err(|why| BaselineError { place: name.to_owned(), why })?;
        baseline.make_conflicts_mutual();
        baseline.sort().map_err(|why| BaselineError { place: name.to_owned(), why })?;
        Ok(baseline)
    }

    fn check(&self) -> Result<(), String> {
        if self.components.is_empty() {
            return Err("it has no component".into());
        }
        let mut ids = BTreeSet::new();
        for component in &self.components {
            let id = &component.id;
            if !ids.insert(id) {
                return Err(format!("component {id} stands twice"));
            }
            let payload = &component.payload;
            if payload.is_empty() || payload.starts_with('.') || payload.contains(['/', '\0']) {
                return Err(format!("component {id}: payload \"{payload}\" is not a plain file name"));
            }
            if component.size == 0 {
                return Err(format!("component {id}: size is 0"));
            }
            let command = component.install.as_ref().map(|install| &install.command);
            match component.format {
                Format::Plain if command.is_none_or(Vec::is_empty) => {
                    return Err(format!("component {id}: it has no install command"));
                }
                Format::LvfsCab if command.is_some() => {
                    return Err(format!("component {id}: fwupd installs it, not a command"));
                }
                Format::LvfsCab if component.rules.fwupd_guid.is_empty() => {
                    return Err(format!("component {id}: match names no fwupd_guid"));
                }
                Format::Nvme if command.is_some() => {
                    return Err(format!("component {id}: the engine installs it, not a command"));
                }
                Format::Nvme if !matches!(component.read_back, VersionSource::Disk(_)) => {
                    return Err(format!("component {id}: read_back names no disk model"));
                }
                _ if command.is_some_and(Vec::is_empty) => {
                    return Err(format!("component {id}: its install command is empty"));
                }
                _ => {}
            }
            if component.version.trim().is_empty() {
                return Err(format!("component {id}: the version is empty"));
            }
            if !component.version_format.accepts(&component.version) {
                let (version, format) = (&component.version, component.version_format);
                return Err(format!("component {id}: \"{version}\" is not a {format} version"));
            }
        }
        for component in &self.components {
            if let Some(other) = component.conflicts.iter().find(|other| !ids.contains(other)) {
                let id = &component.id;
                return Err(format!("component {id}: it conflicts with {other}, which is not there"));
            }
        }
        Ok(())
    }

    /// Two that conflict keep each other away, whichever comes first and whichever says so.
    fn make_conflicts_mutual(&mut self) {
        let mut said: BTreeMap<ComponentId, Vec<ComponentId>> = BTreeMap::new();
        for component in &self.components {
            for other in &component.conflicts {
                said.entry(other.clone()).or_default().push(component.id.clone());
            }
        }
        for component in &mut self.components {
            let mut known: BTreeSet<_> = component.conflicts.iter().cloned().collect();
            let told = said.remove(&component.id).unwrap_or_default();
            component.conflicts.extend(told.into_iter().filter(|by| known.insert(by.clone())));
        }
    }

    /// By `order`, then as written; what is required comes before what requires it. A manifest is sorted before its
    /// signature is judged, so its maker must not be able to keep the box busy: the time is that of a sort.
    fn sort(&mut self) -> Result<(), String> {
        self.components.sort_by_key(|component| component.order);
        let mut awaited: BTreeMap<ComponentId, Vec<usize>> = BTreeMap::new();
        let mut missing = Vec::with_capacity(self.components.len());
        for (index, component) in self.components.iter().enumerate() {
            let requires: BTreeSet<_> = component.requires.iter().collect();
            missing.push(requires.len());
            requires.into_iter().for_each(|id| awaited.entry(id.clone()).or_default().push(index));
        }
        let free = missing.iter().enumerate().filter(|(_, count)| **count == 0);
        let mut ready: BinaryHeap<_> = free.map(|(index, _)| Reverse(index)).collect();
        let mut left: Vec<_> = std::mem::take(&mut self.components).into_iter().map(Some).collect();
        while let Some(Reverse(index)) = ready.pop() {
            let Some(component) = left.get_mut(index).and_then(Option::take) else { continue };
            for waiting in awaited.remove(&component.id).unwrap_or_default() {
                let Some(count) = missing.get_mut(waiting) else { continue };
                *count -= 1;
                if *count == 0 {
                    ready.push(Reverse(waiting));
                }
            }
            self.components.push(component);
        }
        let stuck: Vec<_> = left.into_iter().flatten().map(|component| component.id.to_string()).collect();
        if stuck.is_empty() {
            return Ok(());
        }
        Err(format!("requirements of {} cannot be met: unknown or circular", stuck.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(extra: &str, second: &str) -> String {
        let component = |id: &str, extra: &str| {
            format!(
                "[[component]]\nid = \"{id}\"\ntitle = \"x\"\nversion = \"1\"\nformat = \"plain\"\npayload = \"p\"\n\
                 sha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\n{extra}\ninstall = {{ command = [\"true\"] }}\n\
                 read_back = {{ file = \"/x\" }}\n",
                0
            )
        };
        format!(
            "id = \"b\"\nversion = \"1\"\ntitle = \"t\"\n{}{}",
            component("one", extra),
            component("two", second)
        )
    }

    #[test]
    fn what_is_required_comes_first() {
        let baseline = Baseline::parse(&manifest("requires = [\"two\"]", ""), "b").unwrap();
        assert_eq!(baseline.components.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["two", "one"]);
    }

    /// Each requires the one after it, so only the last can be placed, then the one before it, and so on.
    #[test]
    fn the_longest_chain_that_fits_a_manifest_is_sorted_at_once() {
        let count = 13_000;
        let mut text = "id = \"b\"\nversion = \"1\"\ntitle = \"t\"\n".to_owned();
        for index in 0..count {
            let next = if index + 1 < count { format!("\"c{}\"", index + 1) } else { String::new() };
            text.push_str(&format!(
                "[[component]]\nid = \"c{index}\"\ntitle = \"\"\nversion = \"1\"\nformat = \"plain\"\n\
                 payload = \"p\"\nsha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\nrequires = [{next}]\n\
                 install = {{ command = [\"x\"] }}\nread_back = {{ file = \"/x\" }}\n",
                0
            ));
        }
        assert!(text.len() as u64 <= MANIFEST_BYTES_MAX, "{}", text.len());
        // Each looked for one by one, this would not end before the suite's own bound.
        let sorted = Baseline::parse(&text, "b").unwrap();
        let ids: Vec<_> = sorted.components.iter().map(|one| one.id.to_string()).collect();
        assert_eq!(ids, (0..count).rev().map(|index| format!("c{index}")).collect::<Vec<_>>());
    }

    #[test]
    fn what_nothing_holds_back_stays_as_written() {
        let baseline = Baseline::parse(&manifest("order = 2", "order = 1"), "b").unwrap();
        assert_eq!(baseline.components.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["two", "one"]);
        let baseline = Baseline::parse(&manifest("", "requires = [\"one\", \"one\"]"), "b").unwrap();
        assert_eq!(baseline.components.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn a_conflict_is_between_both_whoever_says_so() {
        let baseline = Baseline::parse(&manifest("conflicts = [\"two\"]", ""), "b").unwrap();
        assert_eq!(baseline.components[1].conflicts, ["one".parse().unwrap()]);
    }

    #[test]
    fn manifests_that_make_no_sense_are_refused_with_their_place() {
        let refuse = |text: &str| Baseline::parse(text, "dir/baseline.toml").unwrap_err().to_string();
        assert!(refuse(&manifest("versoin = \"2\"", "")).starts_with("dir/baseline.toml:13: unknown field"));
        assert!(refuse(&manifest("requires = [\"two\"]", "requires = [\"one\"]")).contains("circular"));
        assert!(refuse(&manifest("", "").replace("\"p\"", "\"../p\"")).contains("plain file name"));
        assert!(refuse(&manifest("", "").replace("\"two\"", "\"one\"")).contains("twice"));
        assert!(
            refuse(&manifest("version_format = \"triplet\"", "")).contains("\"1\" is not a triplet version")
        );
        assert!(refuse(&manifest("conflicts = [\"six\"]", "")).contains("conflicts with six"));
    }

    #[test]
    fn the_shipped_demonstration_is_what_its_manifest_says() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-cache/demo");
        let text = std::fs::read_to_string(directory.join(MANIFEST)).unwrap();
        let baseline = Baseline::parse(&text, "demo").unwrap();
        assert_eq!(baseline.id.as_str(), "demo");
        assert!(baseline.title.contains("not firmware"));
        for component in baseline.components {
            let payload = std::fs::read(directory.join(&component.payload)).unwrap();
            assert_eq!(payload.len() as u64, component.size);
            assert_eq!(Sha256::of(&payload), component.sha256);
        }
    }

    use crate::digest::Sha256;
}
