//! Reading back what a node has: the only proof of what became of a component.

use std::cmp::Ordering;

use crate::access::control::ControlError;
use crate::error::chain;
use crate::firmware::component::{Component, ExitMeaning};
use crate::firmware::fwupd;
use crate::firmware::installed::{Asked, Known, VersionSource};
use crate::firmware::outcome::Outcome;
use crate::firmware::version::VersionFormat;
use crate::wire::inventory::Inventory;
use crate::wire::message::{FailureKind, Reply, Request};

use super::cycle::Cycle;
use super::error::CycleError;
use super::path::{Established, Interrupt};
use super::run::Run;

/// Whether the inventory that is known will do, or what was written since must be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// As it was found.
    Found,
    /// As it is now.
    Now,
}

/// The version that stands at `source` on the node.
///
/// # Errors
/// [`CycleError`]; a version that cannot be told is no error of the node's.
pub async fn read(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    (source, format): (&VersionSource, VersionFormat),
    freshness: Freshness,
    interrupt: Interrupt,
) -> Result<Known, CycleError> {
    let is_old = freshness == Freshness::Now && source.is_device();
    let asks_all = source.needs_inventory() && (cycle.inventory.is_none() || is_old && !source.is_fwupd());
    if asks_all {
        if let Err(why) = take_inventory(cycle, established, interrupt).await? {
            return Ok(Err(why));
        }
    } else if source.is_fwupd() && is_old {
        ask_fwupd(cycle, established, interrupt).await?;
    }
    // A cycle that goes on after its box died has none, and most sources need none.
    let none = Inventory::default();
    let inventory = cycle.inventory.as_deref().unwrap_or(&none);
    let read_back = match source.asked(inventory) {
        Err(why) => return Ok(Err(why)),
        Ok(Asked::Inventory) => return Ok(source.find(inventory, format)),
        Ok(Asked::Engine(read_back)) => read_back,
    };
    match cycle.ask(established, Request::ReadBack(read_back), interrupt).await {
        Ok(Reply::Version(version)) => Ok(Ok(version)),
        Ok(_) => Err(CycleError::Protocol),
        Err(CycleError::Control(ControlError::Engine(failure))) if failure.kind == FailureKind::Node => {
            Ok(Err(chain(&failure)))
        }
        Err(error) => Err(error),
    }
}

/// Takes the inventory anew; what fwupd has listed stays with it, or is asked for where that is not known either.
async fn take_inventory(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    interrupt: Interrupt,
) -> Result<Result<(), String>, CycleError> {
    let mut inventory = match cycle.ask(established, Request::Inventory, interrupt).await {
        Ok(Reply::Inventory(inventory)) => inventory,
        Ok(_) => return Err(CycleError::Protocol),
        Err(CycleError::Control(ControlError::Engine(failure))) if failure.kind == FailureKind::Node => {
            return Ok(Err(chain(&failure)));
        }
        Err(error) => return Err(error),
    };
    let before = cycle.inventory.take();
    let is_known = before.is_some();
    if let Some(before) = before {
        fwupd::keep(&mut inventory, *before);
    }
    cycle.inventory = Some(inventory);
    if !is_known && asks_fwupd(cycle.run) {
        ask_fwupd(cycle, established, interrupt).await?;
    }
    Ok(Ok(()))
}

/// Whether fwupd is asked at all: it takes a program of the node's, and most baselines need nothing of it. A dry run is
/// for a person who looks, and changes nothing.
pub fn asks_fwupd(run: &Run) -> bool {
    run.dry_run || run.baseline.components.iter().any(Component::asks_fwupd)
}

/// What the node's fwupd lists comes into its inventory, or why that is not known.
///
/// # Errors
/// [`CycleError`]; a node without fwupd is no error.
pub async fn ask_fwupd(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    interrupt: Interrupt,
) -> Result<(), CycleError> {
    let told = match cycle.ask(established, Request::Fwupd, interrupt).await {
        Ok(Reply::Fwupd(json)) => Ok(json),
        Ok(_) => return Err(CycleError::Protocol),
        Err(CycleError::Control(ControlError::Engine(failure))) if failure.kind == FailureKind::Node => {
            Err(chain(&failure))
        }
        Err(error) => return Err(error),
    };
    if let Some(inventory) = &mut cycle.inventory {
        fwupd::found(inventory, told);
    }
    Ok(())
}

