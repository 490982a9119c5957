//! A request's way through furt, top to bottom (DESIGN §9):
//! canonical path → match → key → permission → rate → instance → forward → answer.

use std::{
    borrow::Cow,
    convert::Infallible,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::{
    envelope,
    path::{PathFault, canonical},
    rate::Verdict,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, VARY},
    uri::PathAndQuery,
};
use hyper::body::{Body, Incoming};
use serde_json::json;
use tokio::time::Instant;
use tracing::debug;

use crate::{
    auth::{self, Caller, Denied, Presented},
    balance,
    body::{AnswerBody, Progress, RequestBody, Upload},
    client_io::Phase,
    cors,
    deadline::Deadline,
    exchange::Exchange,
    headers::{self, Forwarding, X_API_KEY},
    metrics::Counters,
    respond::{self, ProxyError},
    table::{Lookup, Route},
    upstream::{self, Lease},
    view::{Instance, Service, View},
    worker::{Connection, tell_internal},
};

/// Longest request target, in bytes.
const MAX_TARGET: usize = 8 * 1024;
/// For a connection to a service to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Retry-After of a route whose instances are not pinged any more.
const PARKED_RETRY: Duration = Duration::from_secs(120);
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What is decided about a request before it is sent on, and what every answer to it needs.
struct Decision {
    exchange: Exchange,
    request_id: HeaderValue,
    /// The rate limit of the caller's key, as far as it is known.
    limit: Option<(u32, Verdict)>,
    /// The origin of a browser that may read the answer.
    origin: Option<HeaderValue>,
}

/// Serves one request of a client.
///
/// # Errors
/// None: whatever goes wrong is an answer.
pub async fn serve(connection: Rc<Connection>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
    let worker = &connection.worker;
    let started = worker.coarse.exact();
    let phase = if request.body().is_end_stream() { Phase::Waiting } else { Phase::Upload };
    connection.watch.begin(phase, started);
    let view = worker.view();
    let client = if connection.trusted {
        headers::client_address(request.headers(), connection.peer, &worker.shared.config.trusted_proxies)
    } else {
        connection.peer
    };
    let request_id = match headers::trusted_request_id(request.headers()).filter(|_| connection.trusted) {
        Some(own) => own.clone(),
        None => new_request_id(worker.coarse.unix_ms(started)),
    };
    let exchange = Exchange::new(&connection, &view, &request, client, started, request_id.clone());
    let origin = cors::allowed_origin(&view.cors_origins, request.headers()).cloned();
    let mut decision = Decision { exchange, request_id, limit: None, origin };
    let version = request.version();
    let answer = handle(&connection, &view, &mut decision, request).await;
    Ok(finish(&connection, decision, version, answer))
}

/// A ULID: sortable by time, and no two alike.
fn new_request_id(unix_ms: i64) -> HeaderValue {
    let random = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    let id = ulid::Ulid::from_parts(u64::try_from(unix_ms).unwrap_or(0), random);
    let mut text = [0; ulid::ULID_LEN];
    HeaderValue::from_str(id.array_to_str(&mut text)).unwrap_or(HeaderValue::from_static("0"))
}

/// The head of a request, its target apart from what is used up on the way.
struct Head<'a> {
    method: Method,
    uri: &'a Uri,
    version: Version,
    fields: HeaderMap,
}

/// An answer before it gets what all answers carry.
enum Answer {
    /// From furt itself.
    Own { status: StatusCode, headers: HeaderMap, body: Bytes, preflight: bool },
    /// From the service, over a connection, after so many nanoseconds.
    Service { head: http::response::Parts, body: Incoming, lease: Lease, upstream_ns: u64 },
}

