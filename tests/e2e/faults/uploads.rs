//! Bodies of requests that stop, are given up, or still come when the answer is there.

use std::{io::Write, net::TcpStream, thread, time::Duration};

use tokio::time::Instant;

use super::{leaves_nothing, world, world_with};
use crate::{
    client::{Answer, Client},
    h2_wire::{self, Http2},
    raw_service::{Accepted, RawService},
    upstream::{Reply, Upstream, answer, ok},
    world::{WEBSITE_KEY, eventually},
};

/// The head of an upload of so many bytes, or, without a number, of one in chunks.
pub fn upload(target: &str, key: &str, length: Option<usize>) -> String {
    let framing = length.map_or("Transfer-Encoding: chunked".to_owned(), |length| format!("Content-Length: {length}"));
    format!("POST {target} HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n{framing}\r\n\r\n")
}

/// Takes what comes and never answers.
fn take_all(service: &mut Accepted) {
    if service.request().is_some() {
        service.until_closed();
    }
}

#[test]
fn one_that_stops_is_408_and_its_service_is_let_go() {
    let service = RawService::start(take_all);
    let furt = world(&service.url());
    let beginnings: [(Option<usize>, &str); 4] = [(Some(1000), ""), (Some(1000), "xxx"), (None, "5\r\nhel"), (None, "5\r\nhello\r\n")];
    leaves_nothing(&furt, || {
        let began = Instant::now();
        let begin = |(length, begin): &(Option<usize>, &str)| {
            let mut client = Client::new(furt.public);
            client.write(format!("{}{begin}", upload("/t/x", WEBSITE_KEY, *length))).expect("sent");
            client
        };
        for client in &mut beginnings.iter().map(begin).collect::<Vec<_>>() {
            client.read("POST").expect("an answer").refused(408, "REQUEST_TIMEOUT");
            assert!(client.closes());
        }
        assert!((900..4_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        eventually("the service is let go", || (service.held() == 0).then_some(()));
    });
}

#[test]
fn one_may_take_long_while_it_comes() {
    let upstream = Upstream::with(|seen| Reply::Bytes(ok(seen.body.len().to_string())));
    let furt = world(&upstream.url());
    let mut client = Client::new(furt.public);
    client.write(upload("/t/x", WEBSITE_KEY, Some(6))).expect("sent");
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(300));
        client.write("x").expect("sent");
    }
    let answer = client.read("POST").expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "6"));
}

#[test]
fn those_that_are_given_up_let_go_of_their_service() {
    let service = RawService::start(take_all);
    let furt = world(&service.url());
    leaves_nothing(&furt, || {
        let mut clients = Vec::new();
        for (length, begin) in [(Some(1 << 20), "xxx"), (None, "5\r\nhello\r\n"), (None, "5\r\nhel")].repeat(4) {
            let mut stream = TcpStream::connect(furt.public).expect("furt listens");
            stream.write_all(format!("{}{begin}", upload("/t/x", WEBSITE_KEY, length)).as_bytes()).expect("sent");
            clients.push(stream);
        }
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t/x"), (":authority", "h"), ("x-api-key", WEBSITE_KEY)];
        let mut client = Http2::new(furt.public);
        for stream in [1, 3, 5] {
            client.write(h2_wire::headers(h2_wire::END_HEADERS, stream, &fields));
            client.write(h2_wire::frame(h2_wire::DATA, 0, stream, b"xxx"));
        }
        eventually("all are under way", || (service.held() >= 15).then_some(()));
        let began = Instant::now();
        // By a reset or in order, by a reset of the stream or with the whole connection.
        for client in clients.iter().step_by(2) {
            socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("a socket takes it");
        }
        drop(clients);
        client.write(h2_wire::reset(1, h2_wire::CANCEL));
        drop(client);
        eventually("the service is let go", || (service.held() == 0).then_some(()));
        assert!(began.elapsed() < Duration::from_secs(3), "at once and not by a limit: {:?}", began.elapsed());
    });
}

