//! Plan, send, install, verify: what is done with the engine of one node.
//!
//! Success is the version read back; an installer's word is only its word. Components are taken in the baseline's
//! order, and one whose prerequisite failed is skipped.

use std::cmp::Ordering;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::access::control::{ControlError, EngineClient};
use crate::error::chain;
use crate::firmware::component::{Component, ExitMeaning};
use crate::firmware::outcome::Outcome;
use crate::firmware::version;
use crate::fleet::Mode;
use crate::wire::message::{Failure, FailureKind, Fetch, Install, Installed, Notice, Reply, Request};

use super::cycle::Cycle;
use super::error::CycleError;
use super::establish::Established;
use super::event::{Bytes, ComponentSummary, State, Step};
use super::run::Run;
use super::schedule::CANCELLED;

/// Notices that may wait for their reader; more are the engine's to hold back.
const NOTICES_MAX: usize = 64;

/// Carries the whole baseline out on one node. Failures of components are outcomes; an error is the node's.
///
/// # Errors
/// [`CycleError`].
pub async fn all(cycle: &mut Cycle<'_>, established: &Established) -> Result<(), CycleError> {
    cycle.enter(Step::Plan)?;
    let engine = &established.engine;
    let baseline = cycle.run.baseline.clone();
    let mut to_do = Vec::new();
    for component in &baseline.components {
        let inventory = cycle.inventory.as_deref().ok_or(CycleError::Protocol)?;
        let (from, outcome) = match component.matches(inventory) {
            Err(why) => (None, Some(Outcome::NotApplicable(why))),
            Ok(()) => {
                let from = read_back(engine, component).await?;
                let outcome = verdict(cycle.run, component, from.as_deref());
                (from, outcome)
            }
        };
        match outcome {
            Some(outcome) => {
                let to = from.clone();
                cycle.components.push(ComponentSummary { id: component.id.clone(), from, to, outcome });
            }
            None => to_do.push((component, from)),
        }
    }
    cycle.tell(State::Done, Some(format!("{} of {} components", to_do.len(), baseline.components.len())));
    for (component, from) in to_do {
        if cycle.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let outcome = match unmet(component, &cycle.components) {
            _ if cycle.run.is_component_cancelled(&component.id) => {
                (None, Outcome::Skipped(CANCELLED.into()))
            }
            Some(why) => (None, Outcome::Skipped(why)),
            None if cycle.run.dry_run => {
                (None, Outcome::WouldUpdate(reason(cycle.run, component, from.as_deref())))
            }
            None => one(cycle, established, component).await?,
        };
        let (to, outcome) = outcome;
        cycle.components.push(ComponentSummary { id: component.id.clone(), from, to, outcome });
    }
    Ok(())
}

/// Components that were never come to, with why.
pub fn fill_in(run: &Run, components: &mut Vec<ComponentSummary>, why: &str) {
    for component in &run.baseline.components {
        if !components.iter().any(|done| done.id == component.id) {
            let outcome = Outcome::Skipped(why.to_owned());
            components.push(ComponentSummary { id: component.id.clone(), from: None, to: None, outcome });
        }
    }
}

/// What is clear before anything is sent; none when the component is to be installed.
fn verdict(run: &Run, component: &Component, installed: Option<&str>) -> Option<Outcome> {
    match (version::compare(installed?, &component.version), run.options.mode) {
        (_, Mode::Rewrite) | (Ordering::Less, _) | (Ordering::Greater, Mode::Downgrade) => None,
        (Ordering::Equal, _) => Some(Outcome::Current),
        (Ordering::Greater, Mode::Upgrade) => Some(Outcome::NewerInstalled),
    }
}

/// Why a component would be installed, and what that takes, for a dry run.
fn reason(run: &Run, component: &Component, installed: Option<&str>) -> String {
    let brings = &component.version;
    let why = match installed.map(|installed| (installed, version::compare(installed, brings))) {
        None => format!("nothing is installed, {brings} would be"),
        Some((installed, Ordering::Less)) => format!("{installed} is installed, {brings} is newer"),
        Some((installed, Ordering::Equal)) => {
            format!("{installed} is installed and would be written again (mode = \"rewrite\")")
        }
        Some((installed, Ordering::Greater)) => {
            let mode = if run.options.mode == Mode::Rewrite { "rewrite" } else { "downgrade" };
            format!("{installed} is installed, {brings} is older and wanted (mode = \"{mode}\")")
        }
    };
    format!("{why}; {} bytes to send, about {} s to install", component.size, component.expected_s)
}

/// The prerequisite that is missing, in words.
fn unmet(component: &Component, done: &[ComponentSummary]) -> Option<String> {
    let met = |id| {
        done.iter().any(|other| {
            other.id == id
                && matches!(
                    other.outcome,
                    Outcome::Updated | Outcome::Current | Outcome::NewerInstalled | Outcome::WouldUpdate(_)
                )
        })
    };
    let missing = component.requires.iter().find(|id| !met((*id).clone()))?;
    Some(format!("needs {missing} first, which is not in place"))
}

async fn read_back(engine: &EngineClient, component: &Component) -> Result<Option<String>, CycleError> {
    match engine.request(Request::ReadBack(component.read_back.clone())).await? {
        Reply::Version(version) => Ok(version),
        _ => Err(CycleError::Protocol),
    }
}

