//! Payloads over HTTP: `GET /payload/SHA256`, one range, a strong entity tag. Memory does not grow with the payload.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::sync::mpsc;

use super::range::{Part, parse};
use crate::digest::Sha256;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File(PathBuf, u64),
}

/// The payloads of one baseline, by digest.
#[derive(Clone, Default)]
pub struct Payloads(HashMap<Sha256, Source>);

impl Payloads {
    /// One that is in memory.
    pub fn add_memory(&mut self, sha256: Sha256, bytes: Bytes) {
        self.0.insert(sha256, Source::Memory(bytes));
    }

    /// One in a file of `size` bytes.
    pub fn add_file(&mut self, sha256: Sha256, path: PathBuf, size: u64) {
        self.0.insert(sha256, Source::File(path, size));
    }

    /// Serves them, and nothing else.
    pub fn router(&self) -> Router {
        Router::new().route("/payload/{sha256}", get(answer)).with_state(Arc::new(self.clone()))
    }
}

async fn answer(
    State(payloads): State<Arc<Payloads>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let found =
        name.parse::<Sha256>().ok().and_then(|sha256| Some((sha256, payloads.0.get(&sha256)?.clone())));
    let Some((sha256, source)) = found else { return StatusCode::NOT_FOUND.into_response() };
    let size = match &source {
        Source::Memory(bytes) => bytes.len() as u64,
        Source::File(_, size) => *size,
    };
    let tag = format!("\"{sha256}\"");
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    // RFC 9110, section 13.1.5: a range of another representation is answered with this one, whole.
    let same = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let (status, from, to) = match parse(text(header::RANGE).filter(|_| same), size) {
        Part::Whole => (StatusCode::OK, 0, size),
        Part::Bytes(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Part::Unsatisfiable => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    let body = match source {
        Source::Memory(bytes) => {
            let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
            Body::from(bytes.slice(index(from)..index(to)))
        }
        Source::File(path, _) => stream(path, from, to),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let mut set = |name, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::ETAG, tag);
    set(header::ACCEPT_RANGES, "bytes".into());
    set(header::CONTENT_TYPE, "application/octet-stream".into());
    set(header::CONTENT_LENGTH, (to - from).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", to - 1));
    }
    response
}

/// The bytes of a file, read by a blocking thread a few chunks ahead. A failing disk cuts the body short, which the
/// client sees by its length.
fn stream(path: PathBuf, from: u64, to: u64) -> Body {
    let (sender, mut chunks) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let read = || -> std::io::Result<()> {
            let mut file = std::fs::File::open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut left = to - from;
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                let mut chunk = vec![0; length];
                file.read_exact(&mut chunk)?;
                left -= length as u64;
                if sender.blocking_send(Ok(chunk.into())).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            tracing::error!(path = %path.display(), %error, "a payload cannot be read");
            let _ = sender.blocking_send(Err(error));
        }
    });
    Body::from_stream(futures_util::stream::poll_fn(move |context| chunks.poll_recv(context)))
}
