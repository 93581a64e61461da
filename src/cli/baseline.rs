//! `carena baseline`: made, compared, carried to another box, and whose signatures count.
//!
//! Nothing is signed here and no private key is ever asked for: `minisign -Sm baseline.toml` does that, where its owner is.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::json;

use crate::cache::compose::{ComposeError, Name};
use crate::cache::export::ExportError;
use crate::cache::import::can_be_a_name;
use crate::cache::trust::{Trust, TrustError, read as read_key};
use crate::cache::{Cache, CacheError, Manifest, Place};
use crate::error::{Hinted, chain};
use crate::firmware::compare::{Change, Difference, compare};
use crate::firmware::outcome::Exit;
use crate::firmware::signature::{Anchor, Unsigned};
use crate::wire::id::BaselineId;

use super::cache::{bar, plural};
use super::setup::{Ended, state};
use super::terminal::say;

/// What `carena baseline` is told.
#[derive(Args)]
pub struct BaselineCommand {
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
    /// Make a baseline in a new directory, of components of others
    #[command(after_help = NEW_HELP)]
    New {
        /// What it is called: ID@VERSION
        #[arg(value_name = "ID@VERSION", value_parser = name)]
        name: (BaselineId, String),
        /// A line for people
        #[arg(long)]
        title: String,
        /// The directory to make; without this, ID-VERSION here
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
        /// A directory with a baseline.toml, a baseline in the cache, or one component of it as BASELINE/COMPONENT
        #[arg(required = true, value_name = "PART")]
        parts: Vec<String>,
    },
    /// Show what a second baseline adds, removes and changes
    #[command(after_help = COMPARE_HELP)]
    Compare {
        /// In the cache as ID or ID@VERSION, or a directory
        first: String,
        /// The same
        second: String,
    },
    /// Write a baseline to one file, to be carried to another box
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// In the cache: ID@VERSION, or ID for its newest version
        #[arg(value_name = "ID@VERSION")]
        name: String,
        /// The file; what is there is replaced once the new one is whole
        file: PathBuf,
    },
    /// Whose signatures of baselines count
    #[command(subcommand)]
    Trust(TrustVerb),
}

#[derive(Subcommand)]
enum TrustVerb {
    /// Trust the baselines that this key has signed
    #[command(after_help = TRUST_HELP)]
    Add {
        /// A minisign.pub, or the key itself: RW...
        #[arg(value_name = "FILE|KEY")]
        key: String,
    },
    /// Show the keys that are trusted
    #[command(after_help = "Example:\n  carena baseline trust list --json")]
    List,
    /// Trust a key no more; what it has signed is refused from then on
    #[command(after_help = "Example:\n  carena baseline trust remove 51A37B5A3D09EFD7")]
    Remove {
        /// Its number, as list shows it
        number: String,
    },
}

const NEW_HELP: &str = "Example:
  carena baseline new spring@1 --title \"Web servers, spring\" vendor@2026.03/bios vendor@2026.03/bmc ./own
  minisign -Sm spring-1/baseline.toml
  carena cache import spring-1

The directory holds a baseline.toml to read and correct, and the payloads, linked or copied. carena never signs: the \
private key stays with minisign.";

const COMPARE_HELP: &str = "Example:
  carena baseline compare vendor@2026.03 vendor@2026.09

Exit codes: 0 there are differences, 3 there are none, 254 one of them cannot be had.";

const EXPORT_HELP: &str = "Example:
  carena baseline export vendor@2026.09 /media/stick/vendor-2026.09.carena

The file is a plain tar archive: baseline.toml, its signature, SHA256SUMS, and the payloads compressed with zstd. The same \
baseline gives the same bytes. On the other box: carena cache import /media/stick";

const TRUST_HELP: &str = "Examples:
  carena baseline trust add minisign.pub
  carena baseline trust add RWTX7wk9WnujUTl4hBXqfIBkFM1Hg3APt967aNjufhmzz8MxV0orQI5i";

fn name(text: &str) -> Result<(BaselineId, String), String> {
    let (id, version) = text.split_once('@').ok_or("it is ID@VERSION")?;
    let id = id.parse::<BaselineId>().map_err(|error| error.to_string())?;
    if !can_be_a_name(version) {
        return Err("a version has letters, digits and . _ + - only, 64 at most, and no dot first".into());
    }
    Ok((id, version.to_owned()))
}

/// Carries it out.
pub fn baseline(told: BaselineCommand) -> Result<Exit, Ended> {
    let directory = state(told.state);
    let cache = Cache::at(&directory);
    match told.verb {
        Verb::New { name: (id, version), title, into, parts } => {
            let into = into.unwrap_or_else(|| PathBuf::from(format!("{id}-{version}")));
            new(&cache, Name { id, version, title }, &parts, &into, told.json)
        }
        Verb::Compare { first, second } => differences(&cache, &first, &second, told.json),
        Verb::Export { name, file } => export(&cache, &name, &file, told.json),
        Verb::Trust(verb) => trust(&Trust::at(&directory), verb, told.json),
    }
}

