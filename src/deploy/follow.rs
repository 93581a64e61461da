//! A reader of the event log: every event once and in order, however slow it is.
//!
//! What was published before it came, or while it lagged behind, it takes from the log. What the log has dropped by then
//! it does not pass over in silence: it is told as a [`Followed::Gap`]. It keeps no copies, only what the log keeps anyway.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::event::Event;
use super::events::EventLog;

/// What a reader gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The next event.
    Event(Arc<Event>),
    /// The log no longer has the events between these two numbers, both excluded.
    Gap {
        /// The last one that was read.
        after: u64,
        /// The next one there is.
        next: u64,
    },
}

/// A reader.
pub struct Follow {
    log: Arc<EventLog>,
    live: Receiver<Arc<Event>>,
    pending: VecDeque<Followed>,
    /// The number of the last event taken.
    last: u64,
}

impl Follow {
    /// Reads all that is kept, or what comes after number `after`; then what is published.
    pub fn new(log: Arc<EventLog>, after: Option<u64>) -> Self {
        let (kept, live) = log.read(after);
        let mut follow = Self { log, live, pending: VecDeque::new(), last: after.unwrap_or_default() };
        if after.is_some_and(|after| after > follow.log.newest()) {
            // A number of an earlier process. Its events are gone, and those of this one are counted anew.
            let (kept, live) = follow.log.read(None);
            let next = kept.first().map_or(1, |event| event.sequence);
            follow.pending.push_back(Followed::Gap { after: follow.last, next });
            (follow.live, follow.last) = (live, 0);
            follow.take(kept);
        } else if after.is_some() {
            follow.take_after_gap(kept);
        } else {
            follow.take(kept);
        }
        follow
    }

    fn take(&mut self, events: impl IntoIterator<Item = Arc<Event>>) {
        for event in events {
            // What came both ways, kept and live, is taken once.
            if event.sequence > self.last {
                self.last = event.sequence;
                self.pending.push_back(Followed::Event(event));
            }
        }
    }

    fn take_after_gap(&mut self, kept: Vec<Arc<Event>>) {
        if let Some(first) = kept.first().filter(|first| first.sequence > self.last + 1) {
            self.pending.push_back(Followed::Gap { after: self.last, next: first.sequence });
        }
        self.take(kept);
    }

    fn catch_up(&mut self) {
        let (missed, live) = self.log.read(Some(self.last));
        self.live = live;
        self.take_after_gap(missed);
    }

    /// The next one, if it is there already.
    pub fn ready(&mut self) -> Option<Followed> {
        while self.pending.is_empty() {
            match self.live.try_recv() {
                Ok(event) => self.take([event]),
                Err(TryRecvError::Lagged(_)) => self.catch_up(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
        self.pending.pop_front()
    }

    /// Waits until [`Follow::ready`] has one; false when there will be none any more. May be given up at any time.
    pub async fn wait(&mut self) -> bool {
        while self.pending.is_empty() {
            match self.live.recv().await {
                Ok(event) => self.take([event]),
                Err(RecvError::Lagged(_)) => self.catch_up(),
                Err(RecvError::Closed) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::event::{State, Step};
    use crate::deploy::events::KEPT_MAX;

    fn publish(log: &EventLog, count: usize) {
        for _ in 0..count {
            log.publish(Event {
                sequence: 0,
                time: String::new(),
                deployment: "x".parse().unwrap(),
                node: String::new(),
                step: Step::Look,
                state: State::Done,
                component: None,
                bytes: None,
                percent: None,
                message: None,
            });
        }
    }

    fn read(follow: &mut Follow) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut numbers, mut gaps) = (Vec::new(), Vec::new());
        while let Some(next) = follow.ready() {
            match next {
                Followed::Event(event) => numbers.push(event.sequence),
                Followed::Gap { after, next } => gaps.push((after, next)),
            }
        }
        (numbers, gaps)
    }

    #[test]
    fn a_reader_that_lags_gets_every_event_once_and_in_order() {
        let log = Arc::new(EventLog::new());
        publish(&log, 10);
        let mut follow = Follow::new(log.clone(), Some(4));
        // More than the live channel holds, less than the log keeps.
        publish(&log, KEPT_MAX - 10);
        let (numbers, gaps) = read(&mut follow);
        assert_eq!(numbers, (5..=KEPT_MAX as u64).collect::<Vec<_>>());
        assert_eq!(gaps, []);
        publish(&log, 1);
        assert_eq!(read(&mut follow).0, [KEPT_MAX as u64 + 1]);
    }

    #[test]
    fn events_that_were_dropped_are_a_gap_and_the_rest_comes() {
        let log = Arc::new(EventLog::new());
        publish(&log, 5);
        let mut follow = Follow::new(log.clone(), Some(3));
        assert_eq!(read(&mut follow).0, [4, 5]);
        publish(&log, KEPT_MAX + 7);
        let (numbers, gaps) = read(&mut follow);
        assert_eq!(gaps, [(5, 13)]);
        assert_eq!(numbers, (13..=KEPT_MAX as u64 + 12).collect::<Vec<_>>());
        assert_eq!(read(&mut Follow::new(log.clone(), Some(5))).1, [(5, 13)]);
        assert_eq!(read(&mut Follow::new(log, None)).1, [], "who asks for what there is misses nothing");
    }

    #[test]
    fn a_number_of_an_earlier_process_is_a_gap_before_everything() {
        let log = Arc::new(EventLog::new());
        publish(&log, 3);
        assert_eq!(read(&mut Follow::new(log, Some(99))), (vec![1, 2, 3], vec![(99, 1)]));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_next_event() {
        let log = Arc::new(EventLog::new());
        let mut follow = Follow::new(log.clone(), None);
        let reader = tokio::spawn(async move { follow.wait().await && follow.ready().is_some() });
        publish(&log, 1);
        assert!(reader.await.unwrap());
    }
}
