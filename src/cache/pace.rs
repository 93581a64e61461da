//! One limit for the payload bytes of many nodes at once: a token bucket without a burst.
//!
//! Whoever sends takes its bytes first and waits for them. Bytes are given in the order of asking, so every node gets
//! its share. Sent chunks must be small beside the rate ([`CHUNK_BYTES`]), or the others wait for one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Most bytes to take at once.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// So many bytes a second, shared by all who ask.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When the next byte may go.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// At least one byte a second.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Returns when `bytes` may be sent.
    pub async fn take(&self, bytes: usize) {
        let nanos = (bytes as u128 * 1_000_000_000) / u128::from(self.bytes_per_s);
        let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + length;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn many_together_are_no_faster_than_the_limit_and_each_gets_its_share() {
        let pace = Arc::new(Pace::new(1_000_000));
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let pace = pace.clone();
            tasks.spawn(async move {
                for _ in 0..10 {
                    pace.take(10_000).await;
                }
                begun.elapsed()
            });
        }
        let ends = tasks.join_all().await;
        let (first, last) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
        // 400,000 bytes; the last take of each waits for its turn only, not for its own bytes to have gone.
        assert!(last >= Duration::from_millis(390), "{last:?}");
        assert!(first >= Duration::from_millis(300), "one was served before the others: {first:?}");
    }
}
