//! Answers that are not what they say: whatever a service sends, the caller gets exactly one answer that is well-formed,
//! whole or visibly broken off, and nobody gets an answer that was not for it.
//!
//! Here: services over HTTP/1.1. What services are asked is in `smuggling`, those that only stop talking in `faults`.

use std::{io, thread, time::Duration};

use crate::{
    client::{Client, Request},
    faults::leaves_nothing,
    h2_wire::{self, Http2, Outcome},
    raw_service::{Accepted, RawService, target},
    upstream::{answer, ok},
    world::{Conf, WEBSITE_KEY, World, eventually},
};

/// What the caller sees of an answer that lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// 502, from furt.
    Refused,
    /// A whole answer with this status and body.
    Whole(u16, &'static str),
    /// The beginning of an answer, and then its end is missing.
    Broken,
    /// A whole answer or 502: furt may understand it or not.
    Either(u16, &'static str),
}
use Told::{Broken, Either, Refused, Whole};

/// An answer that lies, after which the service closes, and what is told of it. Nothing of it that has the word
/// "smuggled" may reach anybody.
type Lie = (&'static [u8], Told);

const LENGTHS: &[Lie] = &[
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Broken),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello smuggled", Whole(200, "hello")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 14\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nContent-Length: 5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello smuggled", Either(200, "hello")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello smuggled", Either(200, "hello")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 14\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5.0\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551621\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello smuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nhello", Either(200, "")),
];

const CODINGS: &[Lie] = &[
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Refused),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\nsmuggled", Whole(200, "hello")),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\nsmuggled", Either(200, "hello")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nsmuggled", Either(200, "hello")),
];

const CHUNKS: &[&[u8]] = &[
    b"garbage smuggled",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"4\r\nhello\r\n0\r\n\r\n",
    b"6\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-A",
    b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-A: a\0b\r\n\r\n",
];

