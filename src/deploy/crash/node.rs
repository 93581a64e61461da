//! A node that exists in memory only: its files, processes, firewall and firmware, and the engine of a deployment.
//!
//! It follows the rules of the real one: what each undo may touch, what a lease does, what a restart keeps. Beside it
//! there is always something of the customer's that looks like ours. Time is the runtime's, which is paused; it goes on
//! from one process of the box to the next. What was done to it that no deployment may do, it remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::access::driver::Undone;
use crate::access::undo::{EngineFiles, EngineProcess, FirewallRule};
use crate::paths::{ENGINE_MARKER_FILE, ENGINE_PROGRAM};
use crate::wire::firewall::RuleSpec;
use crate::wire::id::{ComponentId, DeploymentId};
use crate::wire::message::{Install, Installed, StartConfig};

/// How long every installer takes.
pub const INSTALLER: Duration = Duration::from_secs(20);

/// The version a node has, and the one it gets.
pub const OLD: &str = "first";
pub const NEW: &str = "second";

/// An engine that was told to end while it was busy takes itself away after this, as the real one.
const STOPPED_MAX: Duration = Duration::from_secs(10);

/// What a component's installer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The version is active when it has ended.
    AtOnce,
    /// After the next boot; it says so with exit code 3.
    AtBoot,
    /// Nothing, and it says so with exit code 9.
    Fails,
}

/// A version that is in use, and one that will be.
#[derive(Debug, Clone)]
pub struct Firmware {
    pub active: String,
    staged: Option<String>,
    effect: Effect,
}

/// A directory of an engine. `rule` is what was noted before the port was opened.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    pub files: BTreeMap<String, String>,
    pub pid: Option<(u32, u32)>,
    pub rule: Option<RuleSpec>,
}

/// An engine's process, as far as anybody can tell from outside.
#[derive(Debug, Clone)]
pub struct Engine {
    pub deployment: DeploymentId,
    pub ca_pem: String,
    directory: String,
    port: u16,
    lease: Duration,
    heard: Duration,
    /// The conversation that counts, if there is one.
    connection: Option<u64>,
    pub payloads: BTreeSet<String>,
    installing: Option<(ComponentId, Duration)>,
    pub installed: Vec<(ComponentId, Installed)>,
    pub cancelled: bool,
    stop: Option<Duration>,
    /// When the last installer ended.
    idle: Duration,
}

#[derive(Debug, Clone)]
pub enum Program {
    Theirs(&'static str),
    Engine(Box<Engine>),
}

#[derive(Debug, Clone)]
pub struct Process {
    began: u32,
    program: Program,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    Theirs(&'static str),
    Carena(Box<RuleSpec>),
}

/// What the test looks at in the end.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Every installer that was started.
    pub started: Vec<(DeploymentId, ComponentId)>,
    /// Installers that ended because the box restarted the node or ended the engine.
    pub interrupted: u32,
    /// Restarts that the box asked for.
    pub restarts: u32,
    /// Questions about devices while one of them was written.
    pub disturbed: u32,
}

/// The node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Time before this process of the box, and when it began.
    clock: (Duration, Option<Instant>),
    pub boots: u32,
    files: BTreeMap<&'static str, &'static str>,
    pub directories: BTreeMap<String, Directory>,
    processes: BTreeMap<u32, Process>,
    pub rules: Vec<Rule>,
    pub firmware: BTreeMap<String, Firmware>,
    /// Another box's rule.
    theirs: RuleSpec,
    pid_last: u32,
    connections: u64,
    /// The engine ends when a version is asked for that its installer has brought.
    pub breaks: bool,
    pub done: Done,
}

