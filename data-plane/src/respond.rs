//! What furt itself answers to callers: one enum of reasons, one table to status and code, one
//! envelope (DESIGN §9).

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use furt_proto::{envelope, path::PathFault};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, DATE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::auth::Denied;

/// `X-Gateway`.
pub const X_GATEWAY: HeaderName = HeaderName::from_static("x-gateway");
/// `X-Request-ID`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `X-Furt-Reason`.
pub const X_FURT_REASON: HeaderName = HeaderName::from_static("x-furt-reason");
/// The value of `X-Gateway`.
pub const FURT: HeaderValue = HeaderValue::from_static("furt");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why furt answered instead of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyError {
    /// The path is not one that can be routed.
    Path(PathFault),
    /// The request is malformed in some other way; the words say how.
    Malformed(&'static str),
    /// The request target is too long.
    UriTooLong,
    /// The head is too large.
    HeadersTooLarge,
    /// The client was too slow.
    RequestTimeout,
    /// No route matches.
    NotFound,
    /// The path is known under these methods only.
    MethodNotAllowed(String),
    /// The caller's key does not let the request through.
    Denied(Denied),
    /// The caller, or its address, asks too often.
    RateLimited(Duration),
    /// No instance can serve the route now.
    Unavailable(Duration),
    /// The body is larger than `max_body_size`.
    PayloadTooLarge,
    /// The service could not be asked, or its answer makes no sense; the words say which.
    BadGateway(&'static str),
    /// The service did not answer in time.
    GatewayTimeout,
    /// The request has passed here before.
    Loop,
}

impl ProxyError {
    /// The one table: status, code, reason for machines, sentence for people.
    #[rustfmt::skip]
    fn row(&self) -> (StatusCode, &'static str, &'static str, Cow<'static, str>) {
        use StatusCode as S;
        match self {
            Self::Path(fault) => (S::BAD_REQUEST, "MALFORMED_REQUEST", "path", fault.to_string().into()),
            Self::Malformed(why) => (S::BAD_REQUEST, "MALFORMED_REQUEST", "malformed", (*why).into()),
            Self::UriTooLong => (S::URI_TOO_LONG, "URI_TOO_LONG", "uri-too-long", "the request target is too long".into()),
            Self::HeadersTooLarge => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", "headers-too-large", "the request's header fields are too many or too large".into()),
            Self::RequestTimeout => (S::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", "client-timeout", "the request did not arrive in time".into()),
            Self::NotFound => (S::NOT_FOUND, "NOT_FOUND", "no-route", "no route matches this path".into()),
            Self::MethodNotAllowed(allow) => (S::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "method", format!("this path knows only {allow}").into()),
            Self::Denied(Denied::NoKey) => (S::UNAUTHORIZED, "UNAUTHORIZED", "no-key", "an API key is needed in the header X-API-Key".into()),
            Self::Denied(Denied::UnknownKey) => (S::UNAUTHORIZED, "UNAUTHORIZED", "unknown-key", "the API key is not valid".into()),
            Self::Denied(Denied::Expired) => (S::UNAUTHORIZED, "UNAUTHORIZED", "expired-key", "the API key has expired".into()),
            Self::Denied(Denied::IpNotAllowed) => (S::FORBIDDEN, "IP_NOT_ALLOWED", "ip-not-allowed", "the API key may not be used from this address".into()),
            Self::Denied(Denied::Forbidden) => (S::FORBIDDEN, "FORBIDDEN", "permission", "the API key lacks the permission for this route".into()),
            Self::Denied(Denied::Unusable) => (S::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", "route-not-understood", "this data plane does not understand the route; update it".into()),
            Self::RateLimited(_) => (S::TOO_MANY_REQUESTS, "RATE_LIMIT_EXCEEDED", "rate-limit", "too many requests; wait as Retry-After says".into()),
            Self::Unavailable(_) => (S::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", "no-instance", "no instance of the service can serve this route now".into()),
            Self::PayloadTooLarge => (S::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", "body-too-large", "the request body is too large".into()),
            Self::BadGateway(why) => (S::BAD_GATEWAY, "BAD_GATEWAY", "upstream", (*why).into()),
            Self::GatewayTimeout => (S::GATEWAY_TIMEOUT, "GATEWAY_TIMEOUT", "upstream-timeout", "the service did not answer in time".into()),
            Self::Loop => (S::LOOP_DETECTED, "LOOP_DETECTED", "loop", "the request has passed this gateway before".into()),
        }
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.row().0
    }

    /// The code in the envelope.
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    /// `X-Furt-Reason`, and the reason in the access log.
    pub fn reason(&self) -> &'static str {
        self.row().2
    }

    /// The head and body of the answer.
    pub fn answer(&self, request_id: &str) -> (StatusCode, HeaderMap, Bytes) {
        let (status, code, reason, message) = self.row();
        let mut headers = json_headers();
        headers.insert(X_FURT_REASON, HeaderValue::from_static(reason));
        match self {
            Self::MethodNotAllowed(allow) => {
                if let Ok(allow) = HeaderValue::from_str(allow) {
                    headers.insert(ALLOW, allow);
                }
            }
            Self::Denied(Denied::NoKey | Denied::UnknownKey | Denied::Expired) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey header=\"X-API-Key\""));
            }
            Self::RateLimited(wait) | Self::Unavailable(wait) => {
                headers.insert(RETRY_AFTER, whole_seconds(*wait).into());
            }
            _ => {}
        }
        (status, headers, envelope::error(code, &message, request_id, &[]).into())
    }
}

/// Seconds, rounded up, at least 1: what Retry-After can say.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).clamp(1, 86_400).try_into().unwrap_or(1)
}

/// The head of everything furt says itself in JSON.
pub fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(date) = HeaderValue::from_str(&furt_proto::time::http_date(furt_proto::time::unix_ms_now())) {
        headers.insert(DATE, date);
    }
    headers
}

/// A whole HTTP/1.1 answer as bytes, for where no request was understood; the connection ends with it.
pub fn raw(status: StatusCode) -> Bytes {
    let error = match status {
        StatusCode::REQUEST_TIMEOUT => ProxyError::RequestTimeout,
        StatusCode::URI_TOO_LONG => ProxyError::UriTooLong,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ProxyError::HeadersTooLarge,
        _ => ProxyError::Malformed("the request is not well-formed HTTP/1.1"),
    };
    let request_id = ulid::Ulid::generate().to_string();
    let (status, headers, body) = error.answer(&request_id);
    let mut out = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in &headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let tail = format!("x-gateway: furt\r\nx-request-id: {request_id}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    out.extend_from_slice(tail.as_bytes());
    out.extend_from_slice(&body);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_envelope_its_reason_and_what_its_status_asks_for() {
        let (status, headers, body) = ProxyError::RateLimited(Duration::from_millis(1_200)).answer("01J");
        assert_eq!(
            (status.as_u16(), &headers[RETRY_AFTER], &headers[X_FURT_REASON]),
            (429, &HeaderValue::from(2), &HeaderValue::from_static("rate-limit"))
        );
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "RATE_LIMIT_EXCEEDED");
        assert_eq!((body["success"].as_bool(), body["request_id"].as_str()), (Some(false), Some("01J")));
        let (_, headers, _) = ProxyError::MethodNotAllowed("GET, HEAD".into()).answer("01J");
        assert_eq!(headers[ALLOW], "GET, HEAD");
    }

    #[test]
    fn a_raw_answer_is_whole() {
        let text = String::from_utf8(raw(StatusCode::REQUEST_TIMEOUT).to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(body.contains("REQUEST_TIMEOUT"));
    }
}
