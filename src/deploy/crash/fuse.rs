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
}

struct Left {
    passages: Option<usize>,
    passed: usize,
    last: &'static str,
}

impl Fuse {
    /// Lets so many through; `None` all.
    pub fn after(passages: Option<usize>) -> Arc<Self> {
        let left = Left { passages, passed: 0, last: "the start" };
        Arc::new(Self { left: Mutex::new(left), blown: Notify::new() })
    }

    /// Returns, or never does.
    pub async fn pass(&self, what: &'static str) {
        let ended = {
            let mut left = self.left.lock().unwrap();
            let ended = left.passages.is_some_and(|passages| left.passed >= passages);
            if !ended {
                left.passed += 1;
                left.last = what;
            }
            ended
        };
        if ended {
            self.blown.notify_one();
            std::future::pending::<()>().await;
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
