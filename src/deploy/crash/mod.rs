//! The crash matrix: the box is killed at every effect it has, and again at every effect of the run that follows.
//!
//! The real deployment code runs over a [`node`] in memory and the real store. A first process is ended at its n-th
//! passage through the [`fuse`]: before or after each change of the store, each question to the node and each act on
//! it. A second one goes on from there and is ended at its m-th. Then one runs undisturbed, and the node must be as it
//! was found but for its firmware, no installer may have been started twice or interrupted, and what is told must be
//! what the node has. Where two kills leave the same store and the same node, what follows is run once.

mod driver;
mod fuse;
mod node;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::Deployments;
use super::event::{NodeResult, Summary};
use super::schedule::Intent;
use super::store::Store;
use super::vault::Vault;
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::firmware::outcome::Outcome;
use crate::fleet::Fleet;
use crate::https::Registry;
use crate::wire::firewall::{FirewallTool, Flavour, RuleSpec};
use driver::{Fake, Ways};
use node::{Activation, NEW, Node, OLD};

pub use fuse::Fuse;

/// On a RAM disk: what is durable there survives a killed process, and that is all that is asked of it here.
const RAM_DISK: &str = "/dev/shm";

/// The last start has the node clean within this, of the paused clock.
const CLEAN_MAX: Duration = Duration::from_secs(3600);

/// What happens to the node while nobody looks after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// The box is back at once: the engine still runs.
    Nothing,
    /// The box is away for so long that the engine takes itself away.
    LeaseEnds,
    /// The node restarts by itself.
    Restart,
}

/// What is deployed, over which ways.
struct Scene {
    /// The baseline's; here so that it lasts.
    _directory: TempDir,
    fleet: Fleet,
    ways: Ways,
    components: Vec<(&'static str, Activation)>,
}

impl Scene {
    fn new(components: &[(&'static str, Activation)], ways: Ways, options: &str) -> Self {
        let directory = tempfile::tempdir_in(RAM_DISK).unwrap();
        let mut manifest = String::from("id = \"fake\"\nversion = \"1\"\ntitle = \"test\"\n");
        for (id, _) in components {
            let payload = format!("payload of {id}");
            manifest += &format!(
                "[[component]]\nid = \"{id}\"\ntitle = \"test\"\nversion = \"{NEW}\"\nformat = \"plain\"\n\
                 payload = \"{id}.bin\"\nsha256 = \"{}\"\nsize = {}\nexpected_s = 5\n\
                 install = {{ command = [\"{{payload}}\"], exit = {{ 0 = \"done\", 3 = \"reboot-needed\" }} }}\n\
                 read_back = {{ file = \"{id}\" }}\n",
                Sha256::of(payload.as_bytes()),
                payload.len()
            );
            crate::durable::write(&directory.path().join(format!("{id}.bin")), payload.as_bytes(), 0o600)
                .unwrap();
        }
        crate::durable::write(&directory.path().join("baseline.toml"), manifest.as_bytes(), 0o600).unwrap();
        let baseline = directory.path().display();
        let fleet = format!(
            "baseline = \"{baseline}\"\n[options]\n{options}\n[[node]]\naddress = \"fd00::2\"\nuser = \"root\"\n"
        );
        let mut fleet: Fleet = toml::from_str(&fleet).unwrap();
        fleet.nodes[0].password = Some(crate::secret::Secret::new("password".into()));
        Self { _directory: directory, fleet, ways, components: components.to_vec() }
    }

    fn world(&self) -> World {
        let state = tempfile::tempdir_in(RAM_DISK).unwrap();
        let theirs = RuleSpec {
            tool: FirewallTool::Iptables { program: "ip6tables".parse().unwrap(), flavour: Flavour::Nft },
            deployment: "0190-another".parse().unwrap(),
            from: driver::BOX.parse().unwrap(),
            port: crate::paths::ENGINE_PORT,
        };
        World { state, node: Arc::new(Mutex::new(Node::new(&self.components, theirs))) }
    }
}

/// What outlives a process of the box: its state directory, and the node.
struct World {
    state: TempDir,
    node: Arc<Mutex<Node>>,
}

/// How a process of the box ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// There was nothing more to do.
    Well,
    /// By its fuse; then also where.
    Killed(String),
}

impl World {
    fn copy(&self) -> Self {
        let state = tempfile::tempdir_in(RAM_DISK).unwrap();
        for entry in std::fs::read_dir(self.state.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), state.path().join(entry.file_name())).unwrap();
        }
        Self { state, node: Arc::new(Mutex::new(self.node.lock().unwrap().clone())) }
    }

    fn database(&self) -> PathBuf {
        self.state.path().join(crate::paths::STORE_FILE)
    }

