//! A client's connection as hyper sees it.
//!
//! Here: the socket, plain or TLS, under the eyes of its watch and of a guard that reads every byte before hyper
//! does: [`Strict`] over HTTP/1, [`Frames`] over HTTP/2. What a guard refuses is answered here, in hyper's stead, and
//! so is a head that came too slowly. Not here: the limits themselves.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::{
    clock::Coarse,
    frames::Frames,
    respond::{self, ProxyError},
    strict::{self, Strict},
    watch::{Phase, Verdict, Watch},
};

/// The socket of a client.
pub enum ClientStream {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS; boxed, as its state is large and the other is not to pay for it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, data),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, data),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Who reads a client's bytes before hyper does.
pub enum Guard {
    /// Over HTTP/1, with the limits of the configuration in force when the connection came.
    Http1(Strict, strict::Limits),
    /// Over HTTP/2.
    Http2(Box<Frames>),
    /// What is spoken here is none of furt's business: it was switched to (101).
    Open,
}

/// How far the end of a connection has come when furt itself ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes on.
    None,
    /// The guard refused what comes next; hyper is not told before what it answers has been written.
    Refused(strict::Fault),
    /// The client has closed its side after a whole request.
    HalfClosed,
    /// The guard refused a piece of a body that hyper is reading.
    Broken,
    /// Furt's last words are being written.
    Words,
    /// They are written, the sending side is closed, the rest of what the client sends is read away.
    Linger,
}

/// The socket of a client, watched and guarded.
pub struct ClientIo {
    inner: ClientStream,
    /// Bytes read already, to find out which protocol is spoken.
    first: Bytes,
    watch: Rc<Watch>,
    clock: Rc<Coarse>,
    guard: Guard,
    /// What furt says in hyper's stead, still to be written.
    own: Bytes,
    end: End,
    /// The sending side is closed.
    shut: bool,
}

impl ClientIo {
    /// `first` was read from `stream` already.
    pub fn new(stream: ClientStream, first: Bytes, watch: Rc<Watch>, clock: Rc<Coarse>, guard: Guard) -> Self {
        Self { inner: stream, first, watch, clock, guard, own: Bytes::new(), end: End::None, shut: false }
    }

    /// From here on the client speaks what it switched to; `read` are bytes of that which hyper has read already.
    pub fn switched(&mut self, read: Bytes) {
        self.guard = Guard::Open;
        self.end = match self.end {
            End::HalfClosed => End::None,
            // What the guard refused is gone, and what came after it makes no sense without it.
            End::Refused(_) => End::Broken,
            end => end,
        };
        self.first = if self.first.is_empty() { read } else { [read, std::mem::take(&mut self.first)].concat().into() };
    }

    fn is_http1(&self) -> bool {
        matches!(self.guard, Guard::Http1(..))
    }

    /// `bytes` came from the client. How many of them hyper may see.
    fn heard(&mut self, bytes: &[u8], context: &Context<'_>) -> usize {
        let now = self.clock.now();
        match (&self.guard, self.watch.phase()) {
            // The whole head has to arrive within its time: only its first byte starts the clock. The rest of a body whose
            // answer is over already is no head, and gets no second answer.
            (Guard::Http1(strict, _), Phase::Idle) if strict.is_between() => self.watch.enter(Phase::Head, now),
            // What is no request is no life either: pings alone keep no connection.
            (_, Phase::Head | Phase::Idle | Phase::Linger) => {}
            _ => self.watch.progress(now),
        }
        match &mut self.guard {
            Guard::Open => bytes.len(),
            Guard::Http1(strict, limits) => match strict.read(bytes, limits) {
                Ok(()) => bytes.len(),
                Err(refused) => {
                    self.end = if strict.is_in_body() { End::Broken } else { End::Refused(refused.fault) };
                    refused.at
                }
            },
            Guard::Http2(frames) => match frames.read(bytes, now) {
                Ok(()) => bytes.len(),
                Err(flood) => {
                    debug!(what = flood.0, "a client floods its connection, which is closed");
                    let goaway = frames.goaway(&flood).into();
                    self.last_words(goaway, context);
                    0
                }
            },
        }
    }

