//! `max_connections_per_address`: how many connections each peer has open, over all workers.
//!
//! Here: the count. Not here: which peers are counted, what one too many is told.
//!
//! Only addresses with an open connection are remembered, so `max_connections` bounds the memory. A connection asks
//! once when it opens and once when it ends, so a lock of one shard, held for the update of one number, is cheap.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::BuildHasher,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::RandomState;

use crate::address_limit::network;

/// More than there are workers on any machine at hand, so that two seldom meet in one.
const SHARDS: usize = 64;
/// A shard that is empty again gives back the room of more addresses than this.
const KEPT: usize = 64;

type Shard = Mutex<HashMap<u128, usize, RandomState>>;

/// The open connections of every peer; clones are the same count.
#[derive(Debug, Clone)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shards: Box<[Shard]>,
    hasher: RandomState,
}

impl Default for Peers {
    fn default() -> Self {
        Self::new()
    }
}

impl Peers {
    /// Nobody is connected.
    pub fn new() -> Self {
        let hasher = RandomState::default();
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect();
        Self(Arc::new(Inner { shards, hasher }))
    }

    /// Counts one connection of `address` for as long as what it returns lives. An IPv6 peer is its /64, which is what
    /// one subscriber gets. `None`: it has `most` already.
    pub fn enter(&self, address: IpAddr, most: usize) -> Option<Entered> {
        let network = network(address);
        let mut shard = self.0.shard(network)?;
        match shard.entry(network) {
            Entry::Vacant(_) if most == 0 => return None,
            Entry::Vacant(vacant) => {
                vacant.insert(1);
            }
            Entry::Occupied(held) if *held.get() >= most => return None,
            Entry::Occupied(mut held) => *held.get_mut() += 1,
        }
        drop(shard);
        Some(Entered { peers: self.0.clone(), network })
    }

    /// How many peers have a connection open.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn shard(&self, network: u128) -> Option<MutexGuard<'_, HashMap<u128, usize, RandomState>>> {
        #[allow(clippy::cast_possible_truncation)] // the map inside uses the high bits first, so any others choose the shard
        let index = (self.hasher.hash_one(network) >> 32) as usize % SHARDS;
        self.shards.get(index).map(lock)
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, HashMap<u128, usize, RandomState>> {
    // Nothing between two of its states can panic.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection that is counted; dropped, it is not.
#[derive(Debug)]
#[must_use]
pub struct Entered {
    peers: Arc<Inner>,
    network: u128,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(mut shard) = self.peers.shard(self.network) else { return };
        if let Entry::Occupied(mut held) = shard.entry(self.network) {
            match held.get() {
                0 | 1 => drop(held.remove()),
                _ => *held.get_mut() -= 1,
            }
        }
        if shard.is_empty() && shard.capacity() > KEPT {
            shard.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_more_than_most_is_refused_until_one_leaves() {
        let peers = Peers::new();
        let enter = |text: &str, most: usize| peers.enter(address(text), most);
        let first = enter("10.0.0.1", 2).unwrap();
        let second = enter("10.0.0.1", 2).unwrap();
        assert!(enter("10.0.0.1", 2).is_none());
        // A limit that was lowered closes nothing, and one that was raised holds at once.
        assert!(enter("10.0.0.1", 1).is_none() && enter("10.0.0.1", 0).is_none());
        let third = enter("10.0.0.1", 3).unwrap();
        drop((first, third));
        let _again = enter("10.0.0.1", 2).unwrap();
        assert!(enter("10.0.0.1", 2).is_none());
        drop(second);
    }

    #[test]
    fn peers_are_counted_each_for_itself_and_a_slash_64_is_one() {
        let peers = Peers::new();
        let held: Vec<_> = ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"].map(|text| peers.enter(address(text), 1)).into();
        assert!(held.iter().all(Option::is_some));
        assert_eq!(peers.len(), 4);
        assert!(peers.enter(address("2001:db8::ffff:2"), 1).is_none());
        // How a dual-stack socket shows 10.0.0.1.
        assert!(peers.enter(address("::ffff:10.0.0.1"), 1).is_none());
        drop(held);
        assert!(peers.is_empty());
    }

    #[test]
    fn nothing_is_left_of_those_who_were_here() {
        let peers = Peers::new();
        let held: Vec<_> = (0..100_000u32).map(|number| peers.enter(IpAddr::from(number.to_be_bytes()), 1).unwrap()).collect();
        assert_eq!(peers.len(), 100_000);
        drop(held);
        assert!(peers.is_empty());
        let room: usize = peers.0.shards.iter().map(|shard| lock(shard).capacity()).sum();
        assert_eq!(room, 0);
    }

    #[test]
    fn threads_that_race_never_get_in_more_than_most() {
        let (peers, start) = (Peers::new(), Barrier::new(4));
        thread::scope(|scope| {
            let race = || {
                start.wait();
                let inside: Vec<_> = (0..1000).filter_map(|_| peers.enter(address("10.0.0.1"), 100)).collect();
                start.wait();
                inside.len()
            };
            let racers = [(); 4].map(|()| scope.spawn(race));
            assert_eq!(racers.map(|racer| racer.join().unwrap()).iter().sum::<usize>(), 100);
        });
        assert!(peers.is_empty());
    }
}