async fn handle(
    connection: &Rc<Connection>,
    view: &View,
    decision: &mut Decision,
    request: Request<Incoming>,
) -> Result<Answer, ProxyError> {
    let (head, body) = request.into_parts();
    let head = Head { method: head.method, uri: &head.uri, version: head.version, fields: head.headers };
    decision.exchange.note_path(head.uri.path());
    if connection.watch.saw_fragment() {
        return Err(ProxyError::Path(PathFault::Fragment));
    }
    if head.uri.path_and_query().is_some_and(|target| target.as_str().len() > MAX_TARGET) {
        return Err(ProxyError::UriTooLong);
    }
    let host = checked_host(&head)?;
    check_framing(&head)?;
    let path = match head.uri.path() {
        // An absolute target without a path is its root (RFC 9112 §3.2.1).
        "" => Cow::Borrowed("/"),
        path => canonical(path).map_err(ProxyError::Path)?,
    };
    decision.exchange.note_path(&path);
    let name = host_name(&host);

    if cors::is_preflight(&head.method, &head.fields) && !view.cors_origins.is_empty() && view.table.knows(&name, &path) {
        let mut headers = if decision.origin.is_some() { cors::preflight_answer(&head.fields) } else { HeaderMap::new() };
        if decision.origin.is_none() {
            headers.insert(VARY, HeaderValue::from_static("Origin"));
        }
        return Ok(Answer::Own { status: StatusCode::NO_CONTENT, headers, body: Bytes::new(), preflight: true });
    }
    if let Some(answer) = reserved(connection, view, decision, &head, &path)? {
        return Ok(answer);
    }
    let route = match view.table.find(&name, head.method.as_str(), &path) {
        Lookup::Found(route) => route,
        Lookup::MethodNotAllowed(methods) => return Err(ProxyError::MethodNotAllowed(methods.join(", "))),
        Lookup::NotFound => return Err(ProxyError::NotFound),
    };
    decision.exchange.note_route(route);
    if connection.worker.shared.via.is_in(&head.fields) {
        return Err(ProxyError::Loop);
    }
    let caller = authorize(connection, view, decision, &route.access, &head.fields)?;
    check_body(connection, &head.fields)?;
    let service = view.service(route.slot).ok_or(ProxyError::NotFound)?;
    Attempt { connection, view, route, service, caller, host: &host, path: &path }.send(decision, head, body).await
}

/// The `Host` of the request: one, well-formed, or the authority of an absolute or HTTP/2 target,
/// which stands above it (RFC 9112 §3.2.2, RFC 9113 §8.3.1).
fn checked_host(head: &Head<'_>) -> Result<HeaderValue, ProxyError> {
    let mut hosts = head.fields.get_all(HOST).iter();
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
    if well_formed(host.as_bytes()) { Ok(host) } else { Err(ProxyError::Malformed("the Host is malformed")) }
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
fn host_name(host: &HeaderValue) -> Cow<'_, str> {
    let text = host.to_str().unwrap_or_default();
    let name = match text.rfind(':') {
        Some(at) if !text.ends_with(']') => text.get(..at).unwrap_or_default(),
        _ => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}

/// What hyper lets pass and a service behind furt could read in two ways.
fn check_framing(head: &Head<'_>) -> Result<(), ProxyError> {
    if head.method == Method::CONNECT {
        return Err(ProxyError::Malformed("CONNECT is not served here"));
    }
    let mut codings = head.fields.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(ProxyError::Malformed("the only Transfer-Encoding is one \"chunked\""));
        }
        if head.fields.contains_key(CONTENT_LENGTH) || head.version != Version::HTTP_11 {
            return Err(ProxyError::Malformed("Transfer-Encoding does not go with this request"));
        }
    }
    let mut lengths = head.fields.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(ProxyError::Malformed("the Content-Length is malformed"));
    }
    let mut keys = head.fields.get_all(X_API_KEY).iter();
    if keys.next().is_some() && keys.next().is_some() {
        return Err(ProxyError::Malformed("a request must have one X-API-Key at the most"));
    }
    Ok(())
}

/// A length that is too long is refused before a byte is read.
fn check_body(connection: &Connection, headers: &HeaderMap) -> Result<(), ProxyError> {
    let Some(most) = connection.worker.shared.config.max_body_size else { return Ok(()) };
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match length.map(str::parse::<u64>) {
        Some(Ok(length)) if length <= most => Ok(()),
        None => Ok(()),
        Some(_) => Err(ProxyError::PayloadTooLarge),
    }
}

