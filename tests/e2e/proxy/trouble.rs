//! Services that refuse, hang, talk nonsense or close: what the caller is told, and what is tried again.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::{Client, Request},
    port::Port,
    upstream::{Reply, Upstream, answer, ok},
    world::{Conf, WEBSITE_KEY, World, eventually},
};

const ROUTES: &[&str] = &["* /t comments:read"];

fn world(conf: Conf, url: &str) -> World {
    let furt = conf.start();
    furt.register("trouble", url, ROUTES);
    furt
}

#[test]
fn a_refused_connect_is_502() {
    let nobody = Port::take();
    let furt = world(Conf::new(), &nobody.url());
    furt.get("/t").refused(502, "BAD_GATEWAY");
    furt.send(&Request::post("/t", "x").key(WEBSITE_KEY)).refused(502, "BAD_GATEWAY");
    assert_eq!(furt.health()["status"], "healthy");
}

#[test]
fn a_service_that_does_not_answer_in_time_is_504() {
    let upstream = Upstream::with(|_| Reply::Hang);
    let furt = world(Conf::new().gateway("upstream_timeout = 300ms"), &upstream.url());
    furt.get("/t").refused(504, "GATEWAY_TIMEOUT");
    furt.send(&Request::post("/t", "x").key(WEBSITE_KEY)).refused(504, "GATEWAY_TIMEOUT");
    // What was sent is not sent again: it may have been acted upon.
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_route_may_have_a_timeout_of_its_own() {
    let upstream = Upstream::with(|_| Reply::Hang);
    let furt = Conf::new().start();
    let route = json!({"method": "GET", "path": "/t", "permission": "comments:read", "timeout": "200ms"});
    furt.post(&json!({"service": "trouble", "url": upstream.url(), "routes": [route]})).status(200);
    // furt's own is 30 s, beyond the patience of this client.
    furt.get("/t").refused(504, "GATEWAY_TIMEOUT");
}

#[test]
fn nonsense_from_a_service_is_502_and_reaches_no_caller() {
    let nonsense: &'static [&'static [u8]] = &[
        b"garbage\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc Nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX-Nul: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nsmuggled",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"",
    ];
    let next = AtomicUsize::new(0);
    // A POST is never sent twice, so each request gets the next piece of nonsense.
    let upstream = Upstream::with(move |_| Reply::Last(nonsense[next.fetch_add(1, Ordering::SeqCst) % nonsense.len()].to_vec()));
    let furt = world(Conf::new(), &upstream.url());
    for bytes in nonsense {
        let answer = furt.send(&Request::post("/t", "x").key(WEBSITE_KEY));
        assert_eq!((answer.status, answer.code().as_str()), (502, "BAD_GATEWAY"), "{:?}: {answer:?}", String::from_utf8_lossy(bytes));
        assert!(!answer.text().contains("smuggled"), "{answer:?}");
    }
}

#[test]
fn a_kept_alive_connection_that_the_service_closed_loses_no_get() {
    // Each connection answers ten requests and takes one more without answering: the classic race,
    // well within the budget of retries.
    let count = Mutex::new(HashMap::<usize, usize>::new());
    let upstream = Upstream::with(move |seen| {
        let mut count = count.lock().expect("nobody panics with it");
        let on_this = count.entry(seen.connection).or_default();
        *on_this += 1;
        if *on_this > 10 { Reply::Last(Vec::new()) } else { Reply::Bytes(ok("x")) }
    });
    let furt = world(Conf::new(), &upstream.url());
    let mut client = Client::new(furt.public);
    let statuses: Vec<_> = (0..100).map(|_| client.ask(&Request::get("/t").key(WEBSITE_KEY)).status).collect();
    assert_eq!(statuses, [200; 100]);
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn connections_closed_while_idle_lose_no_get_either() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("x")));
    let furt = world(Conf::new(), &upstream.url());
    for _ in 0..30 {
        furt.get("/t").status(200);
        upstream.drop_connections();
    }
    assert_eq!(upstream.requests().len(), 30);
}

