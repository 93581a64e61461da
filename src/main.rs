//! The one binary: its role follows from its process id and its first argument.

fn main() {
    if std::process::id() == 1 {
        carena::init::run();
    }
}
