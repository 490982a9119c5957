//! What happens, for those who watch: kept in a bounded ring, told from a cursor on (DESIGN §4, §10).
//!
//! Here: the kinds, the ring, cursors, and the stream for one watcher. Not here: what is an event and in which words
//! (`telemetry`), who may watch (`identity`), the shape on the wire of SSE.
//!
//! A cursor is `EPOCH.SEQUENCE`; sequences count from 1 within an epoch, without holes. A watcher holds no events, only
//! the sequence it is told next: a slow one costs nothing, and reads GAP when what it had next is no longer kept.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use furt_proto::{
    names::quoted,
    time::{rfc3339_ms, unix_ms_now},
    v1,
};
use futures_util::{Stream, stream};
use tokio::sync::watch;

use crate::refusal::{Code, Fault, Refusal};

/// Events kept: at the usual length, some 5 MB when the ring is full.
pub const ROOM: usize = 10_000;
/// Events that one hold of the lock passes over while it looks for those of one service.
const SCAN: usize = 256;
/// Longest epoch in a cursor: this control plane's have 32 characters.
const MOST_EPOCH: usize = 64;

/// What kind of event; the names are those of `Event.kind` in the `.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A new instance, or a new start of one.
    Registered,
    /// A registration changed.
    Updated,
    /// An instance was taken out.
    Deregistered,
    /// A request to register, deregister or drain was refused.
    Refused,
    /// An instance's state changed.
    Transition,
    /// Something other than a probe speaks against an instance.
    Suspected,
    /// An instance takes no new requests.
    Drained,
    /// It takes them again.
    Undrained,
    /// A route lets callers through whom it kept out before.
    Loosened,
    /// furt.conf no longer allows a registration.
    Withdrawn,
    /// It does again.
    Readmitted,
    /// A parked instance was forgotten.
    Forgotten,
    /// furt.conf was read anew.
    Reloaded,
    /// It was not.
    ReloadRefused,
    /// A session holds an instance.
    SessionOpened,
    /// It ended without a farewell.
    SessionLost,
    /// Nothing can be stored.
    StoreFailed,
    /// It can again.
    StoreRecovered,
    /// The control plane began, with what its store held.
    Started,
    /// Events before this one are no longer kept.
    Gap,
}

impl Kind {
    /// Every kind, in the order of the `.proto`.
    pub const ALL: [Self; 20] = [
        Self::Registered,
        Self::Updated,
        Self::Deregistered,
        Self::Refused,
        Self::Transition,
        Self::Suspected,
        Self::Drained,
        Self::Undrained,
        Self::Loosened,
        Self::Withdrawn,
        Self::Readmitted,
        Self::Forgotten,
        Self::Reloaded,
        Self::ReloadRefused,
        Self::SessionOpened,
        Self::SessionLost,
        Self::StoreFailed,
        Self::StoreRecovered,
        Self::Started,
        Self::Gap,
    ];

    /// As clients read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registered => "REGISTERED",
            Self::Updated => "UPDATED",
            Self::Deregistered => "DEREGISTERED",
            Self::Refused => "REFUSED",
            Self::Transition => "TRANSITION",
            Self::Suspected => "SUSPECTED",
            Self::Drained => "DRAINED",
            Self::Undrained => "UNDRAINED",
            Self::Loosened => "LOOSENED",
            Self::Withdrawn => "WITHDRAWN",
            Self::Readmitted => "READMITTED",
            Self::Forgotten => "FORGOTTEN",
            Self::Reloaded => "RELOADED",
            Self::ReloadRefused => "RELOAD_REFUSED",
            Self::SessionOpened => "SESSION_OPENED",
            Self::SessionLost => "SESSION_LOST",
            Self::StoreFailed => "STORE_FAILED",
            Self::StoreRecovered => "STORE_RECOVERED",
            Self::Started => "STARTED",
            Self::Gap => "GAP",
        }
    }
}

/// The events of one life of the control plane; clones share them.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    epoch: String,
    ring: Mutex<Ring>,
    /// Tells watchers that there is something newer, or that it is over.
    newest: watch::Sender<Newest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Newest {
    sequence: u64,
    closed: bool,
}

struct Ring {
    kept: VecDeque<Kept>,
    room: usize,
    /// The sequence of the newest event; 0 before the first.
    newest: u64,
}

#[derive(Clone)]
struct Kept {
    unix_ms: i64,
    event: Arc<v1::Event>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("epoch", &self.shared.epoch).field("newest", &*self.shared.newest.borrow()).finish()
    }
}

impl Events {
    /// None yet. `room` is how many are kept, at least one.
    pub fn new(epoch: &str, room: usize) -> Self {
        let ring = Ring { kept: VecDeque::new(), room: room.max(1), newest: 0 };
        Self { shared: Arc::new(Shared { epoch: epoch.to_owned(), ring: Mutex::new(ring), newest: watch::Sender::default() }) }
    }

    /// Something happened now; `event` is without cursor and time. Never waits: the oldest event makes room.
    pub fn push(&self, event: v1::Event) {
        let event = Arc::new(event);
        let unix_ms = unix_ms_now();
        let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.kept.len() == ring.room {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Kept { unix_ms, event });
        ring.newest += 1;
        let sequence = ring.newest;
        // Under the lock, so that what watchers are told never goes back.
        self.shared.newest.send_modify(|newest| newest.sequence = sequence);
    }

