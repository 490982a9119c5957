//! Where the store's file lies, and how one comes to be there: whole, or not at all.
//!
//! A file is built under another name beside it, synced, and only then put in its place, so that whatever has the
//! store's name is whole. Here: names, modes, directories, what is synced when. Not here: what the file holds.

use std::{
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use redb::{StorageBackend, backends::FileBackend};

/// The store's file in `state_dir`.
const FILE: &str = "registry.redb";
/// Ends the name of a file that is being built.
const BUILDING: &str = ".new";

/// Where a store's file lies. Tests have one that fails and loses power.
pub trait Place: Debug + Send + 'static {
    /// How a file there is read and written.
    type File: StorageBackend;

    /// The name of the file, for people.
    fn path(&self) -> &Path;

    /// The file, when there is one. Its name is durable from here on.
    fn existing(&mut self) -> io::Result<Option<Self::File>>;

    /// An empty file under a name of its own, to be put in place with [`install`](Self::install).
    fn begin(&mut self) -> io::Result<Self::File>;

    /// Puts the file that was begun last in its place, durably: over what is there, or failing with `AlreadyExists`.
    fn install(&mut self, over: bool) -> io::Result<()>;

    /// Removes the file that was begun last and not installed, if there is one.
    fn discard(&mut self);

    /// Removes what earlier processes began and did not install.
    fn sweep(&mut self);

    /// Whether the file that was opened or installed last is still in its place.
    fn in_place(&self) -> io::Result<bool>;
}

/// `state_dir`.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The name and identity of the file that was begun and is not installed.
    building: Option<(PathBuf, Identity)>,
    opened: Option<Identity>,
}

/// Tells a file from another that later has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Directory {
    /// `state_dir` need not exist. Nothing is touched yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), building: None, opened: None }
    }

    fn directory(&self) -> &Path {
        named(self.path.parent())
    }
}

impl Place for Directory {
    type File = FileBackend;

    fn path(&self) -> &Path {
        &self.path
    }

    fn existing(&mut self) -> io::Result<Option<FileBackend>> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.opened = Some(Identity::of(&file.metadata()?));
        // Whoever put it there may have been killed before it synced the name.
        sync_directory(self.directory())?;
        backend(file).map(Some)
    }

    fn begin(&mut self) -> io::Result<FileBackend> {
        make_directory(self.directory())?;
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{:016x}{BUILDING}", fastrand::u64(..)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
        self.building = Some((name.into(), Identity::of(&file.metadata()?)));
        backend(file)
    }

    fn install(&mut self, over: bool) -> io::Result<()> {
        let Some((name, identity)) = &self.building else { return Err(io::ErrorKind::NotFound.into()) };
        let linked = if over { Err(io::ErrorKind::Unsupported.into()) } else { fs::hard_link(name, &self.path) };
        match linked {
            // The second name is of no use now. Left behind by a kill it does no harm, and is swept.
            Ok(()) => drop(fs::remove_file(name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // A link is how a file that is there already is not replaced; some filesystems have none.
            Err(_) => fs::rename(name, &self.path)?,
        }
        self.opened = Some(*identity);
        self.building = None;
        sync_directory(self.directory())
    }

    fn discard(&mut self) {
        if let Some((name, _)) = self.building.take() {
            drop(fs::remove_file(name));
        }
    }

    fn sweep(&mut self) {
        let Ok(entries) = fs::read_dir(self.directory()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stale = name.to_str().and_then(|name| name.strip_prefix(FILE)?.strip_suffix(BUILDING));
            if stale.is_some() {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    fn in_place(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(self.opened == Some(Identity::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn backend(file: File) -> io::Result<FileBackend> {
    FileBackend::new(file).map_err(io::Error::other)
}

/// The empty path is the working directory.
fn named(path: Option<&Path>) -> &Path {
    path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes `directory` and its parents, each durably in the one above.
fn make_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !named(Some(path)).exists()).collect();
    match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        // It exists and is not a directory.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(io::ErrorKind::NotADirectory.into()),
        made => made?,
    }
    missing.iter().try_for_each(|made| sync_directory(named(made.parent())))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
