//! Plan, send, install, verify: what is done with the engine of one node.
//!
//! Success is the version read back; an installer's word is only its word. Components are taken in the baseline's
//! order, and one whose prerequisite failed is skipped. One whose prerequisite is active only after a restart waits for
//! the next hop; there it is planned anew, from what the node has then.

use crate::access::control::ControlError;
use crate::error::chain;
use crate::firmware::component::{Component, ExitMeaning};
use crate::firmware::installed::Known;
use crate::firmware::outcome::Outcome;
use crate::fleet::Reboot;
use crate::wire::id::ComponentId;
use crate::wire::message::{Failure, FailureKind, Install, Installed, Reply, Request, VendorLog};

use super::cancel::CANCELLED;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{ComponentSummary, State, Step};
use super::path::{Established, Interrupt};
use super::plan::{self, Hops, Needs};
use super::resume::Stage;
use super::run::Run;
use super::send::{self, with_notices};
use super::sibling;
use super::verify::{self, Freshness};

/// Carries the whole baseline out on one node. Failures of components are outcomes; an error is the node's.
///
/// # Errors
/// [`CycleError`].
pub async fn all(cycle: &mut Cycle<'_>, established: &mut Established) -> Result<(), CycleError> {
    cycle.enter(Step::Plan)?;
    let baseline = cycle.run.baseline.clone();
    let mut to_do = Vec::new();
    for component in &baseline.components {
        if cycle.components.iter().any(|done| done.id == component.id) {
            continue;
        }
        // What its installer did counts, not what rules and needs say of a node where it has run: the device may be
        // away for a while, and a need may be false because the new version is there.
        let is_lost = cycle.before.is_lost(&component.id);
        let known = match if is_lost { Ok(()) } else { fits(cycle, established, component).await? } {
            Err(unfit) => Err(unfit),
            Ok(()) => {
                let read = Freshness::Found;
                Ok(verify::read_back(cycle, established, component, read, Interrupt::OnCancel).await?)
            }
        };
        let from = known.as_ref().ok().and_then(|known: &Known| known.clone().ok().flatten());
        if let Some(summary) = cycle.before.lost(component, from.as_deref()) {
            cycle.has_installed(summary);
            continue;
        }
        let (from, outcome) = match known {
            Err(outcome) => (None, Some(outcome)),
            Ok(known) => (from, plan::verdict(cycle.run.options.mode, component, &known)),
        };
        match outcome {
            Some(outcome) => {
                let to = from.clone();
                cycle.components.push(ComponentSummary::new(&component.id, from, to, outcome));
            }
            None => to_do.push((component, from)),
        }
    }
    let hops = Hops::of(to_do.iter().map(|(component, _)| *component));
    let planned = format!("{} of {} components", to_do.len(), baseline.components.len());
    let warning = cycle.run.warning.iter().map(|warning| format!("; baseline {warning}"));
    let warning: String = warning.collect();
    cycle.tell(State::Done, Some(format!("{planned}{}{warning}", hops.words(&cycle.run.options))));
    cycle.before.plan(to_do.iter().map(|(component, from)| (component.id.clone(), from.clone())));
    cycle.keep(Some(established), Stage::Working).await?;
    for (component, from) in to_do {
        if cycle.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let without = |from, outcome| ComponentSummary::new(&component.id, from, None, outcome);
        let summary = match plan::needs(component, &cycle.components) {
            _ if cycle.run.is_component_cancelled(&component.id) => {
                without(from, Outcome::Skipped(CANCELLED.into()))
            }
            Needs::Missing(why) => without(from, Outcome::Skipped(why)),
            Needs::Restart(id) if cycle.run.options.reboot == Reboot::Never => {
                without(from, Outcome::Skipped(plan::after_restart(&id)))
            }
            Needs::Restart(id) => {
                let why = format!("{} waits until {id} is active, after a restart", component.id);
                cycle.run.tell(&cycle.node.address, Step::Plan, State::Progress, Some(why));
                continue;
            }
            Needs::Nothing if let Some(why) = plan::conflict(component, &cycle.components) => {
                without(from, Outcome::Skipped(why))
            }
            Needs::Nothing if cycle.run.dry_run => {
                let options = &cycle.run.options;
                let why = plan::reason(options.mode, component, from.as_deref());
                without(from, Outcome::WouldUpdate(why + &hops.reason(options, component)))
            }
            Needs::Nothing => one(cycle, established, component, from).await?,
        };
        cycle.has_installed(summary);
    }
    Ok(())
}

