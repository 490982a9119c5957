//! How long an instance was UP and DOWN over the last hour, day and thirty days.
//!
//! Here: coarse buckets in rings, 528 bytes an instance, and their form in the store. Not here: clocks; UNKNOWN, and
//! the time in which furt did not run, count for neither side.

use std::time::Duration;

use furt_proto::store::v1::{StoredBucket, StoredUptime};
use tokio::time::Instant;

use crate::health::State;

/// The windows, as `furt_service_uptime_ratio` names them.
pub const WINDOWS: [&str; 3] = ["1h", "24h", "30d"];

/// Seconds UP and DOWN of one instance, by window.
///
/// Buckets are numbered by the calendar, so that they outlive a process; within one the monotonic clock runs on from
/// the wall time at which this began, and a clock that is set does not move them.
#[derive(Debug, Clone)]
pub struct Uptime {
    began: Instant,
    began_unix_ms: u64,
    credited: Instant,
    hour: Ring<12, 300>,
    day: Ring<24, 3_600>,
    month: Ring<30, 86_400>,
}

/// `N` buckets of `SECONDS` each; a bucket holds (up, down) in milliseconds.
#[derive(Debug, Clone)]
struct Ring<const N: usize, const SECONDS: u64> {
    buckets: [(u32, u32); N],
    /// The running number of the newest bucket.
    newest: u64,
}

impl<const N: usize, const SECONDS: u64> Ring<N, SECONDS> {
    const WIDTH: u64 = SECONDS * 1000;

    fn new() -> Self {
        Self { buckets: [(0, 0); N], newest: 0 }
    }

    /// Credits `from..to`, milliseconds since 1970, to UP, DOWN or neither.
    fn credit(&mut self, from: u64, to: u64, up: Option<bool>) {
        let last = to / Self::WIDTH;
        // What is credited late, after a restart, may lie before the newest bucket.
        let newest = self.newest.max(last);
        let newest_kept = newest.saturating_sub(N as u64 - 1);
        for number in (self.newest + 1).max(newest_kept)..=newest {
            if let Some(bucket) = self.bucket(number) {
                *bucket = (0, 0);
            }
        }
        self.newest = newest;
        for number in (from / Self::WIDTH).max(newest_kept)..=last {
            let (start, end) = ((number * Self::WIDTH).max(from), ((number + 1) * Self::WIDTH).min(to));
            // A bucket is a day at most, which fits.
            let share = u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX);
            match (up, self.bucket(number)) {
                (Some(true), Some(bucket)) => bucket.0 = bucket.0.saturating_add(share),
                (Some(false), Some(bucket)) => bucket.1 = bucket.1.saturating_add(share),
                _ => {}
            }
        }
    }

    fn bucket(&mut self, number: u64) -> Option<&mut (u32, u32)> {
        self.buckets.get_mut((number % N as u64) as usize)
    }

    fn sums(&self) -> Window {
        let sum = |pick: fn(&(u32, u32)) -> u32| self.buckets.iter().map(|bucket| u64::from(pick(bucket))).sum::<u64>();
        Window { up_ms: sum(|bucket| bucket.0), down_ms: sum(|bucket| bucket.1) }
    }

    /// The buckets in which something was counted, oldest first.
    fn stored(&self) -> Vec<StoredBucket> {
        let oldest = (self.newest + 1).saturating_sub(N as u64);
        let numbers = (oldest..=self.newest).filter_map(|number| Some((number, self.buckets.get((number % N as u64) as usize)?)));
        let counted = numbers.filter(|(_, bucket)| **bucket != (0, 0));
        counted.map(|(number, (up_ms, down_ms))| StoredBucket { number, up_ms: *up_ms, down_ms: *down_ms }).collect()
    }

    /// What was stored, as far as the window still reaches it at `now`, milliseconds since 1970.
    fn restored(stored: &[StoredBucket], now: u64) -> Self {
        let mut ring = Self { newest: now / Self::WIDTH, ..Self::new() };
        let kept = (ring.newest + 1).saturating_sub(N as u64)..=ring.newest;
        for found in stored.iter().filter(|found| kept.contains(&found.number)) {
            let most = u32::try_from(Self::WIDTH).unwrap_or(u32::MAX);
            if let Some(bucket) = ring.bucket(found.number) {
                *bucket = (found.up_ms.min(most), found.down_ms.min(most));
            }
        }
        ring
    }
}

/// What was counted within one of [`WINDOWS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Milliseconds UP.
    pub up_ms: u64,
    /// Milliseconds DOWN.
    pub down_ms: u64,
}

impl Window {
    /// The share of UP; `None` while it was neither.
    pub fn ratio(self) -> Option<f64> {
        let all = self.up_ms + self.down_ms;
        (all > 0).then(|| self.up_ms as f64 / all as f64)
    }
}

impl Uptime {
    /// Nothing counted yet. `unix_ms`: the wall time now, milliseconds since 1970.
    pub fn new(now: Instant, unix_ms: i64) -> Self {
        let began_unix_ms = u64::try_from(unix_ms).unwrap_or(0);
        Self { began: now, began_unix_ms, credited: now, hour: Ring::new(), day: Ring::new(), month: Ring::new() }
    }

    /// What was stored. furt ran until `alive_unix_ms` at least, so that long the state that was stored went on.
    pub fn restored(stored: &StoredUptime, alive_unix_ms: i64, now: Instant, unix_ms: i64) -> Self {
        let since_1970 = |ms: i64| u64::try_from(ms).unwrap_or(0);
        let (until, now_ms) = (since_1970(stored.until_unix_ms), since_1970(unix_ms));
        // A clock that was wrong when it was stored must not count a future.
        let alive = since_1970(alive_unix_ms).min(now_ms);
        let mut uptime = Self {
            hour: Ring::restored(&stored.hour, now_ms),
            day: Ring::restored(&stored.day, now_ms),
            month: Ring::restored(&stored.month, now_ms),
            ..Self::new(now, unix_ms)
        };
        let up = match stored.state.as_str() {
            "UP" => Some(true),
            "DOWN" => Some(false),
            _ => None,
        };
        if alive > until {
            uptime.credit(until, alive, up);
        }
        uptime
    }

