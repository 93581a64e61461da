//! The crash matrix: the box is killed at every effect it has, and again at every effect of the run that follows.
//!
//! The real deployment code runs over a [`node`] in memory and the real store. A first process is ended at its n-th
//! passage through the [`fuse`]: before or after each change of the store, each question to the node and each act on
//! it. A second one goes on from there and is ended at its m-th. Then one runs undisturbed, and the node must be as it
//! was found but for its firmware, no installer may have been started twice or interrupted, and what is told must be
//! what the node has. Where two kills leave the same store and the same node, what follows is run
//! once. In some scenes the operator cancels at the m-th passage instead, or another node fails meanwhile.

mod driver;
mod fuse;
mod node;
mod world;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::event::{NodeResult, NodeSummary};
use crate::firmware::outcome::Outcome;
use driver::Ways;
use node::{Effect, NEW, Node};
use world::{Ended, Meanwhile, Operator, Process, Scene, World};

pub use fuse::Fuse;

/// One whole matrix.
struct Matrix<'a> {
    scene: &'a Scene,
    meanwhile: Meanwhile,
    /// Kills.
    points: AtomicUsize,
    /// What a second process has already been run over.
    begun: Mutex<HashSet<String>>,
    /// What a last one has.
    ended: Mutex<HashSet<String>>,
    /// Where a promise was not kept.
    broken: Mutex<Vec<String>>,
}

