//! Where a test ends a process: at its n-th effect on the world, just before it or just after.
//!
//! Every change of the store and everything asked of a fake node passes here. From the n-th passage on nobody comes
//! through any more, which is what a killed process looks like from outside; the test then drops what is left of it.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::sync::{Notify, oneshot};

/// The passages of one process.
pub struct Fuse {
    left: Mutex<Left>,
    blown: Notify,
    /// Whoever comes last waits for the operator instead of for ever.
    released: Option<Notify>,
}

struct Left {
    passages: Option<usize>,
    passed: usize,
    last: &'static str,
    blown: bool,
}

impl Fuse {
    /// Lets so many through; `None` all.
    pub fn after(passages: Option<usize>) -> Arc<Self> {
        let left = Left { passages, passed: 0, last: "the start", blown: false };
        Arc::new(Self { left: Mutex::new(left), blown: Notify::new(), released: None })
    }

    /// Holds the process at its n-th passage, once, until [`Self::release`].
    pub fn holding(passages: Option<usize>) -> Arc<Self> {
        let left = Left { passages, passed: 0, last: "the start", blown: false };
        Arc::new(Self { left: Mutex::new(left), blown: Notify::new(), released: Some(Notify::new()) })
    }

    /// Whether it holds a process, and does not end it.
    pub fn holds(&self) -> bool {
        self.released.is_some()
    }

    /// Lets go of the process that is held.
    pub fn release(&self) {
        if let Some(released) = &self.released {
            released.notify_one();
        }
    }

    /// Whether the n-th passage has come.
    pub fn has_blown(&self) -> bool {
        self.left.lock().unwrap().blown
    }

    /// Returns, or never does.
    pub async fn pass(&self, what: &'static str) {
        let ended = {
            let mut left = self.left.lock().unwrap();
            let reached = left.passages.is_some_and(|passages| left.passed >= passages);
            let ended = reached && !(left.blown && self.holds());
            left.blown |= ended;
            if !ended {
                left.passed += 1;
                left.last = what;
            }
            ended
        };
        if ended {
            self.blown.notify_one();
            match &self.released {
                Some(released) => released.notified().await,
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Returns when the process is to end.
    pub async fn blown(&self) {
        self.blown.notified().await;
    }

    /// The last passage, for a person who has to find the place.
    pub fn last(&self) -> String {
        let left = self.left.lock().unwrap();
        format!("passage {}: {}", left.passed, left.last)
    }

    /// A change of the store: waits for its answer on this very thread, so that paused time stands still meanwhile.
    pub async fn answer<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
        let result = wait(answered);
        self.pass("a change of the store is durable").await;
        result
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}
