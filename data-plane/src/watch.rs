//! The limits on a client's time.
//!
//! Timers per request are dear, so each worker looks over its watches a few times a second, and what is over time
//! learns it at its next poll. A connection has one watch; over HTTP/2 each request has one of its own besides, so
//! that one that stalls does not end the others.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// Where a connection or an exchange stands.
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
    /// An answer without an end of its own, such as an event stream: it may be silent, but has to be read.
    Stream,
    /// All is said; what the client still sends is read away, so that it gets to read the last answer.
    Linger,
}

/// What has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Live,
    /// Over HTTP/2: take no new requests and end with the last that is under way.
    Retire,
    /// Close without a word.
    Close,
    /// Say 408 and close.
    TooSlow,
}

/// Limits on a connection's time while it has no request, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a head to arrive.
    pub head: u64,
    /// Between two requests.
    pub idle: u64,
}

/// Nanoseconds that a client has to take note of the end.
pub const LINGER: u64 = 5_000_000_000;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// A connection over HTTP/1: one exchange after the other.
    Connection,
    /// A connection over HTTP/2, whose exchanges have watches of their own.
    Shared,
    /// One exchange of such a connection. A body that comes too slowly is answered, as the connection goes on.
    Exchange,
}

/// What a worker's look-over knows of one connection, or of one exchange of several.
#[derive(Debug)]
pub struct Watch {
    phase: Cell<Phase>,
    since: Cell<u64>,
    /// Nanoseconds between two pieces of a body, as the last request has it.
    body: Cell<u64>,
    /// When the exchange has to be over; 0: never.
    until: Cell<u64>,
    /// Exchanges under way; above one only for a connection over HTTP/2.
    exchanges: Cell<u32>,
    of: Of,
    /// The end of the exchange under way is waited for.
    awaited: Cell<bool>,
    /// The client says nothing any more.
    half_closed: Cell<bool>,
    /// The last piece of the answer has not been taken by the client yet.
    owed: Cell<bool>,
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
            until: Cell::new(0),
            exchanges: Cell::new(0),
            of: Of::Connection,
            awaited: Cell::new(false),
            half_closed: Cell::new(false),
            owed: Cell::new(false),
            verdict: Cell::new(Verdict::Live),
            waker: RefCell::new(None),
        }
    }

    /// A connection over HTTP/2, idle.
    pub fn shared(now: u64) -> Self {
        Self { of: Of::Shared, phase: Cell::new(Phase::Idle), ..Self::new(now) }
    }

    /// One exchange of a connection over HTTP/2.
    pub fn exchange(now: u64) -> Self {
        Self { of: Of::Exchange, phase: Cell::new(Phase::Waiting), ..Self::new(now) }
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase, now: u64) {
        self.phase.set(phase);
        self.since.set(now);
    }

    /// A request has arrived and is about to be served.
    pub fn arrived(&self) {
        self.exchanges.set(self.exchanges.get() + 1);
        if self.of == Of::Shared {
            self.phase.set(Phase::Waiting);
        }
    }

    /// The request is being served. `body`: the most nanoseconds between two pieces of its body or of its answer's.
    pub fn begin(&self, phase: Phase, now: u64, body: u64) {
        self.body.set(body);
        self.until.set(0);
        self.owed.set(false);
        self.enter(phase, now);
    }

    /// When the answer has to be over.
    pub fn end_by(&self, until: Option<u64>) {
        self.until.set(until.unwrap_or(0));
    }

    /// An answer has ended.
    pub fn end(&self, now: u64) {
        let left = self.exchanges.get().saturating_sub(1);
        self.exchanges.set(left);
        self.enter(if left == 0 && self.of != Of::Exchange { Phase::Idle } else { Phase::Waiting }, now);
        if self.awaited.replace(false) {
            self.wake();
        }
    }

    /// Whether a request is under way.
    pub fn is_busy(&self) -> bool {
        self.exchanges.get() > 0
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// What it was judged to.
    pub fn verdict(&self) -> Verdict {
        self.verdict.get()
    }

    /// What 408 has been said about; what is left of the verdict.
    pub fn said(&self, left: Verdict) {
        self.verdict.set(left);
    }

    /// Bytes moved at `now`.
    pub fn progress(&self, now: u64) {
        self.since.set(now);
    }

    /// The client has closed its side. It may still read, and an answer that ends goes to it whole; that it is gone shows
    /// when the answer is written. A stream without end would find out late, or never.
    pub fn half_closed(&self) {
        self.half_closed.set(true);
    }

    /// A piece of the answer was handed over at `now` and waits to be taken, or (`None`) the last one was taken.
    pub fn owes(&self, since: Option<u64>) {
        self.owed.set(since.is_some());
        if let Some(since) = since {
            self.since.set(since);
        }
    }

    /// Judges at `now` and wakes what is over time.
    pub fn look(&self, now: u64, limits: &Limits) {
        let silent = now.saturating_sub(self.since.get());
        let until = self.until.get();
        let late = until != 0 && now > until;
        let (over, verdict) = match self.phase.get() {
            Phase::Linger => (silent > LINGER, Verdict::Close),
            Phase::Idle if self.verdict.get() == Verdict::Retire => (silent > limits.head, Verdict::Close),
            Phase::Idle if self.of == Of::Shared => (silent > limits.idle, Verdict::Retire),
            // Its exchanges have watches of their own.
            _ if self.of == Of::Shared => return,
            Phase::Idle => (silent > limits.idle, Verdict::Close),
            Phase::Head => (silent > limits.head, Verdict::TooSlow),
            Phase::Upload if self.of == Of::Exchange => return,
            Phase::Upload => (silent > self.body.get(), Verdict::TooSlow),
            Phase::Answer => (late || silent > self.body.get(), Verdict::Close),
            Phase::Stream => (late || self.half_closed.get() || self.owed.get() && silent > self.body.get(), Verdict::Close),
            Phase::Waiting => return,
        };
        if over {
            self.stop(verdict, now);
        }
    }

    /// Ends the connection if it is between requests; over HTTP/2 it ends with its last request.
    pub fn retire(&self, now: u64) {
        if self.of == Of::Shared {
            if self.verdict.get() == Verdict::Live {
                self.stop(Verdict::Retire, now);
            }
        } else if self.phase.get() == Phase::Idle {
            self.stop(Verdict::Close, now);
        }
    }

    fn stop(&self, verdict: Verdict, now: u64) {
        if verdict == Verdict::Retire {
            self.since.set(now);
        }
        self.verdict.set(verdict);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The task to wake when the exchange under way has ended, too.
    pub fn wait_for_end(&self, context: &Context<'_>) {
        self.awaited.set(true);
        self.wait(context);
    }

    /// The task to wake when it is judged.
    pub fn wait(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    /// Waits until it is judged over time.
    pub async fn stopped(&self) {
        poll_fn(|context| match self.verdict.get() {
            Verdict::Live => {
                self.wait(context);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 10, idle: 75 };

    fn verdict(watch: &Watch, now: u64) -> Verdict {
        watch.look(now, &LIMITS);
        watch.verdict()
    }

    #[test]
    fn each_phase_has_its_own_limit_and_waiting_has_none() {
        for (phase, limit, expected) in [
            (Phase::Idle, 75, Verdict::Close),
            (Phase::Head, 10, Verdict::TooSlow),
            (Phase::Upload, 30, Verdict::TooSlow),
            (Phase::Answer, 30, Verdict::Close),
            (Phase::Linger, LINGER, Verdict::Close),
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
    fn a_stream_may_be_silent_but_has_to_be_read() {
        let watch = Watch::new(0);
        watch.begin(Phase::Stream, 1, 30);
        watch.owes(Some(5));
        assert_eq!(verdict(&watch, 35), Verdict::Live);
        watch.owes(None);
        assert_eq!(verdict(&watch, 1_000), Verdict::Live);
        watch.owes(Some(1_000));
        assert_eq!((verdict(&watch, 1_030), verdict(&watch, 1_031)), (Verdict::Live, Verdict::Close));
    }

    #[test]
    fn an_answer_has_to_end_by_its_deadline() {
        let watch = Watch::new(0);
        watch.begin(Phase::Stream, 1, 30);
        watch.end_by(Some(100));
        assert_eq!((verdict(&watch, 100), verdict(&watch, 101)), (Verdict::Live, Verdict::Close));
    }

    #[test]
    fn an_exchange_over_http2_is_never_idle_and_its_body_is_answered_elsewhere() {
        let watch = Watch::exchange(0);
        watch.begin(Phase::Upload, 1, 30);
        assert_eq!(verdict(&watch, 1_000), Verdict::Live);
        watch.end(1_000);
        watch.retire(1_000);
        assert_eq!(verdict(&watch, 9_000), Verdict::Live);
    }

    #[test]
    fn a_connection_over_http2_retires_when_it_is_idle_and_ends_when_that_is_not_heard() {
        let watch = Watch::shared(0);
        watch.arrived();
        watch.arrived();
        assert_eq!(verdict(&watch, 1_000), Verdict::Live, "its exchanges are judged one by one");
        watch.end(1_000);
        assert_eq!(verdict(&watch, 2_000), Verdict::Live);
        watch.end(2_000);
        assert_eq!((verdict(&watch, 2_075), verdict(&watch, 2_076)), (Verdict::Live, Verdict::Retire));
        assert_eq!((verdict(&watch, 2_086), verdict(&watch, 2_087)), (Verdict::Retire, Verdict::Close));
    }
}