impl Matrix<'_> {
    /// Every kill, and every kill after it; returns how many there were.
    fn run(scene: &Scene, meanwhile: Meanwhile) -> usize {
        let (begun, ended, broken) = (Mutex::default(), Mutex::default(), Mutex::default());
        let matrix = Matrix { scene, meanwhile, points: AtomicUsize::new(0), begun, ended, broken };
        let undisturbed = scene.world();
        assert_eq!(undisturbed.process(scene, Process::First, None), Ended::Well);
        matrix.verify(&undisturbed, "undisturbed");
        let summary = undisturbed.summaries().remove(0);
        for (components, (_, told)) in scene.nodes.iter().zip(&summary.nodes) {
            let fails = components.iter().any(|(_, effect)| *effect == Effect::Fails);
            let result = match scene.operator {
                Operator::Cancels => NodeResult::Cancelled,
                _ if fails => NodeResult::Failed,
                _ => NodeResult::Done,
            };
            assert_eq!(told.result, result);
        }
        let (next, through) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        std::thread::scope(|scope| {
            // More than there are processors: each waits for its store most of the time.
            for _ in 0..4 * std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let first = next.fetch_add(1, Ordering::SeqCst);
                        if first >= through.load(Ordering::SeqCst) {
                            return;
                        }
                        if !matrix.first(first) {
                            through.fetch_min(first, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let (begun, ended) = (matrix.begun.into_inner().unwrap(), matrix.ended.into_inner().unwrap());
        let (points, broken) = (matrix.points.into_inner(), matrix.broken.into_inner().unwrap());
        assert!(
            broken.is_empty(),
            "{} of {points} kills, some of them:\n{:#?}",
            broken.len(),
            broken.iter().take(12).collect::<Vec<_>>()
        );
        println!(
            "{meanwhile:?}: {points} kills, {} states after the first, {} after all",
            begun.len(),
            ended.len()
        );
        points
    }

    /// False when the process came to its end.
    fn first(&self, passages: usize) -> bool {
        let world = self.scene.world();
        let Ended::Killed(place) = world.process(self.scene, Process::First, Some(passages)) else {
            return false;
        };
        self.points.fetch_add(1, Ordering::Relaxed);
        world.passes(self.meanwhile);
        // Two nodes have so many states that one kill has to do.
        if self.scene.nodes.len() == 1 && self.begun.lock().unwrap().insert(world.contents()) {
            let mut passages = 0;
            while self.second(&world, passages, &place) {
                passages += 1;
            }
        }
        self.last(&world, &place);
        true
    }

    fn second(&self, world: &World, passages: usize, first: &str) -> bool {
        let world = world.copy();
        let ended = world.process(self.scene, Process::Later, Some(passages));
        self.points.fetch_add(1, Ordering::Relaxed);
        match ended {
            Ended::Well => return false,
            Ended::Killed(place) => {
                world.passes(self.meanwhile);
                self.last(&world, &format!("{first}, then {place}"));
            }
            Ended::Cancelled(place) => {
                let place = format!("{first}, then cancelled at {place}");
                self.keep(&place, || self.verify(&world, &place));
            }
        }
        true
    }

    /// The others are run all the same: one broken promise tells less than all of them.
    fn keep(&self, place: &str, promise: impl FnOnce()) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(promise)).is_err() {
            self.broken.lock().unwrap().push(place.to_owned());
        }
    }

    fn last(&self, world: &World, place: &str) {
        if self.ended.lock().unwrap().insert(world.contents()) {
            let world = world.copy();
            self.keep(place, || {
                assert_eq!(world.process(self.scene, Process::Later, None), Ended::Well);
                self.verify(&world, place);
            });
        }
    }

    /// Each node is as it was found, and what is told of it is so.
    fn verify(&self, world: &World, place: &str) {
        (0..self.scene.nodes.len()).for_each(|index| self.verify_node(world, index, place));
    }

    fn verify_node(&self, world: &World, number: usize, place: &str) {
        let place = format!("{:?}, node {number}, killed at {place}", self.meanwhile);
        let node = world.nodes[number].lock().unwrap().clone();
        let summaries = world.summaries();
        let found = self.scene.world().nodes[number].lock().unwrap().snapshot();
        assert_eq!(node.snapshot(), found, "{place}: {summaries:#?}");
        assert_eq!(node.done.interrupted, 0, "{place}");
        assert_eq!(node.done.disturbed, 0, "{place}: asked beside an installer");
        assert!(node.done.restarts <= 1, "{place}: restarted {} times", node.done.restarts);
        assert_eq!(world.count("SELECT count(*) FROM journal WHERE undone IS NULL"), 0, "{place}");
        let started: HashSet<_> = node.done.started.iter().collect();
        assert_eq!(started.len(), node.done.started.len(), "{place}: {:?}", node.done.started);
        assert!(!summaries.is_empty() || started.is_empty(), "{place}");
        if self.scene.operator == Operator::Sweeps {
            // The deployment is not gone on with: what is told of it is the next one's to tell.
            return;
        }
        assert_eq!(world.count("SELECT count(*) FROM sealed"), 0, "{place}");
        for (index, summary) in summaries.iter().enumerate() {
            assert!(summary.ended.is_some(), "{place}");
            let began = |id: &str| {
                started
                    .iter()
                    .any(|(deployment, other)| *deployment == summary.deployment && other.as_str() == id)
            };
            let told = &summary.nodes[number].1;
            let age = if index + 1 == summaries.len() { Age::Last } else { Age::Earlier };
            self.verify_told(&self.scene.nodes[number], &node, told, began, age)
                .unwrap_or_else(|why| panic!("{place}: {why}: {told:#?}"));
        }
    }

    /// What one deployment tells, against what the node has.
    fn verify_told(
        &self,
        components: &[(&str, Effect)],
        node: &Node,
        told: &NodeSummary,
        began: impl Fn(&str) -> bool,
        age: Age,
    ) -> Result<(), &'static str> {
        let is = |promise: bool, broken: &'static str| if promise { Ok(()) } else { Err(broken) };
        let cancels = matches!(self.scene.operator, Operator::Cancels | Operator::CancelsLater);
        is(told.outstanding_traces.is_empty(), "traces")?;
        if told.components.is_empty() {
            // It was never begun, and did not go on by itself, or was not to.
            let stops = cancels || self.scene.nodes.len() > 1;
            let skipped = stops && told.result == NodeResult::Skipped;
            is(told.result == NodeResult::Failed || skipped, "a result without components")?;
            return is(!components.iter().any(|(id, _)| began(id)), "begun without a word");
        }
        let mut all_well = true;
        for (id, effect) in components {
            let component = told.components.iter().find(|component| component.id.as_str() == *id).unwrap();
            let active = node.firmware[*id].active.as_str();
            is(
                age == Age::Earlier || component.to.as_deref().is_none_or(|to| to == active),
                "another version",
            )?;
            match &component.outcome {
                Outcome::Updated => is(began(id) && active == NEW, "not updated")?,
                Outcome::Current => is(!began(id) && active == NEW, "not current")?,
                Outcome::Failed(_) => is(began(id) && *effect == Effect::Fails, "not failed")?,
                Outcome::Skipped(_) => is(!began(id) && (cancels || self.scene.requires), "skipped")?,
                // Called off before the restart was asked for, or after: then nobody has looked.
                Outcome::UpdatedRebootNeeded => {
                    is(cancels && began(id) && node.boots == 1, "no reboot needed")?
                }
                Outcome::Unverified(_) if cancels && *effect == Effect::AtBoot => {}
                // Nobody can know what an installer did whose engine is gone.
                Outcome::Unverified(_) if self.meanwhile != Meanwhile::Nothing => {}
                _ => return Err("an outcome that cannot be"),
            }
            all_well &= matches!(component.outcome, Outcome::Updated | Outcome::Current);
        }
        is((told.result == NodeResult::Done) == all_well, "another result")?;
        is(cancels || told.result != NodeResult::Cancelled, "cancelled by nobody")
    }
}