#[test]
fn what_is_not_idempotent_or_had_a_body_is_not_sent_twice() {
    let upstream =
        Upstream::with(|seen| if seen.method == "GET" && seen.body.is_empty() { Reply::Bytes(ok("x")) } else { Reply::Last(Vec::new()) });
    let furt = world(Conf::new(), &upstream.url());
    furt.get("/t").status(200);
    for (number, request) in
        [Request::post("/t", "pay"), Request::new("PATCH", "/t").body("x"), Request::new("PUT", "/t").body("x"), Request::post("/t", "")]
            .into_iter()
            .enumerate()
    {
        furt.send(&request.key(WEBSITE_KEY)).refused(502, "BAD_GATEWAY");
        // A GET between them leaves a connection to reuse.
        furt.get("/t").status(200);
        let others = upstream.requests().iter().filter(|seen| seen.method != "GET").count();
        assert_eq!(others, number + 1, "{:?}", upstream.requests());
    }
}

#[test]
fn a_fresh_connection_that_fails_is_not_retried_for_ever() {
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let upstream = Upstream::with(|_| {
        TRIES.fetch_add(1, Ordering::SeqCst);
        Reply::Last(Vec::new())
    });
    let furt = world(Conf::new(), &upstream.url());
    furt.get("/t").refused(502, "BAD_GATEWAY");
    assert!(TRIES.load(Ordering::SeqCst) <= 2, "{}", TRIES.load(Ordering::SeqCst));
}

#[test]
fn errors_of_the_service_are_passed_on_as_they_are() {
    let upstream = Upstream::with(|_| Reply::Bytes(answer(503, &[("Retry-After", "7"), ("Content-Type", "text/html")], "own words")));
    let furt = world(Conf::new(), &upstream.url());
    let answer = furt.get("/t");
    assert_eq!((answer.status, answer.text().as_str(), answer.field("retry-after")), (503, "own words", Some("7")));
    assert_eq!(answer.field("content-type"), Some("text/html"));
    assert!(answer.field("x-furt-reason").is_none(), "it is not furt's");
    assert_eq!(upstream.requests().len(), 1, "and not tried again");
}

#[test]
fn a_service_that_does_not_switch_answers_an_upgrade_like_any_request() {
    let upstream = Upstream::start("plain");
    let furt = world(Conf::new(), &upstream.url());
    let request = Request::get("/t").key(WEBSITE_KEY).field("Connection", "Upgrade").field("Upgrade", "websocket");
    let answer = furt.send(&request.field("Sec-WebSocket-Key", "x").field("Sec-WebSocket-Version", "13"));
    assert_eq!((answer.status, answer.field("x-upstream")), (200, Some("plain")));
    let seen = upstream.request();
    assert_eq!((seen.values("upgrade"), seen.values("connection")), (vec!["websocket"], vec!["upgrade"]));
    assert_eq!((answer.field("upgrade"), answer.field("connection")), (None, None));
    furt.get("/t").status(200);
}

#[test]
fn a_service_that_stops_and_listens_again_is_reached_again() {
    let port = Port::take();
    let mut upstream = Upstream::start_on(port.number(), "first");
    let furt = world(Conf::new().quick(), &upstream.url());
    furt.get("/t").status(200);
    upstream.stop();
    let down = furt.get("/t");
    assert!(matches!(down.status, 502 | 503), "{down:?}");
    let _again = Upstream::start_on(port.number(), "second");
    let answer = eventually("it is served again", || Some(furt.get("/t")).filter(|answer| answer.status == 200));
    assert_eq!(answer.field("x-upstream"), Some("second"));
}

#[test]
fn the_service_has_its_time_from_the_end_of_a_long_upload_on() {
    let upstream = Upstream::with(|_| Reply::Bytes(ok("all of it")));
    let furt = world(Conf::new().gateway("upstream_timeout = 1s"), &upstream.url());
    let mut client = Client::new(furt.public);
    client.write(format!("POST /t HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nTransfer-Encoding: chunked\r\n\r\n")).expect("sent");
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        let before = upstream.raw().len();
        client.write("1\r\nx\r\n").expect("sent");
        eventually("the piece is there", || (upstream.raw().len() > before).then_some(()));
    }
    client.write("0\r\n\r\n").expect("sent");
    assert_eq!(client.read("POST").expect("an answer").status, 200);
}

#[test]
fn a_service_that_speaks_http_1_0_does_not_close_the_caller_s_connection() {
    let upstream = Upstream::with(|_| Reply::Bytes(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold".to_vec()));
    let furt = world(Conf::new(), &upstream.url());
    let mut client = Client::new(furt.public);
    for _ in 0..3 {
        client.write(Request::get("/t").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
        let head = client.head().expect("an answer on the same connection");
        assert!(head.line.starts_with("HTTP/1.1 200"), "{}", head.line);
        assert_eq!(client.exactly(3).expect("its body"), b"old");
    }
}
