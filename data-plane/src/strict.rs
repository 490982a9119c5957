//! The guard over HTTP/1: reads every byte of a client's connection before hyper does, and refuses what two programs
//! could read in two ways (RFC 9112 §2.2, §3, §5, §6, §7.1, §11.2).
//!
//! Here: where messages begin and end, and whether each of their lines is one that all read alike. Pure; it keeps what
//! a read cuts off of a line and nothing else. How the bytes are cut into reads changes neither the verdict nor its
//! reason: what can be said of a line before its end has come is said first of a whole line, too.
//! Not here: paths, hosts of HTTP/2, what is answered.

use memchr::memchr;

use crate::framing::check_host;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

/// What a head may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of request line and fields, with the ends of their lines; once more for the trailers.
    pub head: usize,
    /// Fields, and once more so many trailers.
    pub fields: usize,
    /// Bytes of the target.
    pub target: usize,
}

/// Why bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They are no HTTP/1 that all read alike; the words say why.
    Malformed(&'static str),
    /// The target has a `#`.
    Fragment,
    /// The target is too long.
    UriTooLong,
    /// The head has too many bytes or fields.
    HeadersTooLarge,
}

/// A refusal. Bytes before `at` may pass: they complete no faulty head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Where the first byte is that must not pass.
    pub at: usize,
    /// Why.
    pub fault: Fault,
}

/// Empty lines before a request line that are passed over (RFC 9112 §2.2).
const MAX_EMPTY: u8 = 4;
/// Longest method, in bytes, as at registration.
const MAX_METHOD: usize = 32;
/// Longest chunk line, its extensions included, in bytes.
const MAX_CHUNK_LINE: usize = 16 + 256;

/// Which line, or what else, comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A request line, after so many empty ones.
    Request(u8),
    Field,
    /// So many bytes of a body of known length.
    Body(u64),
    ChunkLine,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The empty line after a chunk.
    ChunkEnd,
    Trailer,
}

/// What is known of the head that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    bytes: usize,
    fields: usize,
    http10: bool,
    host: bool,
    chunked: bool,
    length: Option<u64>,
}

/// Reads one connection.
#[derive(Debug)]
pub struct Strict {
    state: State,
    head: Head,
    /// The begin of a line whose end has not come yet.
    begun: Vec<u8>,
}

impl Default for Strict {
    fn default() -> Self {
        Self::new()
    }
}

impl Strict {
    /// Before the first byte.
    pub fn new() -> Self {
        Self { state: State::Request(0), head: Head::default(), begun: Vec::new() }
    }

