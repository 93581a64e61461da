//! The heart: deployments over a fleet, the cycle on every node, its journal and its undo.
//!
//! [`Deployments`] is what the console and the command line both drive. [`cycle`] is one node: [`establish`] the
//! way in, [`install`] the work, [`unwind`] the way back. [`recover`] takes back what a dead run left, [`store`] is
//! the journal's durable home. This part decides when to act; how is `access`'s and the engine's business.

pub mod authority;
pub mod cycle;
pub mod error;
pub mod establish;
pub mod event;
pub mod events;
pub mod install;
pub mod recover;
pub mod run;
pub mod schedule;
pub mod store;
pub mod summary;
pub mod unwind;

pub use schedule::Deployments;
