//! A request's way through furt, top to bottom (DESIGN §9):
//! canonical path → match → key → permission → rate → instance → forward → answer.

use std::{borrow::Cow, convert::Infallible, rc::Rc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use furt_proto::{envelope, path::canonical, rate::Verdict};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE},
    request::Parts,
};
use hyper::body::{Body, Incoming};
use serde_json::json;

use crate::{
    auth::{self, Caller, Denied, Presented},
    body::AnswerBody,
    clock::nanos,
    connection::Connection,
    cors,
    exchange::Exchange,
    forward::{Answered, Forward, is_grpc},
    framing::{check_count, check_framing, check_length, checked_host, host_name},
    headers::{self, X_API_KEY},
    health,
    local::{Local, local},
    outbound,
    respond::{self, ProxyError},
    table::{Access, Lookup},
    tunnel::Tunnel,
    view::View,
    watch::{Phase, Watch},
    worker::tell_internal,
};

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What is decided about a request before it is sent on, and what every answer to it needs.
struct Decision {
    exchange: Box<Exchange>,
    request_id: HeaderValue,
    /// Whether its peer is one of `trusted_proxies`.
    trusted: bool,
    /// The rate limit of the caller's key, as far as it is known.
    limit: Option<(u32, Verdict)>,
    /// The origin of a browser that may read the answer.
    origin: Option<HeaderValue>,
    /// Whether it is a gRPC call, which hears of refusals in its own words.
    grpc: bool,
}

/// An answer before it gets what all answers carry.
enum Answer {
    /// From furt itself.
    Own { status: StatusCode, headers: HeaderMap, body: Bytes },
    /// From furt to a browser's question.
    Preflight { headers: HeaderMap },
    /// From the service.
    Service(Answered),
    /// From the service, which switches to this protocol.
    Switch(Answered, HeaderValue),
}

/// Serves one request of a client.
///
/// # Errors
/// None: whatever goes wrong is an answer.
pub async fn serve(connection: Rc<Connection>, watch: Rc<Watch>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
    let worker = &connection.worker;
    let started = worker.coarse.exact();
    let (head, body) = request.into_parts();
    let view = worker.view();
    let grpc = is_grpc(&head.headers);
    let phase = if body.is_end_stream() || grpc { Phase::Waiting } else { Phase::Upload };
    watch.begin(phase, started, nanos(view.config.body_idle_timeout));
    let mut exchange = Box::new(Exchange::new(&connection, watch, &view, head.method.clone(), connection.peer, started));
    let mut request_id = None;
    let trusted = connection.trusted_by(&view);
    if trusted {
        exchange.note_client(headers::client_address(&head.headers, connection.peer, &view.config.trusted_proxies));
        request_id = headers::trusted_request_id(&head.headers).cloned();
    }
    let request_id = request_id.unwrap_or_else(|| new_request_id(worker.coarse.unix_ms(started)));
    exchange.note_id(request_id.clone());
    let origin = cors::allowed_origin(&view.cors_origins, &head.headers).cloned();
    let mut decision = Decision { exchange, request_id, trusted, limit: None, origin, grpc };
    let answer = handle(&connection, &view, &mut decision, &head, body).await;
    let may_be_known = match &answer {
        Ok(answer) => !matches!(answer, Answer::Service(_) | Answer::Switch(..)),
        Err(ProxyError::Denied(denied)) => matches!(denied, Denied::Forbidden | Denied::Unusable),
        Err(_) => true,
    };
    if may_be_known && decision.limit.is_none() {
        recognise(&connection, &view, &mut decision, &head.headers);
    }
    Ok(finish(&connection, &view, decision, head.version, answer))
}

/// A ULID: sortable by time, and no two alike.
fn new_request_id(unix_ms: i64) -> HeaderValue {
    let random = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    let id = ulid::Ulid::from_parts(u64::try_from(unix_ms).unwrap_or(0), random);
    let mut text = [0; ulid::ULID_LEN];
    HeaderValue::from_str(id.array_to_str(&mut text)).unwrap_or(HeaderValue::from_static("0"))
}

