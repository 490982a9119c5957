//! What follows a 101, byte by byte: both ends are sockets of the test's own.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use tokio::time::Instant;

use super::*;
use crate::world::block_on;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const HANDSHAKE: &str =
    "GET /ws/x HTTP/1.1\r\nHost: h\r\nX-API-Key: website-key-0123456789-0123456789\r\nUpgrade: chat\r\nConnection: upgrade\r\n\r\n";
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: upgrade\r\n\r\n";

/// A service that hands over each connection once a head has come over it.
struct Service {
    url: String,
    connections: Receiver<TcpStream>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (hands_over, connections) = channel();
        std::thread::spawn(move || {
            // Ends with the test, which takes no more of them.
            for mut stream in listener.incoming().map_while(Result::ok) {
                let hands_over = hands_over.clone();
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
                    let head = head(&mut stream);
                    if head.contains("x-furt-epoch") {
                        let _ = stream.write_all(&answer(200, &[("Connection", "close")], ""));
                    } else if !head.is_empty() {
                        let _ = hands_over.send(stream);
                    }
                });
            }
        });
        Self { url, connections }
    }

    #[track_caller]
    fn connection(&self) -> TcpStream {
        self.connections.recv_timeout(PATIENCE).expect("a connection of furt's")
    }
}

/// A head in lower case, and nothing of what follows it; empty when there is none.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1..) => head.push(byte[0]),
            _ => return String::new(),
        }
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

fn world(conf: Conf) -> (World, Service) {
    let (furt, service) = (conf.start(), Service::start());
    furt.register("sockets", &service.url, ROUTES);
    (furt, service)
}

fn connect(furt: &World) -> TcpStream {
    let client = TcpStream::connect(furt.public).expect("furt listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
    client.set_nodelay(true).expect("a socket takes it");
    client
}

/// Both ends of one that has been switched.
#[track_caller]
fn switched(furt: &World, service: &Service) -> (TcpStream, TcpStream) {
    let mut client = connect(furt);
    client.write_all(HANDSHAKE.as_bytes()).expect("sent");
    let mut far = service.connection();
    far.write_all(SWITCHING).expect("sent");
    let head = head(&mut client);
    assert!(head.starts_with("http/1.1 101 ") && head.contains("\r\nupgrade: chat\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n") && !head.contains("content-length"), "{head}");
    (client, far)
}

#[track_caller]
fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("sent");
    let mut seen = vec![0; bytes.len()];
    to.read_exact(&mut seen).expect("it arrives");
    assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(bytes));
}

/// Waits for the end, in order or not, and gives what came before it.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    rest
}

/// Resets a connection.
fn reset(stream: TcpStream) {
    stream.set_nonblocking(true).expect("a socket takes it");
    block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        stream.set_zero_linger().expect("a socket takes it");
    });
}

