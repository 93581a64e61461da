//! `carena cache`: baselines and payloads into the box's cache, what is there, whether it is right, and out again.
//!
//! It works on the state directory alone, beside a `carena serve` that uses it: the cache's own locks keep the two apart.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cache::certificates::Certificates;
use crate::cache::check::{CheckError, Claim};
use crate::cache::{Cache as Layers, CacheError, Place, Store};
use crate::deploy::unfinished::{Unfinished, unfinished};
use crate::error::{chain, explain};
use crate::firmware::outcome::Exit;
use crate::firmware::signature::{Standing, Unsigned};

use super::foreign;
use super::import;
use super::setup::{Ended, state};
use super::terminal::{complain, say};

/// What `carena cache` is told.
#[derive(Args)]
pub struct Cache {
    #[command(subcommand)]
    verb: Verb,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring baselines and payloads in
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// A directory with a baseline.toml, a stick or ISO image with some of them, a file of carena baseline export, makers'
        /// packages (files, directories, service packs), any other file, or - for standard input
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Take these baselines though nobody who is trusted has signed them; they are shown as that from then on
        #[arg(long)]
        unsigned_ok: bool,
        /// Refuse what would make the cache larger than this: bytes, or with KiB, MiB, GiB, TiB
        #[arg(long, value_name = "SIZE", value_parser = size)]
        cache_max: Option<u64>,
        /// A certificate (PEM) that LVFS cabinets must be signed by, from now on: it is kept
        #[arg(long, value_name = "CERT.pem")]
        trust: Vec<PathBuf>,
        #[command(flatten)]
        made: foreign::Told,
    },
    /// Show what there is
    List,
    /// Hash everything anew; what is broken is taken out of use
    Verify,
    /// Remove payloads that no baseline needs, and what is left of cut imports
    Gc,
    /// Remove imported baselines; their payloads stay until gc
    Remove {
        /// ID@VERSION, or ID for its newest version
        #[arg(required = true, value_name = "ID")]
        names: Vec<String>,
    },
}

const IMPORT_HELP: &str = "Examples:
  carena cache import /media/stick
  carena cache import vendor-2026.09.carena spp.iso
  carena cache import --unsigned-ok ./my-baseline
  carena cache import --unsigned-ok --only '*' ./spp

A baseline must be signed with minisign (baseline.toml.minisig) by a key that carena baseline trust add was told. What is \
not, and what is made of makers' packages, needs your word for these very baselines: --unsigned-ok.

A cut import leaves nothing in the cache; the next one of the same content goes on where it stopped. A payload that no \
baseline names stays until carena cache gc.";

/// Carries it out.
pub fn cache(told: Cache) -> Result<Exit, Ended> {
    let directory = state(told.state);
    let store = Store::at(&directory);
    match told.verb {
        Verb::Import { paths, unsigned_ok, cache_max, trust, made } => {
            let unsigned = if unsigned_ok { Unsigned::Accept } else { Unsigned::Refuse };
            let certificates = Certificates::at(&directory);
            let trust = certificates.add(&trust).and_then(|()| certificates.trust());
            let trust = trust.map_err(|error| Ended::with(Exit::BadInput, &error))?;
            import::import(store, &paths, (cache_max, unsigned, trust), &made.choice(), told.json)
        }
        Verb::List => list(&Layers::at(&directory), &store, told.json),
        Verb::Verify => verify(&store, told.json),
        Verb::Gc => gc(&store, told.json),
        Verb::Remove { names } => remove(&store, &directory, &names, told.json),
    }
}

/// A number of bytes, as people write it.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default().trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other => return Err(format!("\"{other}\" is none of KiB, MiB, GiB, TiB")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| "it is no whole number".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "it is too large".to_owned())
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn bar(json: bool) -> ProgressBar {
    let shown = !json && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let template = "{msg:40!} {wide_bar} {bytes:>10} of {total_bytes:>10} {bytes_per_sec:>12}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

pub(super) fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn broken_store(store: &Store) -> impl Fn(std::io::Error) -> Ended + '_ {
    |source| Ended::with(Exit::Other, &CheckError::Store { path: store.root().to_owned(), source })
}

