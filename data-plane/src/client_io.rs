//! A client's connection as hyper sees it, and the watch that ends it when it takes too long.
//!
//! Timers per request are dear, so each worker looks over its connections a few times a second
//! (`Watch`), and a connection that is over time learns it at its next poll. Two things hyper would
//! do on its own are mended here: what it answers to a head it cannot parse gets furt's envelope,
//! and a head that came too slowly gets a 408.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{clock::Coarse, respond};

/// Where a client connection stands, for the limits on its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between requests.
    Idle,
    /// A head has begun to arrive.
    Head,
    /// A request's body is arriving and no answer has begun.
    Upload,
    /// Waiting for the service; the request's own deadline holds.
    Waiting,
    /// An answer is on its way to the client.
    Answer,
    /// An answer without an end of its own, such as an event stream.
    Stream,
}

/// What has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Live,
    /// Close without a word.
    Close,
    /// Say 408 and close.
    TooSlow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing of it yet; empty lines may come before it (RFC 9112 §2.2).
    Ahead,
    Open,
    Fragment,
    Read,
}

/// Limits on a connection's time while it has no request, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a head to arrive.
    pub head: u64,
    /// Between two requests.
    pub idle: u64,
}

/// What the worker's look-over knows of one connection.
#[derive(Debug)]
pub struct Watch {
    phase: Cell<Phase>,
    since: Cell<u64>,
    /// Nanoseconds between two pieces of a body, as the last request has it.
    body: Cell<u64>,
    /// Requests under way; above one only with HTTP/2.
    exchanges: Cell<u32>,
    /// How far the request line was read: hyper drops a `#` in it in silence.
    line: Cell<Line>,
    verdict: Cell<Verdict>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// A connection that was just accepted: its first head has begun, so to say.
    pub fn new(now: u64) -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(now),
            body: Cell::new(0),
            exchanges: Cell::new(0),
            line: Cell::new(Line::Ahead),
            verdict: Cell::new(Verdict::Live),
            waker: RefCell::new(None),
        }
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase, now: u64) {
        self.phase.set(phase);
        self.since.set(now);
    }

    /// A request has arrived. `body`: the most nanoseconds between two pieces of its body or of its answer's.
    pub fn begin(&self, phase: Phase, now: u64, body: u64) {
        self.body.set(body);
        self.exchanges.set(self.exchanges.get() + 1);
        self.enter(phase, now);
    }

    /// An answer has ended. What others of the same connection are at is their own deadlines' to judge.
    pub fn end(&self, now: u64) {
        let left = self.exchanges.get().saturating_sub(1);
        self.exchanges.set(left);
        self.enter(if left == 0 { Phase::Idle } else { Phase::Waiting }, now);
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether the target of the request had a `#`, which hyper does not tell.
    pub fn saw_fragment(&self) -> bool {
        self.line.get() == Line::Fragment
    }

    /// Looks for a `#` in the request line, of which `bytes` are the next.
    fn read_line(&self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.line.get() == Line::Ahead {
            let Some(begin) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else { return };
            bytes = bytes.get(begin..).unwrap_or_default();
            self.line.set(Line::Open);
        }
        if self.line.get() == Line::Open {
            match bytes.iter().find(|byte| **byte == b'#' || **byte == b'\n') {
                Some(b'#') => self.line.set(Line::Fragment),
                Some(_) => self.line.set(Line::Read),
                None => {}
            }
        }
    }

    /// Bytes moved at `now`.
    pub fn progress(&self, now: u64) {
        self.since.set(now);
    }

    /// Judges the connection at `now` and wakes it when its time is over.
    pub fn look(&self, now: u64, limits: &Limits) {
        // With several requests under way the phase is that of the last one to enter one: a stalled answer must
        // not end the event stream beside it, nor the request that waits for its service.
        if self.exchanges.get() > 1 {
            return;
        }
        let (limit, verdict) = match self.phase.get() {
            Phase::Idle => (limits.idle, Verdict::Close),
            Phase::Head => (limits.head, Verdict::TooSlow),
            Phase::Upload => (self.body.get(), Verdict::TooSlow),
            Phase::Answer => (self.body.get(), Verdict::Close),
            Phase::Waiting | Phase::Stream => return,
        };
        if now.saturating_sub(self.since.get()) > limit {
            self.stop(verdict);
        }
    }

    /// Closes the connection if it is between requests.
    pub fn close_if_idle(&self) {
        if self.phase.get() == Phase::Idle {
            self.stop(Verdict::Close);
        }
    }

    fn stop(&self, verdict: Verdict) {
        self.verdict.set(verdict);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn wait(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

/// The socket of a client, watched.
pub struct ClientIo {
    inner: TcpStream,
    /// Bytes read already, to find out which protocol is spoken.
    first: Bytes,
    watch: Rc<Watch>,
    clock: Rc<Coarse>,
    /// What furt says in hyper's stead, still to be written.
    own: Bytes,
    /// HTTP/2 has frames of its own for what went wrong.
    http1: bool,
}

impl ClientIo {
    /// `first` was read from `stream` already.
    pub fn new(stream: TcpStream, first: Bytes, watch: Rc<Watch>, clock: Rc<Coarse>, http1: bool) -> Self {
        Self { inner: stream, first, watch, clock, own: Bytes::new(), http1 }
    }

    /// `bytes` came from the client.
    fn heard(&self, bytes: &[u8]) {
        let now = self.clock.now();
        if self.http1 && self.watch.phase() == Phase::Idle {
            self.watch.line.set(Line::Ahead);
        }
        self.watch.read_line(bytes);
        match self.watch.phase() {
            // The whole head has to arrive within its time: only its first byte starts the clock.
            Phase::Idle if self.http1 => self.watch.enter(Phase::Head, now),
            Phase::Head => {}
            _ => self.watch.progress(now),
        }
    }

    /// An error once the look-over has judged the connection; says 408 where that still helps.
    fn judged(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.watch.verdict.get() {
            Verdict::Live => return Ok(()),
            Verdict::TooSlow if self.http1 => {
                self.watch.verdict.set(Verdict::Close);
                self.own = respond::raw(StatusCode::REQUEST_TIMEOUT);
                // One try: a client this slow is not waited for.
                let _ = self.poll_own(context);
            }
            _ => {}
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Puts furt's envelope in the place of what hyper answers by itself to a head that does not
    /// parse. All that furt answers carries `x-gateway`.
    fn replaces(&mut self, head: &[u8]) -> bool {
        let error = head.starts_with(b"HTTP/1.1 4") && matches!(self.watch.phase(), Phase::Head | Phase::Idle) && self.http1;
        if !error || head.windows(9).any(|window| window == b"x-gateway") {
            return false;
        }
        let Some(status) = head.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok()) else { return false };
        self.own = respond::raw(status);
        true
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>, context: &Context<'_>) {
        match result {
            Poll::Ready(_) => self.moved_out(),
            Poll::Pending => self.watch.wait(context),
        }
    }

    fn moved_out(&self) {
        if self.watch.phase() != Phase::Idle {
            self.watch.progress(self.clock.now());
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.judged(context)?;
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.remaining());
            let first = self.first.split_to(length);
            buffer.put_slice(&first);
            self.heard(&first);
            if self.first.is_empty() {
                // Even empty it would keep what it was part of.
                self.first = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if result.is_pending() {
            self.watch.wait(context);
        } else if let Some(bytes) = buffer.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            self.heard(bytes);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.judged(context)?;
        if self.replaces(data) {
            return Poll::Ready(Ok(data.len()));
        }
        let result = Pin::new(&mut self.inner).poll_write(context, data);
        self.wrote(&result, context);
        result
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.judged(context)?;
        if data.first().is_some_and(|head| self.replaces(head)) {
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
        // A TcpStream has nothing of its own to flush.
        self.poll_own(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 10, idle: 75 };

    fn verdict(watch: &Watch, now: u64) -> Verdict {
        watch.look(now, &LIMITS);
        watch.verdict.get()
    }

    #[test]
    fn each_phase_has_its_own_limit_and_waiting_has_none() {
        for (phase, limit, expected) in [
            (Phase::Idle, 75, Verdict::Close),
            (Phase::Head, 10, Verdict::TooSlow),
            (Phase::Upload, 30, Verdict::TooSlow),
            (Phase::Answer, 30, Verdict::Close),
        ] {
            let watch = Watch::new(0);
            watch.begin(phase, 1, 30);
            assert_eq!(verdict(&watch, 1 + limit), Verdict::Live, "{phase:?}");
            assert_eq!(verdict(&watch, 2 + limit), expected, "{phase:?}");
        }
        for phase in [Phase::Waiting, Phase::Stream] {
            let watch = Watch::new(0);
            watch.enter(phase, 1);
            assert_eq!(verdict(&watch, 1_000_000), Verdict::Live, "{phase:?}");
        }
    }

    #[test]
    fn one_of_several_exchanges_does_not_end_the_others() {
        let watch = Watch::new(0);
        watch.begin(Phase::Waiting, 1, 30);
        watch.enter(Phase::Stream, 2);
        watch.begin(Phase::Waiting, 3, 30);
        watch.enter(Phase::Answer, 4);
        assert_eq!(verdict(&watch, 1_000), Verdict::Live, "the other is an event stream");
        watch.end(1_000);
        assert_eq!(verdict(&watch, 2_000), Verdict::Live, "it still is");
        watch.end(2_000);
        assert_eq!((verdict(&watch, 2_075), verdict(&watch, 2_076)), (Verdict::Live, Verdict::Close));
    }

    #[test]
    fn a_fragment_is_seen_in_the_request_line_alone() {
        let check = |pieces: &[&str], expected: bool| {
            let watch = Watch::new(0);
            pieces.iter().for_each(|piece| watch.read_line(piece.as_bytes()));
            assert_eq!(watch.saw_fragment(), expected, "{pieces:?}");
        };
        check(&["GET /a#b HTTP/1.1\r\n"], true);
        check(&["GET /a", "#b HTTP/1.1\r\n"], true);
        check(&["\r\n", "\n\r\nGET /a#b HTTP/1.1\r\n"], true);
        check(&["GET /a HTTP/1.1\r\nX: #\r\n"], false);
        check(&["GET /a HTTP/1.1\r", "\nX: #\r\n"], false);
    }
}
