//! §8 Expressing HTTP Semantics in HTTP/2.

use super::*;
use crate::h2_wire::{DATA, END_HEADERS, END_STREAM, HEADERS, block, literal};

/// A whole request with these fields besides the good ones.
fn besides(fields: &[Field]) -> Vec<u8> {
    headers(WHOLE, 1, &with(fields))
}

/// The good head and one more field, of any bytes.
fn odd(name: &[u8], value: &[u8]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &[block(&HEAD), literal(name, value)].concat())
}

/// A request with a body and these trailers.
fn trailers(flags: u8, fields: &[Field]) -> Vec<u8> {
    [post(1), frame(DATA, 0, 1, b"body"), headers(flags, 1, fields)].concat()
}

/// A request that tells a length, and this body.
fn of_length(length: &'static str, body: &[&[u8]]) -> Vec<u8> {
    let head = headers(if body.is_empty() { WHOLE } else { END_HEADERS }, 1, &with(&[(":method", "POST"), ("content-length", length)]));
    let last = body.len().saturating_sub(1);
    let data = body.iter().enumerate().map(|(at, piece)| frame(DATA, if at == last { END_STREAM } else { 0 }, 1, piece));
    [head, data.collect::<Vec<_>>().concat()].concat()
}

#[test]
fn message_framing() {
    Arena::start().check(vec![
        row("8.1", "a request without a body", get(1), Answer(200)),
        row("8.1", "a request with a body", [post(1), frame(DATA, 0, 1, b"bo"), frame(DATA, END_STREAM, 1, b"dy")].concat(), Answer(200)),
        row(
            "8.1",
            "a body that ends with an empty frame",
            [post(1), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"")].concat(),
            Answer(200),
        ),
        row("8.1", "trailers", trailers(END_STREAM, &[("x-sum", "1")]), Answer(200)),
        row("8.1", "trailers without a field", trailers(END_STREAM, &[]), Answer(200)),
        row("8.1", "trailers without a body", [post(1), headers(END_STREAM, 1, &[("x-sum", "1")])].concat(), Answer(200)),
        row("8.1", "trailers that do not end the stream", trailers(0, &[("x-sum", "1")]), Malformed(400)),
        row("8.1", "a second head", [post(1), post(1)].concat(), Malformed(400)),
        row("8.1", "DATA after the trailers", [trailers(END_STREAM, &[]), frame(DATA, END_STREAM, 1, b"x")].concat(), Stream(OVER)),
        row("8.1", "a HEAD", besides(&[(":method", "HEAD")]), Answer(200)),
        row("8.1.1", "a length and no body", of_length("4", &[]), Malformed(400)),
        row("8.1.1", "a length that is too long", of_length("5", &[b"body"]), Malformed(400)),
        row("8.1.1", "a length that is too short", of_length("3", &[b"body"]), Malformed(400)),
        row("8.1.1", "too short in the second frame", of_length("3", &[b"bo", b"dy"]), Malformed(400)),
        row("8.1.1", "no length, and a body", of_length("0", &[b"body"]), Malformed(400)),
        row("8.1.1", "a length that fits", of_length("4", &[b"bo", b"dy"]), Answer(200)),
        row("8.1.1", "a length of no body", of_length("0", &[]), Answer(200)),
        row("8.1.1", "a length that is none", of_length("four", &[b"body"]), Malformed(400)),
        row("8.1.1", "a negative length", of_length("-4", &[b"body"]), Malformed(400)),
        row("8.1.1", "a length with a sign", of_length("+4", &[b"body"]), Malformed(400)),
        row(
            "8.1.1",
            "a length that is too long before trailers",
            [
                headers(0, 1, &with(&[(":method", "POST"), ("content-length", "5")])),
                frame(DATA, 0, 1, b"body"),
                headers(END_STREAM, 1, &[]),
            ]
            .concat(),
            Malformed(400),
        ),
        row(
            "8.1.1",
            "two lengths",
            headers(WHOLE, 1, &[&with(&[("content-length", "0")])[..], &[("content-length", "1")]].concat()),
            Malformed(400),
        ),
    ]);
}

