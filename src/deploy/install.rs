//! Plan, send, install, verify: what is done with the engine of one node.
//!
//! Success is the version read back; an installer's word is only its word. Components are taken in the baseline's
//! order, and one whose prerequisite failed is skipped. One whose prerequisite is active only after a restart waits for
//! the next hop; there it is planned anew, from what the node has then.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use crate::access::control::ControlError;
use crate::error::chain;
use crate::firmware::component::{Component, ExitMeaning};
use crate::firmware::outcome::Outcome;
use crate::firmware::version;
use crate::fleet::{Mode, Reboot};
use crate::wire::id::ComponentId;
use crate::wire::message::{Failure, FailureKind, Install, Installed, Reply, Request};

use super::cancel::CANCELLED;
use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{ComponentSummary, State, Step};
use super::path::{Established, Interrupt};
use super::resume::Stage;
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
        if cycle.components.iter().any(|done| done.id == component.id) {
            continue;
        }
        let inventory = cycle.inventory.as_deref().ok_or(CycleError::Protocol)?;
        let (from, outcome) = match component.matches(inventory) {
            Err(why) => (None, Some(Outcome::NotApplicable(why))),
            Ok(()) => {
                let from = read_back(cycle, established, component, Interrupt::OnCancel).await?;
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
    let hops = Hops::of(to_do.iter().map(|(component, _)| *component));
    let planned = format!("{} of {} components", to_do.len(), baseline.components.len());
    cycle.tell(State::Done, Some(format!("{planned}{}", hops.words(cycle.run))));
    cycle.before.from = to_do.iter().map(|(component, from)| (component.id.clone(), from.clone())).collect();
    cycle.keep(Some(established), Stage::Working).await?;
    for (component, from) in to_do {
        // An installer that has begun before the box died is heard to its end, cancelled or not.
        let begun = cycle.before.begun(&component.id).is_some();
        if !begun && cycle.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let without = |from, outcome| ComponentSummary::new(&component.id, from, None, outcome);
        let summary = match needs(component, &cycle.components) {
            _ if begun => one(cycle, established, component, from).await?,
            _ if cycle.run.is_component_cancelled(&component.id) => {
                without(from, Outcome::Skipped(CANCELLED.into()))
            }
            Needs::Missing(why) => without(from, Outcome::Skipped(why)),
            Needs::Restart(id) if cycle.run.options.reboot == Reboot::Never => {
                without(from, Outcome::Skipped(after_restart(&id)))
            }
            Needs::Restart(id) => {
                let why = format!("{} waits until {id} is active, after a restart", component.id);
                cycle.run.tell(&cycle.node.address, Step::Plan, State::Progress, Some(why));
                continue;
            }
            Needs::Nothing if cycle.run.dry_run => {
                let why = reason(cycle.run, component, from.as_deref());
                without(from, Outcome::WouldUpdate(why + &hops.reason(cycle.run, component)))
            }
            Needs::Nothing => one(cycle, established, component, from).await?,
        };
        if summary.outcome.is_change() && !cycle.run.dry_run {
            cycle.fresh.push(summary.id.clone());
        }
        cycle.components.push(summary);
    }
    Ok(())
}

/// Whether every component has its outcome: nothing waits for a restart, or was never looked at.
pub fn is_settled(cycle: &Cycle<'_>) -> bool {
    let has_one = |component: &Component| cycle.components.iter().any(|done| done.id == component.id);
    cycle.run.baseline.components.iter().all(has_one)
}

/// Installers that have begun before the box died are heard to their end, on a node that is cancelled too.
///
/// # Errors
/// [`CycleError`].
pub async fn hear_begun(cycle: &mut Cycle<'_>, established: &mut Established) -> Result<(), CycleError> {
    let baseline = cycle.run.baseline.clone();
    for component in &baseline.components {
        let is_told = cycle.components.iter().any(|done| done.id == component.id);
        if let Some(from) = cycle.before.begun(&component.id).filter(|_| !is_told) {
            let summary = one(cycle, established, component, from).await?;
            cycle.components.push(summary);
        }
    }
    match cycle.run.is_cancelled() {
        true => Err(CycleError::Cancelled),
        false => Ok(()),
    }
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

/// What a component still needs before it can be installed.
#[derive(Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// A restart, so that this prerequisite becomes active, or can be installed itself.
    Restart(ComponentId),
    /// Why it will not be installed.
    Missing(String),
}

/// What has no outcome yet waits for a restart itself: prerequisites come before what requires them.
fn needs(component: &Component, done: &[ComponentSummary]) -> Needs {
    let mut needs = Needs::Nothing;
    for id in &component.requires {
        match done.iter().find(|other| other.id == *id).map(|other| &other.outcome) {
            Some(Outcome::Updated | Outcome::Current | Outcome::NewerInstalled | Outcome::WouldUpdate(_)) => {
            }
            Some(Outcome::UpdatedRebootNeeded) | None => needs = Needs::Restart(id.clone()),
            Some(_) => return Needs::Missing(format!("needs {id} first, which is not in place")),
        }
    }
    needs
}

fn after_restart(id: &ComponentId) -> String {
    format!(
        "needs {id} active first: restart the node and deploy again (reboot = \"never\" leaves the restart to you)"
    )
}

/// In which hop each component's turn comes, as far as that can be known before: whether a restart is needed only the
/// installer says.
struct Hops(HashMap<ComponentId, u32>);

impl Hops {
    /// Of components in the baseline's order.
    fn of<'a>(components: impl Iterator<Item = &'a Component>) -> Self {
        let mut hops: HashMap<ComponentId, u32> = HashMap::new();
        let mut restarting = HashSet::new();
        for component in components {
            let after = |id| Some(hops.get(id)? + u32::from(restarting.contains(id)));
            let hop = component.requires.iter().filter_map(after).max().unwrap_or(1);
            if component.install.may_need_restart() {
                restarting.insert(&component.id);
            }
            hops.insert(component.id.clone(), hop);
        }
        Self(hops)
    }

    fn words(&self, run: &Run) -> String {
        match self.0.values().max() {
            Some(hops) if *hops > 1 && run.options.reboot != Reboot::Never => {
                format!(", in {hops} hops with a restart between, where installers ask for one")
            }
            _ => String::new(),
        }
    }

    /// For a dry run: what comes before a component.
    fn reason(&self, run: &Run, component: &Component) -> String {
        let Some(hop) = self.0.get(&component.id).filter(|hop| **hop > 1) else { return String::new() };
        let before: Vec<_> = component.requires.iter().map(ToString::to_string).collect();
        let before = before.join(", ");
        match run.options.reboot {
            Reboot::Never => format!(
                "; only once {before} is active: if that takes a restart, it is yours to make (reboot = \"never\")"
            ),
            Reboot::IfNeeded => {
                format!("; in hop {hop}, once {before} is active, after a restart if it asks for one")
            }
            Reboot::Always => format!("; in hop {hop}, once {before} is active, after a restart"),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::Baseline;

    /// Three of a chain, of which the first two need a restart, and one that stands alone.
    fn baseline() -> Baseline {
        let component = |id: &str, extra: &str, exit: &str| {
            format!(
                "[[component]]\nid = \"{id}\"\ntitle = \"x\"\nversion = \"1\"\nformat = \"plain\"\npayload = \"p\"\n\
                 sha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\n{extra}\n\
                 install = {{ command = [\"true\"]{exit} }}\nread_back = {{ file = \"/x\" }}\n",
                0
            )
        };
        let exit = ", exit = { 0 = \"done\", 10 = \"reboot-needed\" }";
        let text = [
            component("a", "", exit),
            component("b", "requires = [\"a\"]", exit),
            component("c", "requires = [\"b\"]", ""),
            component("d", "", ""),
        ];
        let text = format!("id = \"x\"\nversion = \"1\"\ntitle = \"t\"\n{}", text.concat());
        Baseline::parse(&text, "x").unwrap()
    }

    fn named<'a>(baseline: &'a Baseline, id: &str) -> &'a Component {
        baseline.components.iter().find(|component| component.id.as_str() == id).unwrap()
    }

    #[test]
    fn a_component_waits_for_a_restart_only_where_its_prerequisite_does() {
        let baseline = baseline();
        let ended = |id: &str, outcome| ComponentSummary::new(&id.parse().unwrap(), None, None, outcome);
        let (b, c) = (named(&baseline, "b"), named(&baseline, "c"));
        for (outcome, expected) in [
            (Outcome::Updated, Needs::Nothing),
            (Outcome::Current, Needs::Nothing),
            (Outcome::NewerInstalled, Needs::Nothing),
            (Outcome::WouldUpdate("x".into()), Needs::Nothing),
            (Outcome::UpdatedRebootNeeded, Needs::Restart("a".parse().unwrap())),
            (Outcome::Failed("x".into()), Needs::Missing("needs a first, which is not in place".into())),
            (Outcome::Skipped("x".into()), Needs::Missing("needs a first, which is not in place".into())),
        ] {
            assert_eq!(needs(b, &[ended("a", outcome)]), expected);
        }
        // B waits itself, so it has no outcome yet.
        let done = [ended("a", Outcome::UpdatedRebootNeeded)];
        assert_eq!(needs(c, &done), Needs::Restart("b".parse().unwrap()));
    }

    #[test]
    fn hops_are_counted_along_the_chain_from_what_is_still_to_be_done() {
        let baseline = baseline();
        let hops = |ids: &[&str]| {
            let hops = Hops::of(ids.iter().map(|id| named(&baseline, id)));
            ids.iter().map(|id| hops.0[&id.parse().unwrap()]).collect::<Vec<_>>()
        };
        assert_eq!(hops(&["a", "b", "c", "d"]), [1, 2, 3, 1]);
        assert_eq!(hops(&["b", "c"]), [1, 2], "a is in place already");
        assert_eq!(hops(&["c", "d"]), [1, 1]);
    }
}
