//! Events as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! Here: how one event looks, and the comment that is sent when nothing happens. Not here: which events (`events`), who
//! may watch them.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use furt_proto::v1;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::timeout;

use crate::answers;
use crate::refusal::Refusal;

/// A stream on which nothing happens says so this often, so that neither side takes the connection for dead.
pub const QUIET: Duration = Duration::from_secs(15);

type Told = Pin<Box<dyn Stream<Item = Result<v1::Event, Refusal>> + Send>>;

/// The body: an event each as it comes; it ends with them, and with a comment that says why. `from` is the cursor it
/// begins after, for one who has none yet. The first comment comes as soon as all that is kept has been told.
pub fn body(events: Told, from: Option<&str>) -> Body {
    let begin = from.map(|cursor| Bytes::from(format!("id: {}\n\n", line(cursor))));
    let pieces = stream::unfold(Some((events, Duration::ZERO)), |state| async move {
        let (mut events, quiet) = state?;
        Some(match timeout(quiet, events.next()).await {
            Err(_) => (Bytes::from_static(b": nothing new\n\n"), Some((events, QUIET))),
            Ok(Some(Ok(event))) => (message(&event).into(), Some((events, quiet))),
            Ok(Some(Err(refusal))) => (comment(&refusal.message()).into(), None),
            Ok(None) => return None,
        })
    });
    Body::from_stream(stream::iter(begin).chain(pieces).map(Ok::<_, Infallible>))
}

/// One event. The JSON of it is one line, as `data` has to be.
fn message(event: &v1::Event) -> String {
    format!("id: {}\nevent: {}\ndata: {}\n\n", line(&event.cursor), line(&event.kind), answers::event(event))
}

fn comment(text: &str) -> String {
    format!(": {}\n\n", line(text))
}

/// Whatever it holds, it cannot begin a line of its own.
fn line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;
    use crate::refusal::Code;

    fn event(cursor: &str, message: &str) -> v1::Event {
        v1::Event { cursor: cursor.into(), kind: "REGISTERED".into(), message: message.into(), ..v1::Event::default() }
    }

    #[tokio::test]
    async fn an_event_is_three_lines_whatever_it_says() {
        let odd = event("e.1", "two\nlines\r\n\r\ndata: {}");
        let refusal = Refusal::one(Code::Unavailable, "over\nand out");
        let told = stream::iter([Ok(odd), Ok(event("e.2\nevent: FORGED", "")), Err(refusal), Ok(event("e.3", "never told"))]);
        let text = body(told.boxed(), None).collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&text).unwrap();
        let blocks: Vec<Vec<&str>> = text.split_terminator("\n\n").map(|block| block.lines().collect()).collect();
        assert_eq!(blocks.len(), 3, "{text}");
        assert_eq!(blocks[0][..2], ["id: e.1", "event: REGISTERED"]);
        let data: serde_json::Value = serde_json::from_str(blocks[0][2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((&data["message"], &data["cursor"]), (&"two\nlines\r\n\r\ndata: {}".into(), &"e.1".into()));
        assert_eq!(blocks[1][0], "id: e.2 event: FORGED");
        assert_eq!(blocks[2], [": over and out"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_what_is_kept_is_told_and_silence_is_broken_every_fifteen_seconds() {
        let kept = stream::iter([Ok(event("e.8", ""))]).chain(stream::pending());
        let mut body = body(kept.boxed(), Some("e.7"));
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&piece[..], b"id: e.7\n\n");
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(piece.starts_with(b"id: e.8\nevent: "));
        let began = Instant::now();
        for count in 0..3 {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!((&piece[..], began.elapsed().as_secs()), (&b": nothing new\n\n"[..], 15 * count));
        }
    }
}
