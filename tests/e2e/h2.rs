//! HTTP/2 with prior knowledge, for what HTTP/1.1 cannot ask.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::world::block_on;

/// What came back over HTTP/2.
#[derive(Debug)]
pub struct Answer {
    pub head: Response<()>,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// The one value of a field; none when it is missing or repeated.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.headers().get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
    }
}

/// Sends one request with these pieces of body and these trailers, on a connection of its own.
pub fn send(address: SocketAddr, request: Request<()>, pieces: &[&str], trailers: Option<HeaderMap>) -> Result<Answer, hyper::Error> {
    let mut frames: Vec<_> = pieces.iter().map(|piece| Frame::data(Bytes::copy_from_slice(piece.as_bytes()))).collect();
    frames.extend(trailers.map(Frame::trailers));
    let body = Frames(frames.into_iter());
    block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("furt listens");
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driven = tokio::spawn(connection);
        let (head, ()) = request.into_parts();
        let (head, body) = sender.send_request(Request::from_parts(head, body)).await?.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        driven.abort();
        Ok(Answer { head: Response::from_parts(head, ()), body: collected.to_bytes(), trailers })
    })
}

/// A body of no told length whose frames are all there already.
struct Frames(std::vec::IntoIter<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
    fn is_end_stream(&self) -> bool {
        self.0.len() == 0
    }
}
