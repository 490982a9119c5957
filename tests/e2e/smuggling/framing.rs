//! Where a request ends: lengths, encodings, chunks and lines that are not what they seem.

use crate::{
    smuggling::{
        Arena,
        Expected::{self, Either, Forwarded, Refused},
    },
    world::{ADMIN_KEY, WEBSITE_KEY},
};

/// 501 is the answer to a transfer coding that furt does not know; 411 to a missing length.
const BAD: &[u16] = &[400, 408, 411, 431, 501, 505];
/// A whole request to the admin service, with a key that opens it: what must never be found in a body.
fn inner() -> String {
    format!("GET /admin/inner HTTP/1.1\r\nHost: h\r\nX-API-Key: {ADMIN_KEY}\r\n\r\n")
}

#[test]
fn transfer_encoding_is_exactly_one_chunked_or_refused() {
    let arena = Arena::start();
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    let cases: &[(&str, Expected<'_>)] = &[
        ("Transfer-Encoding: chunked", Forwarded("hello")),
        ("transfer-encoding: chunked", Forwarded("hello")),
        ("Transfer-Encoding:chunked", Forwarded("hello")),
        ("Transfer-Encoding: \t chunked \t", Either(BAD, "hello")),
        ("Transfer-Encoding: CHUNKED", Either(BAD, "hello")),
        ("Transfer-Encoding: identity, chunked", Refused(BAD)),
        ("Transfer-Encoding: identity", Refused(BAD)),
        ("Transfer-Encoding: gzip, chunked", Refused(BAD)),
        ("Transfer-Encoding: chunked, gzip", Refused(BAD)),
        ("Transfer-Encoding: chunked, identity", Refused(BAD)),
        ("Transfer-Encoding: chunked, chunked", Refused(BAD)),
        ("Transfer-Encoding: ,chunked", Refused(BAD)),
        ("Transfer-Encoding: chunked,", Refused(BAD)),
        ("Transfer-Encoding: chunked;q=1", Refused(BAD)),
        ("Transfer-Encoding: xchunked", Refused(BAD)),
        ("Transfer-Encoding: chunkedx", Refused(BAD)),
        ("Transfer-Encoding: \"chunked\"", Refused(BAD)),
        ("Transfer-Encoding: \u{b}chunked", Refused(BAD)),
        ("Transfer-Encoding: chunked\u{0}", Refused(BAD)),
        ("Transfer-Encoding:", Refused(BAD)),
        ("Transfer-Encoding : chunked", Refused(BAD)),
        (" Transfer-Encoding: chunked", Refused(BAD)),
        ("Transfer-Encoding:\r\n chunked", Refused(BAD)),
        ("X: y\r\n Transfer-Encoding: chunked", Refused(BAD)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Refused(BAD)),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", Refused(BAD)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Refused(BAD)),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", Refused(BAD)),
        // Both framings at once: refused, or read as chunked, sent on without a length, and the connection
        // closed after it (RFC 9112 §6.1).
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", Either(BAD, "hello")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", Either(BAD, "hello")),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked", Either(BAD, "hello")),
        ("Content-Length: 5\r\nTransfer-Encoding: identity", Refused(BAD)),
        ("Content-Length: 5\r\nTransfer-Encoding: x", Refused(BAD)),
    ];
    for (fields, expected) in cases {
        arena.check(&Arena::post(&format!("{fields}\r\n\r\n{chunked}")), expected);
    }
}

#[test]
fn a_hidden_request_in_a_body_stays_in_the_body() {
    let arena = Arena::start();
    let inner = inner();
    // CL.TE: the length covers the hidden request, the chunks end before it.
    let body = format!("0\r\n\r\n{inner}");
    let both = |encoding: &str| Arena::post(&format!("Content-Length: {}\r\n{encoding}\r\n\r\n{body}", body.len()));
    arena.check(&both("Transfer-Encoding: chunked"), &Either(BAD, ""));
    arena.check(&both("Transfer-Encoding:\tchunked"), &Either(BAD, ""));
    arena.check(&both("Transfer-Encoding: xchunked"), &Refused(BAD));
    arena.check(&both("Transfer-Encoding : chunked"), &Refused(BAD));
    // TE.CL: the chunk covers it, the length ends before it.
    let body = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    arena.check(&Arena::post(&format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{body}")), &Either(BAD, &inner));
    // In plain sight, it is a body and nothing else.
    let seen = arena.comments.requests().len();
    arena.send(&Arena::post(&format!("Content-Length: {}\r\n\r\n{inner}", inner.len())));
    arena.send(&Arena::post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}")));
    let bodies: Vec<_> = arena.comments.requests().split_off(seen).into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [inner.as_bytes(), inner.as_bytes()]);
    assert!(arena.admin.requests().is_empty());
}

#[test]
fn a_refused_request_does_not_leave_its_body_as_the_next_request() {
    let arena = Arena::start();
    let inner = inner();
    for head in [
        "POST /nowhere HTTP/1.1\r\nHost: h\r\n".to_owned(),
        format!("POST /admin/x HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n"),
        "POST /api/comments/x HTTP/1.1\r\nHost: h\r\n".to_owned(),
        "POST /health HTTP/1.1\r\nHost: h\r\n".to_owned(),
        "POST /api/comments/../x HTTP/1.1\r\nHost: h\r\n".to_owned(),
    ] {
        arena.send(format!("{head}Content-Length: {}\r\n\r\n{inner}", inner.len()).as_bytes());
        arena.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()).as_bytes());
        assert!(arena.admin.requests().is_empty(), "{head:?}");
    }
    assert!(arena.comments.requests().is_empty());
}