fn list(layers: &Layers, store: &Store, json: bool) -> Result<Exit, Ended> {
    let failed = broken_store(store);
    let all = layers.all();
    let needed: std::collections::HashSet<_> = all
        .iter()
        .filter(|(_, place)| *place != Place::Embedded)
        .flat_map(|(manifest, _)| manifest.baseline.components.iter().map(|component| component.sha256))
        .collect();
    for (manifest, place) in &all {
        let standing = layers.standing(manifest, place, Unsigned::Refuse);
        let place = if *place == Place::Embedded { "embedded" } else { "imported" };
        let baseline = &manifest.baseline;
        let bytes: u64 = baseline.components.iter().map(|component| component.size).sum();
        let (id, version, title) = (&baseline.id, &baseline.version, &baseline.title);
        let components = baseline.components.len();
        say(&if json {
            json!({"baseline": id, "version": version, "title": title, "place": place, "components": components,
                   "bytes": bytes, "manifest": manifest.sha256(), "signature": signature_json(&standing)})
            .to_string()
        } else {
            let (name, count) = (manifest.name(), plural(components, "component"));
            let words = match &standing {
                Ok(standing) => standing.to_string(),
                Err(error) => format!("REFUSED: {}", chain(error)),
            };
            format!(
                "{name:<32} {place}  {count:<15} {:>11}  {title}\n{:34}{words}",
                HumanBytes(bytes).to_string(),
                ""
            )
        });
    }
    for imported in store.baselines().map_err(&failed)? {
        if let Err(error) = imported.manifest {
            complain(&format!("carena: {}", explain(&error)));
        }
    }
    let objects = store.objects().map_err(&failed)?;
    let stored: u64 = objects.iter().map(|object| object.bytes).sum();
    let content: u64 =
        objects.iter().filter_map(|object| Some(store.object(object.sha256).ok()?.size())).sum();
    let loose = objects.iter().filter(|object| !needed.contains(&object.sha256)).count();
    let partials = store.partials().map_err(&failed)?.len();
    let broken = store.quarantined().map_err(&failed)?.len();
    say(&if json {
        json!({"summary": {"payloads": objects.len(), "bytes": content, "stored_bytes": stored,
               "of_no_baseline": loose, "cut_imports": partials, "broken": broken, "exit": 0}})
        .to_string()
    } else {
        format!(
            "imported: {}, {} in {}; {loose} of no baseline, {}, {broken} broken",
            plural(objects.len(), "payload"),
            HumanBytes(content),
            HumanBytes(stored),
            plural(partials, "cut import"),
        )
    });
    Ok(Exit::Done)
}

/// Why it may be used, or why not without the operator's word.
fn signature_json(standing: &Result<Standing, CacheError>) -> serde_json::Value {
    match standing {
        Ok(standing) => json!(standing),
        Err(error) => json!({"state": "refused", "why": chain(error)}),
    }
}

