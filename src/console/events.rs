//! `GET /api/v1/events`: server-sent events (WHATWG HTML, section 9.2), numbered, resumable, for slow readers too.
//!
//! Each event of the log has its number as `id:`; a reader that comes back with `Last-Event-ID`, or begins with
//! `?after=`, gets every later one once and in order. `?deployment=` leaves the others out, and ends with an event
//! `summary` of the deployment, which is the command line's last line. Two more kinds have no number: `gap` (events were
//! dropped before they were read) and, without `?deployment=`, `deployments` (one began or ended). It must never hold
//! more than a few kilobytes for a reader that does not read.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::Console;
use super::guard::Credential;
use super::problem::Problem;
use crate::deploy::follow::{Follow, Followed};
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
    follow: Follow,
    changes: watch::Receiver<u64>,
    /// To be sent before anything else.
    text: String,
    over: bool,
}

impl Reader {
    fn new(console: Console, credential: Credential, only: Option<DeploymentId>, after: Option<u64>) -> Self {
        let changes = console.0.deployments.changes();
        let follow = console.0.deployments.follow(after);
        let text = format!("retry: {RETRY_MS}\n\n");
        Self { console, credential, only, follow, changes, text, over: false }
    }

    /// The next bytes; none when the stream ends.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over && self.console.opens(self.credential) {
            // Asked before the events are read: all of a deployment's are published before it ends.
            let ended = self.only.clone().filter(|only| self.console.0.deployments.has_ended(only));
            if let Some(chunk) = self.chunk() {
                return Some(chunk);
            }
            if let Some(only) = ended {
                self.over = true;
                let (summary, _) = self.console.0.deployments.get(&only)?;
                let summary = serde_json::to_string(&summary.report()).ok()?;
                return Some(format!("event: summary\ndata: {summary}\n\n").into());
            }
            tokio::select! {
                going_on = self.follow.wait() => going_on.then_some(())?,
                changed = self.changes.changed() => {
                    changed.ok()?;
                    if self.only.is_none() {
                        self.text.push_str("event: deployments\ndata: {}\n\n");
                    }
                }
                () = tokio::time::sleep(KEEP_ALIVE) => self.text.push_str(":\n\n"),
            }
        }
        None
    }

    /// What is there to be sent, a bounded piece of it.
    fn chunk(&mut self) -> Option<Bytes> {
        let mut text = std::mem::take(&mut self.text);
        while text.len() < CHUNK_BYTES
            && let Some(next) = self.follow.ready()
        {
            let written = match next {
                Followed::Gap { after, next } => {
                    write!(text, "event: gap\ndata: {}\n\n", json!({"after": after, "next": next}))
                }
                Followed::Event(event) if self.only.as_ref().is_none_or(|only| *only == event.deployment) => {
                    let data = serde_json::to_string(&*event).unwrap_or_default();
                    write!(text, "id: {}\ndata: {data}\n\n", event.sequence)
                }
                Followed::Event(_) => Ok(()),
            };
            // Writing into a string cannot fail.
            let _ = written;
        }
        (!text.is_empty()).then(|| text.into())
    }
}
