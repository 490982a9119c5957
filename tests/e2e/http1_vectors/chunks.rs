//! RFC 9112 §7.1: chunks, their extensions and their ends, and the trailers.

use super::{BAD, Front, OK, post};

#[test]
fn chunks_end_where_they_say() {
    let front = Front::start();
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    for (body, expected) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("05\r\nhello\r\n00\r\n\r\n", "hello"),
        ("0000000000000005\r\nhello\r\n0\r\n\r\n", "hello"),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
        ("5;x\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5;x=y\r\nhello\r\n0;z\r\n\r\n", "hello"),
        ("5;x=\"y;z \\\"\";q\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5; x = y\r\nhello\r\n0\r\n\r\n", "hello"),
    ] {
        front.check(chunked(body), OK, Some(("/v/a", expected)));
    }
    for size in [
        "",
        " ",
        "5 ",
        "5\t",
        " 5",
        "\t5",
        "5 ;x",
        "+5",
        "-5",
        "0x5",
        "x5",
        "5h",
        "5_",
        "5.",
        "5,",
        "5:",
        "5=x",
        "\"5\"",
        "\u{665}",
        "5\0",
        "\x005",
        "5\u{b}",
        "g",
        "00000000000000005",
        "10000000000000000",
        "10000000000000005",
        "FFFFFFFFFFFFFFFF",
        "8000000000000000",
        "fffffffffffffffffffffffffffff",
        "5\rx",
        "5\r",
        "\r5",
        "5;\0",
        "5;x\ry",
        "5;\u{e4}",
        "5;x=\"\u{1}\"",
    ] {
        front.check(chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")), BAD, None);
    }
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello \r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\n\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "7\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\r\n",
        "5\r\nhello\r\n0\r\n\rX",
        "5\r\nhello\r\n0\r\nX",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "5;x\nhello\r\n0\r\n\r\n",
        "5;x=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "hello",
    ] {
        front.check(chunked(body), BAD, None);
    }
    // Bounds of a line, and of all extensions of a body.
    let extended = |length: usize| chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(length)));
    front.check(extended(270), OK, Some(("/v/a", "hello")));
    front.check(extended(271), BAD, None);
    front.check(chunked(&format!("5;{}", "x".repeat(1000))), BAD, None);
    // What never ends is no request.
    front.check(chunked("ffff\r\nhello"), &[408], None);
}

#[test]
fn trailers_are_fields_like_others_and_frame_nothing() {
    let front = Front::start();
    let trailed = |trailers: &str| post("TE: trailers\r\nTransfer-Encoding: chunked\r\n", &format!("5\r\nhello\r\n0\r\n{trailers}\r\n"));
    for trailers in [
        "A: b\r\n",
        "A: b\r\nC: d\r\n",
        "A:\r\n",
        "Content-Length: 7\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: g\r\n",
        "Content-Length: x\r\nHost: a b\r\n",
        "X-API-Key-Name: x\r\n",
    ] {
        let seen = front.check(trailed(trailers), OK, Some(("/v/a", "hello")));
        let names: Vec<_> = seen.into_iter().flat_map(|request| request.trailers).map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| matches!(&**name, "a" | "c")), "{names:?}");
    }
    for trailer in [
        "A",
        "A : b",
        " A: b",
        ": b",
        "A b: c",
        "A\0: b",
        "A: \0",
        "A: b\r\n c",
        "A: b\rC: d",
        "A: b\nC: d",
        "A: \u{7f}",
        "GET /v/b HTTP/1.1",
    ] {
        front.check(trailed(&format!("{trailer}\r\n")), BAD, None);
    }
    // The head has passed by then: it is the body that is refused.
    front.check(trailed(&"A: b\r\n".repeat(101)), BAD, None);
    front.check(trailed(&format!("A: {}\r\n", "b".repeat(66_000))), BAD, None);
}