/// Whether a later deployment may have changed what this one tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Earlier,
    Last,
}

const DIRECT: Ways = Ways { port: true, back: true };
const TUNNEL: Ways = Ways { port: false, back: false };

const ONE: &[(&str, Effect)] = &[("bios", Effect::AtOnce)];
const TWO: &[(&str, Effect)] = &[("bios", Effect::AtOnce), ("nic", Effect::AtOnce)];
const FAILING: &[(&str, Effect)] = &[("bios", Effect::Fails), ("nic", Effect::AtOnce)];
const AT_BOOT: &[(&str, Effect)] = &[("bios", Effect::AtBoot)];

/// Runs a matrix that has at least so many kills: less means that it no longer sees what it saw.
fn matrix(scene: &Scene, meanwhile: Meanwhile, at_least: usize) {
    let points = Matrix::run(scene, meanwhile);
    assert!(points >= at_least, "{points} kills, {at_least} expected");
}

#[test]
fn killed_anywhere_twice_and_the_engine_lives_on() {
    matrix(&Scene::new(TWO, DIRECT, ""), Meanwhile::Nothing, 2_000);
}

#[test]
fn killed_anywhere_twice_and_the_lease_ends_meanwhile() {
    matrix(&Scene::new(TWO, DIRECT, ""), Meanwhile::LeaseEnds, 1_500);
}

#[test]
fn killed_anywhere_twice_and_the_node_restarts_meanwhile() {
    matrix(&Scene::new(TWO, DIRECT, ""), Meanwhile::Restart, 1_500);
}

#[test]
fn killed_anywhere_twice_inside_ssh() {
    matrix(&Scene::new(ONE, TUNNEL, "open_firewall = \"no\""), Meanwhile::Nothing, 1_000);
}

#[test]
fn killed_anywhere_twice_around_a_restart_that_activates() {
    matrix(&Scene::new(AT_BOOT, DIRECT, ""), Meanwhile::Nothing, 4_500);
}

#[test]
fn killed_anywhere_twice_around_a_restart_and_the_lease_ends_meanwhile() {
    matrix(&Scene::new(AT_BOOT, DIRECT, ""), Meanwhile::LeaseEnds, 3_000);
}

#[test]
fn killed_anywhere_twice_around_a_restart_and_the_node_restarts_meanwhile() {
    matrix(&Scene::new(AT_BOOT, DIRECT, ""), Meanwhile::Restart, 3_500);
}

#[test]
fn killed_anywhere_twice_and_cancelled() {
    let scene = Scene::new(TWO, DIRECT, "").operated(Operator::Cancels);
    matrix(&scene, Meanwhile::Nothing, 1_800);
}

