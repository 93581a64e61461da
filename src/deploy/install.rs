//! Plan, send, install, verify: what is done with the engine of one node.
//!
//! Success is the version read back; an installer's word is only its word. Components are taken in the baseline's
//! order, and one whose prerequisite failed is skipped.

use std::cmp::Ordering;

use crate::access::control::ControlError;
use crate::error::chain;
use crate::firmware::component::{Component, ExitMeaning};
use crate::firmware::outcome::Outcome;
use crate::firmware::version;
use crate::fleet::Mode;
use crate::wire::message::{Failure, FailureKind, Install, Installed, Reply, Request};

use super::cancel::CANCELLED;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{ComponentSummary, State, Step};
use super::path::{Established, Interrupt};
use super::run::Run;
use super::send::{self, with_notices};

/// Carries the whole baseline out on one node. Failures of components are outcomes; an error is the node's.
///
/// # Errors
/// [`CycleError`].
pub async fn all(cycle: &mut Cycle<'_>, established: &mut Established) -> Result<(), CycleError> {
    cycle.enter(Step::Plan)?;
    let baseline = cycle.run.baseline.clone();
    let mut to_do = Vec::new();
    for component in &baseline.components {
        let inventory = cycle.inventory.as_deref().ok_or(CycleError::Protocol)?;
        let (from, outcome) = match component.matches(inventory) {
            Err(why) => (None, Some(Outcome::NotApplicable(why))),
            Ok(()) => {
                let from = read_back(cycle, established, component, Interrupt::OnCancel).await?;
                if let Some(summary) = cycle.before.lost(component, from.as_deref()) {
                    cycle.components.push(summary);
                    continue;
                }
                match cycle.before.begun(&component.id) {
                    // What the node has now came from an installer whose result is still to be heard.
                    Some(before) => (before, None),
                    None => {
                        let outcome = verdict(cycle.run, component, from.as_deref());
                        (from, outcome)
                    }
                }
            }
        };
        match outcome {
            Some(outcome) => {
                let to = from.clone();
                cycle.components.push(ComponentSummary::new(&component.id, from, to, outcome));
            }
            None => to_do.push((component, from)),
        }
    }
    cycle.tell(State::Done, Some(format!("{} of {} components", to_do.len(), baseline.components.len())));
    cycle.before.plan(to_do.iter().map(|(component, from)| (component.id.clone(), from.clone())));
    cycle.keep(established, None).await?;
    for (component, from) in to_do {
        // An installer that has begun before the box died is heard to its end, cancelled or not.
        let begun = cycle.before.begun(&component.id).is_some();
        if !begun && cycle.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let without = |from, outcome| ComponentSummary::new(&component.id, from, None, outcome);
        let summary = match unmet(component, &cycle.components) {
            _ if begun => one(cycle, established, component, from).await?,
            _ if cycle.run.is_component_cancelled(&component.id) => {
                without(from, Outcome::Skipped(CANCELLED.into()))
            }
            Some(why) => without(from, Outcome::Skipped(why)),
            None if cycle.run.dry_run => {
                let why = reason(cycle.run, component, from.as_deref());
                without(from, Outcome::WouldUpdate(why))
            }
            None => one(cycle, established, component, from).await?,
        };
        cycle.components.push(summary);
    }
    Ok(())
}

/// Installers that have begun before the box died are heard to their end, on a node that is cancelled too.
///
/// # Errors
/// [`CycleError`].
pub async fn hear_begun(cycle: &mut Cycle<'_>, established: &mut Established) -> Result<(), CycleError> {
    let baseline = cycle.run.baseline.clone();
    for component in &baseline.components {
        if let Some(from) = cycle.before.begun(&component.id) {
            let summary = one(cycle, established, component, from).await?;
            cycle.components.push(summary);
        }
    }
    Ok(())
}

