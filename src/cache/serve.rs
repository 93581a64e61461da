//! Payloads over HTTP: `GET /payload/SHA256`, one range, strong entity tags, packed for those who take zstd. Memory does
//! not grow with the payload.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::sync::mpsc;

use super::coding::{self, Coding};
use super::frames::Frames;
use super::object::{Object, Packed};
use super::pace::{self, Pace};
use super::range::{Part, parse};
use super::reader::Reader;
use super::store::Lock;
use crate::digest::Sha256;

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File(PathBuf, u64),
    Embedded(&'static [u8]),
    Stored(PathBuf),
}

/// A source, open.
enum Opened {
    Memory(Bytes),
    File(Arc<File>, u64),
    Packed(Arc<Object>),
}

/// Bytes as they are read; an error ends them.
pub type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// The payloads of one baseline, by digest. Cloning shares the pace.
#[derive(Clone, Default)]
pub struct Payloads {
    sources: HashMap<Sha256, Source>,
    pace: Option<Arc<Pace>>,
    frames: Arc<Frames>,
    /// The baseline's manifest in the store: it is in use.
    held: Option<Arc<Lock>>,
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

    /// One that is packed in the binary.
    pub fn add_embedded(&mut self, sha256: Sha256, packed: &'static [u8]) {
        self.sources.insert(sha256, Source::Embedded(packed));
    }

    /// One that is packed in a file of the store.
    pub fn add_stored(&mut self, sha256: Sha256, path: PathBuf) {
        self.sources.insert(sha256, Source::Stored(path));
    }

    /// Keeps a lock for as long as these payloads can be asked for.
    pub fn keep(&mut self, lock: Lock) {
        self.held = Some(Arc::new(lock));
    }

    /// All clones of these together send at most so many bytes a second; 0 = no limit.
    #[must_use = "the limit is on what is returned"]
    pub fn paced(mut self, bytes_per_s: u64) -> Self {
        self.pace = (bytes_per_s > 0).then(|| Arc::new(Pace::new(bytes_per_s)));
        self
    }

