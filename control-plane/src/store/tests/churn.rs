//! What is written again and again does not make the file grow.

use super::{disk::*, *};

/// Bytes of a record; a registration with a few routes takes about this.
const RECORD: u32 = 400;

#[test]
fn a_hundred_thousand_rewrites_of_the_same_records_do_not_grow_the_file() {
    let disk = Disk::default();
    let (mut store, _) = load(disk.place()).unwrap();
    let mut sizes = Vec::new();
    for round in 0..6_250_u32 {
        let value = vec![round as u8; (RECORD + round % 50) as usize];
        let puts = (0..16).map(|at| (key(at, 0), value.clone())).collect();
        store.commit(&Batch { puts, deletes: Vec::new(), alive_unix_ms: round.into() }).unwrap();
        if round % 625 == 0 {
            sizes.push(disk.image().len());
        }
    }
    let most = sizes.iter().max().unwrap();
    assert!(*most <= 256 << 10, "{sizes:?}");
    drop(store);
    assert!(disk.image().len() <= 256 << 10, "{}", disk.image().len());
}
