use proptest::prelude::*;

use super::{
    reference::{End, Most, Request, read_all},
    *,
};

/// Small, so that they are met.
const LIMITS: Limits = Limits { head: 160, fields: 4, target: 40 };
const MALFORMED: &str = "malformed";

fn most(limits: &Limits) -> Most {
    Most { head: limits.head, fields: limits.fields, target: limits.target }
}

/// The bytes in pieces of these lengths, over and over; the rest of the connection's bytes comes in one.
fn pieces<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().copied();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = lengths.next().unwrap_or(rest.len()).clamp(1, rest.len().max(1)).min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Reads a stream in pieces. The guard as it is then, and the refusal with its place in the whole stream.
fn read(bytes: &[u8], lengths: &[usize], limits: &Limits) -> (Strict, Option<Refused>) {
    let mut strict = Strict::new();
    let mut before = 0;
    for piece in pieces(bytes, lengths) {
        if let Err(refused) = strict.read(piece, limits) {
            return (strict, Some(Refused { at: before + refused.at, ..refused }));
        }
        before += piece.len();
    }
    (strict, None)
}

fn status(fault: Fault) -> u16 {
    match fault {
        Fault::Malformed(_) | Fault::Fragment => 400,
        Fault::UriTooLong => 414,
        Fault::HeadersTooLarge => 431,
    }
}

/// What holds of any bytes in any cut.
fn check(bytes: &[u8], lengths: &[usize], limits: &Limits) {
    let (_, whole) = read(bytes, &[], limits);
    let (strict, cut) = read(bytes, lengths, limits);
    assert_eq!(whole.map(|refused| refused.fault), cut.map(|refused| refused.fault), "the cut {lengths:?} makes a difference");
    let (requests, end) = read_all(bytes, &most(limits));
    match cut {
        None => {
            assert!(!matches!(end, End::Refused(_)), "passed, but {end:?}");
            assert_eq!(strict.is_between(), end == End::Between);
            assert!(strict.begun.len() <= limits.head.max(MAX_CHUNK_LINE) + 1);
        }
        Some(refused) => {
            assert_eq!(End::Refused(status(refused.fault)), end, "{refused:?}");
            let (passed, end) = read_all(&bytes[..refused.at], &most(limits));
            assert!(!matches!(end, End::Refused(_)), "what may pass has the fault");
            assert_eq!(passed, requests, "what may pass has not the whole requests before the fault");
        }
    }
}

/// A stream and what is refused of it, by a part of the reason.
#[track_caller]
fn refused(bytes: impl AsRef<[u8]>, because: &str) {
    let bytes = bytes.as_ref();
    let shown = String::from_utf8_lossy(bytes);
    let (_, refusal) = read(bytes, &[], &LIMITS);
    let reason = match refusal.map(|refused| refused.fault) {
        Some(Fault::Malformed(why)) => format!("{MALFORMED}: {why}"),
        other => format!("{other:?}"),
    };
    assert!(reason.contains(because), "{shown:?}: {reason}");
    for cut in 1..bytes.len() {
        check(bytes, &[cut], &LIMITS);
    }
    check(bytes, &[1; 1000], &LIMITS);
}

/// A stream of so many whole requests and nothing else.
#[track_caller]
fn passes(bytes: impl AsRef<[u8]>, requests: usize) -> Vec<Request> {
    let bytes = bytes.as_ref();
    let (seen, end) = read_all(bytes, &most(&LIMITS));
    assert_eq!((seen.len(), end), (requests, End::Between), "{:?}", String::from_utf8_lossy(bytes));
    assert_eq!(read(bytes, &[], &LIMITS).1, None, "{:?}", String::from_utf8_lossy(bytes));
    for cut in 1..bytes.len() {
        check(bytes, &[cut], &LIMITS);
    }
    check(bytes, &[1; 1000], &LIMITS);
    seen
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

#[test]
fn well_formed_requests_pass() {
    let one = |bytes: &str| passes(bytes, 1).remove(0);
    one(&get(""));
    one("GET / HTTP/1.0\r\n\r\n");
    one("OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n");
    one("GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n");
    one("GET HTTPS://h/ HTTP/1.1\r\nHost: h\r\n\r\n");
    one("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n");
    one(&get("X: \u{e4}\u{f6}\u{fc}\r\nY:\r\n!#$%&'*+-.^_`|~: \t z \t \r\n"));
    one(&get("Content-Length: 0\r\n"));
    assert_eq!(one(&format!("{}hello", get("Content-Length: 5\r\n"))).body, b"hello");
    assert_eq!(one(&format!("{}hello", get("content-length:5\r\n"))).body, b"hello");
    assert_eq!(one(&chunked("0\r\n\r\n")).body, b"");
    assert_eq!(one(&chunked("5\r\nhello\r\n000a;x=\"y z\"\r\n0\r\n\r\n12345\r\n0\r\n\r\n")).body, b"hello0\r\n\r\n12345");
    assert_eq!(one(&chunked("0\r\nA: b\r\nC: d\r\n\r\n")).trailers.len(), 2);
    passes(format!("{}{}\r\n{}", get(""), chunked("1\r\nx\r\n0\r\n\r\n"), get("")), 3);
}

#[test]
fn what_is_no_request_line_is_refused_as_soon_as_that_is_known() {
    for line in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /",
        "GET",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /a b HTTP/1.1",
        "GET a HTTP/1.1",
        "GET h:80 HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET ** HTTP/1.1",
        "GET ://h/ HTTP/1.1",
        "GET h:/a://b HTTP/1.1",
        "GET ftp://h/ HTTP/1.1",
        "GET xhttp://h/ HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\r HTTP/1.1",
        "GET /\u{80} HTTP/1.1",
        "G(T / HTTP/1.1",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1",
        "\rGET / HTTP/1.1",
    ] {
        refused(format!("{line}\r\nHost: h\r\n\r\n"), NO_REQUEST_LINE);
    }
    refused("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n", NO_REQUEST_LINE);
    refused("CONNECT h:80 HTTP/1.1\r\n", "CONNECT");
    refused("GET /#a HTTP/1.1\r\n", "Fragment");
    // No line end has to come for these.
    refused("\x16\x03\x01", NO_REQUEST_LINE);
    refused("A".repeat(33), NO_REQUEST_LINE);
    refused("GET\0", NO_REQUEST_LINE);
    refused("\rA", NO_REQUEST_LINE);
    refused("GET\r", NO_REQUEST_LINE);
}

