//! `GET /api/v1/events`: server-sent events (WHATWG HTML, section 9.2), numbered, resumable, for slow readers too.
//!
//! Each event of the log has its number as `id:`; a reader that comes back with `Last-Event-ID`, or begins with
//! `?after=`, gets every later one once and in order. `?deployment=` leaves the others out, and ends with an event
//! `summary` of the deployment, which is the command line's last line. Two more kinds have no number: `gap` (events were
//! dropped before they were read) and, without `?deployment=`, `deployments` (one began or ended). It must never hold
//! more than a few kilobytes for a reader that does not read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::watch;

use super::Console;
use super::guard::Credential;
use super::problem::Problem;
use crate::deploy::event::Event;
use crate::wire::id::DeploymentId;

/// A comment is sent after so long a silence: proxies and readers see that the line is alive, and a session that has
/// ended ends its stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a browser waits before it comes back, in milliseconds.
const RETRY_MS: u32 = 1_000;

/// Bytes handed to the network at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a reader asks for.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    /// Only those after this number.
    after: Option<String>,
    /// Only those of this deployment.
    deployment: Option<String>,
}

/// `GET /api/v1/events`
///
/// # Errors
/// 400, 404.
pub async fn events(
    State(console): State<Console>,
    Extension(credential): Extension<Credential>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // A browser that comes back asks with the address of its first visit: the header is the newer one.
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let after =
        last.filter(|last| !last.is_empty()).or(wanted.after).map(|text| text.parse::<u64>()).transpose();
    let after = after.map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "Last-Event-ID and after are numbers of events, as their id: says",
        )
    })?;
    let only = match wanted.deployment {
        None => None,
        Some(id) => Some(
            id.parse::<DeploymentId>()
                .ok()
                .filter(|known| console.0.deployments.get(known).is_some())
                .ok_or_else(|| Problem::no_deployment(&id))?,
        ),
    };
    let reader = Reader::new(console, credential, only, after);
    let stream = futures_util::stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Some((Ok::<_, Infallible>(chunk), reader))
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response())
}

struct Reader {
    console: Console,
    credential: Credential,
    only: Option<DeploymentId>,
    /// The number of the last event that was taken, sent or left out.
    last: u64,
    pending: VecDeque<Arc<Event>>,
    live: Receiver<Arc<Event>>,
    changes: watch::Receiver<u64>,
    /// Told as it is, before any pending event.
    text: String,
    /// Told after the last pending event.
    summary: Option<String>,
    over: bool,
}

impl Reader {
    fn new(console: Console, credential: Credential, only: Option<DeploymentId>, after: Option<u64>) -> Self {
        let changes = console.0.deployments.changes();
        let (pending, live) = console.0.deployments.events(after);
        let text = format!("retry: {RETRY_MS}\n\n");
        let mut reader = Self {
            console,
            credential,
            only,
            last: 0,
            pending: VecDeque::new(),
            live,
            changes,
            text,
            summary: None,
            over: false,
        };
        match after {
            None => reader.take(pending),
            Some(after) => reader.go_on(after, pending),
        }
        // A deployment that has ended changes no more.
        reader.end_with_summary();
        reader
    }

    /// Goes on after number `after` with what the log still has, and says so when that is not all.
    fn go_on(&mut self, after: u64, kept: Vec<Arc<Event>>) {
        self.last = after;
        let newest = self.console.0.deployments.newest_event();
        if after > newest {
            // Numbers of an earlier process: its events are gone, those of this one begin anew.
            let (all, live) = self.console.0.deployments.events(None);
            self.live = live;
            self.tell_gap(after, all.first().map_or(1, |event| event.sequence));
            self.last = 0;
            return self.take(all);
        }
        if let Some(first) = kept.first().filter(|first| first.sequence > after + 1) {
            self.tell_gap(after, first.sequence);
        }
        self.take(kept);
    }

    fn tell_gap(&mut self, after: u64, next: u64) {
        let _ = write!(self.text, "event: gap\ndata: {}\n\n", json!({"after": after, "next": next}));
    }

    fn take(&mut self, events: impl IntoIterator<Item = Arc<Event>>) {
        for event in events {
            // What came both ways, kept and live, is told once.
            if event.sequence <= self.last {
                continue;
            }
            self.last = event.sequence;
            if self.only.as_ref().is_none_or(|only| *only == event.deployment) {
                self.pending.push_back(event);
            }
        }
    }

    fn catch_up(&mut self) {
        let (missed, live) = self.console.0.deployments.events(Some(self.last));
        self.live = live;
        self.go_on(self.last, missed);
    }

    /// The next bytes; none when the stream ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.console.opens(self.credential) {
                return None;
            }
            if let Some(chunk) = self.chunk() {
                return Some(chunk);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                biased;
                event = self.live.recv() => match event {
                    Ok(event) => self.take([event]),
                    Err(RecvError::Lagged(_)) => self.catch_up(),
                    Err(RecvError::Closed) => return None,
                },
                changed = self.changes.changed() => {
                    changed.ok()?;
                    if self.only.is_none() {
                        self.text.push_str("event: deployments\ndata: {}\n\n");
                    }
                    self.end_with_summary();
                }
                () = tokio::time::sleep(KEEP_ALIVE) => self.text.push_str(":\n\n"),
            }
        }
    }

    /// The one deployment's summary, once it has ended, after the last of its events.
    fn end_with_summary(&mut self) {
        let Some(only) = &self.only else { return };
        let Some((summary, Some(_))) = self.console.0.deployments.get(only) else { return };
        // All its events were published before it ended; those that were not received yet come first.
        loop {
            match self.live.try_recv() {
                Ok(event) => self.take([event]),
                Err(TryRecvError::Lagged(_)) => self.catch_up(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.over = true;
        self.summary = serde_json::to_string(&summary.report()).ok();
    }

    /// What is there to be sent, a bounded piece of it.
    fn chunk(&mut self) -> Option<Bytes> {
        let mut text = std::mem::take(&mut self.text);
        while text.len() < CHUNK_BYTES
            && let Some(event) = self.pending.pop_front()
        {
            if let Ok(data) = serde_json::to_string(&*event) {
                let _ = write!(text, "id: {}\ndata: {data}\n\n", event.sequence);
            }
        }
        if self.pending.is_empty()
            && let Some(summary) = self.summary.take()
        {
            let _ = write!(text, "event: summary\ndata: {summary}\n\n");
        }
        (!text.is_empty()).then(|| text.into())
    }
}