    /// As it is stored, counted up to `now`; `state` goes on from then.
    pub fn stored(&self, now: Instant, state: State) -> StoredUptime {
        let mut counted = self.clone();
        counted.advance(now, state);
        StoredUptime {
            until_unix_ms: i64::try_from(counted.unix_ms(now)).unwrap_or(i64::MAX),
            state: state.name().into(),
            hour: counted.hour.stored(),
            day: counted.day.stored(),
            month: counted.month.stored(),
        }
    }

    fn unix_ms(&self, at: Instant) -> u64 {
        let since = u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        self.began_unix_ms.saturating_add(since)
    }

    fn credit(&mut self, from: u64, to: u64, up: Option<bool>) {
        self.hour.credit(from, to, up);
        self.day.credit(from, to, up);
        self.month.credit(from, to, up);
    }

    /// Credits the time since the last call to `state`: to be called before each change of it, and before reading.
    pub fn advance(&mut self, now: Instant, state: State) {
        let up = match state {
            State::Unknown { .. } => None,
            State::Up { .. } => Some(true),
            State::Down { .. } | State::Parked { .. } => Some(false),
        };
        let (from, to) = (self.unix_ms(self.credited), self.unix_ms(now));
        if to > from {
            self.credit(from, to, up);
            self.credited = self.began + Duration::from_millis(to - self.began_unix_ms);
        }
    }

    /// What was counted within each of [`WINDOWS`].
    pub fn windows(&self) -> [Window; 3] {
        [self.hour.sums(), self.day.sums(), self.month.sums()]
    }

    /// The share of UP over each of [`WINDOWS`]; `None` while it was neither UP nor DOWN.
    pub fn ratios(&self) -> [Option<f64>; 3] {
        self.windows().map(Window::ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: State = State::Up { misses: 0 };
    const DOWN: State = State::Down { misses: 3 };

    #[test]
    fn up_and_down_share_and_unknown_counts_for_neither() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut uptime = Uptime::new(start, 1_763_152_200_000);
        uptime.advance(at(600), State::Unknown { misses: 0 });
        assert_eq!(uptime.ratios(), [None; 3]);
        uptime.advance(at(900), UP);
        assert_eq!(uptime.ratios(), [Some(1.0); 3]);
        uptime.advance(at(1000), DOWN);
        assert_eq!(uptime.ratios(), [Some(0.75); 3]);
        uptime.advance(at(1000), UP);
        assert_eq!(uptime.ratios(), [Some(0.75); 3]);
    }

    #[test]
    fn windows_forget_what_is_older() {
        let start = Instant::now();
        let hours = |hours: u64| start + Duration::from_secs(hours * 3600);
        let mut uptime = Uptime::new(start, 1_763_152_200_000);
        uptime.advance(hours(12), DOWN);
        uptime.advance(hours(14), UP);
        let [hour, day, month] = uptime.ratios();
        assert_eq!(hour, Some(1.0));
        assert_eq!(day, Some(2.0 / 14.0));
        assert_eq!(month, Some(2.0 / 14.0));
        uptime.advance(hours(24 * 40), UP);
        assert_eq!(uptime.ratios(), [Some(1.0); 3]);
    }

    #[test]
    fn what_is_stored_comes_back_and_the_time_in_between_counts_for_neither() {
        const WALL: i64 = 1_763_152_200_000;
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut uptime = Uptime::new(start, WALL);
        uptime.advance(after(300), UP);
        uptime.advance(after(400), DOWN);
        let stored = uptime.stored(after(500), UP);
        // furt was seen alive 20 s after that, came back 1,000 s later, and the instance was UNKNOWN at first.
        let back = WALL + 1_520_000;
        let mut restored = Uptime::restored(&stored, WALL + 520_000, start, back);
        restored.advance(after(30), State::Unknown { misses: 0 });
        let expected = Window { up_ms: 420_000, down_ms: 100_000 };
        assert_eq!(restored.windows(), [expected; 3]);
        assert_eq!(Uptime::restored(&stored, WALL + 400_000, start, back).windows()[0].up_ms, 400_000, "no heartbeat since");
        let future = Uptime::restored(&stored, i64::MAX, start, back).windows()[1];
        assert_eq!(future, Window { up_ms: 1_420_000, down_ms: 100_000 }, "no more than until now");
        let two_hours = Uptime::restored(&stored, WALL + 520_000, start, WALL + 7_200_000).windows();
        assert_eq!((two_hours[0], two_hours[1]), (Window::default(), expected));
        assert_eq!(Uptime::restored(&StoredUptime::default(), 0, start, back).windows(), [Window::default(); 3]);
    }

    #[test]
    fn small_steps_and_one_large_step_count_the_same() {
        let start = Instant::now();
        let (mut small, mut large) = (Uptime::new(start, 1_763_152_200_000), Uptime::new(start, 1_763_152_200_000));
        for step in 1..=1000u64 {
            small.advance(start + Duration::from_secs(step * 37), if step <= 500 { DOWN } else { UP });
        }
        large.advance(start + Duration::from_secs(500 * 37), DOWN);
        large.advance(start + Duration::from_secs(1000 * 37), UP);
        assert_eq!(small.ratios(), large.ratios());
    }
}
