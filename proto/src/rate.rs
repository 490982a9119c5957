//! Rates and the limiter that holds them: GCRA in one atomic word, time passed in.

use std::{
    fmt,
    num::NonZeroU32,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::names::{NameError, quoted};

/// How many per period: `N/s`, `N/min` or `N/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    count: NonZeroU32,
    seconds: u32,
}

impl Rate {
    /// How many in a period, which is the burst too.
    pub fn count(&self) -> u32 {
        self.count.get()
    }
    /// The same period with `factor` times the count.
    pub fn times(&self, factor: u32) -> Self {
        Self { count: self.count.saturating_mul(NonZeroU32::new(factor).unwrap_or(NonZeroU32::MIN)), seconds: self.seconds }
    }
    fn period_nanos(&self) -> u64 {
        u64::from(self.seconds) * 1_000_000_000
    }
    /// Nanoseconds from one to the next, at least 1.
    fn interval_nanos(&self) -> u64 {
        (self.period_nanos() / u64::from(self.count.get())).max(1)
    }
}

impl FromStr for Rate {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parse = || {
            let (count, unit) = text.split_once('/')?;
            let seconds = match unit.trim() {
                "s" => 1,
                "min" => 60,
                "h" => 3600,
                _ => return None,
            };
            let count = count.trim();
            let digits = count.bytes().all(|byte| byte.is_ascii_digit());
            Some(Self { count: digits.then(|| count.parse().ok())??, seconds })
        };
        parse().ok_or_else(|| NameError(format!("expected a rate such as 10/s, 600/min or 1000/h, got {}", quoted(text))))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.seconds {
            1 => "s",
            60 => "min",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// What the limiter says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may pass.
    pub allowed: bool,
    /// How many more could pass at this moment.
    pub remaining: u32,
    /// Until the next could pass; zero when `remaining` is not 0.
    pub retry_after: Duration,
    /// Until the whole burst is available again.
    pub reset_after: Duration,
}

/// Holds a [`Rate`] with a burst of its count, exactly, however many threads ask.
///
/// The generic cell rate algorithm (ITU-T I.371): one word holds the theoretical arrival time.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    arrival: AtomicU64,
}

impl Limiter {
    /// A limiter whose whole burst is available.
    pub fn new(rate: Rate) -> Self {
        Self { rate, arrival: AtomicU64::new(0) }
    }

    /// The rate it holds.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Asks for one at `now`, nanoseconds on any clock that does not go back.
    pub fn check(&self, now: u64) -> Verdict {
        let (interval, burst) = (self.rate.interval_nanos(), self.rate.interval_nanos().saturating_mul(self.rate.count().into()));
        let mut arrival = self.arrival.load(Ordering::Relaxed);
        loop {
            let base = arrival.max(now);
            let next = base.saturating_add(interval);
            if next - now > burst {
                return Verdict {
                    allowed: false,
                    remaining: 0,
                    retry_after: Duration::from_nanos(next - now - burst),
                    reset_after: Duration::from_nanos(base - now),
                };
            }
            match self.arrival.compare_exchange_weak(arrival, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let remaining = u32::try_from((burst - (next - now)) / interval).unwrap_or(u32::MAX);
                    let wait = if remaining > 0 { 0 } else { next + interval - now - burst };
                    return Verdict {
                        allowed: true,
                        remaining,
                        retry_after: Duration::from_nanos(wait),
                        reset_after: Duration::from_nanos(next - now),
                    };
                }
                Err(seen) => arrival = seen,
            }
        }
    }

    /// What [`Limiter::check`] would say, without taking one; `allowed` is whether one could pass.
    pub fn peek(&self, now: u64) -> Verdict {
        let (interval, burst) = (self.rate.interval_nanos(), self.rate.interval_nanos().saturating_mul(self.rate.count().into()));
        let ahead = self.arrival.load(Ordering::Relaxed).saturating_sub(now);
        let room = burst.saturating_sub(ahead);
        let remaining = u32::try_from(room / interval).unwrap_or(u32::MAX);
        Verdict {
            allowed: remaining > 0,
            remaining,
            retry_after: Duration::from_nanos(if remaining > 0 { 0 } else { interval - room }),
            reset_after: Duration::from_nanos(ahead),
        }
    }

    /// Whether the whole burst is available at `now`: the limiter remembers nothing worth keeping.
    pub fn is_idle(&self, now: u64) -> bool {
        self.arrival.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn rates_parse_or_refuse() {
        for good in ["10/s", "600/min", "1/h"] {
            assert_eq!(good.parse::<Rate>().unwrap().to_string(), good);
        }
        for bad in ["", "10", "0/s", "-1/s", "+1/s", "10/day", "a/s", "10/", "4294967296/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_burst_passes_then_one_per_interval() {
        let limiter = Limiter::new("3/min".parse().unwrap());
        let now = 5 * SECOND;
        let remaining: Vec<_> = (0..3).map(|_| limiter.check(now).remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = limiter.check(now);
        assert_eq!((refused.allowed, refused.retry_after), (false, Duration::from_secs(20)));
        assert!(!limiter.check(now + 19 * SECOND).allowed);
        assert!(limiter.check(now + 20 * SECOND).allowed);
        assert!(!limiter.check(now + 21 * SECOND).allowed);
        let peeked = limiter.peek(now + 21 * SECOND);
        assert_eq!(peeked, limiter.check(now + 21 * SECOND));
        assert_eq!(limiter.peek(now + 41 * SECOND).remaining, 1);
        assert!(limiter.is_idle(now + 200 * SECOND));
    }

    #[test]
    fn threads_together_get_exactly_the_burst() {
        let limiter = Limiter::new("1000/h".parse().unwrap());
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| limiter.check(1).allowed).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1000);
    }
}
