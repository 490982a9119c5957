//! Answers that say too much: what a service sends beyond its answer is never the answer to somebody else.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use crate::{
    client::{Client, Request},
    upstream::{Reply, Upstream, ok},
    world::{Conf, WEBSITE_KEY},
};

#[test]
fn what_follows_an_answer_does_not_answer_the_next_request() {
    let extra = ok("smuggled");
    let odd: Vec<Vec<u8>> = vec![
        [ok("first"), extra.clone()].concat(),
        [b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), extra.clone()].concat(),
        [b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec(), extra.clone()].concat(),
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), extra.clone()].concat(),
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n".to_vec(), extra.clone()].concat(),
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nfirst\r\n0\r\n\r\n".to_vec(), extra.clone()]
            .concat(),
        [ok("first"), b"trailing garbage".to_vec()].concat(),
    ];
    let count = odd.len();
    let next = AtomicUsize::new(0);
    let upstream = Upstream::with(move |seen| match seen.target.as_str() {
        "/s/odd" => Reply::Bytes(odd[next.fetch_add(1, Ordering::SeqCst) % odd.len()].clone()),
        target => Reply::Bytes(ok(target)),
    });
    let furt = Conf::new().start();
    furt.register("odd", &upstream.url(), &["* /s/* comments:read"]);
    for number in 0..count {
        // A POST is never sent twice, so each gets the next odd answer.
        let answer = furt.send(&Request::post("/s/odd", "x").key(WEBSITE_KEY));
        assert!(!answer.text().contains("smuggled"), "{number}: {answer:?}");
        for _ in 0..3 {
            let answer = furt.get(&format!("/s/{number}"));
            assert_eq!((answer.status, answer.text()), (200, format!("/s/{number}")), "after odd answer {number}");
        }
    }
}

#[test]
fn a_body_in_the_answer_to_head_is_not_the_next_answer() {
    let upstream = Upstream::with(|seen| Reply::Bytes(ok(&seen.target)));
    let furt = Conf::new().start();
    furt.register("odd", &upstream.url(), &["GET /s/* comments:read"]);
    let mut client = Client::new(furt.public);
    for number in 0..5 {
        let head = client.ask(&Request::new("HEAD", "/s/head").key(WEBSITE_KEY));
        assert_eq!((head.status, head.body.len()), (200, 0));
        let answer = client.ask(&Request::get(&format!("/s/{number}")).key(WEBSITE_KEY));
        assert_eq!((answer.status, answer.text()), (200, format!("/s/{number}")));
    }
}

#[test]
fn interim_answers_do_not_become_the_answer() {
    let upstream = Upstream::with(|_| {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".to_vec();
        Reply::Bytes([interim, ok("real")].concat())
    });
    let furt = Conf::new().start();
    furt.register("odd", &upstream.url(), &["GET /s comments:read"]);
    for _ in 0..3 {
        let answer = furt.get("/s");
        assert_eq!((answer.status, answer.text().as_str()), (200, "real"));
    }
}

#[test]
fn interim_answers_without_end_are_given_up() {
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".repeat(100);
    let (said, heard) = mpsc::channel();
    let said = Mutex::new(said);
    let upstream = Upstream::with(move |seen| {
        if seen.target == "/s/large" {
            return Reply::Bytes(ok("x".repeat(2 << 20)));
        }
        // A MiB of them, then the answer: it comes too late.
        let (pieces, reply) = mpsc::channel();
        (0..256).for_each(|_| drop(pieces.send(interim.clone())));
        drop(pieces.send(ok("late")));
        drop(said.lock().map(|said| said.send(())));
        Reply::Pieces(reply)
    });
    let furt = Conf::new().start();
    furt.register("odd", &upstream.url(), &["GET /s/* comments:read"]);
    assert_eq!((furt.get("/s/flood").status, heard.try_recv()), (502, Ok(())));
    let answer = furt.get("/s/large");
    assert_eq!((answer.status, answer.body.len()), (200, 2 << 20), "a body has bounds of its own");
    assert!(heard.try_recv().is_err(), "it was asked once");
}
