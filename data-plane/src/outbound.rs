//! A request as one connection to an instance carries it: its target, and the fields that belong to that connection
//! alone (RFC 9110 §7.6.1; RFC 9113 §8.2.2, §8.3.1).
//!
//! Here too: what a client asked to switch to, and whether the service may. Not here: fields that go end to end.

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::Incoming;

use crate::{
    body::RequestBody,
    respond::ProxyError,
    view::{Instance, Protocol},
};

/// What does not depend on the instance.
pub struct Outbound<'a> {
    /// `Host` as the client sent it; empty: HTTP/1.0 without one.
    pub host: &'a HeaderValue,
    /// The canonical path.
    pub path: &'a str,
    /// The target as the client sent it, for its query.
    pub target: &'a Uri,
    /// What the client asked to switch to, if anything.
    pub upgrade: Option<&'a HeaderValue>,
    /// Whether there is a body.
    pub has_body: bool,
}

impl Outbound<'_> {
    /// Makes `request` one for `instance`, also when it was one for another before.
    ///
    /// # Errors
    /// When its parts make no target.
    pub fn fit(&self, request: &mut Request<RequestBody>, instance: &Instance, again: bool) -> Result<(), ProxyError> {
        let host = if self.host.is_empty() { &instance.authority } else { self.host };
        let target = self.origin_form(instance)?;
        let headers = request.headers_mut();
        if again {
            [CONNECTION, UPGRADE, TRANSFER_ENCODING].iter().for_each(|name| drop(headers.remove(name)));
        }
        match instance.protocol {
            Protocol::H2 => {
                // One place for the name; the other would be a second opinion (RFC 9113 §8.3.1).
                headers.remove(HOST);
                *request.uri_mut() = absolute(target, instance, host)?;
            }
            Protocol::Http1 => {
                if again || self.host.is_empty() {
                    headers.insert(HOST, host.clone());
                }
                self.fields_of_http1(headers, instance);
                *request.uri_mut() = Uri::from(target);
            }
        }
        Ok(())
    }

    fn fields_of_http1(&self, headers: &mut HeaderMap, instance: &Instance) {
        if let Some(upgrade) = self.upgrade {
            headers.insert(UPGRADE, upgrade.clone());
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        } else if !instance.keep_alive {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if headers.contains_key(TE) {
            headers.append(CONNECTION, HeaderValue::from_static("te"));
        }
        // Without a length a body would be lost on its way.
        if self.has_body && !headers.contains_key(CONTENT_LENGTH) {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    /// The base of the instance's url, the canonical path, the query as it came.
    fn origin_form(&self, instance: &Instance) -> Result<PathAndQuery, ProxyError> {
        let base = instance.url.base();
        if base.is_empty()
            && self.path == self.target.path()
            && let Some(same) = self.target.path_and_query()
        {
            return Ok(same.clone());
        }
        let text = match self.target.query() {
            Some(query) => format!("{base}{}?{query}", self.path),
            None => format!("{base}{}", self.path),
        };
        text.parse().map_err(|_| ProxyError::Malformed("the request target is malformed"))
    }
}

fn absolute(target: PathAndQuery, instance: &Instance, host: &HeaderValue) -> Result<Uri, ProxyError> {
    let malformed = || ProxyError::Malformed("the Host is malformed");
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if instance.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| malformed())?);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|_| malformed())
}

/// What a client asks to switch to: `Upgrade` in HTTP/1.1, named in `Connection`, without HTTP/2, which is spoken by
/// prior knowledge only (RFC 9110 §7.8, RFC 9113 §3.1). `None`: it asks for nothing that could be had.
pub fn asked_upgrade(head: &Parts) -> Option<HeaderValue> {
    let mut fields = head.headers.get_all(UPGRADE).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let named = head.headers.get_all(CONNECTION).iter().any(|value| list(value).any(|token| token.eq_ignore_ascii_case("upgrade")));
    if head.version != Version::HTTP_11 || !named {
        return None;
    }
    let wanted: Vec<&str> = list(field).filter(|protocol| is_protocol(protocol) && !is_http(protocol)).collect();
    if wanted.is_empty() { None } else { HeaderValue::from_str(&wanted.join(", ")).ok() }
}

/// What the service switches to, which has to be something it was asked for.
///
/// # Errors
/// When it was not.
pub fn switched_to(asked: Option<&HeaderValue>, response: &Response<Incoming>) -> Result<HeaderValue, ProxyError> {
    let unasked = ProxyError::BadGateway("the service switched protocols without being asked");
    let (Some(asked), Some(answer)) = (asked, response.headers().get(UPGRADE)) else { return Err(unasked) };
    let mut chosen = list(answer).peekable();
    let once = response.headers().get_all(UPGRADE).iter().nth(1).is_none() && chosen.peek().is_some();
    let all = chosen.all(|protocol| list(asked).any(|asked| asked.eq_ignore_ascii_case(protocol)));
    if once && all { Ok(answer.clone()) } else { Err(unasked) }
}

fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

/// `token` or `token/token`.
fn is_protocol(text: &str) -> bool {
    let token =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    text.split('/').count() <= 2 && text.split('/').all(token)
}

fn is_http(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default();
    ["h2", "h2c", "h3", "http"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: Version, fields: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder().version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        asked_upgrade(&head).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_asked_for_in_one_way_only() {
        let check = |fields: &[(&str, &str)], expected: Option<&str>| assert_eq!(asked(Version::HTTP_11, fields).as_deref(), expected);
        let named = ("connection", "keep-alive, Upgrade");
        check(&[named, ("upgrade", "websocket")], Some("websocket"));
        check(&[named, ("upgrade", "a/1, websocket")], Some("a/1, websocket"));
        check(&[named, ("upgrade", "h2c, websocket")], Some("websocket"));
        check(&[named, ("upgrade", "h2c")], None);
        check(&[named, ("upgrade", "HTTP/3")], None);
        check(&[named, ("upgrade", "a b")], None);
        check(&[named, ("upgrade", "a/b/c")], None);
        check(&[named], None);
        check(&[("upgrade", "websocket")], None);
        check(&[("connection", "close"), ("upgrade", "websocket")], None);
        check(&[named, ("upgrade", "websocket"), ("upgrade", "websocket")], None);
        assert_eq!(asked(Version::HTTP_10, &[named, ("upgrade", "websocket")]), None);
    }
}
