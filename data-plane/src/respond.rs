//! What furt itself answers to callers: one enum of reasons, one table to status and code, one
//! envelope (DESIGN §9).

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use furt_proto::{envelope, path::PathFault};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, DATE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::{auth::Denied, strict};

/// `X-Gateway`.
pub const X_GATEWAY: HeaderName = HeaderName::from_static("x-gateway");
/// `X-Request-ID`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `X-Furt-Reason`.
pub const X_FURT_REASON: HeaderName = HeaderName::from_static("x-furt-reason");
/// The value of `X-Gateway`.
pub const FURT: HeaderValue = HeaderValue::from_static("furt");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
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
    /// The client's address has shown too many keys that are not valid.
    GuessedTooOften(Duration),
    /// No instance can serve the route now.
    Unavailable(Duration),
    /// All instances that could serve it have as many requests under way as they may.
    Full,
    /// This machine cannot make a connection now.
    Exhausted,
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
            Self::GuessedTooOften(_) => (S::TOO_MANY_REQUESTS, "RATE_LIMIT_EXCEEDED", "failed-keys", "too many keys that are not valid came from this address; wait as Retry-After says".into()),
            Self::Unavailable(_) => (S::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", "no-instance", "no instance of the service can serve this route now".into()),
            Self::Full => (S::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", "instances-full", "every instance of the service has as many requests under way as it may".into()),
            Self::Exhausted => (S::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", "gateway-exhausted", "the gateway cannot open a connection now".into()),
            Self::PayloadTooLarge => (S::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", "body-too-large", "the request body is too large".into()),
            Self::BadGateway(why) => (S::BAD_GATEWAY, "BAD_GATEWAY", "upstream", (*why).into()),
            Self::GatewayTimeout => (S::GATEWAY_TIMEOUT, "GATEWAY_TIMEOUT", "upstream-timeout", "the service did not answer in time".into()),
            Self::Loop => (S::LOOP_DETECTED, "LOOP_DETECTED", "loop", "the request has passed this gateway before".into()),
        }
    }

    /// What hyper found no request in, by the status it would have answered.
    pub fn unparsed(status: StatusCode) -> Self {
        match status {
            StatusCode::URI_TOO_LONG => Self::UriTooLong,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Self::HeadersTooLarge,
            _ => Self::Malformed("the request is not well-formed HTTP/1.1"),
        }
    }

    /// The status of a gRPC call that is refused for it (gRPC's statuscodes.md).
    fn grpc_status(&self) -> u8 {
        match self.status() {
            StatusCode::BAD_REQUEST => 3,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => 4,
            StatusCode::NOT_FOUND => 5,
            StatusCode::FORBIDDEN => 7,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => 8,
            StatusCode::LOOP_DETECTED => 9,
            StatusCode::METHOD_NOT_ALLOWED => 12,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 14,
            StatusCode::UNAUTHORIZED => 16,
            _ => 13,
        }
    }

    /// The answer to a gRPC call: all is said in its head, and the status of HTTP is 200 (gRPC's PROTOCOL-HTTP2.md,
    /// "Trailers-Only").
    pub fn grpc_answer(&self, request_id: &str) -> (StatusCode, HeaderMap, Bytes) {
        let (_, mut headers, _) = self.answer(request_id);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, u16::from(self.grpc_status()).into());
        if let Ok(message) = HeaderValue::from_str(&grpc_message(&self.row().3)) {
            headers.insert(GRPC_MESSAGE, message);
        }
        (StatusCode::OK, headers, Bytes::new())
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
            Self::RateLimited(wait) | Self::GuessedTooOften(wait) | Self::Unavailable(wait) => {
                headers.insert(RETRY_AFTER, whole_seconds(*wait).into());
            }
            Self::Full | Self::Exhausted => {
                headers.insert(RETRY_AFTER, 1.into());
            }
            _ => {}
        }
        (status, headers, envelope::error(code, &message, request_id, &[]).into())
    }
}

/// Percent-encoded as gRPC has it: visible ASCII and blanks stay, but for the `%`.
fn grpc_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..b' ' | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
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
pub fn raw(error: &ProxyError) -> Bytes {
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

impl From<strict::Fault> for ProxyError {
    fn from(fault: strict::Fault) -> Self {
        match fault {
            strict::Fault::Malformed(why) => Self::Malformed(why),
            strict::Fault::Fragment => Self::Path(PathFault::Fragment),
            strict::Fault::UriTooLong => Self::UriTooLong,
            strict::Fault::HeadersTooLarge => Self::HeadersTooLarge,
        }
    }
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
    fn a_grpc_call_is_refused_in_its_own_words() {
        let (status, headers, body) = ProxyError::Denied(Denied::NoKey).grpc_answer("01J");
        assert_eq!((status.as_u16(), &headers[GRPC_STATUS], body.len()), (200, &HeaderValue::from(16), 0));
        assert_eq!(headers[GRPC_MESSAGE], "an API key is needed in the header X-API-Key");
        assert_eq!(
            (&headers[CONTENT_TYPE], &headers[X_FURT_REASON]),
            (&HeaderValue::from_static("application/grpc"), &HeaderValue::from_static("no-key"))
        );
        assert_eq!(grpc_message("100 % ä\n"), "100 %25 %C3%A4%0A");
    }

    #[test]
    fn a_raw_answer_is_whole() {
        let text = String::from_utf8(raw(&ProxyError::RequestTimeout).to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(body.contains("REQUEST_TIMEOUT"));
    }
}
