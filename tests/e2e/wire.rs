//! HTTP/1.1 on a blocking socket, read strictly and kept byte for byte.
//!
//! Here: reading one message, and what is wrong with it. Not here: what the tests make of it.

use std::{
    io::{self, Read},
    net::TcpStream,
};

/// Names and values in the order and spelling they came in.
pub type Fields = Vec<(String, String)>;

/// The values of every field called `name`, without regard to case.
pub fn values<'a>(fields: &'a Fields, name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
}

/// The one value of the field called `name`; none when it is missing or repeated.
pub fn value<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    match values(fields, name).as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

type OnRead = Box<dyn FnMut(&[u8]) + Send>;

/// A socket with what was read from it and not used yet.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Everything ever read.
    pub seen: Vec<u8>,
    on_read: OnRead,
}

/// Start line and fields.
pub struct Head {
    pub line: String,
    pub fields: Fields,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), seen: Vec::new(), on_read: Box::new(|_| ()) }
    }

    /// Calls `on_read` with every piece as soon as it arrives.
    pub fn watched(stream: TcpStream, on_read: impl FnMut(&[u8]) + Send + 'static) -> Self {
        Self { on_read: Box::new(on_read), ..Self::new(stream) }
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads once; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut piece) {
                // A read with a time limit is not taken up again by the kernel when a signal comes, not even when nobody
                // wants the signal: that of a child of another thread that just starts one more.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        (self.on_read)(&piece[..count]);
        self.seen.extend_from_slice(&piece[..count]);
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    /// Exactly `count` bytes.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if self.fill()? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a body"));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// All there is until the connection ends.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? != 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// One line without its CRLF; none when the connection ended before its first byte.
    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                if line.pop() != Some(b'\r') {
                    return Err(invalid("a line ends in a bare LF"));
                }
                if line.contains(&b'\r') || line.contains(&0) {
                    return Err(invalid("a line has a bare CR or a NUL"));
                }
                return String::from_utf8(line).map(Some).map_err(|_| invalid("a line is not UTF-8"));
            }
            if self.fill()? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a line"));
            }
        }
    }

    fn fields(&mut self) -> io::Result<Fields> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a head"))?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("a field without a colon: {line:?}")))?;
            if name.is_empty() || !name.bytes().all(token) {
                return Err(invalid(format!("a field with an invalid name: {line:?}")));
            }
            if value.bytes().any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7F) {
                return Err(invalid(format!("a field with control characters: {line:?}")));
            }
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// Start line and fields; none when the connection ended before them.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        let Some(line) = self.line()? else { return Ok(None) };
        Ok(Some(Head { line, fields: self.fields()? }))
    }

    /// A chunked body and its trailers.
    pub fn chunked(&mut self) -> io::Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a body"))?;
            if line.is_empty() || line.len() > 16 || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid(format!("a chunk with an odd size: {line:?}")));
            }
            let size = usize::from_str_radix(&line, 16).map_err(|_| invalid(format!("a chunk with an odd size: {line:?}")))?;
            if size == 0 {
                return Ok((body, self.fields()?));
            }
            body.extend(self.exactly(size)?);
            if self.exactly(2)? != b"\r\n" {
                return Err(invalid("a chunk that is longer than its size"));
            }
        }
    }

    /// The body of a request, whose framing must leave no doubt.
    pub fn request_body(&mut self, fields: &Fields) -> io::Result<(Vec<u8>, Fields)> {
        match (values(fields, "transfer-encoding").as_slice(), values(fields, "content-length").as_slice()) {
            ([], []) => Ok((Vec::new(), Vec::new())),
            (["chunked"], []) => self.chunked(),
            ([], [length]) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| invalid("a content-length beyond all bounds"))?;
                Ok((self.exactly(length)?, Vec::new()))
            }
            (encodings, lengths) => Err(invalid(format!("a doubtful framing: {encodings:?} {lengths:?}"))),
        }
    }
}

/// What is wrong with the head of a request that furt forwarded, if anything is.
pub fn request_fault(head: &Head) -> Option<String> {
    let parts: Vec<_> = head.line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts.as_slice() else { return Some(format!("an odd request line: {:?}", head.line)) };
    if method.is_empty() || !method.bytes().all(token) {
        return Some(format!("an odd method: {method:?}"));
    }
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Some(format!("an odd target: {target:?}"));
    }
    match values(&head.fields, "host").len() {
        1 => None,
        count => Some(format!("{count} Host fields")),
    }
}

#[test]
fn children_of_other_threads_that_end_interrupt_no_read() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let pairs = [(); 4].map(|()| {
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("somebody listens");
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a time limit");
        (Wire::new(client), listener.accept().expect("a connection").0)
    });
    let (mut clients, servers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    std::thread::scope(|scope| {
        let reading: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.exactly(1))).collect();
        let start_and_end = || (0..200).for_each(|_| drop(std::process::Command::new("/no/such/program").spawn().expect_err("not there")));
        let starting = [(); 2].map(|()| scope.spawn(start_and_end));
        starting.into_iter().for_each(|thread| thread.join().expect("it only starts what is not there"));
        for mut server in &servers {
            io::Write::write_all(&mut server, b"x").expect("sent");
        }
        for read in reading {
            assert_eq!(read.join().expect("it only reads").expect("not interrupted"), b"x");
        }
    });
}
