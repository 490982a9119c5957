//! Calls that fail: nothing is acknowledged that is not durable, the class of the error is told, and when the fault
//! is over the store recovers to exactly what was acknowledged.

use std::{io, path::Path};

use super::{disk::*, *};

/// From errno.h.
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

fn class(error: &StoreError) -> &'static str {
    match error {
        StoreError::Corrupt { .. } => "corrupt",
        StoreError::Locked { .. } => "locked",
        StoreError::Unwritable { .. } => "unwritable",
        StoreError::Full { .. } => "full",
        StoreError::Newer { .. } => "newer",
        StoreError::Io { .. } => "io",
    }
}

#[test]
fn every_error_of_the_system_has_its_class() {
    let cases = [
        (ENOSPC, "full"),
        (EDQUOT, "full"),
        (EFBIG, "full"),
        (EACCES, "unwritable"),
        (EROFS, "unwritable"),
        (ENOTDIR, "unwritable"),
        (EISDIR, "unwritable"),
        (EIO, "io"),
    ];
    for (errno, expected) in cases {
        let error = StoreError::system(Path::new("/state/registry.redb"), &io::Error::from_raw_os_error(errno));
        assert_eq!(class(&error), expected, "{errno}");
        assert!(error.to_string().contains("/state/registry.redb"), "{error}");
    }
}

/// A store with some batches in it, and what it holds.
fn filled(disk: &Disk, rng: &mut fastrand::Rng) -> (Redb<DiskPlace>, Model) {
    let (mut store, _) = load(disk.place()).unwrap();
    let mut model = Model::default();
    for batch in random_batches(rng, 4) {
        store.commit(&batch).unwrap();
        model = model.after(&batch);
    }
    (store, model)
}

#[test]
fn a_commit_that_meets_an_error_at_any_call_acknowledges_nothing_and_recovers() {
    for (errno, expected) in [(EIO, "io"), (ENOSPC, "full"), (EDQUOT, "full"), (EFBIG, "full")] {
        for nth in 0.. {
            let mut rng = fastrand::Rng::with_seed(11);
            let disk = Disk::default();
            let (mut store, acknowledged) = filled(&disk, &mut rng);
            let batch = random_batches(&mut rng, 1).remove(0);
            let from = disk.calls() + nth;
            disk.fail(from..from + 1, errno);
            let committed = store.commit(&batch);
            if disk.calls() <= from {
                committed.unwrap();
                assert!(nth >= 4, "a commit has at least two writes and two syncs");
                break;
            }
            assert_eq!(class(&committed.unwrap_err()), expected, "call {nth}");
            assert_eq!(class(&store.commit(&batch).unwrap_err()), "io", "closed until it has recovered");
            store.recover(&acknowledged.records(), acknowledged.alive_unix_ms).unwrap();
            let (_, loaded) = load(disk.after_power_cut(&mut rng).place()).unwrap();
            assert!(loaded == acknowledged, "call {nth}: a batch that was refused is there, or one that was not is not");
            store.commit(&batch).unwrap();
            let (_, loaded) = load(disk.after_power_cut(&mut rng).place()).unwrap();
            assert!(loaded == acknowledged.after(&batch), "call {nth}");
        }
    }
}

#[test]
fn a_recovery_that_meets_an_error_at_any_call_can_be_tried_again() {
    for nth in 0.. {
        let mut rng = fastrand::Rng::with_seed(12);
        let disk = Disk::default();
        let (mut store, acknowledged) = filled(&disk, &mut rng);
        disk.fail_next_sync();
        assert!(store.commit(&Batch::default()).is_err());
        let from = disk.calls() + nth;
        disk.fail(from..from + 1, ENOSPC);
        let recovered = store.recover(&acknowledged.records(), acknowledged.alive_unix_ms);
        if disk.calls() <= from {
            recovered.unwrap();
            assert!(nth >= 4, "a recovery begins, writes, syncs and installs");
            break;
        }
        assert_eq!(class(&recovered.unwrap_err()), "full", "call {nth}");
        let (_, loaded) = load(disk.after_power_cut(&mut rng).place()).unwrap();
        assert!(loaded == acknowledged || loaded == acknowledged.after(&Batch::default()), "call {nth}");
        store.recover(&acknowledged.records(), acknowledged.alive_unix_ms).unwrap();
        let (_, loaded) = load(disk.after_power_cut(&mut rng).place()).unwrap();
        assert!(loaded == acknowledged, "call {nth}");
    }
}

#[test]
fn an_error_at_any_call_of_the_opening_is_told_and_the_next_opening_finds_everything() {
    let mut rng = fastrand::Rng::with_seed(13);
    let disk = Disk::default();
    let (store, acknowledged) = filled(&disk, &mut rng);
    let killed = Disk::with(disk.image());
    drop(store);
    let ended = Disk::with(disk.image());
    for (before, expected) in [(Disk::default(), Model::default()), (killed, acknowledged.clone()), (ended, acknowledged)] {
        for nth in 0.. {
            let disk = before.copy();
            disk.fail(nth..nth + 1, ENOSPC);
            let mut store = Redb::at(disk.place());
            let first = store.load();
            if disk.calls() <= nth {
                assert!(first.unwrap() == expected);
                assert!(nth >= 2, "an opening writes and syncs");
                break;
            }
            match first {
                Err(error) => assert_eq!(class(&error), "full", "call {nth}"),
                // A new file is closed once before it is opened; what fails there is done again by the opening.
                Ok(loaded) => assert!(before.image().is_empty() && loaded == expected, "call {nth}"),
            }
            assert!(store.load().unwrap() == expected, "call {nth}");
        }
    }
}

#[test]
fn a_store_that_was_never_read_is_not_written_over() {
    let mut rng = fastrand::Rng::with_seed(14);
    let disk = Disk::default();
    let (store, acknowledged) = filled(&disk, &mut rng);
    drop(store);
    let mut store = Redb::at(disk.place());
    assert_eq!(class(&store.recover(&[], 0).unwrap_err()), "io");
    assert_eq!(class(&store.commit(&Batch::default()).unwrap_err()), "io");
    assert!(store.load().unwrap() == acknowledged);
}
