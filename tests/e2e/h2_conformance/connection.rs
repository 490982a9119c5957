//! §3 Starting HTTP/2, §4 HTTP Frames, §5.4 Error Handling, §5.5 Extending HTTP/2.

use super::*;
use crate::{
    client::Client,
    h2_wire::{
        COMPRESSION_ERROR, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, HEADERS, MAX_FRAME_SIZE, PREFACE, PRIORITY, SETTINGS,
        block, integer, literal, settings, window_update,
    },
};

const COMPRESSION: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];

#[test]
fn the_preface() {
    let arena = Arena::start();
    // §3.4: the server's preface is a SETTINGS frame, the first that it sends.
    let mut client = Http2::silent(arena.furt.public);
    client.write([PREFACE.to_vec(), settings(&[])].concat());
    let told = client.settle();
    // §6.5.2: a server must not say 1 here, and no client may push to it.
    assert!(told.iter().all(|(id, value)| *id != ENABLE_PUSH || *value == 0), "{told:?}");
    assert!(told.iter().all(|(id, value)| *id != MAX_FRAME_SIZE || (16_384..1 << 24).contains(value)), "{told:?}");
    assert_eq!(lives(&mut client, true), Ok(()));

    // §3.4: a client may send requests before it has heard anything; and TCP cuts as it likes.
    let mut client = Http2::silent(arena.furt.public);
    for byte in [PREFACE.to_vec(), settings(&[]), get(1)].concat() {
        client.write([byte]);
    }
    assert_eq!(client.outcome(1), Outcome::Answer(200));

    // §3.4: an invalid preface ends the connection; a GOAWAY may be left out.
    for wrong in [&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r ", b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n"] {
        let mut client = Client::new(arena.furt.public);
        client.write([wrong, &settings(&[]), &get(1)].concat()).expect("sent");
        let said = client.rest();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4") || said.starts_with(b"HTTP/1.1 5"), "{said:?}");
    }
    // §3.4: the preface goes on with a SETTINGS frame, which may be empty, and no acknowledgement.
    for other in [get(1), ping(), frame(SETTINGS, 1, 0, &[])] {
        let mut client = Http2::silent(arena.furt.public);
        client.write([PREFACE.to_vec(), other].concat());
        assert_eq!(client.outcome(1), Outcome::GoAway(PROTOCOL_ERROR));
        assert!(client.closes().is_ok());
    }
    let forwarded: Vec<_> = arena.service.requests().into_iter().map(|seen| seen.target).collect();
    assert_eq!(forwarded, ["/w/live", "/w/x"]);
}

#[test]
fn frames_and_their_sizes() {
    let large = vec![b'x'; 16_384];
    let too_large = vec![b'x'; 16_385];
    Arena::start().check(vec![
        row("4.1", "a frame of an unknown type is ignored", frame(0xBA, 0xFF, 0, b"grease"), Nothing),
        row("4.1", "and on a stream that is idle", frame(0x42, 0, 5, &[]), Nothing),
        row("4.1", "flags without a meaning are ignored", [frame(PRIORITY, 0xFF, 1, &[0, 0, 0, 0, 16]), get(1)].concat(), Answer(200)),
        row("4.1", "the reserved bit is ignored", get(0x8000_0001), Answer(200)),
        row("4.2", "a frame of 2^14 bytes", [post(1), frame(DATA, END_STREAM, 1, &large)].concat(), Answer(200)),
        row("4.2", "DATA of more", [post(1), frame(DATA, END_STREAM, 1, &too_large)].concat(), Stream(WRONG_SIZE)),
        row("4.2", "HEADERS of more", frame(HEADERS, WHOLE, 1, &too_large), Connection(WRONG_SIZE)),
        row("4.2", "SETTINGS of more", frame(SETTINGS, 0, 0, &[0; 16_386]), Connection(WRONG_SIZE)),
        row("4.2", "an unknown frame of more", frame(0xBA, 0, 0, &too_large), Connection(WRONG_SIZE)),
        row("4.2", "the longest frame there is", [&[0xFF, 0xFF, 0xFF, DATA, 0, 0, 0, 0, 1][..], &[0; 64]].concat(), Connection(WRONG_SIZE)),
        row("5.5", "an unknown setting is ignored", settings(&[(0xBABA, 7)]), Nothing),
        row("5.5", "an unknown frame in a header block", unfinished(&frame(0xBA, 0, 1, b"x")), Connection(PROTOCOL)),
    ]);
}