    /// Whether the last byte ended a message, or none has begun.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Request(_)) && self.begun.is_empty()
    }

    /// Whether a body is being read.
    pub fn is_in_body(&self) -> bool {
        !matches!(self.state, State::Request(_) | State::Field)
    }

    /// Reads the next bytes of the connection, in any cut.
    ///
    /// # Errors
    /// With the place and the reason of a refusal. It is the last word: nothing may be read after it.
    pub fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Refused> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match self.state {
                State::Body(left) | State::Chunk(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    at += taken;
                    self.state = match (self.state, left - taken as u64) {
                        (State::Body(_), 0) => State::Request(0),
                        (State::Body(_), left) => State::Body(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::Chunk(left),
                    };
                }
                _ => {
                    let refuse = |fault| Refused { at, fault };
                    let Some(end) = memchr(b'\n', rest) else {
                        self.begun.extend_from_slice(rest);
                        return self.check_begun(&self.begun, limits).map_err(refuse);
                    };
                    let line = rest.get(..=end).unwrap_or_default();
                    if self.begun.is_empty() {
                        self.line(line, limits).map_err(refuse)?;
                    } else {
                        let mut whole = std::mem::take(&mut self.begun);
                        whole.extend_from_slice(line);
                        self.line(&whole, limits).map_err(refuse)?;
                    }
                    at += end + 1;
                }
            }
        }
        Ok(())
    }

    /// What can be said of a line before its LF has come. Never takes back, when more of the line has come, what it said
    /// of less.
    fn check_begun(&self, begun: &[u8], limits: &Limits) -> Result<(), Fault> {
        let length = begun.len();
        match self.state {
            State::Request(_) => check_request_begun(begun, limits),
            State::Field | State::Trailer if self.head.bytes + length > limits.head => Err(Fault::HeadersTooLarge),
            State::ChunkLine if length - usize::from(begun.ends_with(b"\r")) > MAX_CHUNK_LINE => {
                Err(Fault::Malformed("a chunk's line is too long"))
            }
            State::ChunkEnd if !b"\r".starts_with(begun) => Err(Fault::Malformed(NO_CHUNK_END)),
            _ => Ok(()),
        }
    }

    /// One whole line with its end.
    fn line(&mut self, line: &[u8], limits: &Limits) -> Result<(), Fault> {
        let begun = line.strip_suffix(b"\n").unwrap_or(line);
        self.check_begun(begun, limits)?;
        let Some(text) = begun.strip_suffix(b"\r") else { return Err(Fault::Malformed("a line ends with a bare LF")) };
        match self.state {
            State::Request(empty) if text.is_empty() => {
                self.state = State::Request(empty + 1);
                if empty < MAX_EMPTY { Ok(()) } else { Err(Fault::Malformed(NO_REQUEST_LINE)) }
            }
            State::Request(_) => {
                self.head = Head { bytes: line.len(), http10: request_line(text, limits)?, ..Head::default() };
                self.state = State::Field;
                if line.len() > limits.head { Err(Fault::HeadersTooLarge) } else { Ok(()) }
            }
            State::Field | State::Trailer => {
                self.head.bytes += line.len();
                if self.head.bytes > limits.head {
                    return Err(Fault::HeadersTooLarge);
                }
                if text.is_empty() {
                    return self.head_ended();
                }
                self.head.fields += 1;
                if self.head.fields > limits.fields {
                    return Err(Fault::HeadersTooLarge);
                }
                let (name, value) = field(text)?;
                if self.state == State::Field { self.head.framing(name, value) } else { Ok(()) }
            }
            State::ChunkLine => {
                self.state = match chunk_line(text)? {
                    0 => {
                        self.head = Head::default();
                        State::Trailer
                    }
                    size => State::Chunk(size),
                };
                Ok(())
            }
            State::ChunkEnd if text.is_empty() => {
                self.state = State::ChunkLine;
                Ok(())
            }
            _ => Err(Fault::Malformed(NO_CHUNK_END)),
        }
    }

    /// The empty line after fields.
    fn head_ended(&mut self) -> Result<(), Fault> {
        let Head { http10, host, chunked, length, .. } = self.head;
        self.state = match self.state {
            State::Trailer => State::Request(0),
            _ if !host && !http10 => return Err(Fault::Malformed("a request must have a Host")),
            _ if chunked && (length.is_some() || http10) => {
                return Err(Fault::Malformed("Transfer-Encoding does not go with this request"));
            }
            _ if chunked => State::ChunkLine,
            _ => match length.unwrap_or(0) {
                0 => State::Request(0),
                length => State::Body(length),
            },
        };
        Ok(())
    }
}

const NO_REQUEST_LINE: &str = "there is no well-formed request line";
const NO_CHUNK_END: &str = "a chunk does not end where it says";

impl Head {
    /// The fields that say where a message ends and for whom it is.
    fn framing(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if name.eq_ignore_ascii_case(b"host") {
            if std::mem::replace(&mut self.host, true) {
                return Err(Fault::Malformed("a request must have one Host"));
            }
            return check_host(value).map_err(|_| Fault::Malformed("the Host is malformed"));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = matches!(value.len(), 1..=19) && value.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
            return match (length, self.length) {
                (Some(length), None) => {
                    self.length = Some(length);
                    Ok(())
                }
                _ => Err(Fault::Malformed("the Content-Length is malformed")),
            };
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding")
            && (!value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut self.chunked, true))
        {
            return Err(Fault::Malformed("the only Transfer-Encoding is one \"chunked\""));
        }
        Ok(())
    }
}

