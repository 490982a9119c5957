//! Each limit on callers and on services: what is at it passes, one more gets its answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    client::{Client, Request},
    h2_wire::{self, Http2, Outcome},
    upstream::{Reply, Upstream, ok},
    world::{ADMIN_KEY, Conf, READER_KEY, WEBSITE_KEY, World, eventually},
};

const ROUTES: &[&str] = &["* /t/* comments:read"];

fn world(conf: Conf, upstream: &Upstream) -> World {
    let furt = conf.start();
    furt.register("limited", &upstream.url(), ROUTES);
    furt
}

fn get(target: &str) -> Request {
    Request::get(target).key(WEBSITE_KEY)
}

#[test]
fn a_head_has_so_many_bytes_fields_and_target_bytes() {
    let upstream = Upstream::start("u");
    let conf = Conf::new().server("max_header_size = 2 KiB").server("max_headers = 10").server("max_uri_length = 300");
    let furt = world(conf, &upstream);
    let bytes = |request: &Request| request.to_bytes(furt.public).len();
    let padded = |by: usize| get("/t/x").field("X-Pad", &"a".repeat(by));
    let room = 2048 - bytes(&padded(0));
    furt.send(&padded(room)).status(200);
    furt.send(&padded(room + 1)).refused(431, "HEADERS_TOO_LARGE");
    let many = |count: usize| (0..count).fold(get("/t/x"), |request, number| request.field(&format!("X-{number}"), "1"));
    // Host and the key are two of them.
    furt.send(&many(8)).status(200);
    furt.send(&many(9)).refused(431, "HEADERS_TOO_LARGE");
    let long = |length: usize| get(&format!("/t/{}", "a".repeat(length - 3)));
    furt.send(&long(300)).status(200);
    furt.send(&long(301)).refused(414, "URI_TOO_LONG");
    furt.send(&get(&format!("/t/x?{}", "a".repeat(296)))).refused(414, "URI_TOO_LONG");
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn a_body_has_so_many_bytes_however_it_comes() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("max_body_size = 1 KiB"), &upstream);
    let post = |length: usize| Request::post("/t/x", vec![b'x'; length]).key(WEBSITE_KEY);
    furt.send(&post(1024)).status(200);
    furt.send(&post(1025)).refused(413, "PAYLOAD_TOO_LARGE");
    furt.send(&post(1024).chunked()).status(200);
    furt.send(&post(1025).chunked()).refused(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(over_h2(&furt, 1024), Outcome::Answer(200));
    assert_eq!(over_h2(&furt, 1025), Outcome::Answer(413));
}

#[test]
fn what_no_key_says_is_the_default() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new(), &upstream);
    let padded = |by: usize| get("/t/x").field("X-Pad", &"a".repeat(by));
    let room = 64 * 1024 - padded(0).to_bytes(furt.public).len();
    furt.send(&padded(room)).status(200);
    furt.send(&padded(room + 1)).refused(431, "HEADERS_TOO_LARGE");
    let many = |count: usize| (0..count).fold(get("/t/x"), |request, number| request.field(&format!("X-{number}"), "1"));
    // Host and the key are two of the hundred.
    furt.send(&many(98)).status(200);
    furt.send(&many(99)).refused(431, "HEADERS_TOO_LARGE");
    let long = |length: usize| get(&format!("/t/{}", "a".repeat(length - 3)));
    furt.send(&long(8 * 1024)).status(200);
    furt.send(&long(8 * 1024 + 1)).refused(414, "URI_TOO_LONG");
    let post = |length: usize| Request::post("/t/x", vec![b'x'; length]).key(WEBSITE_KEY);
    furt.send(&post(10 << 20)).status(200);
    furt.send(&post((10 << 20) + 1)).refused(413, "PAYLOAD_TOO_LARGE");
    furt.send(&post((10 << 20) + 1).chunked()).refused(413, "PAYLOAD_TOO_LARGE");
    let mut client = Http2::with(furt.public, &[]);
    assert!(client.settle().contains(&(h2_wire::MAX_CONCURRENT_STREAMS, 128)));
}

