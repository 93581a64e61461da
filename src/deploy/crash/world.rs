//! What a matrix is run over: a deployment to be made, the store and the node that outlive the box's processes, and what
//! such a process does.
//!
//! A process is a runtime of its own, with a paused clock; when its fuse blows it is dropped as it is. The store is the
//! real one, on a RAM disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::driver::{self, Fake, Fakes, Ways};
use super::fuse::Fuse;
use super::node::{self, Effect, NEW, Node, OLD};
use crate::cache::Cache;
use crate::deploy::Deployments;
use crate::deploy::cancel::Cancel;
use crate::deploy::deployments::Intent;
use crate::deploy::event::Summary;
use crate::deploy::store::Store;
use crate::deploy::vault::Vault;
use crate::digest::Sha256;
use crate::fleet::Fleet;
use crate::https::Registry;
use crate::wire::firewall::{FirewallTool, Flavour, RuleSpec};

/// On a RAM disk: what is durable there survives a killed process, and that is all that is asked of it here.
const RAM_DISK: &str = "/dev/shm";

/// The last start has the node clean within this, of the paused clock.
const CLEAN_MAX: Duration = Duration::from_secs(3600);

/// What happens to the node while nobody looks after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// The box is back at once: the engine still runs.
    Nothing,
    /// The box is away for so long that the engine takes itself away.
    LeaseEnds,
    /// The node restarts by itself.
    Restart,
}

/// Who runs the processes of the box, and what the operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// A service: a deployment is begun once, and goes on by itself.
    Service,
    /// The same, and the operator cancels the deployment while its first installer runs.
    Cancels,
    /// The same, but the box is not killed a second time: the operator cancels there.
    CancelsLater,
    /// The command line: the same command again and again.
    CommandLine,
    /// The command line, and after a crash only a sweep.
    Sweeps,
}

