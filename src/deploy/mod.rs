//! The heart: deployments over a fleet, the cycle on every node, its journal and its undo.
//!
//! [`Deployments`] is what the console and the command line both drive. [`cycle`] is one node: [`establish`] the
//! way in, [`path`] how it is talked to, [`plan`], [`send`], [`install`] and [`verify`] the work, [`unwind`] the way back, [`reboot`] a
//! second round where versions are active only then. [`schedule`] hands the nodes out as [`turns`] decides, [`cancel`]
//! and [`retry`] are the operator's. [`resume`] goes on with what a dead process left, by what [`vault`] has sealed for it, and
//! [`before`] keeps that it asks for nothing twice;
//! [`unfinished`] tells others what may go on; [`recover`] and [`sweeper`] take back what a dead run or a pulled cable left, [`store`] is
//! the journal's durable home and [`records`] that of deployments. This part decides when to act; how is `access`'s and the engine's business.

pub mod authority;
pub mod before;
pub mod cancel;
#[cfg(test)]
mod crash;
pub mod cycle;
pub mod deployments;
pub mod error;
pub mod establish;
pub mod event;
pub mod events;
pub mod follow;
pub mod install;
pub mod known;
pub mod path;
pub mod percent;
pub mod plan;
pub mod reboot;
pub mod records;
pub mod recover;
pub mod resume;
pub mod retry;
pub mod run;
pub mod schedule;
pub mod schema;
pub mod send;
mod sibling;
pub mod store;
pub mod summary;
pub mod sweeper;
pub mod turns;
pub mod unfinished;
pub mod unwind;
pub mod vault;
pub mod verify;

pub use deployments::Deployments;
