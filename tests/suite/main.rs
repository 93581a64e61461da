//! Tests that look at the project from outside: its layers, and nodes in a lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a failed test is a panic
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, missing_docs)] // tests start programs and are no API
mod applicability;
mod boot;
mod browser;
mod cache;
mod cache_http;
mod confine;
mod console;
mod cycle;
mod deployment;
mod engine;
mod faults;
mod firewall;
mod fleet;
mod formats;
mod ground;
mod house;
mod image;
mod interrupt;
mod journal;
mod lab;
mod layers;
mod operator;
mod paths;
mod payload;
mod pid1;
mod privilege;
mod reboot;
mod recovery;
mod resume;
mod secrets;
mod serve;
mod terminal;
mod traces;
mod versions;
mod wall;