#[test]
fn a_thousand_connections_and_six_hundred_guesses_are_the_default_of_one_address() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("trusted_proxies = 192.0.2.1"), &upstream);
    let mut kept: Vec<_> = (0..1_000).map(|_| Client::new(furt.public)).collect();
    let answer = kept[999].ask(&get("/t/x"));
    assert_eq!(answer.status, 200, "the last of them is served");
    assert!(Client::new(furt.public).closes(), "one too many");
    let guess = |number: usize| Request::get("/t/x").key(&format!("guess-{number}-of-a-key-that-is-long-enough"));
    for number in 0..600 {
        kept[0].ask(&guess(number)).refused(401, "UNAUTHORIZED");
    }
    // The more time the guesses take, the more of them have been given back, ten a second.
    let refused = (600..1_200).map(|number| kept[0].ask(&guess(number))).find(|answer| answer.status != 401).expect("it has an end");
    refused.refused(429, "RATE_LIMIT_EXCEEDED");
    assert_eq!((refused.field("retry-after"), refused.field("x-furt-reason")), (Some("1"), Some("failed-keys")));
}

#[test]
fn a_client_address_has_so_many_requests_whatever_its_key_and_connection() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("ip_rate_limit = 4/min"), &upstream);
    let ask = |key: &str, from: &str| furt.send(&Request::get("/t/x").key(key).field("X-Forwarded-For", from));
    for key in [WEBSITE_KEY, READER_KEY, ADMIN_KEY, WEBSITE_KEY] {
        ask(key, "192.0.2.1").status(200);
    }
    for key in [WEBSITE_KEY, READER_KEY, ADMIN_KEY] {
        let spent = ask(key, "192.0.2.1");
        spent.refused(429, "RATE_LIMIT_EXCEEDED");
        // One comes back every fifteen seconds.
        assert!(matches!(spent.field("retry-after").and_then(|wait| wait.parse().ok()), Some(1..=15)), "{spent:?}");
    }
    ask(WEBSITE_KEY, "192.0.2.2").status(200);
    assert_eq!(upstream.requests().len(), 5);
}

#[test]
fn the_same_limits_hold_over_http2() {
    let upstream = Upstream::start("u");
    let conf = Conf::new().server("max_header_size = 2 KiB").server("max_headers = 10").server("max_uri_length = 300");
    let furt = world(conf, &upstream);
    let ask = |path: &str, more: &[(&str, &str)]| {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
        let mut client = Http2::new(furt.public);
        client.write(h2_wire::headers(h2_wire::WHOLE, 1, &[&fields, more].concat()));
        client.outcome(1)
    };
    assert_eq!(ask("/t/x", &[]), Outcome::Answer(200));
    let long = |length: usize| format!("/t/{}", "a".repeat(length - 3));
    assert_eq!((ask(&long(300), &[]), ask(&long(301), &[])), (Outcome::Answer(200), Outcome::Answer(414)));
    // The key is one of them; what takes the place of Host is not counted.
    let fields: Vec<(&str, &str)> = ["x-1", "x-2", "x-3", "x-4", "x-5", "x-6", "x-7", "x-8", "x-9", "x-10"].map(|name| (name, "1")).into();
    assert_eq!((ask("/t/x", &fields[..9]), ask("/t/x", &fields)), (Outcome::Answer(200), Outcome::Answer(431)));
    let pad = "a".repeat(2048);
    assert_eq!((ask("/t/x", &[("x-pad", &pad[..1500])]), ask("/t/x", &[("x-pad", &pad)])), (Outcome::Answer(200), Outcome::Answer(431)));
    assert_eq!(upstream.requests().len(), 4);
}

fn over_h2(furt: &World, length: usize) -> Outcome {
    let mut client = Http2::new(furt.public);
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t/x"), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
    client.write(h2_wire::headers(h2_wire::END_HEADERS, 1, &fields));
    client.write(h2_wire::frame(h2_wire::DATA, h2_wire::END_STREAM, 1, &vec![b'x'; length]));
    client.outcome(1)
}