const HEADS: &[Lie] = &[
    (b"", Refused),
    (b"smuggled\r\n\r\n", Refused),
    (b"<html>smuggled</html>", Refused),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Refused),
    (b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0", Refused),
    (b"\x15\x03\x03\0\x02\x02\x46", Refused),
    (b"ICY 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/2.0 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/0.9 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 000 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 99 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 1000 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 abc No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 +20 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 -200 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 2\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1  200 No\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\n: nothing\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX-A: a\x1bb\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\r\n X-A: a\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 O\0K\r\nContent-Length: 8\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 100 Continue\r\n\r\n", Refused),
    (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nsmuggled", Refused),
    (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", Either(200, "hello")),
    (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", Either(200, "hello")),
    (b"HTTP/1.1 999 Odd\r\nContent-Length: 5\r\n\r\nhello", Either(999, "hello")),
    (b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Either(200, "hello")),
    (b"HTTP/1.0 200 OK\r\n\r\nhello", Whole(200, "hello")),
    (b"HTTP/1.1 200 OK\r\n\r\nhello", Whole(200, "hello")),
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nsmuggled", Whole(204, "")),
    (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Whole(204, "")),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\nsmuggled", Whole(304, "")),
    (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", Whole(304, "")),
];

fn get(target: &str) -> Request {
    Request::get(target).key(WEBSITE_KEY)
}

/// A furt and a service that answers `/l/honest/…` with the target, and anything else as `lie` has it for the number in
/// `/l/…`; then it closes.
fn world(lie: impl Fn(usize, &mut Accepted) + Send + Sync + 'static) -> (World, RawService) {
    let service = RawService::start(move |service| {
        while let Some(head) = service.request() {
            let target = target(&head).to_owned();
            match target.strip_prefix("/l/").and_then(|number| number.parse().ok()) {
                Some(number) => return lie(number, service),
                None if service.write(ok(&target)).is_err() => return,
                None => {}
            }
        }
    });
    let furt = Conf::new().server("body_idle_timeout = 1s").gateway("upstream_timeout = 1s").gateway("upstream_idle_timeout = 1s").start();
    furt.register("liar", &service.url(), &["* /l/* comments:read"]);
    (furt, service)
}

/// Asks for a lie over a connection that has served, and then for the truth; the connection gives each its own answer,
/// or ends.
#[track_caller]
fn ask(furt: &World, method: &str, number: usize, told: Told, lie: &[u8]) {
    let shown = format!("{method}: {:?}", String::from_utf8_lossy(&lie[..lie.len().min(200)]));
    let mut client = Client::new(furt.public);
    let before = format!("/l/honest/before-{number}");
    assert_eq!(client.ask(&get(&before)).text(), before);
    client.write(Request::new(method, &format!("/l/{number}")).key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
    let answer = client.read(method);
    let refused =
        |answer: &io::Result<crate::client::Answer>| answer.as_ref().is_ok_and(|it| it.status == 502 && it.code() == "BAD_GATEWAY");
    let whole = |status: u16, body: &str| answer.as_ref().is_ok_and(|it| (it.status, &*it.text()) == (status, body));
    match told {
        Refused => assert!(refused(&answer), "{shown}: {answer:?}"),
        Whole(status, body) => assert!(whole(status, if method == "HEAD" { "" } else { body }), "{shown}: {answer:?}"),
        Broken => assert!(answer.is_err(), "{shown}: {answer:?} looks whole"),
        Either(status, body) => assert!(refused(&answer) || answer.is_err() || whole(status, body), "{shown}: {answer:?}"),
    }
    if let Ok(answer) = &answer {
        assert_eq!(answer.field("x-gateway"), Some("furt"), "{shown}: {answer:?}");
        assert!(answer.status != 204 || answer.field("content-length").or(answer.field("transfer-encoding")).is_none(), "{answer:?}");
        let after = format!("/l/honest/after-{number}");
        client.write(get(&after).to_bytes(furt.public)).expect("sent");
        match client.read("GET") {
            Ok(answer) => assert_eq!((answer.status, answer.text()), (200, after), "{shown}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{shown}: it ends in order"),
        }
    }
    drop(client.write(get("/l/honest/last").field("Connection", "close").to_bytes(furt.public)));
    let all = client.rest();
    assert!(!String::from_utf8_lossy(&all).contains("smuggled"), "{shown}: {}", String::from_utf8_lossy(&all));
}

/// The same over HTTP/2, where an answer that breaks off is reset.
#[track_caller]
fn ask_over_h2(client: &mut Http2, stream: u32, number: usize, told: Told, lie: &[u8]) {
    let path = format!("/l/{number}");
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", &*path), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
    client.write(h2_wire::headers(h2_wire::WHOLE, stream, &fields));
    let outcome = client.outcome(stream);
    let right = match told {
        Refused => outcome == Outcome::Answer(502),
        Whole(status, _) => outcome == Outcome::Answer(status),
        Broken => matches!(outcome, Outcome::Reset(_)),
        Either(status, _) => [Outcome::Answer(502), Outcome::Answer(status)].contains(&outcome) || matches!(outcome, Outcome::Reset(_)),
    };
    assert!(right, "over HTTP/2: {:?}: {outcome:?} and not {told:?}", String::from_utf8_lossy(&lie[..lie.len().min(200)]));
}

#[track_caller]
fn check(lies: &'static [Lie]) {
    let (furt, service) = world(move |number, service| drop(service.write(lies[number].0)));
    // A POST is never sent twice, so each asks once.
    let mut client = Http2::new(furt.public);
    for ((number, (lie, told)), stream) in lies.iter().enumerate().zip((1..).step_by(2)) {
        ask(&furt, "POST", number, *told, lie);
        ask(&furt, "GET", number, *told, lie);
        ask_over_h2(&mut client, stream, number, *told, lie);
    }
    in_peace(&furt, &service);
}

/// The service still serves, has been found UP all along, and nothing was worth an error.
#[track_caller]
fn in_peace(furt: &World, service: &RawService) {
    furt.send(&get("/l/honest/at-last")).status(200);
    furt.until("liar", "UP");
    let complaints: Vec<_> = furt.log().into_iter().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).collect();
    assert_eq!(complaints, [""; 0]);
    eventually("the service has only idle connections", || (service.held() <= 8).then_some(()));
}

#[test]
fn lengths_that_are_wrong_twofold_or_no_numbers() {
    check(LENGTHS);
}

#[test]
fn transfer_codings_that_furt_does_not_speak() {
    check(CODINGS);
}

#[test]
fn heads_that_are_none() {
    check(HEADS);
}

#[test]
fn chunks_that_are_none_break_off() {
    let (furt, service) = world(move |number, service| {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        drop(service.write([&head, CHUNKS[number]].concat()));
    });
    let mut client = Http2::new(furt.public);
    for ((number, chunks), stream) in CHUNKS.iter().enumerate().zip((1..).step_by(2)) {
        ask(&furt, "POST", number, Broken, chunks);
        ask(&furt, "GET", number, Broken, chunks);
        ask_over_h2(&mut client, stream, number, Broken, chunks);
    }
    in_peace(&furt, &service);
}

#[test]
fn bodies_where_there_are_none() {
    // What follows the head of an answer to HEAD is not its body, and nobody's answer.
    const LIES: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nsmuggled",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nsmuggled",
    ];
    let (furt, service) = world(move |number, service| {
        drop(service.write(LIES[number]));
        service.until_closed();
    });
    for (number, lie) in LIES.iter().enumerate() {
        let status = if lie.starts_with(b"HTTP/1.1 404") { 404 } else { 200 };
        (0..3).for_each(|_| ask(&furt, "HEAD", number, Whole(status, ""), lie));
    }
    in_peace(&furt, &service);
}

#[test]
fn heads_without_bounds_are_502_and_take_no_memory() {
    let fields = |count: usize| (0..count).map(|number| format!("X-{number}: a\r\n")).collect::<String>();
    let bytes = move |number: usize| match number {
        0 => format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", fields(100_000)).into_bytes(),
        1 => format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(10 << 20)).into_bytes(),
        2 => format!("HTTP/1.1 200 {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(10 << 20)).into_bytes(),
        3 => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100_000).into_bytes(),
        _ => "\r\n".repeat(1 << 20).into_bytes(),
    };
    let (furt, service) = world(move |number, service| drop(service.write(bytes(number))));
    (0..5).for_each(|number| ask(&furt, "POST", number, Refused, b""));
    leaves_nothing(&furt, || {
        for number in (0..5).cycle().take(20) {
            furt.send(&Request::post(&format!("/l/{number}"), "").key(WEBSITE_KEY)).refused(502, "BAD_GATEWAY");
        }
    });
    in_peace(&furt, &service);
}

#[test]
fn fields_that_are_furts_own_cannot_be_removed_or_claimed() {
    let lie = "HTTP/1.1 200 OK\r\nConnection: x-gateway, x-request-id, server-timing, content-length, x-kept\r\nX-Gateway: other\r\n\
               X-Request-ID: smuggled\r\nX-Furt-Reason: smuggled\r\nX-Kept: smuggled\r\nKeep-Alive: smuggled\r\nContent-Length: 5\r\n\r\nhello";
    let (furt, service) = world(move |_, service| drop(service.write(lie)));
    let answer = furt.send(&get("/l/0"));
    assert_eq!((answer.status, answer.text().as_str(), answer.field("x-gateway")), (200, "hello", Some("furt")), "{answer:?}");
    assert!(answer.field("x-request-id").is_some_and(|id| id.len() == 26), "{answer:?}");
    assert!(answer.field("server-timing").is_some_and(|timing| timing.contains("gateway;dur=")), "{answer:?}");
    assert!(answer.fields.iter().all(|(_, value)| !value.contains("smuggled")), "{answer:?}");
    in_peace(&furt, &service);
}

#[test]
fn trailers_have_no_say_about_framing_or_identity() {
    let lie = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Content-Length\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\
               Content-Length: 500\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nHost: smuggled\r\nX-Gateway: smuggled\r\n\
               X-Request-ID: smuggled\r\nUpgrade: smuggled\r\n\r\n";
    let (furt, service) = world(move |_, service| drop(service.write(lie)));
    let mut client = Client::new(furt.public);
    for _ in 0..3 {
        let answer = client.ask(&get("/l/0").field("TE", "trailers"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{answer:?}");
        let names: Vec<_> = answer.trailers.iter().map(|(name, _)| name.to_lowercase()).collect();
        assert!(names.iter().all(|name| name == "x-sum"), "{names:?}");
        assert_eq!(client.ask(&get("/l/honest/between")).text(), "/l/honest/between");
    }
    in_peace(&furt, &service);
}

#[test]
fn what_comes_before_it_is_asked_for_is_no_answer() {
    // Each connection says an answer nobody asked for once it is idle.
    let service = RawService::start(|service| {
        while let Some(head) = service.request() {
            if service.write(ok(target(&head))).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
            if service.write(ok("smuggled")).is_err() {
                return;
            }
        }
    });
    let furt = Conf::new().start();
    furt.register("liar", &service.url(), &["* /l/* comments:read"]);
    for number in 0..50 {
        let (target, before) = (format!("/l/{number}"), service.accepted());
        let answer = furt.send(&if number % 2 == 0 { get(&target) } else { Request::post(&target, "").key(WEBSITE_KEY) });
        assert_eq!((answer.status, answer.text()), (200, target));
        // furt lets go of the connection as soon as it hears that.
        eventually("no connection is kept", || (service.held() == 0).then_some(()));
        assert!(service.accepted() >= before);
    }
    in_peace(&furt, &service);
}

#[test]
fn what_follows_an_answer_reaches_nobody_at_volume() {
    // Every third answer has another one behind it, as long and as well-formed as it.
    let service = RawService::start(|service| {
        for number in 0.. {
            let Some(head) = service.request() else { return };
            let honest = target(&head).to_owned();
            let extra = match (service.number + number) % 9 {
                0 => ok(honest.replace("honest", "smuggl")),
                3 => answer(404, &[("Connection", "keep-alive")], "smuggled"),
                6 => b"0\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_vec(),
                _ => Vec::new(),
            };
            if service.write([ok(&honest), extra].concat()).is_err() {
                return;
            }
        }
    });
    let furt = Conf::new().start();
    furt.register("liar", &service.url(), &["* /l/* comments:read"]);
    thread::scope(|scope| {
        for one in 0..8 {
            let furt = &furt;
            scope.spawn(move || {
                let mut client = Client::new(furt.public);
                for number in 0..250 {
                    let target = format!("/l/honest/{one}-{number}");
                    let answer = client.ask(&get(&target));
                    assert_eq!((answer.status, answer.text()), (200, target));
                }
            });
        }
    });
    assert!(service.accepted() > 300, "{} connections: each lie ends one", service.accepted());
    in_peace(&furt, &service);
}
