//! §5.1 Stream States, §5.1.1 Stream Identifiers, §5.1.2 Stream Concurrency, §5.3 Prioritization.

use super::*;
use crate::{
    h2_wire::{
        CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PRIORITY, PRIORITY_FLAG, REFUSED_STREAM, RST_STREAM, block, reset,
        window_update,
    },
    world::eventually,
};

const HANGING: [Field; 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/w/hang"), (":authority", "h")];

#[test]
fn idle_streams() {
    let priority = |stream, on: u8| frame(PRIORITY, 0, stream, &[0, 0, 0, on, 16]);
    Arena::start().check(vec![
        row("5.1", "DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), Connection(PROTOCOL)),
        row("5.1", "RST_STREAM on an idle stream", reset(1, CANCEL), Connection(PROTOCOL)),
        row("5.1", "WINDOW_UPDATE on an idle stream", window_update(1, 100), Connection(PROTOCOL)),
        row("5.1", "CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, &block(&HEAD)), Connection(PROTOCOL)),
        row("5.1", "WINDOW_UPDATE on an idle stream of the server's", window_update(2, 100), Connection(PROTOCOL)),
        row("5.1", "DATA on an idle stream of the server's", frame(DATA, END_STREAM, 2, b"x"), Connection(PROTOCOL)),
        row("5.3", "PRIORITY on an idle stream", priority(3, 0), Nothing),
        row("5.3", "PRIORITY before its request", [priority(1, 0), get(1)].concat(), Answer(200)),
        row("5.3", "PRIORITY that makes a circle", [priority(3, 5), priority(5, 3), get(1)].concat(), Answer(200)),
        row("5.3", "a request with a priority", prioritised(3), Answer(200)),
        // RFC 7540 §5.3.1: a stream error; RFC 9113 has no priorities any more.
        row("5.3", "a request that depends on itself", prioritised(1), Stream(PROTOCOL)),
        row("5.3", "a stream that depends on itself", [hanging(1), priority(1, 1)].concat(), Stream(PROTOCOL)),
    ]);
}

/// A request that depends on another stream.
fn prioritised(on: u8) -> Vec<u8> {
    frame(HEADERS, WHOLE | PRIORITY_FLAG, 1, &[&[0, 0, 0, on, 16][..], &block(&HEAD)].concat())
}

#[test]
fn streams_half_closed_by_the_client() {
    let after = |bytes: Vec<u8>| [hanging(1), bytes].concat();
    Arena::start().check(vec![
        row("5.1", "DATA after the end", after(frame(DATA, END_STREAM, 1, b"x")), Stream(OVER)),
        row("5.1", "HEADERS after the end", after(headers(END_STREAM, 1, &[("x", "y")])), Stream(OVER)),
        row("5.1", "CONTINUATION after the end", after(frame(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]))), Stream(OVER)),
        row("5.1", "WINDOW_UPDATE after the end", after(window_update(1, 100)), Nothing),
        row("5.1", "PRIORITY after the end", after(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])), Nothing),
        row("5.1", "RST_STREAM after the end", after(reset(1, CANCEL)), Nothing),
        row("5.1", "RST_STREAM in a body", [post(1), reset(1, CANCEL)].concat(), Nothing),
        row(
            "5.1",
            "DATA after a body's end",
            [
                headers(0, 1, &with(&[(":method", "POST"), (":path", "/w/hang")])),
                frame(DATA, END_STREAM, 1, b"x"),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Stream(OVER),
        ),
    ]);
}