#[test]
fn field_names_and_values() {
    let mut rows = vec![
        row("8.2", "a name in lower case", besides(&[("x-good", "1")]), Answer(200)),
        row("8.2", "a name in upper case", odd(b"X-Good", b"1"), Malformed(400)),
        row("8.2", "one upper-case letter", odd(b"x-gooD", b"1"), Malformed(400)),
        row("8.2.1", "an empty name", odd(b"", b"1"), Malformed(400)),
        row("8.2.1", "an empty value", odd(b"x", b""), Answer(200)),
        row("8.2.1", "a value of any other bytes", odd(b"x", "a\u{e4}\t~".as_bytes()), Answer(200)),
        row("8.2.1", "a space before the value", odd(b"x", b" 1"), Malformed(400)),
        row("8.2.1", "a space after the value", odd(b"x", b"1 "), Malformed(400)),
        row("8.2.1", "a tab before the value", odd(b"x", b"\t1"), Malformed(400)),
        row("8.2.1", "a tab after the value", odd(b"x", b"1\t"), Malformed(400)),
        row("8.2.1", "a value of a space", odd(b"x", b" "), Malformed(400)),
        row("8.2.1", "a space within the value", odd(b"x", b"1 2"), Answer(200)),
        row("8.2.2", "connection", besides(&[("connection", "keep-alive")]), Malformed(400)),
        row("8.2.2", "proxy-connection", besides(&[("proxy-connection", "keep-alive")]), Malformed(400)),
        row("8.2.2", "keep-alive", besides(&[("keep-alive", "timeout=5")]), Malformed(400)),
        row("8.2.2", "transfer-encoding", besides(&[("transfer-encoding", "chunked")]), Malformed(400)),
        row("8.2.2", "upgrade", besides(&[("upgrade", "websocket")]), Malformed(400)),
        row("8.2.2", "te: trailers", besides(&[("te", "trailers")]), Answer(200)),
        row("8.2.2", "te with anything else", besides(&[("te", "trailers, deflate")]), Malformed(400)),
        row("8.2.2", "te with a weight", besides(&[("te", "gzip;q=1")]), Malformed(400)),
        row("8.2.2", "te twice", headers(WHOLE, 1, &[&with(&[("te", "trailers")])[..], &[("te", "gzip")]].concat()), Malformed(400)),
        row(
            "8.2.3",
            "cookies in crumbs",
            headers(WHOLE, 1, &[&with(&[("cookie", "a=b")])[..], &[("cookie", "c=d")]].concat()),
            Answer(200),
        ),
    ];
    for (what, byte) in [("NUL", 0), ("LF", b'\n'), ("CR", b'\r')] {
        for value in [[byte, b'a', b'b'], [b'a', byte, b'b'], [b'a', b'b', byte]] {
            rows.push(row("8.2.1", what, odd(b"x", &value), Malformed(400)));
        }
    }
    for byte in [0, b'\t', b'\n', b'\r', b' ', b':', b'A', b'Z', 0x1F, 0x7F, 0x80, 0xFF] {
        rows.push(row("8.2.1", "a name with what no name has", odd(&[b'x', byte, b'y'], b"1"), Malformed(400)));
    }
    Arena::start().check(rows);
}

#[test]
fn pseudo_fields() {
    let whole = |fields: &[Field]| headers(WHOLE, 1, fields);
    let mut rows = vec![
        row("8.3", "an unknown one", whole(&[&HEAD[..], &[(":unknown", "x")]].concat()), Malformed(400)),
        row("8.3", "an unknown one in upper case", whole(&[&HEAD[..], &[(":Path", "/w/y")]].concat()), Malformed(400)),
        row("8.3", "one of answers", whole(&[&HEAD[..], &[(":status", "200")]].concat()), Malformed(400)),
        row("8.3", "after another field", whole(&[&HEAD[..3], &[("x", "y")], &HEAD[3..]].concat()), Malformed(400)),
        row("8.3", "before all else, in any order", whole(&[HEAD[3], HEAD[2], HEAD[1], HEAD[0]]), Answer(200)),
        row("8.3", "no name but a colon", whole(&[&HEAD[..], &[(":", "x")]].concat()), Malformed(400)),
        row("8.3.1", "an empty path", whole(&with(&[(":path", "")])), Malformed(400)),
        row("8.3.1", "a path without its slash", whole(&with(&[(":path", "w/x")])), Malformed(400)),
        row("8.3.1", "a query without a path", whole(&with(&[(":path", "?w/x")])), Malformed(400)),
        row("8.3.1", "a whole target", whole(&with(&[(":path", "http://h/w/x")])), Malformed(400)),
        row("8.3.1", "an asterisk for a GET", whole(&with(&[(":path", "*")])), Malformed(400)),
        row("8.3.1", "a path with a space", whole(&with(&[(":path", "/w/x y")])), Malformed(400)),
        row("8.3.1", "an empty method", whole(&with(&[(":method", "")])), Malformed(400)),
        row("8.3.1", "a method that is no token", whole(&with(&[(":method", "G T")])), Malformed(400)),
        row("8.3.1", "an empty scheme", whole(&with(&[(":scheme", "")])), Malformed(400)),
        row("8.3.1", "a scheme that is none", whole(&with(&[(":scheme", "ht tp")])), Malformed(400)),
        row("8.3.1", "no authority but a host", whole(&[&without(&[":authority"])[..], &[("host", "h")]].concat()), Answer(200)),
        row("8.3.1", "neither authority nor host", whole(&without(&[":authority"])), Malformed(400)),
        row("8.3.1", "an empty authority", whole(&with(&[(":authority", "")])), Malformed(400)),
        row("8.3.1", "an authority with a user", whole(&with(&[(":authority", "user:pass@h")])), Malformed(400)),
        row("8.3.1", "a host beside its like", whole(&with(&[("host", "h")])), Answer(200)),
        row("8.3.1", "a host beside another authority", whole(&with(&[("host", "other")])), Malformed(400)),
        // h2 takes them away before anyone sees them.
        row("8.1", "in trailers", trailers(END_STREAM, &[(":path", "/w/y")]), Dropped),
        row("8.1", "in trailers, one of answers", trailers(END_STREAM, &[(":status", "200")]), Dropped),
        row("8.5", "CONNECT", whole(&[(":method", "CONNECT"), (":authority", "h:443")]), Malformed(400)),
        row("8.5", "CONNECT with a path", whole(&with(&[(":method", "CONNECT")])), Malformed(400)),
        row("8.5", "CONNECT without an authority", whole(&[(":method", "CONNECT")]), Malformed(400)),
        row("8.5", "CONNECT by another protocol", whole(&with(&[(":method", "CONNECT"), (":protocol", "websocket")])), Malformed(400)),
        row("8.3", "a protocol without CONNECT", whole(&with(&[(":protocol", "websocket")])), Malformed(400)),
    ];
    for name in [":method", ":scheme", ":path"] {
        rows.push(row("8.3.1", "one of three that must be there", whole(&without(&[name])), Malformed(400)));
    }
    for field in HEAD {
        rows.push(row("8.3", "one twice", whole(&[&[field][..], &HEAD].concat()), Malformed(400)));
    }
    Arena::start().check(rows);
}
