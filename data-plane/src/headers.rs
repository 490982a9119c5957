//! Header fields on their way through: what a service gets and what a caller gets (DESIGN §9).
//!
//! One pass over each head. Never a client's own copy of a field that furt sets, in any spelling
//! that an application might fold into it.

use std::net::IpAddr;

use furt_proto::network::Networks;
use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{self, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING, VIA},
};

use crate::{
    respond::{FURT, ProxyError, X_FURT_REASON, X_GATEWAY, X_REQUEST_ID},
    table::Route,
};

/// `X-API-Key`, where a caller shows its key.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// `X-API-Key-Name`, where a service reads who the caller is.
pub const X_API_KEY_NAME: HeaderName = HeaderName::from_static("x-api-key-name");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// What a field of a request is to furt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Goes through.
    Through,
    /// Belongs to one connection, or furt says it anew.
    Ours,
    /// `X-Forwarded-*` and its kin: believed from trusted proxies only.
    Forwarded,
    /// `X-Request-ID`: likewise.
    RequestId,
    Via,
    Trace,
    Te,
    Trailer,
    Cookie,
}

#[rustfmt::skip]
fn kind(name: &str) -> Kind {
    match name {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings" | "expect"
        | "host" | "x-api-key" | "x-api-key-name" | "x-furt-reason" => Kind::Ours,
        "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "x-real-ip" | "forwarded" => Kind::Forwarded,
        "x-request-id" => Kind::RequestId,
        "via" => Kind::Via,
        "traceparent" | "tracestate" => Kind::Trace,
        "te" => Kind::Te,
        "trailer" => Kind::Trailer,
        "cookie" => Kind::Cookie,
        _ if name.starts_with("x-forwarded-") => Kind::Forwarded,
        _ if odd(name) && impostor(name) => Kind::Ours,
        _ => Kind::Through,
    }
}

/// Whether a name has characters that applications fold into `-` or `_` (CGI, RFC 3875 §4.1.18).
fn odd(name: &str) -> bool {
    name.bytes().any(|byte| !(byte.is_ascii_alphanumeric() || byte == b'-'))
}

/// Whether a name, folded as an application might, is one that furt sets or that frames a message.
fn impostor(name: &str) -> bool {
    let folded: String =
        name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_lowercase()) } else { '-' }).collect();
    matches!(
        folded.as_str(),
        "x-api-key"
            | "x-api-key-name"
            | "x-request-id"
            | "x-real-ip"
            | "x-gateway"
            | "content-length"
            | "transfer-encoding"
            | "proxy-connection"
    ) || folded.starts_with("x-forwarded-")
}

/// Whether two names are the same field to an application that folds.
fn folds_into(name: &str, ours: &str) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.len() == ours.len() && name.bytes().map(fold).eq(ours.bytes().map(fold))
}

/// What the gateway knows when it sends a request on.
pub struct Forwarding<'a> {
    /// The route, for the fields it sets.
    pub route: &'a Route,
    /// The caller's name; `None`: a public route without a valid key.
    pub caller: Option<&'a HeaderValue>,
    /// The id of this request.
    pub request_id: &'a HeaderValue,
    /// `Host` as the client sent it, or the authority of an absolute or HTTP/2 request.
    pub host: &'a HeaderValue,
    /// The peer's address as text.
    pub peer: &'a HeaderValue,
    /// Whether the peer is one of `trusted_proxies`.
    pub trusted: bool,
    /// The protocol it came by.
    pub version: Version,
    /// What furt says of itself in `Via`.
    pub via: &'a Via,
    /// Whether it came over TLS.
    pub secure: bool,
}

