//! What engine and box say to each other: identifiers, frames, messages, the firewall rule's spelling.
//!
//! Both sides compile this part, so it must stay free of anything only one of them has. It is append-only:
//! fields and variants are added, never changed or removed. Everything that arrives is bounded at decoding.

pub mod claim;
pub mod firewall;
pub mod frame;
#[cfg(test)]
mod frozen;
pub mod id;
pub mod inventory;
pub mod message;
pub mod root_shell;

/// The protocol spoken. A box and an engine of different numbers refuse each other at `Hello`.
pub const PROTOCOL: u16 = 1;
