//! Peers that hang, reset, trickle, close at the worst moment or never read: what the others see of it, and that furt
//! is afterwards as it was before: connections, descriptors, requests under way and memory.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    client::{Client, Request},
    h2_wire::{self, Http2, Outcome},
    upstream::{Reply, Upstream, ok},
    world::{Conf, WEBSITE_KEY, World, eventually},
};

/// A furt with short limits and a service at `url`.
fn world(url: &str) -> World {
    let conf = Conf::new()
        .server("body_idle_timeout = 1s")
        .server("client_timeout = 1s")
        .server("max_body_size = 0")
        .gateway("upstream_timeout = 1s")
        .gateway("upstream_idle_timeout = 1s");
    let furt = conf.start();
    furt.register("faulty", url, &["* /t/* comments:read"]);
    furt
}

fn get(target: &str) -> Request {
    Request::get(target).key(WEBSITE_KEY)
}

/// What furt holds while nobody asks anything.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    resident_kib: u64,
}

fn held(furt: &World) -> Held {
    let status = fs::read_to_string(format!("/proc/{}/status", furt.id())).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
    Held {
        descriptors: fs::read_dir(format!("/proc/{}/fd", furt.id())).expect("it runs").count(),
        resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
    }
}

/// A number of `/metrics`.
fn metric(furt: &World, name: &str) -> f64 {
    let text = Request::get("/metrics").send(furt.internal).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.trim().parse().expect("a number")
}

/// Runs a fault and waits until furt holds no more than before, and has nothing to complain about.
fn leaves_nothing(furt: &World, fault: impl Fn()) {
    // The first time makes room that is kept for the next.
    fault();
    let before = eventually("the first one is over", || settled(furt));
    fault();
    let after = eventually("all is as before", || settled(furt).filter(|after| after.descriptors <= before.descriptors));
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    assert!(grown < 8 * 1024, "{grown} KiB more than {before:?}");
    let complaints: Vec<_> = furt.log().into_iter().filter(|line| line.contains("ERROR") || line.contains("panicked")).collect();
    assert_eq!(complaints, [""; 0]);
    furt.get("/health").status(200);
}

/// What is held once no client is connected any more and the idle connections to services are closed.
fn settled(furt: &World) -> Option<Held> {
    let quiet = metric(furt, "furt_connections ") == 0.0;
    let idle = fs::read_dir(format!("/proc/{}/fd", furt.id())).ok()?.count();
    thread::sleep(Duration::from_millis(100));
    Some(held(furt)).filter(|held| quiet && held.descriptors == idle)
}

#[test]
fn a_service_that_hangs_or_trickles_its_head_is_504_and_held_by_nothing() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/hang" => Reply::Hang,
        _ => trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", Duration::from_millis(50)),
    });
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        thread::scope(|scope| {
            for target in ["/t/hang", "/t/trickle"].repeat(10) {
                scope.spawn(|| furt.send(&get(target)).refused(504, "GATEWAY_TIMEOUT").status);
            }
        });
        upstream.drop_connections();
    });
}

/// Says `head`, and then an x every so often for as long as it is heard.
fn trickle(head: &'static [u8], pause: Duration) -> Reply {
    let (send, pieces) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _ = send.send(head.to_vec());
        while send.send(b"x".to_vec()).is_ok() {
            thread::sleep(pause);
        }
    });
    Reply::Pieces(pieces)
}