/// The header fields that the service gets, but for those of one connection, which [`crate::outbound`] adds. The client's are left for a second attempt.
pub fn forward(client: &HeaderMap, with: &Forwarding<'_>) -> HeaderMap {
    let named = ConnectionNames::of(client);
    let mut out = HeaderMap::with_capacity(client.len() + 10);
    out.insert(HOST, with.host.clone());
    let mut forwarded_for = None::<HeaderValue>;
    let mut via = None::<HeaderValue>;
    let (mut te, mut trace, mut cookies) = (false, None, Vec::new());
    for (name, value) in client {
        if named.has(name) || with.route.set_headers.iter().any(|(ours, _)| folds_into(name.as_str(), ours.as_str())) {
            continue;
        }
        match kind(name.as_str()) {
            Kind::Through => _ = out.append(name.clone(), value.clone()),
            Kind::Ours => {}
            Kind::Forwarded if !with.trusted => {}
            Kind::Forwarded if name == X_FORWARDED_FOR => forwarded_for = Some(joined(forwarded_for, b", ", value)),
            Kind::Forwarded => _ = out.append(name.clone(), value.clone()),
            Kind::RequestId => {}
            Kind::Via => via = Some(joined(via, b", ", value)),
            Kind::Trace if name == TRACEPARENT => trace = Some(trace.map_or(Trace::One(value.clone()), |_| Trace::Invalid)),
            Kind::Trace => _ = out.append(name.clone(), value.clone()),
            Kind::Te => te |= names_trailers(value),
            Kind::Trailer => {
                if let Some(value) = clean_trailer_names(value) {
                    out.append(TRAILER, value);
                }
            }
            Kind::Cookie => cookies.push(value.as_bytes()),
        }
    }
    // HTTP/2 may send a cookie in pieces, in as many as fit into the list; HTTP/1.1 has one field (RFC 9113 §8.2.3). Empty
    // pieces would leave a separator at its end; valid values joined by visible characters are a valid value.
    if cookies.len() > 1 {
        cookies.retain(|piece| !piece.is_empty());
    }
    if let Some(cookies) = (!cookies.is_empty()).then(|| cookies.join(&b"; "[..])).and_then(|all| HeaderValue::from_bytes(&all).ok()) {
        out.insert(COOKIE, cookies);
    }
    set_trace(&mut out, trace);
    out.insert(VIA, with.via.after(via, with.version));
    out.insert(X_FORWARDED_FOR, forwarded_for.map_or_else(|| with.peer.clone(), |value| joined(Some(value), b", ", with.peer)));
    if !(with.trusted && out.get(X_FORWARDED_PROTO).is_some_and(|value| value == "http" || value == "https")) {
        out.insert(X_FORWARDED_PROTO, if with.secure { HTTPS } else { HTTP });
    }
    let believed = with.trusted && out.contains_key(X_FORWARDED_HOST);
    if !believed && !with.host.is_empty() {
        out.insert(X_FORWARDED_HOST, with.host.clone());
    }
    out.insert(X_REQUEST_ID, with.request_id.clone());
    if let Some(caller) = with.caller {
        out.insert(X_API_KEY_NAME, caller.clone());
    }
    for (name, value) in &with.route.set_headers {
        out.insert(name, value.clone());
    }
    if te {
        out.insert(TE, TRAILERS);
    }
    out
}

fn joined(before: Option<HeaderValue>, by: &[u8], value: &HeaderValue) -> HeaderValue {
    let Some(before) = before else { return value.clone() };
    let text = [before.as_bytes(), by, value.as_bytes()].concat();
    // Two valid values joined by visible characters are a valid value.
    HeaderValue::from_bytes(&text).unwrap_or(before)
}

fn names_trailers(te: &HeaderValue) -> bool {
    tokens(te.as_bytes()).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}

fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// The fields that `Connection` names: they end here (RFC 9110 §7.6.1), except those without which
/// the message would be another one, and those in which a trusted proxy says whose request it is: some
/// proxies pass a client's own `Connection` on, and the client would hide behind their address.
enum ConnectionNames {
    None,
    Some(Vec<HeaderName>),
}

impl ConnectionNames {
    fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for value in headers.get_all(CONNECTION) {
            if value == "keep-alive" || value == "close" {
                continue;
            }
            let named = tokens(value.as_bytes()).filter_map(|token| HeaderName::from_bytes(token).ok());
            names.extend(named.filter(|name| !is_kept(name)));
        }
        if names.is_empty() { Self::None } else { Self::Some(names) }
    }

    fn has(&self, name: &HeaderName) -> bool {
        match self {
            Self::None => false,
            Self::Some(names) => names.contains(name),
        }
    }
}

fn is_kept(name: &HeaderName) -> bool {
    matches!(*name, CONTENT_LENGTH | header::HOST | header::CONTENT_TYPE | header::TE)
        || matches!(kind(name.as_str()), Kind::Forwarded | Kind::Via)
}

enum Trace {
    One(HeaderValue),
    Invalid,
}

