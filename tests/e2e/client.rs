//! A client that sends exactly the bytes it is told to and reads exactly one answer: no retries, no repairs.

use std::{
    fmt,
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use crate::wire::{self, Fields, Wire};

/// Longer than anything a test waits for; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    host: Option<String>,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), host: None, fields: Vec::new(), body: Vec::new(), chunked: false }
    }
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }
    pub fn post(target: &str, body: impl AsRef<[u8]>) -> Self {
        Self::new("POST", target).body(body)
    }
    pub fn key(self, key: &str) -> Self {
        self.field("X-API-Key", key)
    }
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }
    /// Sends the body in chunks of up to 1,000 bytes instead of with its length.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The request as it goes over the wire.
    pub fn to_bytes(&self, address: SocketAddr) -> Vec<u8> {
        let host = self.host.clone().unwrap_or_else(|| address.to_string());
        let mut bytes = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.fields {
            bytes.extend(format!("{name}: {value}\r\n").as_bytes());
        }
        if self.chunked {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in self.body.chunks(1_000) {
                bytes.extend(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend(piece);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            return bytes;
        }
        if !self.body.is_empty() || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            bytes.extend(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(&self.body);
        bytes
    }

    /// Sends it on a connection of its own and reads the answer.
    pub fn send(&self, address: SocketAddr) -> Answer {
        self.try_send(address).unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.target))
    }

    /// Like [`Self::send`], for a furt or upstream that may be gone.
    pub fn try_send(&self, address: SocketAddr) -> io::Result<Answer> {
        let mut client = Client::connect(address)?;
        client.write(self.to_bytes(address))?;
        client.read(&self.method)
    }
}

/// One connection.
pub struct Client {
    wire: Wire,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { wire: Wire::new(stream) })
    }

    /// Connects to an address where something surely listens.
    pub fn new(address: SocketAddr) -> Self {
        Self::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// The socket, for another thread to write to.
    pub fn stream(&mut self) -> TcpStream {
        self.wire.stream().try_clone().expect("a descriptor")
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.stream().write_all(bytes.as_ref())
    }

    /// The next answer, to a request with `method`.
    pub fn read(&mut self, method: &str) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer");
            let head = self.wire.head()?.ok_or_else(ended)?;
            let status = head
                .line
                .strip_prefix("HTTP/1.1 ")
                .or(head.line.strip_prefix("HTTP/1.0 "))
                .and_then(|rest| rest.get(..3))
                .and_then(|digits| digits.parse().ok());
            let status: u16 = status.ok_or_else(|| io::Error::other(format!("an odd status line: {:?}", head.line)))?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            let (body, trailers) = self.answer_body(method, status, &head.fields)?;
            return Ok(Answer { status, fields: head.fields, body, trailers, interim });
        }
    }

    fn answer_body(&mut self, method: &str, status: u16, fields: &Fields) -> io::Result<(Vec<u8>, Fields)> {
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return Ok((Vec::new(), Vec::new()));
        }
        if wire::value(fields, "transfer-encoding").is_some() {
            return self.wire.chunked();
        }
        match wire::value(fields, "content-length").and_then(|length| length.parse().ok()) {
            Some(length) => Ok((self.wire.exactly(length)?, Vec::new())),
            None => Ok((self.wire.rest()?, Vec::new())),
        }
    }

    /// Sends a request and reads its answer on this connection.
    pub fn ask(&mut self, request: &Request) -> Answer {
        let address = self.wire.stream().peer_addr().expect("a connected socket");
        self.write(request.to_bytes(address)).expect("the request is sent");
        self.read(&request.method).expect("an answer")
    }

    /// Status line and fields of the next answer, whatever its status.
    pub fn head(&mut self) -> io::Result<wire::Head> {
        self.wire.head()?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"))
    }

    /// Exactly `count` further bytes.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        self.wire.exactly(count)
    }

    /// Everything until furt closes; an error of the connection ends it too.
    pub fn rest(&mut self) -> Vec<u8> {
        let _ = self.wire.rest();
        self.wire.seen.clone()
    }

    /// Waits until furt closes the connection, and says whether it did so in order.
    pub fn closes(&mut self) -> bool {
        self.wire.rest().is_ok()
    }
}

/// What came back.
pub struct Answer {
    pub status: u16,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// The statuses of the 1xx answers before it.
    pub interim: Vec<u16>,
}

impl Answer {
    /// The one value of a field; none when it is missing or repeated.
    pub fn field(&self, name: &str) -> Option<&str> {
        wire::value(&self.fields, name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }
    /// The `code` of furt's envelope; empty when the answer is no envelope.
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }
    /// `details` as `(field, code)`, in the order told.
    #[track_caller]
    pub fn details(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.json()["details"].as_array().into_iter().flatten().map(|detail| (text(&detail["field"]), text(&detail["code"]))).collect()
    }
    /// Asserts an error of furt's own: status, code and the whole envelope.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self:?}");
        let body = self.json();
        assert_eq!(body["success"], Value::Bool(false), "{self:?}");
        assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "{self:?}");
        assert!(body["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{self:?}");
        assert_eq!(self.field("content-type"), Some("application/json"), "{self:?}");
        self
    }
    /// Asserts the status.
    #[track_caller]
    pub fn status(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.fields {
            writeln!(f, "{name}: {value}")?;
        }
        let text = self.text();
        write!(f, "\n{}", text.get(..2_000).unwrap_or(&text))
    }
}