/// Sends an upload whole before it reads the first byte of the answer.
fn early(client: &mut Client, body: &[u8], key: &str, chunked: bool) -> Answer {
    client.write(upload("/t/x", key, (!chunked).then_some(body.len()))).expect("sent");
    if chunked {
        client.write(format!("{:x}\r\n", body.len())).expect("sent");
    }
    client.write(body).unwrap_or_else(|error| panic!("all of it is taken before the end: {error}"));
    if chunked {
        // furt may have closed its side by then, but not reset the connection.
        client.write("\r\n0\r\n\r\n").expect("sent");
    }
    client.read("POST").unwrap_or_else(|error| panic!("the answer is read whole: {error}"))
}

#[test]
fn an_early_answer_is_read_whole_though_the_body_still_comes() {
    let upstream = Upstream::start("u");
    let furt = world_with(&["max_body_size = 512 KiB"], &[], &upstream.url());
    let body = vec![b'x'; 1 << 20];
    leaves_nothing(&furt, || {
        for round in 0..50 {
            for (key, status, code) in [("no-key-of-anybody", 401, "UNAUTHORIZED"), (WEBSITE_KEY, 413, "PAYLOAD_TOO_LARGE")] {
                let mut client = Client::new(furt.public);
                early(&mut client, &body, key, round % 2 == 1).refused(status, code);
                assert!(client.closes(), "and then the connection ends in order");
            }
        }
    });
    assert_eq!(upstream.requests().len(), 0, "no service took one of them for whole");
}

#[test]
fn an_early_answer_of_a_service_is_read_whole_too() {
    // Answers before it has read the body, and reads on.
    let service = RawService::start(|service| {
        if service.request().is_some() {
            service.write(answer(200, &[("Connection", "close")], "y".repeat(100_000))).expect("furt reads");
            service.until_closed();
        }
    });
    let furt = world(&service.url());
    let body = vec![b'x'; 1 << 20];
    leaves_nothing(&furt, || {
        for round in 0..50 {
            let answer = early(&mut Client::new(furt.public), &body, WEBSITE_KEY, round % 2 == 1);
            assert_eq!((answer.status, answer.body.len()), (200, 100_000), "{answer:?}");
        }
    });
}

#[test]
fn who_sends_on_after_an_early_answer_is_closed_in_time() {
    let upstream = Upstream::start("u");
    let furt = world(&upstream.url());
    leaves_nothing(&furt, || {
        let mut client = Client::new(furt.public);
        client.write(upload("/t/x", "no-key-of-anybody", Some(usize::MAX / 4))).expect("sent");
        let mut writer = client.stream();
        let sending = thread::spawn(move || {
            while writer.write_all(&[b'x'; 16 * 1024]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let began = Instant::now();
        client.read("POST").expect("an answer").refused(401, "UNAUTHORIZED");
        drop(client);
        sending.join().expect("it ends with the connection");
        // What is sent after an answer is read away for five seconds.
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
        assert_eq!(upstream.requests().len(), 0);
    });
}

#[test]
fn nothing_more_is_said_after_an_early_answer_of_a_service() {
    // The rest of a body is no request, however late it comes.
    let service = RawService::start(|service| {
        if service.request().is_some() {
            service.write(answer(200, &[("Connection", "close")], "early")).expect("furt reads");
            service.until_closed();
        }
    });
    let furt = world_with(&["client_idle_timeout = 1s"], &[], &service.url());
    leaves_nothing(&furt, || {
        for (length, rest) in [(Some(100_000), "x"), (Some(100_000), "xxx"), (None, "5\r\nhello\r\n"), (None, "5\r\nhel")].repeat(3) {
            let mut client = Client::new(furt.public);
            client.write(upload("/t/x", WEBSITE_KEY, length)).expect("sent");
            let answer = client.read("POST").expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "early"), "{answer:?}");
            thread::sleep(Duration::from_millis(50));
            // furt may have closed it by now.
            let _ = client.write(rest);
            let all = client.rest();
            let answers = String::from_utf8_lossy(&all).matches("HTTP/1.1 ").count();
            assert_eq!(answers, 1, "one request, and then: {}", String::from_utf8_lossy(&all));
        }
    });
}
