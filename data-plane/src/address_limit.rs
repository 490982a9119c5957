//! `ip_rate_limit`: a limiter per client address in a fixed table, without locks.
//!
//! Addresses hash to a set of eight slots; an address takes over a slot whose limiter has its whole
//! burst back. When all eight are busy the address passes: a limit that may fail open is better than
//! one that punishes strangers, and memory stays as it is.

use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
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
    slots: Box<[Slot]>,
    hasher: RandomState,
}

impl AddressLimits {
    /// An empty table for one rate.
    pub fn new(rate: Rate) -> Self {
        let slot = |_| Slot { owner: AtomicU64::new(0), limiter: Limiter::new(rate) };
        Self { slots: (0..SETS * WAYS).map(slot).collect(), hasher: RandomState::default() }
    }

    /// Asks for one request of `address` at `now`; an IPv6 client is its /64, which is what one
    /// subscriber gets. `None`: the set is full of busy addresses.
    pub fn check(&self, address: IpAddr, now: u64) -> Option<Verdict> {
        let owner = self.hasher.hash_one(network(address)).max(1);
        #[allow(clippy::cast_possible_truncation)] // only the low bits choose the set
        let first = (owner as usize % SETS) * WAYS;
        let set = &self.slots[first..first + WAYS];
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
}

fn network(address: IpAddr) -> u128 {
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
    fn a_full_set_of_busy_addresses_lets_pass_and_idle_ones_give_way() {
        let limits = AddressLimits::new("1/min".parse().unwrap());
        let addresses = (0..200_000u32).map(|n| IpAddr::from(n.to_be_bytes()));
        let passed = addresses.filter(|address| limits.check(*address, 1).is_none()).count();
        assert!(passed > 0);
        let minute = 61_000_000_000;
        assert!(limits.check([250, 0, 0, 1].into(), 1 + minute).unwrap().allowed);
    }
}
