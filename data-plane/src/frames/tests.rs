use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const PRELUDE: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PRIORITY: u8 = 2;
const GREASE: u8 = 0xBA;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A connection that has begun at time 0.
fn begun() -> Frames {
    let mut frames = Frames::new(0);
    assert_eq!(frames.read(PRELUDE, 0), Ok(()));
    assert_eq!(frames.read(&frame(kind::SETTINGS, 0, 0, &[]), 0), Ok(()));
    // What that took of the budget is not what the tests are about.
    frames.settings = Budget::new(SETTINGS, 0);
    frames
}

/// How many of these frames are taken in a row, up to `most`.
fn taken(frames: &mut Frames, bytes: &[u8], now: u64, most: usize) -> usize {
    (0..most).find(|_| frames.read(bytes, now).is_err()).unwrap_or(most)
}

#[test]
fn each_kind_of_flood_has_its_budget_which_comes_back_with_time() {
    let update = |increment: u32| frame(kind::WINDOW_UPDATE, 0, 1, &increment.to_be_bytes());
    // What, how many at once, how many more after a second.
    let cases = [
        ("resets", frame(kind::RST_STREAM, 0, 1, &[0; 4]), 400, 100),
        ("settings", frame(kind::SETTINGS, 0, 0, &[0; 6]), 100, 10),
        ("pings", frame(kind::PING, 0, 0, &[0; 8]), 200, 10),
        ("answers to pings", frame(kind::PING, END_STREAM_OR_ACK, 0, &[0; 8]), 10, 1),
        ("priorities", frame(PRIORITY, 0, 3, &[0; 5]), 1_000, 200),
        ("grease", frame(GREASE, 0xFF, 7, b"whatever"), 1_000, 200),
        ("goaways", frame(kind::GOAWAY, 0, 0, &[0; 8]), 1_000, 200),
        ("updates", update(1_000), 2_000, 100),
        // The others' budget is the smaller one here.
        ("dribbles", update(1), 2_000, 100),
        ("morsels", frame(kind::DATA, 0, 1, b"x"), 50_000, 50_000),
        ("padding", frame(kind::DATA, PADDED, 1, &[&[255], &[0; 300][..]].concat()), 50_000, 50_000),
    ];
    for (what, bytes, at_once, after_a_second) in cases {
        // In the same state twice: what is refused once stays refused.
        let mut frames = begun();
        assert_eq!(taken(&mut frames, &bytes, SECOND / 1_000, 200_000), at_once, "{what}");
        assert!(frames.read(&[], 3_600 * SECOND).is_err(), "{what}");
        let mut frames = begun();
        assert_eq!(taken(&mut frames, &bytes, SECOND, at_once), at_once, "{what}");
        assert_eq!(taken(&mut frames, &bytes, 2 * SECOND, 200_000), after_a_second, "{what}");
    }
}

#[test]
fn what_was_written_pays_for_updates_and_pings() {
    let update = frame(kind::WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes());
    let mut frames = begun();
    frames.wrote(8 * 5_000);
    assert_eq!(taken(&mut frames, &update, 0, 100_000), 7_000);
    let mut frames = begun();
    frames.wrote(usize::MAX);
    assert_eq!(taken(&mut frames, &update, 0, 2_000_000), 1_002_000, "no more than the largest windows hold");

    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let mut frames = begun();
    frames.wrote(64 * 500);
    assert_eq!(taken(&mut frames, &ping, 0, 10_000), 700);
    let mut frames = begun();
    let mut pings = 0;
    while pings < 10_000 && frames.read(&ping, 0).is_ok() {
        frames.wrote(17);
        pings += 1;
    }
    assert_eq!(pings, 200, "the answers to pings pay for none");
}

