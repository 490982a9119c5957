//! HTTP/1 requests read a second time, independently of the guard: all bytes at once, by splitting, with nothing
//! remembered between calls. It is slow and plain, so that it can be believed.
//!
//! Here: the messages in a stream, and where it stops being one that all read alike. For tests and fuzz targets, which
//! include this file by its path; so it names nothing outside of it.

/// What a message may take, as `strict::Limits`.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    pub head: usize,
    pub fields: usize,
    pub target: usize,
}

/// Names in lower case and values, in their order.
pub type Fields = Vec<(String, Vec<u8>)>;

/// One whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
}

/// How a stream ends after its last whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With it, or with empty lines after it.
    Between,
    /// Inside of a request that may still become one.
    Inside,
    /// With what is none; the status that says so.
    Refused(u16),
}

const BAD: End = End::Refused(400);
const TOO_LONG: End = End::Refused(414);
const TOO_LARGE: End = End::Refused(431);

/// All whole requests in a stream, and how it ends.
pub fn read_all(stream: &[u8], most: &Most) -> (Vec<Request>, End) {
    let mut stream = Stream(stream);
    let mut requests = Vec::new();
    loop {
        match stream.request(most) {
            Ok(request) => requests.push(request),
            Err(end) => return (requests, end),
        }
    }
}

/// What has not been read yet.
struct Stream<'a>(&'a [u8]);

impl<'a> Stream<'a> {
    fn request(&mut self, most: &Most) -> Result<Request, End> {
        for _ in 0..5 {
            if self.0.is_empty() {
                return Err(End::Between);
            }
            let line = self.line(|begun| request_line_begun(begun, most))?;
            if line.is_empty() {
                continue;
            }
            let (method, target, is_1_1) = request_line(line, most)?;
            let mut used = line.len() + 2;
            if used > most.head {
                return Err(TOO_LARGE);
            }
            let mut fields = Vec::new();
            while let Some(field) = self.field(&mut used, fields.len(), most)? {
                fields.push(field);
                check_framing(&fields)?;
            }
            let (body, trailers) = self.body(&fields, is_1_1, most)?;
            return Ok(Request { method, target, fields, body, trailers });
        }
        // Five empty lines.
        Err(BAD)
    }

    /// One line without its CRLF. `begun` judges what there is of it before its LF.
    fn line(&mut self, begun: impl Fn(&[u8]) -> Result<(), End>) -> Result<&'a [u8], End> {
        let line = self.0.split(|byte| *byte == b'\n').next().unwrap_or_default();
        begun(line)?;
        if line.len() == self.0.len() {
            return Err(End::Inside);
        }
        self.0 = &self.0[line.len() + 1..];
        line.strip_suffix(b"\r").ok_or(BAD)
    }

    /// A field, or none at the empty line that ends them; `known` come before it.
    fn field(&mut self, used: &mut usize, known: usize, most: &Most) -> Result<Option<(String, Vec<u8>)>, End> {
        let before = *used;
        let line = self.line(|begun| if before + begun.len() > most.head { Err(TOO_LARGE) } else { Ok(()) })?;
        *used += line.len() + 2;
        if *used > most.head || (!line.is_empty() && known == most.fields) {
            return Err(TOO_LARGE);
        }
        if line.is_empty() {
            return Ok(None);
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().ok_or(BAD)?);
        let control = |byte: &u8| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7F;
        if name.is_empty() || !name.iter().all(is_token) || value.iter().any(control) {
            return Err(BAD);
        }
        let mut value = value.to_vec();
        while matches!(value.last(), Some(b' ' | b'\t')) {
            value.pop();
        }
        while matches!(value.first(), Some(b' ' | b'\t')) {
            value.remove(0);
        }
        Ok(Some((String::from_utf8_lossy(name).to_lowercase(), value)))
    }

    fn body(&mut self, fields: &[(String, Vec<u8>)], is_1_1: bool, most: &Most) -> Result<(Vec<u8>, Fields), End> {
        let length = values(fields, "content-length").first().map(|text| number(text, 10));
        let chunked = !values(fields, "transfer-encoding").is_empty();
        if is_1_1 && values(fields, "host").is_empty() {
            return Err(BAD);
        }
        match (length, chunked) {
            (Some(_), true) => Err(BAD),
            (None, true) if !is_1_1 => Err(BAD),
            (None, true) => self.chunks(most),
            (Some(length), false) => Ok((self.take(length.ok_or(BAD)?)?, Vec::new())),
            (None, false) => Ok((Vec::new(), Vec::new())),
        }
    }

    fn chunks(&mut self, most: &Most) -> Result<(Vec<u8>, Fields), End> {
        let mut body = Vec::new();
        loop {
            let line = self.line(|begun| if begun.strip_suffix(b"\r").unwrap_or(begun).len() > 272 { Err(BAD) } else { Ok(()) })?;
            let mut parts = line.splitn(2, |byte| *byte == b';');
            let size = parts.next().and_then(|digits| number(digits, 16)).filter(|size| *size < 1 << 63).ok_or(BAD)?;
            if parts.next().unwrap_or_default().iter().any(|byte| !matches!(byte, b'\t' | 0x20..=0x7E)) {
                return Err(BAD);
            }
            if size == 0 {
                let (mut used, mut trailers) = (0, Vec::new());
                while let Some(trailer) = self.field(&mut used, trailers.len(), most)? {
                    trailers.push(trailer);
                }
                return Ok((body, trailers));
            }
            body.extend(self.take(size)?);
            match self.0 {
                [] | [b'\r'] => return Err(End::Inside),
                [b'\r', b'\n', rest @ ..] => self.0 = rest,
                _ => return Err(BAD),
            }
        }
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>, End> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len()).ok_or(End::Inside)?;
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(taken.to_vec())
    }
}

