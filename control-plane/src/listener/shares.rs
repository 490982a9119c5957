//! How many connections each address has, so that one peer cannot keep all others out.
//!
//! Not here: how many there are in all, accepting.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::warn;

/// Connections by address; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    taken: Arc<Mutex<HashMap<IpAddr, Taken>>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    /// Whether the log has it that this address has too many; once until it has none.
    told: bool,
}

/// One connection, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    address: IpAddr,
}

impl Shares {
    /// None yet; each address may have so many.
    pub(super) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// One more for an address; `None` when it has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Share> {
        let address = address.to_canonical();
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.entry(address).or_default();
        if taken.connections >= self.most {
            if !std::mem::replace(&mut taken.told, true) {
                warn!(peer = %address, connections = taken.connections, "too many connections to the internal listener, further ones are closed");
            }
            return None;
        }
        taken.connections += 1;
        Some(Share { shares: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.address) {
            Some(taken) if taken.connections > 1 => taken.connections -= 1,
            _ => drop(all.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_share_and_nothing_is_left_of_those_that_went() {
        let shares = Shares::new(2);
        let [one, same, other] = ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let held = [shares.take(one).unwrap(), shares.take(same).unwrap()];
        assert!(shares.take(one).is_none() && shares.take(same).is_none());
        assert!(shares.take(other).is_some());
        drop(held);
        assert!(shares.taken.lock().unwrap().is_empty());
        assert!(shares.take(one).is_some());
    }
}
