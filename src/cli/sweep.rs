//! `carena sweep`: takes back what dead runs left on nodes.

use std::path::{Path, PathBuf};

use crate::deploy::recover;
use crate::deploy::store::Store;
use crate::firmware::outcome::Exit;
use crate::fleet::{Fleet, Node};

use super::progress::{complain, say};
use super::setup::{Ended, state};

/// Sweeps; 3 when nothing was outstanding, 253 when something still is.
pub async fn sweep(fleet: Option<&Path>, given: Option<PathBuf>, json: bool) -> Result<Exit, Ended> {
    let fleet = fleet.map(Fleet::read).transpose().map_err(|error| Ended::with(Exit::BadInput, &error))?;
    let store = Store::open(&state(given)).map_err(|error| Ended::with(Exit::Other, &error))?;
    // The store is locked by this process, so no deployment lives.
    let knows = |journalled: &Node| {
        let same = |node: &&Node| recover::place(node) == recover::place(journalled);
        fleet.as_ref().and_then(|fleet| fleet.nodes.iter().find(same)).cloned()
    };
    let swept = recover::sweep(&store, |_| false, knows).await;
    let swept = swept.map_err(|error| Ended::with(Exit::Other, &error))?;
    for trace in &swept {
        match (&trace.outstanding, json) {
            (_, true) => say(&serde_json::to_string(trace).unwrap_or_default()),
            (None, false) => say(&format!("{}: gone: {}", trace.node, trace.trace)),
            (Some(why), false) => complain(&format!("{}: still there: {}: {why}", trace.node, trace.trace)),
        }
    }
    Ok(if swept.is_empty() {
        Exit::NothingNeeded
    } else if swept.iter().any(|trace| trace.outstanding.is_some()) {
        Exit::Failed
    } else {
        Exit::Done
    })
}
