//! A payload to the node, by whatever path: fetched by the node while it reaches the box, pushed when it does not.
//!
//! A lost connection and a lost way back are taken up by the next path, at the byte where the last one stood. It must
//! never hand a payload to an installer: the engine does, after it has verified every byte.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::access::control::ControlError;
use crate::access::driver::Engine;
use crate::firmware::component::Component;
use crate::wire::message::{Failure, FailureKind, Fetch, Notice, Push, Reply, Request};

use super::cycle::Cycle;
use super::error::CycleError;
use super::event::{Bytes, HowFar, Step};
use super::path::{Bring, Established, Interrupt, Path};
use super::percent::percent;

/// Notices that may wait for their reader; more are the engine's to hold back.
const NOTICES_MAX: usize = 64;

/// Between two events of a push.
const EVENT_EVERY: Duration = Duration::from_millis(250);

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that travelled.
    pub bytes: u64,
    /// How often it was taken up again.
    pub resumes: u32,
}

/// Brings a component's payload to the node; none when the operator cancels the component meanwhile. Bytes that have come
/// are our own files, and go with the others.
///
/// # Errors
/// [`CycleError`].
pub async fn send(
    cycle: &mut Cycle<'_>,
    established: &mut Established,
    component: &Component,
) -> Result<Option<Sent>, CycleError> {
    loop {
        if cycle.run.is_component_cancelled(&component.id) {
            return Ok(None);
        }
        let result = match established.bring {
            Bring::Fetch => fetch(cycle, established, component).await,
            Bring::Push => pushed(cycle, established, component).await,
        };
        match result {
            Ok(Reply::Fetched { bytes, resumes }) => return Ok(Some(Sent { bytes, resumes })),
            Ok(_) => return Err(CycleError::Protocol),
            Err(CycleError::Control(ControlError::Lost)) => {
                cycle.rejoin(established, Interrupt::OnCancel).await?;
            }
            Err(CycleError::Control(ControlError::Engine(Failure {
                kind: FailureKind::Unreachable,
                message,
            }))) if established.bring == Bring::Fetch => {
                established.bring = Bring::Push;
                let lost =
                    format!("return traffic lost ({message}): payload travels down the control connection");
                // Inside SSH already, this is one reason more.
                let why = match cycle.path.take() {
                    Some((Path::Tunnel, why)) => format!("{why}; {lost}"),
                    _ => lost,
                };
                cycle.took(established.path(), why);
            }
            Err(CycleError::Control(ControlError::Engine(Failure {
                kind: FailureKind::Cancelled, ..
            }))) if !cycle.run.is_cancelled() && cycle.run.is_component_cancelled(&component.id) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn fetch(
    cycle: &Cycle<'_>,
    established: &Established,
    component: &Component,
) -> Result<Reply, CycleError> {
    let short = |text: &str| heapless::String::try_from(text).map_err(|_| CycleError::Protocol);
    let fetch = Request::Fetch(Box::new(Fetch {
        sha256: component.sha256,
        size: component.size,
        address: established.ground.box_address_text.clone(),
        port: cycle.run.https_port,
        server_name: short(&established.authority.kept.box_name)?,
        path: short(&format!("/payload/{}", component.sha256))?,
    }));
    let engine = &established.engine;
    with_notices(cycle, engine, component, Step::Send, fetch, Interrupt::OnCancel).await
}

async fn pushed(
    cycle: &Cycle<'_>,
    established: &Established,
    component: &Component,
) -> Result<Reply, CycleError> {
    let job = Push { sha256: component.sha256, size: component.size };
    let mut told: Option<Instant> = None;
    let mut progress = |done| {
        if told.is_none_or(|told| told.elapsed() >= EVENT_EVERY) {
            told = Some(Instant::now());
            let far = Some(HowFar::Bytes(Bytes { done, total: component.size }));
            cycle.run.tell_component(&cycle.node.address, Step::Send, &component.id, far, None);
        }
    };
    let open = Box::new(|from| cycle.run.payloads.read(component.sha256, from));
    let pushing = established.engine.push(job, open, &mut progress);
    unless_told(cycle, &established.engine, component, pushing, Interrupt::OnCancel).await
}

/// Asks, and passes the notices on as events until the answer is there.
pub async fn with_notices(
    cycle: &Cycle<'_>,
    engine: &Arc<dyn Engine>,
    component: &Component,
    step: Step,
    request: Request,
    interrupt: Interrupt,
) -> Result<Reply, CycleError> {
    let (sender, mut notices) = mpsc::channel(NOTICES_MAX);
    let asking = engine.request_with_notices(request, sender);
    let asking = async {
        tokio::pin!(asking);
        loop {
            tokio::select! {
                reply = &mut asking => return reply,
                Some(notice) = notices.recv() => tell(cycle, component, step, &notice),
            }
        }
    };
    unless_told(cycle, engine, component, asking, interrupt).await
}

fn tell(cycle: &Cycle<'_>, component: &Component, step: Step, notice: &Notice) {
    let (far, message) = match notice {
        Notice::Fetching { done, total } => (Some(HowFar::Bytes(Bytes { done: *done, total: *total })), None),
        Notice::Pushed { done } => (Some(HowFar::Bytes(Bytes { done: *done, total: component.size })), None),
        Notice::Installing { seconds, line } => {
            (percent(line).map(HowFar::Percent), Some(format!("{seconds} s {line}")))
        }
    };
    cycle.run.tell_component(&cycle.node.address, step, &component.id, far, message);
}

/// Waits for the answer; a cancel, of the node or of this component, is told to the engine, which then answers "cancelled".
async fn unless_told(
    cycle: &Cycle<'_>,
    engine: &Arc<dyn Engine>,
    component: &Component,
    asking: impl Future<Output = Result<Reply, ControlError>>,
    interrupt: Interrupt,
) -> Result<Reply, CycleError> {
    tokio::pin!(asking);
    let mut told = interrupt == Interrupt::Never;
    loop {
        let wish = tokio::select! {
            reply = &mut asking => return Ok(reply?),
            () = cycle.run.cancelled(), if !told => Request::Cancel,
            () = cycle.run.component_cancelled(&component.id), if !told => Request::Abandon { sha256: component.sha256 },
        };
        told = true;
        let engine = engine.clone();
        // Its answer may come later than the transfer's own, which is ours.
        tokio::spawn(async move { engine.request(wish).await });
    }
}
