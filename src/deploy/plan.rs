//! What is to be done with each component on one node, before anything is sent, and why, in words.
//!
//! It looks only at what the node said: its inventory, the versions read, what became of other components. It must never
//! plan a component whose installed version is not known or has no order with the one it brings: which way round
//! would it be flashed?

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use crate::firmware::component::Component;
use crate::firmware::installed::{Known, VersionSource};
use crate::firmware::outcome::Outcome;
use crate::fleet::{Mode, Options, Reboot};
use crate::wire::id::ComponentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::NvmeDisk;

use super::event::ComponentSummary;

/// What is clear before anything is sent; none when the component is to be installed.
pub fn verdict(mode: Mode, component: &Component, known: &Known) -> Option<Outcome> {
    let installed = match known {
        // Its installer decides.
        Err(_) if component.read_back.is_none() => return None,
        Err(why) => return Some(Outcome::Failed(format!("the installed version is not known: {why}"))),
        Ok(None) => return absent(component),
        Ok(Some(installed)) => installed,
    };
    match (component.order_of(installed), mode) {
        (Some(_), Mode::Rewrite) | (Some(Ordering::Less), _) | (Some(Ordering::Greater), Mode::Downgrade) => {
            None
        }
        (Some(Ordering::Equal), _) => Some(Outcome::Current),
        (Some(Ordering::Greater), Mode::Upgrade) => Some(Outcome::NewerInstalled),
        (None, _) => Some(Outcome::Failed(format!(
            "{installed} is installed, which has no order with {} among {} versions",
            component.version, component.version_format
        ))),
    }
}

/// The NVMe disks of a component that may be written: each is judged like a node that had no other.
pub fn disks(mode: Mode, component: &Component, node: Option<&Inventory>) -> Vec<NvmeDisk> {
    let VersionSource::Disk(model) = &component.read_back else { return Vec::new() };
    let disks = node.into_iter().flat_map(|node| &node.disks);
    let of_model = disks.filter(|disk| disk.kind == "nvme" && disk.model.as_ref() == Some(model));
    let planned = of_model.filter_map(|disk| {
        let revision = disk.firmware_version.clone()?;
        let is_planned = verdict(mode, component, &Ok(Some(revision.clone()))).is_none();
        is_planned.then(|| NvmeDisk { serial: disk.serial.clone().unwrap_or_default(), revision })
    });
    planned.collect()
}

/// Nothing is installed: what a component without a device, or only for those who have it, is not for.
fn absent(component: &Component) -> Option<Outcome> {
    let source = &component.read_back;
    (component.only_if_installed || source.is_device())
        .then(|| Outcome::NotApplicable(format!("the node does not have {source}")))
}

/// Why a component would be installed, and what that takes, for a dry run.
pub fn reason(mode: Mode, component: &Component, installed: Option<&str>) -> String {
    let brings = &component.version;
    if let VersionSource::None(why) = &component.read_back {
        let seconds = component.expected_s;
        return format!(
            "what is installed cannot be told ({why}): the installer of {brings} decides; {} bytes to send, about {seconds} s \
             to install",
            component.size
        );
    }
    let why = match installed.map(|installed| (installed, component.order_of(installed))) {
        None => format!("nothing is installed, {brings} would be"),
        Some((installed, Some(Ordering::Less))) => format!("{installed} is installed, {brings} is newer"),
        Some((installed, Some(Ordering::Greater))) => {
            let mode = if mode == Mode::Rewrite { "rewrite" } else { "downgrade" };
            format!("{installed} is installed, {brings} is older and wanted (mode = \"{mode}\")")
        }
        Some((installed, _)) => {
            format!("{installed} is installed and would be written again (mode = \"rewrite\")")
        }
    };
    format!("{why}; {} bytes to send, about {} s to install", component.size, component.expected_s)
}

/// What a component still needs before it can be installed.
#[derive(Debug, PartialEq, Eq)]
pub enum Needs {
    /// Its turn has come.
    Nothing,
    /// A restart, so that this prerequisite becomes active, or can be installed itself.
    Restart(ComponentId),
    /// Why it will not be installed.
    Missing(String),
}

