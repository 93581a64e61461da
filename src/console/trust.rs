//! `/api/v1/trust`: whose signatures of baselines count, for a box that has no command line.
//!
//! A key comes as its text; a request must never name a file of the box.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::Console;
use super::body;
use super::problem::Problem;
use crate::cache::Trust;
use crate::cache::trust::TrustError;
use crate::firmware::signature::Anchor;

/// A key as it is shown.
#[derive(Serialize)]
struct Shown {
    /// Its number.
    key: String,
    /// The key itself.
    public: String,
    /// What its file says of it.
    comment: String,
}

impl Shown {
    fn of(anchor: &Anchor) -> Self {
        let (key, public, comment) = (anchor.number(), anchor.key(), anchor.comment());
        Self { key: key.into(), public: public.into(), comment: comment.into() }
    }
}

fn kept(console: &Console) -> Result<Trust, Problem> {
    let none = "this box keeps no keys: it has no state directory";
    let trust = console.0.deployments.cache().trust();
    trust.ok_or_else(|| Problem::new(StatusCode::CONFLICT, none))
}

/// `GET /api/v1/trust`: the keys that are trusted.
///
/// # Errors
/// A [`Problem`], when they cannot be read.
pub async fn list(State(console): State<Console>) -> Result<Response, Problem> {
    let anchors = kept(&console)?.anchors()?;
    Ok(Json(json!({"keys": anchors.iter().map(Shown::of).collect::<Vec<_>>()})).into_response())
}

/// `POST /api/v1/trust`: `{"key": "..."}`, the text of a `minisign.pub` or the key alone.
///
/// # Errors
/// A [`Problem`].
pub async fn add(
    State(console): State<Console>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let request = body::json(&headers, body).await?;
    let key = request.get("key").and_then(Value::as_str).unwrap_or_default();
    let name = "the \"key\" in the request".to_owned();
    let anchor = Anchor::parse(key).map_err(|source| TrustError::NotAKey { name, source })?;
    let (anchor, is_new) = kept(&console)?.add(anchor)?;
    tracing::warn!(key = anchor.number(), "baselines that this key has signed are trusted from now on");
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Shown::of(&anchor))).into_response())
}

/// `DELETE /api/v1/trust/{id}`: by its number.
///
/// # Errors
/// A [`Problem`].
pub async fn remove(State(console): State<Console>, Path(key): Path<String>) -> Result<Response, Problem> {
    let anchor = kept(&console)?.remove(&key)?;
    tracing::warn!(key = anchor.number(), "baselines that this key has signed are trusted no more");
    Ok(StatusCode::NO_CONTENT.into_response())
}