#[test]
fn bytes_go_both_ways_as_they_are() {
    let (furt, service) = world(Conf::new());
    let (mut client, mut far) = switched(&furt, &service);
    // What would be a request or an answer is none any more.
    passes(&mut client, &mut far, b"GET /admin HTTP/1.1\r\nHost: h\r\nX-API-Key-Name: Admin\r\n\r\n");
    passes(&mut far, &mut client, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef");
    passes(&mut client, &mut far, b"\0\r\n\x7f\xff");
    let large: Vec<u8> = (0..1u32 << 20).flat_map(u32::to_be_bytes).collect();
    let (mut a, mut b) = (client.try_clone().expect("a socket"), far.try_clone().expect("a socket"));
    std::thread::scope(|scope| {
        scope.spawn(|| a.write_all(&large).expect("sent"));
        scope.spawn(|| b.write_all(&large).expect("sent"));
        for stream in [&mut client, &mut far] {
            let mut seen = vec![0; large.len()];
            stream.read_exact(&mut seen).expect("it arrives");
            assert!(seen == large);
        }
    });
}

#[test]
fn what_comes_with_the_101_or_before_it_is_not_lost() {
    let (furt, service) = world(Conf::new());
    let mut client = connect(&furt);
    client.write_all(HANDSHAKE.as_bytes()).expect("sent");
    let mut far = service.connection();
    far.write_all(&[SWITCHING, b"first words"].concat()).expect("sent");
    assert!(head(&mut client).starts_with("http/1.1 101 "));
    let mut seen = [0; 11];
    client.read_exact(&mut seen).expect("it arrives");
    assert_eq!(&seen, b"first words");

    // A client that does not wait for the answer: that is its own mistake, but nothing of it is a request to anybody.
    let mut client = connect(&furt);
    let early = "GET /admin/x HTTP/1.1\r\nHost: h\r\nX-API-Key-Name: Admin\r\n\r\n";
    client.write_all(format!("{HANDSHAKE}{early}").as_bytes()).expect("sent");
    let mut far = service.connection();
    far.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket takes it");
    let too_early = far.read(&mut [0; 64]).expect_err("nothing before the service has switched");
    assert!(matches!(too_early.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{too_early}");
    far.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
    far.write_all(SWITCHING).expect("sent");
    assert!(head(&mut client).starts_with("http/1.1 101 "));
    let mut seen = vec![0; early.len()];
    far.read_exact(&mut seen).expect("it arrives");
    assert_eq!(String::from_utf8_lossy(&seen), early);
    passes(&mut client, &mut far, b"and on");
}

#[test]
fn frames_that_come_before_the_101_are_passed_on_or_end_the_connection() {
    let (furt, service) = world(Conf::new());
    let mut client = connect(&furt);
    client.write_all(&[HANDSHAKE.as_bytes(), b"\x81\x85\x01\x02\x03\x04early"].concat()).expect("sent");
    let mut far = service.connection();
    far.write_all(SWITCHING).expect("sent");
    let head = head(&mut client);
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let _ = far.shutdown(Shutdown::Write);
    // Never anything that furt would say: nobody speaks HTTP here any more.
    assert_eq!(String::from_utf8_lossy(&rest(&mut client)), "");
    drop(client);
    let seen = rest(&mut far);
    assert!(seen.is_empty() || seen == b"\x81\x85\x01\x02\x03\x04early", "{seen:?}");
}

#[test]
fn one_side_may_be_done_before_the_other() {
    let (furt, service) = world(Conf::new());
    let (mut client, mut far) = switched(&furt, &service);
    passes(&mut client, &mut far, b"last words");
    client.shutdown(Shutdown::Write).expect("a connection");
    assert_eq!(far.read(&mut [0; 8]).expect("an end in order"), 0);
    passes(&mut far, &mut client, b"and the answer to them");
    drop(far);
    assert_eq!(client.read(&mut [0; 8]).expect("an end in order"), 0);

    let (mut client, mut far) = switched(&furt, &service);
    far.shutdown(Shutdown::Write).expect("a connection");
    assert_eq!(client.read(&mut [0; 8]).expect("an end in order"), 0);
    passes(&mut client, &mut far, b"what was left to say");
    drop(client);
    assert_eq!(far.read(&mut [0; 8]).expect("an end in order"), 0);
}

#[test]
fn whichever_side_dies_the_other_is_closed_within_a_second() {
    let (furt, service) = world(Conf::new());
    let within_a_second = |mut left: TcpStream| {
        let since = Instant::now();
        assert_eq!(rest(&mut left), b"");
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    };
    for dies in [drop, reset] {
        let (client, far) = switched(&furt, &service);
        dies(client);
        within_a_second(far);
        let (client, far) = switched(&furt, &service);
        dies(far);
        within_a_second(client);
    }
    let gone = || {
        let metrics = Request::get("/metrics").send(furt.internal).text();
        metrics.contains("furt_upstream_in_flight{service=\"sockets\"} 0").then_some(())
    };
    eventually("none is counted any more", gone);
}

#[test]
fn it_lives_through_a_hundred_registrations_and_reloads_and_longer_silence_than_any_body() {
    let conf = Conf::new().server("body_idle_timeout = 1s").gateway("registration_rate = 1000/s");
    let (furt, service) = world(conf);
    let plain = Upstream::start("plain");
    furt.register("plain", &plain.url(), &["POST /plain comments:write"]);
    let (mut client, mut far) = switched(&furt, &service);
    passes(&mut client, &mut far, b"before");
    for number in 0..100 {
        furt.register(&format!("other-{number}"), &plain.url(), &[&format!("GET /other/{number} comments:read")]);
        furt.reload().status(200);
    }
    // Uploads that began later and are silent for as long have ended meanwhile, twice over.
    for _ in 0..2 {
        let mut stalled = Client::new(furt.public);
        let head = format!("POST /plain HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nContent-Length: 9\r\n\r\nhalf");
        stalled.write(head).expect("sent");
        stalled.read("POST").expect("an answer").refused(408, "REQUEST_TIMEOUT");
    }
    passes(&mut client, &mut far, b"after");
    passes(&mut far, &mut client, b"after");
}

#[test]
fn the_access_log_has_its_line_at_the_end_with_what_was_sent() {
    let (furt, service) = world(Conf::new());
    let (mut client, mut far) = switched(&furt, &service);
    passes(&mut client, &mut far, b"not counted");
    passes(&mut far, &mut client, &[b'x'; 1234]);
    // The log is written in order: the line of a later request that is over comes first.
    Request::get("/later").key(WEBSITE_KEY).send(furt.public).refused(404, "NOT_FOUND");
    eventually("the later request is logged", || furt.logged(&["INFO request ", "path=/later"]).then_some(()));
    assert!(!furt.logged(&["INFO request ", "path=/ws/x"]));
    drop((client, far));
    let words = ["INFO request ", "method=GET path=/ws/x", "service=sockets", "caller=Website", "status=101", "bytes=1234"];
    eventually("it is logged once it is over", || furt.logged(&words).then_some(()));
}

#[test]
fn it_ends_with_furt_when_it_does_not_end_by_itself() {
    let (mut furt, service) = world(Conf::new());
    let (mut client, mut far) = switched(&furt, &service);
    let (mut other, mut other_far) = switched(&furt, &service);
    furt.terminate();
    eventually("furt takes no more connections", || TcpStream::connect(furt.public).is_err().then_some(()));
    let since = Instant::now();
    // Meanwhile it goes on, and may end in order.
    passes(&mut client, &mut far, b"still there");
    passes(&mut other, &mut other_far, b"last words");
    drop(other);
    assert_eq!(rest(&mut other_far), b"");
    assert!(furt.runs(), "it waits for the other");
    client.set_read_timeout(Some(PATIENCE * 3)).expect("a socket takes it");
    assert_eq!(rest(&mut client), b"");
    assert!(since.elapsed() < Duration::from_secs(35), "the limit is 30 s: {:?}", since.elapsed());
    assert_eq!(furt.ended().code(), Some(0));
}