/// Keeps a valid `traceparent` or begins a trace (W3C Trace Context §3.2, §4.3).
fn set_trace(out: &mut HeaderMap, trace: Option<Trace>) {
    if let Some(Trace::One(value)) = &trace
        && valid_traceparent(value.as_bytes())
    {
        out.insert(TRACEPARENT, value.clone());
        return;
    }
    out.remove(TRACESTATE);
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let mut hex = |at: usize, digits: usize, mut bits: u64| {
        for place in text.iter_mut().skip(at).take(digits).rev() {
            *place = b"0123456789abcdef".get((bits & 15) as usize).copied().unwrap_or(b'0');
            bits >>= 4;
        }
    };
    // All zeros would be invalid.
    hex(3, 16, fastrand::u64(1..));
    hex(19, 16, fastrand::u64(..));
    hex(36, 16, fastrand::u64(1..));
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        out.insert(TRACEPARENT, value);
    }
}

fn valid_traceparent(text: &[u8]) -> bool {
    let hex =
        |from: usize, to: usize| text.get(from..to).is_some_and(|part| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    let zeros = |from: usize, to: usize| text.get(from..to).is_some_and(|part| part.iter().all(|byte| *byte == b'0'));
    let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
    let length = if text.starts_with(b"00") { text.len() == 55 } else { text.len() == 55 || (text.len() > 55 && text[55] == b'-') };
    length && dashes && hex(0, 2) && !text.starts_with(b"ff") && hex(3, 35) && !zeros(3, 35) && hex(36, 52) && !zeros(36, 52) && hex(53, 55)
}

/// What furt says of itself in `Via`, and how it knows its own words again.
///
/// The comment is random for each process, so that one furt may stand behind another. A bare `furt`
/// counts as well: comments may be lost on the way (RFC 9110 §7.6.3).
#[derive(Debug)]
pub struct Via {
    comment: String,
    fresh: [HeaderValue; 3],
}

impl Via {
    /// With a comment of its own.
    pub fn new() -> Self {
        let comment = format!("({:016x})", fastrand::u64(..));
        let fresh = ["1.0", "1.1", "2.0"]
            .map(|version| HeaderValue::from_str(&format!("{version} furt {comment}")).unwrap_or(HeaderValue::from_static("1.1 furt")));
        Self { comment, fresh }
    }

    fn after(&self, before: Option<HeaderValue>, version: Version) -> HeaderValue {
        let [http10, http11, http2] = &self.fresh;
        let own = match version {
            Version::HTTP_10 => http10,
            Version::HTTP_2 => http2,
            _ => http11,
        };
        joined(before, b", ", own)
    }

    /// Whether a request with these fields has passed here before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VIA).iter().flat_map(|value| tokens(value.as_bytes())).any(|entry| self.is_own(entry))
    }

    fn is_own(&self, entry: &[u8]) -> bool {
        let mut words = entry.splitn(3, |byte| *byte == b' ');
        let by = words.nth(1).unwrap_or_default();
        let comment = words.next().unwrap_or_default().trim_ascii();
        by == b"furt" && (comment.is_empty() || comment == self.comment.as_bytes())
    }
}

impl Default for Via {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands for a client whose address a trusted proxy tells in words that are none: it is in no list.
const UNREADABLE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// The client's address: the peer, or behind trusted proxies the rightmost untrusted address.
pub fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: &Networks) -> IpAddr {
    if !trusted.contains(peer) {
        return peer;
    }
    let mut client = peer;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for entry in value.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = forwarded_address(entry.trim_ascii()) else { return UNREADABLE };
            client = address;
            if !trusted.contains(address) {
                return client;
            }
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn forwarded_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let address = text.parse::<IpAddr>().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address| address.to_canonical())
}

/// The request's own id, when the peer may give one and it is fit to be logged and sent on.
pub fn trusted_request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut ids = headers.get_all(X_REQUEST_ID).iter();
    let id = ids.next().filter(|_| ids.next().is_none())?;
    (matches!(id.len(), 1..=128) && id.as_bytes().iter().all(u8::is_ascii_graphic)).then_some(id)
}

