//! The data plane's clocks: one that all workers share, and a coarse one per worker.

use std::{cell::Cell, time::Duration};

use furt_proto::time::unix_ms_now;
use tokio::time::Instant;

/// Nanoseconds since the data plane began; the same for all workers, never going back.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
}

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self { began: Instant::now() }
    }

    /// Nanoseconds since it began. Starts at one second, so that 0 stays free for "never".
    pub fn now(&self) -> u64 {
        1_000_000_000 + nanos(self.began.elapsed())
    }
}

/// A worker's time, read from the machine a few times a second; good for limits of seconds.
#[derive(Debug)]
pub struct Coarse {
    clock: Clock,
    now: Cell<u64>,
    /// Wall time less monotonic time, in milliseconds.
    wall_less_mono_ms: Cell<i64>,
}

impl Coarse {
    /// Up to date.
    pub fn new(clock: Clock) -> Self {
        let coarse = Self { clock, now: Cell::new(0), wall_less_mono_ms: Cell::new(0) };
        coarse.tick();
        coarse
    }

    /// Reads the machine's clocks.
    pub fn tick(&self) {
        let now = self.clock.now();
        self.now.set(now);
        self.wall_less_mono_ms.set(unix_ms_now() - ms(now));
    }

    /// The monotonic time of the last tick or exact reading.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// The monotonic time now; keeps it as the coarse time too.
    pub fn exact(&self) -> u64 {
        let now = self.clock.now();
        self.now.set(now);
        now
    }

    /// Milliseconds since 1970 for a monotonic time near now.
    pub fn unix_ms(&self, now: u64) -> i64 {
        ms(now) + self.wall_less_mono_ms.get()
    }
}

/// A duration as the clock counts. One that no clock will see ends in some hundred years, so that a time may be added.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

fn ms(nanos: u64) -> i64 {
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX / 2)
}
