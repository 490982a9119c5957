//! How long an instance was UP and DOWN over the last hour, day and thirty days.
//!
//! Here: coarse buckets in rings, 528 bytes an instance. Not here: clocks; UNKNOWN counts for neither side.

use std::time::Duration;

use tokio::time::Instant;

use crate::health::State;

/// The windows, as `furt_service_uptime_ratio` names them.
pub const WINDOWS: [&str; 3] = ["1h", "24h", "30d"];

/// Seconds UP and DOWN of one instance, by window.
#[derive(Debug, Clone)]
pub struct Uptime {
    began: Instant,
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

    /// Credits `from..to`, milliseconds since the beginning, to UP, DOWN or neither.
    fn credit(&mut self, from: u64, to: u64, up: Option<bool>) {
        let last = to / Self::WIDTH;
        let newest_kept = last.saturating_sub(N as u64 - 1);
        for number in (self.newest + 1).max(newest_kept)..=last {
            if let Some(bucket) = self.bucket(number) {
                *bucket = (0, 0);
            }
        }
        self.newest = last;
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

    fn ratio(&self) -> Option<f64> {
        let sum = |pick: fn(&(u32, u32)) -> u32| self.buckets.iter().map(|bucket| u64::from(pick(bucket))).sum::<u64>();
        let (up, down) = (sum(|bucket| bucket.0), sum(|bucket| bucket.1));
        (up + down > 0).then(|| up as f64 / (up + down) as f64)
    }
}

impl Uptime {
    /// Nothing counted yet.
    pub fn new(now: Instant) -> Self {
        Self { began: now, credited: now, hour: Ring::new(), day: Ring::new(), month: Ring::new() }
    }

    /// Credits the time since the last call to `state`: to be called before each change of it, and before reading.
    pub fn advance(&mut self, now: Instant, state: State) {
        let up = match state {
            State::Unknown { .. } => None,
            State::Up { .. } => Some(true),
            State::Down { .. } | State::Parked { .. } => Some(false),
        };
        let since = |at: Instant| u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let (from, to) = (since(self.credited), since(now));
        if to > from {
            self.hour.credit(from, to, up);
            self.day.credit(from, to, up);
            self.month.credit(from, to, up);
            self.credited = self.began + Duration::from_millis(to);
        }
    }

    /// The share of UP over each of [`WINDOWS`]; `None` while it was neither UP nor DOWN.
    pub fn ratios(&self) -> [Option<f64>; 3] {
        [self.hour.ratio(), self.day.ratio(), self.month.ratio()]
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
        let mut uptime = Uptime::new(start);
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
        let mut uptime = Uptime::new(start);
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
    fn small_steps_and_one_large_step_count_the_same() {
        let start = Instant::now();
        let (mut small, mut large) = (Uptime::new(start), Uptime::new(start));
        for step in 1..=1000u64 {
            small.advance(start + Duration::from_secs(step * 37), if step <= 500 { DOWN } else { UP });
        }
        large.advance(start + Duration::from_secs(500 * 37), DOWN);
        large.advance(start + Duration::from_secs(1000 * 37), UP);
        assert_eq!(small.ratios(), large.ratios());
    }
}
