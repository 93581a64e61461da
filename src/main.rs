//! The one binary: init as PID 1, else the command line, of which `serve` is a verb.

use std::process::ExitCode;

/// Pools of freed memory. glibc would make one for each thread, and each would keep what a moment of many nodes needed.
const MEMORY_POOLS: i32 = 2;

/// Bytes from which on a buffer is the system's again as soon as it is freed. glibc would raise this with each that is.
const LARGE_BUFFER_BYTES: i32 = 128 * 1024;

fn main() -> ExitCode {
    // SAFETY: there is one thread yet; this only limits what the allocator keeps.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, MEMORY_POOLS);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES);
    }
    if std::process::id() == 1 {
        carena::init::run();
    }
    carena::cli::main(carena::appliance::confine, carena::appliance::serve)
}