fn verify(store: &Store, json: bool) -> Result<Exit, Ended> {
    let bar = bar(json);
    bar.set_message("verifying");
    let verified = store.verify(|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let verified = verified.map_err(|error| Ended::with(Exit::Other, &error))?;
    for fault in &verified.faults {
        if json {
            say(&json!({"what": fault.what, "why": fault.why}).to_string());
        } else {
            complain(&format!("{}: {}", fault.what, fault.why));
        }
    }
    let exit = if verified.faults.is_empty() { Exit::Done } else { Exit::Failed };
    let (objects, baselines, faults) = (verified.objects, verified.baselines, verified.faults.len());
    say(&if json {
        json!({"summary": {"payloads": objects, "baselines": baselines, "bytes": verified.bytes, "faults": faults,
               "exit": exit as u8}})
        .to_string()
    } else {
        let words = if faults == 0 { "all right".to_owned() } else { plural(faults, "fault") };
        let (payloads, imported) = (plural(objects, "payload"), plural(baselines, "imported baseline"));
        format!("{payloads} ({}) and {imported}: {words}", HumanBytes(verified.bytes))
    });
    Ok(exit)
}

fn refused(error: &CheckError) -> Ended {
    let exit = match error {
        CheckError::Store { .. } | CheckError::Busy | CheckError::Unknowable { .. } => Exit::Other,
        CheckError::Malformed { .. }
        | CheckError::Unknown { .. }
        | CheckError::InUse { .. }
        | CheckError::Claimed { .. } => Exit::BadInput,
    };
    Ended { exit, message: explain(error) }
}

fn gc(store: &Store, json: bool) -> Result<Exit, Ended> {
    let collected = store.collect().map_err(|error| refused(&error))?;
    let removed = collected.objects + collected.partials + collected.broken;
    let exit = if removed == 0 { Exit::NothingNeeded } else { Exit::Done };
    say(&if json {
        json!({"summary": {"payloads": collected.objects, "cut_imports": collected.partials,
               "broken": collected.broken, "stored_bytes": collected.bytes, "exit": exit as u8}})
        .to_string()
    } else {
        let (payloads, partials) =
            (plural(collected.objects, "payload"), plural(collected.partials, "cut import"));
        format!(
            "removed {payloads}, {partials}, {} broken: {}",
            collected.broken,
            HumanBytes(collected.bytes)
        )
    });
    Ok(exit)
}

/// Imported baselines that deployments go on with, which have not ended.
fn claims(state: &Path) -> Result<Vec<Claim>, String> {
    let claim = |one: Unfinished| {
        let (id, version) = one.baseline.split_once(' ')?;
        // Whoever named a directory takes nothing from the cache.
        let named = one.named.split_once('@').map_or(one.named.as_str(), |(id, _)| id);
        (named == id).then(|| Claim {
            deployment: one.deployment,
            id: id.to_owned(),
            version: version.to_owned(),
        })
    };
    Ok(unfinished(state).map_err(|error| explain(&error))?.into_iter().filter_map(claim).collect())
}

fn remove(store: &Store, state: &Path, names: &[String], json: bool) -> Result<Exit, Ended> {
    for name in names {
        let (id, version) = store.remove(name, || claims(state)).map_err(|error| refused(&error))?;
        say(&if json {
            json!({"baseline": id, "version": version, "state": "removed"}).to_string()
        } else {
            format!("baseline {id}@{version} removed; carena cache gc frees what only it needed")
        });
    }
    if json {
        say(&json!({"summary": {"baselines": names.len(), "exit": 0}}).to_string());
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("7", Some(7)), ("20GiB", Some(20 << 30)), ("1 KiB", Some(1024)), ("0", Some(0))]
        {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
        for wrong in ["", "GiB", "1 GB", "-1", "99999999999 TiB", "1.5GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_unfinished_deployment_claims_what_it_took_from_the_cache_and_no_directory() {
        use crate::deploy::event::Summary;
        let state = tempfile::tempdir().unwrap();
        let kept = crate::deploy::store::Store::open(state.path()).unwrap();
        for (id, named) in [("a", "vendor"), ("b", "vendor@2"), ("c", "/media/vendor")] {
            let summary = Summary {
                deployment: id.parse().unwrap(),
                retry_of: None,
                started: "now".into(),
                ended: None,
                baseline: "vendor 2".into(),
                manifest: None,
                signature: None,
                cancelled: false,
                nodes: Vec::new(),
            };
            kept.begin(&summary, &toml::from_str(&format!("baseline = \"{named}\"")).unwrap()).await.unwrap();
        }
        let claims = claims(state.path()).unwrap();
        let said: Vec<_> = claims.iter().map(|one| [&*one.deployment, &*one.id, &*one.version]).collect();
        assert_eq!(said, [["a", "vendor", "2"], ["b", "vendor", "2"]]);
    }
}
