//! The one binary: init as PID 1, else the command line, of which `serve` is a verb.

use std::process::ExitCode;

/// Pools of freed memory. glibc would make one for each thread, and each would keep what a moment of many nodes needed.
const MEMORY_POOLS: i32 = 2;

fn main() -> ExitCode {
    // SAFETY: there is one thread yet; this only limits how many pools the allocator makes.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, MEMORY_POOLS) };
    if std::process::id() == 1 {
        carena::init::run();
    }
    carena::cli::main(carena::appliance::serve)
}