/// What there is of a request line that may be cut anywhere: nothing that could not begin one, and not too much.
fn request_line_begun(begun: &[u8], most: &Most) -> Result<(), End> {
    let method = begun.split(|byte| *byte == b' ').next().unwrap_or_default();
    if begun == b"\r" || begun.is_empty() {
        return Ok(());
    }
    if method.is_empty() || method.len() > 32 || !method.iter().all(is_token) {
        return Err(BAD);
    }
    if method.len() == begun.len() {
        return Ok(());
    }
    // Room for the spaces, the version and a CR.
    let longest = method.len() + 1 + most.target + 10;
    match begun.len() {
        length if longest <= most.head && length > longest => Err(TOO_LONG),
        length if length > most.head => Err(TOO_LARGE),
        _ => Ok(()),
    }
}

/// Method, target, and whether it is HTTP/1.1 and not 1.0.
fn request_line(line: &[u8], most: &Most) -> Result<(String, String, bool), End> {
    let text = std::str::from_utf8(line).map_err(|_| BAD)?;
    let parts: Vec<_> = text.split(' ').collect();
    let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = parts[..] else { return Err(BAD) };
    if method.is_empty() || method.len() > 32 || !method.bytes().all(|byte| is_token(&byte)) || method == "CONNECT" {
        return Err(BAD);
    }
    let scheme = target.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let has_form = target == "*" || target.starts_with('/') || scheme.is_some_and(|scheme| scheme == "http" || scheme == "https");
    if !has_form || target.bytes().any(|byte| !matches!(byte, 0x21..=0x7E)) {
        return Err(BAD);
    }
    if target.len() > most.target {
        return Err(TOO_LONG);
    }
    if target.contains('#') { Err(BAD) } else { Ok((method.to_owned(), target.to_owned(), version == "HTTP/1.1")) }
}

/// The fields that say where a message ends and for whom it is, one of each at the most.
fn check_framing(fields: &[(String, Vec<u8>)]) -> Result<(), End> {
    let host_fits = |host: &&[u8]| std::str::from_utf8(host).is_ok_and(is_host);
    let length_fits = |length: &&[u8]| length.len() <= 19 && number(length, 10).is_some();
    let coding_fits = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    for (name, fits) in
        [("host", &host_fits as &dyn Fn(&&[u8]) -> bool), ("content-length", &length_fits), ("transfer-encoding", &coding_fits)]
    {
        let values = values(fields, name);
        if values.len() > 1 || !values.iter().all(fits) {
            return Err(BAD);
        }
    }
    Ok(())
}

/// A name or an address, and a port or none.
fn is_host(host: &str) -> bool {
    let is_port = |port: &str| matches!(port.len(), 1..=5) && port.bytes().all(|byte| byte.is_ascii_digit());
    let rest_fits = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    let fits = match host.strip_prefix('[') {
        Some(literal) => {
            literal.split_once(']').is_some_and(|(address, rest)| address.parse::<std::net::Ipv6Addr>().is_ok() && rest_fits(rest))
        }
        None => {
            let end = host.find(|letter: char| !(letter.is_ascii_alphanumeric() || "-._".contains(letter))).unwrap_or(host.len());
            end > 0 && rest_fits(&host[end..])
        }
    };
    fits && host.len() <= 260
}

/// Digits and nothing else, at most as many as 64 bits have in hexadecimal, or 20.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(|byte| char::from(*byte).is_digit(radix));
    let most = if radix == 16 { 16 } else { 20 };
    std::str::from_utf8(text).ok().filter(|_| digits && text.len() <= most).and_then(|text| u64::from_str_radix(text, radix).ok())
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(field, _)| field == name).map(|(_, value)| &value[..]).collect()
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}