#[test]
fn a_body_may_come_in_small_pieces_but_not_stop() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/slow" => {
            let (send, pieces) = std::sync::mpsc::channel();
            thread::spawn(move || {
                let _ = send.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n".to_vec());
                for _ in 0..6 {
                    thread::sleep(Duration::from_millis(300));
                    let _ = send.send(b"x".to_vec());
                }
            });
            Reply::Pieces(pieces)
        }
        _ => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nxxx".to_vec()),
    });
    let furt = world(&upstream.url());
    let answer = furt.send(&get("/t/slow"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "xxxxxx"), "longer in all than one pause may be");
    let since = Instant::now();
    let stopped = get("/t/stops").try_send(furt.public);
    assert!(stopped.is_err(), "{stopped:?} looks whole");
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() {
    let upstream = Upstream::with(|seen| {
        Reply::Last(match &*seen.target {
            "/t/length" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx".to_vec(),
            "/t/chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nxx".to_vec(),
            "/t/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n".to_vec(),
            _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\nnonsense\r\n".to_vec(),
        })
    });
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        for target in ["/t/length", "/t/chunk", "/t/chunks", "/t/nonsense"] {
            for _ in 0..10 {
                let broken = get(target).try_send(furt.public);
                assert!(broken.is_err(), "{target}: {broken:?}");
            }
            let mut client = Http2::new(furt.public);
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", target), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
            client.write(h2_wire::headers(h2_wire::WHOLE, 1, &fields));
            let reset = eventually("the stream is reset", || client.frame().filter(|frame| frame.kind == h2_wire::RST_STREAM));
            assert_eq!(reset.stream, 1);
        }
    });
}

