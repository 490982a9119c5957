//! `furt_data_plane::frames`: any bytes, however they are cut, get one verdict, and the last words are one whole frame.
#![no_main]

use furt_data_plane::frames::{Flood, Frames};
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first_chunk::<4>() else { return };
    let [cut, times, written, clock] = how.map(usize::from);
    // Again and again, or no budget is ever spent.
    let bytes = [PREFACE, &bytes.repeat(1 + times)].concat();
    let verdict = |cut: usize| {
        let mut frames = Frames::new(0);
        frames.wrote(64 * written);
        let now = u64::try_from(clock).unwrap_or(0) * 100_000_000;
        let refused = bytes.chunks(cut).find_map(|piece| frames.read(piece, now).err());
        assert_eq!(frames.read(&[], u64::MAX).err(), refused, "what is refused stays refused");
        (refused, frames.goaway(&refused.unwrap_or(Flood("none"))))
    };
    let (refused, goaway) = verdict(usize::MAX);
    assert_eq!((refused, goaway.clone()), verdict(1 + cut));
    assert_eq!((refused, goaway.clone()), verdict(1));
    let &[high, middle, low, kind, flags, ref stream @ ..] = &goaway[..9] else { unreachable!("nine bytes") };
    let length = u32::from_be_bytes([0, high, middle, low]);
    assert_eq!((usize::try_from(length).ok(), kind, flags, stream), (Some(goaway.len() - 9), 7, 0, &[0; 4][..]));
    assert!(goaway[9] < 0x80, "the reserved bit");
});
