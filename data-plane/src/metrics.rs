//! What the data plane counts (DESIGN §13): plain counters per worker, summed when somebody asks.
//!
//! A worker is the only writer of its shard, so a count is a load and a store, no locked instruction.

use std::sync::OnceLock;

/// The counts of one service; made once per service and carried over from view to view.
#[derive(Debug)]
pub struct ServiceMetrics {
    shards: Box<[OnceLock<Box<Shard>>]>,
}

impl ServiceMetrics {
    /// For a data plane with so many workers; shards are made at their first count.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| OnceLock::new()).collect() }
    }
}

#[derive(Debug, Default)]
struct Shard;
