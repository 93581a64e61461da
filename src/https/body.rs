//! The body of a request, which must have come whole within a bound.
//!
//! Without it a client that sends a byte now and then would hold its connection, and what it has sent, for ever. What
//! nobody reads is thrown away, up to a bound: HTTP/2 cancels the stream of a body that is dropped half-way, and the
//! client would see that instead of the answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep, timeout};

/// A client that has not sent the whole body by then is let go. The largest request, 8 MiB, gets through at 1 Mbit/s.
pub const BODY_MAX: Duration = Duration::from_secs(70);

/// How long, and how many bytes, a body that nobody wants is thrown away before its stream is cancelled.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The body did not come in time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body of the request did not come within {} s", BODY_MAX.as_secs())]
pub struct TooSlow;

/// A body with its bound, counted from the end of the request's head.
pub struct Timed {
    inner: Option<Incoming>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    /// Starts the count.
    pub fn new(inner: Incoming) -> Self {
        // Most requests have no body and need no timer.
        let end = (!inner.is_end_stream()).then(|| Box::pin(sleep(BODY_MAX)));
        Self { inner: Some(inner), end }
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
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let unread = self.inner.take().filter(|inner| !inner.is_end_stream());
        if let (Some(inner), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) {
            runtime.spawn(timeout(DRAIN_MAX, drain(inner)));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > DRAIN_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Request, Response, StatusCode};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// What a server answers to these bytes and then silence; its client's time passes as if by itself.
    async fn answer(sent: &str) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let service = hyper::service::service_fn(|request: Request<Incoming>| async {
            let read = Timed::new(request.into_body()).collect().await;
            let status = match read {
                Err(error) if error.is::<TooSlow>() => StatusCode::REQUEST_TIMEOUT,
                Err(_) => StatusCode::BAD_REQUEST,
                Ok(_) => StatusCode::OK,
            };
            let mut response = Response::new(axum::body::Body::empty());
            *response.status_mut() = status;
            Ok::<_, std::convert::Infallible>(response)
        });
        let serving = hyper::server::conn::http1::Builder::new();
        tokio::spawn(serving.serve_connection(TokioIo::new(server), service));
        client.write_all(sent.as_bytes()).await.unwrap();
        let mut first = vec![0; 12];
        client.read_exact(&mut first).await.unwrap();
        String::from_utf8(first).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_whole_is_given_up() {
        let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
        let begun = tokio::time::Instant::now();
        assert_eq!(answer(&format!("{head}abc")).await, "HTTP/1.1 200");
        assert!(begun.elapsed() < BODY_MAX);
        assert_eq!(answer(&format!("{head}ab")).await, "HTTP/1.1 408");
        assert!(begun.elapsed() >= BODY_MAX);
    }
}
