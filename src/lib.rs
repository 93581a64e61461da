//! Carena: firmware deployment for isolated networks, as one binary.
//!
//! The crate is laid out in layers; a lower layer never imports a higher one, and the parts of L2 do not import
//! each other (`tests/suite/layers.rs` holds the table):
//!
//! - L0 `error paths durable digest secret clock`: imports nothing of ours.
//! - L1 `wire`: what engine and box say to each other.
//! - L2 `init net firmware cache engine access https`: the parts.
//! - L3 `fleet deploy`: the cycle, its undo and its journal.
//! - L4 `console cli`: what people and programs see. They hold no state of their own. `appliance` composes `serve`.
//!
//! The engine that travels to the nodes is built from the same crate with the feature `engine` only: L0, L1 and
//! `engine`, nothing of the box.

pub mod digest;
pub mod durable;
pub mod error;
pub mod paths;
pub mod secret;

pub mod wire;

#[cfg(feature = "engine")]
pub mod engine;

#[cfg(feature = "box")]
pub mod access;
#[cfg(feature = "box")]
pub mod appliance;
#[cfg(feature = "box")]
pub mod cache;
#[cfg(feature = "box")]
pub mod cli;
#[cfg(feature = "box")]
pub mod clock;
#[cfg(feature = "box")]
pub mod console;
#[cfg(feature = "box")]
pub mod deploy;
#[cfg(feature = "box")]
pub mod firmware;
#[cfg(feature = "box")]
pub mod fleet;
#[cfg(feature = "box")]
pub mod https;
#[cfg(feature = "box")]
pub mod init;
#[cfg(feature = "box")]
pub mod net;
