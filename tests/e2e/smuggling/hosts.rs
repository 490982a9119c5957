//! Whom a request is for: Host, absolute targets, and keys that hide behind each other.

use crate::{
    smuggling::{
        Arena,
        Expected::{Either, Forwarded, Refused},
    },
    world::{ADMIN_KEY, WEBSITE_KEY},
};

const BAD: &[u16] = &[400];

fn get(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nX-API-Key: {WEBSITE_KEY}\r\n{fields}\r\n").into_bytes()
}

#[test]
fn host_is_there_once_and_is_a_host() {
    let arena = Arena::start();
    for fields in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a, b\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: user@a\r\n",
        "Host: a:80:80\r\n",
        "Host: a:port\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: a\\b\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: \u{e9}\r\n",
        "Host : a\r\n",
        "Host: a\r\n b\r\n",
    ] {
        arena.check(&get("/api/comments/x", fields), &Refused(BAD));
    }
    for host in ["a", "A.example:8080", "127.0.0.1", "[::1]:80", "a_b-c.d"] {
        let seen = arena.check(&get("/api/comments/x", &format!("Host: {host}\r\n")), &Forwarded("")).expect("forwarded");
        assert_eq!(seen.values("host"), [host]);
    }
}

#[test]
fn an_absolute_target_replaces_host_and_goes_on_in_origin_form() {
    let arena = Arena::start();
    for (target, host) in
        [("http://other.example/api/comments/x", "other.example"), ("http://other.example:81/api/comments/x?q=1", "other.example:81")]
    {
        let seen = arena.check(&get(target, "Host: h\r\n"), &Either(BAD, ""));
        if let Some(seen) = seen {
            assert_eq!(seen.values("host"), [host], "{target}");
            assert!(seen.target.starts_with("/api/comments/x"), "{}", seen.target);
        }
    }
    for target in [
        "http://user:pass@other.example/api/comments/x",
        "http://other.example/api/comments/../x",
        "http://other.example/api/comments/%2e%2e/x",
        "http:///api/comments/x",
        "http:/api/comments/x",
        "file:///api/comments/x",
        "other.example/api/comments/x",
        "other.example:80",
    ] {
        arena.check(&get(target, "Host: h\r\n"), &Refused(&[400, 404]));
    }
    // Where another service would be: what was matched counts, not Host.
    arena.check(&get("http://other.example/admin/x", "Host: h\r\n"), &Refused(&[400, 403]));
    arena.check(&get("*", "Host: h\r\n"), &Refused(&[400, 404]));
}

#[test]
fn a_key_cannot_hide_behind_another() {
    let arena = Arena::start();
    let request = |fields: &str| format!("GET /admin/x HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
    let refused = &[400, 401, 403];
    for fields in [
        format!("X-API-Key: {WEBSITE_KEY}\r\nX-API-Key: {ADMIN_KEY}\r\n"),
        format!("X-API-Key: {ADMIN_KEY}\r\nX-API-Key: {WEBSITE_KEY}\r\n"),
        format!("X-API-Key: {WEBSITE_KEY}, {ADMIN_KEY}\r\n"),
        format!("X-API-Key: {WEBSITE_KEY}\r\n {ADMIN_KEY}\r\n"),
        format!("X-API-Key : {ADMIN_KEY}\r\n"),
        format!("X_API_Key: {ADMIN_KEY}\r\n"),
        format!("X-API-Key: {WEBSITE_KEY}\r\nX_API_Key: {ADMIN_KEY}\r\n"),
        format!("X-API-Key: {ADMIN_KEY}\u{0}\r\n"),
    ] {
        arena.check(&request(&fields), &Refused(refused));
    }
}

#[test]
fn an_upgrade_to_h2c_is_not_passed_on() {
    let arena = Arena::start();
    let fields = "Host: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    let seen = arena.check(&get("/api/comments/x", fields), &Either(BAD, ""));
    if let Some(seen) = seen {
        assert_eq!((seen.values("upgrade"), seen.values("http2-settings")), (vec![], vec![]), "{seen:?}");
        assert!(!seen.values("connection").join(",").to_lowercase().contains("upgrade"), "{seen:?}");
    }
}

#[test]
fn http_1_0_may_have_no_host_and_the_service_gets_one_all_the_same() {
    let arena = Arena::start();
    let request = format!("GET /api/comments/x HTTP/1.0\r\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
    let seen = arena.check(request.as_bytes(), &Forwarded("")).expect("forwarded");
    let host = seen.field("host").expect("a Host");
    assert!(host.starts_with("127.0.0.1:"), "the service's own: {host}");
    assert_eq!(seen.field("x-forwarded-host"), None);
}
