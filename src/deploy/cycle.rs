//! The cycle: everything done to one node, step by step, and everything taken back.
//!
//! Forward: connect, look, copy, start, open, join, inventory, plan, send, install, verify. Then always, whatever
//! happened: stop, remove, close, disconnect. There is no commit. Each step that changes the node arms its undo
//! first; [`Cycle::unwind`] takes back what was armed, also the step that was never seen to finish. It must never
//! interrupt a running flash: a cancel waits for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::control::{EngineClient, port_answers};
use crate::access::ssh::{EngineImage, Ground, Session};
use crate::access::undo::{EngineFiles, EngineProcess, EntryId, FirewallRule, Ledger, Undo, arm};
use crate::fleet::{Node, OpenFirewall, credentials};
use crate::wire::PROTOCOL;
use crate::wire::firewall::{FirewallTool, RuleSpec};
use crate::wire::id::DeploymentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::{Reply, Request, StartConfig};

use super::authority::Authority;
use super::error::{CycleError, on_node};
use super::event::{ComponentSummary, NodeResult, NodeSummary, State, Step};
use super::install;
use super::run::Run;
use super::store::{Store, StoreError};

/// How long the engine's port may take to answer. A port that a firewall drops never answers, and this is the
/// price of finding out; a port that is open answers within one round trip.
const PROBE: Duration = Duration::from_millis(400);

/// The same after the port was opened: now it should answer, so a slow network gets its time.
const PROBE_OPENED: Duration = Duration::from_secs(5);

/// How often an unwind tries to reach the node again when the connection was lost.
const RECONNECTS: u32 = 3;

/// Bytes that must stay free beside engine and payloads.
const ROOM_MARGIN_BYTES: u64 = 8 * 1024 * 1024;

/// One node's way through a deployment.
pub struct Cycle<'a> {
    /// The deployment it belongs to.
    pub run: &'a Run,
    /// Its number in the fleet.
    pub index: usize,
    /// The node.
    pub node: &'a Node,
    step: Step,
    session: Option<Session>,
    armed: Vec<(EntryId, Undo)>,
    /// The components, as far as they have come.
    pub components: Vec<ComponentSummary>,
    /// What the node is, once known.
    pub inventory: Option<Box<Inventory>>,
}

/// The journal of one node: what is armed here bears its address.
struct NodeLedger<'a> {
    store: &'a Store,
    deployment: &'a DeploymentId,
    node: &'a Node,
}

impl Ledger for NodeLedger<'_> {
    type Error = StoreError;

    async fn record(&self, undo: &Undo) -> Result<EntryId, StoreError> {
        self.store.arm(self.deployment, self.node, undo).await
    }
}

impl<'a> Cycle<'a> {
    /// A cycle that has not begun.
    pub fn new(run: &'a Run, index: usize, node: &'a Node) -> Self {
        Self {
            run,
            index,
            node,
            step: Step::Connect,
            session: None,
            armed: Vec::new(),
            components: Vec::new(),
            inventory: None,
        }
    }

    /// The whole cycle. Returns when the node is as it was found, or when that could not be reached.
    pub async fn complete(mut self) -> (NodeSummary, Option<Box<Inventory>>) {
        let forward = self.forward().await;
        let failed_at = self.step;
        let outstanding_traces = self.unwind().await;
        let (mut result, error) = match &forward {
            Ok(()) => (NodeResult::Done, None),
            Err(CycleError::Cancelled) => (NodeResult::Cancelled, None),
            Err(error) => (NodeResult::Failed, Some(on_node(&self.node.address, failed_at, error))),
        };
        let why = match &forward {
            Err(CycleError::Cancelled) => "cancelled by the operator",
            _ => "the node failed before",
        };
        install::fill_in(self.run, &mut self.components, why);
        if result == NodeResult::Done
            && self.components.iter().any(|component| component.outcome.is_failure())
        {
            result = NodeResult::Failed;
        }
        let path = self.inventory.is_some().then(|| "direct".to_owned());
        let components = std::mem::take(&mut self.components);
        (NodeSummary { result, path, error, components, outstanding_traces }, self.inventory)
    }

    /// Tells the world where this node is.
    pub fn tell(&self, state: State, message: Option<String>) {
        self.run.tell(&self.node.address, self.step, state, message);
    }

    /// Enters a step, unless the deployment was cancelled.
    pub fn enter(&mut self, step: Step) -> Result<(), CycleError> {
        if self.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        self.step = step;
        self.tell(State::Started, None);
        Ok(())
    }

    async fn forward(&mut self) -> Result<(), CycleError> {
        let result = self.steps().await;
        match &result {
            Err(CycleError::Cancelled) => self.tell(State::Failed, Some("cancelled by the operator".into())),
            Err(error) => self.tell(State::Failed, Some(on_node(&self.node.address, self.step, error))),
            Ok(()) => {}
        }
        result
    }