/// What furt serves itself on the public listener (DESIGN §2). `None`: the path belongs to routes.
fn reserved(
    connection: &Connection,
    view: &View,
    decision: &mut Decision,
    head: &Head<'_>,
    path: &str,
) -> Result<Option<Answer>, ProxyError> {
    let first = path.split('/').nth(1).unwrap_or_default();
    if !matches!(first, "health" | "auth" | "internal") {
        return Ok(None);
    }
    let shared = &connection.worker.shared;
    if first == "internal" {
        tell_internal(shared, path);
        return Err(ProxyError::NotFound);
    }
    if !matches!(path, "/health" | "/health/live" | "/health/ready" | "/auth/status") {
        return Err(ProxyError::NotFound);
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        return Err(ProxyError::MethodNotAllowed("GET, HEAD".into()));
    }
    if path == "/auth/status" {
        let access = crate::table::Access::AnyKey;
        let caller = authorize(connection, view, decision, &access, &head.fields)?.ok_or(ProxyError::Denied(Denied::NoKey))?;
        let body = envelope::success("", decision.request_id.to_str().unwrap_or_default(), auth_status(&caller));
        return Ok(Some(Answer::Own { status: StatusCode::OK, headers: respond::json_headers(), body: body.into(), preflight: false }));
    }
    let (status, body) = match path {
        "/health" => (StatusCode::OK, shared.health.body(view, shared.sees_all(connection.peer, &head.fields), Instant::now())),
        "/health/live" => (StatusCode::OK, Bytes::from_static(b"{\"status\":\"live\"}")),
        _ if shared.is_ready() => (StatusCode::OK, Bytes::from_static(b"{\"status\":\"ready\"}")),
        _ => (StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"{\"status\":\"not ready\"}")),
    };
    Ok(Some(Answer::Own { status, headers: respond::json_headers(), body, preflight: false }))
}

fn auth_status(caller: &Caller) -> serde_json::Value {
    let permissions: Vec<String> = caller.permissions.iter().map(ToString::to_string).collect();
    let rate_limit = caller.limiter.as_ref().map(|limiter| limiter.rate().to_string());
    json!({ "name": &*caller.name, "permissions": permissions, "rate_limit": rate_limit })
}

/// Key, permission and rate. `None`: a public route without a valid key.
fn authorize(
    connection: &Connection,
    view: &View,
    decision: &mut Decision,
    access: &crate::table::Access,
    fields: &HeaderMap,
) -> Result<Option<Arc<Caller>>, ProxyError> {
    let worker = &connection.worker;
    let now = decision.exchange.started();
    let client = decision.exchange.client();
    let presented = fields.get(X_API_KEY).map_or(Presented::Nothing, |key| Presented::Secret(key.as_bytes()));
    let admitted = auth::admit(access, &view.keys, presented, Some(client), worker.coarse.unix_ms(now).div_euclid(1000));
    let caller = match admitted {
        Ok(caller) => caller,
        Err(denied) => {
            // A caller that is known sees its limit on this answer too.
            if let (Denied::Forbidden, Presented::Secret(secret)) = (&denied, presented)
                && let Some(caller) = view.keys.identify(secret)
            {
                decision.exchange.note_caller(&caller.name);
                decision.limit = caller.limiter.as_ref().map(|limiter| (limiter.rate().count(), limiter.peek(now)));
            }
            return Err(ProxyError::Denied(denied));
        }
    };
    if let Some(limits) = &worker.shared.address_limits
        && let Some(verdict) = limits.check(client, now).filter(|verdict| !verdict.allowed)
    {
        return Err(ProxyError::RateLimited(verdict.retry_after));
    }
    let Some(caller) = caller else { return Ok(None) };
    decision.exchange.note_caller(&caller.name);
    if let Some(limiter) = &caller.limiter {
        let verdict = limiter.check(now);
        decision.limit = Some((limiter.rate().count(), verdict));
        if !verdict.allowed {
            return Err(ProxyError::RateLimited(verdict.retry_after));
        }
    }
    Ok(Some(caller.clone()))
}

/// A request that may go to its service.
struct Attempt<'a> {
    connection: &'a Rc<Connection>,
    view: &'a View,
    route: &'a Route,
    service: &'a Service,
    caller: Option<Arc<Caller>>,
    host: &'a HeaderValue,
    path: &'a str,
}

