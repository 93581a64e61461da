//! The one table of what the console answers: the router is built from it, the guard asks it, tests walk through it.
//!
//! A path that is not in it, or not marked here, is behind the token.

use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, post};

use super::{Console, api, events, operate, pages, session, sign_in, trust};

/// Who gets an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone.
    Open,
    /// Anyone, with a token to offer: its answer to any other is 401.
    SignIn,
    /// Who has the token, or a session made with it.
    Token,
}

/// A method on a path.
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, with its parameters in braces.
    pub path: &'static str,
    /// Who gets an answer.
    pub access: Access,
    /// What answers.
    pub handler: fn() -> MethodRouter<Console>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    access: Access,
    handler: fn() -> MethodRouter<Console>,
) -> Route {
    Route { method, path, access, handler }
}

/// All of them.
pub const ROUTES: &[Route] = &[
    route("GET", "/healthz", Access::Open, || get(api::healthz)),
    route("POST", "/session", Access::SignIn, || post(sign_in::sign_in).layer(sign_in::limit())),
    route("DELETE", "/session", Access::Token, || delete(session::sign_out)),
    route("GET", "/", Access::Token, || get(pages::index)),
    route("GET", "/assets/{name}", Access::Token, || get(pages::asset)),
    route("GET", "/api/v1/baselines", Access::Token, || get(api::baselines)),
    route("GET", "/api/v1/trust", Access::Token, || get(trust::list)),
    route("POST", "/api/v1/trust", Access::Token, || post(trust::add)),
    route("DELETE", "/api/v1/trust/{id}", Access::Token, || delete(trust::remove)),
    route("GET", "/api/v1/events", Access::Token, || get(events::events)),
    route("GET", "/api/v1/deployments", Access::Token, || get(api::list)),
    route("POST", "/api/v1/deployments", Access::Token, || post(api::start)),
    route("GET", "/api/v1/deployments/{id}", Access::Token, || get(api::read)),
    route("POST", "/api/v1/deployments/{id}/cancel", Access::Token, || post(operate::cancel)),
    route("POST", "/api/v1/deployments/{id}/components/{component}/cancel", Access::Token, || {
        post(operate::cancel_component)
    }),
    route("POST", "/api/v1/deployments/{id}/nodes/{node}/cancel", Access::Token, || {
        post(operate::cancel_node)
    }),
    route(
        "POST",
        "/api/v1/deployments/{id}/nodes/{node}/components/{component}/cancel",
        Access::Token,
        || post(operate::cancel_component_of_node),
    ),
    route("POST", "/api/v1/deployments/{id}/retry", Access::Token, || post(operate::retry)),
    route("GET", "/api/v1/deployments/{id}/inventory", Access::Token, || get(api::inventory)),
];

/// Whether this is answered to anyone.
pub fn is_open(method: &Method, path: &str) -> bool {
    ROUTES
        .iter()
        .any(|route| route.access != Access::Token && route.path == path && route.method == method.as_str())
}
