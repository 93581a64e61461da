//! Tests that look at the project from outside: its layers, and nodes in a lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a failed test is a panic
#![allow(clippy::disallowed_methods, clippy::print_stdout, missing_docs)] // tests start programs and are no API
mod boot;
mod cycle;
mod engine;
mod firewall;
mod house;
mod lab;
mod layers;
mod paths;
