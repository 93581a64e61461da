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
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use super::pace::{self, Pace};
use super::range::{Part, parse};
use crate::digest::Sha256;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks read ahead of the network: what 64 nodes at once cost in memory, 24 MiB with the one that is sent.
const CHUNKS_AHEAD: usize = 2;

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File(PathBuf, u64),
}

/// Bytes as they are read; an error ends them.
pub type Chunks = mpsc::Receiver<std::io::Result<Bytes>>;

/// The payloads of one baseline, by digest. Cloning shares the pace.
#[derive(Clone, Default)]
pub struct Payloads {
    sources: HashMap<Sha256, Source>,
    pace: Option<Arc<Pace>>,
}

impl Payloads {
    /// One that is in memory.
    pub fn add_memory(&mut self, sha256: Sha256, bytes: Bytes) {
        self.sources.insert(sha256, Source::Memory(bytes));
    }

    /// One in a file of `size` bytes.
    pub fn add_file(&mut self, sha256: Sha256, path: PathBuf, size: u64) {
        self.sources.insert(sha256, Source::File(path, size));
    }

    /// All clones of these together send at most so many bytes a second; 0 = no limit.
    #[must_use = "the limit is on what is returned"]
    pub fn paced(mut self, bytes_per_s: u64) -> Self {
        self.pace = (bytes_per_s > 0).then(|| Arc::new(Pace::new(bytes_per_s)));
        self
    }

    /// The bytes of one from an offset on, at its pace, for a payload that is pushed.
    pub fn read(&self, sha256: Sha256, from: u64) -> Chunks {
        let (sender, paced) = mpsc::channel(1);
        let (source, pace) = (self.sources.get(&sha256).cloned(), self.pace.clone());
        tokio::spawn(async move {
            let mut chunks = match source {
                Some(Source::Memory(bytes)) => {
                    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                    chunks(bytes.slice(from..)).boxed()
                }
                Some(Source::File(path, size)) => {
                    let at_once = if pace.is_some() { pace::CHUNK_BYTES } else { CHUNK_BYTES };
                    let mut chunks = read_file(path, from.min(size), size, at_once);
                    futures_util::stream::poll_fn(move |context| chunks.poll_recv(context)).boxed()
                }
                None => futures_util::stream::iter([Err(std::io::ErrorKind::NotFound.into())]).boxed(),
            };
            while let Some(chunk) = chunks.next().await {
                if let (Some(pace), Ok(chunk)) = (&pace, &chunk) {
                    pace.take(chunk.len()).await;
                }
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
        });
        paced
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
        name.parse::<Sha256>().ok().and_then(|sha256| Some((sha256, payloads.sources.get(&sha256)?.clone())));
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
        Part::Bytes(from, to) => {
            tracing::info!(%sha256, from, size, "a payload is taken up again");
            (StatusCode::PARTIAL_CONTENT, from, to)
        }
        Part::Unsatisfiable => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    let body = match source {
        Source::Memory(bytes) => {
            let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
            let bytes = bytes.slice(index(from)..index(to));
            match payloads.pace.clone() {
                None => Body::from(bytes),
                Some(pace) => paced(chunks(bytes), pace),
            }
        }
        Source::File(path, _) => stream(path, from, to, payloads.pace.clone()),
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
fn stream(path: PathBuf, from: u64, to: u64, pace: Option<Arc<Pace>>) -> Body {
    let at_once = if pace.is_some() { pace::CHUNK_BYTES } else { CHUNK_BYTES };
    let mut chunks = read_file(path, from, to, at_once);
    let chunks = futures_util::stream::poll_fn(move |context| chunks.poll_recv(context));
    match pace {
        None => Body::from_stream(chunks),
        Some(pace) => paced(chunks, pace),
    }
}

fn read_file(path: PathBuf, from: u64, to: u64, at_once: usize) -> Chunks {
    let (sender, chunks) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let read = || -> std::io::Result<()> {
            let mut file = std::fs::File::open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut left = to - from;
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(at_once).min(at_once);
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
    chunks
}

fn chunks(mut bytes: Bytes) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    futures_util::stream::iter(std::iter::from_fn(move || {
        let chunk = bytes.split_to(bytes.len().min(pace::CHUNK_BYTES));
        (!chunk.is_empty()).then_some(Ok(chunk))
    }))
}

fn paced(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, pace: Arc<Pace>) -> Body {
    Body::from_stream(chunks.then(move |chunk| {
        let pace = pace.clone();
        async move {
            pace.take(chunk.as_ref().map_or(0, Bytes::len)).await;
            chunk
        }
    }))
}