/// Components that were never come to, with why.
pub fn fill_in(run: &Run, components: &mut Vec<ComponentSummary>, why: &str) {
    for component in &run.baseline.components {
        if !components.iter().any(|done| done.id == component.id) {
            let outcome = Outcome::Skipped(why.to_owned());
            components.push(ComponentSummary::new(&component.id, None, None, outcome));
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

/// The version a component has on the node now.
///
/// # Errors
/// [`CycleError`].
pub(super) async fn read_back(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    interrupt: Interrupt,
) -> Result<Option<String>, CycleError> {
    match cycle.ask(established, Request::ReadBack(component.read_back.clone()), interrupt).await? {
        Reply::Version(version) => Ok(version),
        _ => Err(CycleError::Protocol),
    }
}

/// Send, install, verify.
async fn one(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    from: Option<String>,
) -> Result<ComponentSummary, CycleError> {
    let mut summary = ComponentSummary::new(&component.id, from, None, Outcome::Skipped(CANCELLED.into()));
    let begun = cycle.before.begun(&component.id).is_some();
    if !begun {
        cycle.enter(Step::Send)?;
        match send::send(cycle, established, component).await {
            Ok(Some(sent)) => cycle.tell(
                State::Done,
                Some(format!("{} bytes, taken up again {} times", sent.bytes, sent.resumes)),
            ),
            Ok(None) => {
                cycle.tell(State::Failed, Some(format!("{}: {CANCELLED}", component.id)));
                return Ok(summary);
            }
            Err(CycleError::Control(ControlError::Engine(failure))) => {
                summary.outcome = failed(cycle, &failure)?;
                return Ok(summary);
            }
            Err(error) => return Err(error),
        }
        if cycle.run.is_component_cancelled(&component.id) {
            return Ok(summary);
        }
    }
    if begun {
        cycle.step = Step::Install;
        cycle.tell(State::Started, None);
    } else {
        cycle.enter(Step::Install)?;
        cycle.before.ask(&component.id);
        cycle.before.note(&cycle.components);
        cycle.keep(established, None).await?;
    }
    cycle.under_way = Some(component.id.clone());
    let install = Request::Install(Install {
        component: component.id.clone(),
        sha256: component.sha256,
        command: component.install.command.clone(),
        expected_s: component.expected_s,
    });
    let Installed { code, signal, log, .. } = match run(cycle, established, component, install, begun).await {
        Ok(installed) => installed,
        Err(CycleError::Control(ControlError::Engine(failure))) => {
            summary.outcome = failed(cycle, &failure)?;
            return Ok(summary);
        }
        Err(error @ (CycleError::EngineGone | CycleError::Control(_))) => {
            let why = format!("the engine was lost while the installer ran: {}", chain(&error));
            summary.outcome = Outcome::Unverified(why);
            cycle.components.push(summary);
            return Err(error);
        }
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
        summary.to = read_back(cycle, established, component, Interrupt::Never).await?;
        (summary.outcome, summary.log) = (Outcome::Failed(why), Some(log));
        return Ok(summary);
    };
    cycle.tell(State::Done, None);

    // Read back even when cancelled meanwhile: what was written must be known.
    cycle.run.tell(&cycle.node.address, Step::Verify, State::Started, None);
    summary.to = read_back(cycle, established, component, Interrupt::Never).await?;
    summary.outcome = match (meaning, summary.to.as_deref()) {
        (ExitMeaning::Current, Some(version))
            if version::compare(version, &component.version) != Ordering::Less =>
        {
            Outcome::Current
        }
        (ExitMeaning::Current, version) => Outcome::Unverified(format!(
            "the installer says that {} is there already, but {} was read back",
            component.version,
            version.unwrap_or("no version")
        )),
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
    if summary.outcome.is_failure() {
        summary.log = Some(log);
    }
    cycle.run.tell(&cycle.node.address, Step::Verify, State::Done, summary.to.clone());
    Ok(summary)
}

/// Runs the installer and waits for its end, whatever happens to the connection meanwhile: from here on a cancel
/// waits, and what is being written is never begun a second time.
async fn run(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    install: Request,
    begun: bool,
) -> Result<Installed, CycleError> {
    let heard = || Request::Outcome { component: component.id.clone() };
    let mut request = if begun { heard() } else { install.clone() };
    loop {
        let engine = established.engine.clone();
        let asked = with_notices(cycle, &engine, component, Step::Install, request, Interrupt::Never).await;
        request = match asked {
            Ok(Reply::Installed(installed)) => return Ok(installed),
            Ok(_) => return Err(CycleError::Protocol),
            Err(CycleError::Control(ControlError::Lost)) => {
                cycle.rejoin(established, Interrupt::Never).await?;
                let status = cycle.ask(established, Request::Status, Interrupt::Never).await?;
                let Reply::Status(status) = status else { return Err(CycleError::Protocol) };
                let begun = status.installed.contains(&component.id)
                    || status.installing.is_some_and(|installing| installing.component == component.id);
                // The request itself may have been lost.
                if begun { heard() } else { install.clone() }
            }
            Err(error) => return Err(error),
        };
    }
}

fn failed(cycle: &Cycle<'_>, failure: &Failure) -> Result<Outcome, CycleError> {
    if failure.kind == FailureKind::Cancelled {
        return Err(CycleError::Cancelled);
    }
    let why = chain(failure);
    cycle.tell(State::Failed, Some(format!("{}: {why}", cycle.node.address)));
    Ok(Outcome::Failed(why))
}