/// Send, install, verify. Returns the version read back and the outcome.
async fn one(
    cycle: &mut Cycle<'_>,
    established: &Established,
    component: &Component,
) -> Result<(Option<String>, Outcome), CycleError> {
    let engine = &established.engine;
    cycle.enter(Step::Send)?;
    match send(cycle, established, component).await {
        Ok(()) => cycle.tell(State::Done, None),
        Err(CycleError::Control(ControlError::Engine(failure))) => return failed(cycle, &failure),
        Err(error) => return Err(error),
    }

    if cycle.run.is_component_cancelled(&component.id) {
        return Ok((None, Outcome::Skipped(CANCELLED.into())));
    }
    cycle.enter(Step::Install)?;
    cycle.under_way = Some(component.id.clone());
    let install = Request::Install(Install {
        component: component.id.clone(),
        sha256: component.sha256,
        command: component.install.command.clone(),
        expected_s: component.expected_s,
    });
    // From here on a cancel waits: what is being written finishes.
    let installed = with_notices(cycle, engine, component, Step::Install, install, Interrupt::Never).await;
    let Installed { code, signal, log, .. } = match installed {
        Ok(Reply::Installed(installed)) => installed,
        Ok(_) => return Err(CycleError::Protocol),
        Err(CycleError::Control(ControlError::Engine(failure))) => return failed(cycle, &failure),
        Err(error) => return Err(error),
    };
    let meaning = code.and_then(|code| component.install.meaning(code));
    let Some(meaning) = meaning else {
        let ended = match (code, signal) {
            (Some(code), _) => format!("the installer ended with exit code {code}"),
            (None, Some(signal)) => format!("the installer was ended by signal {signal}"),
            (None, None) => "the installer ended without an exit code".to_owned(),
        };
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        let why = last.map_or(ended.clone(), |line| format!("{ended}: {}", line.trim()));
        cycle.tell(State::Failed, Some(format!("{}: {why}", cycle.node.address)));
        let to = read_back(engine, component).await?;
        return Ok((to, Outcome::Failed(why)));
    };
    cycle.tell(State::Done, None);

    // Read back even when cancelled meanwhile: what was written must be known.
    cycle.run.tell(&cycle.node.address, Step::Verify, State::Started, None);
    let to = read_back(engine, component).await?;
    let outcome = match (meaning, to.as_deref()) {
        (ExitMeaning::Current, _) => Outcome::Current,
        (ExitMeaning::NotApplicable, _) => Outcome::NotApplicable("the installer says so".into()),
        (_, Some(version)) if version::compare(version, &component.version) == Ordering::Equal => {
            Outcome::Updated
        }
        (ExitMeaning::RebootNeeded, _) => Outcome::UpdatedRebootNeeded,
        (ExitMeaning::Done, Some(version)) => Outcome::Unverified(format!(
            "the installer reports success, but version {version} was read back instead of {}",
            component.version
        )),
        (ExitMeaning::Done, None) => {
            Outcome::Unverified("the installer reports success, but no version can be read back".into())
        }
    };
    cycle.run.tell(&cycle.node.address, Step::Verify, State::Done, to.clone());
    Ok((to, outcome))
}

fn failed(cycle: &Cycle<'_>, failure: &Failure) -> Result<(Option<String>, Outcome), CycleError> {
    if failure.kind == FailureKind::Cancelled {
        return Err(CycleError::Cancelled);
    }
    let why = chain(failure);
    cycle.tell(State::Failed, Some(format!("{}: {why}", cycle.node.address)));
    Ok((None, Outcome::Failed(why)))
}

async fn send(cycle: &Cycle<'_>, established: &Established, component: &Component) -> Result<(), CycleError> {
    let Established { engine, ground, authority, .. } = established;
    let short = |text: &str| heapless::String::try_from(text).map_err(|_| CycleError::Protocol);
    let fetch = Request::Fetch(Box::new(Fetch {
        sha256: component.sha256,
        size: component.size,
        address: ground.box_address_text.clone(),
        port: cycle.run.https_port,
        server_name: short(&authority.box_name)?,
        path: short(&format!("/payload/{}", component.sha256))?,
    }));
    match with_notices(cycle, engine, component, Step::Send, fetch, Interrupt::OnCancel).await? {
        Reply::Fetched { .. } => Ok(()),
        _ => Err(CycleError::Protocol),
    }
}

/// Whether a cancel ends the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    OnCancel,
    Never,
}

/// Asks, and passes the notices on as events until the answer is there.
async fn with_notices(
    cycle: &Cycle<'_>,
    engine: &Arc<EngineClient>,
    component: &Component,
    step: Step,
    request: Request,
    interrupt: Interrupt,
) -> Result<Reply, CycleError> {
    let (sender, mut notices) = mpsc::channel(NOTICES_MAX);
    let answer = engine.request_with_notices(request, sender);
    tokio::pin!(answer);
    let mut cancel_sent = interrupt == Interrupt::Never;
    loop {
        tokio::select! {
            reply = &mut answer => return Ok(reply?),
            Some(notice) = notices.recv() => {
                let (bytes, message) = match notice {
                    Notice::Fetching { done, total } => (Some(Bytes { done, total }), None),
                    Notice::Pushed { done } => (Some(Bytes { done, total: component.size }), None),
                    Notice::Installing { seconds, line } => (None, Some(format!("{seconds} s {line}"))),
                };
                cycle.run.tell_component(&cycle.node.address, step, &component.id, bytes, message);
            }
            () = cycle.run.cancelled(), if !cancel_sent => {
                cancel_sent = true;
                let engine = engine.clone();
                // Its answer comes when the engine is idle; ours is the fetch's own, "cancelled".
                tokio::spawn(async move { engine.request(Request::Cancel).await });
            }
        }
    }
}