/// Whether a component is for this node, and what must be in place there is.
///
/// # Errors
/// [`CycleError`]; within, the outcome it has then.
async fn fits(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
) -> Result<Result<(), Outcome>, CycleError> {
    if let Err(why) = component.rules.fit(cycle.inventory.as_deref().ok_or(CycleError::Protocol)?) {
        return Ok(Err(Outcome::NotApplicable(why)));
    }
    if let Some(why) = component.needs_another() {
        return Ok(Err(Outcome::NotApplicable(why.into())));
    }
    for need in &component.needs {
        let source = (&need.version_of, need.version_format);
        let read = Freshness::Found;
        let known = verify::read(cycle, established, source, read, Interrupt::OnCancel).await?;
        let met = match known {
            Ok(version) => need.met(version.as_deref()),
            Err(why) => Err(format!("needs {}, whose version is not known: {why}", need.version_of)),
        };
        if let Err(why) = met {
            return Ok(Err(Outcome::Skipped(why)));
        }
    }
    Ok(Ok(()))
}

/// Whether every component has its outcome: nothing waits for a restart, or was never looked at.
pub fn is_settled(cycle: &Cycle<'_>) -> bool {
    let has_one = |component: &Component| cycle.components.iter().any(|done| done.id == component.id);
    cycle.run.baseline.components.iter().all(has_one)
}

/// Installers that have begun before the box died are heard to their end, on a node that is cancelled too. All of them,
/// before anything else is asked of the node: a version query must not run beside a flash.
///
/// # Errors
/// [`CycleError`]; all that had begun is then told as far as it is known.
pub async fn hear_begun(cycle: &mut Cycle<'_>, established: &mut Established) -> Result<(), CycleError> {
    let baseline = cycle.run.baseline.clone();
    let mut heard = Vec::new();
    let mut lost = None;
    for component in &baseline.components {
        let is_told = cycle.components.iter().any(|done| done.id == component.id);
        let Some(from) = cycle.before.begun(&component.id).filter(|_| !is_told) else { continue };
        let mut summary = ComponentSummary::new(&component.id, from, None, Outcome::Skipped(String::new()));
        if let Some(error) = &lost {
            summary.outcome = not_heard(error);
            cycle.has_installed(summary);
            continue;
        }
        cycle.step = Step::Install;
        cycle.tell(State::Started, None);
        match installed(cycle, established, component, Begun::Before).await {
            Ok(Ok(installed)) => {
                let meaning = component.meaning(&installed, cycle.inventory.as_deref());
                heard.push((component, summary, installed, meaning));
            }
            Ok(Err(outcome)) => {
                summary.outcome = outcome;
                cycle.has_installed(summary);
            }
            Err(error) => {
                summary.outcome = not_heard(&error);
                cycle.has_installed(summary);
                lost = Some(error);
            }
        }
    }
    for (component, summary, installed, meaning) in heard {
        match &lost {
            Some(error) => {
                let unread = Err(chain(error));
                cycle.has_installed(conclude(component, summary, installed, meaning, &unread));
            }
            None => match verified(cycle, established, component, summary, installed, meaning).await {
                Ok(summary) => cycle.has_installed(summary),
                Err(error) => lost = Some(error),
            },
        }
    }
    lost.map_or(Ok(()), Err)
}

/// An installer was started, and its end was not seen.
fn not_heard(error: &CycleError) -> Outcome {
    Outcome::Unverified(format!("the engine was lost while the installer ran: {}", chain(error)))
}

/// Components that were never come to, with why; without a reason, because the restart they wait for was not made.
pub fn fill_in(run: &Run, components: &mut Vec<ComponentSummary>, why: Option<&str>) {
    for component in &run.baseline.components {
        if !components.iter().any(|done| done.id == component.id) {
            let waits =
                |id: &ComponentId| format!("needs {id} active first, after a restart that was not made");
            let waits = || component.requires.first().map(waits).unwrap_or_default();
            let outcome = Outcome::Skipped(why.map_or_else(waits, str::to_owned));
            components.push(ComponentSummary::new(&component.id, None, None, outcome));
        }
    }
}

/// What an installer's end means, by the node as it was found before: what was written may change what it lists.
type Meaning = Result<ExitMeaning, Outcome>;

/// Whether an installer is to be started, or was by an earlier process of this box.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Begun {
    /// Now; this version is there.
    Now {
        from: Option<String>,
    },
    Before,
}

