//! Serves one imported baseline's payloads over HTTPS, as a deployment does, to whoever asks: for measuring only.
//!   cache-serve STATE BASELINE PORT      prints "ready" once it serves; ends with its standard input
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a measurement that cannot go on stops

use std::path::PathBuf;

use carena::cache::Cache;
use carena::firmware::signature::Unsigned;
use carena::https::identity::Identity;
use carena::https::{Listener, Registry};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("STATE BASELINE PORT");
    let (state, baseline, port) = (PathBuf::from(next()), next(), next().parse().unwrap());
    let Ok(opened) = Cache::at(&state).open(&baseline, Unsigned::Refuse) else {
        panic!("no baseline {baseline}")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let identity = Identity::open(&state).unwrap();
    runtime.block_on(async {
        let registry = Registry::new();
        registry.set_default(identity.server, opened.payloads.router());
        let listener = Listener::bind(port, 1).unwrap();
        tokio::spawn(listener.serve(registry, std::future::pending()));
        println!("ready");
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    });
    runtime.shutdown_background();
}
