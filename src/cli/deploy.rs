//! `carena deploy` and `carena inventory`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;

use crate::deploy::Deployments;
use crate::deploy::cancel::CancelError;
use crate::deploy::deployments::Intent;
use crate::deploy::event::{Event, Step, Summary};
use crate::error::explain;
use crate::firmware::outcome::Exit;
use crate::fleet::Fleet;
use crate::wire::id::DeploymentId;

use super::control::Control;
use super::progress::Progress;
use super::setup::{Ended, deployments, state};
use super::terminal::{Signals, Wish, ask_passwords, complain, say};
use super::{Common, table};

/// What is to be deployed.
pub struct Order {
    /// Only what is not done of this earlier deployment.
    pub retry: Option<DeploymentId>,
    /// The fleet file; for a retry it stands in place of what the store has.
    pub fleet: Option<PathBuf>,
}

/// Brings the fleet to its baseline.
pub async fn deploy(order: Order, common: &Common, intent: Intent) -> Result<Exit, Ended> {
    let ran = run(order, common, intent).await?;
    if common.json {
        say(&serde_json::to_string(&ran.summary.report()).unwrap_or_default());
    } else {
        table::closing(&ran.summary, intent, ran.exit);
    }
    Ok(ran.exit)
}

/// Tells what the fleet's nodes are: a dry run whose plan is not shown.
pub async fn inventory(fleet: PathBuf, common: &Common) -> Result<Exit, Ended> {
    let ran = run(Order { retry: None, fleet: Some(fleet) }, common, Intent::DryRun).await?;
    let mut found = ran.deployments.inventories(&ran.summary.deployment);
    let mut exit = Exit::Done;
    for (address, node) in &ran.summary.nodes {
        match found.remove(address) {
            Some(inventory) if common.json => {
                say(&serde_json::json!({"node": address, "inventory": inventory}).to_string());
            }
            Some(inventory) => table::inventory(address, &inventory),
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

/// A deployment that has ended.
struct Ran {
    deployments: Deployments,
    summary: Summary,
    exit: Exit,
}

async fn run(order: Order, common: &Common, intent: Intent) -> Result<Ran, Ended> {
    let read = |path| Fleet::read(path).map_err(|error| Ended::with(Exit::BadInput, &error));
    let given = order.fleet.as_deref().map(read).transpose()?;
    let mut signals =
        Signals::listen().map_err(|error| Ended { exit: Exit::Other, message: error.to_string() })?;
    let deployments = deployments(common.state.clone())?;
    let directory = state(common.state.clone());
    let _control = Control::listen(&directory, deployments.clone())
        .inspect_err(|error| complain(&format!("carena abort will not reach this deployment: {error}")));
    let fleet = match (&order.retry, given) {
        (Some(first), given) => {
            let failed = deployments.failed_fleet(first, given).await;
            failed.map_err(|error| Ended::with(Exit::BadInput, &error))?
        }
        (None, Some(fleet)) => fleet,
        (None, None) => return Err(Ended { exit: Exit::BadInput, message: "no fleet file is named".into() }),
    };
    let Some(fleet) = ask_passwords(fleet, &mut signals).await else {
        return Err(Ended {
            exit: Exit::BadInput,
            message: "given up at a password; no node was touched".into(),
        });
    };
    let (_, events) = deployments.events(None);
    // A deployment of this very fleet that a crash left unfinished goes on; it is in use before the sweep looks.
    let resumed = match (&order.retry, intent) {
        (None, Intent::Install) => deployments.resume(&fleet).await,
        _ => Ok(None),
    };
    let resumed = resumed.map_err(|error| Ended::with(Exit::Other, &error))?;
    let started = match (resumed, &order.retry) {
        (Some(id), _) => Ok(id),
        (None, None) => deployments.start(fleet, intent).await,
        (None, Some(first)) => deployments.retry(first, fleet, intent).await,
    };
    let id = started.map_err(|error| Ended::with(Exit::BadInput, &error))?;
    // What earlier runs left on these nodes is taken back before they are begun, on others meanwhile.
    deployments.keep_sweeping();
    show(&deployments, &id, events, &mut signals, Progress::new(common.json)).await;
    match deployments.ended(&id).await {
        Some((summary, exit)) => Ok(Ran { deployments, summary, exit }),
        None => Err(Ended { exit: Exit::Other, message: "BUG: the deployment is not known".into() }),
    }
}

/// Shows what happens until every node has its result; the first Ctrl-C cancels, the next say what is waited for.
async fn show(
    deployments: &Deployments,
    id: &DeploymentId,
    mut events: tokio::sync::broadcast::Receiver<Arc<Event>>,
    signals: &mut Signals,
    mut progress: Progress,
) {
    let nodes = deployments.get(id).map(|(summary, _)| summary.nodes).unwrap_or_default();
    let mut open: HashSet<String> = nodes.into_iter().map(|(address, _)| address).collect();
    let (mut last, mut cancelled) = (0, false);
    while !open.is_empty() {
        let batch: Vec<Arc<Event>> = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => vec![event],
                // Too slow a terminal: take what was missed from the log.
                Err(RecvError::Lagged(_)) => {
                    let (missed, live) = deployments.events(Some(last));
                    events = live;
                    missed
                }
                Err(RecvError::Closed) => break,
            },
            wish = signals.next() => {
                heed(wish, &mut cancelled, deployments, id, &progress).await;
                continue;
            }
        };
        for event in &batch {
            // What came both ways, kept and live, is shown once.
            if event.sequence <= last {
                continue;
            }
            last = event.sequence;
            progress.show(event);
            if event.step == Step::Result && event.deployment == *id {
                open.remove(&event.node);
            }
        }
    }
    progress.finish();
}

/// There is no way to hurry: leaving now would leave the nodes as they are.
async fn heed(
    wish: Wish,
    cancelled: &mut bool,
    deployments: &Deployments,
    id: &DeploymentId,
    progress: &Progress,
) {
    if wish == Wish::HangUp {
        return progress.tell(&format!(
            "carena: the terminal is gone, the deployment goes on; to cancel: carena abort {id}"
        ));
    }
    if !std::mem::replace(cancelled, true) {
        // One that has ended meanwhile has nothing to cancel.
        if let Err(error @ CancelError::Store(_)) = deployments.cancel_all(id).await {
            progress.tell(&format!("carena: {}", explain(&error)));
        }
        return progress
            .tell("carena: cancelling: what is being written finishes, then every trace is taken back");
    }
    progress.tell("carena: still cancelling; nothing new starts, and this is waited for:");
    for line in progress.under_way() {
        progress.tell(&format!("    {line}"));
    }
}