#[test]
fn lines_end_with_crlf_and_nothing_else() {
    for bytes in ["\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nHost: h\n", "GET / HTTP/1.1\r\nHost: h\r\n\n"] {
        refused(bytes, "bare LF");
    }
    refused(chunked("5\n"), "bare LF");
    refused(chunked("0\r\n\n"), "bare LF");
    refused(chunked("0\r\nA: b\n"), "bare LF");
    refused(chunked("5\r\nhello\n"), "bare LF");
    refused(get("A: b\rX: y\r\n"), "control");
    refused(get("A: b\r\r\n"), "control");
    refused(chunked("5\r\r\n"), "chunk");
    refused(chunked("5;a\rb\r\n"), "chunk");
}

#[test]
fn fields_are_a_token_a_colon_and_a_plain_value() {
    for (field, because) in [
        (" A: b", "folded"),
        ("\tA: b", "folded"),
        ("A: b\r\n c", "folded"),
        ("A : b", "token"),
        ("A\t: b", "token"),
        (": b", "token"),
        ("A b: c", "token"),
        ("A\0: c", "token"),
        ("\u{e4}: c", "token"),
        ("A", "colon"),
        ("A: \0", "control"),
        ("A: \u{7f}", "control"),
        ("A: \u{b}", "control"),
    ] {
        refused(get(&format!("{field}\r\n")), because);
        if !field.starts_with([' ', '\t']) {
            refused(chunked(&format!("0\r\n{field}\r\n")), because);
        }
    }
}

#[test]
fn where_a_request_ends_and_for_whom_it_is_leaves_no_doubt() {
    for field in ["Host: h", "Host: g"] {
        refused(get(&format!("{field}\r\n")), "one Host");
    }
    for host in ["", "a b", "a@b", "h:", "h:x", "h:123456", "::1", "[::1", "a,b", "h/"] {
        refused(format!("GET / HTTP/1.1\r\nHost: {host}\r\n"), "Host is malformed");
    }
    refused("GET / HTTP/1.1\r\n\r\n", "must have a Host");
    for length in ["", "+5", "-5", "5 5", "5,5", "5, 5", "0x5", "5.0", "five", "5;", "99999999999999999999", "\u{665}"] {
        refused(get(&format!("Content-Length: {length}\r\n")), "Content-Length is malformed");
    }
    refused(get("Content-Length: 5\r\nContent-Length: 5\r\n"), "Content-Length is malformed");
    for coding in ["", "identity", "gzip, chunked", "chunked, chunked", "chunked,", ",chunked", "chunked;q=1", "\"chunked\"", "xchunked"] {
        refused(get(&format!("Transfer-Encoding: {coding}\r\n")), "Transfer-Encoding is one");
    }
    refused(get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), "Transfer-Encoding is one");
    for fields in ["Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"] {
        refused(get(fields), "does not go with");
    }
    refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "does not go with");
}

#[test]
fn chunks_are_exact() {
    for size in
        ["", "g", "0x5", "+5", "-5", " 5", "5 ", "5 ;x", "5\t", "5_", "5,", "10000000000000000", "8000000000000000", "00000000000000005"]
    {
        refused(chunked(&format!("{size}\r\n")), "size of a chunk");
    }
    refused(chunked("5;\u{e4}\r\n"), "size of a chunk");
    refused(chunked("5;a=\"\0\"\r\n"), "size of a chunk");
    refused(chunked(&format!("5;{}", "x".repeat(271))), "too long");
    for body in ["4\r\nhello\r\n", "5\r\nhello0\r\n", "5\r\nhello\rx", "5\r\nhellox"] {
        refused(chunked(body), NO_CHUNK_END);
    }
    // To the byte: the longest line, and one more.
    let longest = format!("1;{}", "x".repeat(MAX_CHUNK_LINE - 2));
    passes(chunked(&format!("{longest}\r\nx\r\n0\r\n\r\n")), 1);
    refused(chunked(&format!("{longest}x\r\n")), "too long");
}