    /// The bytes of one from an offset on, at its pace, for a payload that is pushed.
    pub fn read(&self, sha256: Sha256, from: u64) -> Chunks {
        let (sender, chunks) = mpsc::channel(1);
        let payloads = self.clone();
        tokio::spawn(async move {
            let mut sending = match payloads.open(sha256).await {
                Ok(opened) => {
                    let (to, ..) = opened.representation(sha256, Coding::Identity);
                    payloads.sending(opened, sha256, Coding::Identity, from.min(to), to)
                }
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            while let Some(chunk) = sending.next().await {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
        });
        chunks
    }

    /// Serves them, and nothing else.
    pub fn router(&self) -> Router {
        Router::new().route("/payload/{sha256}", get(answer)).with_state(Arc::new(self.clone()))
    }

    async fn open(&self, sha256: Sha256) -> io::Result<Opened> {
        let path = match self.sources.get(&sha256) {
            None => return Err(io::ErrorKind::NotFound.into()),
            Some(Source::Memory(bytes)) => return Ok(Opened::Memory(bytes.clone())),
            Some(Source::Embedded(packed)) => {
                return Object::new(Packed::Embedded(packed)).map(Arc::new).map(Opened::Packed);
            }
            Some(Source::File(path, _) | Source::Stored(path)) => path.clone(),
        };
        let size = match self.sources.get(&sha256) {
            Some(Source::File(_, size)) => Some(*size),
            _ => None,
        };
        let opening = tokio::task::spawn_blocking(move || {
            let opened = match size {
                Some(size) => File::open(&path).map(|file| Opened::File(Arc::new(file), size)),
                None => Object::open(&path).map(Arc::new).map(Opened::Packed),
            };
            opened.inspect_err(
                |error| tracing::error!(path = %path.display(), %error, "a payload cannot be opened"),
            )
        });
        opening.await.map_err(io::Error::other)?
    }

    fn sending(&self, opened: Opened, name: Sha256, coding: Coding, from: u64, to: u64) -> Sending {
        let reader = match (opened, coding) {
            (Opened::Memory(bytes), _) => Reader::of_memory(bytes, from, to),
            (Opened::File(file, _), _) => Reader::of_file(file, from, to),
            (Opened::Packed(object), Coding::Zstd) => Reader::of_packed(&object, from, to),
            (Opened::Packed(object), Coding::Identity) => {
                Reader::of_content(object, name, self.frames.clone(), from, to)
            }
        };
        Sending { reader, name, pace: self.pace.clone(), _held: self.held.clone() }
    }
}

impl Opened {
    fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// The size and the entity tag of a representation. Packed again, a payload has other packed bytes: their tag is the
    /// packing's.
    fn representation(&self, name: Sha256, coding: Coding) -> (u64, String) {
        match (self, coding) {
            (Self::Memory(bytes), _) => (bytes.len() as u64, format!("\"{name}\"")),
            (Self::File(_, size), _) => (*size, format!("\"{name}\"")),
            (Self::Packed(object), Coding::Identity) => (object.size(), format!("\"{name}\"")),
            (Self::Packed(object), Coding::Zstd) => {
                let tag: String = object.tag().iter().map(|byte| format!("{byte:02x}")).collect();
                (object.packed_size(), format!("\"{name}-zstd-{tag}\""))
            }
        }
    }
}

/// A body on its way.
struct Sending {
    reader: Reader,
    name: Sha256,
    pace: Option<Arc<Pace>>,
    _held: Option<Arc<Lock>>,
}

impl Sending {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let most = if self.pace.is_some() { pace::CHUNK_BYTES } else { usize::MAX };
        let read = self.reader.next(most).await?;
        match (&read, &self.pace) {
            (Ok(bytes), Some(pace)) => pace.take(bytes.len()).await,
            (Ok(_), None) => {}
            (Err(error), _) => tracing::error!(sha256 = %self.name, %error, "a payload cannot be read"),
        }
        Some(read)
    }

    fn into_body(self) -> Body {
        Body::from_stream(futures_util::stream::unfold(self, |mut sending| async {
            sending.next().await.map(|chunk| (chunk, sending))
        }))
    }
}

async fn answer(
    State(payloads): State<Arc<Payloads>>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Ok(sha256) = name.parse::<Sha256>() else { return StatusCode::NOT_FOUND.into_response() };
    let opened = match payloads.open(sha256).await {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return StatusCode::NOT_FOUND.into_response();
        }
        Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    let mut response = match coding::preferred(&headers, opened.is_packed()) {
        Some(coding) => represent(&payloads, opened, sha256, coding, &method, &headers),
        None => StatusCode::NOT_ACCEPTABLE.into_response(),
    };
    set(&mut response, header::VARY, "Accept-Encoding");
    response
}

fn represent(
    payloads: &Payloads,
    opened: Opened,
    sha256: Sha256,
    coding: Coding,
    method: &Method,
    headers: &HeaderMap,
) -> Response {
    let (size, tag) = opened.representation(sha256, coding);
    // RFC 9110, section 13.2.2: the order of conditions.
    if coding::is_another(headers, &tag) {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    if coding::is_known(headers, &tag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        set(&mut response, header::ETAG, &tag);
        return response;
    }
    // Section 14.2: ranges are for GET.
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.filter(|_| method == Method::GET && coding::is_range_of(headers, &tag));
    let (status, from, to) = match parse(range, size) {
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
    let body = match *method == Method::HEAD {
        true => Body::empty(),
        false => payloads.sending(opened, sha256, coding, from, to).into_body(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(&mut response, header::ETAG, &tag);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut response, header::CONTENT_LENGTH, &(to - from).to_string());
    if coding == Coding::Zstd {
        set(&mut response, header::CONTENT_ENCODING, "zstd");
    }
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {from}-{}/{size}", to - 1));
    }
    response
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}
