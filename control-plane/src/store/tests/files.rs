//! Real files in a real directory.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::*;

/// A directory of its own for a test, gone after it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("furt-store-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A state_dir that does not exist yet.
    fn state(&self) -> PathBuf {
        self.0.join("var/furt")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn batch(at: usize) -> Batch {
    Batch { puts: vec![(key(at, 0), vec![at as u8; 700])], deletes: vec![key(at + 1, 0)], alive_unix_ms: at as i64 + 1 }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn says(error: &StoreError, parts: &[&str]) {
    let said = error.to_string();
    for part in parts {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
}

#[test]
fn what_was_committed_is_there_after_a_clean_end_and_after_none() {
    let scratch = Scratch::new();
    let mut model = Model::default();
    for round in 0..6 {
        let mut store = Redb::new(&scratch.state());
        assert!(store.load().unwrap() == model, "round {round}");
        store.commit(&batch(round)).unwrap();
        model = model.after(&batch(round));
        let copy = scratch.0.join(format!("killed-{round}"));
        fs::create_dir(&copy).unwrap();
        fs::copy(scratch.state().join("registry.redb"), copy.join("registry.redb")).unwrap();
        assert!(Redb::new(&copy).load().unwrap() == model, "round {round}, without a clean end");
    }
}

#[test]
fn the_directory_and_the_file_are_the_owners_alone() {
    let scratch = Scratch::new();
    let mut store = Redb::new(&scratch.state());
    store.load().unwrap();
    assert_eq!(mode(&scratch.0.join("var")), 0o700);
    assert_eq!(mode(&scratch.state()), 0o700);
    assert_eq!(mode(&scratch.state().join("registry.redb")), 0o600);
    assert_eq!(names(&scratch.state()), ["registry.redb"]);
}

#[test]
fn a_second_furt_is_told_that_the_file_is_in_use() {
    let scratch = Scratch::new();
    let mut store = Redb::new(&scratch.state());
    store.load().unwrap();
    let mut second = Redb::new(&scratch.state());
    let error = second.load().unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    says(&error, &["var/furt/registry.redb", "another furt", "state_dir"]);
    store.commit(&batch(1)).unwrap();
    drop(store);
    assert!(second.load().unwrap() == Model::default().after(&batch(1)));
}

#[test]
fn of_many_that_begin_at_once_one_gets_the_store() {
    for _ in 0..10 {
        let scratch = Scratch::new();
        let state = scratch.state();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let begin = || {
                let mut store = Redb::new(&state);
                store.load().map(|loaded| (store, loaded))
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut owners = 0;
        for outcome in outcomes {
            match outcome {
                Ok((mut store, loaded)) => {
                    owners += 1;
                    assert!(loaded == Model::default());
                    store.commit(&batch(1)).unwrap();
                }
                Err(error) => assert!(matches!(error, StoreError::Locked { .. }), "{error}"),
            }
        }
        assert_eq!(owners, 1);
        assert!(Redb::new(&state).load().unwrap() == Model::default().after(&batch(1)));
    }
}

#[test]
fn what_cannot_be_written_is_said_to_be_so() {
    let scratch = Scratch::new();
    let file = scratch.0.join("file");
    fs::write(&file, "not a directory").unwrap();
    let taken = scratch.0.join("taken");
    fs::create_dir_all(taken.join("registry.redb")).unwrap();
    // Nobody makes directories in /sys, root included.
    for state in [file.clone(), file.join("below"), taken, "/sys/furt-state".into()] {
        let error = Redb::new(&state).load().unwrap_err();
        assert!(matches!(error, StoreError::Unwritable { .. }), "{}: {error}", state.display());
        says(&error, &[state.to_str().unwrap(), "user that runs furt", "state_dir"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a directory");
}

#[test]
fn a_directory_or_a_file_without_permission_is_unwritable() {
    let scratch = Scratch::new();
    let state = scratch.state();
    drop(Redb::new(&state).load().unwrap());
    // Root may write everywhere, whatever the mode.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    for (path, mode) in [(state.join("registry.redb"), 0o400), (state.clone(), 0o000)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = Redb::new(&state).load();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        match loaded {
            Ok(loaded) => assert!(root && loaded == Model::default()),
            Err(error) => assert!(!root && matches!(error, StoreError::Unwritable { .. }), "{error}"),
        }
    }
}

#[test]
fn a_newer_format_is_refused_with_the_remedy_and_left_alone() {
    let scratch = Scratch::new();
    let state = scratch.state();
    let mut store = Redb::new(&state);
    store.load().unwrap();
    store.commit(&batch(1)).unwrap();
    drop(store);
    set_format(&state, 2);
    let error = Redb::new(&state).load().unwrap_err();
    assert!(matches!(error, StoreError::Newer { format: 2, known: 1, .. }), "{error}");
    says(&error, &["registry.redb", "newer furt", "run that version", "move the file away", "register again by themselves"]);
    set_format(&state, 1);
    assert!(Redb::new(&state).load().unwrap() == Model::default().after(&batch(1)));
    set_format(&state, 0);
    assert!(matches!(Redb::new(&state).load().unwrap_err(), StoreError::Corrupt { .. }), "there never was a format 0");
}

fn set_format(state: &Path, format: u64) {
    let database = redb::Database::create(state.join("registry.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", format).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_database_of_another_program_and_a_record_of_another_key_are_damage() {
    let scratch = Scratch::new();
    let state = scratch.state();
    fs::create_dir_all(&state).unwrap();
    drop(redb::Database::create(state.join("registry.redb")).unwrap());
    let error = Redb::new(&state).load().unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    fs::remove_file(state.join("registry.redb")).unwrap();

    let mut store = Redb::new(&state);
    store.load().unwrap();
    store.commit(&batch(1)).unwrap();
    drop(store);
    let database = redb::Database::create(state.join("registry.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let records = redb::TableDefinition::<(&str, &str), &[u8]>::new("instances");
        let mut table = transaction.open_table(records).unwrap();
        let sealed = table.remove(("service-1", "instance-0")).unwrap().unwrap().value().to_vec();
        table.insert(("service-2", "instance-0"), sealed.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let error = Redb::new(&state).load().unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    says(&error, &["registry.redb", "service-2", "checksum", "backup", "move it away", "register again by themselves"]);
}

#[test]
fn a_damaged_file_is_left_as_it_is_and_moving_it_away_begins_a_new_one() {
    let scratch = Scratch::new();
    let state = scratch.state();
    let file = state.join("registry.redb");
    fs::create_dir_all(&state).unwrap();
    for content in [&b""[..], b"something else"] {
        fs::write(&file, content).unwrap();
        let mut store = Redb::new(&state);
        let error = store.load().unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(store.recover(&[], 0).is_err(), "nothing was read, so nothing is known");
        assert_eq!(fs::read(&file).unwrap(), content);
        fs::rename(&file, scratch.0.join("aside")).unwrap();
        assert!(store.load().unwrap() == Model::default());
        drop(store);
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_file_that_is_moved_away_while_furt_runs_is_noticed_and_written_anew() {
    let scratch = Scratch::new();
    let state = scratch.state();
    let mut store = Redb::new(&state);
    store.load().unwrap();
    store.commit(&batch(1)).unwrap();
    let model = Model::default().after(&batch(1));
    let ways: [&dyn Fn(); 3] =
        [&|| fs::rename(state.join("registry.redb"), scratch.0.join("aside")).unwrap(), &|| fs::remove_dir_all(&state).unwrap(), &|| {
            fs::copy(scratch.0.join("aside"), state.join("copy")).unwrap();
            fs::rename(state.join("copy"), state.join("registry.redb")).unwrap();
        }];
    for (way, take_away) in ways.into_iter().enumerate() {
        take_away();
        let error = store.commit(&batch(2)).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "way {way}: {error}");
        says(&error, &["moved away"]);
        store.recover(&model.records(), model.alive_unix_ms).unwrap();
        store.commit(&batch(1)).unwrap();
        assert_eq!(names(&state), ["registry.redb"], "way {way}");
    }
    drop(store);
    assert!(Redb::new(&state).load().unwrap() == model);
}

#[test]
fn what_a_killed_furt_left_half_built_is_swept() {
    let scratch = Scratch::new();
    let state = scratch.state();
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("registry.redb.0123456789abcdef.new"), "half").unwrap();
    fs::write(state.join("notes.new"), "an operator's").unwrap();
    let mut store = Redb::new(&state);
    assert!(store.load().unwrap() == Model::default());
    assert_eq!(names(&state), ["notes.new", "registry.redb"]);
}

#[test]
fn a_relative_state_dir_that_is_a_file_is_unwritable() {
    let error = Redb::new(Path::new("Cargo.toml")).load().unwrap_err();
    assert!(matches!(error, StoreError::Unwritable { .. }), "{error}");
}