/// A header block that something comes into before it goes on.
fn unfinished(between: &[u8]) -> Vec<u8> {
    let block = block(&HEAD);
    let (first, second) = block.split_at(10);
    [&frame(HEADERS, END_STREAM, 1, first)[..], between, &frame(CONTINUATION, END_HEADERS, 1, second)].concat()
}

#[test]
fn field_compression() {
    let whole = |block: &[u8]| frame(HEADERS, WHOLE, 1, block);
    let good = block(&HEAD);
    let cut = &good[..good.len() - 1];
    let many = [frame(HEADERS, END_STREAM, 1, &good[..1]), frame(CONTINUATION, 0, 1, &good[1..2]), frame(CONTINUATION, 0, 1, &[])];
    let resized = [&integer(0x20, 5, 0)[..], &integer(0x20, 5, 4_096), &good].concat();
    Arena::start().check(vec![
        row("4.3", "a field with index 0", whole(&[&good[..], &[0x80]].concat()), Connection(COMPRESSION)),
        row("4.3", "an index beyond the tables", whole(&[&good[..], &[0xFF, 0x80, 0x01]].concat()), Connection(COMPRESSION)),
        row("4.3", "an index without an end", whole(&[&good[..], &[0xFF; 12]].concat()), Connection(COMPRESSION)),
        row("4.3", "a block that ends in a field", whole(cut), Connection(COMPRESSION)),
        row("4.3", "a table larger than allowed", whole(&[&integer(0x20, 5, 4_097)[..], &good].concat()), Connection(COMPRESSION)),
        row("4.3.1", "a change of the table's size", whole(&resized), Answer(200)),
        row("4.3", "a change of it after a field", whole(&[&good[..], &[0x20]].concat()), Connection(COMPRESSION)),
        row(
            "4.3",
            "a string of the Huffman code's EOS",
            whole(&[&good[..], &[0, 1, b'x', 0x84, 0xFF, 0xFF, 0xFF, 0xFF]].concat()),
            Connection(COMPRESSION),
        ),
        row(
            "4.3",
            "a string longer than its block",
            whole(&[&good[..], &[0, 1, b'x', 0x7F, 0xFF, 0x7F]].concat()),
            Connection(COMPRESSION),
        ),
        row("4.3", "a block in several frames", [many.concat(), frame(CONTINUATION, END_HEADERS, 1, &good[2..])].concat(), Answer(200)),
        row("4.3", "PING in a block", unfinished(&ping()), Connection(PROTOCOL)),
        row("4.3", "DATA in a block", unfinished(&frame(DATA, 0, 1, b"x")), Connection(PROTOCOL)),
        row("4.3", "SETTINGS in a block", unfinished(&settings(&[])), Connection(PROTOCOL)),
        row("4.3", "WINDOW_UPDATE in a block", unfinished(&window_update(0, 1)), Connection(PROTOCOL)),
        row("4.3", "another request in a block", unfinished(&get(3)), Connection(PROTOCOL)),
    ]);
}

#[test]
fn a_refused_request_leaves_the_table_as_it_says() {
    // §4.3: a malformed request is refused, and yet its fields are where the next one looks for them.
    let arena = Arena::start();
    let mut client = arena.client();
    let adds = [&block(&HEAD)[..], &[0x40, 4], b"x-ok", &[1, b'v'], &literal(b"connection", b"x")].concat();
    client.write(frame(HEADERS, WHOLE, 1, &adds));
    assert_eq!(client.outcome(1), Outcome::Reset(PROTOCOL_ERROR));
    client.write(frame(HEADERS, WHOLE, 3, &[&block(&HEAD)[..], &[0x80 | 62]].concat()));
    assert_eq!(client.outcome(3), Outcome::Answer(200));
    assert_eq!(arena.service.request().field("x-ok"), Some("v"));
}

#[test]
fn a_connection_error_tells_the_last_stream_that_was_taken() {
    // §5.4.1, §6.8.
    let arena = Arena::start();
    let mut client = arena.client();
    client.write(get(7));
    assert_eq!(client.outcome(7), Outcome::Answer(200));
    client.write(frame(DATA, 0, 0, b"x"));
    let goaway = client.until(GOAWAY).expect("a goaway");
    assert_eq!((goaway.stream, goaway.number(0), goaway.code()), (0, 7, PROTOCOL_ERROR));
    assert!(client.closes().is_ok());
}
