//! The store under everything that disks, kills and operators do to it.
//!
//! In [`disk`] a disk that fails and loses power; [`power`] and [`faults`] use it. [`damage`] changes bytes, [`files`]
//! is about real files, [`churn`] about how large they become.

mod churn;
mod damage;
mod disk;
mod faults;
mod files;
mod power;

use std::collections::BTreeMap;

use super::{Batch, Key, Loaded, Redb, Store, StoreError, place::Place};

/// What a store should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    records: BTreeMap<Key, Vec<u8>>,
    alive_unix_ms: i64,
}

impl Model {
    fn after(&self, batch: &Batch) -> Self {
        let mut next = self.clone();
        batch.deletes.iter().for_each(|key| drop(next.records.remove(key)));
        next.records.extend(batch.puts.iter().cloned());
        next.alive_unix_ms = batch.alive_unix_ms;
        next
    }

    fn records(&self) -> Vec<(Key, Vec<u8>)> {
        self.records.clone().into_iter().collect()
    }

    /// The states a run of `batches` goes through, the empty one first.
    fn states(batches: &[Batch]) -> Vec<Self> {
        let mut states = vec![Self::default()];
        for batch in batches {
            states.push(states[states.len() - 1].after(batch));
        }
        states
    }
}

impl PartialEq<Model> for Loaded {
    fn eq(&self, model: &Model) -> bool {
        self.records == model.records() && self.alive_unix_ms == model.alive_unix_ms
    }
}

fn key(service: usize, instance: usize) -> Key {
    Key { service: format!("service-{service}"), instance: format!("instance-{instance}") }
}

/// Batches as a registry makes them: few large ones and many small ones, records of one page and of several, records
/// that come again, deletes of what is there and of what is not.
fn random_batches(rng: &mut fastrand::Rng, count: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for at in 0..count {
        let mut batch = Batch { alive_unix_ms: 1_700_000_000_000 + at as i64, ..Batch::default() };
        let puts = if rng.u8(..8) == 0 { 40 } else { rng.usize(..4) };
        for _ in 0..puts {
            let length = if rng.u8(..10) == 0 { rng.usize(4_000..20_000) } else { rng.usize(..600) };
            let value = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
            batch.puts.push((key(rng.usize(..30), rng.usize(..2)), value));
        }
        for _ in 0..rng.usize(..3) {
            batch.deletes.push(key(rng.usize(..30), rng.usize(..2)));
        }
        batches.push(batch);
    }
    batches
}

fn load<P: Place>(place: P) -> Result<(Redb<P>, Loaded), StoreError> {
    let mut store = Redb::at(place);
    let loaded = store.load()?;
    Ok((store, loaded))
}