async fn handle(
    connection: &Rc<Connection>,
    view: &View,
    decision: &mut Decision,
    head: &Parts,
    body: Incoming,
) -> Result<Answer, ProxyError> {
    decision.exchange.note_path(head.uri.path());
    if let Some(target) = head.uri.path_and_query() {
        check_length(target.as_str(), view.config.max_uri_length)?;
    }
    check_count(&head.headers, view.config.max_headers)?;
    let host = checked_host(head)?;
    check_framing(head)?;
    let path = match head.uri.path() {
        // An absolute target without a path is its root (RFC 9112 §3.2.1).
        "" => Cow::Borrowed("/"),
        path => canonical(path).map_err(ProxyError::Path)?,
    };
    if path != head.uri.path() {
        decision.exchange.note_path(&path);
    }
    let name = host_name(&host);

    if !view.cors_origins.is_empty() && cors::is_preflight(&head.method, &head.headers) && is_known(view, &name, &path) {
        return Ok(Answer::Preflight { headers: cors::preflight_answer(&head.headers) });
    }
    if let Some(answer) = reserved(connection, view, decision, head, &path)? {
        return Ok(answer);
    }
    let route = match view.table.find(&name, head.method.as_str(), &path) {
        Lookup::Found(route) => route,
        Lookup::MethodNotAllowed(methods) => return Err(ProxyError::MethodNotAllowed(methods.join(", "))),
        // Before the first snapshot nothing can be said of any path.
        Lookup::NotFound if !view.is_ready() => return Err(ProxyError::Unavailable(Duration::from_secs(1))),
        Lookup::NotFound => return Err(ProxyError::NotFound),
    };
    decision.exchange.note_route(route);
    if connection.worker.shared.via.is_in(&head.headers) {
        return Err(ProxyError::Loop);
    }
    let caller = authorize(connection, view, decision, &route.access, &head.headers)?;
    check_body(view, &head.headers)?;
    let service = view.service(route.slot).ok_or(ProxyError::NotFound)?;
    let Decision { request_id, trusted, exchange, .. } = decision;
    let forward = Forward { connection, trusted: *trusted, view, route, service, caller, request_id, head, host: &host, path: &path };
    let mut answered = forward.send(body, exchange).await?;
    if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = outbound::switched_to(answered.asked.as_ref(), &answered.response)?;
        headers::strip_answer(answered.response.headers_mut())?;
        return Ok(Answer::Switch(answered, protocol));
    }
    headers::strip_answer(answered.response.headers_mut())?;
    Ok(Answer::Service(answered))
}

/// A length that is too long is refused before a byte is read.
fn check_body(view: &View, headers: &HeaderMap) -> Result<(), ProxyError> {
    let Some(most) = view.config.max_body_size else { return Ok(()) };
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match length.map(str::parse::<u64>) {
        Some(Ok(length)) if length <= most => Ok(()),
        None => Ok(()),
        Some(_) => Err(ProxyError::PayloadTooLarge),
    }
}

/// Whether a browser may ask about a path: some route has it, or furt serves it itself.
fn is_known(view: &View, host: &str, path: &str) -> bool {
    match local(path) {
        Some(Local::Internal | Local::Reserved) => false,
        Some(_) => true,
        None => view.table.knows(host, path),
    }
}

