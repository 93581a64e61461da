//! Reaching a node and changing it: what may be done there, and only with its undo journalled.
//!
//! [`undo`] holds the undo values and the token that every change consumes; [`driver`] is what every way to a node can
//! do, [`ssh`] the one for Linux nodes; [`control`] talks to the engine once it runs, [`push`] sends it payloads it
//! cannot fetch. Nothing in here decides when to act: that is `deploy`.

use std::sync::Arc;

pub mod control;
pub mod driver;
pub mod engine_image;
pub mod push;
pub mod ssh;
pub mod undo;

/// The driver for every node this program can reach.
pub fn drivers() -> Arc<dyn driver::Driver> {
    Arc::new(ssh::Ssh)
}