    /// A process of the box: goes on with what it finds, begins `fleet` if that is given, and ends when all is done, or
    /// at its `passages`-th effect.
    fn process(&self, scene: &Scene, fleet: Option<&Fleet>, passages: Option<usize>) -> Ended {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let fuse = Fuse::after(passages);
        let ended = runtime.block_on(async {
            self.node.lock().unwrap().box_begins();
            let fake = Fake { node: self.node.clone(), fuse: fuse.clone(), ways: scene.ways };
            let ended = tokio::select! {
                biased;
                () = fuse.blown() => Ended::Killed(fuse.last()),
                () = serve(self.state.path(), fake, fleet) => Ended::Well,
            };
            self.node.lock().unwrap().box_ends();
            ended
        });
        drop(runtime);
        self.wait_until_closed();
        ended
    }

    /// The store's thread lets go of the database a moment after the last process that used it.
    fn wait_until_closed(&self) {
        let log = self.state.path().join(format!("{}-wal", crate::paths::STORE_FILE));
        let begun = std::time::Instant::now();
        while log.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the store's thread does not end");
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    fn passes(&self, meanwhile: Meanwhile) {
        let mut node = self.node.lock().unwrap();
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::LeaseEnds => node.pass(Duration::from_secs(600)),
            Meanwhile::Restart => node.restarts_by_itself(),
        }
    }

    /// Everything that decides what happens next: what is in the store, and what is on the node; no hour and no key.
    fn contents(&self) -> String {
        let connection = Connection::open(self.database()).unwrap();
        let rows = |query: &str| -> Vec<String> {
            let Ok(mut select) = connection.prepare(query) else { return Vec::new() };
            let row = |row: &rusqlite::Row<'_>| {
                Ok(format!("{:?}", (0..3).map(|i| row.get::<_, Option<String>>(i)).collect::<Vec<_>>()))
            };
            select.query_map([], row).unwrap().map(Result::unwrap).collect()
        };
        let mut all = rows("SELECT id, ended IS NULL || '', summary FROM deployment ORDER BY id").join("\n");
        all += &rows("SELECT undo, undone IS NULL || '', '' FROM journal ORDER BY entry").join("\n");
        all += &rows("SELECT address, fingerprint, '' FROM pin").join("\n");
        all += &self.sealed(&connection).join("\n");
        all += &self.node.lock().unwrap().state();
        let id: Option<String> = connection.query_row("SELECT id FROM deployment", [], |row| row.get(0)).ok();
        let all = id.map_or(all.clone(), |id| all.replace(&id, "ID"));
        all.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect()
    }

    /// What is sealed in the store, without its keys.
    fn sealed(&self, connection: &Connection) -> Vec<String> {
        let vault = Vault::in_directory(self.state.path()).unwrap();
        let Ok(mut select) = connection.prepare("SELECT deployment, what, sealed FROM sealed ORDER BY what")
        else {
            return Vec::new();
        };
        let row = |row: &rusqlite::Row<'_>| {
            let (deployment, what, sealed): (String, String, Vec<u8>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let plain = vault.open(&format!("{deployment}/{what}"), &sealed).unwrap();
            let mut value: serde_json::Value = serde_json::from_slice(&plain).unwrap();
            value.as_object_mut().unwrap().remove("keys");
            Ok(format!("{what} {value}"))
        };
        select.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    fn summary(&self) -> Option<Summary> {
        let connection = Connection::open(self.database()).unwrap();
        let text: String =
            connection.query_row("SELECT summary FROM deployment", [], |row| row.get(0)).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    fn count(&self, query: &str) -> i64 {
        Connection::open(self.database()).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
    }
}

/// What `carena serve` does with its deployments, until there is nothing more to do.
async fn serve(state: &Path, fake: Fake, fleet: Option<&Fleet>) {
    let fuse = fake.fuse.clone();
    let store = Store::open(state).unwrap().fused(&fuse);
    // For the eyes of the test: not an effect of the box.
    let aside = store.clone().fused(&Fuse::after(None));
    let vault = Vault::in_directory(state).unwrap();
    let deployments =
        Deployments::over(Arc::new(fake), store, Cache::embedded(), Registry::new(), 1).sealed_by(vault);
    let mut running = deployments.resume_all().await.unwrap();
    deployments.keep_sweeping();
    if let Some(fleet) = fleet {
        running.push(deployments.start(fleet.clone(), Intent::Install).await.unwrap());
    }
    for id in running {
        deployments.ended(&id).await;
    }
    let end = tokio::time::Instant::now() + CLEAN_MAX;
    while !aside.outstanding().await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < end, "not clean: {:?}", aside.outstanding().await.unwrap());
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

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
        assert_eq!(undisturbed.process(scene, Some(&scene.fleet), None), Ended::Well);
        matrix.verify(&undisturbed, "undisturbed");
        assert_eq!(undisturbed.summary().unwrap().nodes[0].1.result, NodeResult::Done);
        let (next, through) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
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
        let Ended::Killed(place) = world.process(self.scene, Some(&self.scene.fleet), Some(passages)) else {
            return false;
        };
        self.points.fetch_add(1, Ordering::Relaxed);
        world.passes(self.meanwhile);
        if self.begun.lock().unwrap().insert(world.contents()) {
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
        let Ended::Killed(place) = world.process(self.scene, None, Some(passages)) else { return false };
        self.points.fetch_add(1, Ordering::Relaxed);
        world.passes(self.meanwhile);
        self.last(&world, &format!("{first}, then {place}"));
        true
    }

    fn last(&self, world: &World, place: &str) {
        if self.ended.lock().unwrap().insert(world.contents()) {
            let world = world.copy();
            // The others are run all the same: one broken promise tells less than all of them.
            let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                assert_eq!(world.process(self.scene, None, None), Ended::Well);
                self.verify(&world, place);
            }));
            if kept.is_err() {
                self.broken.lock().unwrap().push(place.to_owned());
            }
        }
    }

    /// The node is as it was found, and what is told of it is so.
    fn verify(&self, world: &World, place: &str) {
        let place = format!("{:?}, killed at {place}", self.meanwhile);
        let node = world.node.lock().unwrap().clone();
        let found = self.scene.world().node.lock().unwrap().snapshot();
        assert_eq!(node.snapshot(), found, "{place}: {:#?}", world.summary());
        assert_eq!(node.done.interrupted, 0, "{place}");
        assert!(node.done.restarts <= 1, "{place}: restarted {} times", node.done.restarts);
        assert_eq!(world.count("SELECT count(*) FROM journal WHERE undone IS NULL"), 0, "{place}");
        assert_eq!(world.count("SELECT count(*) FROM sealed"), 0, "{place}");
        let started: HashSet<_> = node.done.started.iter().collect();
        assert_eq!(started.len(), node.done.started.len(), "{place}: {:?}", node.done.started);
        let Some(summary) = world.summary() else {
            assert!(started.is_empty(), "{place}");
            return;
        };
        assert!(summary.ended.is_some(), "{place}");
        let told = &summary.nodes[0].1;
        assert!(told.outstanding_traces.is_empty(), "{place}: {told:#?}");
        if told.components.is_empty() {
            // It was never begun, and could not go on by itself.
            assert_eq!(told.result, NodeResult::Failed, "{place}: {told:#?}");
            assert!(started.is_empty(), "{place}");
            return;
        }
        for (id, _) in &self.scene.components {
            let component = told.components.iter().find(|component| component.id.as_str() == *id).unwrap();
            let active = node.firmware[*id].active.as_str();
            let began = started.iter().any(|(_, other)| other.as_str() == *id);
            if let Some(to) = &component.to {
                assert_eq!(to, active, "{place}: {told:#?}");
            }
            match &component.outcome {
                Outcome::Updated => assert!(began && active == NEW, "{place}: {told:#?}"),
                Outcome::Skipped(_) => assert!(!began && active == OLD, "{place}: {told:#?}"),
                // Nobody can know what an installer did whose engine is gone.
                Outcome::Unverified(_) if self.meanwhile != Meanwhile::Nothing => {}
                _ => panic!("{place}: {told:#?}"),
            }
        }
        let all = told.components.iter().all(|component| component.outcome == Outcome::Updated);
        let result = if all { NodeResult::Done } else { NodeResult::Failed };
        assert_eq!(told.result, result, "{place}: {told:#?}");
    }
}