/// What furt serves itself on the public listener (DESIGN §2). `None`: the path belongs to routes.
fn reserved(connection: &Connection, view: &View, decision: &mut Decision, head: &Parts, path: &str) -> Result<Option<Answer>, ProxyError> {
    let Some(local) = local(path) else { return Ok(None) };
    let shared = &connection.worker.shared;
    match local {
        Local::Internal => {
            tell_internal(shared, view, path);
            return Err(ProxyError::NotFound);
        }
        Local::Reserved => return Err(ProxyError::NotFound),
        _ if head.method != Method::GET && head.method != Method::HEAD => return Err(ProxyError::MethodNotAllowed("GET, HEAD".into())),
        _ => {}
    }
    if local == Local::AuthStatus {
        let access = Access::AnyKey;
        let caller = authorize(connection, view, decision, &access, &head.headers)?.ok_or(ProxyError::Denied(Denied::NoKey))?;
        let body = envelope::success("", decision.request_id.to_str().unwrap_or_default(), auth_status(caller));
        return Ok(Some(Answer::Own { status: StatusCode::OK, headers: respond::json_headers(), body: body.into() }));
    }
    let (status, body) = match local {
        Local::Health => (StatusCode::OK, shared.health(view, health::sees_all(&view.config, connection.peer, &head.headers))),
        Local::Live => (StatusCode::OK, Bytes::from_static(b"{\"status\":\"live\"}")),
        _ if shared.is_ready() => (StatusCode::OK, Bytes::from_static(b"{\"status\":\"ready\"}")),
        _ => (StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"{\"status\":\"not ready\"}")),
    };
    Ok(Some(Answer::Own { status, headers: respond::json_headers(), body }))
}

fn auth_status(caller: &Caller) -> serde_json::Value {
    let permissions: Vec<String> = caller.permissions.iter().map(ToString::to_string).collect();
    let rate_limit = caller.limiter.as_ref().map(|limiter| limiter.rate().to_string());
    json!({ "name": &*caller.name, "permissions": permissions, "rate_limit": rate_limit })
}

/// Key, permission and rate. `None`: a public route without a valid key.
fn authorize<'v>(
    connection: &Connection,
    view: &'v View,
    decision: &mut Decision,
    access: &Access,
    fields: &HeaderMap,
) -> Result<Option<&'v Caller>, ProxyError> {
    let worker = &connection.worker;
    let now = decision.exchange.started();
    let client = decision.exchange.client();
    let presented = fields.get(X_API_KEY).map_or(Presented::Nothing, |key| Presented::Secret(key.as_bytes()));
    let guesses = view.failed_keys.as_ref().filter(|_| matches!(presented, Presented::Secret(_)));
    if let Some(spent) = guesses.and_then(|guesses| guesses.peek(client, now)).filter(|verdict| !verdict.allowed) {
        return Err(ProxyError::GuessedTooOften(spent.retry_after));
    }
    let admitted = auth::admit(access, &view.keys, presented, Some(client), worker.coarse.unix_ms(now).div_euclid(1000));
    if let (Err(Denied::UnknownKey), Some(guesses)) = (&admitted, guesses) {
        guesses.check(client, now);
    }
    let caller = admitted.map_err(ProxyError::Denied)?;
    if let Some(limits) = &view.address_limits
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
    Ok(Some(caller))
}

