//! HTTP/2 by hand, frame by frame: what no client library would send, and what really came back.
//!
//! Here: frames, header blocks of literal fields, one connection. Not here: what is right (`h2_conformance`). The client
//! forbids furt a dynamic table, so all that its answers need decoding for is their status.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITY_FLAG: u8 = 0x20;
/// A whole request without a body.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

pub const NO_ERROR: u32 = 0x0;
pub const PROTOCOL_ERROR: u32 = 0x1;
pub const FLOW_CONTROL_ERROR: u32 = 0x3;
pub const STREAM_CLOSED: u32 = 0x5;
pub const FRAME_SIZE_ERROR: u32 = 0x6;
pub const REFUSED_STREAM: u32 = 0x7;
pub const CANCEL: u32 = 0x8;
pub const COMPRESSION_ERROR: u32 = 0x9;
pub const ENHANCE_YOUR_CALM: u32 = 0xB;

/// SETTINGS_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE and
/// _MAX_HEADER_LIST_SIZE.
pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Longer than anything a test waits for; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// One frame of any kind.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length of 24 bits").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A SETTINGS frame with these.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A HEADERS frame with these fields, its block whole.
pub fn headers(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

/// Literal fields without indexing and without Huffman coding (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect()
}

/// One such field, of any bytes.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &integer(0, 7, name.len()), name, &integer(0, 7, value.len()), value].concat()
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1).
pub fn integer(first: u8, bits: u32, value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    let byte = |value: usize| u8::try_from(value).expect("a few bits");
    if value < most {
        return vec![first | byte(value)];
    }
    let mut out = vec![first | byte(most)];
    let mut rest = value - most;
    while rest >= 128 {
        out.push(byte(rest % 128) | 128);
        rest /= 128;
    }
    out.push(byte(rest));
    out
}

/// A frame as it came.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        self.number(if self.kind == GOAWAY { 4 } else { 0 })
    }

    /// Four bytes of the payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// The values of a SETTINGS frame.
    pub fn settings(&self) -> Vec<(u16, u32)> {
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        self.payload.chunks(6).map(|setting| (u16::from_be_bytes([setting[0], setting[1]]), number(&setting[2..]))).collect()
    }

    /// The status of the answer whose head this frame begins.
    pub fn status(&self) -> u16 {
        let padded = usize::from(self.has(PADDED));
        let skip = padded + if self.has(PRIORITY_FLAG) { 5 } else { 0 };
        status(&self.payload[skip..]).unwrap_or_else(|| panic!("no status in {self:?}"))
    }
}

/// The status at the beginning of a header block. It comes first, as a pseudo-field, after changes of the table's size;
/// furt's encoder knows its name from the static table.
fn status(mut block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    while block.first()? & 0xE0 == 0x20 {
        let long = if block[0] == 0x3F { block[1..].iter().position(|byte| byte & 0x80 == 0)? + 1 } else { 0 };
        block = &block[1 + long..];
    }
    let first = block[0];
    if first & 0x80 != 0 {
        return INDEXED.get(usize::from(first & 0x7F).checked_sub(8)?).copied();
    }
    // A literal with the name of index 8, with or without indexing: the value's length, then three digits.
    let name = if first & 0x40 != 0 { first & 0x3F } else { first & 0x0F };
    let length = *block.get(1)?;
    let value = block.get(2..2 + usize::from(length & 0x7F))?;
    let digits = if length & 0x80 == 0 { value.iter().map(|digit| u16::from(digit - b'0')).collect() } else { huffman_digits(value) };
    ((8..=14).contains(&name) && digits.len() == 3).then(|| digits.iter().fold(0, |sum, digit| sum * 10 + digit))
}

/// Digits, from the Huffman code of RFC 7541 (appendix B): 0 to 2 have five bits, the others six, from 011001 on.
fn huffman_digits(bytes: &[u8]) -> Vec<u16> {
    let bits: Vec<u16> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1))).collect();
    let (mut rest, mut digits) = (bits.as_slice(), Vec::new());
    let number = |bits: &[u16]| bits.iter().fold(0, |sum, bit| sum << 1 | bit);
    while rest.len() >= 5 {
        let (short, long) = (number(&rest[..5]), rest.get(..6).map(number));
        let (digit, length) = match (short, long) {
            (0..=2, _) => (short, 5),
            (_, Some(long @ 0b01_1001..=0b01_1111)) => (long - 0b01_1001 + 3, 6),
            _ => break,
        };
        digits.push(digit);
        rest = &rest[length..];
    }
    digits
}

