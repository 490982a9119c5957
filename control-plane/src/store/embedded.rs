//! The store in `state_dir`: one redb file, one transaction for each batch.
//!
//! redb is asked for its two-phase commit: what is newest is then known to be whole, so that damage to it is told
//! from a commit that a crash cut short, and never answered by going back to an older state. Here: tables, formats,
//! opening, committing, beginning anew after an error. Not here: names and modes of files, what a record says.

use std::{
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{BackendError, Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};

use super::{
    Batch, Key, Loaded, Store, StoreError,
    place::{Directory, Place},
    record::{seal, unseal},
};

/// The format of the tables below. An older one gets an arm in [`Redb::read`], which brings it up to this one.
const FORMAT: u64 = 1;
/// Bytes of redb's cache. All is read once at the start and lives in the registry from then on.
const CACHE: usize = 1024 * 1024;

/// Numbers by name: [`FORMAT_KEY`], [`ALIVE_KEY`]. Its name and types hold for every format.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
/// When furt was last known to run, milliseconds since 1970.
const ALIVE_KEY: &str = "alive_unix_ms";
/// Sealed records by service and instance.
const INSTANCES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("instances");

/// The embedded store.
#[derive(Debug)]
pub struct Redb<P: Place = Directory> {
    place: P,
    open: Option<Database>,
    /// Once all was read: before that, what is kept is not known and must not be replaced.
    loaded: bool,
}

impl Redb {
    /// In `state_dir`, which need not exist. Nothing is touched before [`load`](Store::load).
    pub fn new(state_dir: &Path) -> Self {
        Self::at(Directory::new(state_dir))
    }
}

impl<P: Place> Redb<P> {
    /// At a place of another kind.
    pub fn at(place: P) -> Self {
        Self { place, open: None, loaded: false }
    }

    /// Runs `work`, and says a panic in it as an error. After any error the database is closed: redb asks for that
    /// after a fault of input or output, and a panic leaves it in no state to go on with.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self)));
        let result = outcome.unwrap_or_else(|payload| Err(StoreError::panic(self.place.path(), &*payload)));
        if result.is_err() {
            self.close();
        }
        result
    }

    /// Closing writes, so it can fail or panic as anything else can. There is nothing left to do about either: what
    /// is not written then is worked out when the file is opened.
    fn close(&mut self) {
        let open = self.open.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(open))));
        drop(catch_unwind(AssertUnwindSafe(|| self.place.discard())));
    }

    fn system(&self, error: &io::Error) -> StoreError {
        StoreError::system(self.place.path(), error)
    }

    fn redb<E: Into<redb::Error>>(&self, error: E) -> StoreError {
        StoreError::database(self.place.path(), error.into())
    }

    fn corrupt(&self, cause: String) -> StoreError {
        StoreError::Corrupt { file: self.place.path().to_path_buf(), cause }
    }

    fn trouble(&self, cause: &str) -> StoreError {
        StoreError::Io { file: self.place.path().to_path_buf(), cause: cause.to_owned() }
    }

    fn opened(&self) -> Result<&Database, StoreError> {
        self.open.as_ref().ok_or_else(|| self.trouble("it is closed since an earlier fault"))
    }

    fn open(&mut self) -> Result<Database, StoreError> {
        if let Some(file) = self.existing()? {
            return self.open_file(file);
        }
        let database = self.build(&[], 0)?;
        let installed = self.place.install(false);
        drop(database);
        self.place.discard();
        match installed {
            Ok(()) => {}
            // Another furt was quicker, or has swept what this one built: the file that is there now counts.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(self.system(&error)),
        }
        // Opened by its own name, which is then the one that the system shows.
        match self.existing()? {
            Some(file) => self.open_file(file),
            None => Err(self.trouble("it was moved away while furt made it")),
        }
    }

    fn existing(&mut self) -> Result<Option<P::File>, StoreError> {
        self.place.existing().map_err(|error| StoreError::system(self.place.path(), &error))
    }

    fn open_file(&self, file: P::File) -> Result<Database, StoreError> {
        // redb would make a new database of it. No furt leaves an empty file there.
        if file.len().map_err(|error| self.system(&error))? == 0 {
            return Err(self.corrupt("it is empty".to_owned()));
        }
        // Every page is verified, also after a clean end: it is a few MiB, read to the last byte in any case.
        let database = Builder::new().set_cache_size(CACHE).set_check_integrity_on_open(true).create_with_backend(file);
        database.map_err(|error| self.redb(error))
    }

    /// A file with these records, synced and locked, not yet in its place.
    fn build(&mut self, records: &[(Key, Vec<u8>)], alive_unix_ms: i64) -> Result<Database, StoreError> {
        let file = self.place.begin().map_err(|error| StoreError::system(self.place.path(), &error))?;
        let create = || -> Result<Database, redb::Error> {
            let database = Builder::new().set_cache_size(CACHE).create_with_backend(file)?;
            write(&database, |transaction| {
                transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
                put(transaction, &[], records, alive_unix_ms)
            })?;
            Ok(database)
        };
        create().map_err(|error| self.redb(error))
    }

    fn read(&self) -> Result<Loaded, StoreError> {
        let database = self.opened()?;
        let transaction = database.begin_read().map_err(|error| self.redb(error))?;
        let number =
            |name: &str| -> Result<Option<u64>, redb::Error> { Ok(transaction.open_table(META)?.get(name)?.map(|value| value.value())) };
        match number(FORMAT_KEY).map_err(|error| self.redb(error))? {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                let file = self.place.path().to_path_buf();
                return Err(StoreError::Newer { file, format: newer, known: FORMAT });
            }
            other => return Err(self.corrupt(format!("its format is {other:?}"))),
        }
        let alive = number(ALIVE_KEY).map_err(|error| self.redb(error))?.unwrap_or(0);
        let table = transaction.open_table(INSTANCES).map_err(|error| self.redb(error))?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(|error| self.redb(error))? {
            let (key, sealed) = entry.map_err(|error| self.redb(error))?;
            let (service, instance) = key.value();
            let value = unseal(service, instance, sealed.value())
                .ok_or_else(|| self.corrupt(format!("the record of {service:?} {instance:?} has another checksum")))?;
            records.push((Key { service: service.to_owned(), instance: instance.to_owned() }, value.to_vec()));
        }
        Ok(Loaded { records, alive_unix_ms: i64::try_from(alive).unwrap_or(i64::MAX) })
    }

    /// Holds the file that is in its place against other furts while another is put over it.
    fn hold(&mut self) -> Result<Option<P::File>, StoreError> {
        let Some(file) = self.existing()? else { return Ok(None) };
        match file.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
            Ok(true) | Err(BackendError::Unsupported) => Ok(Some(file)),
            Ok(false) => Err(StoreError::Locked { file: self.place.path().to_path_buf() }),
            Err(error) => Err(self.system(&error.into())),
        }
    }
}

