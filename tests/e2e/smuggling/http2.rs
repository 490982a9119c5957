//! HTTP/2 frames by hand: what no well-behaved client library would send.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    sync::{Mutex, mpsc},
};

use crate::{
    client::{Client, Request},
    smuggling::Arena,
    upstream::{Reply, Upstream, ok},
    world::{ADMIN_KEY, Conf, WEBSITE_KEY},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Field<'a> = (&'a str, &'a str);

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Literal fields without indexing and without Huffman coding (RFC 7541 §6.2.2): any bytes at all.
fn fields(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            match u8::try_from(text.len()) {
                Ok(length @ 0..=126) => block.push(length),
                _ => {
                    let rest = text.len() - 127;
                    block.extend([
                        127,
                        u8::try_from(rest & 127).expect("seven bits") | 128,
                        u8::try_from(rest >> 7).expect("a short field"),
                    ]);
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Sends one stream and waits until furt has answered, reset it or closed.
fn send(arena: &Arena, head: &[Field<'_>], body: Option<&str>, trailers: Option<&[Field<'_>]>) {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let last = |more: bool| if more { 0 } else { END_STREAM };
    bytes.extend(frame(HEADERS, END_HEADERS | last(body.is_some() || trailers.is_some()), 1, &fields(head)));
    if let Some(body) = body {
        bytes.extend(frame(DATA, last(trailers.is_some()), 1, body.as_bytes()));
    }
    if let Some(trailers) = trailers {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(trailers)));
    }
    let mut client = Client::new(arena.furt.public);
    client.write(bytes).expect("sent");
    loop {
        let Ok(head) = client.exactly(9) else { return };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let Ok(_) = client.exactly(usize::try_from(length).expect("a short frame")) else { return };
        if matches!((head[3], head[8]), (HEADERS, 1) | (RST_STREAM, 1)) || head[3] == GOAWAY {
            return;
        }
    }
}

const GOOD: [Field<'static>; 5] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/api/comments/x"), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];

/// The good head with these fields in place of, or after, its own.
fn with<'a>(changed: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut head: Vec<Field<'a>> = GOOD.to_vec();
    for (name, value) in changed {
        match head.iter_mut().find(|field| field.0 == *name && name.starts_with(':')) {
            Some(field) => field.1 = value,
            None => head.push((name, value)),
        }
    }
    head
}

#[test]
fn frames_by_hand_are_understood() {
    let arena = Arena::start();
    send(&arena, &with(&[]), Some("hello"), None);
    let seen = arena.comments.request();
    assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/api/comments/x", &b"hello"[..]));
}

#[test]
fn no_field_of_http2_becomes_a_line_of_http1() {
    let arena = Arena::start();
    let inner = format!("x\r\n\r\nGET /admin/inner HTTP/1.1\r\nHost: h\r\nX-API-Key: {ADMIN_KEY}\r\n\r\n");
    let path = format!("/api/comments/x HTTP/1.1\r\nHost: h\r\n\r\nGET /admin/x HTTP/1.1\r\nX-API-Key: {ADMIN_KEY}\r\n\r\n");
    let cases: Vec<Vec<Field<'_>>> = vec![
        vec![("x-split", &inner)],
        vec![("x-split", "a\nb: c")],
        vec![("x-split", "a\rb")],
        vec![("x-nul", "a\0b")],
        vec![("x: y\r\nz", "a")],
        vec![("x y", "a")],
        vec![("x:y", "a")],
        vec![("X-Upper", "a")],
        vec![("", "a")],
        vec![(":path", &path)],
        vec![(":path", "/api/comments/x y")],
        vec![(":path", "api/comments/x")],
        vec![(":path", "")],
        vec![(":path", "/api/comments/../x")],
        vec![(":path", "/api/comments/%2e%2e/x")],
        vec![(":path", "http://h/admin/x")],
        vec![(":path", "*")],
        vec![(":method", "GET /admin/x HTTP/1.1\r\n")],
        vec![(":method", "PO ST")],
        vec![(":method", "CONNECT")],
        vec![(":method", "")],
        vec![(":authority", "h\r\nX-API-Key-Name: Admin")],
        vec![(":authority", "user@h")],
        vec![(":authority", "a b")],
        vec![(":authority", "a/b")],
        vec![("host", "other")],
        vec![(":scheme", "http\r\nX: y")],
        vec![(":unknown", "x")],
        vec![("x", "y"), (":late", "x")],
        // Fields of HTTP/1.1's connections (RFC 9113 §8.2.2).
        vec![("transfer-encoding", "chunked")],
        vec![("connection", "x-api-key-name")],
        vec![("upgrade", "h2c")],
        vec![("te", "gzip")],
        vec![("proxy-connection", "keep-alive")],
        // A length that is not that of the body.
        vec![("content-length", "3")],
        vec![("content-length", "7")],
        vec![("content-length", "5"), ("content-length", "6")],
        vec![("content-length", "+5")],
        vec![("content-length", "0")],
        vec![("x-api-key", ADMIN_KEY)],
    ];
    for case in cases {
        let before = arena.comments.requests().len();
        send(&arena, &with(&case), Some("hello"), None);
        let seen = arena.comments.requests().split_off(before);
        assert_eq!(arena.comments.faults(), [""; 0], "{case:?}");
        assert!(arena.admin.raw_requests().is_empty() && arena.wide.raw_requests().is_empty(), "{case:?}");
        // Dropping a harmless field of the connection and forwarding the rest is the one other honest way.
        let harmless = case
            .iter()
            .all(|(name, _)| ["connection", "upgrade", "te", "proxy-connection", "x-upper"].contains(&name.to_lowercase().as_str()));
        assert!(seen.is_empty() || (harmless && seen.len() == 1), "{case:?} was forwarded: {seen:?}");
        for seen in seen {
            assert_eq!(
                (seen.target.as_str(), seen.body.as_slice(), seen.field("x-api-key-name")),
                ("/api/comments/x", &b"hello"[..], Some("Website"))
            );
            assert!(seen.values("connection").iter().all(|value| *value == "keep-alive") && seen.values("upgrade").is_empty(), "{seen:?}");
        }
    }
}

#[test]
fn a_fragment_goes_nowhere() {
    let arena = Arena::start();
    for path in ["/api/comments/x#/../../admin/x", "/api/comments/x?q#y", "/admin/x#/api/comments/x"] {
        send(&arena, &with(&[(":path", path)]), None, None);
    }
    // Refused, or cut off before matching: either way what is forwarded is what was matched.
    assert!(arena.comments.requests().iter().all(|seen| ["/api/comments/x", "/api/comments/x?q"].contains(&seen.target.as_str())));
    assert!(arena.admin.raw_requests().is_empty());
    assert_eq!(arena.comments.faults(), [""; 0]);
}

#[test]
fn trailers_with_pseudo_fields_are_no_trailers() {
    let arena = Arena::start();
    let cases: &[&[Field<'_>]] = &[
        &[(":path", "/admin/x")],
        &[(":status", "200")],
        &[("x-ok", "1"), (":authority", "evil")],
        &[("x", "y\r\n\r\nGET /admin/x HTTP/1.1")],
        &[("transfer-encoding", "chunked")],
        &[("content-length", "9")],
    ];
    for trailers in cases {
        let before = arena.comments.requests().len();
        send(&arena, &with(&[]), Some("hello"), Some(trailers));
        assert_eq!(arena.comments.faults(), [""; 0], "{trailers:?}");
        for seen in arena.comments.requests().split_off(before) {
            assert_eq!((seen.body.as_slice(), seen.trailers.as_slice()), (&b"hello"[..], &[][..]), "{trailers:?}");
        }
    }
    assert!(arena.admin.raw_requests().is_empty());
}

/// A connection with its preface sent.
fn open(furt: std::net::SocketAddr) -> Client {
    let mut client = Client::new(furt);
    client.write([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()).expect("sent");
    client
}

/// The payload of the next DATA frame of a stream that has one; what comes before it is passed over.
fn next_data(client: &mut Client, stream: u8) -> io::Result<Vec<u8>> {
    loop {
        let head = client.exactly(9)?;
        let payload = client.exactly(usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).expect("a short frame"))?;
        if (head[3], head[8]) == (DATA, stream) && !payload.is_empty() {
            return Ok(payload);
        }
    }
}

#[test]
fn an_answer_does_not_end_the_streams_beside_it() {
    let (pieces, said) = mpsc::channel();
    let said = Mutex::new(Some(said));
    let upstream = Upstream::with(move |seen| match seen.target.as_str() {
        "/s/stream" => said.lock().expect("once").take().map_or(Reply::Hang, Reply::Pieces),
        target => Reply::Bytes(ok(target)),
    });
    let furt = Conf::new().server("body_idle_timeout = 300ms").start();
    furt.register("s", &upstream.url(), &["* /s/* comments:read"]);
    let mut client = open(furt.public);
    let get =
        |stream: u8, path: &str| frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(&with(&[(":method", "GET"), (":path", path)])));
    client.write(get(1, "/s/stream")).expect("sent");
    pieces.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nbegin".to_vec()).expect("the service waits");
    assert_eq!(next_data(&mut client, 1).expect("a piece"), b"begin");
    client.write(get(3, "/s/x")).expect("sent");
    assert_eq!(next_data(&mut client, 3).expect("an answer"), b"/s/x");
    // A body that stalls tells when the time is over.
    for _ in 0..2 {
        let mut stalled = Client::new(furt.public);
        let asked = Request::post("/s/x", "12345").key(WEBSITE_KEY).to_bytes(furt.public);
        stalled.write(&asked[..asked.len() - 1]).expect("sent");
        assert_eq!(stalled.read("POST").expect("an answer").status, 408);
    }
    pieces.send(b"end".to_vec()).expect("the service waits");
    assert_eq!(next_data(&mut client, 1).expect("the stream lives"), b"end");
}

#[test]
fn a_body_that_never_ends_does_not_keep_the_service_s_connection_after_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let furt = Conf::new().start();
    furt.register("early", &format!("http://{}", listener.local_addr().expect("bound")), &["POST /s/* comments:read"]);
    let (closed, is_closed) = mpsc::channel();
    std::thread::spawn(move || {
        // Probes come on connections of their own, and are not answered.
        for mut stream in listener.incoming().map_while(Result::ok) {
            let closed = closed.clone();
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                let mut piece = [0; 1024];
                while !seen.ends_with(b"abc\r\n") {
                    match stream.read(&mut piece) {
                        Ok(1..) => seen.extend_from_slice(piece.split(|byte| *byte == 0).next().unwrap_or_default()),
                        _ => return,
                    }
                    piece = [0; 1024];
                }
                let _ = stream.write_all(&ok("early"));
                while stream.read(&mut piece).is_ok_and(|count| count > 0) {}
                let _ = closed.send(());
            });
        }
    });
    let mut client = open(furt.public);
    let head = frame(HEADERS, END_HEADERS, 1, &fields(&with(&[(":path", "/s/x")])));
    client.write([head, frame(DATA, 0, 1, b"abc")].concat()).expect("sent");
    assert_eq!(next_data(&mut client, 1).expect("an answer"), b"early");
    is_closed.recv_timeout(std::time::Duration::from_secs(20)).expect("the service's connection ends");
    // The client's own lives on.
    client.write(frame(HEADERS, END_HEADERS | END_STREAM, 3, &fields(&with(&[(":method", "GET"), (":path", "/health")])))).expect("sent");
    assert!(String::from_utf8_lossy(&next_data(&mut client, 3).expect("an answer")).contains("healthy"));
}
