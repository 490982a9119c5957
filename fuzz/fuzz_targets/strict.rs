//! `furt_data_plane::strict`: any bytes in any cut get one verdict, that of an independent reader, and what may pass
//! before a fault has none.
#![no_main]

#[path = "../../data-plane/src/strict/reference.rs"]
mod reference;

use furt_data_plane::strict::{Fault, Limits, Strict};
use libfuzzer_sys::fuzz_target;
use reference::{End, Most, read_all};

/// Small, so that they are met.
const LIMITS: Limits = Limits { head: 512, fields: 8, target: 100 };
const MOST: Most = Most { head: LIMITS.head, fields: LIMITS.fields, target: LIMITS.target };

fuzz_target!(|data: &[u8]| {
    let (requests, end) = read_all(data, &MOST);
    let whole = read(data, |_| usize::MAX);
    let mut state = data.iter().fold(data.len(), |state, byte| state.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let by_chance = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 64
    };
    for (verdict, at) in [whole, read(data, |_| 1), read(data, |place| data.len() / 2 - (data.len() / 2).min(place)), read(data, by_chance)]
    {
        assert_eq!(verdict, whole.0, "the cut makes a difference");
        match verdict {
            Verdict::Refused(fault) => {
                assert_eq!(End::Refused(status(fault)), end, "{fault:?}");
                let (passed, end) = read_all(&data[..at], &MOST);
                assert!(passed == requests && !matches!(end, End::Refused(_)), "{at} bytes pass before {fault:?}");
            }
            Verdict::Between => assert_eq!(end, End::Between),
            Verdict::Inside => assert_eq!(end, End::Inside),
        }
    }
    for request in requests {
        assert!(!request.method.is_empty() && !request.target.is_empty() && request.body.len() <= data.len());
        assert!(request.fields.len() <= LIMITS.fields && request.trailers.len() <= LIMITS.fields);
    }
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Between,
    Inside,
    Refused(Fault),
}

/// Reads in pieces, of at least one byte, whose length `next` says by their place. The verdict, and how many bytes pass.
fn read(data: &[u8], mut next: impl FnMut(usize) -> usize) -> (Verdict, usize) {
    let mut strict = Strict::new();
    let mut place = 0;
    while place < data.len() {
        let length = next(place).clamp(1, data.len() - place);
        if let Err(refused) = strict.read(&data[place..place + length], &LIMITS) {
            return (Verdict::Refused(refused.fault), place + refused.at);
        }
        place += length;
    }
    (if strict.is_between() { Verdict::Between } else { Verdict::Inside }, place)
}

fn status(fault: Fault) -> u16 {
    match fault {
        Fault::Malformed(_) | Fault::Fragment => 400,
        Fault::UriTooLong => 414,
        Fault::HeadersTooLarge => 431,
    }
}
