//! The web console and the API of the box: what people see and what programs call.
//!
//! [`auth`] holds the token that opens everything but `/healthz`; [`router`] puts the routes together. It has no state
//! and no power of its own: all of it is `deploy`'s. It must never answer anything but `/healthz` without the token.

pub mod auth;

use axum::Router;
use axum::routing::get;

use crate::deploy::Deployments;

pub use auth::Token;

/// Everything the console answers.
pub fn router(_deployments: Deployments, _token: Token) -> Router {
    Router::new().route("/healthz", get(healthz))
}

/// Answers once deployments can be accepted, which is when the port is served.
async fn healthz() -> &'static str {
    "ok\n"
}