/// A request line before its end has come: it begins with a method, which ends somewhere, and the target does not go on
/// for ever. Of the two limits on it the one that is met first counts.
fn check_request_begun(begun: &[u8], limits: &Limits) -> Result<(), Fault> {
    // An empty line.
    if matches!(begun, b"" | b"\r") {
        return Ok(());
    }
    match begun.iter().take(MAX_METHOD + 1).position(|byte| !is_token(*byte)) {
        None if begun.len() <= MAX_METHOD => Ok(()),
        Some(end @ 1..) if begun.get(end) == Some(&b' ') => {
            // The version takes its room behind the target.
            let most = (end + 1).saturating_add(limits.target).saturating_add(" HTTP/1.1\r".len());
            match begun.len() {
                length if length <= most.min(limits.head) => Ok(()),
                _ if most <= limits.head => Err(Fault::UriTooLong),
                _ => Err(Fault::HeadersTooLarge),
            }
        }
        _ => Err(Fault::Malformed(NO_REQUEST_LINE)),
    }
}

/// `method SP target SP version` (RFC 9112 §3). Whether it is HTTP/1.0.
fn request_line(text: &[u8], limits: &Limits) -> Result<bool, Fault> {
    let malformed = Fault::Malformed(NO_REQUEST_LINE);
    let (line, http10) = match (text.strip_suffix(b" HTTP/1.1"), text.strip_suffix(b" HTTP/1.0")) {
        (Some(line), _) => (line, false),
        (_, Some(line)) => (line, true),
        _ => return Err(malformed),
    };
    let end = memchr(b' ', line).ok_or(malformed)?;
    let (method, target) = (line.get(..end).unwrap_or_default(), line.get(end + 1..).unwrap_or_default());
    if !matches!(method.len(), 1..=MAX_METHOD) || !method.iter().all(|byte| is_token(*byte)) || target.is_empty() {
        return Err(malformed);
    }
    if method == b"CONNECT" {
        return Err(Fault::Malformed("CONNECT is not served here"));
    }
    // Origin form, asterisk form or absolute form (RFC 9112 §3.2); what is left is the authority form of CONNECT.
    let absolute = || [&b"http://"[..], b"https://"].iter().any(|scheme| starts_with_word(target, scheme));
    let has_form = target.starts_with(b"/") || target == b"*" || absolute();
    if !has_form || !target.iter().all(u8::is_ascii_graphic) {
        return Err(malformed);
    }
    if target.len() > limits.target {
        return Err(Fault::UriTooLong);
    }
    if memchr(b'#', target).is_some() { Err(Fault::Fragment) } else { Ok(http10) }
}

fn starts_with_word(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

/// `name ":" OWS value OWS` (RFC 9112 §5).
fn field(text: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if matches!(text.first(), Some(b' ' | b'\t')) {
        return Err(Fault::Malformed("a header field is folded"));
    }
    let colon = memchr(b':', text).ok_or(Fault::Malformed("a header field has no colon"))?;
    let (name, value) = (text.get(..colon).unwrap_or_default(), text.get(colon + 1..).unwrap_or_default());
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Fault::Malformed("the name of a header field is no token"));
    }
    if value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
        return Err(Fault::Malformed("the value of a header field has control characters"));
    }
    Ok((name, trim(value)))
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(begin, |last| last + 1);
    value.get(begin..end).unwrap_or_default()
}

/// `size [extensions]` (RFC 9112 §7.1).
fn chunk_line(text: &[u8]) -> Result<u64, Fault> {
    let end = text.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(text.len());
    let (digits, extensions) = (text.get(..end).unwrap_or_default(), text.get(end..).unwrap_or_default());
    let size = std::str::from_utf8(digits).ok().filter(|digits| matches!(digits.len(), 1..=16));
    let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok()).filter(|size| *size <= i64::MAX as u64);
    let well_formed = extensions.is_empty()
        || extensions.first() == Some(&b';') && extensions.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'));
    size.filter(|_| well_formed).ok_or(Fault::Malformed("the size of a chunk is malformed"))
}

/// `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut at = 0;
        while at < 256 {
            let byte = at as u8;
            table[at] = byte.is_ascii_alphanumeric()
                || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
            at += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}
