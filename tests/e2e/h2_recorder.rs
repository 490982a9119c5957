//! A service that keeps what it was sent, byte for byte, and reads it without any mercy.
//!
//! Here: the one way in which HTTP/1.1 may be written to a service, and a listener. Not here: how it came about. Nothing
//! of the test harness is used: the fuzz target `h2_front` has it too.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Names and values in the order and spelling they came in.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// One request as it was written.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
}

impl Request {
    /// The values of every field of a name.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect()
    }
}

/// What is wrong with bytes that are no request.
pub type Fault = String;

/// Cuts a piece off that ends in CRLF; none if it has not come yet.
fn line<'b>(bytes: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Fault> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let (line, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    let line = line.strip_suffix(b"\r\n").ok_or("a bare LF")?;
    if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
        return Err("a bare CR or a NUL".into());
    }
    Ok(Some(line))
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn fields(bytes: &mut &[u8]) -> Result<Option<Fields>, Fault> {
    let mut fields = Vec::new();
    while let Some(line) = line(bytes)? {
        if line.is_empty() {
            return Ok(Some(fields));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| format!("no field: {:?}", line.escape_ascii().to_string()))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if !is_token(name) {
            return Err(format!("a name that is no token: {:?}", name.escape_ascii().to_string()));
        }
        if white(value.first()) || white(value.last()) || value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7F) {
            return Err(format!("a value that is none: {:?}", value.escape_ascii().to_string()));
        }
        fields.push((name.to_vec(), value.to_vec()));
    }
    Ok(None)
}

fn chunks(bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    let mut body = Vec::new();
    while let Some(size) = line(bytes)? {
        if !matches!(size.len(), 1..=8) || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err(format!("a chunk's size that is none: {:?}", size.escape_ascii().to_string()));
        }
        let size = size.iter().fold(0, |sum, digit| sum << 4 | usize::from(hex(*digit)));
        if size == 0 {
            return Ok(Some(body));
        }
        let Some((chunk, rest)) = bytes.split_at_checked(size + 2) else { return Ok(None) };
        body.extend(chunk.strip_suffix(b"\r\n").ok_or("a chunk that is longer than its size")?);
        *bytes = rest;
    }
    Ok(None)
}

fn hex(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { (digit | 0x20) - b'a' + 10 }
}

/// Reads one request; none if it has not come whole.
pub fn request(bytes: &mut &[u8]) -> Result<Option<Request>, Fault> {
    let mut rest = *bytes;
    let Some(first) = line(&mut rest)? else { return Ok(None) };
    let odd = || format!("an odd request line: {:?}", first.escape_ascii().to_string());
    let mut parts = first.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(b"HTTP/1.1"), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(odd());
    };
    let visible = target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    if !is_token(method) || !visible || !(target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS")) {
        return Err(odd());
    }
    let Some(fields) = fields(&mut rest)? else { return Ok(None) };
    let mut request = Request { method: method.to_vec(), target: target.to_vec(), fields, ..Request::default() };
    if request.values("host").len() != 1 {
        return Err(format!("{} Host fields", request.values("host").len()));
    }
    let (codings, lengths) = (request.values("transfer-encoding"), request.values("content-length"));
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => {}
        ([b"chunked"], []) => {
            let Some(body) = chunks(&mut rest)? else { return Ok(None) };
            let Some(trailers) = self::fields(&mut rest)? else { return Ok(None) };
            (request.body, request.trailers) = (body, trailers);
        }
        ([], [length]) if matches!(length.len(), 1..=9) && length.iter().all(u8::is_ascii_digit) => {
            let length = length.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
            let Some((body, later)) = rest.split_at_checked(length) else { return Ok(None) };
            (request.body, rest) = (body.to_vec(), later);
        }
        _ => return Err(format!("a doubtful framing: {codings:?} {lengths:?}")),
    }
    *bytes = rest;
    Ok(Some(request))
}

#[derive(Default)]
struct Kept {
    requests: Vec<Request>,
    faults: Vec<Fault>,
}

/// The listener.
pub struct Recorder {
    pub address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Recorder {
    /// Listens, and answers each whole request with 200.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, kept) = (listener.local_addr().expect("bound"), Arc::<Mutex<Kept>>::default());
        let shared = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = shared.clone();
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { address, kept }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests that came since it was last asked.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.kept().requests)
    }

    /// What came and was none.
    pub fn faults(&self) -> Vec<Fault> {
        self.kept().faults.clone()
    }
}

fn serve(mut stream: TcpStream, kept: &Mutex<Kept>) {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let keep = || kept.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..length]);
        let mut rest = bytes.as_slice();
        loop {
            match request(&mut rest) {
                Ok(Some(request)) => {
                    keep().requests.push(request);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                // An unfinished request is none; but what it has so far must be right, which `request` says already.
                Err(fault) => return keep().faults.push(fault),
            }
        }
        bytes = rest.to_vec();
    }
}

#[test]
fn it_reads_one_way_of_writing_only() {
    let whole = |text: &str| request(&mut text.as_bytes());
    let good = "POST /x?y HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
    let read = whole(good).expect("good").expect("whole");
    assert_eq!((read.body.as_slice(), read.trailers.len()), (&b"ab0123456789"[..], 1));
    assert!(whole(&good[..good.len() - 1]).is_ok_and(|read| read.is_none()));
    for bad in [
        "GET /x HTTP/1.0\r\nHost: h\r\n\r\n",
        "GET x HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /x#y HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /x  HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /x HTTP/1.1\nHost: h\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\n x: y\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nx : y\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nx: y\rz\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost:  h\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\nx",
        "GET /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ] {
        assert!(whole(bad).is_err(), "{bad:?}");
    }
}
