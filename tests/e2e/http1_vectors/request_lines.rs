//! RFC 9112 §2.2, §2.3, §3: method, target, version, and nothing else.

use super::{BAD, Front, OK};

#[test]
fn request_lines_are_three_words_that_all_know() {
    let front = Front::start();
    let long = "M".repeat(32);
    let longer = "M".repeat(33);
    let methods = ["GET", "get", "PURGE", "M-SEARCH", "PROPFIND", "QUERY", "SOURCE", "!#$%&'*+-.^_`|~", "0", &long];
    for method in methods {
        let seen = front.check(format!("{method} /v/a HTTP/1.1\r\nHost: h\r\n\r\n"), OK, Some(("/v/a", "")));
        assert_eq!(seen.map(|request| request.method).as_deref(), Some(method));
    }
    for method in
        [&*longer, "", " GET", "GE T", "G\tET", "G(T", "G@T", "G/T", "\"GET\"", "GET:", "G\0T", "G\u{e9}T", "\rGET", "GET\r", "CONNECT"]
    {
        front.check(format!("{method} /v/a HTTP/1.1\r\nHost: h\r\n\r\n"), BAD, None);
    }
    for version in [
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/1.10",
        "HTTP/01.1",
        "HTTP/1.01",
        "HTTP/1.",
        "HTTP/1",
        "HTTP/11",
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/3.0",
        "HTTP/9.9",
        "http/1.1",
        "hTTP/1.1",
        "HTP/1.1",
        "ICE/1.0",
        "RTSP/1.0",
        "HTTPS/1.1",
        "HTTP /1.1",
        "HTTP/ 1.1",
        "HTTP/1 .1",
        "HTTP/1.1 ",
        "HTTP/1.1\t",
        "HTTP/1.1x",
        "HTTP/1,1",
        "HTTP/+1.1",
        "HTTP/1.1\0",
        "HTTP/1.1\r",
        "HTTP\\1.1",
        " HTTP/1.1",
        "",
        "HTTP/1.1 HTTP/1.1",
    ] {
        front.check(format!("GET /v/a {version}\r\nHost: h\r\n\r\n"), BAD, None);
    }
    // HTTP/0.9, whole or cut.
    for line in ["GET /v/a", "GET", "GET ", "/v/a HTTP/1.1", "HTTP/1.1 200 OK"] {
        front.check(format!("{line}\r\n\r\n"), BAD, None);
    }
}

#[test]
fn targets_have_one_form_and_one_meaning() {
    let front = Front::start();
    for (target, expected) in [
        ("/v/a", "/v/a"),
        ("/v/a?", "/v/a?"),
        ("/v/a?b=c&d=%00%zz", "/v/a?b=c&d=%00%zz"),
        ("/v/a?/../?//", "/v/a?/../?//"),
        ("/v/%7Ea", "/v/~a"),
        ("/v/%c3%a4", "/v/%C3%A4"),
        ("http://h/v/a", "/v/a"),
        ("HTTP://h/v/a", "/v/a"),
        ("http://h:80/v/a?b", "/v/a?b"),
        ("https://h/v/a", "/v/a"),
    ] {
        front.check(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), OK, Some((expected, "")));
    }
    for target in [
        "v/a",
        "?a",
        "h",
        "h:80",
        "//h/v/a",
        "/v//a",
        "/v/./a",
        "/v/../v/a",
        "/v/%2e%2e/a",
        "/v/..;/a",
        "/v/a%2fb",
        "/v/a%5cb",
        "/v/a\\b",
        "/v/a%00",
        "/v/%zz",
        "/v/a#b",
        "/v/a b",
        "/v/a\tb",
        "/v/a\0b",
        "/v/a\u{b}b",
        "/v/a\u{e4}",
        "/v/a\u{7f}",
        "/v/a\rb",
        "http://",
        "http:///v/a",
        "http://u:p@h/v/a",
        "http:/v/a",
    ] {
        front.check(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), BAD, None);
    }
    // The authority of an absolute target stands above Host (§3.2.2).
    let seen = front.check("GET http://real/v/a HTTP/1.1\r\nHost: other\r\n\r\n", OK, Some(("/v/a", "")));
    let host = seen.and_then(|request| request.fields.into_iter().find(|(name, _)| name == "host"));
    assert_eq!(host, Some(("host".to_owned(), b"real".to_vec())));
    let long = format!("/v/{}", "a".repeat(8 * 1024 - 3));
    front.check(format!("GET {long} HTTP/1.1\r\nHost: h\r\n\r\n"), OK, Some((&long, "")));
    front.check(format!("GET {long}a HTTP/1.1\r\nHost: h\r\n\r\n"), &[414], None);
    front.check(format!("GET {}", long.repeat(3)), &[414], None);
}

#[test]
fn lines_end_with_crlf_and_a_few_empty_ones_come_before() {
    let front = Front::start();
    let get = "GET /v/a HTTP/1.1\r\nHost: h\r\n\r\n";
    for before in ["", "\r\n", "\r\n\r\n\r\n\r\n"] {
        front.check(format!("{before}{get}"), OK, Some(("/v/a", "")));
    }
    for before in ["\n", "\r", "\r\r\n", "\r\n\n", " \r\n", "\0", "\u{feff}", "\r\n\r\n\r\n\r\n\r\n", "x\r\n"] {
        front.check(format!("{before}{get}"), BAD, None);
    }
    for odd in [
        get.replace("\r\n", "\n"),
        get.replace("\r\n", "\r"),
        get.replace("\r\n", "\n\r"),
        get.replace("\r\n", "\r\r\n"),
        get.replacen("\r\n", "\n", 1),
        "GET /v/a HTTP/1.1\r\nHost: h\n\r\n".to_owned(),
        "GET /v/a HTTP/1.1\r\nHost: h\r\n\n".to_owned(),
        "GET /v/a HTTP/1.1\r\nHost: h\r\n\rX\r\n\r\n".to_owned(),
        "GET /v/a HTTP/1.1\r\nHost: h\r\n\r\r\n".to_owned(),
    ] {
        front.check(odd, BAD, None);
    }
}
