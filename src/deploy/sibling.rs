//! Components that one run of an installer takes together: packages are for several devices, and installers take all of
//! the devices that they find.
//!
//! The run is made once, asked for by the first of them; the others find out what it did for them. It must never be
//! made again for another of them, whatever became of it: it may have failed half-way through a write, a restart may be
//! all that is missing, and of a box that died nothing may be known.

use std::cmp::Ordering;

use crate::firmware::component::Component;
use crate::firmware::installed::Known;
use crate::firmware::outcome::Outcome;

use super::cycle::Cycle;
use super::event::ComponentSummary;

/// A run that another component has asked for.
#[derive(Debug, Clone)]
pub struct SiblingRun {
    /// How it ended for that one.
    summary: ComponentSummary,
    /// That one had its version already, and was written again.
    was_again: bool,
}

/// The run that has taken this component along, in this hop or of an engine that is gone.
pub fn run_of(cycle: &Cycle<'_>, component: &Component) -> Option<SiblingRun> {
    let others = cycle.run.baseline.components.iter().filter(|other| other.id != component.id);
    let mut with_it = others.filter(|other| other.is_installed_with(component));
    with_it.find_map(|other| {
        // Asked for and not told: the engine that runs says that it has never begun.
        let summary = cycle.components.iter().find(|done| done.id == other.id)?;
        let was_again = summary.from.as_deref().is_some_and(|from| is_it(other, from));
        let has_run = cycle.before.was_asked(&other.id);
        has_run.then(|| SiblingRun { summary: summary.clone(), was_again })
    })
}

fn is_it(component: &Component, version: &str) -> bool {
    component.order_of(version) == Some(Ordering::Equal)
}

/// What became of a component that was taken along; `from` is the version before, `known` what is there now.
pub fn judge(component: &Component, from: Option<&str>, run: &SiblingRun, known: &Known) -> Outcome {
    let (id, wanted) = (&run.summary.id, &component.version);
    let is_there = known.as_ref().is_ok_and(|now| now.as_deref().is_some_and(|now| is_it(component, now)));
    let was_there = from.is_some_and(|from| is_it(component, from));
    if is_there && !was_there {
        return Outcome::Updated;
    }
    let with = |why: &str| format!("installed together with {id}, and not a second time: {why}");
    match &run.summary.outcome {
        Outcome::UpdatedRebootNeeded => Outcome::UpdatedRebootNeeded,
        Outcome::UpdatedPowerCycleNeeded(why) => Outcome::UpdatedPowerCycleNeeded(why.clone()),
        // Written again like the other one: the same proof has to do for both.
        Outcome::Updated if is_there && run.was_again => Outcome::Updated,
        Outcome::Updated if is_there => {
            Outcome::Unverified(with(&format!("{wanted} was there before, which proves nothing")))
        }
        Outcome::Failed(why) => Outcome::Failed(with(why)),
        Outcome::Unverified(why) => Outcome::Unverified(with(why)),
        Outcome::Skipped(why) => Outcome::Skipped(with(why)),
        Outcome::NotApplicable(why) => Outcome::NotApplicable(with(why)),
        Outcome::Updated
        | Outcome::UpdatedUnverified(_)
        | Outcome::Current
        | Outcome::CurrentUnverified(_)
        | Outcome::NewerInstalled
        | Outcome::WouldUpdate(_) => Outcome::Unverified(with(&match known {
            Ok(now) => format!("{} is read back", now.as_deref().unwrap_or("no version")),
            Err(why) => format!("its version is not known: {why}"),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::Baseline;

    fn components() -> Vec<Component> {
        let one = |id: &str, format: &str, rest: &str| {
            format!(
                "[[component]]\nid = \"{id}\"\ntitle = \"x\"\nversion = \"2\"\nversion_format = \"number\"\n\
                 format = \"{format}\"\npayload = \"{format}\"\nsha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\n{rest}\n",
                0
            )
        };
        let fwupd = |guid: &str| {
            format!("match = {{ fwupd_guid = [\"{guid}\"] }}\nread_back = {{ fwupd = [\"{guid}\"] }}")
        };
        let guid = |digit: &str| format!("{0}-{1}-{1}-{1}-{0}{1}", digit.repeat(8), digit.repeat(4));
        let plain = |word: &str| {
            format!("install = {{ command = [\"x\", \"{word}\"] }}\nread_back = {{ file = \"/x\" }}")
        };
        let text = [
            "id = \"b\"\nversion = \"1\"\ntitle = \"t\"\n".to_owned(),
            one("a", "lvfs-cab", &fwupd(&guid("a"))),
            one("b", "lvfs-cab", &fwupd(&guid("b"))),
            one("c", "plain", &plain("c")),
            one("d", "plain", &plain("d")),
            one("e", "nvme", "read_back = { disk = \"M1\" }"),
            one("f", "nvme", "read_back = { disk = \"M2\" }"),
        ];
        Baseline::parse(&text.concat(), "b").unwrap().components
    }

    #[test]
    fn one_run_is_for_all_that_its_installer_finds_and_for_no_other() {
        let all = components();
        let with = |a: usize, b: usize| all[a].is_installed_with(&all[b]);
        assert!(with(0, 1), "one cabinet, two devices");
        assert!(!with(2, 3), "one payload, two commands");
        assert!(!with(4, 5), "one image, two models");
    }

    #[test]
    fn what_was_taken_along_is_judged_by_what_is_there_and_by_the_run() {
        let all = components();
        let judged = |outcome: Outcome, from: &str, now: &str| {
            let run = SiblingRun {
                summary: ComponentSummary::new(&all[0].id, Some("1".into()), None, outcome),
                was_again: false,
            };
            judge(&all[1], Some(from), &run, &Ok(Some(now.into())))
        };
        let with = |why: &str| format!("installed together with a, and not a second time: {why}");
        let (failed, lost) =
            (|| Outcome::Failed("no power".into()), || Outcome::Unverified("the box died".into()));
        for outcome in [failed(), lost(), Outcome::Updated, Outcome::UpdatedRebootNeeded] {
            assert_eq!(judged(outcome, "1", "2"), Outcome::Updated, "it is there");
        }
        assert_eq!(judged(failed(), "1", "1"), Outcome::Failed(with("no power")));
        assert_eq!(judged(lost(), "1", "1"), Outcome::Unverified(with("the box died")));
        assert_eq!(judged(Outcome::UpdatedRebootNeeded, "1", "1"), Outcome::UpdatedRebootNeeded);
        assert_eq!(judged(Outcome::Updated, "1", "1"), Outcome::Unverified(with("1 is read back")));
        assert_eq!(judged(failed(), "2", "2"), Outcome::Failed(with("no power")), "it was there before");
        let proves_nothing = with("2 was there before, which proves nothing");
        assert_eq!(judged(Outcome::Updated, "2", "2"), Outcome::Unverified(proves_nothing));
        let again = SiblingRun {
            summary: ComponentSummary::new(&all[0].id, Some("2".into()), None, Outcome::Updated),
            was_again: true,
        };
        assert_eq!(judge(&all[1], Some("2"), &again, &Ok(Some("2".into()))), Outcome::Updated);
        let unknown = judge(&all[1], Some("1"), &again, &Err("fwupd is away".into()));
        assert_eq!(unknown, Outcome::Unverified(with("its version is not known: fwupd is away")));
    }
}
