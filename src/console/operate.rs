//! What an operator does to a deployment: cancels it or a part of it, takes up again what is not done.
//!
//! A cancel is in the store before it is answered, and may be repeated while the deployment runs. Like all of the
//! console this only asks `deploy`; it must never keep the credentials that come with a retry.

use std::collections::HashMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;

use super::Console;
use super::api::{created, parse};
use super::body;
use super::problem::Problem;
use crate::deploy::deployments::Intent;
use crate::deploy::retry::{Credentials, give};
use crate::wire::id::{ComponentId, DeploymentId};

fn deployment(id: &str) -> Result<DeploymentId, Problem> {
    parse(id).ok_or_else(|| Problem::no_deployment(id))
}

fn component(id: &str) -> Result<ComponentId, Problem> {
    let none = |_| Problem::new(StatusCode::NOT_FOUND, format!("there is no component \"{id}\""));
    id.parse().map_err(none)
}

/// Asked for, not yet done.
fn accepted(id: &DeploymentId) -> Response {
    (StatusCode::ACCEPTED, Json(json!({"deployment": id}))).into_response()
}

/// `POST /api/v1/deployments/{id}/cancel`
///
/// # Errors
/// 404; 409 when it has ended.
pub async fn cancel(State(console): State<Console>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = deployment(&id)?;
    console.0.deployments.cancel_all(&id).await?;
    Ok(accepted(&id))
}

/// `POST /api/v1/deployments/{id}/nodes/{node}/cancel`: one node, by its address in any spelling; the others go on.
///
/// # Errors
/// As [`cancel`].
pub async fn cancel_node(
    State(console): State<Console>,
    Path((id, node)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = deployment(&id)?;
    console.0.deployments.cancel_node(&id, &node).await?;
    Ok(accepted(&id))
}

/// `POST /api/v1/deployments/{id}/components/{component}/cancel`: on every node where its installation has not begun.
///
/// # Errors
/// As [`cancel`].
pub async fn cancel_component(
    State(console): State<Console>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = deployment(&id)?;
    console.0.deployments.cancel_component(&id, None, &component(&name)?).await?;
    Ok(accepted(&id))
}

/// `POST /api/v1/deployments/{id}/nodes/{node}/components/{component}/cancel`: the same on one node.
///
/// # Errors
/// As [`cancel`].
pub async fn cancel_component_of_node(
    State(console): State<Console>,
    Path((id, node, name)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let id = deployment(&id)?;
    console.0.deployments.cancel_component(&id, Some(&node), &component(&name)?).await?;
    Ok(accepted(&id))
}

/// What comes with a retry; all of it may be left out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retry {
    dry_run: bool,
    credentials: Credentials,
    nodes: HashMap<String, Credentials>,
}

/// `POST /api/v1/deployments/{id}/retry`: a deployment of the nodes that are not done, as the store has them. It has no
/// secrets, so `credentials` come along, or `nodes` with some for each address.
///
/// # Errors
/// 404; 409 while it runs, and when nothing failed; 422 when credentials are missing. No node was touched.
pub async fn retry(
    State(console): State<Console>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = deployment(&id)?;
    let told: Retry =
        serde_json::from_value(body::json_or_nothing(&headers, body).await?).map_err(|error| {
            let detail = format!("request: {error} (correct it and send it again; no node was touched)");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
    let mut fleet = console.0.deployments.failed_fleet(&id, None).await?;
    give(&mut fleet, &told.credentials, &told.nodes)?;
    let intent = if told.dry_run { Intent::DryRun } else { Intent::Install };
    Ok(created(&console.0.deployments.retry(&id, fleet, intent).await?))
}