/// Whether a component is there and active, or would be. Where nothing can be read, its installer's word has to do: what
/// comes after it could never be installed otherwise.
fn is_in_place(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Updated
            | Outcome::UpdatedUnverified(_)
            | Outcome::Current
            | Outcome::CurrentUnverified(_)
            | Outcome::NewerInstalled
            | Outcome::WouldUpdate(_)
    )
}

/// The component that keeps this one away, in words.
pub fn conflict(component: &Component, done: &[ComponentSummary]) -> Option<String> {
    let is_there = |other: &&ComponentSummary| {
        component.conflicts.contains(&other.id)
            && (is_in_place(&other.outcome)
                || matches!(
                    other.outcome,
                    Outcome::UpdatedRebootNeeded
                        | Outcome::UpdatedPowerCycleNeeded(_)
                        | Outcome::Unverified(_)
                ))
    };
    let other = done.iter().find(is_there)?;
    Some(format!("conflicts with {}, which is in place", other.id))
}

/// What has no outcome yet waits for a restart itself: prerequisites come before what requires them.
pub fn needs(component: &Component, done: &[ComponentSummary]) -> Needs {
    let mut needs = Needs::Nothing;
    for id in &component.requires {
        match done.iter().find(|other| other.id == *id).map(|other| &other.outcome) {
            Some(outcome) if is_in_place(outcome) => {}
            Some(Outcome::UpdatedRebootNeeded) | None => needs = Needs::Restart(id.clone()),
            Some(_) => return Needs::Missing(format!("needs {id} first, which is not in place")),
        }
    }
    needs
}

/// What is to be done by hand where nothing is restarted.
pub fn after_restart(id: &ComponentId) -> String {
    format!(
        "needs {id} active first: restart the node and deploy again (reboot = \"never\" leaves the restart to you)"
    )
}

/// In which hop each component's turn comes, as far as that can be known before: whether a restart is needed only the
/// installer says.
pub struct Hops(HashMap<ComponentId, u32>);

