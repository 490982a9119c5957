//! Services that hang, accept nothing, reset, trickle or break off.

use std::{
    io::{ErrorKind, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::{conf, get, leaves_nothing, post, world, world_with};
use crate::{
    client::{Client, Request},
    h2_wire::{self, Http2, Outcome},
    raw_service::{Accepted, RawService, target},
    upstream::ok,
    world::{WEBSITE_KEY, World, eventually},
};

/// Callers ask at once, so many with each request; all are refused with this, and no sooner than `least`.
#[track_caller]
fn all_refused(furt: &World, (times, requests): (usize, &[Request]), (status, code): (u16, &str), least: Duration) {
    thread::scope(|scope| {
        let ask = |request: &Request| {
            let began = Instant::now();
            (furt.send(request), began.elapsed())
        };
        let asking = requests.iter().cycle().take(times * requests.len()).map(|request| scope.spawn(move || ask(request)));
        for one in asking.collect::<Vec<_>>() {
            let (answer, took) = one.join().expect("it is answered");
            answer.refused(status, code);
            assert!(took >= least && took < least + Duration::from_secs(3), "{took:?}");
        }
    });
}

/// Each request made one connection, for it may have been acted upon; a probe or two may come besides.
#[track_caller]
fn asked_once(connections: usize, requests: usize) {
    assert!((requests..=requests + 3).contains(&connections), "{connections} connections for {requests} requests");
}

/// The head of an answer, and then a byte every now and then for as long as furt takes it.
fn trickle(service: &mut Accepted, head: &[u8]) {
    let mut taken = service.write(head);
    while taken.is_ok() {
        thread::sleep(Duration::from_millis(100));
        taken = service.write(b"x");
    }
}

#[test]
fn one_that_hangs_or_trickles_its_head_is_504_in_time() {
    let service = RawService::start(|service| {
        let Some(head) = service.request() else { return };
        match target(&head) {
            "/t/hang" => service.until_closed(),
            "/t/status" => trickle(service, b"HTTP/1.1 200 "),
            "/t/interim" => trickle(service, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 "),
            _ => trickle(service, b"HTTP/1.1 200 OK\r\nX-Slow: "),
        }
    });
    let furt = world(&service.url());
    let requests = ["/t/hang", "/t/status", "/t/interim", "/t/field"].map(|target| [get(target), post(target, "pay")]).concat();
    leaves_nothing(&furt, || {
        let before = service.accepted();
        all_refused(&furt, (4, &requests), (504, "GATEWAY_TIMEOUT"), Duration::from_millis(900));
        asked_once(service.accepted() - before, 4 * requests.len());
        eventually("the service is let go", || (service.held() == 0).then_some(()));
    });
}

/// A socket that listens and whose queue is full: whoever connects now hears nothing.
fn full_listener() -> (Socket, SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound").as_socket().expect("IPv4");
    let mut queued = Vec::new();
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let connected = socket.connect_timeout(&address.into(), Duration::from_millis(200));
        queued.push(socket);
        match connected {
            Ok(()) => assert!(queued.len() < 100, "a queue of no length has an end"),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
                return (listener, address, queued);
            }
        }
    }
}

#[test]
fn one_that_accepts_nothing_is_502_after_connect_timeout() {
    let (_listener, address, _queued) = full_listener();
    let furt = world(&format!("http://{address}"));
    let requests = [get("/t/x"), post("/t/x", "pay")];
    leaves_nothing(&furt, || all_refused(&furt, (5, &requests), (502, "BAD_GATEWAY"), Duration::from_millis(450)));
}

#[test]
fn one_instance_that_hangs_in_connecting_leaves_the_others_to_serve() {
    let (_listener, address, _queued) = full_listener();
    let well = RawService::start(|service| while service.request().is_some_and(|_| service.write(ok("well")).is_ok()) {});
    let furt = conf(&[], &[]).start();
    furt.register_instance("faulty", "hangs", &format!("http://{address}"), &["* /t/* comments:read"]);
    furt.register_instance("faulty", "well", &well.url(), &["* /t/* comments:read"]);
    leaves_nothing(&furt, || {
        for _ in 0..20 {
            furt.send(&get("/t/x")).status(200);
            furt.send(&post("/t/x", "")).status(200);
        }
    });
}

#[test]
fn one_that_resets_once_it_was_asked_is_502() {
    let service = RawService::start(|service| {
        let Some(head) = service.request() else { return };
        if target(&head) == "/t/half" {
            service.take(100_000);
        }
        service.reset();
    });
    let furt = world(&service.url());
    let requests = [get("/t/head"), post("/t/head", "pay"), post("/t/half", vec![b'x'; 1 << 20])];
    leaves_nothing(&furt, || {
        let before = service.accepted();
        all_refused(&furt, (6, &requests), (502, "BAD_GATEWAY"), Duration::ZERO);
        asked_once(service.accepted() - before, 6 * requests.len());
    });
}

#[test]
fn one_that_resets_whatever_comes_is_502() {
    let service = RawService::start(Accepted::reset);
    let furt = world(&service.url());
    let requests = [get("/t/x"), post("/t/x", "pay"), post("/t/x", vec![b'x'; 1 << 18])];
    leaves_nothing(&furt, || all_refused(&furt, (6, &requests), (502, "BAD_GATEWAY"), Duration::ZERO));
}

#[test]
fn a_body_may_come_in_small_pieces_but_not_stop() {
    let service = RawService::start(|service| {
        while let Some(head) = service.request() {
            service.write("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n").expect("furt reads");
            if target(&head) == "/t/stops" {
                service.write("xxx").expect("furt reads");
                return service.until_closed();
            }
            (0..6).for_each(|_| {
                thread::sleep(Duration::from_millis(300));
                service.write("x").expect("furt reads");
            });
        }
    });
    let furt = world(&service.url());
    let answer = furt.send(&get("/t/slow"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "xxxxxx"), "longer in all than one pause may be");
    leaves_nothing(&furt, || {
        let since = Instant::now();
        let stopped = get("/t/stops").try_send(furt.public);
        assert!(stopped.is_err(), "{stopped:?} looks whole");
        assert!((900..4_000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
        eventually("the service is let go", || (service.held() == 0).then_some(()));
    });
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() {
    let service = RawService::start(|service| {
        let Some(head) = service.request() else { return };
        let target = target(&head);
        let begun: &[u8] = match target.trim_end_matches("/reset") {
            "/t/length" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx",
            "/t/nothing" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
            "/t/size" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n5",
            "/t/chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nxx",
            "/t/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n",
            "/t/last" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n",
            _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\nX-Trailer: a\r\n",
        };
        service.write(begun).expect("furt reads");
        if target.ends_with("/reset") {
            // After what was written has been read, so that the reset comes within the body.
            thread::sleep(Duration::from_millis(20));
            service.reset();
        }
    });
    let furt = world(&service.url());
    let targets = ["/t/length", "/t/nothing", "/t/size", "/t/chunk", "/t/chunks", "/t/last", "/t/trailer"];
    leaves_nothing(&furt, || {
        for target in targets.iter().flat_map(|target| [(*target).to_owned(), format!("{target}/reset")]) {
            for request in [get(&target), post(&target, "")] {
                let mut client = Client::new(furt.public);
                client.write(request.to_bytes(furt.public)).expect("sent");
                let broken = client.read("GET");
                assert!(broken.is_err(), "{target}: {broken:?} looks whole");
                // Silence would look like a connection that was closed before it asked, and be asked again.
                assert!(client.rest().starts_with(b"HTTP/1.1 200 "), "{target}: the head is out");
            }
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", &*target), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
            let mut client = Http2::new(furt.public);
            client.write(h2_wire::headers(h2_wire::WHOLE, 1, &fields));
            let outcome = client.outcome(1);
            assert!(matches!(outcome, Outcome::Reset(_)), "{target} over HTTP/2: {outcome:?}");
        }
    });
}

#[test]
fn a_client_that_is_gone_takes_its_request_to_a_service_that_hangs_with_it() {
    let service = RawService::start(|service| {
        if service.request().is_some() {
            service.until_closed();
        }
    });
    let furt = world_with(&[], &["upstream_timeout = 60s"], &service.url());
    leaves_nothing(&furt, || {
        let mut clients: Vec<_> = (0..20).map(|_| TcpStream::connect(furt.public).expect("furt listens")).collect();
        clients.iter_mut().for_each(|client| client.write_all(&get("/t/x").to_bytes(furt.public)).expect("sent"));
        eventually("the service has them", || (service.held() >= 20).then_some(()));
        for client in &clients {
            socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("a socket takes it");
        }
        drop(clients);
        eventually("the service is let go", || (service.held() == 0).then_some(()));
    });
}
