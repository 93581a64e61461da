//! `carena deploy` and `carena inventory`.

use std::collections::HashMap;

use crate::deploy::Deployments;
use crate::deploy::event::Event;
use crate::deploy::schedule::Intent;
use crate::firmware::outcome::Exit;
use crate::fleet::Fleet;
use crate::wire::id::DeploymentId;

use super::Common;
use super::progress::{Progress, complain, say, signalled};
use super::setup::{Ended, deployments};

/// Brings the fleet to its baseline.
pub async fn deploy(common: &Common, dry_run: bool) -> Result<Exit, Ended> {
    let intent = if dry_run { Intent::DryRun } else { Intent::Install };
    let (deployments, id) = run(common, intent).await?;
    let Some((summary, exit)) = deployments.ended(&id).await else {
        return Err(Ended { exit: Exit::Other, message: "BUG: the deployment is not known".into() });
    };
    if common.json {
        say(&serde_json::to_string(&summary.report()).unwrap_or_default());
    } else {
        super::progress::table(&summary);
    }
    Ok(exit)
}

/// Tells what the fleet's nodes are: a dry run whose plan is not shown.
pub async fn inventory(common: &Common) -> Result<Exit, Ended> {
    let (deployments, id) = run(common, Intent::DryRun).await?;
    let Some((summary, _)) = deployments.ended(&id).await else {
        return Err(Ended { exit: Exit::Other, message: "BUG: the deployment is not known".into() });
    };
    let mut found = deployments.inventories(&id);
    let mut exit = Exit::Done;
    for (address, node) in &summary.nodes {
        match found.remove(address) {
            Some(inventory) if common.json => {
                say(&serde_json::json!({"node": address, "inventory": inventory}).to_string());
            }
            Some(inventory) => super::progress::inventory(address, &inventory),
            None => {
                exit = Exit::Failed;
                let why = node.error.clone().unwrap_or_else(|| format!("{address}: not reached"));
                if common.json {
                    say(&serde_json::json!({"node": address, "error": why}).to_string());
                } else {
                    complain(&why);
                }
            }
        }
        if !node.outstanding_traces.is_empty() {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

async fn run(common: &Common, intent: Intent) -> Result<(Deployments, DeploymentId), Ended> {
    let mut fleet = Fleet::read(&common.fleet).map_err(|error| Ended::with(Exit::BadInput, &error))?;
    super::progress::ask_passwords(&mut fleet);
    let deployments = deployments(common.state.clone())?;
    let swept = deployments.recover(Some(&fleet)).await.map_err(|error| Ended::with(Exit::Other, &error))?;
    for trace in swept.iter().filter_map(|trace| Some((trace, trace.outstanding.as_ref()?))) {
        complain(&format!(
            "{}: left by an earlier run, still there: {}: {}",
            trace.0.node, trace.0.trace, trace.1
        ));
    }
    let (_, mut events) = deployments.events(None);
    let started = deployments.start(fleet, intent).await;
    let id = started.map_err(|error| Ended::with(Exit::BadInput, &error))?;
    let on_signal = deployments.clone();
    let cancelled = id.clone();
    tokio::spawn(async move {
        signalled().await;
        complain("carena: cancelling: what is being written finishes, then every trace is taken back");
        on_signal.cancel(&cancelled);
    });
    let mut progress = Progress::new(common.json);
    let mut open: HashMap<String, ()> = HashMap::new();
    if let Some((summary, _)) = deployments.get(&id) {
        open.extend(summary.nodes.into_iter().map(|(address, _)| (address, ())));
    }
    let mut last = 0;
    while !open.is_empty() {
        let batch: Vec<std::sync::Arc<Event>> = match events.recv().await {
            Ok(event) => vec![event],
            // Too slow a terminal: take what was missed from the log.
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                let (missed, live) = deployments.events(Some(last));
                events = live;
                missed
            }
            Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
        };
        for event in &batch {
            // What came both ways, kept and live, is shown once.
            if event.sequence <= last {
                continue;
            }
            last = event.sequence;
            progress.show(event);
            if event.step == crate::deploy::event::Step::Result {
                open.remove(&event.node);
            }
        }
    }
    progress.finish();
    Ok((deployments, id))
}
