//! `carena cache import`: whatever a path holds into the cache, told as it goes.

use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::cache::container::{BLOCK, is_container};
use crate::cache::foreign::{Choice, ForeignError};
use crate::cache::import::{Expected, ImportedBaseline, Importer, Payload};
use crate::cache::sources::{Found, recognise};
use crate::cache::{ImportError, Store};
use crate::error::explain;
use crate::firmware::formats::Trust;
use crate::firmware::outcome::Exit;
use crate::firmware::signature::Unsigned;

use super::cache::{bar, plural};
use super::foreign::{Sources, complain_of, grouped};
use super::setup::Ended;
use super::terminal::{complain, say};

/// Every path is tried; the exit code is the first failure's.
pub fn import(
    store: Store,
    paths: &[PathBuf],
    (max, unsigned, trust): (Option<u64>, Unsigned, Trust),
    choice: &Choice,
    json: bool,
) -> Result<Exit, Ended> {
    let importer = Importer::new(store, max).map_err(|error| Ended::with(Exit::Other, &error))?;
    let importer = importer.telling(unsigned).trusting(trust);
    let (mut failed, mut news) = (None, false);
    for sources in grouped(paths) {
        let path = sources.path().to_owned();
        for result in import_sources(&importer, sources, choice, json) {
            match result {
                Ok(was_there) => news |= !was_there,
                Err(error) => {
                    if json {
                        let error = explain(&error);
                        say(&json!({"path": path, "state": "failed", "error": error}).to_string());
                    } else {
                        complain(&format!("carena: {}", explain(&error)));
                    }
                    failed.get_or_insert(exit(&error));
                }
            }
        }
    }
    let exit = failed.unwrap_or(if news { Exit::Done } else { Exit::NothingNeeded });
    if json {
        say(&json!({"summary": {"paths": paths.len(), "exit": exit as u8}}).to_string());
    }
    Ok(exit)
}

/// Whether all of it was there already, of each thing that is there.
fn import_sources(
    importer: &Importer,
    sources: Sources,
    choice: &Choice,
    json: bool,
) -> Vec<Result<bool, ForeignError>> {
    let (path, found) = match sources {
        Sources::Ours(path, found) => (path, found),
        Sources::Makers(paths) => return vec![makers(importer, &paths, choice, json)],
    };
    if path.to_str() == Some("-") {
        return vec![standard_input(importer, json).map_err(ForeignError::from)];
    }
    match found {
        Ok(found) => {
            let one = |found| Ok(import_one(importer, &path, found, json)?);
            found.into_iter().map(one).collect()
        }
        Err(error) => vec![Err(error.into())],
    }
}

fn makers(importer: &Importer, paths: &[PathBuf], choice: &Choice, json: bool) -> Result<bool, ForeignError> {
    let bar = bar(json);
    let made = importer.foreign(paths, choice, &mut follow(&bar));
    let made = match made {
        // Neither that nor a baseline: what is known of both.
        Err(ForeignError::Nothing { path }) => {
            recognise(&path)?;
            return Err(ForeignError::Nothing { path });
        }
        made => made?,
    };
    bar.finish_and_clear();
    if !json {
        complain_of(&made.left_out);
    }
    let path = paths.first().map_or(Path::new(""), |path| path);
    Ok(tell_baseline(path, &made.imported, &made.left_out, json))
}

fn exit(error: &ForeignError) -> Exit {
    let ForeignError::Import(error) = error else { return Exit::BadInput };
    match error {
        ImportError::Source { .. }
        | ImportError::Store { .. }
        | ImportError::Space { .. }
        | ImportError::Limit { .. } => Exit::Other,
        _ => Exit::BadInput,
    }
}

/// A bar that follows an import.
fn follow(bar: &indicatif::ProgressBar) -> impl FnMut(&Path, u64, Option<u64>) + '_ {
    |source, done, all| {
        if bar.position() > done || bar.length() != all {
            bar.set_message(source.file_name().unwrap_or_default().to_string_lossy().into_owned());
            bar.set_length(all.unwrap_or(0));
        }
        bar.set_position(done);
    }
}