#[test]
fn content_length_is_one_plain_number_or_refused() {
    let arena = Arena::start();
    let cases: &[(&str, Expected<'_>)] = &[
        ("Content-Length: 5", Forwarded("hello")),
        ("Content-Length:  5 ", Either(BAD, "hello")),
        ("Content-Length: 005", Either(BAD, "hello")),
        ("Content-Length: 5\r\nContent-Length: 5", Either(BAD, "hello")),
        ("Content-Length: 5, 5", Either(BAD, "hello")),
        ("Content-Length: 5\r\nContent-Length: 6", Refused(BAD)),
        ("Content-Length: 6\r\nContent-Length: 5", Refused(BAD)),
        ("Content-Length: 5, 6", Refused(BAD)),
        ("Content-Length: +5", Refused(BAD)),
        ("Content-Length: -5", Refused(BAD)),
        ("Content-Length: 0x5", Refused(BAD)),
        ("Content-Length: 5 5", Refused(BAD)),
        ("Content-Length: 5.0", Refused(BAD)),
        ("Content-Length: 5;", Refused(BAD)),
        ("Content-Length: five", Refused(BAD)),
        ("Content-Length:", Refused(BAD)),
        ("Content-Length: 99999999999999999999", Refused(&[400, 408, 413])),
        ("Content-Length: 18446744073709551616", Refused(&[400, 408, 413])),
        ("Content-Length : 5", Refused(BAD)),
        ("Content-Length:\r\n 5", Refused(BAD)),
        ("Content-Length: 5\u{0}", Refused(BAD)),
        ("Content_Length: 5\r\nContent-Length: 5", Either(BAD, "hello")),
    ];
    for (fields, expected) in cases {
        arena.check(&Arena::post(&format!("{fields}\r\n\r\nhello")), expected);
    }
}

#[test]
fn chunks_are_exact_or_the_request_never_becomes_one() {
    let arena = Arena::start();
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(100_000));
    let many = format!("{}0\r\n\r\n", "1;e=v\r\nx\r\n".repeat(10));
    let cases: &[(&str, Expected<'_>)] = &[
        ("5\r\nhello\r\n0\r\n\r\n", Forwarded("hello")),
        ("05\r\nhello\r\n0\r\n\r\n", Either(BAD, "hello")),
        ("5;name=value\r\nhello\r\n0\r\n\r\n", Either(BAD, "hello")),
        ("5 ;name=value\r\nhello\r\n0\r\n\r\n", Either(BAD, "hello")),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Forwarded("hello")),
        ("5\r\nhello\r\n00000\r\n\r\n", Either(BAD, "hello")),
        ("5\r\nhello\r\n0;x\r\n\r\n", Either(BAD, "hello")),
        (&many, Either(BAD, "xxxxxxxxxx")),
        (&long, Either(BAD, "hello")),
        ("5\nhello\n0\n\n", Refused(BAD)),
        ("5\r\nhello\n0\r\n\r\n", Refused(BAD)),
        ("5;x\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("5\rhello\r\n0\r\n\r\n", Refused(BAD)),
        ("0x5\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("+5\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("-5\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("5_\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("g\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("4\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("6\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("5\r\nhello0\r\n\r\n", Refused(BAD)),
        ("FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", Refused(BAD)),
        ("5\r\nhello\r\n0\r\nX\u{0}: y\r\n\r\n", Refused(BAD)),
        ("5\r\nhello\r\n0\r\nno colon\r\n\r\n", Refused(BAD)),
    ];
    for (body, expected) in cases {
        arena.check(&Arena::post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}")), expected);
    }
}

#[test]
fn trailers_carry_no_framing_routing_or_identity() {
    let arena = Arena::start();
    let forbidden = [
        "Content-Length: 7",
        "Transfer-Encoding: chunked",
        "Host: evil",
        "X-API-Key: forged",
        "X-API-Key-Name: forged",
        "X_Api_Key_Name: forged",
        "X-Forwarded-For: forged",
        "X-Request-ID: forged",
        "Connection: close",
        "Authorization: forged",
        "Via: forged",
        "Cookie: forged",
    ];
    for trailer in forbidden {
        let body = format!("TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailer}\r\n\r\n");
        if let Some(seen) = arena.check(&Arena::post(&body), &Either(BAD, "hello")) {
            assert_eq!(seen.trailers, [], "{trailer}");
        }
    }
}

#[test]
fn fields_and_lines_are_well_formed_or_refused() {
    let arena = Arena::start();
    let head = |line: &str, fields: &str| format!("{line}\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n{fields}\r\n");
    let good = "GET /api/comments/x HTTP/1.1";
    let refused = [
        head("GET /api/comments/x HTTP/1.1 GET /admin/x HTTP/1.1", ""),
        head("GET /api/comments/x  HTTP/1.1", ""),
        head("GET  /api/comments/x HTTP/1.1", ""),
        head("GET\t/api/comments/x\tHTTP/1.1", ""),
        head(" GET /api/comments/x HTTP/1.1", ""),
        head("GET /api/comments/x y HTTP/1.1", ""),
        head("GET /api/comments/x HTTP/1.2", ""),
        head("GET /api/comments/x HTTP/2.0", ""),
        head("GET /api/comments/x HTTP/3", ""),
        head("GET /api/comments/x HTTP/0.9", ""),
        head("GET /api/comments/x http/1.1", ""),
        head("GET /api/comments/x XTTP/1.1", ""),
        head("G@T /api/comments/x HTTP/1.1", ""),
        head("GE(T /api/comments/x HTTP/1.1", ""),
        head(good, "X Space: a\r\n"),
        head(good, "X(Y): a\r\n"),
        head(good, ": a\r\n"),
        head(good, "no colon\r\n"),
        head(good, "X\u{e9}: a\r\n"),
        head(good, "X\u{0}Y: a\r\n"),
        head(good, "X: a\u{0}b\r\n"),
        head(good, "X: a\rb\r\n"),
        head(good, "X: a\r\n folded\r\n"),
        head(good, "X: a\r\n\tfolded\r\n"),
        head(good, "X: \u{7f}\r\n"),
        head("CONNECT /api/comments/x HTTP/1.1", ""),
        "GET /api/comments/x\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}".to_owned(),
    ];
    for request in refused {
        arena.check(request.as_bytes(), &Refused(&[400, 404, 405, 408, 501, 505]));
    }
    // Bare line feeds: refused, or read as lines and sent on well-formed.
    let bare = head(good, "").replace("\r\n", "\n");
    arena.check(bare.as_bytes(), &Either(BAD, ""));
    let mixed = format!("{good}\r\nHost: h\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
    arena.check(mixed.as_bytes(), &Either(BAD, ""));
    arena.check(format!("\r\n{}", head(good, "")).as_bytes(), &Either(BAD, ""));
}

#[test]
fn http_1_0_is_read_without_what_it_does_not_know() {
    let arena = Arena::start();
    let post = |fields: &str, body: &str| {
        format!("POST /api/comments/x HTTP/1.0\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n{fields}\r\n{body}").into_bytes()
    };
    arena.check(&post("Content-Length: 5\r\n", "hello"), &Either(BAD, "hello"));
    arena.check(&post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), &Refused(BAD));
    arena.check(&post("Connection: keep-alive\r\nContent-Length: 5\r\n", "hello"), &Either(BAD, "hello"));
}

#[test]
fn heads_without_bounds_are_refused() {
    let arena = Arena::start();
    let huge = "a".repeat(200_000);
    let many = "X: y\r\n".repeat(2_000);
    let statuses = &[400, 408, 414, 431];
    arena.check(&Arena::post(&format!("X-Huge: {huge}\r\nContent-Length: 0\r\n\r\n")), &Refused(statuses));
    arena.check(&Arena::post(&format!("{many}Content-Length: 0\r\n\r\n")), &Refused(statuses));
    let line = format!("GET /api/comments/{huge} HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
    arena.check(line.as_bytes(), &Refused(statuses));
}

#[test]
fn an_answer_is_not_lost_to_a_malformed_request_behind_it() {
    let arena = Arena::start();
    let good = format!("GET /api/comments/1 HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
    for bad in ["GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "GET \\a HTTP/1.1\r\nHost: h\r\n\r\n", "nonsense\r\n\r\n"] {
        assert_eq!(arena.send(format!("{good}{bad}").as_bytes()), [200, 400], "{bad:?}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_each_by_its_own_service() {
    let arena = Arena::start();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
    let requests = [get("/api/comments/1"), get("/nowhere"), get("/api/comments/2"), get("/admin/x"), get("/api/comments/3")].concat();
    assert_eq!(arena.send(requests.as_bytes()), [200, 404, 200, 403, 200]);
    let targets: Vec<_> = arena.comments.requests().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/api/comments/1", "/api/comments/2", "/api/comments/3"]);
}
