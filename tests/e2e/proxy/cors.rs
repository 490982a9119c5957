//! Browsers: preflights and the headers that let them read an answer.

use crate::{
    client::{Answer, Request},
    upstream::{Reply, Upstream, answer},
    world::{Conf, WEBSITE_KEY, World},
};

const CORS: &str = "[cors]\nallowed_origins = https://example.org, https://shop.example.org:8443\n";
const ORIGIN: &str = "https://example.org";

fn world() -> (World, Upstream) {
    let upstream = Upstream::with(|_| {
        Reply::Bytes(answer(
            200,
            &[("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Credentials", "true"), ("Vary", "Accept-Encoding")],
            "x",
        ))
    });
    let furt = Conf::new().more(CORS).start();
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read", "POST /api/comments/* comments:write"]);
    (furt, upstream)
}

fn preflight(path: &str, origin: &str, method: &str) -> Request {
    Request::new("OPTIONS", path)
        .field("Origin", origin)
        .field("Access-Control-Request-Method", method)
        .field("Access-Control-Request-Headers", "x-api-key, content-type")
}

#[track_caller]
fn readable(answer: &Answer) {
    assert_eq!(answer.field("access-control-allow-origin"), Some(ORIGIN), "{answer:?}");
    let vary: Vec<_> =
        answer.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("vary")).map(|(_, value)| value.to_lowercase()).collect();
    assert!(vary.join(", ").contains("origin"), "{answer:?}");
}

#[test]
fn furt_answers_preflights_of_known_paths_itself() {
    let (furt, upstream) = world();
    let answer = furt.send(&preflight("/api/comments/a", ORIGIN, "POST"));
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    readable(&answer);
    let methods = answer.field("access-control-allow-methods").expect("methods");
    assert!(methods.contains("POST"), "{methods}");
    let headers = answer.field("access-control-allow-headers").expect("headers").to_lowercase();
    assert!(headers.contains("x-api-key") && headers.contains("content-type"), "{headers}");
    assert!(upstream.requests().is_empty(), "no service is asked, no key is needed");

    let unknown = furt.send(&preflight("/nowhere", ORIGIN, "POST"));
    assert_eq!(unknown.status, 404);
    let stranger = furt.send(&preflight("/api/comments/a", "https://evil.example", "POST"));
    assert_eq!(stranger.field("access-control-allow-origin"), None, "{stranger:?}");
    assert!(upstream.requests().is_empty());
}

#[test]
fn every_answer_to_an_allowed_origin_can_be_read_furts_errors_included() {
    let (furt, _upstream) = world();
    let request = Request::get("/api/comments/a").field("Origin", ORIGIN);
    let answer = furt.send(&request.clone().key(WEBSITE_KEY));
    answer.status(200);
    readable(&answer);
    assert_eq!(answer.field("access-control-allow-credentials"), None, "the service's are replaced");
    assert!(answer.fields.iter().any(|(name, value)| name.eq_ignore_ascii_case("vary") && value.contains("Accept-Encoding")), "{answer:?}");
    readable(furt.send(&request).refused(401, "UNAUTHORIZED"));
    readable(furt.send(&Request::get("/nowhere").field("Origin", ORIGIN)).refused(404, "NOT_FOUND"));
    readable(furt.send(&Request::get("/api/comments/../x").field("Origin", ORIGIN)).status(400));
    readable(furt.send(&Request::get("/health").field("Origin", ORIGIN)).status(200));
}

#[test]
fn another_origin_and_none_get_nothing_of_it() {
    let furt = Conf::new().more(CORS).start();
    let upstream = Upstream::start("sagjan");
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    for origin in [
        "https://evil.example",
        "http://example.org",
        "https://example.org.evil.example",
        "https://example.org:8443",
        "null",
        "HTTPS://EXAMPLE.ORG/",
    ] {
        let answer = furt.send(&Request::get("/api/comments/a").key(WEBSITE_KEY).field("Origin", origin));
        answer.status(200);
        assert_eq!(answer.field("access-control-allow-origin"), None, "{origin}: {answer:?}");
    }
    let answer = furt.get("/api/comments/a");
    assert_eq!(answer.field("access-control-allow-origin"), None, "{answer:?}");
}

#[test]
fn options_that_is_no_preflight_is_a_request_like_any_other() {
    let (furt, upstream) = world();
    furt.send(&Request::new("OPTIONS", "/api/comments/a")).refused(405, "METHOD_NOT_ALLOWED");
    furt.register("any", &upstream.url(), &["OPTIONS /any comments:read"]);
    furt.send(&Request::new("OPTIONS", "/any").key(WEBSITE_KEY)).status(200);
    assert_eq!(upstream.request().method, "OPTIONS");
}