#[test]
fn limits_hold_to_the_byte_and_before_the_line_ends() {
    let target = |length: usize| format!("/{}", "x".repeat(length - 1));
    let ask = |length: usize| format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", target(length));
    passes(ask(LIMITS.target), 1);
    refused(ask(LIMITS.target + 1), "UriTooLong");
    refused(format!("GET {}", target(LIMITS.target + 11)), "UriTooLong");
    assert_eq!(read(format!("GET {}", target(LIMITS.target + 10)).as_bytes(), &[], &LIMITS).1, None);
    let fill = |total: usize| {
        let rest = total - get("X: \r\n").len();
        get(&format!("X: {}\r\n", "y".repeat(rest)))
    };
    passes(fill(LIMITS.head), 1);
    refused(fill(LIMITS.head + 1), "HeadersTooLarge");
    let open = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(LIMITS.head));
    refused(&open, "HeadersTooLarge");
    passes(get("A: b\r\nA: b\r\nA: b\r\n"), 1);
    refused(get("A: b\r\nA: b\r\nA: b\r\nA: b\r\n"), "HeadersTooLarge");
    // Trailers have the same limits, and do not pay for the head.
    passes(chunked("0\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\n\r\n"), 1);
    refused(chunked("0\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\n\r\n"), "HeadersTooLarge");
    refused(chunked(&format!("0\r\nA: {}", "b".repeat(LIMITS.head))), "HeadersTooLarge");
    // The limit that is met first counts when a target may be longer than a head.
    let wide = Limits { target: 1000, ..LIMITS };
    let fault = |bytes: &str| read(bytes.as_bytes(), &[], &wide).1.map(|refused| refused.fault);
    assert_eq!(fault(&format!("GET {}", target(LIMITS.head))), Some(Fault::HeadersTooLarge));
    let large = Limits { head: usize::MAX, fields: usize::MAX, target: usize::MAX };
    assert_eq!(read(b"GET / HTTP/1.1\r\n", &[1; 20], &large).1, None);
}

#[test]
fn nothing_is_kept_of_what_has_passed() {
    let mut strict = Strict::new();
    for _ in 0..1000 {
        for byte in chunked("5\r\nhello\r\n0\r\nA: b\r\n\r\n").bytes() {
            strict.read(&[byte], &LIMITS).unwrap();
            assert!(strict.begun.capacity() <= 64);
        }
        assert!(strict.is_between() && strict.begun.capacity() == 0);
    }
}

#[test]
fn a_refused_piece_of_a_body_is_told_from_a_refused_request() {
    let in_body = |bytes: &str| {
        let (strict, refusal) = read(bytes.as_bytes(), &[], &LIMITS);
        assert!(refusal.is_some());
        strict.is_in_body()
    };
    assert!(in_body(&chunked("x\r\n")) && in_body(&chunked("1\r\nxx\r\n")) && in_body(&chunked("0\r\nx\r\n")));
    assert!(!in_body("x\r\n") && !in_body("GET / HTTP/1.1\r\n\r\n") && !in_body(&chunked("0\r\n\r\nx y\r\n")));
    assert!(!in_body(&format!("{}hellox\r\n", get("Content-Length: 5\r\n"))));
}

/// What streams are made of, so that they come far before they go wrong.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "GET ",
        "POST ",
        "CONNECT ",
        "/",
        "/a?b",
        "http://h/",
        "ftp://h/",
        "#",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        ";",
        ",",
        "\0",
        "Host: h\r\n",
        "host:[::1]:80\r\n",
        "Host: a b\r\n",
        "X: y\r\n",
        "X : y\r\n",
        " folded\r\n",
        "Content-Length: ",
        "Transfer-Encoding: ",
        "chunked\r\n",
        "0",
        "1",
        "5",
        "a",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nA: b\r\n\r\n",
        "1;x=y\r\nz\r\n",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "GET / HTTP/1.1\r\nHost: h\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ]);
    prop_oneof![
        20 => words.prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
        1 => (0..300_usize).prop_map(|length| vec![b'x'; length]),
    ]
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(fragment(), 0..16).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_cut_gives_the_same_verdict_which_is_that_of_an_independent_reader(
        bytes in stream(), lengths in prop::collection::vec(1..40_usize, 0..30), target in 1..300_usize
    ) {
        check(&bytes, &lengths, &LIMITS);
        check(&bytes, &[1; 5000], &Limits { target, ..LIMITS });
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1..300_usize) {
        check(&bytes, &[cut], &LIMITS);
        check(&[chunked("").as_bytes(), &bytes].concat(), &[cut], &LIMITS);
    }
}
