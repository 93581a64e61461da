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
use super::deployments::Intent;
use super::event::{NodeResult, NodeSummary, Summary};
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

/// Who runs the processes of the box, and what the operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    /// A service: a deployment is begun once, and goes on by itself.
    Service,
    /// The same, and the operator cancels the deployment while its first installer runs.
    Cancels,
    /// The command line: the same command again and again.
    CommandLine,
}

/// What is deployed, over which ways.
struct Scene {
    operator: Operator,
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
        Self {
            operator: Operator::Service,
            _directory: directory,
            fleet,
            ways,
            components: components.to_vec(),
        }
    }

    fn operated(self, operator: Operator) -> Self {
        Self { operator, ..self }
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

/// Which process of the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    First,
    Later,
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

    /// A process of the box, until all is done, or to its `passages`-th effect.
    fn process(&self, scene: &Scene, number: Process, passages: Option<usize>) -> Ended {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let fuse = Fuse::after(passages);
        let ended = runtime.block_on(async {
            self.node.lock().unwrap().box_begins();
            let fake = Fake { node: self.node.clone(), fuse: fuse.clone(), ways: scene.ways };
            let ended = tokio::select! {
                biased;
                () = fuse.blown() => Ended::Killed(fuse.last()),
                () = serve(self.state.path(), fake, scene, number) => Ended::Well,
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
            assert!(begun.elapsed() < Duration::from_secs(60), "the store's thread does not end");
            std::thread::park_timeout(Duration::from_micros(200));
            if begun.elapsed() > Duration::from_secs(1) {
                // Two that close at the same moment both leave the log to the other; the next one removes it.
                self.count("SELECT count(*) FROM journal");
            }
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
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sealed' ORDER BY name";
        let mut all = String::new();
        for table in texts(&connection, tables).into_iter().flatten() {
            all += &format!("{table}: {:?}\n", texts(&connection, &format!("SELECT * FROM {table}")));
        }
        all += &self.sealed(&connection).join("\n");
        all += &self.node.lock().unwrap().state();
        for (name, id) in ('A'..).zip(texts(&connection, "SELECT id FROM deployment ORDER BY id")) {
            all = all.replace(&id[0], &format!("deployment {name}"));
        }
        let numbers = |c: char| if c.is_ascii_digit() { '#' } else { c };
        let mut all: Vec<char> = all.chars().map(numbers).collect();
        all.dedup_by(|a, b| *a == '#' && *b == '#');
        all.into_iter().collect()
    }

    /// What is sealed in the store, without its keys.
    fn sealed(&self, connection: &Connection) -> Vec<String> {
        let vault = Vault::in_directory(self.state.path()).unwrap();
        let ca_pem = self.node.lock().unwrap().engine().map(|engine| engine.ca_pem.clone());
        let Ok(mut select) = connection.prepare("SELECT deployment, what, sealed FROM sealed ORDER BY what")
        else {
            return Vec::new();
        };
        let row = |row: &rusqlite::Row<'_>| {
            let (deployment, what, sealed): (String, String, Vec<u8>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let plain = vault.open(&format!("{deployment}/{what}"), &sealed).unwrap();
            let mut value: serde_json::Value = serde_json::from_slice(&plain).unwrap();
            // Keys are new each time; whether the engine that runs has them is what counts.
            if let Some(keys) = value.get_mut("keys") {
                *keys = (Some(keys["ca_pem"].as_str().unwrap()) == ca_pem.as_deref()).into();
            }
            Ok(format!("{what} {value}"))
        };
        select.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    /// What is told of every deployment, the oldest first.
    fn summaries(&self) -> Vec<Summary> {
        let ids = texts(&Connection::open(self.database()).unwrap(), "SELECT id FROM deployment ORDER BY id");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = Store::open(self.state.path()).unwrap();
        let load = |id: String| runtime.block_on(store.load(&id.parse().unwrap())).unwrap().unwrap().0;
        let summaries = ids.into_iter().flatten().map(load).collect();
        drop(store);
        self.wait_until_closed();
        summaries
    }

    fn count(&self, query: &str) -> i64 {
        Connection::open(self.database()).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
    }
}

/// All columns of all rows, as text.
fn texts(connection: &Connection, query: &str) -> Vec<Vec<String>> {
    let Ok(mut select) = connection.prepare(query) else { return Vec::new() };
    let columns = select.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        (0..columns).map(|column| row.get_ref(column).map(text)).collect::<rusqlite::Result<Vec<_>>>()
    };
    select.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn text(value: rusqlite::types::ValueRef<'_>) -> String {
    value.as_str().map_or_else(|_| format!("{value:?}"), ToOwned::to_owned)
}

/// What `carena serve` and `carena deploy` do with their deployments, until there is nothing more to do.
async fn serve(state: &Path, fake: Fake, scene: &Scene, process: Process) {
    let fuse = fake.fuse.clone();
    let store = Store::open(state).unwrap().fused(&fuse);
    // For the eyes of the test: not an effect of the box.
    let aside = store.clone().fused(&Fuse::after(None));
    let vault = Vault::in_directory(state).unwrap();
    let deployments =
        Deployments::over(Arc::new(fake), store, Cache::embedded(), Registry::new(), 1).sealed_by(vault);
    let mut running = Vec::new();
    match scene.operator {
        Operator::CommandLine => running.extend(deployments.resume(&scene.fleet).await.unwrap()),
        Operator::Service | Operator::Cancels => running = deployments.resume_all().await.unwrap(),
    }
    let again = scene.operator == Operator::CommandLine && running.is_empty();
    if process == Process::First || again {
        running.push(deployments.start(scene.fleet.clone(), Intent::Install).await.unwrap());
    }
    deployments.keep_sweeping();
    if scene.operator == Operator::Cancels && process == Process::First {
        tokio::time::sleep(node::INSTALLER / 2).await;
        deployments.cancel_all(&running[0]).await.unwrap();
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
        assert_eq!(undisturbed.process(scene, Process::First, None), Ended::Well);
        matrix.verify(&undisturbed, "undisturbed");
        let result =
            if scene.operator == Operator::Cancels { NodeResult::Cancelled } else { NodeResult::Done };
        assert_eq!(undisturbed.summaries()[0].nodes[0].1.result, result);
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
        let Ended::Killed(place) = world.process(self.scene, Process::First, Some(passages)) else {
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
        let Ended::Killed(place) = world.process(self.scene, Process::Later, Some(passages)) else {
            return false;
        };
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
                assert_eq!(world.process(self.scene, Process::Later, None), Ended::Well);
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
        let summaries = world.summaries();
        let found = self.scene.world().node.lock().unwrap().snapshot();
        assert_eq!(node.snapshot(), found, "{place}: {summaries:#?}");
        assert_eq!(node.done.interrupted, 0, "{place}");
        assert!(node.done.restarts <= 1, "{place}: restarted {} times", node.done.restarts);
        assert_eq!(world.count("SELECT count(*) FROM journal WHERE undone IS NULL"), 0, "{place}");
        assert_eq!(world.count("SELECT count(*) FROM sealed"), 0, "{place}");
        let started: HashSet<_> = node.done.started.iter().collect();
        assert_eq!(started.len(), node.done.started.len(), "{place}: {:?}", node.done.started);
        assert!(!summaries.is_empty() || started.is_empty(), "{place}");
        for (index, summary) in summaries.iter().enumerate() {
            assert!(summary.ended.is_some(), "{place}");
            let began = |id: &str| {
                started
                    .iter()
                    .any(|(deployment, other)| *deployment == summary.deployment && other.as_str() == id)
            };
            let told = &summary.nodes[0].1;
            let age = if index + 1 == summaries.len() { Age::Last } else { Age::Earlier };
            self.verify_told(&node, told, began, age)
                .unwrap_or_else(|why| panic!("{place}: {why}: {told:#?}"));
        }
    }

    /// What one deployment tells, against what the node has.
    fn verify_told(
        &self,
        node: &Node,
        told: &NodeSummary,
        began: impl Fn(&str) -> bool,
        age: Age,
    ) -> Result<(), &'static str> {
        let is = |promise: bool, broken: &'static str| if promise { Ok(()) } else { Err(broken) };
        let cancels = self.scene.operator == Operator::Cancels;
        is(told.outstanding_traces.is_empty(), "traces")?;
        if told.components.is_empty() {
            // It was never begun, and did not go on by itself, or was not to.
            let skipped = cancels && told.result == NodeResult::Skipped;
            is(told.result == NodeResult::Failed || skipped, "a result without components")?;
            return is(!self.scene.components.iter().any(|(id, _)| began(id)), "begun without a word");
        }
        let mut all_well = true;
        for (id, _) in &self.scene.components {
            let component = told.components.iter().find(|component| component.id.as_str() == *id).unwrap();
            let active = node.firmware[*id].active.as_str();
            is(
                age == Age::Earlier || component.to.as_deref().is_none_or(|to| to == active),
                "another version",
            )?;
            match &component.outcome {
                Outcome::Updated => is(began(id) && active == NEW, "not updated")?,
                Outcome::Current => is(!began(id) && active == NEW, "not current")?,
                Outcome::Skipped(_) => is(!began(id) && cancels, "skipped")?,
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

const ONE: &[(&str, Activation)] = &[("bios", Activation::AtOnce)];
const TWO: &[(&str, Activation)] = &[("bios", Activation::AtOnce), ("nic", Activation::AtOnce)];
const AT_BOOT: &[(&str, Activation)] = &[("bios", Activation::AtBoot)];

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
    for (meanwhile, at_least) in
        [(Meanwhile::Nothing, 4_000), (Meanwhile::LeaseEnds, 3_000), (Meanwhile::Restart, 3_000)]
    {
        matrix(&Scene::new(AT_BOOT, DIRECT, ""), meanwhile, at_least);
    }
}

#[test]
fn killed_anywhere_twice_and_cancelled() {
    let scene = Scene::new(TWO, DIRECT, "").operated(Operator::Cancels);
    for meanwhile in [Meanwhile::Nothing, Meanwhile::LeaseEnds] {
        matrix(&scene, meanwhile, 1_000);
    }
}

#[test]
fn killed_anywhere_twice_and_the_same_command_again() {
    let scene = Scene::new(ONE, DIRECT, "").operated(Operator::CommandLine);
    matrix(&scene, Meanwhile::Nothing, 1_000);
}
