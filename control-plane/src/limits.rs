//! How often one may register: per peer address and service name, and a hundred times that per peer address.
//!
//! Here: the limiters and the bound on their number. Not here: clocks, what counts as an attempt.

use std::{collections::HashMap, hash::Hash, net::IpAddr, time::Duration};

use furt_proto::{
    names::ServiceName,
    rate::{Limiter, Rate},
};

/// How many times the rate of one service a peer address has in all (DESIGN §3, `registration_rate`).
const PER_PEER: u32 = 100;
/// Limiters kept of each kind; beyond it, those that nobody knows yet share one. About 2 MiB.
const MOST: usize = 16_384;

/// The limiters of registering.
#[derive(Debug)]
pub struct Limits {
    peers: Bounded<IpAddr>,
    services: Bounded<(IpAddr, ServiceName)>,
}

impl Limits {
    /// With every burst available.
    pub fn new(rate: Rate) -> Self {
        Self { peers: Bounded::new(rate.times(PER_PEER)), services: Bounded::new(rate) }
    }

    /// One attempt at `now`, nanoseconds on a clock that does not go back. `service` is `None` for a dry run and
    /// for a name that is none. An error says how long to wait.
    pub fn check(&mut self, peer: IpAddr, service: Option<&ServiceName>, now: u64) -> Result<(), Duration> {
        self.peers.check(peer, now)?;
        match service {
            Some(service) => self.services.check((peer, service.clone()), now),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Bounded<K> {
    rate: Rate,
    limiters: HashMap<K, Limiter>,
    overflow: Limiter,
    /// The map is swept when it has grown to this size, so that sweeping costs a constant for each insert.
    sweep_at: usize,
    /// And not before this time, so that a full map does not cost a sweep for each stranger.
    sweep_after: u64,
}

/// The size below which sweeping is not worth it.
const SMALL: usize = 256;
/// Nanoseconds between two sweeps.
const SWEEP_EVERY: u64 = 1_000_000_000;

impl<K: Hash + Eq> Bounded<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, limiters: HashMap::new(), overflow: Limiter::new(rate), sweep_at: SMALL, sweep_after: 0 }
    }

    fn check(&mut self, key: K, now: u64) -> Result<(), Duration> {
        let verdict = match self.limiters.get(&key) {
            Some(limiter) => limiter.check(now),
            None => self.make_room(now).check(key, now),
        };
        if verdict.allowed { Ok(()) } else { Err(verdict.retry_after) }
    }

    fn make_room(&mut self, now: u64) -> Slot<'_, K> {
        if self.limiters.len() >= self.sweep_at && now >= self.sweep_after {
            self.sweep_after = now.saturating_add(SWEEP_EVERY);
            self.limiters.retain(|_, limiter| !limiter.is_idle(now));
            self.limiters.shrink_to(SMALL);
            self.sweep_at = (self.limiters.len() * 2).clamp(SMALL, MOST);
        }
        let full = self.limiters.len() >= MOST;
        Slot { bounded: self, full }
    }
}

struct Slot<'a, K> {
    bounded: &'a mut Bounded<K>,
    full: bool,
}

impl<K: Hash + Eq> Slot<'_, K> {
    fn check(self, key: K, now: u64) -> furt_proto::rate::Verdict {
        if self.full {
            return self.bounded.overflow.check(now);
        }
        let rate = self.bounded.rate;
        self.bounded.limiters.entry(key).or_insert_with(|| Limiter::new(rate)).check(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_has_its_rate_and_a_peer_a_hundred_times_that() {
        let mut limits = Limits::new("2/min".parse().unwrap());
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(limits.check(peer, Some(&name("a")), 1), Ok(()));
        assert_eq!(limits.check(peer, Some(&name("a")), 1), Ok(()));
        assert_eq!(limits.check(peer, Some(&name("a")), 1), Err(Duration::from_secs(30)));
        assert_eq!(limits.check("10.0.0.2".parse().unwrap(), Some(&name("a")), 1), Ok(()));
        // 3 of the 200 are gone; a dry run counts against the peer alone.
        for _ in 0..197 {
            assert_eq!(limits.check(peer, None, 1), Ok(()));
        }
        assert!(limits.check(peer, None, 1).is_err());
        assert_eq!(limits.check(peer, Some(&name("a")), 1 + MINUTE), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_idle_limiters_make_room() {
        let mut limits = Bounded::new("1/min".parse().unwrap());
        for key in 0..100_000 {
            let _ = limits.check(key, 1);
        }
        assert_eq!(limits.limiters.len(), MOST);
        assert!(limits.check(200_000, 1).is_err(), "strangers share what is left");
        assert!(limits.check(0, 1).is_err(), "who is known keeps a limiter");
        assert!(limits.check(200_001, 1 + 2 * MINUTE).is_ok());
        assert!(limits.limiters.len() < 10, "{}", limits.limiters.len());
    }
}
