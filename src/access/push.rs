//! A payload down the control connection, for a node that cannot fetch it.
//!
//! The engine acknowledges what is on its disk; the box keeps only so much on the way. How much is found out: pieces
//! that begin to take longer than the quickest one wait in a queue somewhere, and then less is sent at once, so that
//! a question never stands behind more than some tens of milliseconds of payload.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::control::{ControlError, EngineClient};
use crate::wire::frame::{self, CHUNK_BYTES_MAX};
use crate::wire::message::{Notice, PUSH_WINDOW_BYTES_MAX, Push, Reply, Request};

/// How much longer than the quickest piece one may take before less is sent at once.
const QUEUE_MAX: Duration = Duration::from_millis(30);

/// Acknowledgements that may wait to be looked at: more than pieces can be on the way.
const NOTICES_MAX: usize = 2 * PUSH_WINDOW_BYTES_MAX / CHUNK_BYTES_MAX;

/// Pushes a payload; `open` gives its bytes from an offset on, `progress` hears how many are there.
///
/// # Errors
/// [`ControlError`]; after [`ControlError::Lost`] the same call over another connection goes on at the byte.
pub async fn push<B: AsRef<[u8]>>(
    engine: &EngineClient,
    job: Push,
    open: impl FnOnce(u64) -> mpsc::Receiver<std::io::Result<B>>,
    mut progress: impl FnMut(u64),
) -> Result<Reply, ControlError> {
    let (sender, mut notices) = mpsc::channel(NOTICES_MAX);
    let (id, answer) = engine.ask(Request::Push(job), Some(sender)).await?;
    tokio::pin!(answer);
    let mut from = tokio::select! {
        reply = &mut answer => return reply,
        Some(Notice::Pushed { done }) = notices.recv() => done,
    };
    progress(from);
    let mut source = open(from);
    let mut pace = Pace::new(from);
    // What was read and how much of it was sent.
    let mut read: Option<(B, usize)> = None;
    loop {
        let rest = read.as_ref().and_then(|(bytes, sent)| bytes.as_ref().get(*sent..)).unwrap_or_default();
        let piece = rest.get(..rest.len().min(CHUNK_BYTES_MAX)).unwrap_or_default();
        tokio::select! {
            biased;
            reply = &mut answer => return reply,
            Some(notice) = notices.recv() => {
                if let Notice::Pushed { done } = notice {
                    pace.acknowledged(done);
                    progress(done);
                }
            }
            room = engine.pieces.reserve(), if !piece.is_empty() && pace.has_room(from) => {
                room.map_err(|_| ControlError::Lost)?.send(frame::encode_chunk(id, piece)?);
                let length = piece.len();
                from += length as u64;
                pace.sent(from);
                if let Some((_, sent)) = &mut read {
                    *sent += length;
                }
            }
            bytes = source.recv(), if piece.is_empty() && from < job.size => {
                let short = || Err(std::io::ErrorKind::UnexpectedEof.into());
                read = Some((bytes.unwrap_or_else(short).map_err(ControlError::Payload)?, 0));
            }
        }
    }
}

/// How much may be on the way.
struct Pace {
    window: u64,
    acknowledged: u64,
    quickest: Duration,
    sent: VecDeque<(u64, Instant)>,
}

impl Pace {
    fn new(from: u64) -> Self {
        let window = 2 * CHUNK_BYTES_MAX as u64;
        Self { window, acknowledged: from, quickest: Duration::MAX, sent: VecDeque::new() }
    }

    fn has_room(&self, sent: u64) -> bool {
        sent - self.acknowledged < self.window
    }

    fn sent(&mut self, upto: u64) {
        self.sent.push_back((upto, Instant::now()));
    }

    fn acknowledged(&mut self, done: u64) {
        self.acknowledged = self.acknowledged.max(done);
        while let Some((_, at)) = self.sent.pop_front_if(|(upto, _)| *upto <= done) {
            self.took(at.elapsed());
        }
    }

    fn took(&mut self, time: Duration) {
        let piece = CHUNK_BYTES_MAX as u64;
        self.quickest = self.quickest.min(time);
        self.window = if time > self.quickest.saturating_add(QUEUE_MAX) {
            (self.window * 3 / 4).max(piece)
        } else {
            // One piece less than the limit: the last one sent may reach over the window.
            (self.window + piece).min(PUSH_WINDOW_BYTES_MAX as u64 - piece)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_makes_the_window_small_and_a_quick_path_wide_within_the_limit() {
        let mut pace = Pace::new(0);
        for _ in 0..100 {
            pace.took(Duration::from_millis(1));
        }
        assert_eq!(pace.window, (PUSH_WINDOW_BYTES_MAX - CHUNK_BYTES_MAX) as u64);
        for _ in 0..100 {
            pace.took(Duration::from_millis(200));
        }
        assert_eq!(pace.window, CHUNK_BYTES_MAX as u64);
        // A long way is no queue.
        let mut far = Pace::new(0);
        for _ in 0..100 {
            far.took(Duration::from_millis(600));
        }
        assert_eq!(far.window, (PUSH_WINDOW_BYTES_MAX - CHUNK_BYTES_MAX) as u64);
    }
}
