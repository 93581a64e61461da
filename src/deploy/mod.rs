//! The heart: deployments over a fleet, the cycle on every node, its journal and its undo.
//!
//! [`Deployments`] is what the console and the command line both drive. [`cycle`] is one node, [`install`] its
//! middle part, [`recover`] takes back what a dead run left, [`store`] is the journal's durable home. This part
//! decides when to act; how is `access`'s and the engine's business.

pub mod authority;
pub mod cycle;
pub mod error;
pub mod event;
pub mod events;
pub mod follow;
pub mod install;
pub mod recover;
pub mod run;
pub mod schedule;
pub mod store;
pub mod summary;

pub use schedule::Deployments;
