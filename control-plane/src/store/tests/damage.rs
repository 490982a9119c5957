//! Bytes that change by themselves: what is read is what was written, or the file is said to be damaged.

use super::{disk::*, *};

/// Bytes of redb's head: magic number, layout, two states.
const HEAD: usize = 320;
/// Where in it stands which of the two states counts.
const WHICH_BYTE: usize = 9;

/// A store's file after a clean end and as a kill leaves it, and the states it went through.
fn images() -> ([(Vec<u8>, &'static str); 2], Vec<Model>) {
    let mut rng = fastrand::Rng::with_seed(21);
    let disk = Disk::default();
    let (mut store, _) = load(disk.place()).unwrap();
    let batches = random_batches(&mut rng, 12);
    batches.iter().for_each(|batch| store.commit(batch).unwrap());
    let killed = disk.image();
    drop(store);
    ([(disk.image(), "ended"), (killed, "killed")], Model::states(&batches))
}

/// True: it opens with the right records. False: it is said to be damaged.
fn opens(image: Vec<u8>, right: &[Model], what: &str) -> bool {
    match load(Disk::with(image).place()) {
        Ok((_, loaded)) => {
            assert!(right.iter().any(|model| loaded == *model), "{what}: silently wrong: {} records", loaded.records.len());
            true
        }
        Err(StoreError::Corrupt { .. }) => false,
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn a_file_cut_short_is_damaged_or_has_lost_only_free_space() {
    let (images, states) = images();
    let right = &states[states.len() - 1..];
    for (image, name) in images {
        let mut lengths: Vec<usize> = (0..image.len()).step_by(4096 * 13).collect();
        lengths.extend((0..400).step_by(13).chain(image.len() - 10..image.len()));
        for length in lengths {
            let opened = opens(image[..length].to_vec(), right, &format!("{name}, cut at {length}"));
            assert!(!opened || name == "killed", "a file that was closed says how long it is; cut at {length} it opens");
        }
        assert!(opens(image, right, name));
    }
}

#[test]
fn a_changed_bit_anywhere_is_found_or_does_not_matter() {
    let (images, states) = images();
    for (image, name) in images {
        // Most of the file is free; what is not zero is where it hurts.
        let written: Vec<usize> = (HEAD..image.len()).filter(|at| image[*at] != 0).collect();
        let mut rng = fastrand::Rng::with_seed(22);
        let mut found = 0;
        for _ in 0..300 {
            let at = written[rng.usize(..written.len())];
            let mut changed = image.clone();
            changed[at] ^= 1 << rng.u8(..8);
            found += usize::from(!opens(changed, &states[states.len() - 1..], &format!("{name} at {at}")));
        }
        assert!(found > 50, "{name}: only {found} of 300 changes were found");
    }
}

#[test]
fn a_changed_bit_in_the_head_is_found_or_does_not_matter() {
    let (images, states) = images();
    for (image, name) in images {
        for at in 0..HEAD {
            for bit in [0, 2] {
                // The one bit that says which of the two newest states counts: turned, it is just what a kill leaves
                // in the middle of a commit, and the batch before the last counts.
                let states_back = if name == "killed" && (at, bit) == (WHICH_BYTE, 0) { 2 } else { 1 };
                let mut changed = image.clone();
                changed[at] ^= 1 << bit;
                opens(changed, &states[states.len() - states_back..], &format!("{name} at {at} bit {bit}"));
            }
        }
    }
}

#[test]
fn a_file_of_anything_else_is_damaged_and_left_as_it_is() {
    let mut rng = fastrand::Rng::with_seed(23);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect();
    for image in [Vec::new(), b"[server]\nport = 1\n".to_vec(), vec![0; 1 << 20], noise] {
        let disk = Disk::with(image.clone());
        assert!(matches!(load(disk.place()), Err(StoreError::Corrupt { .. })), "{} bytes", image.len());
        assert!(disk.image() == image, "{} bytes were changed", image.len());
    }
}
