//! What is installed: components, baselines, versions, outcomes.

pub mod outcome;
