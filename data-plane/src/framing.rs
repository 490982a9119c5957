//! What hyper lets pass and must not: how a request is framed and which host it names (RFC
//! 9112 §3.2, §6; RFC 9113 §8.3.1).
//!
//! Here: checks on one head. Not here: paths (`furt_proto::path`), answers.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING},
    request::Parts,
};

use crate::{headers::X_API_KEY, respond::ProxyError};

/// Whether a request target, path and query, is short enough.
pub fn check_length(target: &str, most: usize) -> Result<(), ProxyError> {
    if target.len() > most { Err(ProxyError::UriTooLong) } else { Ok(()) }
}

/// Whether there are few enough header fields. The guard over HTTP/1 has counted them before; over HTTP/2 cookies may
/// come one by one, and are one field all the same (RFC 9113 §8.2.3).
pub fn check_count(fields: &HeaderMap, most: usize) -> Result<(), ProxyError> {
    if fields.len() <= most {
        return Ok(());
    }
    let crumbs = fields.get_all(COOKIE).iter().count();
    if fields.len() - crumbs.saturating_sub(1) > most { Err(ProxyError::HeadersTooLarge) } else { Ok(()) }
}

/// The `Host` of the request: one, well-formed, or the authority of an absolute or HTTP/2 target,
/// which stands above it (RFC 9112 §3.2.2, RFC 9113 §8.3.1).
pub fn checked_host(head: &Parts) -> Result<HeaderValue, ProxyError> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let own = hosts.next();
    if hosts.next().is_some() {
        return Err(ProxyError::Malformed("a request must have one Host"));
    }
    let host = match head.uri.authority() {
        Some(authority) => {
            if head.version == Version::HTTP_2 && own.is_some_and(|own| !own.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
            {
                return Err(ProxyError::Malformed("Host and :authority must be the same"));
            }
            HeaderValue::from_str(authority.as_str()).ok()
        }
        None => own.cloned(),
    };
    // HTTP/1.0 knew no Host; a route that names none will do.
    let host = match host {
        None if head.version == Version::HTTP_10 => return Ok(HeaderValue::from_static("")),
        None => return Err(ProxyError::Malformed("a request must have a Host")),
        Some(host) => host,
    };
    check_host(host.as_bytes())?;
    Ok(host)
}

/// Whether a `Host` is well-formed: a name or an address, and a port or none.
pub fn check_host(host: &[u8]) -> Result<(), ProxyError> {
    if well_formed(host) { Ok(()) } else { Err(ProxyError::Malformed("the Host is malformed")) }
}

/// Methods that no route can have.
pub fn check_method(method: &Method) -> Result<(), ProxyError> {
    if method == Method::CONNECT { Err(ProxyError::Malformed("CONNECT is not served here")) } else { Ok(()) }
}

fn well_formed(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|byte| *byte == b':') {
        Some(at) if !host.ends_with(b"]") => (host.get(..at).unwrap_or_default(), host.get(at + 1..).unwrap_or_default()),
        _ => (host, &b"1"[..]),
    };
    let literal = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
    let name_ok = match literal {
        Some(inner) => std::str::from_utf8(inner).is_ok_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)),
    };
    name_ok && host.len() <= 260 && port.len() <= 5 && !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

/// The name in a well-formed `Host`, as routes know it: lower case, no port, no dot at the end.
pub fn host_name(host: &HeaderValue) -> Cow<'_, str> {
    let text = host.to_str().unwrap_or_default();
    let name = match text.rfind(':') {
        Some(at) if !text.ends_with(']') => text.get(..at).unwrap_or_default(),
        _ => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}

/// What hyper lets pass and a service behind furt could read in two ways.
pub fn check_framing(head: &Parts) -> Result<(), ProxyError> {
    check_method(&head.method)?;
    if head.version == Version::HTTP_2 {
        check_http2(head)?;
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(ProxyError::Malformed("the only Transfer-Encoding is one \"chunked\""));
        }
        if head.headers.contains_key(CONTENT_LENGTH) || head.version != Version::HTTP_11 {
            return Err(ProxyError::Malformed("Transfer-Encoding does not go with this request"));
        }
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(ProxyError::Malformed("the Content-Length is malformed"));
    }
    let mut keys = head.headers.get_all(X_API_KEY).iter();
    if keys.next().is_some() && keys.next().is_some() {
        return Err(ProxyError::Malformed("a request must have one X-API-Key at the most"));
    }
    Ok(())
}

/// What h2 lets pass and must not be: a scheme or a path that says nothing (RFC 9113 §8.3.1), a name that is none in
/// HTTP/1.1, white space around a value (§8.2.1).
fn check_http2(head: &Parts) -> Result<(), ProxyError> {
    if head.uri.scheme().is_some_and(|scheme| scheme.as_str().is_empty()) {
        return Err(ProxyError::Malformed("the :scheme is empty"));
    }
    if head.uri.path_and_query().is_none_or(|target| target.as_str().starts_with('?')) {
        return Err(ProxyError::Malformed("the :path must begin with a slash"));
    }
    // RFC 3986 §2: beyond ASCII all is encoded, in the query too, which goes on as it is.
    if head.uri.path_and_query().is_some_and(|target| !target.as_str().bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(ProxyError::Malformed("the :path has bytes that no target has"));
    }
    // The one byte that the http crate takes in a name and no token has (RFC 9110 §5.6.2).
    if head.headers.keys().any(|name| name.as_str().contains('"')) {
        return Err(ProxyError::Malformed("a field's name is malformed"));
    }
    let white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if head.headers.values().any(|value| white(value.as_bytes().first()) || white(value.as_bytes().last())) {
        return Err(ProxyError::Malformed("a field's value must not begin or end with white space"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_well_formed_or_not() {
        for good in ["example.org", "127.0.0.1:80", "[::1]", "[::1]:8080", "a_b", "example.org."] {
            assert!(well_formed(good.as_bytes()), "{good}");
        }
        for bad in ["", ":80", "a:", "a:b", "a:123456", "a b", "a/b", "a@b", "[::1", "::1", "a,b", "[x]", "ä"] {
            assert!(!well_formed(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn the_name_of_a_host_is_lower_case_without_port_or_last_dot() {
        let check = |host: &'static str, expected: &str| assert_eq!(host_name(&HeaderValue::from_static(host)), expected);
        check("Example.ORG:8080", "example.org");
        check("example.org.", "example.org");
        check("[::1]:80", "[::1]");
        check("[::1]", "[::1]");
        check("", "");
    }
}
