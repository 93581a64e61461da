//! The stream of events: numbered, kept for late and returning readers, bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::event::Event;

/// Events kept for readers that come late or come back. At about 200 bytes each, 4 MiB.
pub(super) const KEPT_MAX: usize = 20_000;

/// Events a slow reader may lag behind before it has to come back for them.
const LAG_MAX: usize = 4_096;

/// The events of this process.
pub struct EventLog {
    kept: Mutex<(u64, VecDeque<Arc<Event>>)>,
    live: broadcast::Sender<Arc<Event>>,
}

impl EventLog {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Self { kept: Mutex::default(), live: broadcast::channel(LAG_MAX).0 }
    }

    /// Numbers the event, keeps it and hands it to all readers.
    pub fn publish(&self, mut event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        event.sequence = kept.0;
        let event = Arc::new(event);
        if kept.1.len() == KEPT_MAX {
            kept.1.pop_front();
        }
        kept.1.push_back(event.clone());
        // Sent under the lock, so that every reader sees the numbers in order. No reader is not an error.
        let _ = self.live.send(event);
    }

    /// The number of the newest event; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The kept events after number `after`, and those to come, without a gap between them.
    pub fn read(&self, after: Option<u64>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let past = kept.1.iter().filter(|event| after.is_none_or(|after| event.sequence > after));
        (past.cloned().collect(), self.live.subscribe())
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}