#[test]
fn killed_anywhere_twice_and_cancelled_and_the_lease_ends_meanwhile() {
    let scene = Scene::new(TWO, DIRECT, "").operated(Operator::Cancels);
    matrix(&scene, Meanwhile::LeaseEnds, 1_400);
}

#[test]
fn killed_anywhere_twice_and_the_same_command_again() {
    let scene = Scene::new(ONE, DIRECT, "").operated(Operator::CommandLine);
    matrix(&scene, Meanwhile::Nothing, 1_800);
}

#[test]
fn killed_anywhere_twice_and_swept() {
    let scene = Scene::new(ONE, DIRECT, "").operated(Operator::Sweeps);
    for meanwhile in [Meanwhile::Nothing, Meanwhile::LeaseEnds, Meanwhile::Restart] {
        matrix(&scene, meanwhile, 200);
    }
}

#[test]
fn killed_anywhere_twice_and_an_installer_fails() {
    matrix(&Scene::new(FAILING, DIRECT, "").chained(), Meanwhile::LeaseEnds, 1_200);
}

/// Where the version is there before, it proves nothing afterwards.
#[test]
fn killed_anywhere_twice_and_the_same_version_is_written_again() {
    let scene = Scene::new(ONE, DIRECT, "mode = \"rewrite\"").installed(NEW);
    matrix(&scene, Meanwhile::Restart, 1_300);
}

/// What runs on a node when enough others have failed is no new node: it is heard to its end.
#[test]
fn killed_anywhere_beside_a_node_that_fails_for_all() {
    let scene = Scene::new(FAILING, DIRECT, "failures_max = 1").chained().beside(TWO);
    matrix(&scene, Meanwhile::Nothing, 150);
    matrix(&scene, Meanwhile::LeaseEnds, 150);
}

/// After the first kill the operator cancels, at every effect of the run that follows.
#[test]
fn killed_anywhere_and_cancelled_anywhere_after() {
    let scene = Scene::new(TWO, DIRECT, "").operated(Operator::CancelsLater);
    matrix(&scene, Meanwhile::Nothing, 1_000);
}

#[test]
fn killed_anywhere_and_cancelled_anywhere_after_around_a_restart() {
    let scene = Scene::new(AT_BOOT, DIRECT, "").operated(Operator::CancelsLater);
    matrix(&scene, Meanwhile::Nothing, 1_000);
}

/// What is in place because it was installed is no reason why it should not have been.
#[test]
fn killed_anywhere_twice_and_what_was_needed_is_so_no_more() {
    let scene = Scene::new(ONE, DIRECT, "").for_old_ones();
    matrix(&scene, Meanwhile::Nothing, 500);
    matrix(&scene, Meanwhile::LeaseEnds, 500);
}

/// A world whose box was killed while its first installer ran.
fn killed_while_installing(scene: &Scene) -> World {
    for passages in 0.. {
        let world = scene.world();
        let ended = world.process(scene, Process::First, Some(passages));
        assert!(matches!(ended, Ended::Killed(_)), "no installer was ever started");
        if world.nodes[0].lock().unwrap().is_installing() {
            return world;
        }
    }
    unreachable!("numbers have no end")
}

#[test]
fn a_record_that_does_not_open_is_the_nodes_error_and_starts_nothing_again() {
    let scene = Scene::new(TWO, DIRECT, "");
    let world = killed_while_installing(&scene);
    world.change_store("UPDATE sealed SET sealed = x'00' WHERE what LIKE 'engine %'");
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    let told = world.summaries().remove(0).nodes.remove(0).1;
    let error = told.error.unwrap();
    assert_eq!(told.result, NodeResult::Failed);
    assert!(error.contains("cannot be read") && error.contains("deploy again"), "{error}");
    assert!(told.components.iter().all(|component| matches!(component.outcome, Outcome::Unverified(_))));
    let node = world.nodes[0].lock().unwrap();
    assert_eq!((node.done.started.len(), node.done.interrupted), (1, 0));
    assert_eq!(node.snapshot(), scene.world().nodes[0].lock().unwrap().snapshot());
}