impl Node {
    /// With what a customer may have: also what looks like ours, of another box.
    pub fn new(firmware: &[(&str, Effect)], installed: &str, theirs: RuleSpec) -> Self {
        let marker = (ENGINE_MARKER_FILE.to_owned(), theirs.deployment.to_string());
        let others = Directory { files: [marker].into(), pid: Some((100, 1)), rule: Some(theirs.clone()) };
        let old = |effect| Firmware { active: installed.to_owned(), staged: None, effect };
        Self {
            clock: (Duration::ZERO, None),
            boots: 1,
            files: [("/var/tmp/carena-notes", "precious"), ("/etc/motd", "hello")].into(),
            directories: [(format!("/var/tmp/carena-{}", theirs.deployment), others)].into(),
            processes: [(100, Process { began: 7, program: Program::Theirs("database") })].into(),
            rules: vec![Rule::Theirs("accept port 62286 from the box"), Rule::Carena(theirs.clone().into())],
            firmware: firmware.iter().map(|(id, effect)| ((*id).to_owned(), old(*effect))).collect(),
            theirs,
            pid_last: 1_000,
            connections: 0,
            breaks: false,
            done: Done::default(),
        }
    }

    /// All that must be as it was found.
    pub fn snapshot(&self) -> String {
        let name = |process: &Process| match &process.program {
            Program::Theirs(name) => (*name).to_owned(),
            Program::Engine(engine) => format!("engine of {}", engine.deployment),
        };
        let names: Vec<String> = self.processes.values().map(name).collect();
        format!("{:#?}\n{:#?}\n{names:#?}\n{:#?}", self.files, self.directories, self.rules)
    }

    /// Everything that decides what happens next, without the hour. What must not be lost with the digits is there as
    /// so many letters.
    pub fn state(&self) -> String {
        let now = self.clock.0;
        let mut node = Self { clock: (Duration::ZERO, None), connections: 0, ..self.clone() };
        let mut left = Duration::ZERO;
        if let Some(engine) = node.engine_mut() {
            (engine.heard, engine.idle) = (now.saturating_sub(engine.heard), now.saturating_sub(engine.idle));
            engine.stop = engine.stop.map(|since| now.saturating_sub(since));
            engine.ca_pem.clear();
            if let Some((_, end)) = &mut engine.installing {
                left = end.saturating_sub(now);
            }
        }
        let letters = |letter: &str, number: u32| letter.repeat(usize::try_from(number).unwrap());
        let counts = [
            letters("b", self.boots),
            letters("r", self.done.restarts),
            letters("i", self.done.interrupted),
            letters("d", self.done.disturbed),
            letters("s", u32::try_from(left.as_secs()).unwrap()),
        ];
        format!("{node:?} {counts:?}")
    }

    /// As the real one: another text after each boot.
    pub fn boot_id(&self) -> String {
        format!("boot-{}", "b".repeat(usize::try_from(self.boots).unwrap()))
    }

    /// A process of the box begins.
    pub fn box_begins(&mut self) {
        self.clock.1 = Some(Instant::now());
    }

    /// It has ended, and every connection with it.
    pub fn box_ends(&mut self) {
        self.settle();
        self.clock = (self.now(), None);
        if let Some(engine) = self.engine_mut() {
            engine.connection = None;
        }
    }

    /// Nobody is there for so long.
    pub fn pass(&mut self, time: Duration) {
        self.clock.0 += time;
        self.settle();
    }

