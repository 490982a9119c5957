//! Who may: keys, networks, permissions, rates, public routes.

use serde_json::json;

use crate::{
    client::{Client, Request},
    upstream::Upstream,
    world::{Conf, READER_KEY, WEBSITE_KEY, World},
};

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read", "POST /api/comments/* comments:write"];

fn sagjan(conf: Conf) -> (World, Upstream) {
    let (furt, upstream) = (conf.start(), Upstream::start("sagjan"));
    furt.register("sagjan", &upstream.url(), COMMENTS);
    (furt, upstream)
}

#[test]
fn without_a_valid_key_nothing_is_forwarded() {
    let (furt, upstream) = sagjan(Conf::new());
    furt.send(&Request::get("/api/comments/a")).refused(401, "UNAUTHORIZED");
    let (longer, shorter, cased) = (format!("{WEBSITE_KEY}x"), &WEBSITE_KEY[..WEBSITE_KEY.len() - 1], WEBSITE_KEY.to_uppercase());
    for wrong in ["", "x", "Website", &longer, shorter, &cased, "website-key-0123456789-0123456789\t-"] {
        furt.send(&Request::get("/api/comments/a").key(wrong)).refused(401, "UNAUTHORIZED");
    }
    // Only the one header counts.
    furt.send(&Request::get(&format!("/api/comments/a?X-API-Key={WEBSITE_KEY}")).field("Authorization", &format!("Bearer {WEBSITE_KEY}")))
        .refused(401, "UNAUTHORIZED");
    furt.send(&Request::get("/api/comments/a").field("X_API_Key", WEBSITE_KEY)).refused(401, "UNAUTHORIZED");
    assert!(upstream.requests().is_empty());
    furt.send(&Request::get("/api/comments/a").field("x-aPi-kEY", WEBSITE_KEY)).status(200);
}

#[test]
fn two_keys_are_refused_in_any_order() {
    let (furt, upstream) = sagjan(Conf::new());
    for (one, two) in
        [(WEBSITE_KEY, "wrong"), ("wrong", WEBSITE_KEY), (WEBSITE_KEY, WEBSITE_KEY), (WEBSITE_KEY, READER_KEY), ("", WEBSITE_KEY)]
    {
        let answer = furt.send(&Request::get("/api/comments/a").field("X-API-Key", one).field("x-api-key", two));
        answer.refused(400, "MALFORMED_REQUEST");
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_key_works_only_from_its_networks() {
    let keys = "[api_key \"inside-key-0123456789-0123456789-\"]\nname = Inside\npermissions = comments:*\nallowed_ips = 127.0.0.1, 10.0.0.0/8\n\
                [api_key \"outside-key-0123456789-0123456789\"]\nname = Outside\npermissions = comments:*\nallowed_ips = 10.0.0.0/8\n";
    let (furt, upstream) = sagjan(Conf::new().more(keys));
    let ask = |key: &str, forwarded: &str| {
        let request = Request::get("/api/comments/a").key(key);
        furt.send(&if forwarded.is_empty() { request } else { request.field("X-Forwarded-For", forwarded) })
    };
    let (inside, outside) = ("inside-key-0123456789-0123456789-", "outside-key-0123456789-0123456789");
    ask(inside, "").status(200);
    ask(outside, "").refused(403, "IP_NOT_ALLOWED");
    // 127.0.0.1 is a trusted proxy: the rightmost untrusted address is the client.
    ask(outside, "10.1.2.3").status(200);
    ask(outside, "192.0.2.1, 10.1.2.3, 127.0.0.1").status(200);
    ask(outside, "10.1.2.3, 192.0.2.1").refused(403, "IP_NOT_ALLOWED");
    ask(inside, "192.0.2.1").refused(403, "IP_NOT_ALLOWED");
    // A proxy that says nothing sensible is the client itself.
    ask(outside, "10.1.2.3, nonsense").refused(403, "IP_NOT_ALLOWED");
    assert_eq!(upstream.requests().len(), 3);
    drop(furt);

    let (furt, upstream) = sagjan(Conf::new().more(keys).server("trusted_proxies = 192.0.2.0/24"));
    let request = Request::get("/api/comments/a").key(outside).field("X-Forwarded-For", "10.1.2.3");
    furt.send(&request).refused(403, "IP_NOT_ALLOWED");
    assert!(upstream.requests().is_empty(), "a peer that is no trusted proxy is not believed");
}

#[test]
fn a_key_needs_the_permission_of_the_route() {
    let keys = "[api_key \"nested-key-0123456789-0123456789-\"]\nname = Nested\npermissions = comments:read:own\n";
    let (furt, upstream) = sagjan(Conf::new().more(keys));
    furt.send(&Request::post("/api/comments/a", "x").key(READER_KEY)).refused(403, "FORBIDDEN");
    furt.send(&Request::get("/api/comments/a").key("nested-key-0123456789-0123456789-")).refused(403, "FORBIDDEN");
    furt.send(&Request::get("/api/comments/a").key(READER_KEY)).status(200);
    furt.send(&Request::post("/api/comments/a", "x").key(WEBSITE_KEY)).status(200);
    assert_eq!(upstream.requests().iter().map(|seen| seen.field("x-api-key-name")).collect::<Vec<_>>(), [Some("Reader"), Some("Website")]);
}

#[test]
fn an_expired_key_and_a_digest_key_are_what_furt_conf_says() {
    use sha2::{Digest, Sha256};
    let digest = |text: &str| Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let keys = format!(
        "[api_key \"old\"]\nkey_sha256 = {}\npermissions = comments:*\nexpires = 2020-01-31T00:00:00Z\n\
         [api_key \"rotating\"]\nkey_sha256 = {}, {}\npermissions = comments:*\nexpires = 2999-01-31T00:00:00Z\n",
        digest("expired-secret"),
        digest("old-secret"),
        digest("new-secret")
    );
    let (furt, upstream) = sagjan(Conf::new().more(&keys));
    let ask = |key: &str| furt.send(&Request::get("/api/comments/a").key(key));
    ask("expired-secret").refused(401, "UNAUTHORIZED");
    ask("rotating").refused(401, "UNAUTHORIZED");
    ask(&digest("old-secret")).refused(401, "UNAUTHORIZED");
    ask("old-secret").status(200);
    ask("new-secret").status(200);
    assert!(upstream.requests().iter().all(|seen| seen.field("x-api-key-name") == Some("rotating")));
}

#[test]
fn a_rate_is_exact_for_the_process_and_told_on_every_answer() {
    let key = "limited-key-0123456789-0123456789";
    let keys = format!("[api_key \"{key}\"]\nname = Limited\npermissions = comments:read\nrate_limit = 5/h\n");
    let (furt, upstream) = sagjan(Conf::new().more(&keys).server("workers = 2"));
    let (mut forwarded, mut refused) = (0, 0);
    // Each on a connection of its own, so that several workers take part.
    for _ in 0..10 {
        let answer = furt.send(&Request::get("/api/comments/a").key(key));
        assert_eq!(answer.field("x-ratelimit-limit"), Some("5"), "{answer:?}");
        let remaining: u32 = answer.field("x-ratelimit-remaining").and_then(|value| value.parse().ok()).expect("a count");
        let reset: u64 = answer.field("x-ratelimit-reset").and_then(|value| value.parse().ok()).expect("Unix seconds");
        assert!(reset > 1_700_000_000, "{reset}");
        if answer.status == 200 {
            forwarded += 1;
            assert_eq!(remaining, 5 - forwarded);
        } else {
            refused += 1;
            answer.refused(429, "RATE_LIMIT_EXCEEDED");
            assert_eq!(remaining, 0);
            let seconds: u32 = answer.field("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
            assert!((1..=3600).contains(&seconds), "{seconds}");
        }
    }
    assert_eq!((forwarded, refused, upstream.requests().len()), (5, 5, 5));
    // Refused before the rate: no request is counted.
    let denied = furt.send(&Request::post("/api/comments/a", "").key(key));
    denied.refused(403, "FORBIDDEN");
    assert_eq!(denied.field("x-ratelimit-limit"), Some("5"), "on every answer: {denied:?}");
    // Nor where no key is asked for.
    for (request, status) in [
        (Request::get("/nothing/here"), 404),
        (Request::get("/api//comments"), 400),
        (Request::new("PATCH", "/api/comments/a"), 405),
        (Request::get("/health"), 200),
    ] {
        let answer = furt.send(&request.clone().key(key));
        assert_eq!((answer.status, answer.field("x-ratelimit-remaining")), (status, Some("0")), "{answer:?}");
        assert_eq!(furt.send(&request.key("unknown")).field("x-ratelimit-limit"), None);
    }
    // Another key is not held up, and one without a limit hears nothing of it.
    let other = furt.send(&Request::get("/api/comments/a").key(READER_KEY));
    assert_eq!((other.status, other.field("x-ratelimit-limit")), (200, None));
}

#[test]
fn a_client_address_may_have_a_rate_too() {
    let (furt, upstream) = sagjan(Conf::new().server("ip_rate_limit = 3/h"));
    let ask = |client: &str| furt.send(&Request::get("/api/comments/a").key(WEBSITE_KEY).field("X-Forwarded-For", client)).status;
    let statuses: Vec<_> = (0..5).map(|_| ask("192.0.2.7")).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(ask("192.0.2.8"), 200);
    assert_eq!(upstream.requests().len(), 4);
}

#[test]
fn a_public_route_needs_no_key_names_a_valid_one_and_ignores_an_invalid_one() {
    let keys = "[api_key \"outside-key-0123456789-0123456789\"]\nname = Outside\npermissions = *\nallowed_ips = 10.0.0.0/8\n";
    let (furt, upstream) = (Conf::new().more(keys).start(), Upstream::start("open"));
    let body = json!({"service": "open", "url": upstream.url(), "routes": [{"method": "GET", "path": "/open", "public": true}]});
    furt.post(&body).status(200);
    let named = |request: &Request| {
        furt.send(request).status(200);
        let seen = upstream.last();
        assert_eq!(seen.values("x-api-key"), [""; 0]);
        seen.field("x-api-key-name").map(str::to_owned)
    };
    let request = Request::get("/open");
    assert_eq!(named(&request), None);
    assert_eq!(named(&request.clone().key("wrong")), None);
    assert_eq!(named(&request.clone().key("outside-key-0123456789-0123456789")), None);
    assert_eq!(named(&request.clone().key(READER_KEY)).as_deref(), Some("Reader"));
    assert_eq!(named(&request.clone().field("X-API-Key-Name", "Admin")), None, "a client cannot name itself");
}

#[test]
fn auth_status_tells_what_a_key_is() {
    let key = "limited-key-0123456789-0123456789";
    let keys = format!("[api_key \"{key}\"]\nname = Limited\npermissions = comments:read, books:*\nrate_limit = 600/min\n");
    let furt = Conf::new().more(&keys).start();
    let ask = |request: &Request| furt.send(request);
    let answer = ask(&Request::get("/auth/status").key(key));
    answer.status(200);
    let body = answer.json();
    assert_eq!(body["success"], true);
    assert_eq!(body["data"], json!({"name": "Limited", "permissions": ["comments:read", "books:*"], "rate_limit": "600/min"}));
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let answer = ask(&Request::get("/auth/status").key(READER_KEY));
    assert_eq!(answer.json()["data"]["name"], "Reader");
    assert!(answer.json()["data"]["rate_limit"].is_null());
    ask(&Request::get("/auth/status")).refused(401, "UNAUTHORIZED");
    ask(&Request::get("/auth/status").key("wrong")).refused(401, "UNAUTHORIZED");
}

#[test]
fn a_key_is_judged_anew_for_every_request_of_a_connection() {
    let (furt, upstream) = sagjan(Conf::new());
    let mut client = Client::new(furt.public);
    let request = Request::get("/api/comments/a");
    assert_eq!(client.ask(&request.clone().key(WEBSITE_KEY)).status, 200);
    client.ask(&request).refused(401, "UNAUTHORIZED");
    assert_eq!(client.ask(&request.clone().key(READER_KEY)).status, 200);
    client.ask(&Request::post("/api/comments/a", "body of the refused").key(READER_KEY)).refused(403, "FORBIDDEN");
    // A refused request's body is no next request.
    assert_eq!(client.ask(&request.clone().key(READER_KEY)).status, 200);
    let names: Vec<_> = upstream.requests().iter().map(|seen| seen.field("x-api-key-name").map(str::to_owned)).collect();
    assert_eq!(names, [Some("Website".to_owned()), Some("Reader".to_owned()), Some("Reader".to_owned())]);
}
