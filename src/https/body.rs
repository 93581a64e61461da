//! The body of a request, which must have come whole within a bound.
//!
//! Without it a client that sends a byte now and then would hold its connection, and what it has sent, for ever.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

/// A client that has not sent the whole body by then is let go. The largest request, 8 MiB, gets through at 1 Mbit/s.
pub const BODY_MAX: Duration = Duration::from_secs(70);

/// The body did not come in time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body of the request did not come within {} s", BODY_MAX.as_secs())]
pub struct TooSlow;

/// A body with its bound, counted from the end of the request's head.
pub struct Timed {
    inner: Incoming,
    end: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    /// Starts the count.
    pub fn new(inner: Incoming) -> Self {
        // Most requests have no body and need no timer.
        let end = (!inner.is_end_stream()).then(|| Box::pin(sleep(BODY_MAX)));
        Self { inner, end }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(Box::new(TooSlow))));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