impl Attempt<'_> {
    /// Sends the request to an instance and, while nothing of it can have been acted on, to another.
    async fn send(self, decision: &mut Decision, head: Head<'_>, body: Incoming) -> Result<Answer, ProxyError> {
        let worker = &self.connection.worker;
        let progress = Rc::new(Progress::default());
        let uri = head.uri;
        let mut request = self.request(decision, head, body, &progress);
        let repeatable = matches!(request.body(), RequestBody::Empty) && is_idempotent(request.method());
        let timeout = self.route.timeout.unwrap_or(worker.shared.config.upstream_timeout);
        let deadline = worker.deadlines.set(decision.exchange.started() + nanos(timeout));
        worker.retries.earn();
        let mut tried = Vec::new();
        let mut retried = false;
        loop {
            let now = worker.coarse.exact();
            let Some(instance) = balance::choose(&self.service.instances, self.route, now, &tried) else {
                return Err(if tried.is_empty() {
                    self.unavailable()
                } else {
                    ProxyError::BadGateway("the service accepts no connection")
                });
            };
            *request.uri_mut() = target(instance, self.path, uri)?;
            decision.exchange.ask(instance);
            let idle = if retried { None } else { worker.pool.take(instance.key, now, repeatable) };
            let mut lease = match idle {
                Some(lease) => lease,
                None => match self.connect(instance, &deadline).await? {
                    Some(lease) => lease,
                    None => {
                        tried.push(instance.number);
                        continue;
                    }
                },
            };
            let spare = (repeatable && lease.reused).then(|| copy(&request));
            let sent = worker.coarse.exact();
            let failed = match deadline.within(lease.sender.try_send_request(request)).await {
                Err(_) if !progress.ended.get() && self.connection.watch.phase() == Phase::Upload => {
                    return Err(ProxyError::RequestTimeout);
                }
                Err(_) => return Err(ProxyError::GatewayTimeout),
                Ok(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    return Ok(Answer::Service { head, body, lease, upstream_ns: worker.coarse.exact().saturating_sub(sent) });
                }
                Ok(Err(failed)) => failed,
            };
            if progress.too_large.get() {
                return Err(ProxyError::PayloadTooLarge);
            }
            if progress.failed.get() {
                return Err(ProxyError::Malformed("the request's body broke off or is malformed"));
            }
            let mut failed = failed;
            request = match (failed.take_message(), spare) {
                // Closed before the request was written: nothing was sent, so any method may go again.
                (Some(unsent), _) if lease.reused => unsent,
                (None, Some(spare)) if !lease.heard() && worker.retries.spend(worker.coarse.now()) => {
                    Counters::add(&worker.shared.counters.retries);
                    retried = true;
                    spare
                }
                _ => return Err(ProxyError::BadGateway("the service closed the connection or answered nonsense")),
            };
        }
    }

    /// The request as the service gets it, but for its target.
    fn request(&self, decision: &Decision, head: Head<'_>, body: Incoming, progress: &Rc<Progress>) -> Request<RequestBody> {
        let worker = &self.connection.worker;
        let fields = head.fields;
        let has_body = !body.is_end_stream();
        let with = Forwarding {
            route: self.route,
            caller: self.caller.as_ref().map(|caller| &caller.name_header),
            request_id: &decision.request_id,
            host: self.host,
            peer: &self.connection.peer_value,
            trusted: self.connection.trusted,
            version: head.version,
            via: &worker.shared.via,
            // Without a length a body would be lost on its way to HTTP/1.1.
            chunked: has_body && !fields.contains_key(CONTENT_LENGTH),
        };
        let fields = headers::forward(fields, &with);
        let limit = worker.shared.config.max_body_size;
        let mut request = Request::new(if has_body {
            RequestBody::Stream(Box::new(Upload::new(body, limit, progress.clone(), self.connection.watch.clone(), worker.coarse.clone())))
        } else {
            RequestBody::Empty
        });
        *request.method_mut() = head.method;
        *request.headers_mut() = fields;
        request
    }

    /// A new connection to an instance. `None`: it accepts none, and is set aside and reported.
    async fn connect(&self, instance: &Instance, deadline: &Deadline) -> Result<Option<Lease>, ProxyError> {
        let worker = &self.connection.worker;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, upstream::connect(worker, instance));
        let reason = match deadline.within(connecting).await.map_err(|_| ProxyError::GatewayTimeout)? {
            Ok(Ok(lease)) => {
                instance.state.connected();
                return Ok(Some(lease));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no connection within 5 s".to_owned(),
        };
        instance.state.connect_failed(worker.coarse.now());
        debug!(service = %self.service.name, instance = %instance.id, reason, "cannot connect");
        worker.shared.suspicions.report(self.service, instance, &reason);
        Ok(None)
    }

    /// 503 until the next probe may bring an instance back.
    fn unavailable(&self) -> ProxyError {
        let now = self.connection.worker.coarse.unix_ms(self.connection.worker.coarse.now());
        let wait = self.view.next_probe_unix_ms(self.service).map(|next| next.saturating_sub(now).max(0).unsigned_abs());
        ProxyError::Unavailable(wait.map_or(PARKED_RETRY, Duration::from_millis))
    }
}