#[test]
fn what_does_not_go_on_lists_its_traces_until_they_are_gone_and_says_why() {
    let scene = Scene::new(ONE, DIRECT, "").operated(Operator::CommandLine);
    let world = killed_while_installing(&scene);
    world.lose_key();
    world.passes(Meanwhile::LeaseEnds);
    let mut listed = 0;
    for passages in 0.. {
        let world = world.copy();
        if world.process(&scene, Process::Later, Some(passages)) == Ended::Well {
            break;
        }
        let summary = world.summaries().remove(0);
        let traces = summary.nodes[0].1.outstanding_traces.len();
        if summary.ended.is_some() && listed == 0 {
            let open = world.count("SELECT count(*) FROM journal WHERE undone IS NULL");
            assert_eq!(i64::try_from(traces).unwrap(), open);
            listed = traces;
        }
    }
    assert!(listed > 0);
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    let told = world.summaries().remove(0).nodes.remove(0).1;
    assert!(told.outstanding_traces.is_empty(), "{told:#?}");
    let error = told.error.unwrap();
    assert!(error.contains("does not open with this box's key"), "{error}");
}

#[test]
fn what_was_let_in_goes_on_though_it_would_be_refused_now() {
    let scene = Scene::new(ONE, DIRECT, "");
    let world = killed_while_installing(&scene);
    // Nobody has signed it, and nobody says any more to use it all the same.
    world.change_store("UPDATE deployment SET fleet = replace(fleet, '\"accept\"', '\"refuse\"')");
    assert_eq!(world.count("SELECT count(*) FROM deployment WHERE fleet LIKE '%\"refuse\"%'"), 1);
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    let summary = world.summaries().remove(0);
    assert_eq!(summary.nodes[0].1.result, NodeResult::Done, "{:?}", summary.nodes[0].1);
    assert_eq!(world.nodes[0].lock().unwrap().done.started.len(), 1);
}

#[test]
fn an_engine_lost_before_the_version_is_read_takes_nothing_of_what_the_installer_said() {
    let scene = Scene::new(FAILING, DIRECT, "");
    let world = scene.world();
    world.nodes[0].lock().unwrap().breaks = true;
    assert_eq!(world.process(&scene, Process::First, None), Ended::Well);
    let told = world.summaries().remove(0).nodes.remove(0).1;
    let bios = &told.components[0];
    assert_eq!(bios.outcome, Outcome::Failed("the installer ended with exit code 9: done".into()));
    assert_eq!((bios.from.as_deref(), bios.log.as_deref()), (Some(node::OLD), Some("done")));
}

#[test]
fn an_end_that_the_store_refuses_is_offered_again() {
    const REFUSE: &str = "CREATE TRIGGER refuse BEFORE UPDATE OF ended ON deployment BEGIN
        SELECT RAISE(ABORT, 'full') WHERE abs(random()) % 4 <> 0; END";
    let scene = Scene::new(ONE, DIRECT, "");
    let world = killed_while_installing(&scene);
    world.change_store(REFUSE);
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    assert!(world.summaries()[0].ended.is_some(), "60 tries, a quarter of which is taken");
}

#[test]
fn an_end_that_the_store_never_takes_keeps_nobody_waiting_and_is_made_up_for() {
    let scene = Scene::new(ONE, DIRECT, "");
    let world = killed_while_installing(&scene);
    world.change_store(
        "CREATE TRIGGER refuse BEFORE UPDATE OF ended ON deployment BEGIN SELECT RAISE(ABORT, 'full'); END",
    );
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    assert!(world.summaries()[0].ended.is_none());
    world.change_store("DROP TRIGGER refuse");
    assert_eq!(world.process(&scene, Process::Later, None), Ended::Well);
    let summary = world.summaries().remove(0);
    assert!(summary.ended.is_some());
    assert_eq!(summary.nodes[0].1.result, NodeResult::Done);
    assert_eq!(world.nodes[0].lock().unwrap().done.started.len(), 1);
}
