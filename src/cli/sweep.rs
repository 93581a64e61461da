//! `carena sweep`: takes back what dead runs left on nodes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::deploy::recover::Swept;
use crate::firmware::outcome::Exit;
use crate::fleet::Fleet;

use super::setup::{Ended, deployments};
use super::terminal::{Signals, complain, say};

/// Between two tries while waiting for nodes; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Sweeps, again and again for `wait`; 3 when nothing was outstanding, 253 when something still is.
pub async fn sweep(
    fleet: Option<&Path>,
    given: Option<PathBuf>,
    json: bool,
    wait: Duration,
) -> Result<Exit, Ended> {
    let fleet = fleet.map(Fleet::read).transpose().map_err(|error| Ended::with(Exit::BadInput, &error))?;
    let deployments = deployments(given)?;
    let end = Instant::now() + wait;
    let mut signals =
        Signals::listen().map_err(|error| Ended { exit: Exit::Other, message: error.to_string() })?;
    let (mut pause, mut found, mut refused) = (FIRST_WAIT, false, HashSet::new());
    loop {
        let swept = deployments.sweep(fleet.as_ref(), &refused).await;
        let swept = swept.map_err(|error| Ended::with(Exit::Other, &error))?;
        found |= !swept.is_empty();
        for trace in &swept {
            tell(trace, json);
        }
        let still = swept.iter().any(|trace| trace.outstanding.is_some() && !trace.refused);
        // A password that was refused is not tried again and again.
        let no = swept.into_iter().filter(|trace| trace.refused);
        refused.extend(no.map(|trace| (trace.deployment, trace.node)));
        match (still, refused.is_empty()) {
            (false, true) => return Ok(if found { Exit::Done } else { Exit::NothingNeeded }),
            (false, false) => return Ok(Exit::Failed),
            (true, _) => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Exit::Failed);
        }
        // Told to end, it ends: everything is still in the journal.
        tokio::select! {
            () = tokio::time::sleep(pause.min(left)) => {}
            _ = signals.next() => return Ok(Exit::Failed),
        }
        pause = (pause * 2).min(WAIT_MAX);
    }
}

fn tell(trace: &Swept, json: bool) {
    match (&trace.outstanding, json) {
        (_, true) => say(&serde_json::to_string(trace).unwrap_or_default()),
        (None, false) => say(&format!("{}: gone: {}", trace.node, trace.trace)),
        (Some(why), false) => complain(&format!("{}: still there: {}: {why}", trace.node, trace.trace)),
    }
}
