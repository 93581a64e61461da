//! A payload that comes down the control connection, where the node cannot fetch it. The session hands the pieces
//! over; this thread writes them, so that a slow disk delays no question, and acknowledges what is written.

use std::path::Path;
use std::sync::mpsc::Receiver;

use super::payload::{Ended, Partial, Stopped};
use super::session::{Done, Worker};
use crate::wire::message::{FailureKind, Push};

/// Takes pieces in until the payload is whole or nobody sends any more.
pub fn push(
    job: Push,
    begun: Option<Partial>,
    directory: &Path,
    pieces: &Receiver<Vec<u8>>,
    worker: &Worker,
) -> Ended {
    let mut partial = Partial::take_up(begun, directory, job.sha256, job.size)?;
    worker.tell(Done::Progress(job.sha256, partial.done()));
    while !partial.is_complete() {
        let Ok(piece) = pieces.recv() else {
            return Err(Stopped::at(partial, FailureKind::Cancelled, "the transfer was stopped"));
        };
        partial.write(&piece)?;
        worker.tell(Done::Progress(job.sha256, partial.done()));
    }
    Ok(partial.finish()?)
}
