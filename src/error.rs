//! How an error is told to a person: the whole chain of causes on one line, and what to do about it.
//!
//! Every module has its own error enum whose variants carry the node, path, bytes or limit as fields; the cause
//! is its `source()` and is never repeated in the text. This module only walks and prints. It must never add a
//! secret: error types hold none.

use std::error::Error;
use std::fmt::Write as _;

/// The error and all its causes, outermost first, joined by ": ".
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// An error that knows what its reader can do about it.
pub trait Hinted: Error {
    /// One sentence in the imperative, or nothing where there is nothing useful to say.
    fn hint(&self) -> Option<String>;
}

/// What is shown at 3 a.m.: what failed and why, then what to do.
pub fn explain(error: &(impl Hinted + 'static)) -> String {
    match error.hint() {
        Some(hint) => format!("{} ({hint})", chain(error)),
        None => chain(error),
    }
}
