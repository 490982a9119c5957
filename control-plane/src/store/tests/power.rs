//! Power cuts at every call, with anything of what was not synced on the disk: the last acknowledged state is there,
//! or the one that was being committed, whole; and the store always opens.

use super::{disk::*, *};

/// How many random scripts a test runs; more by the environment than CI has time for.
fn scripts(otherwise: u64) -> u64 {
    std::env::var("FURT_POWER_CUT_SCRIPTS").map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What a run had come to when the power went.
#[derive(Debug, Clone, Copy)]
struct Reached {
    /// Batches that were acknowledged.
    acknowledged: usize,
    /// One more was being committed.
    in_flight: bool,
}

/// A run of batches on a disk. The commit of batch `broken` meets a failing sync first, and the store recovers.
struct Script {
    batches: Vec<Batch>,
    states: Vec<Model>,
    broken: Option<usize>,
}

impl Script {
    fn new(rng: &mut fastrand::Rng, length: usize, broken: Option<usize>) -> Self {
        let batches = random_batches(rng, length);
        Self { states: Model::states(&batches), batches, broken }
    }

    fn run(&self, disk: &Disk) -> Reached {
        let mut reached = Reached { acknowledged: 0, in_flight: false };
        let Ok((mut store, _)) = load(disk.place()) else { return reached };
        for (at, batch) in self.batches.iter().enumerate() {
            reached = Reached { acknowledged: at, in_flight: true };
            if self.broken == Some(at) {
                disk.fail_next_sync();
                assert!(store.commit(batch).is_err(), "acknowledged without a sync");
                let state = &self.states[at];
                if store.recover(&state.records(), state.alive_unix_ms).is_err() {
                    return reached;
                }
                assert!(!disk.has_unsynced(), "recovered before it was durable");
            }
            if store.commit(batch).is_err() {
                return reached;
            }
            assert!(!disk.has_unsynced(), "acknowledged before it was durable");
        }
        Reached { acknowledged: self.batches.len(), in_flight: false }
    }

    /// The state that is there when the power is back.
    fn check(&self, disk: &Disk, reached: Reached, what: &str) {
        let (_, loaded) = load(disk.place()).unwrap_or_else(|error| panic!("{what}: does not open: {error}"));
        let last = loaded == self.states[reached.acknowledged];
        let next = reached.in_flight && loaded == self.states[reached.acknowledged + 1];
        assert!(last || next, "{what}: {reached:?}, and there are {} records", loaded.records.len());
    }

    /// The run again and again, each time with a power cut one call later.
    fn cut_everywhere(&self, seed: u64, rng: &mut fastrand::Rng) {
        let whole = Disk::default();
        self.run(&whole);
        for cut in 0..=whole.calls() {
            let disk = Disk::default();
            disk.cut_power_at(cut);
            let reached = self.run(&disk);
            for way in 0..2 {
                self.check(&disk.after_power_cut(rng), reached, &format!("seed {seed}, cut {cut}, way {way}"));
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_call_leaves_the_last_acknowledged_state_or_the_one_in_flight() {
    for seed in 0..scripts(3) {
        let mut rng = fastrand::Rng::with_seed(seed);
        Script::new(&mut rng, 6, None).cut_everywhere(seed, &mut rng);
    }
}

#[test]
fn a_power_cut_at_any_call_around_a_failed_sync_and_the_recovery_loses_nothing() {
    for seed in 1_000..1_000 + scripts(2) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let broken = rng.usize(..5);
        Script::new(&mut rng, 5, Some(broken)).cut_everywhere(seed, &mut rng);
    }
}

/// One store through many power cuts, some of them while it is being opened after the one before.
#[test]
fn a_store_survives_any_number_of_power_cuts_one_after_another() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut disk, mut before, mut in_flight) = (Disk::default(), Model::default(), None);
    for round in 0..scripts(3) * 30 {
        let opening = rng.u8(..4) == 0;
        disk.cut_power_at(if opening { rng.usize(..30) } else { rng.usize(30..300) });
        let batches = random_batches(&mut rng, 8);
        if let Ok((mut store, loaded)) = load(disk.place()) {
            let landed = in_flight.take().filter(|next| loaded == *next);
            assert!(landed.is_some() || loaded == before, "round {round}: {} records", loaded.records.len());
            before = landed.unwrap_or(before);
            for batch in &batches {
                let next = before.after(batch);
                if store.commit(batch).is_err() {
                    in_flight = Some(next);
                    break;
                }
                before = next;
            }
        }
        disk = disk.after_power_cut(&mut rng);
        let (_, loaded) = load(disk.copy().place()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(loaded == before || in_flight.as_ref().is_some_and(|next| loaded == *next), "round {round}");
    }
}

#[test]
fn the_sync_of_a_batch_has_returned_before_it_is_acknowledged() {
    let disk = Disk::default();
    let (mut store, _) = load(disk.place()).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    for batch in random_batches(&mut rng, 30) {
        let before = disk.log().len();
        store.commit(&batch).unwrap();
        let log = disk.log();
        let calls = &log[before..];
        let last = |wanted| calls.iter().rposition(|call| *call == wanted);
        assert!(last(Call::Synced) > last(Call::Write), "{calls:?}");
        // One for each phase, and one before them when the file grew.
        let syncs = calls.iter().filter(|call| **call == Call::Synced).count();
        assert_eq!(syncs, 2 + usize::from(calls.first() == Some(&Call::Length)), "{calls:?}");
    }
}