#[test]
fn updates_of_a_few_bytes_are_bounded_though_each_is_paid_for() {
    let mut frames = begun();
    let update = frame(kind::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
    let mut updates = 0;
    while updates < 100_000 && frames.read(&update, 0).is_ok() {
        // A DATA frame with the one byte.
        frames.wrote(10);
        updates += 1;
    }
    assert_eq!(updates, 10_000);
}

#[test]
fn honest_clients_meet_no_budget() {
    let mut now = SECOND;
    let request = |stream| frame(kind::HEADERS, END_STREAM_OR_ACK | END_HEADERS, stream, &[0x82, 0x86, 0x84]);
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());

    // A browser that leaves a page with 200 requests under way, five pages one after the other.
    let mut frames = begun();
    for page in 0..5 {
        for stream in 0..200 {
            assert_eq!(frames.read(&request(1 + 2 * (200 * page + stream)), now), Ok(()));
        }
        for stream in 0..200 {
            assert_eq!(frames.read(&reset(1 + 2 * (200 * page + stream)), now), Ok(()));
        }
        now += 2 * SECOND;
    }

    // A download of 1 GiB in small frames, each given back to the stream and to the connection.
    let mut frames = begun();
    let update = |stream| frame(kind::WINDOW_UPDATE, 0, stream, &1_024_u32.to_be_bytes());
    let both = [update(1), update(0)].concat();
    for _ in 0..1 << 20 {
        frames.wrote(9 + 1_024);
        assert_eq!(frames.read(&both, now), Ok(()));
    }

    // gRPC over a fast network: a short call, a measurement; 20,000 in a second.
    let mut frames = begun();
    let ping = frame(kind::PING, 0, 0, &[1; 8]);
    for call in 0..20_000 {
        assert_eq!(frames.read(&request(1 + 2 * call), now), Ok(()));
        frames.wrote(100);
        assert_eq!(frames.read(&ping, now), Ok(()));
        frames.wrote(17);
        now += SECOND / 20_000;
    }

    // h2load with 100 streams: each opens its window first.
    let mut frames = begun();
    for stream in 0..100_000 {
        assert_eq!(frames.read(&request(1 + 2 * stream), now), Ok(()));
        assert_eq!(frames.read(&update(1 + 2 * stream), now), Ok(()));
        frames.wrote(150);
    }

    // An upload in large frames, padded ones too.
    let mut frames = begun();
    for flags in [0, PADDED] {
        let data = frame(kind::DATA, flags, 1, &[7; 16_384]);
        assert_eq!(taken(&mut frames, &data, now, 4_000), 4_000);
    }
    assert_eq!(frames.read(&frame(kind::DATA, END_STREAM_OR_ACK, 1, &[]), now), Ok(()));
}

#[test]
fn a_header_block_has_an_end() {
    let begin = frame(kind::HEADERS, 0, 1, &[0; 16_384]);
    let more = frame(kind::CONTINUATION, 0, 1, &[0; 16_384]);
    let end = frame(kind::CONTINUATION, END_HEADERS, 1, &[0; 16_384]);
    let mut frames = begun();
    for _ in 0..10 {
        assert_eq!(frames.read(&[begin.clone(), more.clone(), more.clone(), end.clone()].concat(), 0), Ok(()));
    }
    assert_eq!(frames.read(&begin, 0), Ok(()));
    assert_eq!(taken(&mut frames, &more, 0, 100), 7, "128 KiB");

    let mut frames = begun().with_header_size(256 * 1024);
    assert_eq!(frames.read(&begin, 0), Ok(()));
    assert_eq!(taken(&mut frames, &more, 0, 100), 31, "512 KiB");

    let mut frames = begun();
    assert_eq!(frames.read(&frame(kind::HEADERS, 0, 1, &[]), 0), Ok(()));
    assert_eq!(taken(&mut frames, &frame(kind::CONTINUATION, 0, 1, &[]), 0, 100), 31);
}

