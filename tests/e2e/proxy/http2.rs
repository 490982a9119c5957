//! HTTP/2 on the public listener, by prior knowledge; HTTP/1.1 to the service.

use http::{HeaderMap, Request};

use crate::{
    h2,
    upstream::{Reply, Upstream, ok},
    world::{Conf, WEBSITE_KEY, World},
};

fn world(upstream: &Upstream) -> World {
    let furt = Conf::new().start();
    furt.register("two", &upstream.url(), &["* /two comments:read"]);
    furt
}

fn request(furt: &World, method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://{}{path}", furt.public))
}

#[test]
fn a_get_is_forwarded_and_answered() {
    let upstream = Upstream::start("two");
    let furt = world(&upstream);
    let answer =
        h2::send(furt.public, request(&furt, "GET", "/two?q=1").header("x-api-key", WEBSITE_KEY).body(()).expect("a request"), &[], None);
    let answer = answer.expect("an answer");
    assert_eq!(answer.head.status(), 200);
    assert_eq!(answer.body, "two GET /two?q=1");
    assert_eq!(answer.field("x-gateway"), Some("furt"));
    assert!(answer.field("server-timing").is_some() && answer.field("x-request-id").is_some());
    let seen = upstream.request();
    assert_eq!(seen.field("host"), Some(furt.public.to_string().as_str()));
    assert_eq!(seen.field("x-api-key-name"), Some("Website"));
    assert!(seen.field("via").is_some_and(|via| via.starts_with("2 ") || via.starts_with("2.0 ")), "{seen:?}");
    assert_eq!(seen.values("transfer-encoding"), [""; 0], "a GET without a body stays one");
}

#[test]
fn a_body_without_a_length_arrives_whole_whatever_the_method() {
    let upstream = Upstream::with(|seen| Reply::Bytes(ok(&seen.body)));
    let furt = world(&upstream);
    for method in ["POST", "PUT", "GET"] {
        let asked = request(&furt, method, "/two").header("x-api-key", WEBSITE_KEY).body(()).expect("a request");
        let before = upstream.requests().len();
        let answer = h2::send(furt.public, asked, &["one ", "two ", "three"], None).expect("an answer");
        if answer.head.status() == 200 {
            assert_eq!(upstream.last().body, b"one two three", "{method}: not lost on the way");
            assert_eq!(answer.body, "one two three");
        } else {
            // Refusing a body where none belongs is the other honest way.
            assert_eq!((method, answer.head.status().as_u16(), upstream.requests().len()), ("GET", 400, before));
        }
    }
}

#[test]
fn trailers_go_both_ways_without_identity_headers() {
    let upstream = Upstream::with(|_| {
        Reply::Bytes(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n".to_vec())
    });
    let furt = world(&upstream);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-check", "7".parse().expect("a value"));
    trailers.insert("x-api-key-name", "forged".parse().expect("a value"));
    trailers.insert("x_api_key_name", "forged".parse().expect("a value"));
    let asked = request(&furt, "POST", "/two")
        .header("x-api-key", WEBSITE_KEY)
        .header("te", "trailers")
        .header("trailer", "x-check")
        .body(())
        .expect("a request");
    let answer = h2::send(furt.public, asked, &["abc"], Some(trailers)).expect("an answer");
    assert_eq!((answer.head.status().as_u16(), answer.body.as_ref()), (200, &b"ok"[..]));
    let sum = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
    assert_eq!(sum.and_then(|sum| sum.to_str().ok()), Some("42"), "{answer:?}");
    let seen = upstream.request();
    assert_eq!(seen.body, b"abc");
    assert_eq!(seen.trailers, [("x-check".to_owned(), "7".to_owned())], "{seen:?}");
}

#[test]
fn furts_refusals_are_the_same_over_http2() {
    let upstream = Upstream::start("two");
    let furt = world(&upstream);
    let status = |builder: http::request::Builder| {
        let answer = h2::send(furt.public, builder.body(()).expect("a request"), &[], None).expect("an answer");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("the envelope");
        (answer.head.status().as_u16(), body["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(status(request(&furt, "GET", "/two")), (401, "UNAUTHORIZED".into()));
    assert_eq!(status(request(&furt, "GET", "/nowhere")), (404, "NOT_FOUND".into()));
    assert_eq!(status(request(&furt, "GET", "/two/%2e%2e/x")), (400, "MALFORMED_REQUEST".into()));
    let twice = request(&furt, "GET", "/two").header("x-api-key", WEBSITE_KEY).header("x-api-key", "other");
    assert_eq!(status(twice), (400, "MALFORMED_REQUEST".into()));
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_host_beside_another_authority_reaches_no_service() {
    let upstream = Upstream::start("two");
    let furt = world(&upstream);
    let asked = request(&furt, "GET", "/two").header("x-api-key", WEBSITE_KEY).header("host", "other.example").body(()).expect("a request");
    match h2::send(furt.public, asked, &[], None) {
        Ok(answer) => assert_eq!(answer.head.status(), 400, "{answer:?}"),
        // Resetting the stream is the protocol's own way to refuse.
        Err(error) => assert!(!error.is_user(), "{error}"),
    }
    assert!(upstream.requests().is_empty());
}
