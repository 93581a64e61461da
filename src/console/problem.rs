//! What went wrong, as `application/problem+json` (RFC 9457), in the words that the command line uses.
//!
//! It must never hold more than the error itself says: errors hold no secret.

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::cache::CacheError;
use crate::cache::trust::TrustError;
use crate::deploy::cancel::CancelError;
use crate::deploy::deployments::StartError;
use crate::deploy::retry::RetryError;
use crate::error::{Hinted, explain};
use crate::fleet::FleetError;

/// An answer that is an error.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    deployment: Option<String>,
}

impl Problem {
    /// With what a person should know.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), deployment: None }
    }

    /// No deployment of this id.
    pub fn no_deployment(id: &str) -> Self {
        let detail = format!("there is no deployment \"{id}\" (GET /api/v1/deployments lists them)");
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    fn explained(status: StatusCode, error: &(impl Hinted + 'static)) -> Self {
        Self::new(status, explain(error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some(deployment), Some(members)) = (self.deployment, body.as_object_mut()) {
            members.insert("deployment".into(), deployment.into());
        }
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

impl From<FleetError> for Problem {
    fn from(error: FleetError) -> Self {
        Self::explained(StatusCode::UNPROCESSABLE_ENTITY, &error)
    }
}

impl From<CacheError> for Problem {
    fn from(error: CacheError) -> Self {
        let status = match error {
            CacheError::Unknown { .. } | CacheError::Untrusted { .. } | CacheError::Package(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, &error)
    }
}

impl From<TrustError> for Problem {
    fn from(error: TrustError) -> Self {
        let status = match error {
            TrustError::Unknown { .. } => StatusCode::NOT_FOUND,
            TrustError::Another { .. } => StatusCode::CONFLICT,
            TrustError::NotAKey { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            TrustError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, &error)
    }
}

impl From<CancelError> for Problem {
    fn from(error: CancelError) -> Self {
        let status = match &error {
            CancelError::NoDeployment { id, .. } => return Self::no_deployment(id.as_str()),
            CancelError::NoNode { .. } | CancelError::NoComponent { .. } => StatusCode::NOT_FOUND,
            CancelError::Ended { .. } => StatusCode::CONFLICT,
            CancelError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, &error)
    }
}

impl From<RetryError> for Problem {
    fn from(error: RetryError) -> Self {
        let status = match error {
            RetryError::Unknown { ref id } => return Self::no_deployment(id.as_str()),
            RetryError::Start(error) => return error.into(),
            RetryError::Running { .. } | RetryError::NothingFailed { .. } | RetryError::NoFleet { .. } => {
                StatusCode::CONFLICT
            }
            RetryError::NotInFleet { .. } | RetryError::NotRetried { .. } | RetryError::Missing { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            RetryError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, &error)
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Baseline(error) => error.into(),
            StartError::Busy { ref deployment, .. } => Self {
                deployment: Some(deployment.to_string()),
                ..Self::explained(StatusCode::CONFLICT, &error)
            },
            StartError::Closing => Self::explained(StatusCode::SERVICE_UNAVAILABLE, &error),
            StartError::Store(_) => Self::explained(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }
}

/// Nothing is there.
pub async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

/// Something is there, but not for this method.
pub async fn no_such_method(uri: Uri) -> Problem {
    let detail = format!("{} has no such method (the Allow header lists those it has)", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