#[test]
fn closed_streams() {
    let answered = |bytes: Vec<u8>| vec![get(1).into(), Step::Answered(1), bytes.into()];
    let cancelled = |bytes: Vec<u8>| [headers(0, 1, &HANGING), reset(1, CANCEL), bytes].concat();
    let (data, trailers) = (frame(DATA, END_STREAM, 1, b"x"), headers(END_STREAM, 1, &[("x", "y")]));
    Arena::start().check(vec![
        steps("5.1", "DATA on a closed stream", answered(data.clone()), Stream(OVER)),
        steps("5.1", "HEADERS on a closed stream", answered(trailers.clone()), Connection(OVER)),
        steps("5.1", "a request on a closed stream", answered(get(1)), Connection(OVER)),
        steps("5.1", "CONTINUATION on a closed stream", answered(frame(CONTINUATION, END_HEADERS, 1, &[])), Connection(OVER)),
        steps("5.1", "WINDOW_UPDATE on a closed stream", answered(window_update(1, 100)), Nothing),
        steps("5.1", "PRIORITY on a closed stream", answered(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])), Nothing),
        steps("5.1", "RST_STREAM on a closed stream", answered(reset(1, CANCEL)), Nothing),
        row("5.1", "DATA after the client's own reset", cancelled(data), Stream(OVER)),
        row("5.1", "HEADERS after the client's own reset", cancelled(trailers), Stream(OVER)),
        row("5.1", "a second reset", cancelled(reset(1, CANCEL)), Nothing),
        row("5.1", "WINDOW_UPDATE after the client's own reset", cancelled(window_update(1, 100)), Nothing),
    ]);
}

#[test]
fn stream_identifiers() {
    Arena::start().check(vec![
        row("5.1.1", "a request on an even stream", get(2), Connection(PROTOCOL)),
        row("5.1.1", "a request on stream 0", get(0), Connection(PROTOCOL)),
        steps("5.1.1", "a lower stream than before", vec![get(5).into(), Step::Answered(5), get(3).into()], Connection(OVER)),
        row("5.1.1", "a lower one beside others", [hanging(5), hanging(7), get(3)].concat(), Connection(OVER)),
        row("5.1.1", "DATA on a stream that was skipped", [hanging(5), frame(DATA, 0, 1, b"x")].concat(), Stream(OVER)),
        steps("5.1.1", "streams may be skipped", vec![get(1_001).into(), Step::Answered(1_001)], Nothing),
        steps("5.1.1", "two requests, the later one first", vec![[hanging(3), get(5)].concat().into(), Step::Answered(5)], Nothing),
    ]);
}

#[test]
fn concurrency() {
    // §5.1.2: as many streams as were said, and those above refused; they may be tried again.
    let arena = Arena::with(Conf::new().server("h2_max_streams = 5"));
    let mut client = Http2::silent(arena.furt.public);
    client.write([&h2_wire::PREFACE[..], &h2_wire::settings(&[(h2_wire::HEADER_TABLE_SIZE, 0)])].concat());
    assert!(client.settle().contains(&(h2_wire::MAX_CONCURRENT_STREAMS, 5)));
    for stream in [1, 3, 5, 7, 9] {
        client.write(hanging(stream));
    }
    let seen = || arena.service.requests().into_iter().map(|seen| seen.target).collect::<Vec<_>>();
    eventually("all of them arrived", || (seen() == ["/w/hang"; 5]).then_some(()));
    client.write(get(11));
    assert_eq!(client.outcome(11), Outcome::Reset(REFUSED_STREAM), "it is safe to try again");
    // A stream that ends makes room for another.
    client.write([reset(5, CANCEL), get(13)].concat());
    assert_eq!(client.outcome(13), Outcome::Answer(200));
    assert_eq!(seen(), ["/w/hang", "/w/hang", "/w/hang", "/w/hang", "/w/hang", "/w/x"]);
    // §5.1: RST_STREAM is not answered with one.
    client.write([reset(1, CANCEL), ping()].concat());
    let mut came = Vec::new();
    while let Some(frame) = client.frame() {
        if frame.kind == PING {
            break;
        }
        came.push(frame);
    }
    assert!(came.iter().all(|frame| frame.kind != RST_STREAM || frame.stream != 1), "{came:?}");
}
