//! RFC 9112 §6, §11.2: where a request ends.

use super::{BAD, Front, OK, post};

const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";

#[test]
fn a_length_is_one_number() {
    let front = Front::start();
    for fields in ["Content-Length: 5\r\n", "content-length:5\r\n", "CONTENT-LENGTH: \t5\t \r\n", "Content-Length: 05\r\n"] {
        front.check(post(fields, "hello"), OK, Some(("/v/a", "hello")));
    }
    for fields in ["", "Content-Length: 0\r\n"] {
        front.check(post(fields, ""), OK, Some(("/v/a", "")));
    }
    for value in [
        "",
        "+5",
        "-5",
        "-0",
        "5.0",
        "5e0",
        "0x5",
        "0b101",
        "5;",
        "5,",
        ",5",
        "5,5",
        "5, 5",
        "5 5",
        "5\t5",
        "\"5\"",
        "five",
        "5a",
        "\u{b}5",
        "5\0",
        "5_0",
        "\u{665}",
        "5\r",
        "5\r\n 5",
        "\r\n 5",
        "99999999999999999999",
        "18446744073709551616",
        "18446744073709551621",
        "100000000000000000000000000000005",
    ] {
        front.check(post(&format!("Content-Length: {value}\r\n"), "hello"), BAD, None);
    }
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\ncontent-length: 5\r\n",
        "Content-Length: 5\r\nX: y\r\nContent-Length:\r\n",
        "Content-Length : 5\r\n",
        "Content-Length\t: 5\r\n",
        " Content-Length: 5\r\n",
        "Content-Length\0: 5\r\n",
        "\u{b}Content-Length: 5\r\n",
        "Content Length: 5\r\n",
    ] {
        front.check(post(fields, "hello"), BAD, None);
    }
}

#[test]
fn a_coding_is_chunked_and_comes_once() {
    let front = Front::start();
    for fields in ["Transfer-Encoding: chunked\r\n", "transfer-encoding:chunked\r\n", "TRANSFER-ENCODING: \t CHUNKED \r\n"] {
        front.check(post(fields, CHUNKED), OK, Some(("/v/a", "hello")));
    }
    for value in [
        "",
        "identity",
        "gzip",
        "deflate",
        "cow",
        "chunked, chunked",
        "chunked,chunked",
        "gzip, chunked",
        "chunked, gzip",
        "identity, chunked",
        "chunked, identity",
        "chunked,",
        ",chunked",
        ", chunked",
        "chunked;",
        "chunked;q=1",
        "chunked x",
        "xchunked",
        "chunkedx",
        "x chunked",
        "\"chunked\"",
        "'chunked'",
        "chunked\0",
        "\0chunked",
        "\u{b}chunked",
        "\u{c}chunked",
        "chunked\u{b}",
        "\u{7f}chunked",
        "\u{a0}chunked",
        "chunk\u{212a}ed",
        "chun\u{212a}ed",
        "\r\n chunked",
        "\r\n\tchunked",
        "x\r\n chunked",
        "chunked\r",
        "\rchunked",
        "\nchunked",
        "chunked\r\n x",
        "chu\rnked",
        "[chunked]",
        "chunked:",
    ] {
        front.check(post(&format!("Transfer-Encoding: {value}\r\n"), CHUNKED), BAD, None);
    }
    for fields in [
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\r\n\rTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        "Transfer\0Encoding: chunked\r\n",
        "Transfer Encoding: chunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        "\"Transfer-Encoding\": chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: x\r\nContent-Length: 5\r\n",
    ] {
        front.check(post(fields, CHUNKED), BAD, None);
    }
    front.check(format!("POST /v/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}"), BAD, None);
}

#[test]
fn what_only_looks_like_framing_frames_nothing_and_is_not_passed_on() {
    let front = Front::start();
    for disguise in [
        "Content_Length: 7",
        "Content.Length: 7",
        "Transfer_Encoding: chunked",
        "Transfer.Encoding: chunked",
        "Transfer-Encoding_: chunked",
        "X-Transfer-Encoding: chunked",
        "Content-Encoding: chunked",
        "Content-Lengt: 7",
        "TE: chunked",
        "Proxy-Connection: close",
        "Keep-Alive: x",
    ] {
        let seen = front.check(post(&format!("{disguise}\r\nContent-Length: 5\r\n"), "hello"), OK, Some(("/v/a", "hello")));
        let fields = seen.map(|request| request.fields).unwrap_or_default();
        let framing = |name: &str| matches!(&*name.replace(['_', '.'], "-"), "content-length" | "transfer-encoding");
        assert_eq!(fields.iter().filter(|(name, _)| framing(name)).count(), 1, "{disguise}: {fields:?}");
    }
    // Nor does naming a field as one of this hop take it away (RFC 9110 §7.6.1).
    for named in ["content-length", "host", "content-length, close", "transfer-encoding", "Content-Length,Host,,X"] {
        front.check(post(&format!("Connection: {named}\r\nContent-Length: 5\r\n"), "hello"), OK, Some(("/v/a", "hello")));
        let chunked = post(&format!("Connection: {named}\r\nTransfer-Encoding: chunked\r\n"), CHUNKED);
        front.check(chunked, OK, Some(("/v/a", "hello")));
    }
    // A body belongs to whatever method says that it has one.
    for method in ["GET", "DELETE", "OPTIONS", "TRACE", "FOO"] {
        front.check(format!("{method} /v/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"), OK, Some(("/v/a", "hello")));
        front.check(
            format!("{method} /v/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}"),
            OK,
            Some(("/v/a", "hello")),
        );
    }
}

#[test]
fn a_body_is_no_request_and_a_request_is_no_body() {
    let front = Front::start();
    let inner = "GET /v/inner HTTP/1.1\r\nHost: h\r\n\r\n";
    let length = inner.len();
    front.check(post(&format!("Content-Length: {length}\r\n"), inner), OK, Some(("/v/a", inner)));
    front.check(post("Transfer-Encoding: chunked\r\n", &format!("{length:x}\r\n{inner}\r\n0\r\n\r\n")), OK, Some(("/v/a", inner)));
    // CL.TE, TE.CL, CL.0 and their kin.
    front.check(
        post(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", length + 5), &format!("0\r\n\r\n{inner}")),
        BAD,
        None,
    );
    front.check(post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("{length:x}\r\n{inner}\r\n0\r\n\r\n")), BAD, None);
    front.check(post(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), inner), BAD, None);
    // One that ends early is followed by what is no request; one that ends late never ends.
    front.check(post("Content-Length: 5\r\n", "hello world\r\n"), &[200, 400], Some(("/v/a", "hello")));
    front.check(post("Content-Length: 5000\r\n", "hello"), &[408], None);
}
