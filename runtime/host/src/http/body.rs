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

/// How much of a body is read, and for how long.
pub(crate) struct Bounds {
    /// What the guest gets of it. Then it gets an error.
    pub(crate) bytes_max: u64,
    /// Between two parts.
    pub(crate) between: Duration,
    /// For all of it.
    pub(crate) deadline: Instant,
}

/// A response's body as the guest gets it: what comes, up to the limits, and an error where they end it. The response
/// itself is there whatever its body is.
pub(crate) struct LimitedBody {
    inner: Incoming,
    left: u64,
    bounds: Bounds,
    stalled: Pin<Box<Sleep>>,
    /// What comes in place of the next part.
    error: Option<Error>,
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
        bounds: Bounds,
        error: Option<Error>,
        placeholders: Arc<Placeholders>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let stalled = Box::pin(tokio::time::sleep_until(bounds.next().into()));
        let (held, after_held) = (Held::default(), None);
        let left = bounds.bytes_max;
        Self { inner, left, bounds, stalled, error, failed: false, placeholders, held, after_held, _slot: slot }
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

    /// As much of a part as there is room for; what comes after it is an error.
    fn within(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(data) = frame.data_ref() else { return frame };
        let bytes = data.len() as u64;
        if let Some(left) = self.left.checked_sub(bytes) {
            self.left = left;
            return frame;
        }
        self.error = Some(Error::HttpResponseBodySize(Some(self.bounds.bytes_max)));
        // It is less than the part's own length.
        let room = usize::try_from(std::mem::take(&mut self.left)).unwrap_or(0);
        Frame::data(data.slice(..room))
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Bounds {
    /// When a body has stalled that brings nothing from now on.
    fn next(&self) -> Instant {
        self.deadline.min(Instant::now() + self.between)
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
        if let Some(error) = this.error.take() {
            return this.fail(error);
        }
        if let Some(frame) = this.after_held.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.stalled.as_mut().reset(this.bounds.next().into());
                    if let Some(frame) = this.without_secrets(frame) {
                        let frame = this.within(frame);
                        // Nothing of it fits.
                        return match this.error.take_if(|_| frame.data_ref().is_some_and(Bytes::is_empty)) {
                            Some(error) => this.fail(error),
                            None => Poll::Ready(Some(Ok(frame))),
                        };
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "the response ended early");
                    return this.fail(Error::HttpResponseIncomplete);
                }
                Poll::Ready(None) if this.held.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) => {
                    let frame = Frame::data(this.held.take());
                    return Poll::Ready(Some(Ok(this.within(frame))));
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
        let is_at_end = self.error.is_none() && self.held.is_empty() && self.after_held.is_none();
        self.failed || (is_at_end && self.inner.is_end_stream())
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
