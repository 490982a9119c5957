//! The two bodies that pass through: a request's on its way to the service, an answer's on its way
//! to the caller. Both are streamed; neither is ever held whole.

use std::{
    cell::Cell,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    clock::Coarse,
    exchange::Exchange,
    headers,
    upstream::{Bounds, Lease},
    watch::{Phase, Watch},
};

/// What a body can fail with; hyper wants it boxed.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What became of a request's body, seen by the request that sent it off.
#[derive(Debug, Default)]
pub struct Progress {
    /// It was longer than allowed.
    pub too_large: Cell<bool>,
    /// The client broke off.
    pub failed: Cell<bool>,
    /// It came to its end.
    pub ended: Cell<bool>,
    /// Something of it was asked for.
    pub touched: Cell<bool>,
    /// When its last piece came, nanoseconds of the worker's clock.
    pub last: Cell<u64>,
}

/// A request's body on its way to the service.
pub enum RequestBody {
    /// There is none.
    Empty,
    /// As it comes from the client.
    Stream(Box<Upload>),
}

/// The streamed body of a request, counted and with clean trailers.
pub struct Upload {
    inner: Incoming,
    left: Option<u64>,
    progress: Rc<Progress>,
    watch: Rc<Watch>,
    clock: Rc<Coarse>,
}

impl Upload {
    /// `limit` is the most bytes it may have; `None`: no limit.
    pub fn new(inner: Incoming, limit: Option<u64>, progress: Rc<Progress>, watch: Rc<Watch>, clock: Rc<Coarse>) -> Self {
        Self { inner, left: limit, progress, watch, clock }
    }

    fn ended(&self) {
        self.progress.ended.set(true);
        if self.watch.phase() == Phase::Upload {
            self.watch.enter(Phase::Waiting, self.clock.now());
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.progress.touched.set(true);
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let now = self.clock.now();
        self.progress.last.set(now);
        if self.watch.phase() == Phase::Upload {
            self.watch.progress(now);
        }
        let Some(frame) = polled else {
            self.ended();
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                self.progress.failed.set(true);
                return Poll::Ready(Some(Err(error.into())));
            }
        };
        if let (Some(left), Some(data)) = (self.left, frame.data_ref()) {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = left.checked_sub(length) else {
                self.progress.too_large.set(true);
                return Poll::Ready(Some(Err("the body is larger than max_body_size".into())));
            };
            self.left = Some(left);
        }
        if self.inner.is_end_stream() {
            self.ended();
        }
        Poll::Ready(Some(Ok(clean(frame))))
    }
}

/// The frame without what trailers must not have.
fn clean(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::clean_trailers(trailers)),
        Err(frame) => frame,
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream(upload) => upload.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(upload) => upload.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(upload) => upload.inner.size_hint(),
        }
    }
}

/// An answer's body on its way to the caller. It ends the exchange when it ends or is dropped.
pub enum AnswerBody {
    /// There is none, and the exchange goes on: what follows is no HTTP.
    Switched,
    /// What furt says itself.
    Own(Option<Bytes>, Box<Exchange>),
    /// What the service says.
    Service(Download),
}

/// The streamed body of a service's answer.
pub struct Download {
    inner: Incoming,
    /// The connection, to be used again once the body has ended well.
    lease: Option<Lease>,
    exchange: Box<Exchange>,
    /// It has been asked for before, so the head is out.
    begun: bool,
    /// How it broke off before the head was out.
    broken: Option<hyper::Error>,
}

impl AnswerBody {
    /// A body of furt's own.
    pub fn own(body: Bytes, mut exchange: Box<Exchange>) -> Self {
        if body.is_empty() {
            exchange.complete();
        }
        Self::Own(Some(body).filter(|body| !body.is_empty()), exchange)
    }

    /// The body of a service's answer, and the connection it comes over.
    pub fn service(inner: Incoming, lease: Lease, exchange: Box<Exchange>) -> Self {
        lease.answered();
        let mut download = Download { inner, lease: Some(lease), exchange, begun: false, broken: None };
        if download.inner.is_end_stream() {
            download.ended();
        }
        Self::Service(download)
    }
}

impl Download {
    fn ended(&mut self) {
        self.exchange.complete();
        if let Some(lease) = self.lease.take() {
            let worker = self.exchange.worker();
            worker.pool.give_back(lease, worker.coarse.now(), Bounds::of(&self.exchange.view().config));
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.exchange.owes(false);
        let first = !std::mem::replace(&mut self.begun, true);
        let polled = match self.broken.take() {
            Some(broken) => Some(Err(broken)),
            None => ready!(Pin::new(&mut self.inner).poll_frame(context)),
        };
        let Some(frame) = polled else {
            self.ended();
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if first => {
                // Hyper would throw the head away with it, and a client could take the silence for a connection that was
                // closed before it asked.
                self.broken = Some(error);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Err(error) => {
                self.exchange.broke_off("upstream-broke-off");
                return Poll::Ready(Some(Err(error.into())));
            }
        };
        if let Some(data) = frame.data_ref() {
            self.exchange.sent(data.len());
        }
        self.exchange.owes(true);
        if self.inner.is_end_stream() {
            self.ended();
        }
        Poll::Ready(Some(Ok(clean(frame))))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Switched => Poll::Ready(None),
            Self::Own(body, exchange) => {
                let body = body.take();
                exchange.sent(body.as_ref().map_or(0, Bytes::len));
                exchange.complete();
                Poll::Ready(body.map(|body| Ok(Frame::data(body))))
            }
            Self::Service(download) => download.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Switched => true,
            Self::Own(body, _) => body.is_none(),
            Self::Service(download) => download.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Switched => SizeHint::with_exact(0),
            Self::Own(body, _) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Service(download) => download.inner.size_hint(),
        }
    }
}