/// What is deployed, over which ways.
pub struct Scene {
    pub operator: Operator,
    /// The baseline's; here so that it lasts.
    _directory: TempDir,
    fleet: Fleet,
    ways: Ways,
    /// What the installers do, on each node.
    pub nodes: Vec<Vec<(&'static str, Effect)>>,
    /// Each component needs the one before it.
    pub requires: bool,
    /// Each component is only for a node that does not have its version yet.
    needs_old: bool,
    /// The version that the node has of each.
    installed: &'static str,
}

impl Scene {
    pub fn new(components: &[(&'static str, Effect)], ways: Ways, options: &str) -> Self {
        let directory = tempfile::tempdir_in(RAM_DISK).unwrap();
        for (id, _) in components {
            let payload = format!("payload of {id}");
            crate::durable::write(&directory.path().join(format!("{id}.bin")), payload.as_bytes(), 0o600)
                .unwrap();
        }
        let baseline = directory.path().display();
        let fleet = toml::from_str(&format!(
            "baseline = \"{baseline}\"\n[options]\nunsigned = \"accept\"\n{options}\n"
        ))
        .unwrap();
        let scene = Self {
            operator: Operator::Service,
            _directory: directory,
            fleet,
            ways,
            nodes: Vec::new(),
            requires: false,
            needs_old: false,
            installed: OLD,
        }
        .beside(components);
        scene.write_manifest();
        scene
    }

    /// Another node, with the same components.
    pub fn beside(mut self, components: &[(&'static str, Effect)]) -> Self {
        let node = format!("address = \"{}\"\nuser = \"root\"\n", driver::address(self.nodes.len()));
        let mut node: crate::fleet::Node = toml::from_str(&node).unwrap();
        node.password = Some(crate::secret::Secret::new("password".into()));
        self.fleet.nodes.push(node);
        self.nodes.push(components.to_vec());
        self
    }

    fn write_manifest(&self) {
        let mut manifest = String::from("id = \"fake\"\nversion = \"1\"\ntitle = \"test\"\n");
        let mut before = None;
        for (id, _) in &self.nodes[0] {
            let payload = format!("payload of {id}");
            let requires = before.replace(id).filter(|_| self.requires);
            manifest += &format!(
                "[[component]]\nid = \"{id}\"\ntitle = \"test\"\nversion = \"{NEW}\"\nformat = \"plain\"\n\
                 payload = \"{id}.bin\"\nsha256 = \"{}\"\nsize = {}\nexpected_s = 5\n\
                 install = {{ command = [\"{{payload}}\"], exit = {{ 0 = \"done\", 3 = \"reboot-needed\" }} }}\n\
                 read_back = {{ file = \"{id}\" }}\nneeds = [{}]\nrequires = {:?}\n",
                Sha256::of(payload.as_bytes()),
                payload.len(),
                if self.needs_old {
                    format!("{{ version_of = {{ file = \"{id}\" }}, not = [\"{NEW}\"] }}")
                } else {
                    String::new()
                },
                requires.as_slice()
            );
        }
        let path = self._directory.path().join("baseline.toml");
        crate::durable::write(&path, manifest.as_bytes(), 0o600).unwrap();
    }

    pub fn operated(self, operator: Operator) -> Self {
        Self { operator, ..self }
    }

    /// Each component needs the one before it.
    pub fn chained(self) -> Self {
        let chained = Self { requires: true, ..self };
        chained.write_manifest();
        chained
    }

    /// Each component is only for a node that does not have its version yet.
    pub fn for_old_ones(self) -> Self {
        let scene = Self { needs_old: true, ..self };
        scene.write_manifest();
        scene
    }

    /// The node has this version of each component.
    pub fn installed(self, version: &'static str) -> Self {
        Self { installed: version, ..self }
    }

    pub fn world(&self) -> World {
        let state = tempfile::tempdir_in(RAM_DISK).unwrap();
        let theirs = RuleSpec {
            tool: FirewallTool::Iptables { program: "ip6tables".parse().unwrap(), flavour: Flavour::Nft },
            deployment: "0190-another".parse().unwrap(),
            from: driver::BOX.parse().unwrap(),
            port: crate::paths::ENGINE_PORT,
        };
        let node =
            |components: &Vec<_>| Arc::new(Mutex::new(Node::new(components, self.installed, theirs.clone())));
        World { state, nodes: self.nodes.iter().map(node).collect() }
    }
}

/// What outlives a process of the box: its state directory, and the node.
pub struct World {
    state: TempDir,
    pub nodes: Vec<Arc<Mutex<Node>>>,
}

/// Which process of the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    First,
    Later,
}

/// How a process of the box ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// There was nothing more to do.
    Well,
    /// By its fuse; then also where.
    Killed(String),
    /// There was nothing more to do, after it was cancelled there.
    Cancelled(String),
}

impl World {
    pub fn copy(&self) -> Self {
        let state = tempfile::tempdir_in(RAM_DISK).unwrap();
        for entry in std::fs::read_dir(self.state.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), state.path().join(entry.file_name())).unwrap();
        }
        let copy = |node: &Arc<Mutex<Node>>| Arc::new(Mutex::new(node.lock().unwrap().clone()));
        Self { state, nodes: self.nodes.iter().map(copy).collect() }
    }

    fn each(&self, act: impl Fn(&mut Node)) {
        self.nodes.iter().for_each(|node| act(&mut node.lock().unwrap()));
    }

    /// Changes the store while no process has it.
    pub fn change_store(&self, change: &str) {
        Connection::open(self.database()).unwrap().execute_batch(change).unwrap();
        self.wait_until_closed();
    }

    /// The vault's key is lost, and made anew.
    pub fn lose_key(&self) {
        std::fs::remove_file(self.state.path().join(crate::deploy::vault::KEY_FILE)).unwrap();
    }

    fn database(&self) -> PathBuf {
        self.state.path().join(crate::paths::STORE_FILE)
    }