/// A caller is told its limit on what furt answers itself too, also where no key was asked for; that counts as no request.
fn recognise(connection: &Connection, view: &View, decision: &mut Decision, fields: &HeaderMap) {
    let mut keys = fields.get_all(X_API_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else { return };
    let now = decision.exchange.started();
    // Here, too, an answer would tell a guess that it is right.
    let spent = view.failed_keys.as_ref().and_then(|guesses| guesses.peek(decision.exchange.client(), now));
    if spent.is_some_and(|verdict| !verdict.allowed) {
        return;
    }
    let seconds = connection.worker.coarse.unix_ms(now).div_euclid(1000);
    let admitted = auth::admit(&Access::AnyKey, &view.keys, Presented::Secret(key.as_bytes()), Some(decision.exchange.client()), seconds);
    if let Ok(Some(caller)) = admitted {
        decision.exchange.note_caller(&caller.name);
        decision.limit = caller.limiter.as_ref().map(|limiter| (limiter.rate().count(), limiter.peek(now)));
    }
}

/// Makes the answer one of furt's: its headers, its counts, its end.
fn finish(
    connection: &Rc<Connection>,
    view: &View,
    decision: Decision,
    version: Version,
    answer: Result<Answer, ProxyError>,
) -> Response<AnswerBody> {
    let worker = &connection.worker;
    let Decision { mut exchange, request_id, limit, origin, grpc, .. } = decision;
    let now = worker.coarse.now();
    let total = now.saturating_sub(exchange.started());
    let preflight = matches!(answer, Ok(Answer::Preflight { .. }));
    let own = |mut exchange: Box<Exchange>, request_id, (status, mut headers, body), reason| {
        headers::finish_answer(&mut headers, request_id, worker.coarse.exact().saturating_sub(exchange.started()), None);
        exchange.answered(status, reason, None);
        exchange.watch().enter(Phase::Answer, now);
        let mut response = Response::new(AnswerBody::own(body, exchange));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    };
    let mut response = match answer {
        Ok(Answer::Service(Answered { mut response, lease, upstream_ns, .. })) => {
            // The version is that of one connection (RFC 9110 §2.5): a service's HTTP/1.0 is no reason to close the caller's.
            *response.version_mut() = Version::HTTP_11;
            let headers = response.headers_mut();
            headers.reserve(8 + view.config.add_headers.len());
            for (name, value) in &view.config.add_headers {
                headers.insert(name.clone(), value.clone());
            }
            headers::finish_answer(headers, request_id, total.saturating_sub(upstream_ns), Some(upstream_ns));
            exchange.watch().enter(if is_endless(headers) { Phase::Stream } else { Phase::Answer }, now);
            exchange.answered(response.status(), "", Some(Duration::from_nanos(upstream_ns)));
            response.map(|body| AnswerBody::service(body, lease, exchange))
        }
        Ok(Answer::Switch(answered, protocol)) => switch(connection, exchange, request_id, answered, protocol),
        Ok(Answer::Own { status, headers, body }) => own(exchange, request_id, (status, headers, body), ""),
        Ok(Answer::Preflight { headers }) => own(exchange, request_id, (StatusCode::NO_CONTENT, headers, Bytes::new()), ""),
        Err(error) => {
            let id = request_id.to_str().unwrap_or_default();
            let told = if grpc { error.grpc_answer(id) } else { error.answer(id) };
            own(exchange, request_id, told, error.reason())
        }
    };
    let draining = worker.shared.draining.load(Ordering::Relaxed);
    let http1 = version != Version::HTTP_2 && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if let Some((most, verdict)) = limit {
        let reset =
            worker.coarse.unix_ms(now).div_euclid(1000) + i64::try_from(verdict.reset_after.as_millis().div_ceil(1000)).unwrap_or(0);
        headers.insert(X_RATELIMIT_LIMIT, most.into());
        headers.insert(X_RATELIMIT_REMAINING, verdict.remaining.into());
        headers.insert(X_RATELIMIT_RESET, reset.into());
    }
    match origin {
        Some(origin) => cors::allow(headers, origin, preflight),
        None if preflight => cors::refuse(headers),
        None => {}
    }
    if draining && http1 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The service's 101. What follows is no HTTP, and begins once hyper has let go of both connections.
fn switch(
    connection: &Connection,
    mut exchange: Box<Exchange>,
    request_id: HeaderValue,
    answered: Answered,
    protocol: HeaderValue,
) -> Response<AnswerBody> {
    let Answered { response, lease, switched, upstream_ns, .. } = answered;
    let (mut head, _) = response.into_parts();
    head.version = Version::HTTP_11;
    let now = connection.worker.coarse.now();
    headers::finish_answer(
        &mut head.headers,
        request_id,
        now.saturating_sub(exchange.started()).saturating_sub(upstream_ns),
        Some(upstream_ns),
    );
    head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(UPGRADE, protocol);
    exchange.answered(head.status, "", Some(Duration::from_nanos(upstream_ns)));
    exchange.watch().enter(Phase::Waiting, now);
    lease.answered();
    connection.tunnel.set(switched.map(|upstream| Tunnel { upstream, lease, exchange }));
    Response::from_parts(head, AnswerBody::Switched)
}

/// Answers that may pause for as long as they like.
fn is_endless(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream") || kind.as_bytes().starts_with(b"application/grpc"))
}
