//! What can be wrong with a store, by what there is to do about it.
//!
//! Here: the classes, their words, and which fault of the system or of redb is which. Not here: what furt does then.

use std::{
    any::Any,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why the store did not do what was asked. What it says is for an operator: what is wrong, and the way out.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file is not what furt wrote.
    #[error(
        "{} is damaged ({cause}): restore it from a backup, or move it away and furt begins a new one, \
         in which services register again by themselves; until they have, their requests get 404",
        file.display()
    )]
    Corrupt {
        /// The store's file.
        file: PathBuf,
        /// What does not add up.
        cause: String,
    },
    /// Another process holds the file.
    #[error(
        "{} is in use by another furt: stop that one, or give this one a state_dir of its own in furt.conf",
        file.display()
    )]
    Locked {
        /// The store's file.
        file: PathBuf,
    },
    /// Permissions, a read-only filesystem, something that is no directory.
    #[error(
        "furt cannot write {} ({cause}): let the user that runs furt write there, \
         or set state_dir in furt.conf to a directory that it may write",
        file.display()
    )]
    Unwritable {
        /// The store's file.
        file: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// No room: the disk, a quota, or a limit on the size of files.
    #[error(
        "there is no room to write {} ({cause}): free some space there, and furt goes on by itself",
        file.display()
    )]
    Full {
        /// The store's file.
        file: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Written by a furt that is newer than this one.
    #[error(
        "{} was written by a newer furt (format {format}, this one reads up to {known}): run that version, \
         or move the file away and furt begins a new one, in which services register again by themselves; \
         until they have, their requests get 404",
        file.display()
    )]
    Newer {
        /// The store's file.
        file: PathBuf,
        /// What the file says.
        format: u64,
        /// The newest that this furt reads.
        known: u64,
    },
    /// Anything else that reading or writing ran into.
    #[error("{} cannot be read or written ({cause}): see to its disk, and furt goes on by itself", file.display())]
    Io {
        /// The store's file.
        file: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl StoreError {
    /// The class of what the system said about `file`.
    pub(crate) fn system(file: &Path, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let (file, cause) = (file.to_path_buf(), error.to_string());
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full { file, cause },
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidFilename => {
                Self::Unwritable { file, cause }
            }
            // What redb says of a file that is no database of its own, and of one that ends too soon.
            Kind::InvalidData | Kind::UnexpectedEof => Self::Corrupt { file, cause },
            _ => Self::Io { file, cause },
        }
    }

    /// The class of what redb said about `file`.
    pub(crate) fn database(file: &Path, error: redb::Error) -> Self {
        use redb::Error as E;
        let path = file.to_path_buf();
        match error {
            E::Io(error) => Self::system(file, &error),
            E::DatabaseAlreadyOpen | E::LockProtocolMismatch => Self::Locked { file: path },
            E::Corrupted(_)
            | E::UpgradeRequired(_)
            | E::TableTypeMismatch { .. }
            | E::TypeDefinitionChanged { .. }
            | E::TableIsMultimap(_)
            | E::TableIsNotMultimap(_)
            | E::TableDoesNotExist(_) => Self::Corrupt { file: path, cause: error.to_string() },
            other => Self::Io { file: path, cause: other.to_string() },
        }
    }

    /// redb panicked. It does so when a file breaks its assumptions, so that is what this says.
    pub(crate) fn panic(file: &Path, payload: &(dyn Any + Send)) -> Self {
        let words = payload.downcast_ref::<&str>().copied();
        let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Corrupt { file: file.to_path_buf(), cause: words.unwrap_or("it broke the reader").to_owned() }
    }
}