#[test]
fn connections_that_close_at_the_worst_moment_lose_no_get_and_double_no_post() {
    // A third of the answers are followed by the end of the connection, without a word before.
    let seen = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let (posts, count) = (seen.clone(), AtomicUsize::new(0));
    let upstream = Upstream::with(move |request| {
        if request.method == "POST" {
            *posts.lock().unwrap().entry(request.target.clone()).or_default() += 1;
        }
        let number = count.fetch_add(1, Ordering::SeqCst);
        if number % 3 == 0 { Reply::Last(ok("x")) } else { Reply::Bytes(ok("x")) }
    });
    let furt = world(&upstream.url());
    let answers: Vec<(String, u16)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|one| {
                let furt = &furt;
                scope.spawn(move || {
                    let mut client = Client::new(furt.public);
                    let ask = |number: usize| match number % 4 {
                        0 => Request::post(&format!("/t/{one}-{number}"), "pay").key(WEBSITE_KEY),
                        _ => get("/t/x"),
                    };
                    (0..200)
                        .map(|number| {
                            if number % 4 == 0 {
                                ("POST".to_owned(), client.ask(&ask(number)).status)
                            } else {
                                ("GET".to_owned(), client.ask(&ask(number)).status)
                            }
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let gets: Vec<u16> = answers.iter().filter(|(method, _)| method == "GET").map(|(_, status)| *status).collect();
    assert_eq!(gets, vec![200; 8 * 150]);
    let twice: Vec<_> = seen.lock().unwrap().iter().filter(|(_, times)| **times > 1).map(|(target, _)| target.clone()).collect();
    assert_eq!(twice, [""; 0]);
    // A POST may meet a connection that just closed; then it is not known whether it was acted upon.
    assert!(answers.iter().all(|(_, status)| [200, 502].contains(status)));
}

#[test]
fn an_early_answer_is_read_whole_though_the_body_still_comes() {
    let upstream = Upstream::start("u");
    let furt = Conf::new().server("max_body_size = 4 KiB").start();
    furt.register("early", &upstream.url(), &["POST /t/* comments:read"]);
    let body = vec![b'x'; 1 << 20];
    for round in 0..100 {
        for (key, fields, status) in [(None, "", 401), (Some(WEBSITE_KEY), "", 413), (Some(WEBSITE_KEY), "chunked", 413)] {
            let mut client = Client::new(furt.public);
            let key = key.map_or(String::new(), |key| format!("X-API-Key: {key}\r\n"));
            let framing = if fields.is_empty() { format!("Content-Length: {}", body.len()) } else { "Transfer-Encoding: chunked".into() };
            client.write(format!("POST /t/x HTTP/1.1\r\nHost: h\r\n{key}{framing}\r\n\r\n")).unwrap();
            if !fields.is_empty() {
                client.write(format!("{:x}\r\n", body.len())).unwrap();
            }
            // All of it goes out before the first byte of the answer is read.
            client.write(&body).unwrap_or_else(|error| panic!("{status}, round {round}: {error}"));
            let answer = client.read("POST").unwrap_or_else(|error| panic!("{status}, round {round}: {error}"));
            assert_eq!(answer.status, status);
            assert!(client.closes());
        }
    }
    assert_eq!(upstream.requests().iter().filter(|seen| !seen.body.is_empty()).count(), 0);
}

#[test]
fn a_client_that_never_reads_is_let_go_and_so_is_its_service() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // Each request gets an answer without end, as fast as it is taken.
    let service = thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if stopped.load(Ordering::SeqCst) {
                return;
            }
            let counted = counted.clone();
            thread::spawn(move || endless(stream, &counted));
        }
    });
    let furt = world(&format!("http://{address}"));
    leaves_nothing(&furt, || {
        let clients: Vec<_> = ["/t/big", "/t/events"]
            .iter()
            .map(|target| {
                let mut client = Client::new(furt.public);
                client.write(get(target).to_bytes(furt.public)).unwrap();
                client
            })
            .collect();
        let mut window = Http2::with(furt.public, &[(h2_wire::INITIAL_WINDOW_SIZE, 0)]);
        let fields = |path| [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
        window.write(h2_wire::headers(h2_wire::WHOLE, 1, &fields("/t/big")));
        window.write(h2_wire::headers(h2_wire::WHOLE, 3, &fields("/t/events")));
        eventually("all four are asked", || (open.load(Ordering::SeqCst) == 4).then_some(()));
        eventually("and all four let go", || {
            // Whatever it says besides: it takes nothing.
            window.write(h2_wire::frame(h2_wire::PING, 0, 0, &[0; 8]));
            (open.load(Ordering::SeqCst) == 0).then_some(())
        });
        drop(clients);
    });
    stop.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(address);
    service.join().unwrap();
}

fn endless(mut stream: TcpStream, open: &AtomicUsize) {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(length @ 1..) => head.extend_from_slice(&piece[..length]),
            _ => return,
        }
    }
    if !head.starts_with(b"GET /t/") {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    open.fetch_add(1, Ordering::SeqCst);
    let kind = if head.starts_with(b"GET /t/events") { "text/event-stream" } else { "text/plain" };
    let mut written = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n").as_bytes());
    while written.is_ok() {
        written = stream.write_all(&[b'x'; 4096]);
    }
    open.fetch_sub(1, Ordering::SeqCst);
}

#[test]
fn an_event_stream_that_is_read_may_be_silent() {
    let (send, pieces) = std::sync::mpsc::channel();
    let pieces = Mutex::new(Some(pieces));
    let upstream = Upstream::with(move |_| Reply::Pieces(pieces.lock().unwrap().take().expect("one request")));
    let furt = world(&upstream.url());
    let mut client = Client::new(furt.public);
    client.write(get("/t/events").to_bytes(furt.public)).unwrap();
    send.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 6\r\n\r\none".to_vec()).unwrap();
    assert!(client.head().unwrap().line.contains("200"));
    assert_eq!(client.exactly(3).unwrap(), b"one");
    // Longer than a body may pause.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2_500) {
        furt.get("/health").status(200);
        thread::sleep(Duration::from_millis(50));
    }
    send.send(b"two".to_vec()).unwrap();
    assert_eq!(client.exactly(3).unwrap(), b"two");
}

