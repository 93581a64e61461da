//! `carena-engine`: the small agent that a box copies to a node for the time of a deployment.

use std::process::ExitCode;

fn main() -> ExitCode {
    carena::engine::main()
}