    /// An error once the look-over has judged the connection; says 408 where that still helps.
    fn judged(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.watch.verdict() {
            Verdict::Live | Verdict::Retire => return Ok(()),
            Verdict::TooSlow if self.is_http1() && self.end == End::None => {
                let words = respond::raw(&ProxyError::RequestTimeout);
                if !self.watch.is_busy() {
                    self.watch.said(Verdict::Live);
                    self.last_words(words, context);
                    return Ok(());
                }
                self.watch.said(Verdict::Close);
                self.own = words;
                // One try: the service is not to be kept waiting for a client this slow.
                let _ = self.poll_own(context);
            }
            _ => {}
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Furt's own last words: written when hyper flushes what it has to say, then nothing comes any more.
    fn last_words(&mut self, words: Bytes, context: &Context<'_>) {
        self.own = words;
        self.end = End::Words;
        self.watch.enter(Phase::Linger, self.clock.now());
        context.waker().wake_by_ref();
    }

    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.advance(written);
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    /// What there is to read once furt itself ends the connection: nothing, in the end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.end {
            // Hyper reads again only when it is woken.
            End::Refused(_) | End::HalfClosed if self.watch.is_busy() => {
                self.watch.wait_for_end(context);
                return Poll::Pending;
            }
            End::HalfClosed => return Poll::Ready(Ok(())),
            End::Refused(fault) => {
                self.last_words(respond::raw(&fault.into()), context);
                return Poll::Pending;
            }
            End::Words if !self.own.is_empty() => {
                self.watch.wait(context);
                return Poll::Pending;
            }
            End::None | End::Broken => {}
            End::Words | End::Linger => {
                self.end = End::Linger;
                ready!(self.poll_linger(context));
            }
        }
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    /// Closes the sending side and reads the rest away: closing under unread bytes would reset the connection, and the
    /// client would lose the answer that it has not read yet (RFC 9112 §9.6).
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.shut {
            if ready!(Pin::new(&mut self.inner).poll_shutdown(context)).is_err() {
                return Poll::Ready(());
            }
            self.shut = true;
            self.watch.enter(Phase::Linger, self.clock.now());
        }
        let mut waste = [0; 4096];
        // A little at a time: others have a turn, too.
        for _ in 0..16 {
            let mut buffer = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.inner).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    self.watch.wait(context);
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the client may still be sending something that nobody will read.
    fn is_undrained(&self) -> bool {
        match &self.guard {
            Guard::Http1(strict, _) => !strict.is_between() || !matches!(self.end, End::None | End::HalfClosed),
            Guard::Http2(_) => true,
            Guard::Open => false,
        }
    }

    /// Puts furt's envelope in the place of what hyper answers by itself to a head that does not
    /// parse. All that furt answers carries `x-gateway`.
    fn replaces(&mut self, head: &[u8]) -> bool {
        let error = head.starts_with(b"HTTP/1.1 4") && matches!(self.watch.phase(), Phase::Head | Phase::Idle) && self.is_http1();
        if !error || head.windows(9).any(|window| window == b"x-gateway") {
            return false;
        }
        let Some(status) = head.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok()) else { return false };
        self.own = respond::raw(&ProxyError::unparsed(status));
        true
    }

    fn wrote(&mut self, result: &Poll<io::Result<usize>>, context: &Context<'_>) {
        match result {
            Poll::Ready(Ok(length)) => {
                if self.watch.phase() != Phase::Idle {
                    self.watch.progress(self.clock.now());
                }
                if let Guard::Http2(frames) = &mut self.guard {
                    frames.wrote(*length);
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.watch.wait(context),
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.judged(context)?;
        if self.end != End::None {
            return self.poll_end(context);
        }
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.remaining());
            let first = self.first.split_to(length);
            if self.first.is_empty() {
                // Even empty it would keep what it was part of.
                self.first = Bytes::new();
            }
            let seen = self.heard(&first, context);
            buffer.put_slice(first.get(..seen).unwrap_or_default());
            return if seen == 0 { self.poll_end(context) } else { Poll::Ready(Ok(())) };
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.watch.wait(context);
                return Poll::Pending;
            }
        }
        let came = buffer.filled().get(before..).map_or(0, <[u8]>::len);
        if came == 0 {
            if matches!(self.guard, Guard::Open) {
                // The tunnel tells the service so, and goes on the other way.
                return Poll::Ready(Ok(()));
            }
            self.watch.half_closed();
            if self.watch.is_busy() && !self.is_undrained() {
                // To hyper it would be the end of all, the answer under way included.
                self.end = End::HalfClosed;
                return self.poll_end(context);
            }
            return Poll::Ready(Ok(()));
        }
        let seen = self.heard(buffer.filled().get(before..).unwrap_or_default(), context);
        buffer.set_filled(before + seen.min(came));
        if seen == 0 { self.poll_end(context) } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.judged(context)?;
        if matches!(self.end, End::Words | End::Linger) || self.replaces(data) {
            // Nothing of hyper's comes after furt's last words.
            return Poll::Ready(Ok(data.len()));
        }
        let result = Pin::new(&mut self.inner).poll_write(context, data);
        self.wrote(&result, context);
        result
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.judged(context)?;
        if matches!(self.end, End::Words | End::Linger) || data.first().is_some_and(|head| self.replaces(head)) {
            return Poll::Ready(Ok(data.iter().map(|part| part.len()).sum()));
        }
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, data);
        self.wrote(&result, context);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_own(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.verdict() == Verdict::Close {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_own(context))?;
        if self.is_undrained() {
            return self.poll_linger(context).map(Ok);
        }
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
