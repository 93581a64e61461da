//! `carena cache import` of makers' packages: which arguments are theirs, and what was made of them.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::cache::foreign::{Choice, ForeignError, Imported, is_package};
use crate::firmware::baseline::MANIFEST;
use crate::firmware::outcome::Exit;
use crate::wire::id::BaselineId;

use super::cache::{self, payload_json, plural, state_of};
use super::terminal::{complain, say};

/// What is to be made of makers' packages.
#[derive(Args)]
pub struct Told {
    /// Makers' packages: the baseline's id, instead of one from their name
    #[arg(long, value_name = "ID")]
    id: Option<BaselineId>,
    /// Makers' packages: the baseline's version, instead of the service pack's or today's date
    #[arg(long, value_name = "VERSION")]
    baseline_version: Option<String>,
    /// Service pack: which packages, by file or product id; '*' for all
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
}

impl Told {
    /// As the importer takes it.
    pub fn choice(self) -> Choice {
        Choice { id: self.id, version: self.baseline_version, only: self.only }
    }
}

/// Arguments that are imported together.
pub enum Sources {
    /// A baseline's directory, a payload, or standard input.
    Ours(PathBuf),
    /// Packages of makers: all files together, each directory alone.
    Makers(Vec<PathBuf>),
}

impl Sources {
    /// What stands for them in messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::Ours(path) => path,
            Self::Makers(paths) => paths.first().map_or(Path::new(""), |path| path),
        }
    }
}

/// Arguments by what they are. A package that is damaged is still one: its import says what is wrong with it.
pub fn grouped(paths: &[PathBuf]) -> Vec<Sources> {
    let (mut files, mut grouped) = (Vec::new(), Vec::new());
    for path in paths {
        if path.is_dir() && !path.join(MANIFEST).exists() {
            grouped.push(Sources::Makers(vec![path.clone()]));
        } else if path.is_file() && is_package(path).unwrap_or(true) {
            files.push(path.clone());
        } else {
            grouped.push(Sources::Ours(path.clone()));
        }
    }
    if !files.is_empty() {
        grouped.push(Sources::Makers(files));
    }
    grouped
}

/// Says what was made; whether all of it was there already.
pub fn show(path: &Path, imported: &Imported, json: bool) -> bool {
    let Imported { baseline, payloads, left_out, was_there } = imported;
    let (id, version) = (&baseline.id, &baseline.version);
    if json {
        let listed: Vec<Value> = payloads.iter().map(payload_json).collect();
        let components: Vec<_> = baseline.components.iter().map(|component| &component.id).collect();
        let state = state_of(*was_there);
        say(&json!({"path": path, "state": state, "baseline": id, "version": version, "components": components,
                    "payloads": listed, "left_out": left_out, "signed": false})
        .to_string());
    } else {
        left_out.iter().for_each(|why| complain(&format!("left out: {why}")));
        let size: u64 = payloads.iter().map(|payload| payload.size).sum();
        let how = if *was_there { "was there already" } else { "made" };
        let (count, bytes) = (plural(baseline.components.len(), "component"), HumanBytes(size));
        say(&format!("{}: baseline {id}@{version} {how} of {count}, {bytes}; not signed", path.display()));
    }
    *was_there
}

/// The exit code of a failure.
pub fn exit(error: &ForeignError) -> Exit {
    match error {
        ForeignError::Import(error) => cache::exit(error),
        _ => Exit::BadInput,
    }
}
