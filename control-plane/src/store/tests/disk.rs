//! A disk with a cache before it: what is written is seen at once and survives only when it is synced.
//!
//! After a power cut each sector holds what was synced, or what any of the writes since then put there. A sync that
//! fails keeps what it should have written visible and never writes it, as Linux does. Calls can be made to fail.

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

use crate::store::place::Place;

const SECTOR: usize = 512;
/// What a broken disk says.
pub const EIO: i32 = 5;

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    /// The file that has the store's name, and the one that has it after a power cut.
    named: Option<usize>,
    named_durably: Option<usize>,
    calls: usize,
    /// Calls that fail, and with which error of the system.
    errors: Option<(Range<usize>, i32)>,
    /// Syncs that fail from now on.
    failing_syncs: usize,
    /// The call from which on there is no power.
    power_cut: Option<usize>,
    log: Vec<Call>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// A call that changes something, or makes a change durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A new file.
    Begin,
    /// Bytes.
    Write,
    /// A length.
    Length,
    /// A sync that has returned.
    Synced,
    /// A file got the store's name.
    Named,
    /// The name is durable.
    NameSynced,
}

impl Disk {
    /// A disk on which the store's file holds these bytes.
    pub fn with(image: Vec<u8>) -> Self {
        let disk = Self::default();
        let content = Content { visible: image.clone(), durable: image, unsynced: Vec::new() };
        *disk.state() = State { files: vec![content], named: Some(0), named_durably: Some(0), ..State::default() };
        disk
    }

    pub fn place(&self) -> DiskPlace {
        DiskPlace { disk: self.clone(), building: None, opened: None }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// All calls that succeeded, in their order.
    pub fn log(&self) -> Vec<Call> {
        self.state().log.clone()
    }

    /// Calls with these numbers fail with this error of the system.
    pub fn fail(&self, calls: Range<usize>, errno: i32) {
        self.state().errors = Some((calls, errno));
    }

    /// The next sync fails, as a broken disk's does.
    pub fn fail_next_sync(&self) {
        self.state().failing_syncs = 1;
    }

    /// From the call with this number on there is no power.
    pub fn cut_power_at(&self, call: usize) {
        self.state().power_cut = Some(call);
    }

    /// The store's file as programs see it.
    pub fn image(&self) -> Vec<u8> {
        let state = self.state();
        state.named.map(|named| state.files[named].visible.clone()).unwrap_or_default()
    }

    /// Whether a power cut could take bytes away that are in the store's file.
    pub fn has_unsynced(&self) -> bool {
        let state = self.state();
        let written = |change: &Change| matches!(change, Change::Write(..));
        state.named != state.named_durably || state.named.is_some_and(|named| state.files[named].unsynced.iter().any(written))
    }

    /// The disk after a power cut: of what was not synced, anything may have landed.
    pub fn after_power_cut(&self, rng: &mut fastrand::Rng) -> Self {
        let state = self.state();
        let named = if rng.bool() { state.named } else { state.named_durably };
        let Some(named) = named else { return Self::default() };
        Self::with(state.files[named].survivor(rng))
    }

    /// Another disk with the same bytes in the store's file, or without one.
    pub fn copy(&self) -> Self {
        if self.state().named.is_some() { Self::with(self.image()) } else { Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn call(&mut self, call: Call) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        if self.power_cut.is_some_and(|cut| number >= cut) {
            return Err(io::Error::other("no power"));
        }
        if call == Call::Synced && self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match &self.errors {
            Some((calls, errno)) if calls.contains(&number) => Err(io::Error::from_raw_os_error(*errno)),
            _ => {
                self.log.push(call);
                Ok(())
            }
        }
    }

    /// Whether the power went before the last call.
    fn dead(&self) -> bool {
        self.power_cut.is_some_and(|cut| self.calls > cut + 1)
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        apply(&mut self.visible, &change);
        self.unsynced.push(change);
    }

    /// What a power cut leaves: for each sector one of its versions since the last sync, and one of the lengths.
    fn survivor(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let everything_or_nothing = rng.u8(..4);
        let mut versions = vec![self.durable.clone()];
        for change in &self.unsynced {
            let mut next = versions[versions.len() - 1].clone();
            apply(&mut next, change);
            versions.push(next);
        }
        let newest = versions.len() - 1;
        let mut pick = || match everything_or_nothing {
            0 => 0,
            1 => newest,
            _ => rng.usize(..=newest),
        };
        let length = versions[pick()].len();
        let mut survivor = vec![0; length];
        for (at, sector) in survivor.chunks_mut(SECTOR).enumerate() {
            let version = &versions[pick()];
            let written = version.get(at * SECTOR..).unwrap_or_default();
            sector.iter_mut().zip(written).for_each(|(to, from)| *to = *from);
        }
        survivor
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
    }
}

/// The store's place on the disk.
#[derive(Debug)]
pub struct DiskPlace {
    disk: Disk,
    building: Option<usize>,
    opened: Option<usize>,
}

impl Place for DiskPlace {
    type File = DiskFile;

    fn path(&self) -> &Path {
        Path::new("/disk/registry.redb")
    }

    fn existing(&mut self) -> io::Result<Option<DiskFile>> {
        let mut state = self.disk.state();
        state.call(Call::NameSynced)?;
        state.named_durably = state.named;
        self.opened = state.named;
        Ok(state.named.map(|file| DiskFile { disk: self.disk.clone(), file }))
    }

    fn begin(&mut self) -> io::Result<DiskFile> {
        let mut state = self.disk.state();
        state.call(Call::Begin)?;
        state.files.push(Content::default());
        let file = state.files.len() - 1;
        self.building = Some(file);
        Ok(DiskFile { disk: self.disk.clone(), file })
    }

    fn install(&mut self, over: bool) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.named.is_some() && !over {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.call(Call::Named)?;
        state.named = self.building.take();
        self.opened = state.named;
        state.call(Call::NameSynced)?;
        state.named_durably = state.named;
        Ok(())
    }

    fn discard(&mut self) {
        self.building = None;
    }

    fn sweep(&mut self) {}

    fn in_place(&self) -> io::Result<bool> {
        Ok(self.disk.state().named == self.opened)
    }
}

/// A file on the disk.
#[derive(Debug)]
pub struct DiskFile {
    disk: Disk,
    file: usize,
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let from = state.files[self.file].visible.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call(Call::Length)?;
        state.files[self.file].change(Change::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let synced = state.call(Call::Synced);
        if state.power_cut.is_some() && synced.is_err() {
            return synced;
        }
        let content = &mut state.files[self.file];
        let unsynced = std::mem::take(&mut content.unsynced);
        if synced.is_ok() {
            unsynced.iter().for_each(|change| apply(&mut content.durable, change));
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let written = state.call(Call::Write);
        if state.dead() {
            return written;
        }
        // A write that fails may have written some of it.
        let landed = if written.is_ok() { data } else { &data[..data.len() / 2] };
        state.files[self.file].change(Change::Write(offset as usize, landed.to_vec()));
        written
    }
}