    async fn steps(&mut self) -> Result<(), CycleError> {
        self.enter(Step::Connect)?;
        let session = self.run.unless_cancelled(connect(&self.run.store, self.node)).await??;
        self.tell(State::Done, Some(session.host_key().to_owned()));
        let session = self.session.insert(session);

        self.step = Step::Look;
        self.run.tell(&self.node.address, Step::Look, State::Started, None);
        let ground = self.run.unless_cancelled(session.look()).await??;
        let place = self.place(&ground)?;
        self.tell(State::Done, Some(format!("{} {}, {place}", ground.arch, ground.kernel)));

        let deployment = self.run.deployment.clone();
        let directory = format!("{place}/carena-{deployment}");
        let authority = Authority::new(&deployment, self.index)?;
        let payloads = self.run.serve_payloads(&authority);

        let ledger = NodeLedger { store: &self.run.store, deployment: &deployment, node: self.node };
        if self.run.is_cancelled() {
            return Err(CycleError::Cancelled);
        }
        let files = arm(&ledger, EngineFiles { directory: directory.clone() }).await?;
        self.armed.push((files.entry(), files.undo().clone().into()));
        self.enter(Step::Copy)?;
        self.session()?.copy_engine(files, &deployment, &ground, EngineImage::embedded()).await?;
        self.tell(State::Done, None);

        let process = arm(&ledger, EngineProcess { directory: directory.clone() }).await?;
        self.armed.push((process.entry(), process.undo().clone().into()));
        self.enter(Step::Start)?;
        let config = StartConfig {
            protocol: PROTOCOL,
            deployment: deployment.clone(),
            certificate_pem: authority.engine_certificate_pem.clone(),
            key_pem: authority.engine_key_pem.clone(),
            ca_pem: authority.ca_pem.clone(),
            port: crate::paths::ENGINE_PORT,
            lease_s: self.run.options.lease_s,
            box_address: ground.box_address,
        };
        let started = self.session()?.start_engine(process, &config).await?;
        self.tell(State::Done, Some(format!("port {}", started.port)));

        let mut engine_address = self.session()?.peer_address();
        engine_address.set_port(started.port);
        self.open(&ledger, &ground, engine_address).await?;

        self.enter(Step::Join)?;
        let joining = EngineClient::connect(
            engine_address,
            authority.client.clone(),
            &authority.engine_name,
            &deployment,
            self.run.options.lease_s,
        );
        let (engine, _) = self.run.unless_cancelled(joining).await??;
        let engine = Arc::new(engine);
        self.tell(State::Done, None);

        self.enter(Step::Inventory)?;
        match engine.request(Request::Inventory).await? {
            Reply::Inventory(inventory) => self.inventory = Some(inventory),
            _ => return Err(CycleError::Protocol),
        }
        self.tell(State::Done, None);

        let result = install::all(self, &engine, &ground, &authority).await;
        drop(payloads);
        // The engine ends by itself when asked; the unwind then finds it gone. An engine that cannot be asked any
        // more is ended by the unwind, so the answer is of no use here.
        let _ = tokio::time::timeout(Duration::from_secs(5), engine.request(Request::Stop)).await;
        result
    }

    fn session(&mut self) -> Result<&mut Session, CycleError> {
        self.session.as_mut().ok_or(CycleError::Protocol)
    }

    /// Where engine and payloads go: the first place of the node with room for all of them.
    fn place(&self, ground: &Ground) -> Result<String, CycleError> {
        if ground.arch != "x86_64" {
            return Err(CycleError::Architecture { found: ground.arch.clone() });
        }
        let payloads: u64 = self.run.baseline.components.iter().map(|component| component.size).sum();
        let needed = EngineImage::embedded().unpacked_bytes() + payloads + ROOM_MARGIN_BYTES;
        if let Some(place) = ground.places.iter().find(|place| place.free_bytes >= needed) {
            return Ok(place.path.clone());
        }
        let most = ground.places.iter().max_by_key(|place| place.free_bytes);
        let (place, free) =
            most.map_or(("nowhere".to_owned(), 0), |place| (place.path.clone(), place.free_bytes));
        Err(CycleError::NoRoom { needed, place, free })
    }

