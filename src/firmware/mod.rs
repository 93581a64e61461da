//! What is installed: components, baselines, versions, outcomes. Knows nothing of nodes' addresses or of transport.

pub mod baseline;
pub mod compare;
pub mod component;
pub mod formats;
pub mod from_package;
pub mod fwupd;
pub mod installed;
pub mod installer;
pub mod manifest;
pub mod outcome;
pub mod package_tool;
pub mod rules;
pub mod signature;
pub mod version;