    /// A process of the box, until all is done, or to its `passages`-th effect.
    pub fn process(&self, scene: &Scene, number: Process, passages: Option<usize>) -> Ended {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let fuse = match (scene.operator, number) {
            (Operator::CancelsLater, Process::Later) => Fuse::holding(passages),
            _ => Fuse::after(passages),
        };
        let ended = runtime.block_on(async {
            self.each(Node::box_begins);
            let fake = |(index, node): (usize, &Arc<Mutex<Node>>)| {
                let (node, fuse) = (node.clone(), fuse.clone());
                Fake { index, node, fuse, ways: scene.ways }
            };
            let fakes = Fakes(self.nodes.iter().enumerate().map(fake).collect());
            let ended = tokio::select! {
                biased;
                () = fuse.blown(), if !fuse.holds() => Ended::Killed(fuse.last()),
                place = serve(self.state.path(), fakes, &fuse, scene, number) => match place {
                    Some(place) => Ended::Cancelled(place),
                    None => Ended::Well,
                },
            };
            self.each(Node::box_ends);
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

    pub fn passes(&self, meanwhile: Meanwhile) {
        self.each(|node| match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::LeaseEnds => node.pass(Duration::from_secs(600)),
            Meanwhile::Restart => node.restarts_by_itself(),
        });
    }

    /// Everything that decides what happens next: what is in the store, and what is on the node; no hour and no key.
    pub fn contents(&self) -> String {
        let connection = Connection::open(self.database()).unwrap();
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sealed' ORDER BY name";
        let mut all = String::new();
        for table in texts(&connection, tables).into_iter().flatten() {
            all += &format!("{table}: {:?}\n", texts(&connection, &format!("SELECT * FROM {table}")));
        }
        all += &self.sealed(&connection).join("\n");
        for node in &self.nodes {
            all += &node.lock().unwrap().state();
        }
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
        let ca_pem = |what: &str| {
            let index: usize = what.strip_prefix("engine ")?.parse().unwrap();
            self.nodes[index].lock().unwrap().engine().map(|engine| engine.ca_pem.clone())
        };
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
            if let Some(keys) = value.pointer_mut("/engine/keys") {
                *keys = (Some(keys["ca_pem"].as_str().unwrap()) == ca_pem(&what).as_deref()).into();
            }
            Ok(format!("{what} {value}"))
        };
        select.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    /// What is told of every deployment, the oldest first.
    pub fn summaries(&self) -> Vec<Summary> {
        let ids = texts(&Connection::open(self.database()).unwrap(), "SELECT id FROM deployment ORDER BY id");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let store = Store::open(self.state.path()).unwrap();
        let load = |id: String| runtime.block_on(store.load(&id.parse().unwrap())).unwrap().unwrap().0;
        let summaries = ids.into_iter().flatten().map(load).collect();
        drop(store);
        self.wait_until_closed();
        summaries
    }

    pub fn count(&self, query: &str) -> i64 {
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
/// Where it was cancelled, if it was.
async fn serve(
    state: &Path,
    fakes: Fakes,
    fuse: &Arc<Fuse>,
    scene: &Scene,
    process: Process,
) -> Option<String> {
    let store = Store::open(state).unwrap().fused(fuse);
    // For the eyes of the test: not an effect of the box.
    let aside = store.clone().fused(&Fuse::after(None));
    let vault = Vault::in_directory(state).unwrap();
    let deployments =
        Deployments::over(Arc::new(fakes), store, Cache::embedded(), Registry::new(), 1).sealed_by(vault);
    if fuse.holds() {
        cancel_where_held(&deployments, fuse);
    }
    let mut running = Vec::new();
    match scene.operator {
        Operator::Sweeps => {}
        Operator::CommandLine => running.extend(deployments.resume(&scene.fleet).await.unwrap()),
        Operator::Service | Operator::Cancels | Operator::CancelsLater => {
            running = deployments.resume_all().await.unwrap()
        }
    }
    let again = scene.operator == Operator::CommandLine && running.is_empty();
    if process == Process::First || again {
        running.push(deployments.start(scene.fleet.clone(), Intent::Install).await.unwrap());
    }
    if scene.operator != Operator::Sweeps {
        deployments.keep_sweeping();
    }
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
        if scene.operator == Operator::Sweeps {
            deployments.sweep(Some(&scene.fleet), &HashSet::new()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    (fuse.holds() && fuse.has_blown()).then(|| fuse.last())
}

/// The operator cancels all that runs at this very moment of the process.
fn cancel_where_held(deployments: &Deployments, fuse: &Arc<Fuse>) {
    let (deployments, fuse) = (deployments.clone(), fuse.clone());
    tokio::spawn(async move {
        fuse.blown().await;
        for listed in deployments.list() {
            // One that has just ended has nothing more to cancel. No later process goes on, so the store need not know.
            let _ = deployments.cancel_running(&listed.deployment, |_| Ok(Cancel::All));
        }
        fuse.release();
    });
}
