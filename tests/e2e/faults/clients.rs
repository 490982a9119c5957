//! Clients that trickle a head, close half, reset, or leave in the middle.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{get, leaves_nothing, post, uploads::upload, world};
use crate::{
    client::Client,
    upstream::{Reply, Upstream, ok},
    world::{WEBSITE_KEY, eventually},
};

#[test]
fn a_head_that_trickles_is_408_in_time() {
    let upstream = Upstream::start("u");
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        thread::scope(|scope| {
            for begin in ["G", "GET /t/x HTTP/1.1\r\n", "GET /t/x HTTP/1.1\r\nHost: h\r\nX-Slow: "].repeat(5) {
                let furt = &furt;
                scope.spawn(move || {
                    let began = Instant::now();
                    let mut client = Client::new(furt.public);
                    client.write(begin).expect("sent");
                    let mut writer = client.stream();
                    let trickling = thread::spawn(move || {
                        while began.elapsed() < Duration::from_secs(4) && writer.write_all(b"x").is_ok() {
                            thread::sleep(Duration::from_millis(100));
                        }
                    });
                    client.read("GET").expect("an answer").refused(408, "REQUEST_TIMEOUT");
                    assert!((900..4_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
                    trickling.join().expect("it only writes");
                    assert!(client.closes(), "in order, though more came");
                });
            }
        });
        assert_eq!(upstream.requests().len(), 0);
    });
}

#[test]
fn a_client_that_closes_its_side_after_a_request_is_answered_whole() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/later" => {
            thread::sleep(Duration::from_millis(300));
            Reply::Bytes(ok("x".repeat(1000)))
        }
        _ => Reply::Bytes(ok("x".repeat(100_000))),
    });
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        for request in [get("/t/big"), get("/t/later"), post("/t/big", "pay"), post("/t/later", "pay").chunked()] {
            let mut stream = TcpStream::connect(furt.public).expect("furt listens");
            stream.write_all(&request.to_bytes(furt.public)).expect("sent");
            stream.shutdown(Shutdown::Write).expect("connected");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("an answer, and the end in order");
            let text = String::from_utf8_lossy(&all);
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 200"), "{request:?}: {head}");
            assert!(head.to_lowercase().contains(&format!("content-length: {}", body.len())), "{} bytes after {head}", body.len());
        }
    });
}

#[test]
fn clients_that_reset_leave_nothing_behind() {
    let upstream = Upstream::with(|seen| match &*seen.target {
        "/t/hang" => Reply::Hang,
        _ => Reply::Bytes(ok("x".repeat(4 << 20))),
    });
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        let asked = upstream.requests().len();
        let clients: Vec<_> = (0..60)
            .map(|number| {
                let mut stream = TcpStream::connect(furt.public).expect("furt listens");
                let whole = get(if number % 2 == 0 { "/t/hang" } else { "/t/big" }).to_bytes(furt.public);
                let begun = match number % 6 {
                    0 | 1 => whole,
                    2 | 3 => whole[..40].to_vec(),
                    _ => upload("/t/big", WEBSITE_KEY, Some(1 << 20)).into_bytes(),
                };
                stream.write_all(&begun).expect("sent");
                stream
            })
            .collect();
        eventually("those that are whole are under way", || (upstream.requests().len() - asked >= 20).then_some(()));
        // Some of the answers have been read in part by then.
        for mut client in clients.iter().skip(1).step_by(12) {
            client.read_exact(&mut [0; 1000]).expect("the answer begins");
        }
        for client in &clients {
            // Closing with a linger of zero sends a reset (socket(7), SO_LINGER).
            socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("a socket takes it");
        }
        drop(clients);
        upstream.drop_connections();
    });
}
