//! The messages of a gRPC stream, each handed on when it is whole.
//!
//! tonic sets a message's room aside when its length is announced: five bytes on each of many streams would fill the
//! memory. So a message waits here, in room that grows with what has arrived and is bounded over all streams.
//!
//! Here: the body that does so. Not here: what the messages say.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use super::{MAX_BODY, PATIENCE, STEP, busy, too_large};
use crate::refusal::{Code, Refusal};

/// In front of each message: whether it is compressed, and its length in big-endian order (gRPC over HTTP/2).
const PREFIX: usize = 5;
/// What a stream may hold of a message without asking for room: most messages are no longer.
const FREE: usize = 1 << 10;

/// A body of gRPC messages. It ends with an error, a `tonic::Status`, when one is too large or too slow, and when there
/// is no room for it.
pub(super) struct Messages {
    body: Body,
    room: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
    /// The beginning of a message.
    begun: BytesMut,
    /// When it has to be whole.
    due: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Messages {
    pub(super) fn new(body: Body, room: Arc<Semaphore>) -> Self {
        Self { body, room, held: Vec::new(), begun: BytesMut::new(), due: None, ended: false }
    }

    /// The next message, once it is there. Errors: it is announced to be too large.
    fn whole(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some((&[_, a, b, c, d], _)) = self.begun.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_BODY {
            return Err(too_large());
        }
        if self.begun.len() < PREFIX + length {
            return Ok(None);
        }
        let message = self.begun.split_to(PREFIX + length).freeze();
        self.due = None;
        self.held.truncate(self.begun.len().div_ceil(STEP));
        Ok(Some(message))
    }

    fn take_in(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.begun.extend_from_slice(data);
        while self.begun.len() > FREE && self.held.len() * STEP < self.begun.len() {
            self.held.push(Arc::clone(&self.room).try_acquire_owned().map_err(|_| busy())?);
        }
        Ok(())
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Refusal>> {
        loop {
            if let Some(message) = self.whole()? {
                return Poll::Ready(Ok(Some(Frame::data(message))));
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take_in(&data)?,
                    Err(trailers) => return Poll::Ready(Ok(Some(trailers))),
                },
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(Refusal::one(Code::Malformed, format!("the stream broke off: {error}"))));
                }
                Poll::Ready(None) if self.begun.is_empty() => return Poll::Ready(Ok(None)),
                Poll::Ready(None) => return Poll::Ready(Err(Refusal::one(Code::Malformed, "the stream ended within a message"))),
                Poll::Pending if self.begun.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    ready!(self.due.get_or_insert_with(|| Box::pin(sleep(PATIENCE))).as_mut().poll(context));
                    let message = format!("a message was not whole after {} s", PATIENCE.as_secs());
                    return Poll::Ready(Err(Refusal::one(Code::RequestTimeout, message)));
                }
            }
        }
    }
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_message(context));
        self.ended = !matches!(next, Ok(Some(_)));
        Poll::Ready(next.map_err(|refusal| axum::Error::new(tonic::Status::from(refusal))).transpose())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    /// The messages, and the room that is left, of a stream that comes in these pieces and then ends, or does not.
    async fn read(pieces: Vec<Vec<u8>>, ends: bool, steps: usize) -> (Vec<usize>, Option<String>, usize) {
        let pieces = stream::iter(pieces);
        let pieces = if ends { pieces.boxed() } else { pieces.chain(stream::pending()).boxed() };
        let room = Arc::new(Semaphore::new(steps));
        let mut messages = Messages::new(Body::from_stream(pieces.map(Ok::<_, Infallible>)), Arc::clone(&room));
        let mut lengths = Vec::new();
        let error = loop {
            match messages.frame().await {
                Some(Ok(frame)) => lengths.push(frame.into_data().unwrap().len() - PREFIX),
                Some(Err(error)) => break Some(tonic::Status::from_error(error.into()).message().to_owned()),
                None => break None,
            }
        };
        drop(messages);
        (lengths, error, room.available_permits())
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_handed_on_whole_however_they_come() {
        let lengths = [0, 1, 100, 5_000, 0, 200_000, MAX_BODY, 3];
        let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
        for size in [1, 3, 7, 16_384, bytes.len()] {
            // A byte at a time is told apart on the first messages; the long ones would take their time.
            let (bytes, lengths) = if size < 100 { (&bytes[..5_121], &lengths[..4]) } else { (&bytes[..], &lengths[..]) };
            let pieces = bytes.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(read(pieces, true, 64).await, (lengths.to_vec(), None, 64), "in pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_takes_no_room_and_what_is_too_large_is_told_at_once() {
        let (lengths, error, left) = read(vec![message(9), message(MAX_BODY + 1)[..PREFIX].to_vec()], false, 1).await;
        assert_eq!((lengths, left), (vec![9], 1));
        assert_eq!(error.as_deref(), Some(too_large().message().as_str()));
        let (lengths, error, _) = read(vec![message(MAX_BODY)[..100_000].to_vec()], true, 1).await;
        assert_eq!((lengths, error.as_deref()), (vec![], Some(busy().message().as_str())));
        let (lengths, error, left) = read(vec![message(MAX_BODY)[..100_000].to_vec()], true, 2).await;
        assert_eq!((lengths, error.as_deref(), left), (vec![], Some("the stream ended within a message"), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_was_begun_has_to_come_and_silence_between_two_may_last() {
        let began = Instant::now();
        let (lengths, error, _) = read(vec![message(9), message(9)[..8].to_vec()], false, 1).await;
        assert_eq!((lengths, error.as_deref()), (vec![9], Some("a message was not whole after 10 s")));
        assert_eq!(began.elapsed(), PATIENCE);
        let quiet = tokio::time::timeout(PATIENCE * 10, read(vec![message(9)], false, 1)).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
}