/// Send, install, verify.
async fn one(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    from: Option<String>,
) -> Result<ComponentSummary, CycleError> {
    let mut summary = ComponentSummary::new(&component.id, from, None, Outcome::Skipped(CANCELLED.into()));
    if let Some(run) = sibling::run_of(cycle, component) {
        let now = Freshness::Now;
        let known = verify::read_back(cycle, established, component, now, Interrupt::OnCancel).await?;
        summary.outcome = sibling::judge(component, summary.from.as_deref(), &run, &known);
        summary.to = known.ok().flatten();
        return Ok(summary);
    }
    cycle.enter(Step::Send)?;
    match send::send(cycle, established, component).await {
        Ok(Some(sent)) => cycle
            .tell(State::Done, Some(format!("{} bytes, taken up again {} times", sent.bytes, sent.resumes))),
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
    cycle.enter(Step::Install)?;
    cycle.before.ask(&component.id);
    cycle.keep(Some(established), Stage::Working).await?;
    let begun = Begun::Now { from: summary.from.clone() };
    match installed(cycle, established, component, begun).await {
        Ok(Ok(installed)) => {
            let meaning = component.meaning(&installed, cycle.inventory.as_deref());
            verified(cycle, established, component, summary, installed, meaning).await
        }
        Ok(Err(outcome)) => {
            summary.outcome = outcome;
            Ok(summary)
        }
        Err(error @ (CycleError::EngineGone | CycleError::Control(_))) => {
            summary.outcome = not_heard(&error);
            cycle.has_installed(summary);
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// The installer's end as the engine tells it; within, how the component ended where the engine could not run it.
async fn installed(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    begun: Begun,
) -> Result<Result<Installed, Outcome>, CycleError> {
    cycle.under_way = Some(component.id.clone());
    let from = match &begun {
        Begun::Now { from } => from.as_deref(),
        Begun::Before => None,
    };
    let install = Request::Install(Install {
        component: component.id.clone(),
        sha256: component.sha256,
        how: component.how(from, plan::disks(cycle.run.options.mode, component, cycle.inventory.as_deref())),
        expected_s: component.expected_s,
        logs: component.logs(),
    });
    match run(cycle, established, component, install, begun).await {
        Ok(installed) => Ok(Ok(installed)),
        Err(CycleError::Control(ControlError::Engine(failure))) => Ok(Err(failed(cycle, &failure)?)),
        Err(error) => Err(error),
    }
}

/// The version is read back, also when cancelled meanwhile: what was written must be known.
///
/// # Errors
/// [`CycleError`] where it could not be; what the installer said is then told.
async fn verified(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    summary: ComponentSummary,
    installed: Installed,
    meaning: Meaning,
) -> Result<ComponentSummary, CycleError> {
    let failed = meaning.clone().err();
    match &failed {
        Some(Outcome::Failed(why)) => {
            cycle.tell(State::Failed, Some(format!("{}: {why}", cycle.node.address)));
        }
        Some(Outcome::Skipped(why) | Outcome::NotApplicable(why) | Outcome::UpdatedPowerCycleNeeded(why)) => {
            cycle.tell(State::Done, Some(why.clone()));
        }
        _ => {
            cycle.tell(State::Done, None);
            cycle.run.tell(&cycle.node.address, Step::Verify, State::Started, None);
        }
    }
    let now = Freshness::Now;
    match verify::read_back(cycle, established, component, now, Interrupt::Never).await {
        Ok(known) => {
            let summary = conclude(component, summary, installed, meaning, &known);
            if failed.is_none() {
                cycle.run.tell(&cycle.node.address, Step::Verify, State::Done, summary.to.clone());
            }
            Ok(summary)
        }
        Err(error) => {
            cycle.has_installed(conclude(component, summary, installed, meaning, &Err(chain(&error))));
            Err(error)
        }
    }
}

/// How a component ended, from what its installer said and what was read back.
fn conclude(
    component: &Component,
    mut summary: ComponentSummary,
    installed: Installed,
    meaning: Meaning,
    known: &Known,
) -> ComponentSummary {
    summary.outcome = match meaning {
        Ok(meaning) => verify::judge(component, meaning, summary.from.as_deref(), known),
        Err(outcome) => outcome,
    };
    summary.to = known.clone().ok().flatten();
    // What was refused on the node is for a person to look into too.
    let is_of_interest = summary.outcome.is_failure() || matches!(summary.outcome, Outcome::Skipped(_));
    summary.log = is_of_interest.then(|| whole_log(installed));
    summary
}

/// An installer's output, and the ends of the logs that it wrote beside.
fn whole_log(installed: Installed) -> String {
    let mut log = installed.log;
    for VendorLog { path, text } in installed.logs {
        if !log.is_empty() && !log.ends_with('\n') {
            log.push('\n');
        }
        log.push_str(&format!("[{path} on the node, its end]\n{text}"));
    }
    log
}

/// Runs the installer and waits for its end, whatever happens to the connection meanwhile: from here on a cancel
/// waits, and what is being written is never begun a second time.
async fn run(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    install: Request,
    begun: Begun,
) -> Result<Installed, CycleError> {
    let heard = || Request::Outcome { component: component.id.clone() };
    let mut request = if begun == Begun::Before { heard() } else { install.clone() };
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