    fn now(&self) -> Duration {
        self.clock.0 + self.clock.1.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub fn engine_mut(&mut self) -> Option<&mut Engine> {
        self.processes.values_mut().find_map(|process| match &mut process.program {
            Program::Engine(engine) => Some(&mut **engine),
            Program::Theirs(_) => None,
        })
    }

    pub fn engine(&self) -> Option<&Engine> {
        self.processes.values().find_map(|process| match &process.program {
            Program::Engine(engine) => Some(&**engine),
            Program::Theirs(_) => None,
        })
    }

    /// Brings everything up to this moment that goes on by itself.
    pub fn settle(&mut self) {
        let now = self.now();
        if let Some(component) = self.engine_mut().and_then(|engine| engine.installer_ended(now)) {
            let firmware = self.firmware.get_mut(component.as_str()).unwrap();
            let code = match firmware.effect {
                Effect::AtOnce => {
                    firmware.active = NEW.into();
                    0
                }
                Effect::AtBoot => {
                    firmware.staged = Some(NEW.into());
                    3
                }
                Effect::Fails => 9,
            };
            let installed = Installed {
                code: Some(code),
                signal: None,
                log: "done".into(),
                seconds: INSTALLER.as_secs(),
                told: None,
                logs: Vec::new(),
            };
            self.engine_mut().unwrap().installed.push((component, installed));
        }
        let Some(engine) = self.engine_mut() else { return };
        if engine.connection.is_some() {
            engine.heard = now;
        }
        if engine.installing.is_some() {
            return;
        }
        let (since, lease_over) = (engine.stop, now.saturating_sub(engine.heard) >= engine.lease);
        let (deployment, directory, port) =
            (engine.deployment.clone(), engine.directory.clone(), engine.port);
        let idle = engine.idle;
        let takes_itself_away = since.map_or(lease_over, |since| idle.saturating_sub(since) > STOPPED_MAX);
        if since.is_some() || lease_over {
            self.processes.retain(|_, process| matches!(process.program, Program::Theirs(_)));
        }
        if takes_itself_away {
            self.take_away(&deployment, &directory, port);
        }
    }

    fn take_away(&mut self, deployment: &DeploymentId, directory: &str, port: u16) {
        let Some(found) = self.directories.get(directory) else { return };
        if let Some(rule) =
            found.rule.clone().filter(|rule| rule.deployment == *deployment && rule.port == port)
        {
            self.rules.retain(|other| *other != Rule::Carena(rule.clone().into()));
        }
        if found.files.get(ENGINE_MARKER_FILE).is_some_and(|owner| owner == deployment.as_str()) {
            self.directories.remove(directory);
        }
    }

    /// The box restarts it: never while an installer runs.
    pub fn restart(&mut self) {
        self.done.restarts += 1;
        self.done.interrupted += u32::from(self.is_installing());
        self.restarts_by_itself();
    }

    /// What a restart does: processes and rules go, files stay, staged firmware becomes active. A process of the
    /// customer's gets the number that our engine had.
    pub fn restarts_by_itself(&mut self) {
        self.boots += 1;
        let began = self.boots * 7;
        self.processes = [(self.pid_last, Process { began, program: Program::Theirs("database") })].into();
        // Ours are in the kernel only. Another box's stay: it is not what is tested.
        self.rules.retain(|rule| match rule {
            Rule::Theirs(_) => true,
            Rule::Carena(rule) => **rule == self.theirs,
        });
        for firmware in self.firmware.values_mut() {
            if let Some(staged) = firmware.staged.take() {
                firmware.active = staged;
            }
        }
    }

    /// An engine's process begins in `directory`; none when there is one already.
    pub fn start(&mut self, directory: &str, config: &StartConfig) -> Option<(u32, u32)> {
        if self.engine().is_some() {
            return None;
        }
        self.pid_last += 1;
        let (pid, began) = (self.pid_last, self.boots * 100 + 1);
        let engine = Engine {
            deployment: config.deployment.clone(),
            ca_pem: config.ca_pem.clone(),
            directory: directory.to_owned(),
            port: config.port,
            lease: Duration::from_secs(u64::from(config.lease_s)),
            heard: self.now(),
            connection: None,
            payloads: BTreeSet::new(),
            installing: None,
            installed: Vec::new(),
            cancelled: false,
            stop: None,
            idle: Duration::ZERO,
        };
        self.processes.insert(pid, Process { began, program: Program::Engine(Box::new(engine)) });
        Some((pid, began))
    }

    /// The box joins; the conversation's number, or none when there is no engine that takes it for its box.
    pub fn join(&mut self, deployment: &DeploymentId, proves: impl Fn(&str) -> bool) -> Option<u64> {
        self.settle();
        self.connections += 1;
        let (number, now) = (self.connections, self.now());
        let engine =
            self.engine_mut().filter(|engine| engine.deployment == *deployment && proves(&engine.ca_pem))?;
        (engine.connection, engine.heard) = (Some(number), now);
        Some(number)
    }

    /// Begins an installer.
    pub fn install(&mut self, job: &Install) {
        let end = self.now() + INSTALLER;
        let engine = self.engine_mut().unwrap();
        engine.installing = Some((job.component.clone(), end));
        let started = (engine.deployment.clone(), job.component.clone());
        self.done.started.push(started);
    }

    pub fn tell_to_stop(&mut self) {
        let now = self.now();
        if let Some(engine) = self.engine_mut() {
            engine.cancelled = true;
            engine.stop.get_or_insert(now);
        }
        self.settle();
    }

    /// Whether the process that the directory names is the engine that wrote it.
    pub fn runs(&self, directory: &str) -> bool {
        let named = self.directories.get(directory).and_then(|directory| directory.pid);
        named.is_some_and(|(pid, began)| {
            self.processes.get(&pid).is_some_and(|process| process.began == began)
        })
    }

    /// Its devices are asked something.
    pub fn is_queried(&mut self) {
        self.done.disturbed += u32::from(self.is_installing());
    }

    /// The engine dies, where it is one that does.
    pub fn break_engine(&mut self) {
        if self.breaks && self.engine().is_some_and(|engine| !engine.installed.is_empty()) {
            self.processes.retain(|_, process| matches!(process.program, Program::Theirs(_)));
        }
    }

    pub fn is_installing(&self) -> bool {
        self.engine().is_some_and(|engine| engine.installing.is_some())
    }

    /// Removes files: only with our marker, or the beginning of one, alone.
    pub fn remove(&mut self, undo: &EngineFiles, deployment: &DeploymentId) -> Result<Undone, String> {
        let Some(found) = self.directories.get(&undo.directory) else { return Ok(Undone::AlreadyGone) };
        if self.is_installing() && self.runs(&undo.directory) {
            return Err("an installation is still running".into());
        }
        let owner = found.files.get(ENGINE_MARKER_FILE);
        let is_ours = owner.is_some_and(|owner| owner == deployment.as_str());
        let is_begun = found.files.is_empty()
            || (found.files.len() == 1 && owner.is_some_and(|owner| deployment.as_str().starts_with(owner)));
        if !is_ours && !is_begun {
            return Err("the directory is not empty".into());
        }
        self.directories.remove(&undo.directory);
        Ok(Undone::Done)
    }

    /// Removes the one rule that is ours.
    pub fn close(&mut self, undo: &FirewallRule) -> Undone {
        let before = self.rules.len();
        self.rules.retain(|rule| *rule != Rule::Carena(undo.rule.clone().into()));
        if self.rules.len() == before { Undone::AlreadyGone } else { Undone::Done }
    }

    /// Whether there is nothing to stop.
    pub fn is_stopped(&self, undo: &EngineProcess) -> bool {
        !self.runs(&undo.directory)
    }

    /// Whether an engine's program is in `directory`.
    pub fn has_program(&self, directory: &str) -> bool {
        self.directories.get(directory).is_some_and(|directory| directory.files.contains_key(ENGINE_PROGRAM))
    }

    /// Whether the engine's port is open for the box.
    pub fn is_open(&self) -> bool {
        self.engine().is_some_and(|engine| {
            let ours =
                |rule: &Rule| matches!(rule, Rule::Carena(rule) if rule.deployment == engine.deployment);
            self.rules.iter().any(ours)
        })
    }
}

impl Engine {
    fn installer_ended(&mut self, now: Duration) -> Option<ComponentId> {
        let (component, end) = self.installing.take_if(|(_, end)| *end <= now)?;
        self.idle = end;
        Some(component)
    }

    pub fn hears(&self, connection: u64) -> bool {
        self.connection == Some(connection)
    }

    pub fn leave(&mut self, connection: u64) {
        self.connection.take_if(|other| *other == connection);
    }

    pub fn installing(&self) -> Option<&ComponentId> {
        self.installing.as_ref().map(|(component, _)| component)
    }

    pub fn result(&self, component: &ComponentId) -> Option<Installed> {
        self.installed.iter().rev().find(|(other, _)| other == component).map(|(_, result)| result.clone())
    }
}