impl Hops {
    /// Of components in the baseline's order.
    pub fn of<'a>(components: impl Iterator<Item = &'a Component>) -> Self {
        let mut hops: HashMap<ComponentId, u32> = HashMap::new();
        let mut restarting = HashSet::new();
        for component in components {
            let after = |id| Some(hops.get(id)? + u32::from(restarting.contains(id)));
            let hop = component.requires.iter().filter_map(after).max().unwrap_or(1);
            if component.may_need_restart() {
                restarting.insert(&component.id);
            }
            hops.insert(component.id.clone(), hop);
        }
        Self(hops)
    }

    /// How many there are, where that says something.
    pub fn words(&self, options: &Options) -> String {
        match self.0.values().max() {
            Some(hops) if *hops > 1 && options.reboot != Reboot::Never => {
                format!(", in {hops} hops with a restart between, where installers ask for one")
            }
            _ => String::new(),
        }
    }

    /// For a dry run: what comes before a component.
    pub fn reason(&self, options: &Options, component: &Component) -> String {
        let Some(hop) = self.0.get(&component.id).filter(|hop| **hop > 1) else { return String::new() };
        let before: Vec<_> = component.requires.iter().map(ToString::to_string).collect();
        let before = before.join(", ");
        match options.reboot {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::Baseline;
    use crate::wire::inventory::Disk;

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
    fn of_disks_of_a_model_only_those_are_written_that_the_mode_is_for() {
        let text = format!(
            "id = \"x\"\nversion = \"1\"\ntitle = \"t\"\n[[component]]\nid = \"disk\"\ntitle = \"x\"\nversion = \"2\"\n\
             format = \"nvme\"\npayload = \"p\"\nsha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\n\
             read_back = {{ disk = \"M\" }}\n",
            0
        );
        let component = Baseline::parse(&text, "x").unwrap().components.remove(0);
        let disk = |model: &str, revision: &str| Disk {
            kind: "nvme".into(),
            model: Some(model.into()),
            serial: Some(format!("S{revision}")),
            firmware_version: Some(revision.into()),
            ..Disk::default()
        };
        let node = Inventory {
            disks: vec![disk("M", "1"), disk("M", "2"), disk("M", "3"), disk("other", "1")],
            ..Inventory::default()
        };
        let planned = |mode| {
            let disks = disks(mode, &component, Some(&node));
            disks.into_iter().map(|disk| format!("{} {}", disk.serial, disk.revision)).collect::<Vec<_>>()
        };
        assert_eq!(planned(Mode::Upgrade), ["S1 1"], "a newer one is left as it is");
        assert_eq!(planned(Mode::Downgrade), ["S1 1", "S3 3"]);
        assert_eq!(planned(Mode::Rewrite), ["S1 1", "S2 2", "S3 3"]);
        assert_eq!(disks(Mode::Rewrite, &component, None), []);
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
            (Outcome::UpdatedUnverified("x".into()), Needs::Nothing),
            (Outcome::CurrentUnverified("x".into()), Needs::Nothing),
            (
                Outcome::UpdatedPowerCycleNeeded("x".into()),
                Needs::Missing("needs a first, which is not in place".into()),
            ),
            (Outcome::Unverified("x".into()), Needs::Missing("needs a first, which is not in place".into())),
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

    #[test]
    fn what_has_no_order_or_is_not_known_is_never_planned() {
        let baseline = baseline();
        let mut d = named(&baseline, "d").clone();
        (d.version, d.version_format) = ("1.2.3".into(), crate::firmware::version::VersionFormat::Triplet);
        let verdict = |installed: Known, mode| verdict(mode, &d, &installed);
        let some = |version: &str| Ok(Some(version.to_owned()));
        assert_eq!(verdict(some("1.2.2"), Mode::Upgrade), None);
        assert_eq!(verdict(some("1.2.10"), Mode::Upgrade), Some(Outcome::NewerInstalled));
        assert_eq!(verdict(some("1.2.10"), Mode::Downgrade), None);
        assert_eq!(verdict(some("1.2.3"), Mode::Rewrite), None);
        assert_eq!(verdict(Ok(None), Mode::Upgrade), None);
        for mode in [Mode::Upgrade, Mode::Downgrade, Mode::Rewrite] {
            let Some(Outcome::Failed(why)) = verdict(some("unknown"), mode) else { panic!("planned") };
            assert_eq!(why, "unknown is installed, which has no order with 1.2.3 among triplet versions");
            let Some(Outcome::Failed(why)) = verdict(Err("eio".into()), mode) else { panic!("planned") };
            assert_eq!(why, "the installed version is not known: eio");
        }
    }

    #[test]
    fn what_is_for_a_device_or_an_installed_package_is_not_for_a_node_without() {
        let baseline = baseline();
        let mut d = named(&baseline, "d").clone();
        d.only_if_installed = true;
        assert!(matches!(verdict(Mode::Upgrade, &d, &Ok(None)), Some(Outcome::NotApplicable(_))));
        d.only_if_installed = false;
        d.read_back = crate::firmware::installed::VersionSource::Bmc;
        assert!(matches!(verdict(Mode::Upgrade, &d, &Ok(None)), Some(Outcome::NotApplicable(_))));
    }

    #[test]
    fn a_conflict_is_only_with_what_is_there() {
        let baseline = baseline();
        let mut d = named(&baseline, "d").clone();
        d.conflicts = vec!["a".parse().unwrap()];
        let ended = |outcome| [ComponentSummary::new(&"a".parse().unwrap(), None, None, outcome)];
        assert_eq!(conflict(&d, &ended(Outcome::NotApplicable("x".into()))), None);
        for there in [Outcome::Current, Outcome::UpdatedRebootNeeded, Outcome::WouldUpdate("x".into())] {
            assert_eq!(conflict(&d, &ended(there)).unwrap(), "conflicts with a, which is in place");
        }
    }
}
