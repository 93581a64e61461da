//! The fleet: which nodes, how they are reached, and how they are to be treated.
//!
//! [`file`] reads the fleet file and the same structure from the API, [`options`] holds its `[options]`;
//! [`credentials`] turns the references in it into what opens a node. A fleet never keeps a password it was only
//! pointed at.

pub mod credentials;
pub mod file;
pub mod options;

pub use file::{Fleet, FleetError, Node, canonical};
pub use options::{Mode, OpenFirewall, Options, Reboot, Wave};
