//! Asks a listener over plain HTTP/1.1: one connection, one question, one answer.
//!
//! Here: what can go wrong on the way. Not here: what is asked, whom, and what to do when nobody answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

/// For the connection to stand.
const CONNECT: Duration = Duration::from_secs(5);
/// For the whole answer; furt answers a registration within a second or so.
const ANSWER: Duration = Duration::from_secs(60);
/// The most that is read of an answer: a hundred thousand routes fit.
const MOST: usize = 256 << 20;

/// What is asked.
#[derive(Clone)]
pub struct Question {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// For the answer.
    pub patience: Duration,
}

impl Question {
    /// A question without headers of its own and without a body.
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: HeaderMap::new(), body: Bytes::new(), patience: ANSWER }
    }

    /// With a body.
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// For one that furt may wait over for `seconds` before it answers.
    pub fn patient(self, seconds: u32) -> Self {
        Self { patience: ANSWER + Duration::from_secs(seconds.into()), ..self }
    }
}

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
    #[error("cannot reach furt at {0}: {1}")]
    Unreachable(String, std::io::Error),
    /// The connection ended or the answer is not HTTP.
    #[error("{0} did not answer in HTTP: {1}")]
    Broken(String, String),
    /// It took too long.
    #[error("{0} did not answer in time; try again, or see its log")]
    Slow(String),
    /// What was to be sent is no request.
    #[error("this cannot be sent as a request: {0}")]
    Unsendable(#[from] http::Error),
}

/// Asks `address` (HOST:PORT) and reads the whole answer.
pub async fn send(address: &str, question: Question) -> Result<Answer, AskError> {
    let patience = question.patience;
    let broken = |error: String| AskError::Broken(address.to_owned(), error);
    let (head, body) = open(address, question).await?.into_parts();
    let body = timeout(patience, Limited::new(body, MOST).collect()).await.map_err(|_| AskError::Slow(address.to_owned()))?;
    let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// Asks `address` and gives the answer as soon as its head is there; the body is still to be read.
pub async fn open(address: &str, question: Question) -> Result<Response<Incoming>, AskError> {
    let slow = || AskError::Slow(address.to_owned());
    let broken = |error: hyper::Error| AskError::Broken(address.to_owned(), error.to_string());
    let mut request = Request::builder().method(question.method).uri(question.target).body(Full::new(question.body))?;
    *request.headers_mut() = question.headers;
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(address).map_err(http::Error::from)?);

    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| slow())?;
    let stream = stream.map_err(|error| AskError::Unreachable(address.to_owned(), error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the answer; what is wrong with it is seen there.
    tokio::spawn(async move { drop(connection.await) });
    timeout(question.patience, sender.send_request(request)).await.map_err(|_| slow())?.map_err(broken)
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
    async fn nobody_there_is_another_trouble_than_somebody_else() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = send(&free.to_string(), Question::new(Method::GET, "/")).await.err().unwrap();
        assert!(matches!(error, AskError::Unreachable(..)), "{error}");
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = other.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"SSH-2.0-something\r\n").unwrap();
        });
        let error = send(&address.to_string(), Question::new(Method::GET, "/")).await.err().unwrap();
        assert!(matches!(error, AskError::Broken(..)), "{error}");
    }
}
