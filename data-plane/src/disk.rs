//! The last good snapshot on disk, for a start at which no control plane knows the services (DESIGN §7, §11).
//!
//! Here: two generations of one file, written in turn, each whole or not at all; the task that writes them; the start
//! from the newer of them. Not here: what of a view is kept (`view`), who needs it.
//!
//! A file is `MAGIC`, the format, the generation, the time it was written (milliseconds since 1970), the length of the
//! snapshot, the snapshot (a `WatchResponse`), and the SHA-256 of all of that; numbers are little-endian.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use furt_proto::{time::unix_ms_now, v1};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::view::{Current, View};

const MAGIC: &[u8; 8] = b"furtsnap";
/// Of what this program writes; any other is not read.
const FORMAT: u32 = 1;
const HEADER: usize = 36;
const CHECKSUM: usize = 32;
/// Largest file that is read: more than the largest snapshot that is taken from a control plane.
const MAX_FILE: u64 = 600 << 20;
/// Between two writes, at least; a write that takes long is followed by a longer rest.
const WRITE_EVERY: Duration = Duration::from_secs(1);
const REST: u32 = 20;
/// Until the next attempt after one that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Why a generation is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no snapshot of furt")]
    Foreign,
    #[error("it has format {0}, and this furt reads format {FORMAT}")]
    Format(u32),
    #[error("it is not whole")]
    Torn,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// One generation, as read.
struct Generation {
    number: u64,
    written_unix_ms: i64,
    snapshot: v1::WatchResponse,
}

/// Installs the services of the newest generation in `dir` that is whole, if there is one. They serve once a control
/// plane says that it does not know every service. Blocks; for furt's start.
pub fn resume(dir: &Path, current: &Current) {
    let mut whole = Vec::new();
    for (path, read) in generations(dir) {
        match read {
            Ok(generation) => whole.push(generation),
            Err(reason) => warn!(file = %path.display(), %reason, "a snapshot on disk is skipped"),
        }
    }
    let newest = whole.into_iter().max_by_key(|generation| generation.number);
    let Some(Generation { number, written_unix_ms, snapshot }) = newest else { return };
    match View::restored((*current.load().config).clone(), snapshot) {
        Ok(view) => {
            info!(generation = number, services = view.registered(), "the last good snapshot was read from disk");
            current.install(view);
            current.hear(written_unix_ms);
        }
        Err(reason) => warn!(generation = number, %reason, "the last good snapshot on disk is skipped"),
    }
}

/// What is there of the two generations.
fn generations(dir: &Path) -> Vec<(PathBuf, Result<Generation, Unusable>)> {
    let read = [1, 2].map(|number| (file(dir, number), read(&file(dir, number))));
    let missing = |read: &Result<Generation, Unusable>| matches!(read, Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound);
    read.into_iter().filter(|(_, read)| !missing(read)).collect()
}

/// Where a generation is kept: the one before it is in the other file.
fn file(dir: &Path, number: u64) -> PathBuf {
    dir.join(if number % 2 == 1 { "snapshot.1" } else { "snapshot.2" })
}

fn read(path: &Path) -> Result<Generation, Unusable> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    decode(&bytes)
}

fn decode(bytes: &[u8]) -> Result<Generation, Unusable> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(if MAGIC.starts_with(bytes) { Unusable::Torn } else { Unusable::Foreign })?;
    let (format, rest) = rest.split_first_chunk().ok_or(Unusable::Torn)?;
    let format = u32::from_le_bytes(*format);
    if format != FORMAT {
        return Err(Unusable::Format(format));
    }
    let (number, rest) = rest.split_first_chunk().ok_or(Unusable::Torn)?;
    let (written, rest) = rest.split_first_chunk().ok_or(Unusable::Torn)?;
    let (length, rest) = rest.split_first_chunk().ok_or(Unusable::Torn)?;
    let (snapshot, checksum) = rest.split_last_chunk::<CHECKSUM>().ok_or(Unusable::Torn)?;
    if u64::try_from(snapshot.len()).ok() != Some(u64::from_le_bytes(*length)) {
        return Err(Unusable::Torn);
    }
    let summed = bytes.len().checked_sub(CHECKSUM).and_then(|end| bytes.get(..end)).ok_or(Unusable::Torn)?;
    if Sha256::digest(summed).as_slice() != checksum {
        return Err(Unusable::Checksum);
    }
    Ok(Generation {
        number: u64::from_le_bytes(*number),
        written_unix_ms: i64::from_le_bytes(*written),
        snapshot: v1::WatchResponse::decode(snapshot)?,
    })
}

fn encode(number: u64, written_unix_ms: i64, snapshot: &v1::WatchResponse) -> Vec<u8> {
    let length = snapshot.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER + length + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&written_unix_ms.to_le_bytes());
    bytes.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes());
    snapshot.encode_raw(&mut bytes);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// Writes a generation: whole under its name, or not at all, whenever the machine stops.
fn write(dir: &Path, number: u64, view: &View) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = dir.join("snapshot.tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    out.write_all(&encode(number, unix_ms_now(), &view.stored()))?;
    out.sync_all()?;
    fs::rename(&temporary, file(dir, number))?;
    File::open(dir)?.sync_all()
}

/// The task that keeps on disk what is installed.
pub struct Keeper {
    dir: PathBuf,
    current: Current,
    /// The generation written last.
    number: u64,
    /// Epoch and version of what it holds, when this task wrote it.
    kept: Option<(Arc<str>, u64)>,
    failing: bool,
}

impl Keeper {
    /// Keeps the services of `current` in `dir`, which is made when it is not there.
    pub fn new(dir: PathBuf, current: Current) -> Self {
        Self { dir, current, number: 0, kept: None, failing: false }
    }

    /// Writes what is installed, at most once a second, and what is left at `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut installed = self.current.follow();
        installed.mark_changed();
        let dir = self.dir.clone();
        let numbers = move || generations(&dir).into_iter().filter_map(|(_, read)| Some(read.ok()?.number)).max();
        self.number = tokio::task::spawn_blocking(numbers).await.ok().flatten().unwrap_or(0);
        let (mut due, mut rested) = (None, Instant::now());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {}
                changed = installed.changed(), if due.is_none() => match changed {
                    Ok(()) => {
                        due = Some(rested);
                        continue;
                    }
                    Err(_) => return,
                },
                () = sleep_until(due.unwrap_or(rested)), if due.is_some() => {}
            }
            let began = Instant::now();
            let written = self.write().await;
            rested = Instant::now() + WRITE_EVERY.max(began.elapsed() * REST);
            due = (!written).then(|| Instant::now() + RETRY);
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    /// Whether what is in force is on disk, or need not be.
    async fn write(&mut self) -> bool {
        let view = self.current.load();
        // While the control plane does not know every service, what is there is no better than what is kept.
        let held = (view.epoch.clone(), view.version);
        if !view.is_ready() || view.partial || self.kept.as_ref() == Some(&held) {
            return true;
        }
        let (dir, number) = (self.dir.clone(), self.number + 1);
        let done = tokio::task::spawn_blocking(move || write(&dir, number, &view)).await;
        match done.unwrap_or_else(|fault| Err(io::Error::other(fault))) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    info!(dir = %self.dir.display(), "the last good snapshot is written again");
                }
                (self.number, self.kept) = (number, Some(held));
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(dir = %self.dir.display(), %error, "the last good snapshot cannot be written; it is tried again and again");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
