//! What comes over HTTP/2 goes on over HTTP/1.1: each request as none, or as exactly one that is well-formed and says the
//! same, whatever its names and values would mean in HTTP/1.1.

use crate::{
    h2_recorder::{Recorder, Request},
    h2_wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, Outcome, PROTOCOL_ERROR, WHOLE, block, frame, headers, literal,
    },
    world::{Conf, World},
};

type Field<'a> = (&'a str, &'a str);

const HEAD: [Field<'static>; 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/w/x"), (":authority", "h")];

/// The good head with these fields changed or added.
fn with<'a>(changed: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut head: Vec<Field<'a>> = HEAD.to_vec();
    for (name, value) in changed {
        match head.iter_mut().find(|field| field.0 == *name) {
            Some(field) => field.1 = value,
            None => head.push((name, value)),
        }
    }
    head
}

fn whole(changed: &[Field<'_>]) -> Vec<u8> {
    headers(WHOLE, 1, &with(changed))
}

/// A request with a body of one piece.
fn body(changed: &[Field<'_>], body: &[u8]) -> Vec<u8> {
    [headers(0, 1, &with(changed)), frame(DATA, END_STREAM, 1, body)].concat()
}

/// The good head and one more field, of any bytes.
fn odd(name: &[u8], value: &[u8]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &[block(&HEAD), literal(name, value)].concat())
}

/// A whole request, its block in as many frames as it needs.
fn split(fields: &[Field<'_>]) -> Vec<u8> {
    let block = block(fields);
    let last = block.len().div_ceil(16_384) - 1;
    let pieces = block.chunks(16_384).enumerate().map(|(at, piece)| {
        let (kind, end) = if at == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
        frame(kind, if at == last { end | END_HEADERS } else { end }, 1, piece)
    });
    pieces.flatten().collect()
}

/// A furt with a route for everyone at `/w/*`, and one for nobody at `/admin/*`.
struct Arena {
    furt: World,
    open: Recorder,
    shut: Recorder,
}

impl Arena {
    fn start() -> Self {
        let (open, shut) = (Recorder::start(), Recorder::start());
        let route = |name: &str, to: &Recorder, access: &str| {
            format!("[route \"{name}\"]\nmethods = *\npath = /{name}/*\nurl = http://{}\n{access}\n", to.address)
        };
        let routes = [route("w", &open, "public = true"), route("admin", &shut, "permission = admin:all")].concat();
        Self { furt: Conf::new().more(&routes).start(), open, shut }
    }

    /// Sends a request on stream 1; its outcome, and what the service got.
    #[track_caller]
    fn send(&self, what: &str, bytes: &[u8]) -> (Outcome, Option<Request>) {
        let mut client = Http2::new(self.furt.public);
        client.write(bytes);
        let outcome = client.outcome(1);
        let mut seen = self.open.take();
        assert_eq!((self.open.faults(), self.shut.faults()), (Vec::new(), Vec::new()), "{what}");
        assert!(self.shut.take().is_empty(), "{what} went elsewhere");
        assert!(seen.len() <= 1, "{what} became several: {seen:?}");
        (outcome, seen.pop())
    }

    /// It is not forwarded, and refused in one of the ways there are.
    #[track_caller]
    fn refused(&self, what: &str, bytes: &[u8], statuses: &[u16]) {
        let (outcome, seen) = self.send(what, bytes);
        assert!(seen.is_none(), "{what} was forwarded: {seen:?}");
        let right = match outcome {
            Outcome::Answer(status) => statuses.contains(&status),
            Outcome::Reset(code) | Outcome::GoAway(code) => code == PROTOCOL_ERROR,
            Outcome::Closed => false,
        };
        assert!(right, "{what}: {outcome:?}");
    }

    /// It arrives, and is answered.
    #[track_caller]
    fn forwarded(&self, what: &str, bytes: &[u8]) -> Request {
        let (outcome, seen) = self.send(what, bytes);
        assert_eq!(outcome, Outcome::Answer(200), "{what}");
        seen.unwrap_or_else(|| panic!("{what} was answered and did not arrive"))
    }
}

#[test]
fn names_of_any_byte() {
    let arena = Arena::start();
    for byte in 0..=255 {
        let name = [b'x', b'-', byte, b'z'];
        let what = format!("a name with {byte:#04x}");
        let token = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if token {
            let seen = arena.forwarded(&what, &odd(&name, b"v"));
            assert_eq!(seen.fields.iter().filter(|field| *field == &(name.to_vec(), b"v".to_vec())).count(), 1, "{what}: {seen:?}");
        } else {
            arena.refused(&what, &odd(&name, b"v"), &[400]);
        }
    }
    for name in ["", "x y", "x:y", "x: y\r\nz", "x\r\n\r\nGET /admin/x HTTP/1.1\r\nh", " x", "x "] {
        arena.refused(name, &odd(name.as_bytes(), b"v"), &[400]);
    }
}

#[test]
fn values_of_any_byte() {
    let arena = Arena::start();
    for byte in 0..=255 {
        let value = [b'a', byte, b'b'];
        let what = format!("a value with {byte:#04x}");
        if byte == b'\t' || (byte >= 0x20 && byte != 0x7F) {
            let seen = arena.forwarded(&what, &odd(b"x-v", &value));
            assert_eq!(seen.values("x-v"), [&value[..]], "{what}");
        } else {
            arena.refused(&what, &odd(b"x-v", &value), &[400]);
        }
    }
    for value in ["a\r\nb: c", "a\nb: c", "a\rb", "\r\n\r\nGET /admin/x HTTP/1.1\r\nhost: h\r\n\r\n", "a\r\n b", "\0"] {
        arena.refused(value, &odd(b"x-v", value.as_bytes()), &[400]);
    }
    assert_eq!(arena.forwarded("an empty value", &odd(b"x-v", b"")).values("x-v"), [b""]);
}

#[test]
fn paths() {
    let arena = Arena::start();
    for path in [
        "/w/x y",
        "/w/x\r\nx: y",
        "/w/x HTTP/1.1\r\nhost: h\r\n\r\nGET /admin/x",
        "/w/x\n",
        "/w/x\0",
        "/w/\x7F",
        "/w/\u{e4}",
        "/w/x\t",
        "http://h/w/x",
        "//h/w/x",
        "w/x",
        "",
        "*",
        "?",
        "?/w/x",
        "/w/../admin/x",
        "/w/./x",
        "/w/%2e%2e/admin/x",
        "/w//x",
        "/w/%2Fx",
        "/w/%5cx",
        "/w\\x",
        "/w/..;/admin/x",
        "/w/%",
        "/w/%0d%0ax",
        "/w/%00",
        "/w/x?a b",
        "/w/x?\u{e4}",
        "/w/x?\r\ny",
        "h:80",
    ] {
        arena.refused(path, &whole(&[(":path", path)]), &[400]);
    }
    // Matched by one path and forwarded by the same.
    for (path, target) in [
        ("/w/x", "/w/x"),
        ("/w/x?", "/w/x?"),
        ("/w/x?q=/../%0d%0a//", "/w/x?q=/../%0d%0a//"),
        ("/w/%41%2d%7e", "/w/A-~"),
        ("/w/%c3%a4", "/w/%C3%A4"),
        ("/w/x;y=1,2", "/w/x;y=1,2"),
        // hyper has cut it off before anyone sees it: so it is no part of what is matched, either.
        ("/w/x#y", "/w/x"),
        ("/w/x?q#/../../admin/x", "/w/x?q"),
        ("/w/x#/../../admin/x?z", "/w/x"),
    ] {
        let seen = arena.forwarded(path, &whole(&[(":path", path)]));
        assert_eq!(seen.target, target.as_bytes(), "{path}");
    }
    // Of these nothing is left but the root, which nobody has here.
    for path in ["#", "#/w/x"] {
        arena.refused(path, &whole(&[(":path", path)]), &[400, 404]);
    }
    arena.refused("a path for the key's owner", &whole(&[(":path", "/admin/x#/w/x")]), &[401]);
    arena.refused("a path that nobody has", &whole(&[(":path", "/elsewhere")]), &[404]);
    let long = |length: usize| format!("/w/{}", "x".repeat(length - 3));
    arena.refused("a path that is too long", &whole(&[(":path", &long(8 * 1024 + 1))]), &[414]);
    assert_eq!(arena.forwarded("a long path", &whole(&[(":path", &long(8 * 1024))])).target.len(), 8 * 1024);
}

#[test]
fn methods_schemes_and_authorities() {
    let arena = Arena::start();
    for method in ["", "G ET", "GET ", " GET", "GET\r\n", "GET /admin/x HTTP/1.1\r\nx:", "GET\0", "G:T", "G/T", "G\u{e4}T", "CONNECT"] {
        arena.refused(method, &whole(&[(":method", method)]), &[400]);
    }
    for method in ["get", "M-SEARCH", "PRI", "PURGE", "!", "x".repeat(200).as_str()] {
        assert_eq!(arena.forwarded(method, &whole(&[(":method", method)])).method, method.as_bytes());
    }
    for scheme in ["", "ht tp", "http\r\nx: y", "http:", "http://h", "h\0", "\u{e4}"] {
        arena.refused(scheme, &whole(&[(":scheme", scheme)]), &[400]);
    }
    // What the client says of it is not believed.
    for scheme in ["http", "https", "HTTPS", "ftp"] {
        assert_eq!(arena.forwarded(scheme, &whole(&[(":scheme", scheme)])).values("x-forwarded-proto"), [b"http"], "{scheme}");
    }
    for authority in
        ["", "h\r\nx: y", "h h", "user@h", "user:pass@h", "h/x", "h?x", "h#x", "h:port", "h:", ":80", "h,i", "h\0", "[::1", "\u{e4}"]
    {
        arena.refused(authority, &whole(&[(":authority", authority)]), &[400]);
    }
    for authority in ["h", "H.example", "h:8080", "[::1]:80", "127.0.0.1"] {
        assert_eq!(arena.forwarded(authority, &whole(&[(":authority", authority)])).values("host"), [authority.as_bytes()]);
    }
    let only = |hosts: &[&'static str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        headers(WHOLE, 1, &[&HEAD[..3], &hosts].concat())
    };
    assert_eq!(arena.forwarded("a host alone", &only(&["h"])).values("host"), [b"h"]);
    for hosts in [&[][..], &["", ""], &["h", "h"], &["h", "i"], &[""], &["a b"], &["h/x"]] {
        arena.refused(&format!("hosts {hosts:?}"), &only(hosts), &[400]);
    }
    assert_eq!(arena.forwarded("a host like the authority", &whole(&[("host", "H")])).values("host"), [b"h"]);
    arena.refused("another host", &whole(&[("host", "other")]), &[400]);
}

#[test]
fn framing() {
    let arena = Arena::start();
    let framed = |seen: &Request| {
        let text = |name| seen.values(name).concat();
        (String::from_utf8(text("transfer-encoding")).expect("text"), String::from_utf8(text("content-length")).expect("text"))
    };
    let (none, chunked) = ((String::new(), String::new()), ("chunked".to_owned(), String::new()));
    assert_eq!(framed(&arena.forwarded("no body", &whole(&[]))), none);
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "WHATEVER"] {
        let seen = arena.forwarded(method, &body(&[(":method", method)], b"hello"));
        assert_eq!((framed(&seen), seen.body.as_slice()), (chunked.clone(), &b"hello"[..]), "{method}");
        let seen = arena.forwarded(method, &body(&[(":method", method), ("content-length", "5")], b"hello"));
        assert_eq!((framed(&seen).0, framed(&seen).1.as_str(), seen.body.as_slice()), (String::new(), "5", &b"hello"[..]), "{method}");
        let seen = arena.forwarded(method, &body(&[(":method", method)], b""));
        assert!(seen.body.is_empty(), "{method}: {seen:?}");
    }
    // A body that reads like a request is a body.
    let inner = b"0\r\n\r\nGET /admin/x HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(arena.forwarded("a request in a body", &body(&[(":method", "POST")], inner)).body, inner);
    for length in ["4", "6", "0", "5, 5", "+5", "-5", "0x5", "5.0", "five", "", "18446744073709551621", "99999999999999999999999"] {
        arena.refused(length, &body(&[(":method", "POST"), ("content-length", length)], b"hello"), &[400]);
    }
    let two = [&with(&[(":method", "POST"), ("content-length", "5")])[..], &[("content-length", "5")]].concat();
    arena.refused("the same length twice", &[headers(0, 1, &two), frame(DATA, END_STREAM, 1, b"hello")].concat(), &[400]);
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("connection", "close"),
        ("connection", "x-api-key-name"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("te", "chunked"),
    ] {
        arena.refused(name, &body(&[(":method", "POST"), (name, value)], b"hello"), &[400]);
    }
    let seen = arena.forwarded("expect", &body(&[(":method", "POST"), ("expect", "100-continue")], b"hello"));
    assert_eq!(seen.body, b"hello");
}

#[test]
fn cookies_and_counts() {
    let arena = Arena::start();
    let many = |name: &'static str, count: usize| split(&[&HEAD[..], &vec![(name, "a=1"); count]].concat());
    // RFC 9113 §8.2.3: one field, joined by a semicolon and a space.
    assert_eq!(arena.forwarded("crumbs", &many("cookie", 3)).values("cookie"), [b"a=1; a=1; a=1"]);
    let pieces = |values: &[&'static str]| {
        let crumbs: Vec<_> = values.iter().map(|value| ("cookie", *value)).collect();
        arena.forwarded("crumbs", &headers(WHOLE, 1, &[&HEAD[..], &crumbs].concat())).values("cookie").concat()
    };
    assert_eq!((pieces(&["a=1", "", "b=2", ""]), pieces(&["", ""]), pieces(&["", "a=1"])), (b"a=1; b=2".to_vec(), vec![], b"a=1".to_vec()));
    let seen = arena.forwarded("as many crumbs as fit", &many("cookie", 1_500));
    assert_eq!(seen.values("cookie").concat().len(), 1_500 * 5 - 2);
    // `max_headers`; the pseudo-fields are none.
    assert_eq!(arena.forwarded("a hundred fields", &many("x-f", 100)).values("x-f").len(), 100);
    arena.refused("one more", &many("x-f", 101), &[431]);
    // `max_header_size`, each field 32 bytes more than it has (RFC 9113 §6.5.2).
    let value = "v".repeat(16_000);
    let fields = |count| split(&[&HEAD[..], &vec![("x-large", value.as_str()); count]].concat());
    assert_eq!(arena.forwarded("large fields", &fields(4)).values("x-large").len(), 4);
    arena.refused("too large fields", &fields(5), &[431]);
}

#[test]
fn trailers() {
    let arena = Arena::start();
    let send = |head: &[Field<'_>], trailers: &[Field<'_>]| {
        let head = headers(0, 1, &with(&[&[(":method", "POST"), ("trailer", "x-sum")], head].concat()));
        [head, frame(DATA, 0, 1, b"hello"), headers(END_STREAM, 1, trailers)].concat()
    };
    let seen = arena.forwarded("good trailers", &send(&[], &[("x-sum", "1"), ("x-sum", "2")]));
    let pair = |value: &str| (b"x-sum".to_vec(), value.as_bytes().to_vec());
    assert_eq!(seen.trailers, [pair("1"), pair("2")]);
    // What frames, routes or identifies is no trailer; the rest goes on.
    for name in [
        "content-length",
        "host",
        "authorization",
        "x-api-key",
        "x-api-key-name",
        "x_api_key_name",
        "x-request-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "via",
        "trailer",
        "content-type",
        "content-encoding",
        "set-cookie",
        "expect",
        "cookie",
        "forwarded",
    ] {
        let seen = arena.forwarded(name, &send(&[], &[(name, "5"), ("x-sum", "1")]));
        assert_eq!((seen.body.as_slice(), seen.trailers.as_slice()), (&b"hello"[..], &[pair("1")][..]), "{name}");
    }
    // Where the body has a length there is no place for them.
    let seen = arena.forwarded("trailers after a length", &send(&[("content-length", "5")], &[("x-sum", "1")]));
    assert_eq!((seen.body.as_slice(), seen.trailers.as_slice()), (&b"hello"[..], &[][..]));
    for (name, value) in
        [("transfer-encoding", "chunked"), ("connection", "close"), ("x-Sum", "1"), ("x:y", "1"), ("x-sum", "a\r\nb: c"), ("", "1")]
    {
        arena.refused(name, &send(&[], &[(name, value)]), &[400]);
    }
    // Pseudo-fields are taken off by h2, if it does not refuse them.
    for name in [":path", ":method", ":authority", ":status"] {
        let (outcome, seen) = arena.send(name, &send(&[], &[(name, "200"), ("x-sum", "1")]));
        match (&outcome, seen) {
            (Outcome::Answer(200), Some(seen)) => {
                assert_eq!((seen.target.as_slice(), seen.trailers.as_slice()), (&b"/w/x"[..], &[pair("1")][..]), "{name}")
            }
            (Outcome::Reset(PROTOCOL_ERROR) | Outcome::GoAway(PROTOCOL_ERROR), None) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}
