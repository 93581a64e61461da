//! The heart: plans, the cycle on every node, its journal and its undo.

pub mod event;
