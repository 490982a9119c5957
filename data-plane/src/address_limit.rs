//! A limiter per client address in a fixed table, without locks: `ip_rate_limit` and `failed_key_limit`.
//!
//! Addresses hash to a set of eight slots; an address takes over a slot whose limiter has its whole
//! burst back. When all eight are busy the address passes: a limit that may fail open is better than
//! one that punishes strangers, and memory stays as it is.

use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use furt_proto::rate::{Limiter, Rate, Verdict};

const SETS: usize = 4096;
const WAYS: usize = 8;

#[derive(Debug)]
struct Slot {
    /// The hash of the address that has it; 0: nobody.
    owner: AtomicU64,
    limiter: Limiter,
}

/// The limiters of all client addresses.
#[derive(Debug)]
pub struct AddressLimits {
    rate: Rate,
    /// Made for the first that is counted: most furts never see a key that is not valid.
    slots: OnceLock<Box<[Slot]>>,
    hasher: RandomState,
}

impl AddressLimits {
    /// An empty table for one rate.
    pub fn new(rate: Rate) -> Self {
        Self { rate, slots: OnceLock::new(), hasher: RandomState::default() }
    }

    /// Takes one from `address` at `now`, nanoseconds on any clock that does not go back; an IPv6 client is its /64,
    /// which is what one subscriber gets. `None`: the set is full of busy addresses.
    pub fn check(&self, address: IpAddr, now: u64) -> Option<Verdict> {
        let owner = self.owner(address);
        let slot = |_| Slot { owner: AtomicU64::new(0), limiter: Limiter::new(self.rate) };
        let set = set(self.slots.get_or_init(|| (0..SETS * WAYS).map(slot).collect()), owner);
        if let Some(slot) = set.iter().find(|slot| slot.owner.load(Ordering::Relaxed) == owner) {
            return Some(slot.limiter.check(now));
        }
        set.iter().find_map(|slot| {
            let held = slot.owner.load(Ordering::Relaxed);
            let free = held == 0 || slot.limiter.is_idle(now);
            let taken = free && slot.owner.compare_exchange(held, owner, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            taken.then(|| slot.limiter.check(now))
        })
    }

    /// What [`AddressLimits::check`] would say, without taking one; `allowed` is whether one is left. `None`: nothing is
    /// known of the address, so nothing was taken from it.
    pub fn peek(&self, address: IpAddr, now: u64) -> Option<Verdict> {
        let owner = self.owner(address);
        let slot = set(self.slots.get()?, owner).iter().find(|slot| slot.owner.load(Ordering::Relaxed) == owner)?;
        Some(slot.limiter.peek(now))
    }

    fn owner(&self, address: IpAddr) -> u64 {
        self.hasher.hash_one(network(address)).max(1)
    }
}

/// The slots that an owner may have.
fn set(slots: &[Slot], owner: u64) -> &[Slot] {
    #[allow(clippy::cast_possible_truncation)] // only the low bits choose the set
    let first = (owner as usize % SETS) * WAYS;
    slots.get(first..first + WAYS).unwrap_or_default()
}

/// What limits take as one client: an IPv4 address, or the /64 of an IPv6 address.
pub fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_burst_and_a_slash_64_is_one() {
        let limits = AddressLimits::new("2/min".parse().unwrap());
        let ask = |text: &str| limits.check(text.parse().unwrap(), 1).unwrap().allowed;
        assert!(ask("10.0.0.1") && ask("10.0.0.1") && !ask("10.0.0.1"));
        assert!(ask("10.0.0.2"));
        assert!(ask("2001:db8::1") && ask("2001:db8::2") && !ask("2001:db8::3"));
        assert!(ask("2001:db8:0:1::1"));
    }

    #[test]
    fn looking_takes_nothing_and_shows_what_is_left() {
        let limits = AddressLimits::new("2/min".parse().unwrap());
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(limits.peek(one, 1), None);
        assert!(limits.check(one, 1).unwrap().allowed);
        assert_eq!(limits.peek(one, 1), limits.peek(one, 1));
        assert!(limits.peek(one, 1).unwrap().allowed && limits.check(one, 1).unwrap().allowed);
        let spent = limits.peek(one, 1).unwrap();
        assert!(!spent.allowed && spent.retry_after == std::time::Duration::from_secs(30), "{spent:?}");
        assert_eq!(limits.peek(other, 1), None);
        assert!(limits.peek(one, 30_000_000_001).unwrap().allowed);
    }

    #[test]
    fn a_full_set_of_busy_addresses_lets_pass_and_idle_ones_give_way() {
        let limits = AddressLimits::new("1/min".parse().unwrap());
        let addresses = (0..200_000u32).map(|n| IpAddr::from(n.to_be_bytes()));
        let passed = addresses.filter(|address| limits.check(*address, 1).is_none()).count();
        assert!(passed > 0);
        let minute = 61_000_000_000;
        assert!(limits.check([250, 0, 0, 1].into(), 1 + minute).unwrap().allowed);
    }
}