/// What became of a stream, or of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer with this status.
    Answer(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was given up with this code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

/// One connection.
pub struct Http2 {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The GOAWAY that came, if one did.
    pub goaway: Option<Frame>,
}

impl Http2 {
    /// Connected, and nothing said.
    pub fn silent(address: SocketAddr) -> Self {
        Self::try_silent(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// The same with an address where it may fail.
    pub fn try_silent(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::new(), goaway: None })
    }

    /// With the preface and these settings said.
    pub fn with(address: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(address);
        let values = [&[(HEADER_TABLE_SIZE, 0)], values].concat();
        client.write([PREFACE.to_vec(), settings(&values)].concat());
        client
    }

    /// With the preface said and both sides' settings known.
    pub fn new(address: SocketAddr) -> Self {
        let mut client = Self::with(address, &[]);
        client.settle();
        client
    }

    /// Takes furt's settings and its acknowledgement, and acknowledges.
    pub fn settle(&mut self) -> Vec<(u16, u32)> {
        let first = self.frame().expect("furt speaks first");
        assert_eq!((first.kind, first.flags & ACK), (SETTINGS, 0), "{first:?}");
        self.write(frame(SETTINGS, ACK, 0, &[]));
        loop {
            let next = self.frame().expect("an acknowledgement");
            match (next.kind, next.flags & ACK) {
                (SETTINGS, ACK) => return first.settings(),
                (WINDOW_UPDATE, _) => {}
                _ => panic!("{next:?} before the acknowledgement"),
            }
        }
    }

    /// Sends bytes; furt may have closed already.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends bytes, and says whether the connection took them.
    pub fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// How long it waits for a frame.
    pub fn patience(&mut self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).expect("a time limit");
        self.stream.set_write_timeout(Some(patience)).expect("a time limit");
    }

    /// The next frame; none when the connection has ended.
    pub fn frame(&mut self) -> Option<Frame> {
        self.try_frame().unwrap_or_else(|error| panic!("{error} instead of a frame"))
    }

    /// The same; an error when none came in time.
    pub fn try_frame(&mut self) -> io::Result<Option<Frame>> {
        if !self.fill(9)? {
            return Ok(None);
        }
        let head: [u8; 9] = self.buffer[..9].try_into().expect("nine bytes");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        assert!(length <= 16_384, "a frame larger than furt may send: {head:?}");
        let whole = 9 + usize::try_from(length).expect("24 bits");
        if !self.fill(whole)? {
            return Ok(None);
        }
        let payload = self.buffer.drain(..whole).skip(9).collect();
        let stream = u32::from_be_bytes([head[5] & 0x7F, head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if frame.kind == GOAWAY {
            self.goaway = Some(frame.clone());
        }
        Ok(Some(frame))
    }

    /// Reads until there are so many bytes; false when the connection has ended before.
    fn fill(&mut self, count: usize) -> io::Result<bool> {
        let mut piece = [0; 16 * 1024];
        while self.buffer.len() < count {
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(false),
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// Reads until a stream, or the whole connection, has come to its end.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        let mut answer = None;
        loop {
            let Some(frame) = self.frame() else {
                return match &self.goaway {
                    Some(goaway) if goaway.code() != NO_ERROR => Outcome::GoAway(goaway.code()),
                    _ => Outcome::Closed,
                };
            };
            match frame.kind {
                GOAWAY if frame.code() != NO_ERROR => return Outcome::GoAway(frame.code()),
                // What ends an answer before its request may be a reset without an error (RFC 9113 §8.1).
                RST_STREAM if frame.stream == stream && frame.code() == NO_ERROR && answer.is_some() => {}
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                HEADERS if frame.stream == stream && answer.is_none() => {
                    answer = Some(frame.status()).filter(|status| *status >= 200);
                }
                _ => {}
            }
            if let Some(status) = answer
                && frame.stream == stream
                && matches!(frame.kind, DATA | HEADERS)
                && frame.has(END_STREAM)
            {
                return Outcome::Answer(status);
            }
        }
    }

    /// Reads until a frame of this kind comes; none when the connection ends before.
    pub fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads everything until furt closes; an error when it does not.
    pub fn closes(&mut self) -> io::Result<()> {
        while self.try_frame()?.is_some() {}
        Ok(())
    }
}

#[test]
fn the_status_of_a_header_block_is_read() {
    // RFC 7541 appendix C.6.1: 302, Huffman coded, with indexing; and what furt's encoder may send besides.
    assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
    assert_eq!(status(&[0x20, 0x88]), Some(200));
    assert_eq!(status(&[0x20, 0x3F, 0xE1, 0x1F, 0x8D]), Some(404));
    assert_eq!(status(&[0x08, 0x03, b'5', b'0', b'3']), Some(503));
    assert_eq!(huffman_digits(&[0x64, 0x0E, 0xFF]), [3, 0, 7]);
    assert_eq!(integer(0, 5, 1_337), [31, 154, 10]);
    assert_eq!(integer(0x80, 7, 2), [0x82]);
}
