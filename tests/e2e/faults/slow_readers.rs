//! Clients that read slowly, or not at all: the one gets everything, the other is let go, and so is its service.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{get, leaves_nothing, world, world_with};
use crate::{
    client::Client,
    h2_wire::{self, Http2},
    raw_service::{Accepted, RawService, target},
    upstream::{Reply, Upstream},
    world::{WEBSITE_KEY, eventually},
};

/// Far more than sockets and buffers between client and service hold.
const BIG: usize = 64 << 20;
/// Between `body_idle_timeout` and this, who takes nothing is let go: the limit, the look-over, a busy machine.
const LET_GO: Duration = Duration::from_secs(5);

fn fields(target: &str) -> [(&str, &str); 5] {
    [(":method", "GET"), (":scheme", "http"), (":path", target), (":authority", "h"), ("x-api-key", WEBSITE_KEY)]
}

/// Answers with as much as furt takes.
fn endless(service: &mut Accepted) {
    let Some(head) = service.request() else { return };
    let begun = match target(&head) {
        "/t/events" => "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n".to_owned(),
        "/t/call" => "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n".to_owned(),
        _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n"),
    };
    let mut taken = service.write(begun);
    while taken.is_ok() {
        taken = service.write([b'x'; 16 * 1024]);
    }
}

/// Four clients that ask and take nothing, over one connection each or all over one.
enum Deaf {
    Http1(Vec<TcpStream>),
    /// With no window for bodies.
    Http2(Http2),
}

const ASKED: [&str; 4] = ["/t/big", "/t/events", "/t/big?2", "/t/call"];

impl Deaf {
    fn over_http1(furt: SocketAddr) -> Self {
        let mut clients = ASKED.map(|_| TcpStream::connect(furt).expect("furt listens"));
        for (client, target) in clients.iter_mut().zip(ASKED) {
            client.write_all(&get(target).to_bytes(furt)).expect("sent");
        }
        Self::Http1(clients.into())
    }

    fn over_http2(furt: SocketAddr) -> Self {
        let mut client = Http2::with(furt, &[(h2_wire::INITIAL_WINDOW_SIZE, 0)]);
        for (stream, target) in [1, 3, 5, 7].into_iter().zip(ASKED) {
            client.write(h2_wire::headers(h2_wire::WHOLE, stream, &fields(target)));
        }
        Self::Http2(client)
    }

    /// Says something that shows that it lives, and takes nothing.
    fn speak(&mut self, furt: SocketAddr) {
        match self {
            Self::Http1(clients) => clients.iter_mut().for_each(|client| {
                // It may be closed already.
                let _ = client.write_all(&get("/t/next").to_bytes(furt));
            }),
            Self::Http2(client) => client.write(h2_wire::frame(h2_wire::PING, 0, 0, &[0; 8])),
        }
    }
}

#[track_caller]
fn let_go(clients: fn(SocketAddr) -> Deaf, speaks: bool) {
    let service = RawService::start(endless);
    let furt = world(&service.url());
    leaves_nothing(&furt, || {
        let began = Instant::now();
        let mut deaf = clients(furt.public);
        eventually("all four are asked", || (service.held() >= 4).then_some(()));
        eventually("and all four let go", || {
            if speaks {
                deaf.speak(furt.public);
            }
            // A ping more often than that would be a flood.
            thread::sleep(Duration::from_millis(100));
            (service.held() == 0).then_some(())
        });
        let took = began.elapsed();
        assert!(took > Duration::from_millis(900) && took < LET_GO, "{took:?}");
    });
}

#[test]
fn who_reads_nothing_is_let_go_even_of_an_event_stream() {
    let_go(Deaf::over_http1, false);
}

#[test]
fn who_reads_nothing_but_asks_on_is_let_go() {
    let_go(Deaf::over_http1, true);
}

#[test]
fn who_opens_no_window_is_let_go() {
    let_go(Deaf::over_http2, false);
}

#[test]
fn who_opens_no_window_but_pings_is_let_go() {
    let_go(Deaf::over_http2, true);
}

#[test]
fn who_reads_slowly_gets_all_of_it() {
    // More than sockets hold, and no multiple of any buffer.
    const LENGTH: usize = (6 << 20) + 12_345;
    let service = RawService::start(|service| {
        let answer = [format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes(), &vec![b'x'; LENGTH]].concat();
        while service.request().is_some_and(|_| service.write(&answer).is_ok()) {}
    });
    // What is last of an answer takes longer than a connection may be idle: the kernel says only now and then that there
    // is room again.
    let furt = world_with(&["client_idle_timeout = 500ms", "body_idle_timeout = 5s"], &[], &service.url());
    let mut stream = TcpStream::connect(furt.public).expect("furt listens");
    let request = get("/t/x").field("Connection", "close").to_bytes(furt.public);
    stream.write_all(&request).expect("sent");
    let (began, mut all, mut piece) = (Instant::now(), Vec::new(), vec![0; 64 * 1024]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..length]);
        thread::sleep(Duration::from_millis(40));
    }
    let head = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    assert!(all.starts_with(b"HTTP/1.1 200"));
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(all.len() - head, LENGTH, "bytes of the body, {:?} after the request", began.elapsed());
}

#[test]
fn an_event_stream_that_is_read_may_be_silent() {
    let (send, pieces) = std::sync::mpsc::channel();
    let pieces = Mutex::new(Some(pieces));
    let upstream = Upstream::with(move |_| Reply::Pieces(pieces.lock().expect("one request").take().expect("one request")));
    let furt = world(&upstream.url());
    let mut client = Client::new(furt.public);
    client.write(get("/t/events").to_bytes(furt.public)).expect("sent");
    send.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 6\r\n\r\none".to_vec()).expect("it listens");
    assert!(client.head().expect("an answer").line.contains("200"));
    assert_eq!(client.exactly(3).expect("what was sent"), b"one");
    // Longer than a body may pause, and than a connection may be idle.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2_500) {
        furt.get("/health").status(200);
        thread::sleep(Duration::from_millis(50));
    }
    send.send(b"two".to_vec()).expect("it listens");
    assert_eq!(client.exactly(3).expect("what was sent"), b"two");
}