/// Whether all of it was there already.
fn import_one(importer: &Importer, path: &Path, found: Found, json: bool) -> Result<bool, ImportError> {
    let bar = bar(json);
    let mut told = follow(&bar);
    match found {
        Found::Baseline(tree) => {
            let imported = importer.baseline(&tree, &mut told)?;
            bar.finish_and_clear();
            Ok(tell_baseline(tree.root(), &imported, &[], json))
        }
        Found::Container(file) => {
            let source = std::fs::File::open(&file);
            let source = source.map_err(|source| ImportError::Source { path: file.clone(), source })?;
            let imported = importer.container(&file, source, &mut told)?;
            bar.finish_and_clear();
            Ok(tell_baseline(&file, &imported, &[], json))
        }
        Found::Payload(file) => {
            let payload = importer.file(&file, Expected::default(), &mut told)?;
            bar.finish_and_clear();
            Ok(tell_payload(path, &payload, json))
        }
        Found::Unreadable(path, source) => Err(ImportError::Source { path, source }),
    }
}

fn standard_input(importer: &Importer, json: bool) -> Result<bool, ImportError> {
    let bar = bar(json);
    let mut told = follow(&bar);
    let name = Path::new("standard input");
    let (mut input, mut first) = (std::io::stdin().lock(), Vec::with_capacity(BLOCK));
    let read = input.by_ref().take(BLOCK as u64).read_to_end(&mut first);
    read.map_err(|source| ImportError::Source { path: name.to_owned(), source })?;
    if is_container(&first) {
        let imported = importer.container(name, Cursor::new(first).chain(input), &mut told)?;
        bar.finish_and_clear();
        return Ok(tell_baseline(name, &imported, &[], json));
    }
    let payload = importer.stream(name, Cursor::new(first).chain(input), Expected::default(), &mut told)?;
    bar.finish_and_clear();
    Ok(tell_payload(Path::new("-"), &payload, json))
}

fn tell_baseline(path: &Path, imported: &ImportedBaseline, left_out: &[String], json: bool) -> bool {
    let (id, version) = (&imported.baseline.id, &imported.baseline.version);
    if json {
        let payloads: Vec<Value> = imported.payloads.iter().map(payload_json).collect();
        let state = state_of(imported.was_there);
        let components: Vec<_> = imported.baseline.components.iter().map(|component| &component.id).collect();
        say(&json!({"path": path, "state": state, "baseline": id, "version": version, "components": components,
                    "signature": imported.standing, "payloads": payloads, "left_out": left_out})
        .to_string());
    } else {
        let stored: u64 = imported.payloads.iter().map(|payload| payload.stored).sum();
        let size: u64 = imported.payloads.iter().map(|payload| payload.size).sum();
        say(&format!(
            "{}: baseline {id}@{version} {}, {} of {} in {}; {}",
            path.display(),
            if imported.was_there { "was there already" } else { "imported" },
            plural(imported.payloads.len(), "payload"),
            HumanBytes(size),
            HumanBytes(stored),
            imported.standing
        ));
    }
    imported.was_there
}

fn tell_payload(path: &Path, payload: &Payload, json: bool) -> bool {
    if json {
        let state = state_of(payload.was_there);
        say(&json!({"path": path, "state": state, "payloads": [payload_json(payload)]}).to_string());
    } else {
        let how = if payload.was_there { "was there already" } else { "imported" };
        let (size, stored) = (HumanBytes(payload.size), HumanBytes(payload.stored));
        say(&format!("{}: payload {} {how}, {size} in {stored}", path.display(), payload.sha256));
    }
    payload.was_there
}

fn state_of(was_there: bool) -> &'static str {
    if was_there { "there" } else { "imported" }
}

fn payload_json(payload: &Payload) -> Value {
    json!({"sha256": payload.sha256, "size": payload.size, "stored_bytes": payload.stored,
           "resumed_bytes": payload.resumed, "was_there": payload.was_there})
}