    /// The cursor of the newest event: from it on, only what happens from now on is told.
    pub fn newest(&self) -> String {
        self.shared.cursor(self.shared.newest.borrow().sequence)
    }

    /// Ends every stream: for shutdown.
    pub fn close(&self) {
        self.shared.newest.send_modify(|newest| newest.closed = true);
    }

    /// The events after the one with the cursor `since`, and then what happens, until [`Events::close`].
    ///
    /// `since` empty: only what happens from now on; `"0"`: all that are kept; a cursor of another epoch, or of an
    /// event after which some are no longer kept: GAP, then all that are kept. `service`: only its events, and GAP;
    /// empty: all. Refused: a `since` that is no cursor, or one that this control plane has not given yet.
    pub fn watch(&self, since: &str, service: &str) -> Result<impl Stream<Item = v1::Event> + Send + use<>, Refusal> {
        let newest = self.shared.newest.subscribe();
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, gap) = match since {
            "" => (ring.newest + 1, false),
            "0" => (ring.oldest(), false),
            cursor => match read_cursor(cursor)? {
                (epoch, _) if epoch != self.shared.epoch => (ring.oldest(), true),
                (_, sequence) if sequence > ring.newest => return Err(not_given(cursor)),
                (_, sequence) => (sequence + 1, false),
            },
        };
        drop(ring);
        let watcher = Watcher { shared: self.shared.clone(), next, gap, service: service.to_owned(), newest };
        Ok(stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        }))
    }
}

impl Ring {
    /// The sequence of the oldest event kept; of the next to come when there is none.
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.kept.len() as u64
    }
}

struct Watcher {
    shared: Arc<Shared>,
    /// The sequence that is told next.
    next: u64,
    /// What it held before is of another epoch.
    gap: bool,
    /// Empty: all.
    service: String,
    newest: watch::Receiver<Newest>,
}

enum Step {
    Tell(v1::Event),
    /// Nothing for this watcher among those passed over; there are more.
    Passed,
    Wait,
}

impl Watcher {
    async fn next(&mut self) -> Option<v1::Event> {
        loop {
            // Before the ring is read, so that what is pushed in between wakes it again.
            if self.newest.borrow_and_update().closed {
                return None;
            }
            match self.step() {
                Step::Tell(event) => return Some(event),
                Step::Passed => {}
                Step::Wait => self.newest.changed().await.ok()?,
            }
        }
    }

    fn step(&mut self) -> Step {
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = ring.oldest();
        if self.gap || self.next < oldest {
            drop(ring);
            (self.gap, self.next) = (false, oldest);
            return Step::Tell(self.shared.gap_before(oldest));
        }
        let from = usize::try_from(self.next - oldest).unwrap_or(usize::MAX);
        if from >= ring.kept.len() {
            return Step::Wait;
        }
        let mut passed = 0;
        let found = ring.kept.range(from..).take(SCAN).inspect(|_| passed += 1).find(|kept| self.wants(kept)).cloned();
        drop(ring);
        self.next += passed;
        match found {
            Some(kept) => Step::Tell(self.shared.told(self.next - 1, &kept)),
            None => Step::Passed,
        }
    }

    fn wants(&self, kept: &Kept) -> bool {
        self.service.is_empty() || self.service == kept.event.service
    }
}

impl Shared {
    fn cursor(&self, sequence: u64) -> String {
        format!("{}.{sequence}", self.epoch)
    }

    fn told(&self, sequence: u64, kept: &Kept) -> v1::Event {
        v1::Event { cursor: self.cursor(sequence), time: rfc3339_ms(kept.unix_ms), ..v1::Event::clone(&kept.event) }
    }

    /// Its cursor is that of the event before the oldest kept: whoever goes on from there is told all that are kept.
    fn gap_before(&self, oldest: u64) -> v1::Event {
        v1::Event {
            cursor: self.cursor(oldest.saturating_sub(1)),
            time: rfc3339_ms(unix_ms_now()),
            kind: Kind::Gap.name().into(),
            message: "events before this one are no longer kept".into(),
            ..Default::default()
        }
    }
}

fn read_cursor(text: &str) -> Result<(&str, u64), Refusal> {
    let parts = text.split_once('.').filter(|(epoch, sequence)| {
        let of_epoch = |byte: u8| byte.is_ascii_alphanumeric();
        (1..=MOST_EPOCH).contains(&epoch.len()) && epoch.bytes().all(of_epoch) && sequence.bytes().all(|byte| byte.is_ascii_digit())
    });
    let cursor = parts.and_then(|(epoch, sequence)| Some((epoch, sequence.parse().ok()?)));
    cursor.ok_or_else(|| {
        let expected = "expected the cursor of an event, 0 for all that are kept, or nothing for what happens from now on";
        Fault::new("since", Code::Validation, format!("{expected}; got {}", quoted(text))).into()
    })
}

fn not_given(cursor: &str) -> Refusal {
    Fault::new("since", Code::Validation, format!("no event has had the cursor {} yet", quoted(cursor))).into()
}

#[cfg(test)]
mod tests;
