//! §5.2 Flow Control and §6.9 WINDOW_UPDATE.

use std::net::TcpListener;

use super::*;
use crate::h2_wire::{DATA, END_STREAM, FLOW_CONTROL_ERROR, INITIAL_WINDOW_SIZE, WINDOW_UPDATE, settings, window_update};

const OVERFLOW: &[u32] = &[FLOW_CONTROL_ERROR];
const MOST: u32 = 0x7FFF_FFFF;

fn big(stream: u32) -> Vec<u8> {
    headers(WHOLE, stream, &with(&[(":path", "/w/big")]))
}

#[test]
fn window_updates() {
    let windows = |first: u32, more: Vec<u8>| [settings(&[(INITIAL_WINDOW_SIZE, first)]), hanging(1), more].concat();
    Arena::start().check(vec![
        row("6.9", "an update of 0 on a stream", [hanging(1), window_update(1, 0)].concat(), Stream(PROTOCOL)),
        row("6.9", "an update of 0 on the connection", window_update(0, 0), Connection(PROTOCOL)),
        row("6.9", "an update of three bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection(WRONG_SIZE)),
        row("6.9", "an update of five bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 5]), Connection(WRONG_SIZE)),
        row("6.9", "the reserved bit is ignored", window_update(0, 0x8000_0001), Nothing),
        row("6.9.1", "a stream's window beyond 2^31-1", [hanging(1), window_update(1, MOST)].concat(), Stream(OVERFLOW)),
        row("6.9.1", "the same in two steps", windows(0, [window_update(1, MOST), window_update(1, 1)].concat()), Stream(OVERFLOW)),
        row("6.9.1", "exactly up to it", windows(0, window_update(1, MOST)), Nothing),
        row("6.9.1", "the connection's window beyond it", window_update(0, MOST), Connection(OVERFLOW)),
        row(
            "6.9.2",
            "no setting for the connection's window",
            [settings(&[(INITIAL_WINDOW_SIZE, MOST)]), window_update(0, MOST - 65_535)].concat(),
            Nothing,
        ),
        row(
            "6.9.2",
            "a setting that takes a stream's window beyond it",
            windows(1, [window_update(1, MOST - 1), settings(&[(INITIAL_WINDOW_SIZE, 2)])].concat()),
            Connection(OVERFLOW),
        ),
    ]);
}

/// The DATA of a stream up to a ping's answer, by frames.
fn data(client: &mut Http2) -> Vec<usize> {
    client.write(ping());
    let mut lengths = Vec::new();
    loop {
        let frame = client.frame().expect("a frame");
        match frame.kind {
            DATA => lengths.push(frame.payload.len()),
            PING => return lengths,
            _ => {}
        }
    }
}

/// As many bytes of DATA as come, until they are `most`.
fn until(client: &mut Http2, most: usize) -> usize {
    let mut came = 0;
    while came < most {
        came += client.until(DATA).expect("more of it").payload.len();
    }
    came
}

#[test]
fn furt_keeps_within_the_clients_windows() {
    let arena = Arena::start();
    // §6.9.2: no byte before the window is opened; §5.2.1: the head is not held back by it.
    let mut client = Http2::with(arena.furt.public, &[(INITIAL_WINDOW_SIZE, 0)]);
    client.settle();
    client.write(big(1));
    assert_eq!(client.until(h2_wire::HEADERS).expect("the head").status(), 200);
    assert_eq!(data(&mut client), [0; 0]);
    // §6.9.1: exactly as much as there is room for.
    client.write(window_update(1, 1));
    assert_eq!(until(&mut client, 1), 1);
    client.write(window_update(1, 999));
    assert_eq!(until(&mut client, 999), 999);
    assert_eq!(data(&mut client), [0; 0]);
    // §6.9.2: a change of the initial size changes the streams that there are, and may leave them with less than nothing.
    client.write(settings(&[(INITIAL_WINDOW_SIZE, 500)]));
    assert_eq!(until(&mut client, 500), 500);
    client.write([settings(&[(INITIAL_WINDOW_SIZE, 100)]), window_update(1, 400)].concat());
    assert_eq!(data(&mut client), [0; 0]);
    client.write(window_update(1, 7));
    assert_eq!(until(&mut client, 7), 7);

    // §6.9.1: the connection's window, 65,535 bytes, holds for all its streams together.
    let mut client = Http2::with(arena.furt.public, &[(INITIAL_WINDOW_SIZE, 1 << 20)]);
    client.settle();
    client.write([big(1), big(3)].concat());
    assert_eq!(until(&mut client, 65_535), 65_535);
    assert_eq!(data(&mut client), [0; 0]);
    // §6.5.2: and no frame is larger than 2^14 unless the client says so; h2_wire asserts it of every frame.
    client.write(window_update(0, 400_000));
    assert_eq!(until(&mut client, 400_000 - 65_535), 400_000 - 65_535);
    // §5.2.2: others go on while one stream has no window.
    client.write([settings(&[(INITIAL_WINDOW_SIZE, 0)]), window_update(0, 400_000), big(5), big(7), window_update(7, 400_000)].concat());
    assert_eq!(client.outcome(7), Outcome::Answer(200));
}

#[test]
fn a_client_keeps_within_furts_windows() {
    // §6.9.1: a service that reads nothing; what comes beyond the window ends the stream, or the connection.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", deaf.local_addr().expect("bound"));
    let furt = Conf::new().more(&format!("[route \"deaf\"]\nmethods = *\npath = /deaf\nurl = {url}\npublic = true\n")).start();
    let mut client = Http2::new(furt.public);
    client.write(headers(0, 1, &with(&[(":method", "POST"), (":path", "/deaf")])));
    // More than every buffer on the way: 64 MiB.
    let piece = frame(DATA, 0, 1, &[0; 16_384]).repeat(64);
    let refused = (0..64).any(|_| client.try_write(&piece).is_err());
    match client.outcome(1) {
        Outcome::Reset(code) | Outcome::GoAway(code) => assert_eq!(code, FLOW_CONTROL_ERROR),
        // Its last words may be lost when so much was still unread.
        Outcome::Closed => assert!(refused),
        other => panic!("{other:?}"),
    }

    // §5.2: and what a service takes is given back to the client, or no large body would ever come through.
    let arena = Arena::start();
    let mut client = arena.client();
    client.write(post(1));
    let (mut stream, mut connection, mut left) = (65_535_i64, 65_535_i64, 4_000_000_i64);
    let told: Vec<_> = {
        let mut other = Http2::silent(arena.furt.public);
        other.write([&h2_wire::PREFACE[..], &settings(&[])].concat());
        other.settle()
    };
    stream += told.iter().find(|(id, _)| *id == INITIAL_WINDOW_SIZE).map_or(0, |(_, value)| i64::from(*value) - 65_535);
    while left > 0 {
        let length = 16_384.min(left).min(stream).min(connection);
        if length <= 0 {
            let update = client.until(WINDOW_UPDATE).expect("an update");
            let increment = i64::from(update.number(0));
            assert!(increment > 0, "{update:?}");
            *(if update.stream == 0 { &mut connection } else { &mut stream }) += increment;
            continue;
        }
        left -= length;
        (stream, connection) = (stream - length, connection - length);
        let payload = vec![b'u'; usize::try_from(length).expect("a length")];
        client.write(frame(DATA, if left == 0 { END_STREAM } else { 0 }, 1, &payload));
    }
    assert_eq!(client.until(h2_wire::HEADERS).expect("a head").status(), 200);
    assert_eq!(arena.service.request().body.len(), 4_000_000);
}
