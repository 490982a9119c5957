//! Bodies far larger than any buffer, over HTTP/1.1 and HTTP/2: whole, in flat memory, and no faster than whoever reads
//! them. In [`endings`]: what ends without a body, and what follows one.
//!
//! `FURT_GIB=1` moves a gibibyte where CI moves a quarter of it.

mod bulk;
mod endings;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use self::bulk::{Blocks, Bulk, Pattern};
use crate::{
    client::Client,
    world::{Conf, World, block_on, eventually, from_environment},
};

/// What memory may grow by, whatever goes through.
const GROWTH_KIB: u64 = 16 * 1024;
/// More than all the buffers between a service and a reader that does not read: those of two connections on each side.
const IN_BETWEEN: u64 = 48 << 20;
/// A body that cannot fit into them.
const GIBIBYTE: u64 = 1 << 30;

fn size() -> u64 {
    if from_environment("FURT_GIB", 0) == 1 { GIBIBYTE } else { GIBIBYTE / 4 }
}

fn start(bulk: &Bulk) -> World {
    let route = format!("[route \"bulk\"]\nmethods = *\npath = /b/*\nurl = http://{}\npublic = true\n", bulk.address);
    Conf::new().server("max_body_size = 0").more(&route).start()
}

fn status(furt: &World, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", furt.id())).expect("furt runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells");
    line.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().expect("a number")
}

/// Runs `work` and asserts that at no moment furt had much more memory than before.
#[track_caller]
fn in_flat_memory(furt: &World, work: impl FnOnce()) {
    // The peak is that of what follows.
    fs::write(format!("/proc/{}/clear_refs", furt.id()), "5").expect("a process of ours");
    let before = status(furt, "VmRSS:");
    work();
    let peak = status(furt, "VmHWM:");
    assert!(peak < before + GROWTH_KIB, "{before} KiB before, {peak} KiB at the peak");
}

