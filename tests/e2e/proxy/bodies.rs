//! Bodies: streamed both ways, whole, bounded.

use std::sync::{Mutex, mpsc};

use crate::{
    client::{Client, Request},
    upstream::{Reply, Upstream, ok},
    wire,
    world::{Conf, WEBSITE_KEY, World, eventually},
};

const ROUTES: &[&str] = &["* /b comments:read"];

fn world(conf: Conf, upstream: &Upstream) -> World {
    let furt = conf.start();
    furt.register("bodies", &upstream.url(), ROUTES);
    furt
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A mebibyte that shows when pieces are lost, doubled or swapped.
fn mebibyte() -> Vec<u8> {
    (0..1u32 << 18).flat_map(|number| number.to_be_bytes()).collect()
}

#[test]
fn a_body_reaches_the_service_before_its_last_piece_is_sent() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("done")));
    let furt = world(Conf::new(), &upstream);
    let head = format!("POST /b HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n");

    let mut client = Client::new(furt.public);
    client.write(format!("{head}Content-Length: 22\r\n\r\nfirst piece")).expect("sent");
    eventually("the first piece is there", || contains(&upstream.raw(), b"first piece").then_some(()));
    assert!(upstream.requests().is_empty(), "and the request is not over");
    client.write("second one!").expect("sent");
    assert_eq!(client.read("POST").expect("an answer").body, b"done");
    assert_eq!(upstream.last().body, b"first piecesecond one!");

    let mut client = Client::new(furt.public);
    client.write(format!("{head}Transfer-Encoding: chunked\r\n\r\nb\r\nthird piece\r\n")).expect("sent");
    eventually("the third piece is there", || contains(&upstream.raw(), b"third piece").then_some(()));
    client.write("4\r\nlast\r\n0\r\n\r\n").expect("sent");
    assert_eq!(client.read("POST").expect("an answer").body, b"done");
    let seen = upstream.last();
    assert_eq!(seen.body, b"third piecelast");
    assert_eq!((seen.field("transfer-encoding"), seen.field("content-length")), (Some("chunked"), None));
}

#[test]
fn an_answer_reaches_the_client_before_its_last_piece_is_sent() {
    let (sender, receiver) = mpsc::channel();
    let receiver = Mutex::new(Some(receiver));
    let upstream = Upstream::with(move |_| Reply::Pieces(receiver.lock().expect("once").take().expect("one request")));
    let furt = world(Conf::new(), &upstream);
    let mut client = Client::new(furt.public);
    client.write(Request::get("/b").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
    let send = |text: &str| sender.send(text.as_bytes().to_vec()).expect("the service waits for it");
    send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    let head = client.head().expect("the head comes before any body");
    assert!(head.line.starts_with("HTTP/1.1 200"), "{}", head.line);
    send("8\r\ndata: 1\n\r\n");
    assert_eq!(client.exactly(13).expect("the first event"), b"8\r\ndata: 1\n\r\n");
    send("8\r\ndata: 2\n\r\n0\r\nX-Sum: 2\r\n\r\n");
    let rest = client.exactly(13 + 3).expect("the second event");
    assert_eq!(rest, b"8\r\ndata: 2\n\r\n0\r\n");
}

#[test]
fn a_mebibyte_goes_through_unchanged_both_ways_and_in_both_framings() {
    let upstream = Upstream::with(|seen| match seen.field("x-framing") {
        Some("chunked") => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for piece in seen.body.chunks(70_000) {
                bytes.extend(format!("{:x}\r\n", piece.len()).bytes().chain(piece.iter().copied()).chain(*b"\r\n"));
            }
            bytes.extend(b"0\r\n\r\n");
            Reply::Bytes(bytes)
        }
        Some("close") => Reply::Last(b"HTTP/1.1 200 OK\r\n\r\n".iter().copied().chain(seen.body.iter().copied()).collect()),
        _ => Reply::Bytes(ok(&seen.body)),
    });
    let furt = world(Conf::new(), &upstream);
    let body = mebibyte();
    for framing in ["length", "chunked", "close"] {
        let request = Request::post("/b", &body).key(WEBSITE_KEY).field("X-Framing", framing);
        for request in [request.clone(), request.chunked()] {
            let answer = furt.send(&request);
            answer.status(200);
            assert!(answer.body == body, "{framing}: {} bytes came back", answer.body.len());
        }
    }
    assert!(upstream.requests().iter().all(|seen| seen.body == body));
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn a_body_beyond_max_body_size_is_refused() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("done")));
    let furt = world(Conf::new().server("max_body_size = 10 KiB"), &upstream);
    let exact = Request::post("/b", vec![b'x'; 10_240]).key(WEBSITE_KEY);
    furt.send(&exact).status(200);
    furt.send(&exact.clone().chunked()).status(200);
    let over = Request::post("/b", vec![b'x'; 10_241]).key(WEBSITE_KEY);
    furt.send(&over).refused(413, "PAYLOAD_TOO_LARGE");
    furt.send(&over.chunked()).refused(413, "PAYLOAD_TOO_LARGE");
    // Told by its length it never begins; found out on the way it never ends well.
    let whole: Vec<_> = upstream.requests().iter().map(|seen| seen.body.len()).collect();
    assert_eq!(whole, [10_240, 10_240]);
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn an_answer_cut_short_is_not_passed_off_as_whole() {
    let upstream = Upstream::with(|seen| match seen.field("x-framing") {
        Some("chunked") => Reply::Last(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec()),
        _ => Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec()),
    });
    let furt = world(Conf::new(), &upstream);
    for framing in ["length", "chunked"] {
        let error = Request::get("/b").key(WEBSITE_KEY).field("X-Framing", framing).try_send(furt.public).expect_err("cut short");
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection ends: {error}");
    }
}

