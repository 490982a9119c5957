//! Requests that want to be read in two ways: each service receives none, or exactly one well-formed request.
//!
//! What STACK calls open in a plain proxy is closed here, and shown on the bytes that services really received.

mod answers;
mod framing;
mod hosts;
mod http2;
mod paths;

use crate::{
    client::Client,
    upstream::{Seen, Upstream},
    world::{Conf, WEBSITE_KEY, World},
};

/// Three services side by side; the website's key opens only `comments`.
struct Arena {
    furt: World,
    comments: Upstream,
    wide: Upstream,
    admin: Upstream,
}

/// What may come of a request.
enum Expected<'a> {
    /// No service sees it, and the client is told so with one of these statuses.
    Refused(&'static [u16]),
    /// `comments` receives it once, with this body.
    Forwarded(&'a str),
    /// Either: both readings are honest.
    Either(&'static [u16], &'a str),
}
use Expected::{Either, Forwarded, Refused};

impl Arena {
    fn start() -> Self {
        let grants = "[service \"*\"]\npermissions = *\npaths = /, /*\n";
        let furt = Conf::new()
            .grants(grants)
            // What is left incomplete ends soon.
            .server("client_timeout = 500ms")
            .server("body_idle_timeout = 500ms")
            .start();
        let (comments, wide, admin) = (Upstream::start("comments"), Upstream::start("wide"), Upstream::start("admin"));
        furt.register("comments", &comments.url(), &["* /api/comments/* comments:read"]);
        furt.register("wide", &wide.url(), &["* /api/* books:read"]);
        furt.register("admin", &admin.url(), &["* /admin/* admin:all"]);
        Self { furt, comments, wide, admin }
    }

    /// Sends these bytes, then a request that marks the end; gives the statuses answered before that one's.
    fn send(&self, bytes: &[u8]) -> Vec<u16> {
        let mut client = Client::new(self.furt.public);
        let end = b"GET /the-end HTTP/1.1\r\nHost: h\r\nX-Request-ID: the-end\r\nConnection: close\r\n\r\n";
        // furt may have refused and closed before all is written.
        let _ = client.write([bytes, end].concat());
        let mut statuses = Vec::new();
        while let Ok(answer) = client.read("GET") {
            if answer.field("x-request-id") == Some("the-end") {
                break;
            }
            statuses.push(answer.status);
        }
        statuses
    }

    /// Sends these bytes and asserts what came of them.
    #[track_caller]
    fn check(&self, bytes: &[u8], expected: &Expected<'_>) -> Option<Seen> {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        let before = self.comments.requests().len();
        let statuses = self.send(bytes);
        let seen = self.comments.requests().split_off(before);
        assert_eq!(self.comments.faults(), [""; 0], "{shown:?}");
        for other in [&self.wide, &self.admin] {
            assert!(other.requests().is_empty() && other.raw_requests().is_empty(), "{shown:?} reached another service");
        }
        assert!(seen.len() <= 1, "one request became {}: {shown:?}", seen.len());
        let (refusals, body): (&[u16], _) = match expected {
            Refused(statuses) => (statuses, None),
            Forwarded(body) => (&[], Some(body)),
            Either(statuses, body) => (statuses, Some(body)),
        };
        match (seen.first(), body) {
            (Some(seen), Some(body)) => {
                assert_eq!(String::from_utf8_lossy(&seen.body), **body, "{shown:?}");
                assert!(seen.target.starts_with("/api/comments/"), "{shown:?}: {}", seen.target);
                assert_eq!(seen.values("x-api-key-name"), ["Website"], "{shown:?}");
                assert_eq!(seen.values("x-api-key"), [""; 0], "{shown:?}");
                assert_eq!(statuses.first(), Some(&200), "{shown:?}");
            }
            (Some(seen), None) => panic!("{shown:?} was forwarded: {seen:?}"),
            (None, _) => {
                assert!(!matches!(expected, Forwarded(_)), "{shown:?} was not forwarded but {statuses:?}");
                assert!(statuses.first().is_some_and(|status| refusals.contains(status)), "{shown:?}: {statuses:?}");
            }
        }
        seen.into_iter().next()
    }

    /// A request head for `comments` up to the fields that matter.
    fn post(rest: &str) -> Vec<u8> {
        format!("POST /api/comments/x HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n{rest}").into_bytes()
    }
}