fn download(furt: &World, size: u64) {
    let mut client = TcpStream::connect(furt.public).expect("furt listens");
    client.write_all(format!("GET /b/{size} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
    let (head, pattern) = (bulk::head(&mut client), Pattern::default());
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains(&format!("content-length: {size}\r\n")), "{head}");
    let mut piece = vec![0; 256 * 1024];
    let mut got = 0;
    while got < size {
        let count = client.read(&mut piece).expect("it goes on");
        assert!(count > 0, "it ended after {got}");
        assert!(pattern.is_at(got, &piece[..count]), "other bytes after {got}");
        got += count as u64;
    }
    assert_eq!(client.read(&mut piece).expect("an end"), 0);
}

fn upload(furt: &World, size: u64, chunked: bool) {
    let mut client = TcpStream::connect(furt.public).expect("furt listens");
    let framing = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {size}") };
    client.write_all(format!("POST /b/up HTTP/1.1\r\nHost: h\r\n{framing}\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
    let pattern = Pattern::default();
    for _ in 0..size / bulk::BLOCK {
        if chunked {
            client.write_all(format!("{:x}\r\n", bulk::BLOCK).as_bytes()).expect("it goes on");
        }
        client.write_all(pattern.block()).expect("it goes on");
        if chunked {
            client.write_all(b"\r\n").expect("it goes on");
        }
    }
    if chunked {
        client.write_all(b"0\r\n\r\n").expect("it goes on");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\n{size}")), "{answer}");
}

/// Runs something with an HTTP/2 connection.
fn over_h2<B, T>(furt: &World, work: impl AsyncFnOnce(http2::SendRequest<B>) -> T) -> T
where
    B: hyper::body::Body<Data = bytes::Bytes, Error = std::convert::Infallible> + Send + Unpin + 'static,
{
    block_on(async {
        let stream = tokio::net::TcpStream::connect(furt.public).await.expect("furt listens");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        let driven = tokio::spawn(connection);
        let done = work(sender).await;
        driven.abort();
        done
    })
}

fn get(path: &str) -> http::Request<Empty<bytes::Bytes>> {
    http::Request::get(format!("http://h{path}")).body(Empty::new()).expect("a request")
}

async fn read(mut body: Incoming) -> u64 {
    let (pattern, mut got) = (Pattern::default(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("it goes on");
        let data = frame.data_ref().expect("no trailers");
        assert!(pattern.is_at(got, data), "other bytes after {got}");
        got += data.len() as u64;
    }
    got
}

#[test]
fn a_large_body_goes_down_and_up_over_http1_in_flat_memory() {
    let (bulk, size) = (Bulk::start(), size());
    let furt = start(&bulk);
    let all = |size: u64| {
        download(&furt, size);
        upload(&furt, size, false);
        upload(&furt, size / 4, true);
    };
    all(1 << 20);
    in_flat_memory(&furt, || all(size));
}

#[test]
fn a_large_body_goes_down_and_up_over_http2_in_flat_memory() {
    let (bulk, size) = (Bulk::start(), size());
    let furt = start(&bulk);
    let all = |size: u64| {
        let got = over_h2(&furt, async |mut client| {
            let answer = client.send_request(get(&format!("/b/{size}"))).await.expect("an answer");
            read(answer.into_body()).await
        });
        assert_eq!(got, size);
        let told = over_h2(&furt, async |mut client| {
            let request = http::Request::post("http://h/b/up").body(Blocks::new(size)).expect("a request");
            client.send_request(request).await.expect("an answer").into_body().collect().await.expect("whole").to_bytes()
        });
        assert_eq!(told, size.to_string());
    };
    all(1 << 20);
    in_flat_memory(&furt, || all(size));
}

/// Waits until a count has stood still for a while; the count.
fn standing(what: &str, count: &AtomicU64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    eventually(what, || {
        let now = count.load(Ordering::SeqCst);
        if now != last || now == 0 {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(1)).then_some(now)
    })
}

#[test]
fn a_reader_over_http1_that_does_not_read_stops_the_service() {
    let bulk = Bulk::start();
    let furt = start(&bulk);
    download(&furt, 1 << 20);
    let before = bulk.sent.load(Ordering::SeqCst);
    in_flat_memory(&furt, || {
        let mut client = TcpStream::connect(furt.public).expect("furt listens");
        client.write_all(format!("GET /b/{GIBIBYTE} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).expect("sent");
        eventually("it begins", || (bulk.sent.load(Ordering::SeqCst) > before).then_some(()));
        let stood = standing("the service waits", &bulk.sent);
        assert!(stood - before < IN_BETWEEN, "{stood} bytes are under way");
        // It goes on as soon as somebody reads: as many bytes as would never fit in between.
        let mut taken = client.take(2 * IN_BETWEEN);
        std::io::copy(&mut taken, &mut std::io::sink()).expect("it goes on");
        assert!(bulk.sent.load(Ordering::SeqCst) > before + IN_BETWEEN);
    });
}

#[test]
fn a_stream_over_http2_that_nobody_reads_stops_the_service_and_no_other_stream() {
    let bulk = Bulk::start();
    let furt = start(&bulk);
    download(&furt, 1 << 20);
    in_flat_memory(&furt, || {
        over_h2(&furt, async |mut client| {
            let before = bulk.sent.load(Ordering::SeqCst);
            let stuck = client.send_request(get(&format!("/b/{GIBIBYTE}"))).await.expect("an answer");
            // The stream's window and what is behind it fills while others are served over the same connection.
            let (mut last, mut same) = (0, 0);
            while same < 20 {
                let other = client.send_request(get("/b/65536")).await.expect("an answer");
                assert_eq!(read(other.into_body()).await, 65_536);
                let now = bulk.sent.load(Ordering::SeqCst) - before;
                same = if now == last + 65_536 { same + 1 } else { 0 };
                last = now;
                assert!(now < IN_BETWEEN + 65_536 * 1000, "{now} bytes are under way");
            }
            drop(stuck);
        });
    });
}

#[test]
fn a_service_that_does_not_read_stops_the_client() {
    let bulk = Bulk::start();
    let furt = start(&bulk);
    upload(&furt, 1 << 20, false);
    in_flat_memory(&furt, || {
        let mut client = TcpStream::connect(furt.public).expect("furt listens");
        client.write_all(format!("POST /b/stuck HTTP/1.1\r\nHost: h\r\nContent-Length: {GIBIBYTE}\r\n\r\n").as_bytes()).expect("sent");
        client.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket takes it");
        let (pattern, mut written) = (Pattern::default(), 0);
        let error = loop {
            match client.write(pattern.block()) {
                Ok(count) => written += count as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
            assert!(written < IN_BETWEEN, "{written} bytes are under way");
        };
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "it waits: {error}");
        assert!(written > 0);
    });
    // The other connections never noticed.
    let mut other = Client::new(furt.public);
    other.write("GET /b/5 HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
    assert_eq!(other.read("GET").expect("an answer").body.len(), 5);
}