#[test]
fn a_head_and_the_next_request_have_so_much_time() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("client_timeout = 500ms").server("client_idle_timeout = 1s"), &upstream);
    let mut slow = Client::new(furt.public);
    slow.write("GET /t/x HTTP/1.1\r\nHo").unwrap();
    slow.read("GET").unwrap().refused(408, "REQUEST_TIMEOUT");
    assert!(slow.closes());
    let mut silent = Client::new(furt.public);
    assert!(silent.closes(), "it never said anything");
    let mut idle = Client::new(furt.public);
    assert_eq!(idle.ask(&get("/t/x")).status, 200);
    let since = Instant::now();
    assert!(idle.closes());
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
    // A head that trickles is not kept alive by it.
    let mut trickle = Client::new(furt.public);
    trickle.write("GET /t/").unwrap();
    let writer = trickle.stream();
    let trickling = thread::spawn(move || {
        let (mut writer, began) = (writer, Instant::now());
        while began.elapsed() < Duration::from_secs(2) && std::io::Write::write_all(&mut writer, b"x").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let began = Instant::now();
    trickle.read("GET").unwrap().refused(408, "REQUEST_TIMEOUT");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(trickle.closes());
    trickling.join().unwrap();
}

#[test]
fn a_connection_over_http2_retires_when_it_is_idle_whatever_it_pings() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("client_timeout = 500ms").server("client_idle_timeout = 1s"), &upstream);
    let mut client = Http2::new(furt.public);
    let goaway = eventually("it is told to go", || {
        // Now and then: more would be a flood.
        thread::sleep(Duration::from_millis(50));
        client.write(h2_wire::frame(h2_wire::PING, 0, 0, &[0; 8]));
        let frame = client.frame();
        frame.filter(|frame| frame.kind == h2_wire::GOAWAY)
    });
    assert_eq!(goaway.code(), 0, "without a fault");
    client.closes().expect("and then it ends");
}

#[test]
fn one_address_has_so_many_connections_unless_it_is_a_proxy_that_is_trusted() {
    let upstream = Upstream::start("u");
    let conf = Conf::new().server("max_connections_per_address = 3");
    let furt = world(conf.clone().server("trusted_proxies = 192.0.2.1"), &upstream);
    let mut kept: Vec<_> = (0..3).map(|_| Client::new(furt.public)).collect();
    kept.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200));
    assert!(Client::new(furt.public).closes(), "one too many");
    kept.pop();
    eventually("there is room again", || get("/t/x").try_send(furt.public).ok().filter(|answer| answer.status == 200));
    let furt = world(conf, &upstream);
    let mut trusted: Vec<_> = (0..10).map(|_| Client::new(furt.public)).collect();
    trusted.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200));
}

#[test]
fn the_process_has_so_many_connections() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("max_connections = 4"), &upstream);
    let mut kept: Vec<_> = (0..4).map(|_| Client::new(furt.public)).collect();
    kept.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200));
    assert!(Client::new(furt.public).closes(), "one too many");
    kept.clear();
    eventually("there is room again", || get("/t/x").try_send(furt.public).ok().filter(|answer| answer.status == 200));
}

#[test]
fn keys_are_guessed_so_often_and_then_none_is_looked_at() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().server("failed_key_limit = 3/min"), &upstream);
    let ask = |key: &str, from: &str| furt.send(&Request::get("/t/x").key(key).field("X-Forwarded-For", from));
    for number in 0..3 {
        ask(&format!("guess-{number}-of-a-key-that-is-long-enough"), "192.0.2.1").refused(401, "UNAUTHORIZED");
    }
    let spent = ask("guess-3-of-a-key-that-is-long-enough", "192.0.2.1");
    spent.refused(429, "RATE_LIMIT_EXCEEDED");
    assert!(matches!(spent.field("retry-after").and_then(|wait| wait.parse().ok()), Some(1..=60)), "{spent:?}");
    // Whoever guesses right then does not learn it.
    let right = ask(WEBSITE_KEY, "192.0.2.1");
    assert_eq!((right.status, right.field("x-ratelimit-limit")), (429, None));
    ask(WEBSITE_KEY, "192.0.2.2").status(200);
    furt.send(&Request::get("/t/x").field("X-Forwarded-For", "192.0.2.1")).refused(401, "UNAUTHORIZED");
}