impl<P: Place> Store for Redb<P> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.close();
        self.guarded(|this| {
            this.open = Some(this.open()?);
            let loaded = this.read()?;
            this.place.sweep();
            this.loaded = true;
            Ok(loaded)
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.guarded(|this| {
            let database = this.opened()?;
            // A file that somebody moved away could still be written, and would be missing at the next start.
            if !this.place.in_place().map_err(|error| this.system(&error))? {
                return Err(this.trouble("it was moved away while furt ran"));
            }
            let put = |transaction: &_| put(transaction, &batch.deletes, &batch.puts, batch.alive_unix_ms);
            write(database, put).map_err(|error| this.redb(error))
        })
    }

    /// Writes a new file from `records` instead of mending the old one: after a sync has failed, what the system reads
    /// back need not be on the disk, and it will not be written again.
    fn recover(&mut self, records: &[(Key, Vec<u8>)], alive_unix_ms: i64) -> Result<(), StoreError> {
        self.close();
        self.guarded(|this| {
            if !this.loaded {
                return Err(this.trouble("it has not been read yet"));
            }
            let held = this.hold()?;
            let database = this.build(records, alive_unix_ms)?;
            let installed = this.place.install(held.is_some());
            this.open = Some(database);
            drop(held.map(|file| file.close()));
            installed.map_err(|error| this.system(&error))
        })
    }

    fn blocks(&self) -> bool {
        true
    }
}

impl<P: Place> Drop for Redb<P> {
    fn drop(&mut self) {
        self.close();
    }
}

/// One durable transaction.
fn write(database: &Database, work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    work(&transaction)?;
    Ok(transaction.commit()?)
}

fn put(transaction: &WriteTransaction, deletes: &[Key], puts: &[(Key, Vec<u8>)], alive_unix_ms: i64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(ALIVE_KEY, u64::try_from(alive_unix_ms).unwrap_or(0))?;
    let mut instances = transaction.open_table(INSTANCES)?;
    for key in deletes {
        instances.remove((key.service.as_str(), key.instance.as_str()))?;
    }
    for (key, value) in puts {
        instances.insert((key.service.as_str(), key.instance.as_str()), seal(key, value).as_slice())?;
    }
    Ok(())
}
