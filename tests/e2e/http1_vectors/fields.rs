//! RFC 9112 §5, §3.2: fields and the Host.

use super::{BAD, Front, OK};

#[test]
fn field_lines_are_a_name_a_colon_and_a_value() {
    let front = Front::start();
    for (field, value) in [
        ("X:", &b""[..]),
        ("X:y", b"y"),
        ("X: \t y \t ", b"y"),
        ("X: y z", b"y z"),
        ("X: y\tz", b"y\tz"),
        ("X: :y:", b":y:"),
        ("X: \"y\\\"\"", b"\"y\\\"\""),
        ("X: \u{e4}", "\u{e4}".as_bytes()),
        ("x: GET / HTTP/1.1", b"GET / HTTP/1.1"),
    ] {
        let seen = front.check(format!("GET /v/a HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"), OK, Some(("/v/a", "")));
        let values: Vec<_> = seen.into_iter().flat_map(|request| request.fields).filter(|(name, _)| name == "x").collect();
        assert_eq!(values, [("x".to_owned(), value.to_vec())], "{field:?}");
    }
    for field in [
        "X : y",
        "X\t: y",
        "X \t : y",
        " X: y",
        "\tX: y",
        ": y",
        ":",
        "X",
        "X y",
        "X Y: z",
        "X\0: y",
        "X\u{e4}: y",
        "X(: y",
        "X@: y",
        "X[]: y",
        "\"X\": y",
        "X;: y",
        "X,Y: z",
        "X/Y: z",
        "X=: y",
        "X\u{7f}: y",
        "X\r: y",
        "X: y\r\n z",
        "X: y\r\n\tz",
        "X:\r\n y",
        "X: y\r\n ",
        "X: y\0",
        "X: \u{1}",
        "X: \u{b}y",
        "X: y\u{c}",
        "X: \u{1b}[0m",
        "X: \u{7f}",
        "X: y\rz",
        "X: y\r",
        "X: y\nZ: z",
        "X: y\r\r\nZ: z",
        "X: y\n\r\nZ: z",
        "\u{feff}X: y",
    ] {
        front.check(format!("GET /v/a HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"), BAD, None);
        // And as the first field, where a space would belong to the request line.
        front.check(format!("GET /v/a HTTP/1.1\r\n{field}\r\nHost: h\r\n\r\n"), BAD, None);
    }
}

#[test]
fn there_is_one_host_and_it_is_a_host() {
    let front = Front::start();
    for host in ["h", "H.example", "h.", "h:80", "h:0", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "a_b-c"] {
        front.check(format!("GET /v/a HTTP/1.1\r\nHost: {host}\r\n\r\n"), OK, Some(("/v/a", "")));
    }
    for host in [
        "",
        " ",
        "h h",
        "h,h",
        "h/v",
        "h?x",
        "h#x",
        "u@h",
        "h:",
        ":80",
        "h:80:80",
        "h:x",
        "h:+80",
        "h:123456",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:",
        "[x]",
        "[::1%25eth0]",
        "http://h",
        "h\\x",
        "h%20",
        "<h>",
        "h;x",
        "h\u{e4}",
        "h\0",
    ] {
        front.check(format!("GET /v/a HTTP/1.1\r\nHost: {host}\r\n\r\n"), BAD, None);
    }
    for fields in [
        "",
        "X: y\r\n",
        "Host: h\r\nHost: h\r\n",
        "Host: h\r\nhost: g\r\n",
        "Host: h\r\nX: y\r\nHOST: h\r\n",
        "Host : h\r\n",
        " Host: h\r\n",
    ] {
        front.check(format!("GET /v/a HTTP/1.1\r\n{fields}\r\n"), BAD, None);
    }
    // HTTP/1.0 knew none.
    front.check("GET /v/a HTTP/1.0\r\n\r\n", OK, Some(("/v/a", "")));
    front.check("GET /v/a HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n", BAD, None);
}

#[test]
fn heads_have_bounds() {
    let front = Front::start();
    let get = |fields: &str| format!("GET /v/a HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let many = |count: usize| get(&"X: y\r\n".repeat(count));
    front.check(many(99), OK, Some(("/v/a", "")));
    front.check(many(100), &[431], None);
    let large = |total: usize| get(&format!("X: {}\r\n", "y".repeat(total - get("X: \r\n").len())));
    front.check(large(64 * 1024), OK, Some(("/v/a", "")));
    front.check(large(64 * 1024 + 1), &[431], None);
    // No end of a line, nor a colon, has to come for that.
    front.check(format!("GET /v/a HTTP/1.1\r\n{}", "x".repeat(70_000)), &[431], None);
}
