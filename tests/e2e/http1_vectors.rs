//! HTTP/1 byte by byte: what furt answers to streams that other parsers are known to read in two ways, and what a
//! service gets of them: nothing, or exactly one well-formed request.
//!
//! The cases are facts of RFC 9110 and 9112 (§11 above all), of what llhttp's and other parsers' tests ask, of h1spec,
//! and of the catalogue of request smuggling; each table is a property. Here: the lists' harness. What the service got
//! is read a second time by a reader that shares nothing with furt's.

mod chunks;
mod fields;
mod framing;
mod recorder;
#[path = "../../data-plane/src/strict/reference.rs"]
mod reference;
mod request_lines;
mod streams;

use recorder::Recorder;
use reference::Request;

use crate::{
    client::{Answer, Client},
    world::{Conf, World},
};

const OK: &[u16] = &[200];
const BAD: &[u16] = &[400];
/// The request that shows that a connection goes on. Furt's answer to it is not counted.
const LAST: &str = "GET /v/last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// A furt with one public route, and the service behind it.
struct Front {
    furt: World,
    service: Recorder,
}

/// What came of a stream.
#[derive(Debug)]
struct Outcome {
    /// Statuses in their order, without that of [`LAST`].
    statuses: Vec<u16>,
    /// Whether [`LAST`] was answered.
    goes_on: bool,
    /// What the service got, without it.
    got: Vec<Request>,
}

impl Front {
    fn start() -> Self {
        let service = Recorder::start();
        let route = format!("[route \"v\"]\npath = /v/*\nmethods = *\npublic = true\nurl = http://{}\n", service.address);
        // What is left incomplete ends soon.
        let furt = Conf::new().disabled().server("client_timeout = 500ms").server("body_idle_timeout = 500ms").more(&route).start();
        Self { furt, service }
    }

    /// Sends a stream and [`LAST`], and reads until furt closes.
    fn send(&self, bytes: &[u8]) -> Outcome {
        let mut client = Client::new(self.furt.public);
        // Furt may have refused and closed before all is written.
        let _ = client.write([bytes, LAST.as_bytes()].concat());
        let answers = std::iter::from_fn(|| client.read("GET").ok()).collect();
        self.outcome(answers)
    }

    fn outcome(&self, mut answers: Vec<Answer>) -> Outcome {
        let goes_on = answers.pop_if(|answer| answer.status == 200 && answer.text() == "/v/last").is_some();
        for answer in &answers {
            assert!(answer.status == 200 || !answer.code().is_empty(), "no envelope of furt's: {answer:?}");
            assert!(answer.field("x-gateway").is_some(), "{answer:?}");
        }
        let mut got = self.service.taken();
        got.retain(|request| request.target != "/v/last");
        Outcome { statuses: answers.iter().map(|answer| answer.status).collect(), goes_on, got }
    }

    /// Sends a stream of one request. Either it is answered like this and no service gets it, or (`got`) the service
    /// gets it with this target and this body.
    #[track_caller]
    fn check(&self, bytes: impl AsRef<[u8]>, statuses: &[u16], got: Option<(&str, &str)>) -> Option<Request> {
        let shown = String::from_utf8_lossy(bytes.as_ref()).into_owned();
        let Outcome { statuses: answered, goes_on, got: seen } = self.send(bytes.as_ref());
        assert_eq!(answered, statuses, "{shown:?}; the service got {seen:?}");
        let targets_and_bodies: Vec<_> = seen.iter().map(|request| (&*request.target, String::from_utf8_lossy(&request.body))).collect();
        let expected: Vec<_> = got.iter().map(|(target, body)| (*target, (*body).into())).collect();
        assert_eq!(targets_and_bodies, expected, "{shown:?}");
        // What does not parse ends a connection; what does keeps it, and what comes after it is read as what it is.
        assert!(
            goes_on || got.is_none() || statuses.len() > 1 || shown.contains("HTTP/1.0") || shown.to_lowercase().contains("close"),
            "{shown:?}"
        );
        seen.into_iter().next()
    }
}

/// A request that is sound but for these fields (each with its line's end), with a body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /v/a HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}")
}
