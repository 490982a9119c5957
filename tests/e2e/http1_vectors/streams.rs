//! More than one request on a connection: each is read for itself, and after one that is none there is nothing more.

use super::{Front, LAST, Outcome};
use crate::client::{Answer, Client};

const GOOD: &str = "GET /v/good HTTP/1.1\r\nHost: h\r\n\r\n";
/// Refused, whatever comes after them.
const REFUSED: &[(&str, u16)] = &[
    ("GET /v/x  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("GET /v/x HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400),
    ("GET /v/x HTTP/1.1\r\nX : y\r\nHost: h\r\n\r\n", 400),
    ("GET /v/x HTTP/1.1\r\n\r\n", 400),
    ("GET /v/x#y HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("\x16\x03\x01\x02\0\x01\0\x01\x03\x03", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", 400),
    ("POST /v/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX : y\r\n\r\n", 400),
];

#[track_caller]
fn is_one_good_and_one_refused(outcome: &Outcome, status: u16, shown: &str) {
    assert_eq!(outcome.statuses, [200, status], "{shown:?}: {outcome:?}");
    assert!(!outcome.goes_on, "{shown:?}");
    let targets: Vec<_> = outcome.got.iter().map(|request| &*request.target).collect();
    assert_eq!(targets, ["/v/good"], "{shown:?}");
}

#[test]
fn a_refused_request_ends_the_connection_and_takes_no_answer_with_it() {
    let front = Front::start();
    for (bad, status) in REFUSED {
        // In one segment; LAST comes after both, and is not looked at.
        is_one_good_and_one_refused(&front.send(format!("{GOOD}{bad}").as_bytes()), *status, bad);
        let after_a_body = format!("{}{bad}", GOOD.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"));
        is_one_good_and_one_refused(&front.send(after_a_body.as_bytes()), *status, bad);
        let after_chunks = format!("{}{bad}", GOOD.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
        is_one_good_and_one_refused(&front.send(after_chunks.as_bytes()), *status, bad);
    }
}

#[test]
fn where_the_bytes_are_cut_makes_no_difference() {
    let front = Front::start();
    for (bad, status) in REFUSED {
        for cut in 1..bad.len() {
            if !bad.is_char_boundary(cut) {
                continue;
            }
            let mut client = Client::new(front.furt.public);
            let (begin, rest) = bad.split_at(cut);
            client.write(format!("{GOOD}{begin}")).expect("furt listens");
            // Once this is answered, the first part has been read.
            let mut answers = vec![client.read("GET").expect("an answer")];
            // Furt may have refused already.
            let _ = client.write(format!("{rest}{LAST}"));
            answers.extend(std::iter::from_fn(|| client.read("POST").ok()));
            let shown = format!("{begin}|{rest}");
            is_one_good_and_one_refused(&front.outcome(answers), *status, &shown);
        }
    }
}

#[test]
fn whole_requests_come_through_whole_however_they_are_cut() {
    let front = Front::start();
    let stream = format!(
        "{GOOD}\r\nPOST /v/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\nPUT /v/c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nend"
    );
    for cut in 1..stream.len() {
        let mut client = Client::new(front.furt.public);
        let (begin, rest) = stream.split_at(cut);
        let begin = format!("{GOOD}{begin}");
        client.write(begin).expect("furt listens");
        let mut answers = vec![client.read("GET").expect("an answer")];
        client.write(format!("{rest}{LAST}")).expect("furt listens");
        answers.extend(std::iter::from_fn(|| client.read("POST").ok()));
        let bodies: Vec<_> = answers.iter().map(Answer::text).collect();
        assert_eq!(bodies, ["/v/good", "/v/good", "/v/b", "/v/c", "/v/last"], "cut at {cut}");
        let outcome = front.outcome(answers);
        let got: Vec<_> = outcome.got.iter().map(|request| (&*request.method, &*request.target, &*request.body)).collect();
        let good = ("GET", "/v/good", &b""[..]);
        assert_eq!(got, [good, good, ("POST", "/v/b", b"hello"), ("PUT", "/v/c", b"end")], "cut at {cut}");
    }
}
