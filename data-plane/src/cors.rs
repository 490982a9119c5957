//! CORS (Fetch standard §3.3): preflights answered by furt, and the fields that let a browser read
//! an answer, furt's own errors included.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

/// What a browser may read besides the fields that it always may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "X-Request-ID, X-Gateway, X-Furt-Reason, Server-Timing, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
);
const SET_BY_FURT: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// The request's origin, when it is one of the allowed.
pub fn allowed_origin<'a>(origins: &[String], headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
    if origins.is_empty() {
        return None;
    }
    let origin = headers.get(ORIGIN)?;
    origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes()).then_some(origin)
}

/// Whether a request is a preflight: a browser asks before it sends the real one.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a preflight is answered beside the origin: the method and fields that it asked for. Whether
/// the caller may use them is decided when the real request comes.
pub fn preflight_answer(request: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    if let Some(method) = request.get(ACCESS_CONTROL_REQUEST_METHOD) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    }
    if let Some(fields) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, fields.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    headers
}

/// Lets the browser of an allowed origin read the answer, in the place of what the service says.
pub fn allow(answer: &mut HeaderMap, origin: HeaderValue, preflight: bool) {
    for name in &SET_BY_FURT {
        if !preflight {
            answer.remove(name);
        }
    }
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    answer.append(VARY, HeaderValue::from_static("Origin"));
}

/// An answer to the preflight of an origin that is not allowed: it says nothing that would let the
/// browser go on.
pub fn refuse(answer: &mut HeaderMap) {
    for name in &SET_BY_FURT {
        answer.remove(name);
    }
    answer.append(VARY, HeaderValue::from_static("Origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn an_origin_is_allowed_exactly_or_all_are() {
        let check = |origins: &[&str], origin: &'static str, expected: bool| {
            let origins: Vec<String> = origins.iter().map(|&origin| origin.into()).collect();
            assert_eq!(allowed_origin(&origins, &headers(&[("origin", origin)])).is_some(), expected, "{origins:?} {origin}");
        };
        check(&["https://example.org"], "https://example.org", true);
        check(&["https://example.org"], "https://example.org.evil", false);
        check(&["https://example.org"], "http://example.org", false);
        check(&["*"], "null", true);
        check(&[], "https://example.org", false);
    }

    #[test]
    fn the_service_s_own_words_are_replaced() {
        let mut answer = headers(&[("access-control-allow-origin", "*"), ("access-control-allow-credentials", "true"), ("vary", "Accept")]);
        allow(&mut answer, HeaderValue::from_static("https://example.org"), false);
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], "https://example.org");
        assert!(!answer.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
        assert_eq!(answer.get_all(VARY).iter().collect::<Vec<_>>(), ["Accept", "Origin"]);
    }
}