#[test]
fn the_first_frame_is_a_settings_frame() {
    for first in [frame(kind::SETTINGS, END_STREAM_OR_ACK, 0, &[]), frame(kind::PING, 0, 0, &[0; 8]), frame(kind::HEADERS, 4, 1, &[])] {
        let mut frames = Frames::new(0);
        assert_eq!(frames.read(PRELUDE, 0), Ok(()));
        assert_eq!(frames.read(&first, 0), Err(NO_SETTINGS));
        assert_eq!(frames.goaway(&NO_SETTINGS)[13..17], PROTOCOL.to_be_bytes());
    }
}

#[test]
fn a_request_that_depends_on_itself_ends_the_connection() {
    for (flags, payload) in [(PRIORITY_FLAG, &[0x80, 0, 0, 5, 16, 0x82][..]), (PRIORITY_FLAG | PADDED, &[1, 0, 0, 0, 5, 16, 0x82, 0])] {
        let mut frames = begun();
        let bytes = frame(kind::HEADERS, END_HEADERS | flags, 5, payload);
        assert!(frames.read(&bytes, 0).is_err(), "{flags}");
        let mut frames = begun();
        let bytes = frame(kind::HEADERS, END_HEADERS | flags, 7, payload);
        assert_eq!(frames.read(&bytes, 0), Ok(()), "{flags}");
    }
}

#[test]
fn the_goaway_names_the_last_stream_and_the_reason() {
    let mut frames = begun();
    let goaway = |frames: &Frames| frames.goaway(&Flood("why"));
    assert_eq!(goaway(&frames), [0, 0, 11, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, b'w', b'h', b'y']);
    assert_eq!(frames.read(&frame(kind::HEADERS, END_HEADERS, 0x8000_0105, &[]), 0), Ok(()));
    assert_eq!(frames.read(&frame(kind::HEADERS, END_HEADERS, 3, &[]), 0), Ok(()));
    assert_eq!(goaway(&frames)[9..13], [0, 0, 1, 5]);
}

/// Frames that are likely to be near some budget, whole or not.
fn some_frames() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![0_u8..12, Just(kind::WINDOW_UPDATE), Just(kind::PING)];
    let one = (kinds, any::<u8>(), 0_u32..8, prop::collection::vec(0_u8..4, 0..40), 1_usize..300)
        .prop_map(|(kind, flags, stream, payload, times)| frame(kind, flags, stream, &payload).repeat(times));
    prop::collection::vec(one, 0..12).prop_map(|frames| [PRELUDE.to_vec(), frame(kind::SETTINGS, 0, 0, &[]), frames.concat()].concat())
}

/// Where the first fault is: after how many whole bytes, and which.
fn verdict(bytes: &[u8], cuts: &[usize]) -> (Option<Flood>, Vec<u8>) {
    let mut frames = Frames::new(0);
    frames.wrote(1_000);
    let mut rest = bytes;
    let mut lengths = cuts.iter().cycle();
    let mut flood = None;
    while !rest.is_empty() && flood.is_none() {
        let (piece, later) = rest.split_at(rest.len().min(*lengths.next().unwrap_or(&usize::MAX)));
        flood = frames.read(piece, SECOND).err();
        rest = later;
    }
    (flood, frames.goaway(&Flood("")))
}

proptest! {
    #[test]
    fn the_verdict_is_the_same_however_the_bytes_are_cut(bytes in some_frames(), cuts in prop::collection::vec(1_usize..50, 1..10)) {
        let whole = verdict(&bytes, &[]);
        prop_assert_eq!(&verdict(&bytes, &cuts), &whole);
        prop_assert_eq!(&verdict(&bytes, &[1]), &whole);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000), now in any::<u64>()) {
        let mut frames = Frames::new(now / 2);
        let bytes = [PRELUDE.to_vec(), frame(kind::SETTINGS, 0, 0, &[]), bytes].concat();
        let _ = frames.read(&bytes, now);
        frames.wrote(bytes.len());
        let again = frames.read(&bytes, 0);
        prop_assert_eq!(again.is_err(), frames.read(&[], u64::MAX).is_err());
    }
}
