//! `carena cache import` of makers' packages: which arguments are theirs, and what was made of them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cache::ImportError;
use crate::cache::foreign::{Choice, is_package};
use crate::cache::sources::{Found, recognise};
use crate::wire::id::BaselineId;

use super::terminal::complain;

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
    /// A baseline's directory, a payload, or standard input; and what was found there.
    Ours(PathBuf, Result<Vec<Found>, ImportError>),
    /// Packages of makers: all files together, each directory alone.
    Makers(Vec<PathBuf>),
}

impl Sources {
    /// What stands for them in messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::Ours(path, _) => path,
            Self::Makers(paths) => paths.first().map_or(Path::new(""), |path| path),
        }
    }
}

/// Arguments by what they are. A package that is damaged is still one: its import says what is wrong with it.
pub fn grouped(paths: &[PathBuf]) -> Vec<Sources> {
    let (mut files, mut grouped) = (Vec::new(), Vec::new());
    for path in paths {
        let found = recognise(path);
        let is_ours = found.iter().flatten().any(|found| !matches!(found, Found::Payload(_)));
        if !is_ours && path.is_dir() {
            grouped.push(Sources::Makers(vec![path.clone()]));
        } else if !is_ours && path.is_file() && is_package(path).unwrap_or(true) {
            files.push(path.clone());
        } else {
            grouped.push(Sources::Ours(path.clone(), found));
        }
    }
    if !files.is_empty() {
        grouped.push(Sources::Makers(files));
    }
    grouped
}

/// Says what is not in a baseline that was made.
pub fn complain_of(left_out: &[String]) {
    left_out.iter().for_each(|why| complain(&format!("left out: {why}")));
}