#[test]
fn clients_that_reset_or_close_half_leave_nothing_behind() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/hang" => Reply::Hang,
        _ => Reply::Bytes(ok("x".repeat(100_000))),
    });
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        for number in 0..40 {
            let mut stream = TcpStream::connect(furt.public).unwrap();
            let request = get(if number % 2 == 0 { "/t/hang" } else { "/t/big" }).to_bytes(furt.public);
            stream.write_all(if number % 4 < 2 { &request } else { &request[..40] }).unwrap();
            // Closing with a linger of zero sends a reset (socket(7), SO_LINGER).
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let mut half = Client::new(furt.public);
        half.write(get("/t/big").to_bytes(furt.public)).unwrap();
        let mut stream = TcpStream::connect(furt.public).unwrap();
        stream.write_all(&get("/t/big").to_bytes(furt.public)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all.starts_with(b"HTTP/1.1 200") && all.ends_with(b"xxx") && all.len() > 100_000, "half-closed, and answered whole");
        assert_eq!(half.read("GET").unwrap().body.len(), 100_000);
        upstream.drop_connections();
    });
}

#[test]
fn many_idle_and_silent_connections_come_and_go() {
    let upstream = Upstream::start("u");
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        let clients: Vec<_> = (0..500).map(|_| TcpStream::connect(furt.public).unwrap()).collect();
        eventually("all are taken", || (metric(&furt, "furt_connections ") >= 500.0).then_some(()));
        furt.send(&get("/t/x")).status(200);
        drop(clients);
    });
}

#[test]
fn without_descriptors_requests_wait_for_nothing_and_no_service_is_blamed() {
    let upstream = Upstream::start("u");
    let furt = world(&upstream.url());
    let mut before = Client::new(furt.public);
    assert_eq!(before.ask(&get("/t/x")).status, 200);
    let registered = furt.until("faulty", "UP");
    // As many as are open now, and two more: for a client, none for its service.
    let limit = held(&furt).descriptors + 2;
    limit_descriptors(&furt, limit);
    upstream.drop_connections();
    let mut clients: Vec<_> = (0..20).filter_map(|_| TcpStream::connect(furt.public).ok()).collect();
    let answer = eventually("there is none left for the service", || {
        // Whose descriptor comes free with it is a race between the waiting clients and this request.
        upstream.drop_connections();
        Some(before.ask(&get("/t/x"))).filter(|answer| answer.status == 503)
    });
    answer.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!((answer.field("x-furt-reason"), answer.field("retry-after")), (Some("gateway-exhausted"), Some("1")));
    let spent = cpu_ticks(&furt);
    thread::sleep(Duration::from_secs(1));
    assert!(cpu_ticks(&furt) - spent < 50, "it does not spin while it cannot accept");
    let warnings = furt.log().into_iter().filter(|line| line.contains("WARN") && line.contains("connection")).count();
    assert!((1..=12).contains(&warnings), "{warnings} warnings: said, and not too often");
    clients.clear();
    limit_descriptors(&furt, 4096);
    eventually("it is well again", || get("/t/x").try_send(furt.public).ok().filter(|answer| answer.status == 200));
    assert_eq!(furt.health_of("faulty")["status"], registered["status"]);
    assert!(!furt.logged(&["suspect"]), "it was never the service's fault");
}

fn limit_descriptors(furt: &World, most: usize) {
    let set = std::process::Command::new("prlimit").args([format!("--pid={}", furt.id()), format!("--nofile={most}:4096")]).status();
    assert!(set.expect("util-linux has prlimit").success());
}

/// Processor time in hundredths of a second (proc(5), stat).
fn cpu_ticks(furt: &World) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", furt.id())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("after the name").split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[test]
fn streams_over_http2_are_refused_beyond_their_number_and_the_rest_goes_on() {
    let upstream = Upstream::with(|_| Reply::Hang);
    let furt = Conf::new().server("h2_max_streams = 4").gateway("upstream_timeout = 1s").start();
    furt.register("faulty", &upstream.url(), &["* /t/* comments:read"]);
    let mut client = Http2::new(furt.public);
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/t/x"), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
    for stream in [1, 3, 5, 7, 9] {
        client.write(h2_wire::headers(h2_wire::WHOLE, stream, &fields));
    }
    assert_eq!(client.outcome(9), Outcome::Reset(h2_wire::REFUSED_STREAM));
    assert_eq!(client.outcome(1), Outcome::Answer(504));
}
