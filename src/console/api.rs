//! `/api/v1`: what programs, and the page, call. Each handler asks `deploy` and puts the answer into JSON.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::Console;
use super::body;
use super::problem::Problem;
use crate::cache::{Cache, CacheError, Manifest};
use crate::deploy::deployments::Intent;
use crate::deploy::known::Listed;
use crate::error::explain;
use crate::firmware::signature::{Standing, Unsigned};
use crate::fleet::Fleet;
use crate::wire::id::DeploymentId;

/// `GET /healthz`: answers once deployments can be accepted, which is when the port is served.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `POST /api/v1/deployments`: the fleet, and `"dry_run": true` to plan only.
///
/// # Errors
/// A [`Problem`]; no node was touched.
pub async fn start(
    State(console): State<Console>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut request = body::json(&headers, body).await?;
    let intent = match request.as_object_mut().and_then(|request| request.remove("dry_run")) {
        None | Some(Value::Bool(false)) => Intent::Install,
        Some(Value::Bool(true)) => Intent::DryRun,
        Some(_) => {
            let detail =
                "request: dry_run is true or false (correct it and start again; no node was touched)";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
    };
    let fleet = Fleet::from_json(request)?;
    // A name that is no id could be a directory of the box, which is not the caller's to read.
    let all = console.0.deployments.with_cache(Cache::all).await?;
    let is_named = |manifest: &Manifest| {
        manifest.baseline.id.as_str() == fleet.baseline || manifest.name() == fleet.baseline
    };
    if !all.iter().any(|(manifest, _)| is_named(manifest)) {
        let known = all.iter().map(|(manifest, _)| manifest.name()).collect();
        return Err(CacheError::Unknown { name: fleet.baseline, known }.into());
    }
    Ok(created(&console.0.deployments.start(fleet, intent).await?))
}

/// A deployment was begun, and this is where it is.
pub(super) fn created(id: &DeploymentId) -> Response {
    let location = [(header::LOCATION, format!("/api/v1/deployments/{id}"))];
    (StatusCode::CREATED, location, Json(json!({"deployment": id}))).into_response()
}

/// What `GET /api/v1/deployments` answers.
#[derive(Serialize)]
pub struct List {
    /// Newest first.
    deployments: Vec<Listed>,
    /// The number of the newest event: a reader that goes on with the events after it misses nothing.
    newest_event: u64,
}

/// `GET /api/v1/deployments`
pub async fn list(State(console): State<Console>) -> Json<List> {
    // The number first: what happens between the two is told twice rather than never.
    let newest_event = console.0.deployments.newest_event();
    Json(List { deployments: console.0.deployments.list(), newest_event })
}

/// `GET /api/v1/deployments/{id}`: the summary and, once it has ended, the exit code.
///
/// # Errors
/// 404.
pub async fn read(State(console): State<Console>, Path(id): Path<String>) -> Result<Response, Problem> {
    let found = parse(&id).and_then(|id| console.0.deployments.get(&id));
    let (summary, _) = found.ok_or_else(|| Problem::no_deployment(&id))?;
    Ok(Json(summary.report()).into_response())
}

/// `GET /api/v1/deployments/{id}/inventory`: what each node that was reached is, by address.
///
/// # Errors
/// 404.
pub async fn inventory(State(console): State<Console>, Path(id): Path<String>) -> Result<Response, Problem> {
    let known = parse(&id).filter(|id| console.0.deployments.get(id).is_some());
    let known = known.ok_or_else(|| Problem::no_deployment(&id))?;
    let by_address: BTreeMap<_, _> = console.0.deployments.inventories(&known).into_iter().collect();
    Ok(Json(by_address).into_response())
}

/// A baseline that can be deployed.
#[derive(Serialize)]
struct BaselineShown<'a> {
    id: &'a str,
    version: &'a str,
    title: &'a str,
    /// What a deployment names it by.
    name: String,
    signature: Signature,
    components: Vec<ComponentShown<'a>>,
}

/// Why it may be used, or why not without the operator's word.
#[derive(Serialize)]
#[serde(untagged)]
enum Signature {
    Usable(Standing),
    Refused { state: &'static str, why: String },
}

#[derive(Serialize)]
struct ComponentShown<'a> {
    id: &'a str,
    version: &'a str,
    title: &'a str,
    size: u64,
    expected_s: u32,
}

/// `GET /api/v1/baselines`: what can be deployed, every version.
///
/// # Errors
/// The cache cannot be read.
pub async fn baselines(State(console): State<Console>) -> Result<Response, Problem> {
    Ok(Json(console.0.deployments.with_cache(shown).await?).into_response())
}

fn shown(cache: &Cache) -> Value {
    let all = cache.all();
    let shown = all.iter().map(|(manifest, place)| BaselineShown {
        id: manifest.baseline.id.as_str(),
        version: &manifest.baseline.version,
        title: &manifest.baseline.title,
        name: manifest.name(),
        signature: match cache.standing(manifest, place, Unsigned::Refuse) {
            Ok(standing) => Signature::Usable(standing),
            Err(error) => Signature::Refused { state: "refused", why: explain(&error) },
        },
        components: manifest
            .baseline
            .components
            .iter()
            .map(|component| ComponentShown {
                id: component.id.as_str(),
                version: &component.version,
                title: &component.title,
                size: component.size,
                expected_s: component.expected_s,
            })
            .collect(),
    });
    json!({"baselines": shown.collect::<Vec<_>>()})
}

pub(super) fn parse(id: &str) -> Option<DeploymentId> {
    id.parse().ok()
}
