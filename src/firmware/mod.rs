//! What is installed: components, baselines, versions, outcomes. Knows nothing of nodes' addresses or of transport.

pub mod baseline;
pub mod compare;
pub mod component;
pub mod formats;
pub mod installed;
pub mod manifest;
pub mod outcome;
pub mod rules;
pub mod signature;
pub mod version;