#[test]
fn an_answer_that_stalls_is_cut_off() {
    let upstream = Upstream::with(|_| Reply::Pieces(stalled()));
    let furt = world(Conf::new().server("body_idle_timeout = 300ms"), &upstream);
    let mut client = Client::new(furt.public);
    client.write(Request::get("/b").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
    assert!(client.head().expect("the head").line.starts_with("HTTP/1.1 200"));
    assert_eq!(client.exactly(9).expect("what was sent"), b"beginning");
    let end = client.exactly(1).expect_err("nothing more comes");
    assert_ne!(end.kind(), std::io::ErrorKind::WouldBlock, "furt ends it, not the patience of this client");
}

/// A head, a beginning, and then nothing for as long as the program runs.
fn stalled() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    sender.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbeginning".to_vec()).expect("the receiver is here");
    std::mem::forget(sender);
    receiver
}

#[test]
fn a_client_that_leaves_in_the_middle_takes_the_request_with_it() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("done")));
    let furt = world(Conf::new(), &upstream);
    let mut client = Client::new(furt.public);
    client.write(format!("POST /b HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nContent-Length: 100\r\n\r\nbeginning")).expect("sent");
    eventually("the beginning is there", || contains(&upstream.raw(), b"beginning").then_some(()));
    drop(client);
    // The half request's connection is not used for the next.
    furt.get("/b").status(200);
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn a_client_that_asks_first_is_told_to_continue_by_the_service() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("done")));
    let furt = world(Conf::new(), &upstream);
    let head = "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let mut client = Client::new(furt.public);
    client.write(format!("POST /b HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n{head}")).expect("sent");
    let interim = client.head().expect("an interim answer before any body");
    assert!(interim.line.starts_with("HTTP/1.1 100"), "{}", interim.line);
    client.write("hello").expect("sent");
    assert_eq!(client.read("POST").expect("an answer").status, 200);
    assert_eq!(upstream.request().body, b"hello");
    // A refused one is told so instead of sending its body.
    let mut client = Client::new(furt.public);
    client.write(format!("POST /b HTTP/1.1\r\nHost: h\r\n{head}")).expect("sent");
    let answer = client.read("POST").expect("an answer");
    answer.refused(401, "UNAUTHORIZED");
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
}

#[test]
fn trailers_go_both_ways() {
    let upstream = Upstream::with(|_| {
        Reply::Bytes(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n".to_vec())
    });
    let furt = world(Conf::new(), &upstream);
    let mut client = Client::new(furt.public);
    client
        .write(format!(
            "POST /b HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nTE: trailers\r\nTrailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 7\r\n\r\n"
        ))
        .expect("sent");
    let answer = client.read("POST").expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
    let seen = upstream.request();
    assert_eq!((seen.body.as_slice(), wire::value(&seen.trailers, "x-check")), (&b"abc"[..], Some("7")));
    assert_eq!(wire::value(&answer.trailers, "x-sum"), Some("42"), "{answer:?} {:?}", answer.trailers);
}

#[test]
fn a_slow_head_is_timed_out_and_a_body_that_stalls_is_too() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("done")));
    let furt = world(Conf::new().server("client_timeout = 300ms").server("body_idle_timeout = 300ms"), &upstream);
    let mut slow = Client::new(furt.public);
    slow.write("GET /b HTTP/1.1\r\nHost: h\r\n").expect("sent");
    let end = String::from_utf8_lossy(&slow.rest()).into_owned();
    assert!(end.is_empty() || end.starts_with("HTTP/1.1 408"), "{end}");
    let mut stalled = Client::new(furt.public);
    stalled
        .write(format!("POST /b HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nContent-Length: 100\r\n\r\nbeginning"))
        .expect("sent");
    let end = String::from_utf8_lossy(&stalled.rest()).into_owned();
    assert!(end.is_empty() || end.starts_with("HTTP/1.1 408"), "{end}");
    assert!(upstream.requests().is_empty());
}
