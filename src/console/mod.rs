//! The web console and the API of the box: what people see and what programs call.
//!
//! [`routes`] is the one table of what is answered; [`guard`] stands before all of it, [`auth`] and [`session`] hold
//! what opens it. [`api`], [`operate`] and [`events`] answer programs, [`pages`] and [`sign_in`] browsers, [`problem`] says what went
//! wrong in the words of the command line. It has no power of its own: all of it is `deploy`'s. It must never answer
//! anything but `/healthz` without the token.

pub mod api;
pub mod auth;
pub mod body;
pub mod delay;
pub mod events;
pub mod guard;
pub mod operate;
pub mod pages;
pub mod problem;
pub mod routes;
pub mod session;
pub mod sign_in;
pub mod trust;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};

use crate::deploy::Deployments;

pub use auth::Token;

/// What the answers are made from. Cloning shares it.
#[derive(Clone)]
pub struct Console(Arc<Inner>);

struct Inner {
    deployments: Deployments,
    token: Token,
    sessions: session::Sessions,
    delays: delay::Delays,
}

/// Everything the console answers.
pub fn router(deployments: Deployments, token: Token) -> Router {
    let console = Console(Arc::new(Inner {
        deployments,
        token,
        sessions: session::Sessions::default(),
        delays: delay::Delays::default(),
    }));
    let mut router = Router::new();
    for route in routes::ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(from_fn_with_state(console.clone(), guard::guard))
        .layer(from_fn(guard::headers))
        .with_state(console)
}