/// Takes off what belongs to the connection to the service, and what only furt says. An answer that
/// is framed in a way that cannot be passed on is refused.
pub fn strip_answer(headers: &mut HeaderMap) -> Result<(), ProxyError> {
    one_length(headers)?;
    let hop = |name: &HeaderName| {
        matches!(
            name.as_str(),
            "connection" | "transfer-encoding" | "keep-alive" | "proxy-connection" | "upgrade" | "te" | "trailer" | "x-furt-reason"
        )
    };
    if !headers.keys().any(hop) {
        return Ok(());
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && !(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none())
    {
        return Err(ProxyError::BadGateway("the service answered with a transfer coding that furt does not know"));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // The chunks say how long the body is, whatever the length says (RFC 9112 §6.3).
        headers.remove(CONTENT_LENGTH);
    }
    if let ConnectionNames::Some(names) = ConnectionNames::of(headers) {
        for name in names {
            headers.remove(name);
        }
    }
    for name in [CONNECTION, TRANSFER_ENCODING, header::UPGRADE, TE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    headers.remove(X_FURT_REASON);
    if let Some(names) = headers.remove(TRAILER).and_then(|value| clean_trailer_names(&value)) {
        headers.insert(TRAILER, names);
    }
    Ok(())
}

/// A length given more than once becomes one, if it is the same each time (RFC 9110 §8.6).
fn one_length(headers: &mut HeaderMap) -> Result<(), ProxyError> {
    let Some(first) = headers.get(CONTENT_LENGTH) else { return Ok(()) };
    if first.as_bytes().iter().all(u8::is_ascii_digit) && headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none() {
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| tokens(value.as_bytes()));
    let one = lengths.next().filter(|one| one.iter().all(u8::is_ascii_digit) && lengths.all(|other| other == *one));
    let one = one.and_then(|one| HeaderValue::from_bytes(one).ok());
    drop(lengths);
    headers.insert(CONTENT_LENGTH, one.ok_or(ProxyError::BadGateway("the service answered with more than one length"))?);
    Ok(())
}

/// Adds what every answer carries.
pub fn finish_answer(headers: &mut HeaderMap, request_id: HeaderValue, gateway_ns: u64, upstream_ns: Option<u64>) {
    headers.insert(X_GATEWAY, FURT);
    headers.insert(X_REQUEST_ID, request_id);
    headers.append(SERVER_TIMING, server_timing(gateway_ns, upstream_ns));
}

/// `gateway;dur=0.1, upstream;dur=4.9`, in milliseconds (Server Timing, W3C).
fn server_timing(gateway_ns: u64, upstream_ns: Option<u64>) -> HeaderValue {
    let mut text = [0; 80];
    let mut length = 0;
    let mut put = |part: &[u8]| {
        if let Some(place) = text.get_mut(length..length + part.len()) {
            place.copy_from_slice(part);
            length += part.len();
        }
    };
    put(b"gateway;dur=");
    put_tenths(gateway_ns, &mut put);
    if let Some(upstream_ns) = upstream_ns {
        put(b", upstream;dur=");
        put_tenths(upstream_ns, &mut put);
    }
    text.get(..length).and_then(|text| HeaderValue::from_bytes(text).ok()).unwrap_or(HeaderValue::from_static("gateway"))
}

/// Milliseconds with one decimal.
fn put_tenths(nanos: u64, put: &mut impl FnMut(&[u8])) {
    let mut tenths = nanos.saturating_add(50_000) / 100_000;
    let mut digits = [b'0'; 22];
    let mut at = digits.len();
    let mut push = |digit: u8| {
        at -= 1;
        digits[at] = digit;
    };
    push(b'0' + (tenths % 10) as u8);
    push(b'.');
    tenths /= 10;
    loop {
        push(b'0' + (tenths % 10) as u8);
        tenths /= 10;
        if tenths == 0 {
            break;
        }
    }
    put(digits.get(at..).unwrap_or_default());
}

/// Trailers without fields that frame, route or identify (RFC 9110 §6.5.1).
pub fn clean_trailers(trailers: HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(trailers.len());
    let mut last = None;
    for (name, value) in trailers {
        last = name.or(last);
        if let Some(name) = last.as_ref().filter(|name| allowed_in_trailers(name.as_str())) {
            out.append(name.clone(), value);
        }
    }
    out
}

fn clean_trailer_names(list: &HeaderValue) -> Option<HeaderValue> {
    let allowed = |token: &&[u8]| HeaderName::from_bytes(token).is_ok_and(|name| allowed_in_trailers(name.as_str()));
    let kept: Vec<&[u8]> = tokens(list.as_bytes()).filter(allowed).collect();
    if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b", "[..])).ok() }
}

fn allowed_in_trailers(name: &str) -> bool {
    let forbidden = matches!(
        name,
        "content-length"
            | "content-type"
            | "content-encoding"
            | "content-range"
            | "authorization"
            | "proxy-authorization"
            | "set-cookie"
            | "cache-control"
            | "max-forwards"
            | "range"
            | "if-match"
            | "if-none-match"
            | "age"
            | "date"
            | "expires"
            | "location"
            | "retry-after"
            | "vary"
            | "x-gateway"
    );
    !forbidden && !name.starts_with(':') && !name.contains('"') && kind(name) == Kind::Through
}

#[cfg(test)]
mod tests;