#[test]
fn a_request_has_a_deadline_for_all_of_it() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/hang" => Reply::Hang,
        _ => {
            let (send, pieces) = std::sync::mpsc::channel();
            thread::spawn(move || {
                let _ = send.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec());
                while send.send(b"x".to_vec()).is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            Reply::Pieces(pieces)
        }
    });
    let furt = world(Conf::new().gateway("deadline = 700ms"), &upstream);
    furt.send(&get("/t/hang")).refused(504, "GATEWAY_TIMEOUT");
    let mut client = Client::new(furt.public);
    client.write(get("/t/trickle").to_bytes(furt.public)).unwrap();
    assert!(client.head().unwrap().line.contains("200"));
    let body = client.exactly(1000);
    assert!(body.is_err(), "an answer that was broken off looks like one");
}

#[test]
fn an_instance_has_so_many_requests_at_once_and_nothing_queues() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = (now.clone(), most.clone());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with(move |_| {
        let count = seen.0.fetch_add(1, Ordering::SeqCst) + 1;
        seen.1.fetch_max(count, Ordering::SeqCst);
        let _ = released.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        seen.0.fetch_sub(1, Ordering::SeqCst);
        Reply::Bytes(ok("x"))
    });
    let conf = Conf::new().grants("[service \"*\"]\npermissions = *\nmax_in_flight = 5\n").server("workers = 2");
    let furt = world(conf, &upstream);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let asking: Vec<_> = (0..40).map(|_| scope.spawn(|| furt.send(&get("/t/x")))).collect();
        eventually("all but five are answered", || (asking.iter().filter(|one| one.is_finished()).count() == 35).then_some(()));
        eventually("the five are there", || (now.load(Ordering::SeqCst) == 5).then_some(()));
        (0..5).for_each(|_| release.send(()).unwrap());
        let answers: Vec<_> = asking.into_iter().map(|one| one.join().unwrap()).collect();
        for full in answers.iter().filter(|answer| answer.status != 200) {
            full.refused(503, "SERVICE_UNAVAILABLE");
            assert_eq!((full.field("retry-after"), full.field("x-furt-reason")), (Some("1"), Some("instances-full")));
        }
        answers.iter().map(|answer| answer.status).collect()
    });
    assert_eq!((statuses.iter().filter(|status| **status == 200).count(), most.load(Ordering::SeqCst)), (5, 5));
    release.send(()).unwrap();
    furt.send(&get("/t/x")).status(200);
}

#[test]
fn a_service_that_wants_it_gets_a_connection_for_each_request() {
    let upstream = Upstream::start("u");
    let furt = world(Conf::new().grants("[service \"*\"]\npermissions = *\nkeep_alive = false\n"), &upstream);
    let mut client = Client::new(furt.public);
    for _ in 0..5 {
        assert_eq!(client.ask(&get("/t/x")).status, 200);
    }
    let requests = upstream.requests();
    let connections: std::collections::HashSet<_> = requests.iter().map(|seen| seen.connection).collect();
    assert_eq!((requests.len(), connections.len()), (5, 5));
    assert!(requests.iter().all(|seen| seen.field("connection") == Some("close")));
}

#[test]
fn one_connection_over_http2_has_so_many_requests_open_and_goes_on() {
    let upstream = Upstream::with(|seen| if seen.target == "/t/hang" { Reply::Hang } else { Reply::Bytes(ok("x")) });
    let furt = world(Conf::new().server("h2_max_streams = 4").gateway("upstream_timeout = 1s"), &upstream);
    let mut client = Http2::new(furt.public);
    let fields = |path| [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
    for stream in [1, 3, 5, 7, 9] {
        client.write(h2_wire::headers(h2_wire::WHOLE, stream, &fields("/t/hang")));
    }
    assert_eq!(client.outcome(9), Outcome::Reset(h2_wire::REFUSED_STREAM));
    // The other four are served, and then there is room.
    assert_eq!(client.outcome(1), Outcome::Answer(504));
    eventually("all four were asked", || {
        let asked = upstream.requests().len();
        assert!(asked <= 4, "the fifth reached nobody");
        (asked == 4).then_some(())
    });
    let mut again = Http2::new(furt.public);
    again.write(h2_wire::headers(h2_wire::WHOLE, 1, &fields("/t/x")));
    assert_eq!(again.outcome(1), Outcome::Answer(200));
    client.write(h2_wire::headers(h2_wire::WHOLE, 11, &fields("/t/x")));
    assert_eq!(client.outcome(11), Outcome::Answer(200));
}
