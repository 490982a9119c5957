//! Reading a request's body within bounds: of one body, of its time, of all bodies at once.
//!
//! Here: the reader and its three bounds; in `messages` the same for streams of messages. Not here: what the bytes mean.

mod messages;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header::EXPECT};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::refusal::{Code, Refusal};

/// Of one body (DESIGN §4, rule 6).
pub const MAX_BODY: usize = 1 << 20;
/// For a body to arrive whole.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of all bodies that are being read, in steps of [`STEP`]: 32 MiB, so that a flood of large ones cannot fill the memory.
const STEPS: usize = 512;
const STEP: usize = 64 << 10;
/// What is still taken and thrown away of a body that is refused: a client that is still writing when the connection
/// closes gets a reset, and never reads the refusal.
const DISCARD: usize = 8 << 20;
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);

/// Reads bodies; clones share the bound of all of them.
#[derive(Debug, Clone)]
pub struct Reader {
    room: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(STEPS)) }
    }
}

impl Reader {
    /// The whole body.
    ///
    /// Errors: PAYLOAD_TOO_LARGE above [`MAX_BODY`], with or without a Content-Length; REQUEST_TIMEOUT when it is not
    /// there after ten seconds; SERVICE_UNAVAILABLE while too many others are read; MALFORMED_REQUEST when it breaks off.
    pub async fn read(&self, headers: &HeaderMap, mut body: Body) -> Result<Bytes, Refusal> {
        if body.size_hint().lower() > MAX_BODY as u64 {
            discard(headers, body).await;
            return Err(too_large());
        }
        let read = timeout(PATIENCE, self.read_on(&mut body)).await;
        let refusal = match read {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(refusal)) => refusal,
            Err(_) => return Err(Refusal::one(Code::RequestTimeout, format!("the body was not whole after {} s", PATIENCE.as_secs()))),
        };
        discard(headers, body).await;
        Err(refusal)
    }

    /// A stream of gRPC messages, each of which is handed on when it is whole, within the same bounds. It ends with a
    /// `tonic::Status` when one is not.
    pub fn messages(&self, body: Body) -> Body {
        Body::new(messages::Messages::new(body, Arc::clone(&self.room)))
    }

    async fn read_on(&self, body: &mut Body) -> Result<Bytes, Refusal> {
        let mut bytes = BytesMut::new();
        let mut held: Vec<OwnedSemaphorePermit> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::one(Code::Malformed, format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_BODY {
                return Err(too_large());
            }
            while held.len() * STEP < bytes.len() + data.len() {
                held.push(Arc::clone(&self.room).try_acquire_owned().map_err(|_| busy())?);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }
}

/// Takes what is still coming of a body, up to a bound in bytes and time, and forgets it.
///
/// A client that waits for `100 Continue` has sent nothing yet; asking it to go on would be a waste.
pub async fn discard(headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(EXPECT) || body.is_end_stream() {
        return;
    }
    let drain = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > DISCARD {
                break;
            }
        }
    };
    let _ = timeout(DISCARD_PATIENCE, drain).await;
}

fn too_large() -> Refusal {
    Refusal::one(Code::PayloadTooLarge, format!("the body is larger than {MAX_BODY} bytes"))
}

fn busy() -> Refusal {
    let retry_after = Some(Duration::from_secs(1));
    Refusal { retry_after, ..Refusal::one(Code::Unavailable, "too many bodies are being read at once") }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunks(count: usize, size: usize) -> Body {
        Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(vec![b'x'; size]))))
    }

    async fn outcome(reader: &Reader, body: Body) -> Result<usize, Code> {
        reader.read(&HeaderMap::new(), body).await.map(|bytes| bytes.len()).map_err(|refusal| refusal.code())
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_bytes_and_in_time() {
        let reader = Reader::default();
        assert_eq!(outcome(&reader, Body::empty()).await, Ok(0));
        assert_eq!(outcome(&reader, chunks(16, STEP)).await, Ok(MAX_BODY));
        assert_eq!(outcome(&reader, chunks(17, STEP)).await, Err(Code::PayloadTooLarge));
        assert_eq!(outcome(&reader, Body::from(vec![0; MAX_BODY + 1])).await, Err(Code::PayloadTooLarge));
        let never = Body::from_stream(stream::pending::<std::io::Result<Bytes>>());
        assert_eq!(outcome(&reader, never).await, Err(Code::RequestTimeout));
        let broken = Body::from_stream(stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("reset"))]));
        assert_eq!(outcome(&reader, broken).await, Err(Code::Malformed));
        assert_eq!(reader.room.available_permits(), STEPS);
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded_too() {
        let reader = Reader::default();
        let others = Arc::clone(&reader.room).acquire_many_owned(STEPS as u32 - 1).await.unwrap();
        assert_eq!(outcome(&reader, chunks(1, STEP)).await, Ok(STEP));
        assert_eq!(outcome(&reader, chunks(2, STEP)).await, Err(Code::Unavailable));
        drop(others);
        assert_eq!(outcome(&reader, chunks(2, STEP)).await, Ok(2 * STEP));
    }
}
