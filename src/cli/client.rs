//! Asks a listener over plain HTTP/1.1: one connection, one request, one answer.
//!
//! Here: what can go wrong on the way and what to do then. Not here: what is asked.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

/// For the connection to stand.
const CONNECT: Duration = Duration::from_secs(5);
/// For the whole answer; furt answers a registration within a second or so.
const ANSWER: Duration = Duration::from_secs(60);
/// The most that is read of an answer: a hundred thousand routes fit.
const MOST: usize = 256 << 20;

/// What was answered.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Why there is no answer, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or the name is not known.
    #[error("cannot reach furt at {0}: {1}. Is `furt run` running there? --gateway names another address")]
    Unreachable(String, std::io::Error),
    /// The connection ended or the answer is not HTTP.
    #[error("{0} did not answer in HTTP: {1}. Is it the internal listener of furt? --gateway names another address")]
    Broken(String, String),
    /// It took too long.
    #[error("{0} did not answer in time; try again, or see its log")]
    Slow(String),
    /// What was to be sent is no request.
    #[error("this cannot be sent as a request: {0}")]
    Unsendable(#[from] http::Error),
}

/// Sends one request to `address` (HOST:PORT).
pub async fn send(address: &str, method: Method, target: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, AskError> {
    let mut request = Request::builder().method(method).uri(target).body(Full::new(body))?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(address).map_err(http::Error::from)?);
    let slow = || AskError::Slow(address.to_owned());
    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| slow())?;
    let stream = stream.map_err(|error| AskError::Unreachable(address.to_owned(), error))?;
    timeout(ANSWER, exchange(stream, request)).await.map_err(|_| slow())?.map_err(|error| AskError::Broken(address.to_owned(), error))
}

async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MOST).collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    tokio::pin!(answer, connection);
    // The connection is driven beside the answer; when it ends first, the answer is what it left.
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

/// A piece of a target: everything but unreserved characters percent-encoded (RFC 3986 §2.3).
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_target_are_encoded() {
        assert_eq!(encoded("/a b?c=ä&d"), "%2Fa%20b%3Fc%3D%C3%A4%26d");
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_next_step() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = send(&free.to_string(), Method::GET, "/", HeaderMap::new(), Bytes::new()).await.err().unwrap();
        assert!(error.to_string().contains("--gateway"), "{error}");
    }
}