/// What is sent again if the connection turns out to be closed; only ever without a body.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Idempotent methods (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// The target in origin form: the base of the instance's url, the canonical path, the query as it came.
fn target(instance: &Instance, path: &str, original: &Uri) -> Result<Uri, ProxyError> {
    let base = instance.url.base();
    if base.is_empty()
        && path == original.path()
        && let Some(same) = original.path_and_query()
    {
        return Ok(Uri::from(same.clone()));
    }
    let text = match original.query() {
        Some(query) => format!("{base}{path}?{query}"),
        None => format!("{base}{path}"),
    };
    text.parse::<PathAndQuery>().map(Uri::from).map_err(|_| ProxyError::Malformed("the request target is malformed"))
}

/// Makes the answer one of furt's: its headers, its counts, its end.
fn finish(connection: &Rc<Connection>, decision: Decision, version: Version, answer: Result<Answer, ProxyError>) -> Response<AnswerBody> {
    let worker = &connection.worker;
    let Decision { mut exchange, request_id, limit, origin } = decision;
    let now = worker.coarse.exact();
    let total = now.saturating_sub(exchange.started());
    let answer = answer.and_then(checked_answer);
    let (mut response, preflight) = match answer {
        Ok(Answer::Service { mut head, body, lease, upstream_ns }) => {
            for (name, value) in &worker.shared.config.add_headers {
                head.headers.insert(name.clone(), value.clone());
            }
            headers::finish_answer(&mut head.headers, request_id, total.saturating_sub(upstream_ns), Some(upstream_ns));
            exchange.answered(head.status, "", Some(Duration::from_nanos(upstream_ns)));
            let endless = head
                .headers
                .get(CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream") || kind.as_bytes().starts_with(b"application/grpc"));
            connection.watch.enter(if endless { Phase::Stream } else { Phase::Answer }, now);
            head.version = Version::HTTP_11;
            (Response::from_parts(head, AnswerBody::service(body, lease, exchange)), false)
        }
        own => {
            let (status, mut headers, body, reason, preflight) = match own {
                Ok(Answer::Own { status, headers, body, preflight }) => (status, headers, body, "", preflight),
                Err(error) => {
                    let (status, headers, body) = error.answer(request_id.to_str().unwrap_or_default());
                    (status, headers, body, error.reason(), false)
                }
                // Taken by the arm above.
                Ok(Answer::Service { .. }) => (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new(), Bytes::new(), "", false),
            };
            headers::finish_answer(&mut headers, request_id, total, None);
            exchange.answered(status, reason, None);
            connection.watch.enter(Phase::Answer, now);
            let mut response = Response::new(AnswerBody::own(body, Box::new(exchange)));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            (response, preflight)
        }
    };
    let headers = response.headers_mut();
    if let Some((most, verdict)) = limit {
        let reset =
            worker.coarse.unix_ms(now).div_euclid(1000) + i64::try_from(verdict.reset_after.as_millis().div_ceil(1000)).unwrap_or(0);
        headers.insert(X_RATELIMIT_LIMIT, most.into());
        headers.insert(X_RATELIMIT_REMAINING, verdict.remaining.into());
        headers.insert(X_RATELIMIT_RESET, reset.into());
    }
    if let Some(origin) = origin {
        cors::allow(headers, origin, preflight);
    }
    if worker.shared.draining.load(Ordering::Relaxed) && version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer that can be passed on.
fn checked_answer(answer: Answer) -> Result<Answer, ProxyError> {
    match answer {
        Answer::Service { head, .. } if head.status == StatusCode::SWITCHING_PROTOCOLS => {
            Err(ProxyError::BadGateway("the service switched protocols without being asked"))
        }
        Answer::Service { mut head, body, lease, upstream_ns } => {
            headers::strip_answer(&mut head.headers)?;
            Ok(Answer::Service { head, body, lease, upstream_ns })
        }
        own @ Answer::Own { .. } => Ok(own),
    }
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
