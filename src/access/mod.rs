//! Reaching a node and changing it: what may be done there, and only with its undo journalled.
//!
//! [`undo`] holds the undo values and the token that every change consumes; [`ssh`] reaches Linux nodes; [`control`]
//! talks to the engine once it runs, [`push`] sends it payloads it cannot fetch. Nothing in here decides when to act: that is `deploy`.

pub mod control;
pub mod engine_image;
pub mod push;
pub mod ssh;
pub mod undo;
