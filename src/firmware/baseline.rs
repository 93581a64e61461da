//! A named set of components at versions, read from its `baseline.toml`.
//!
//! Unknown fields are refused with file and line; nothing is guessed about what goes onto a server.

use std::collections::BTreeSet;

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
            let known = |other: &&ComponentId| self.components.iter().any(|one| one.id == **other);
            if let Some(other) = component.conflicts.iter().find(|other| !known(other)) {
                return Err(format!("component {id}: it conflicts with {other}, which is not there"));
            }
        }
        Ok(())
    }

    /// Two that conflict keep each other away, whichever comes first and whichever says so.
    fn make_conflicts_mutual(&mut self) {
        let said = |one: &Component| {
            let pair = |other: &ComponentId| (other.clone(), one.id.clone());
            one.conflicts.iter().map(pair).collect::<Vec<_>>()
        };
        let said: Vec<_> = self.components.iter().flat_map(said).collect();
        for component in &mut self.components {
            let told = said.iter().filter(|(other, _)| *other == component.id).map(|(_, by)| by.clone());
            for by in told.collect::<Vec<_>>() {
                if !component.conflicts.contains(&by) {
                    component.conflicts.push(by);
                }
            }
        }
    }

    /// By `order`, then as written; what is required comes before what requires it.
    fn sort(&mut self) -> Result<(), String> {
        self.components.sort_by_key(|component| component.order);
        let mut sorted: Vec<Component> = Vec::with_capacity(self.components.len());
        while !self.components.is_empty() {
            let placed = |id: &ComponentId| sorted.iter().any(|other| other.id == *id);
            let next = self.components.iter().position(|component| component.requires.iter().all(placed));
            let Some(next) = next else {
                let stuck: Vec<_> =
                    self.components.iter().map(|component| component.id.to_string()).collect();
                return Err(format!(
                    "requirements of {} cannot be met: unknown or circular",
                    stuck.join(", ")
                ));
            };
            let component = self.components.remove(next);
            sorted.push(component);
        }
        self.components = sorted;
        Ok(())
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
