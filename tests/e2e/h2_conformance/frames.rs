//! §6 Frame Definitions, without what is about windows.

use super::*;
use crate::h2_wire::{
    ACK, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, PADDED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, block, reset,
    settings,
};

#[test]
fn data_headers_priority_and_reset() {
    let padded_data = |pad: u8, rest: &[u8]| [post(1), frame(DATA, END_STREAM | PADDED, 1, &[&[pad][..], rest].concat())].concat();
    let padded_head = |pad: u8, rest: &[u8]| frame(HEADERS, WHOLE | PADDED, 1, &[&[pad][..], &block(&HEAD), rest].concat());
    Arena::start().check(vec![
        row("6.1", "DATA on stream 0", frame(DATA, 0, 0, b"x"), Connection(PROTOCOL)),
        row("6.1", "padded DATA", padded_data(3, b"body\0\0\0"), Answer(200)),
        row("6.1", "nothing but padding", padded_data(3, b"\0\0\0"), Answer(200)),
        row("6.1", "padding as long as the frame", padded_data(8, b"body\0\0\0"), Connection(PROTOCOL)),
        row("6.1", "padding without its length", [post(1), frame(DATA, PADDED, 1, &[])].concat(), Connection(WRONG_SIZE)),
        row("6.2", "HEADERS on stream 0", headers(WHOLE, 0, &HEAD), Connection(PROTOCOL)),
        row("6.2", "padded HEADERS", padded_head(2, b"\0\0"), Answer(200)),
        row("6.2", "padding longer than the frame", padded_head(255, b"\0\0"), Connection(PROTOCOL)),
        row("6.2", "HEADERS too short for their priority", frame(HEADERS, WHOLE | 0x20, 1, &[0; 4]), Connection(WRONG_SIZE)),
        row("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 16]), Connection(PROTOCOL)),
        row("6.3", "PRIORITY of four bytes", [hanging(1), frame(PRIORITY, 0, 1, &[0; 4])].concat(), Stream(WRONG_SIZE)),
        row("6.3", "PRIORITY of six bytes", [hanging(1), frame(PRIORITY, 0, 1, &[0; 6])].concat(), Stream(WRONG_SIZE)),
        row("6.4", "RST_STREAM on stream 0", reset(0, 8), Connection(PROTOCOL)),
        row("6.4", "RST_STREAM of three bytes", [hanging(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(), Connection(WRONG_SIZE)),
        row("6.4", "RST_STREAM of five bytes", [hanging(1), frame(RST_STREAM, 0, 1, &[0; 5])].concat(), Connection(WRONG_SIZE)),
        row("7", "RST_STREAM for an unknown reason", [hanging(1), reset(1, 0xBABA)].concat(), Nothing),
    ]);
}

#[test]
fn the_settings() {
    let one = |id, value| settings(&[(id, value)]);
    Arena::start().check(vec![
        row("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection(PROTOCOL)),
        row("6.5", "an acknowledgement with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), Connection(WRONG_SIZE)),
        row("6.5", "an acknowledgement of nothing", frame(SETTINGS, ACK, 0, &[]), Connection(PROTOCOL)),
        row("6.5", "five bytes of settings", frame(SETTINGS, 0, 0, &[0; 5]), Connection(WRONG_SIZE)),
        row("6.5", "seven bytes of settings", frame(SETTINGS, 0, 0, &[0; 7]), Connection(WRONG_SIZE)),
        row("6.5.2", "a push that is neither on nor off", one(ENABLE_PUSH, 2), Connection(PROTOCOL)),
        row("6.5.2", "push on", one(ENABLE_PUSH, 1), Nothing),
        row("6.5.2", "push off", one(ENABLE_PUSH, 0), Nothing),
        row("6.5.2", "no pushed streams", one(MAX_CONCURRENT_STREAMS, 0), Nothing),
        row("6.5.2", "the largest window", one(INITIAL_WINDOW_SIZE, 0x7FFF_FFFF), Nothing),
        row("6.5.2", "a window beyond it", one(INITIAL_WINDOW_SIZE, 0x8000_0000), Connection(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR])),
        row("6.5.2", "frames smaller than 2^14", one(MAX_FRAME_SIZE, 16_383), Connection(PROTOCOL)),
        row("6.5.2", "frames of 2^24", one(MAX_FRAME_SIZE, 1 << 24), Connection(PROTOCOL)),
        row("6.5.2", "frames of almost that", one(MAX_FRAME_SIZE, (1 << 24) - 1), Nothing),
        row("6.5.2", "no list of fields is small enough", [one(MAX_HEADER_LIST_SIZE, 1), get(1)].concat(), Answer(200)),
        row("6.5.2", "a table of any size", [one(h2_wire::HEADER_TABLE_SIZE, u32::MAX), get(1)].concat(), Answer(200)),
    ]);
    // §6.5.3: each is acknowledged once, in order, and nothing else is.
    let arena = Arena::start();
    let mut client = arena.client();
    for _ in 0..5 {
        client.write(one(INITIAL_WINDOW_SIZE, 70_000));
    }
    client.write(ping());
    let mut acknowledged = 0;
    loop {
        let frame = client.frame().expect("a frame");
        match (frame.kind, frame.flags) {
            (SETTINGS, ACK) => acknowledged += 1,
            (h2_wire::WINDOW_UPDATE, _) => {}
            (PING, ACK) => break,
            _ => panic!("{frame:?}"),
        }
    }
    assert_eq!(acknowledged, 5);
}

#[test]
fn push_ping_and_goaway() {
    let promise = [&2_u32.to_be_bytes()[..], &block(&HEAD)].concat();
    let goaway = |last: u32, code: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
    Arena::start().check(vec![
        row(
            "8.4",
            "PUSH_PROMISE from a client",
            [hanging(1), frame(PUSH_PROMISE, END_HEADERS, 1, &promise)].concat(),
            Connection(PROTOCOL),
        ),
        row("6.6", "PUSH_PROMISE on stream 0", frame(PUSH_PROMISE, END_HEADERS, 0, &promise), Connection(PROTOCOL)),
        row("6.6", "PUSH_PROMISE on an idle stream", frame(PUSH_PROMISE, END_HEADERS, 1, &promise), Connection(PROTOCOL)),
        row("6.7", "PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection(PROTOCOL)),
        row("6.7", "PING of seven bytes", frame(PING, 0, 0, &[0; 7]), Connection(WRONG_SIZE)),
        row("6.7", "PING of nine bytes", frame(PING, 0, 0, &[0; 9]), Connection(WRONG_SIZE)),
        row("6.7", "an answer to no ping is not answered", frame(PING, ACK, 0, &[0; 8]), Nothing),
        row("6.8", "GOAWAY on a stream", [hanging(1), frame(GOAWAY, 0, 1, &[0; 8])].concat(), Connection(PROTOCOL)),
        row("6.8", "GOAWAY of seven bytes", frame(GOAWAY, 0, 0, &[0; 7]), Connection(WRONG_SIZE)),
        row("6.8", "what is under way when it comes", [get(1), goaway(0, 0)].concat(), Last(200)),
        row("7", "for an unknown reason", [get(1), goaway(0, 0xBABA)].concat(), Last(200)),
        row("6.10", "CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &[]), Connection(PROTOCOL)),
        row("6.10", "CONTINUATION on stream 0", frame(CONTINUATION, END_HEADERS, 0, &[]), Connection(PROTOCOL)),
        row("6.10", "after the block's end", [get(1), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(), Connection(PROTOCOL)),
        row(
            "6.10",
            "of another stream",
            [frame(HEADERS, END_STREAM, 1, &block(&HEAD[..2])), frame(CONTINUATION, END_HEADERS, 3, &block(&HEAD[2..]))].concat(),
            Connection(PROTOCOL),
        ),
        row(
            "6.10",
            "after DATA",
            [post(1), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            Connection(PROTOCOL),
        ),
    ]);
    // §6.7: the payload comes back, whatever the flags.
    let arena = Arena::start();
    let mut client = arena.client();
    for payload in [b"\0\x01\x02\x03\xFC\xFD\xFE\xFF", b"furtfurt"] {
        client.write(frame(PING, 0xFE, 0, payload));
        let pong = client.until(PING).expect("an answer");
        assert_eq!((pong.flags, pong.stream, pong.payload.as_slice()), (ACK, 0, &payload[..]));
    }
}