/// The version a component has on the node.
///
/// # Errors
/// As [`read`].
pub async fn read_back(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
    freshness: Freshness,
    interrupt: Interrupt,
) -> Result<Known, CycleError> {
    let source = (&component.read_back, component.version_format);
    let known = read(cycle, established, source, freshness, interrupt).await?;
    let Some(node) = cycle.inventory.as_deref().filter(|_| component.read_back.is_fwupd()) else {
        return Ok(known);
    };
    Ok(match known {
        Ok(Some(version)) => fwupd::comparable(component, version, node),
        other => other,
    })
}

/// What became of a component whose installer has ended with `meaning`; `from` is the version it found.
pub fn judge(component: &Component, meaning: ExitMeaning, from: Option<&str>, known: &Known) -> Outcome {
    let wanted = &component.version;
    let order = known.as_ref().ok().and_then(Option::as_deref).and_then(|now| component.order_of(now));
    // Written again, a version that was there before proves nothing.
    let before = from.and_then(|from| component.order_of(from));
    let is_news = before != Some(Ordering::Equal);
    let is_wanted_older = before == Some(Ordering::Greater);
    match (meaning, known, order) {
        (ExitMeaning::NotApplicable, ..) => Outcome::NotApplicable("the installer says so".into()),
        (ExitMeaning::Current, _, Some(Ordering::Equal)) => Outcome::Current,
        // Where an older one was wanted, an installer that wrote nothing has not done it.
        (ExitMeaning::Current, _, Some(Ordering::Greater)) if !is_wanted_older => Outcome::NewerInstalled,
        (ExitMeaning::Current, Err(why), _) if component.read_back.is_none() => {
            Outcome::CurrentUnverified(format!("the installer says that {wanted} needs no installing; {why}"))
        }
        (ExitMeaning::Done, Err(why), _) if component.read_back.is_none() => {
            Outcome::UpdatedUnverified(format!("the installer reports success; {why}"))
        }
        (ExitMeaning::Current, Ok(version), _) => Outcome::Unverified(format!(
            "the installer says that {wanted} is there already, but {} was read back",
            version.as_deref().unwrap_or("no version")
        )),
        (ExitMeaning::RebootNeeded, _, Some(Ordering::Equal)) if is_news => Outcome::Updated,
        (ExitMeaning::Done, _, Some(Ordering::Equal)) => Outcome::Updated,
        (ExitMeaning::RebootNeeded, ..) => Outcome::UpdatedRebootNeeded,
        (ExitMeaning::Done, Ok(Some(version)), _) => Outcome::Unverified(format!(
            "the installer reports success, but version {version} was read back instead of {wanted}"
        )),
        (ExitMeaning::Done, Ok(None), _) => {
            Outcome::Unverified("the installer reports success, but no version can be read back".into())
        }
        (ExitMeaning::Current, Err(why), _) => Outcome::Unverified(format!(
            "the installer says that {wanted} or a newer version is there already, which cannot be checked: {why}"
        )),
        (ExitMeaning::Done, Err(why), _) => {
            Outcome::Unverified(format!("the installer reports success, but its version is not known: {why}"))
        }
    }
}

/// What became of a component that is active only after the restart that has been made.
pub fn judge_restarted(component: &Component, known: &Known) -> Outcome {
    match known {
        Ok(Some(active)) if component.order_of(active) == Some(Ordering::Equal) => Outcome::Updated,
        Ok(Some(active)) => Outcome::Unverified(format!(
            "after the restart version {active} is active instead of {}",
            component.version
        )),
        Ok(None) => Outcome::Unverified("after the restart no version can be read".into()),
        Err(why) if component.read_back.is_none() => Outcome::UpdatedUnverified(format!(
            "the installer reported success, and the node was restarted; {why}"
        )),
        Err(why) => Outcome::Unverified(format!("after the restart the version is not known: {why}")),
    }
}