fn bad_input(error: &(impl Hinted + 'static)) -> Ended {
    Ended::with(Exit::BadInput, error)
}

fn new(cache: &Cache, name: Name, parts: &[String], into: &Path, json: bool) -> Result<Exit, Ended> {
    let made = cache.compose(name, parts, into).map_err(|error| match error {
        ComposeError::File { .. } => Ended::with(Exit::Other, &error),
        _ => bad_input(&error),
    })?;
    let (id, version, components) = (&made.id, &made.version, made.components.len());
    say(&if json {
        json!({"baseline": id, "version": version, "directory": into, "components": components}).to_string()
    } else {
        let components = plural(components, "component");
        let place = into.display();
        format!(
            "{place}: baseline {id}@{version}, {components}; read it, then: minisign -Sm {place}/baseline.toml"
        )
    });
    Ok(Exit::Done)
}

/// A baseline, and what its signature is worth, for people.
fn find(cache: &Cache, name: &str) -> Result<(Manifest, String), CacheError> {
    let (manifest, place) = cache.find(name)?;
    let signature = match cache.standing(&manifest, &place, Unsigned::Refuse) {
        Ok(standing) => standing.to_string(),
        Err(error) => format!("refused: {}", chain(&error)),
    };
    Ok((manifest, signature))
}

fn differences(cache: &Cache, first: &str, second: &str, json: bool) -> Result<Exit, Ended> {
    let (first, of_first) = find(cache, first).map_err(|error| bad_input(&error))?;
    let (second, of_second) = find(cache, second).map_err(|error| bad_input(&error))?;
    let differences = compare(&first.baseline, &second.baseline);
    let exit = if differences.is_empty() { Exit::NothingNeeded } else { Exit::Done };
    if json {
        differences.iter().for_each(|difference| say(&json!(difference).to_string()));
        say(&json!({"summary": {"first": first.name(), "second": second.name(),
                                "differences": differences.len(), "exit": exit as u8}})
        .to_string());
        return Ok(exit);
    }
    for (manifest, signature) in [(&first, of_first), (&second, of_second)] {
        say(&format!("{:<32} {}; {signature}", manifest.name(), manifest.baseline.title));
    }
    differences.iter().for_each(|difference| say(&line(difference)));
    say(&plural(differences.len(), "difference"));
    Ok(exit)
}

fn line(difference: &Difference) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
    let word = match difference.change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Changed => "changed",
    };
    let (from, to) = (version(&difference.from), version(&difference.to));
    let fields = difference.fields.join(", ");
    format!("  {word:<8} {:<28} {from} -> {to}  {fields}", difference.component).trim_end().to_owned()
}

fn export(cache: &Cache, name: &str, file: &Path, json: bool) -> Result<Exit, Ended> {
    let bar = bar(json);
    bar.set_message("verifying");
    let exported = cache.export(name, file, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let exported = exported.map_err(|error| match error {
        ExportError::Write { .. } => Ended::with(Exit::Other, &error),
        _ => bad_input(&error),
    })?;
    let manifest = &exported.manifest;
    let standing = cache.standing(manifest, &exported.place, Unsigned::Refuse);
    let words = match &standing {
        Ok(_) if exported.place == Place::Embedded => {
            "part of this program; elsewhere it is not signed".into()
        }
        Ok(standing) => standing.to_string(),
        Err(error) => format!("refused here: {}", chain(error)),
    };
    say(&if json {
        json!({"baseline": manifest.baseline.id, "version": manifest.baseline.version, "file": file,
               "bytes": exported.bytes, "payloads": exported.payloads, "signature": words})
        .to_string()
    } else {
        let payloads = plural(exported.payloads, "payload");
        let size = HumanBytes(exported.bytes);
        format!("{}: baseline {}, {payloads} in {size}; {words}", file.display(), manifest.name())
    });
    Ok(Exit::Done)
}

fn trust(trust: &Trust, verb: TrustVerb, json: bool) -> Result<Exit, Ended> {
    let failed = |error: TrustError| bad_input(&error);
    let (anchors, word, exit) = match verb {
        TrustVerb::Add { key } => {
            let anchor = Anchor::parse(&key).or_else(|_| read_key(Path::new(&key))).map_err(failed)?;
            let (anchor, is_new) = trust.add(anchor).map_err(failed)?;
            let (word, exit) = if is_new { ("added", Exit::Done) } else { ("there", Exit::NothingNeeded) };
            (vec![anchor], word, exit)
        }
        TrustVerb::List => (trust.anchors().map_err(failed)?, "trusted", Exit::Done),
        TrustVerb::Remove { number } => (vec![trust.remove(&number).map_err(failed)?], "removed", Exit::Done),
    };
    for anchor in &anchors {
        let (number, key, comment) = (anchor.number(), anchor.key(), anchor.comment());
        say(&if json {
            json!({"key": number, "public": key, "comment": comment, "state": word}).to_string()
        } else {
            format!("{number}  {key}  {word}  {comment}")
        });
    }
    if anchors.is_empty() && !json {
        say("no key is trusted: every baseline but the one in the program needs the operator's word");
    }
    Ok(exit)
}
