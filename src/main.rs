//! The one binary: init as PID 1, else the command line, of which `serve` is a verb.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        carena::init::run();
    }
    carena::cli::main(carena::appliance::serve)
}
