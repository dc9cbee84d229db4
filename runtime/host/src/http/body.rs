//! The body of a response: limited in size, and in how long it may stall.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use wasmtime_wasi_http::Error;

/// A response's body as the guest gets it.
pub(crate) struct LimitedBody {
    inner: Incoming,
    left: u64,
    max: u64,
    between: Duration,
    deadline: Instant,
    stalled: Pin<Box<Sleep>>,
    failed: bool,
    /// Held while the response is being read: it counts as a request under way.
    _slot: OwnedSemaphorePermit,
}

impl LimitedBody {
    pub(crate) fn new(
        inner: Incoming,
        max: u64,
        between: Duration,
        deadline: Instant,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let stalled = Box::pin(tokio::time::sleep_until(deadline.min(Instant::now() + between).into()));
        Self { inner, left: max, max, between, deadline, stalled, failed: false, _slot: slot }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for LimitedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.checked_sub(bytes) {
                    Some(left) => this.left = left,
                    None => return this.fail(Error::HttpResponseBodySize(Some(this.max))),
                }
                this.stalled.as_mut().reset(this.deadline.min(Instant::now() + this.between).into());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "the response ended early");
                this.fail(Error::HttpResponseIncomplete)
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match this.stalled.as_mut().poll(cx) {
                Poll::Ready(()) => this.fail(Error::ConnectionReadTimeout),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
