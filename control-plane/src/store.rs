//! What furt keeps of its registrations: a blocking store that one caller uses, one call at a time.
//!
//! Here: what a store does and what it is told. In [`embedded`] the one in `state_dir`, with the [`place`] of its
//! file, the [`record`]'s checksum and the [`error`]s. Not here: what a record says, when to commit, what to do about
//! an error; that is the committer's.

pub mod embedded;
pub mod error;
pub mod place;
pub mod record;
#[cfg(test)]
mod tests;

pub use embedded::Redb;
pub use error::StoreError;

/// Names a record: an instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service's name.
    pub service: String,
    /// The instance's id.
    pub instance: String,
}

/// Changes that are committed together: all of them or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records to write, over what has their key. They come after `deletes`.
    pub puts: Vec<(Key, Vec<u8>)>,
    /// Records to take out; one that is not there is none.
    pub deletes: Vec<Key>,
    /// When furt was last known to run, milliseconds since 1970.
    pub alive_unix_ms: i64,
}

/// All that a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Every record, by key.
    pub records: Vec<(Key, Vec<u8>)>,
    /// When furt was last known to run, milliseconds since 1970; 0: never.
    pub alive_unix_ms: i64,
}

/// Keeps records. Every call may block on a disk.
pub trait Store: Send + 'static {
    /// Opens the store, makes it when there is none, and reads all of it. May be called again after an error, and
    /// must have succeeded before anything else is asked.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Durable when `Ok`. After an error the batch may be kept or not, and nothing can be committed before
    /// [`recover`](Self::recover) has succeeded.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// Makes what is kept equal to `records`, durably: a commit that failed may have landed all the same. Refused
    /// before a first [`load`](Self::load), because what is not known must not be written over.
    fn recover(&mut self, records: &[(Key, Vec<u8>)], alive_unix_ms: i64) -> Result<(), StoreError>;

    /// False: never waits for anything, so it may be called where nothing must block.
    fn blocks(&self) -> bool;
}

/// Keeps nothing past this process: for tests, the demo, and a furt without a registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory;

impl Store for Memory {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(Loaded::default())
    }

    fn commit(&mut self, _: &Batch) -> Result<(), StoreError> {
        Ok(())
    }

    fn recover(&mut self, _: &[(Key, Vec<u8>)], _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}