const DIRECT: Ways = Ways { port: true, back: true };
const TUNNEL: Ways = Ways { port: false, back: false };

const TWO: &[(&str, Activation)] = &[("bios", Activation::AtOnce), ("nic", Activation::AtOnce)];

#[test]
fn killed_anywhere_twice_and_the_engine_lives_on() {
    let scene = Scene::new(TWO, DIRECT, "");
    let points = Matrix::run(&scene, Meanwhile::Nothing);
    assert!(points > 2_000, "{points}");
}

#[test]
fn killed_anywhere_twice_and_the_lease_ends_meanwhile() {
    let scene = Scene::new(TWO, DIRECT, "");
    let points = Matrix::run(&scene, Meanwhile::LeaseEnds);
    assert!(points > 2_000, "{points}");
}

#[test]
fn killed_anywhere_twice_and_the_node_restarts_meanwhile() {
    let scene = Scene::new(TWO, DIRECT, "");
    let points = Matrix::run(&scene, Meanwhile::Restart);
    assert!(points > 2_000, "{points}");
}

#[test]
fn killed_anywhere_twice_inside_ssh() {
    let scene = Scene::new(&TWO[..1], TUNNEL, "open_firewall = \"no\"");
    let points = Matrix::run(&scene, Meanwhile::Nothing);
    assert!(points > 1_000, "{points}");
}

const AT_BOOT: &[(&str, Activation)] = &[("bios", Activation::AtBoot)];

#[test]
fn killed_anywhere_twice_around_a_restart_that_activates() {
    let scene = Scene::new(AT_BOOT, DIRECT, "");
    for meanwhile in [Meanwhile::Nothing, Meanwhile::LeaseEnds, Meanwhile::Restart] {
        let points = Matrix::run(&scene, meanwhile);
        assert!(points > 2_000, "{points}");
    }
}