    /// Opens the engine's port in the node's firewall, if that is wanted and needed.
    async fn open(
        &mut self,
        ledger: &NodeLedger<'_>,
        ground: &Ground,
        engine: SocketAddr,
    ) -> Result<(), CycleError> {
        let wanted = self.run.options.open_firewall;
        let port = engine.port();
        if wanted != OpenFirewall::Yes && port_answers(engine, PROBE).await {
            return Ok(());
        }
        if wanted == OpenFirewall::No {
            let why = "open_firewall = \"no\" forbids to open it".to_owned();
            return Err(CycleError::PortBlocked { port, why });
        }
        let rule = RuleSpec {
            tool: FirewallTool::for_address(ground.box_address),
            deployment: ledger.deployment.clone(),
            from: ground.box_address,
            port,
        };
        let armed = arm(ledger, FirewallRule { rule }).await?;
        self.armed.push((armed.entry(), armed.undo().clone().into()));
        self.enter(Step::Open)?;
        self.session()?.open_port(armed).await?;
        if !port_answers(engine, PROBE_OPENED).await {
            let why =
                "the node's firewall was opened, so something between box and node blocks it".to_owned();
            return Err(CycleError::PortBlocked { port, why });
        }
        self.tell(State::Done, Some(format!("port {port}")));
        Ok(())
    }

    /// Takes every trace back, newest process first; returns what could not be.
    async fn unwind(&mut self) -> Vec<String> {
        let mut order = std::mem::take(&mut self.armed);
        order.sort_by_key(|(_, undo)| turn(undo));
        let steps = |undo: &Undo| match undo {
            Undo::EngineProcess(_) => Step::Stop,
            Undo::EngineFiles(_) => Step::Remove,
            Undo::FirewallRule(_) => Step::Close,
        };
        let mut outstanding = Vec::new();
        if !order.is_empty() {
            for (_, undo) in &order {
                self.run.tell(&self.node.address, steps(undo), State::Started, None);
            }
            let (session, results) =
                take_back(&self.run.store, self.node, &self.run.deployment, self.session.take(), &order)
                    .await;
            self.session = session;
            for ((_, undo), result) in order.iter().zip(results) {
                self.step = steps(undo);
                match result {
                    Ok(()) => self.tell(State::Undone, None),
                    Err(why) => {
                        self.tell(State::Failed, Some(format!("{undo}: {why}")));
                        outstanding.push(format!("{undo}: {why}"));
                    }
                }
            }
        }
        if let Some(session) = self.session.take() {
            self.run.tell(&self.node.address, Step::Disconnect, State::Started, None);
            session.close().await;
            self.run.tell(&self.node.address, Step::Disconnect, State::Done, None);
        }
        outstanding
    }
}

/// The order in which traces go: a process before the files it lives in, its port after it.
fn turn(undo: &Undo) -> u8 {
    match undo {
        Undo::EngineProcess(_) => 0,
        Undo::EngineFiles(_) => 1,
        Undo::FirewallRule(_) => 2,
    }
}

/// Connects to a node, and pins its host key at the first visit.
///
/// # Errors
/// [`CycleError`].
pub async fn connect(store: &Store, node: &Node) -> Result<Session, CycleError> {
    let pinned = store.pin(node.host(), node.port).await?;
    let target = credentials::target(node, pinned.clone())?;
    let session = Session::connect(&target).await?;
    if pinned.is_none() {
        store.set_pin(node.host(), node.port, session.host_key()).await?;
    }
    Ok(session)
}

/// Takes `undos` back in their order, over `session` if it still lives, else over a new one, and marks in the
/// store what is gone. One result for each.
pub async fn take_back(
    store: &Store,
    node: &Node,
    deployment: &DeploymentId,
    mut session: Option<Session>,
    undos: &[(EntryId, Undo)],
) -> (Option<Session>, Vec<Result<(), String>>) {
    let mut ordered = undos.to_vec();
    ordered.sort_by_key(|(_, undo)| turn(undo));
    let mut last = "the node could not be reached".to_owned();
    for attempt in 0..=RECONNECTS {
        let mut live = match session.take() {
            Some(session) => session,
            None => match connect(store, node).await {
                Ok(session) => session,
                Err(error) => {
                    last = crate::error::explain(&error);
                    if matches!(error, CycleError::Credentials(_)) {
                        break; // they do not come back by waiting
                    }
                    tokio::time::sleep(Duration::from_millis(250 << attempt)).await;
                    continue;
                }
            },
        };
        match live.undo(deployment, &ordered).await {
            Ok(results) => {
                let gone =
                    results.iter().filter(|(_, result)| result.is_ok()).map(|(entry, _)| *entry).collect();
                let mut marked = store.undone(gone).await.map_err(|error| crate::error::explain(&error));
                let told = undos.iter().map(|(entry, _)| {
                    let result = results.iter().find(|(other, _)| other == entry);
                    match result {
                        Some((_, Ok(_))) => std::mem::replace(&mut marked, Ok(())),
                        Some((_, Err(why))) => Err(why.clone()),
                        None => Err("the node did not say whether it is gone".to_owned()),
                    }
                });
                return (Some(live), told.collect());
            }
            Err(error) => last = crate::error::explain(&error),
        }
    }
    (None, undos.iter().map(|_| Err(last.clone())).collect())
}
