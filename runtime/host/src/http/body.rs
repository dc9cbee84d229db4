//! The body of a response: limited in size, and in how long it may stall; without the secrets that its request had.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use wasmtime_wasi_http::Error;

use crate::secret::{Held, Placeholders};

/// A response's body as the guest gets it.
pub(crate) struct LimitedBody {
    inner: Incoming,
    left: u64,
    max: u64,
    between: Duration,
    deadline: Instant,
    stalled: Pin<Box<Sleep>>,
    failed: bool,
    placeholders: Arc<Placeholders>,
    /// What may be the beginning of a secret.
    held: Held,
    /// Trailers that came while something was held back.
    after_held: Option<Frame<Bytes>>,
    /// Held while the response is being read: it counts as a request under way.
    _slot: OwnedSemaphorePermit,
}

impl LimitedBody {
    pub(crate) fn new(
        inner: Incoming,
        max: u64,
        between: Duration,
        deadline: Instant,
        placeholders: Arc<Placeholders>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let stalled = Box::pin(tokio::time::sleep_until(deadline.min(Instant::now() + between).into()));
        let (held, after_held) = (Held::default(), None);
        Self {
            inner,
            left: max,
            max,
            between,
            deadline,
            stalled,
            failed: false,
            placeholders,
            held,
            after_held,
            _slot: slot,
        }
    }

    /// A frame as the guest gets it; `None` if all of it is held back.
    fn without_secrets(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        if self.placeholders.is_empty() {
            return Some(frame);
        }
        match frame.into_data() {
            Ok(data) => {
                let masked = self.placeholders.mask(&mut self.held, &data);
                (!masked.is_empty() || data.is_empty()).then(|| Frame::data(masked))
            }
            Err(mut frame) => {
                if let Some(trailers) = frame.trailers_mut() {
                    self.placeholders.conceal(trailers);
                }
                if self.held.is_empty() {
                    return Some(frame);
                }
                self.after_held = Some(frame);
                Some(Frame::data(self.held.take()))
            }
        }
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
        if let Some(frame) = this.after_held.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                    match this.left.checked_sub(bytes) {
                        Some(left) => this.left = left,
                        None => return this.fail(Error::HttpResponseBodySize(Some(this.max))),
                    }
                    this.stalled.as_mut().reset(this.deadline.min(Instant::now() + this.between).into());
                    if let Some(frame) = this.without_secrets(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "the response ended early");
                    return this.fail(Error::HttpResponseIncomplete);
                }
                Poll::Ready(None) if this.held.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) => {
                    return Poll::Ready(Some(Ok(Frame::data(this.held.take()))));
                }
                Poll::Pending => {
                    return match this.stalled.as_mut().poll(cx) {
                        Poll::Ready(()) => this.fail(Error::ConnectionReadTimeout),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed || (self.held.is_empty() && self.after_held.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.len() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
