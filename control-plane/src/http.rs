//! The paths under `/internal/`, `/health` and `/metrics` of the internal listener, as JSON (DESIGN §4, §6, §13).
//!
//! Here: the router, what each path takes, the envelope around what comes back.
//! Not here: the guard and sockets (`listener`), the body's shape (`json`), the data's (`answers`), decisions.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, Query, RawPathParams, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use axum::response::Response;
use axum::routing::{delete, get, post};
use furt_proto::{envelope, names::quoted, v1};
use serde_json::Value;

use crate::identity::{Action, Peer, authorize};
use crate::listener::{Edge, RequestId};
use crate::refusal::{Code, Fault, Refusal};
use crate::{answers, json};

/// Every path of the internal listener that is not gRPC.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/internal/register-service", post(register))
        .route("/internal/services", get(services))
        .route("/internal/services/{service}", get(service).delete(deregister))
        .route("/internal/services/{service}/probe", post(probe))
        .route("/internal/services/{service}/instances/{instance}", delete(deregister))
        .route("/internal/services/{service}/instances/{instance}/probe", post(probe))
        .route("/internal/routes", get(routes))
        .route("/internal/explain", get(explain))
        .route("/health", get(health))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(edge)
}

/// What a handler has to say: the sentence (may be empty) and the data, or why not.
type Outcome = Result<(String, Value), Refusal>;

async fn register(call: Call, body: Body) -> Response {
    let outcome = call.register(body).await;
    call.respond(outcome)
}

async fn deregister(call: Call) -> Response {
    let outcome = call.deregister().await;
    call.respond(outcome)
}

async fn probe(call: Call) -> Response {
    let outcome = call.probe();
    call.respond(outcome)
}

async fn services(call: Call) -> Response {
    let read = call.read(&[]);
    call.respond(read.map(|_| (String::new(), answers::services(&call.edge.registry.list_services()))))
}

async fn service(call: Call) -> Response {
    let read = call.read(&[]);
    let found = read.and_then(|_| call.edge.registry.get_service(&call.service));
    call.respond(found.map(|found| (String::new(), answers::one_service(&found))))
}

async fn routes(call: Call) -> Response {
    let read = call.read(&["service"]);
    call.respond(read.map(|parameters| {
        let request = v1::ListRoutesRequest { service: parameters.text("service") };
        (String::new(), answers::routes(&call.edge.registry.list_routes(&request)))
    }))
}

async fn explain(call: Call) -> Response {
    let outcome = call.explain();
    call.respond(outcome)
}

/// Whoever gets past the guard is inside `allow_registration_from` and came through no proxy: they see all.
async fn health(State(edge): State<Arc<Edge>>) -> Response {
    unwrapped(StatusCode::OK, "application/json", edge.observer.health(true))
}

async fn live(State(edge): State<Arc<Edge>>) -> Response {
    yes_or_no(edge.observer.live(), "live", "not live")
}

async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    yes_or_no(edge.observer.ready(), "ready", "not ready")
}

async fn metrics(call: Call) -> Response {
    if let Err(refusal) = authorize(&call.edge.registry.config(), &call.peer, Action::Read, None) {
        return call.respond(Err(refusal));
    }
    let mut text = String::new();
    call.edge.registry.metrics(&mut text);
    call.edge.observer.metrics(&mut text);
    unwrapped(StatusCode::OK, prometheus_client::encoding::prometheus_text::CONTENT_TYPE, text)
}

async fn not_found(method: Method, call: Call, uri: Uri) -> Response {
    let path = quoted(uri.path());
    call.respond(Err(Refusal::one(Code::NotFound, format!("nothing answers {method} {path} on the internal listener"))))
}

/// The router adds `Allow`.
async fn method_not_allowed(method: Method, call: Call, uri: Uri) -> Response {
    let path = quoted(uri.path());
    call.respond(Err(Refusal::one(Code::MethodNotAllowed, format!("{path} is not for {method}, see Allow"))))
}

/// A request past the guard: who asks for what.
struct Call {
    edge: Arc<Edge>,
    peer: Peer,
    request_id: RequestId,
    headers: HeaderMap,
    uri: Uri,
    /// `{service}` of the path, else empty.
    service: String,
    /// `{instance}` of the path, else empty.
    instance: String,
}

impl FromRequestParts<Arc<Edge>> for Call {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Response> {
        let mut call = Self {
            edge: Arc::clone(edge),
            // Without a peer nothing is allowed: that is what a request that passed no guard deserves.
            peer: parts.extensions.get().cloned().unwrap_or_default(),
            request_id: parts.extensions.get().cloned().unwrap_or_default(),
            headers: parts.headers.clone(),
            uri: parts.uri.clone(),
            service: String::new(),
            instance: String::new(),
        };
        match RawPathParams::from_request_parts(parts, edge).await {
            Ok(names) => {
                for (name, value) in &names {
                    match name {
                        "service" => call.service = value.to_owned(),
                        "instance" => call.instance = value.to_owned(),
                        _ => {}
                    }
                }
                Ok(call)
            }
            Err(RawPathParamsRejection::InvalidUtf8InPathParam(_)) => {
                Err(call.respond(Err(Refusal::one(Code::Malformed, "the path cannot be decoded as UTF-8"))))
            }
            Err(_) => Ok(call), // No path was matched: `CONNECT host:port` and `OPTIONS *` have none.
        }
    }
}

impl Call {
    fn respond(&self, outcome: Outcome) -> Response {
        match outcome {
            Ok((message, data)) => json_response(StatusCode::OK, envelope::success(&message, self.request_id.as_str(), data)),
            Err(refusal) => refused(&refusal, &self.request_id),
        }
    }

    async fn register(&self, body: Body) -> Outcome {
        let mut faults = Vec::new();
        let dry_run = self.parameters(&["dry_run"]).and_then(|parameters| parameters.truth("dry_run"));
        let dry_run = dry_run.unwrap_or_else(|refusal| {
            faults.extend(refusal.faults);
            true // Nothing happens with a fault; and if it did, then the lesser thing.
        });
        let (mut request, found) = self.request(body).await?;
        faults.extend(found);
        request.dry_run |= dry_run;
        let only_asked = request.dry_run;
        let answer = self.edge.registry.register(&self.peer, request, faults).await?;
        let did = if only_asked { "could be registered" } else { "registered" };
        let message = format!("{} {did}: {}", answer.service, counted(answer.routes as usize, "route"));
        Ok((message, answers::registered(&answer)))
    }

    /// What the body says, and its faults. One that cannot be read at all is a fault too: it goes the way of all
    /// registrations, so that it counts against the peer's rate and is logged. Errors: furt has no room for the body.
    async fn request(&self, body: Body) -> Result<(v1::RegisterRequest, Vec<Fault>), Refusal> {
        let unread = |fault: Fault| Ok((v1::RegisterRequest::default(), vec![fault]));
        if let Some(encoding) = content_encoding(&self.headers) {
            crate::body::discard(&self.headers, body).await;
            let message = format!("Content-Encoding must be identity, got {encoding}: the body is taken as it is");
            return unread(Fault::new("", Code::Validation, message));
        }
        match self.edge.bodies.read(&self.headers, body).await {
            Ok(bytes) => json::decode(&bytes).or_else(unread),
            Err(refusal) if refusal.code() == Code::Unavailable => Err(refusal),
            Err(refusal) => Ok((v1::RegisterRequest::default(), refusal.faults)),
        }
    }

    async fn deregister(&self) -> Outcome {
        let known: &[&str] = if self.instance.is_empty() { &[] } else { &["registration_id"] };
        let request = v1::DeregisterRequest {
            registration_id: self.parameters(known)?.text("registration_id"),
            service: self.service.clone(),
            instance: self.instance.clone(),
        };
        let answer = self.edge.registry.deregister(&self.peer, request).await?;
        let message = format!("{} deregistered: {}", answer.service, counted(answer.instances.len(), "instance"));
        Ok((message, answers::deregistered(&answer)))
    }

    fn probe(&self) -> Outcome {
        self.parameters(&[])?;
        let request = v1::ProbeRequest { service: self.service.clone(), instance: self.instance.clone() };
        let answer = self.edge.registry.probe(&self.peer, request)?;
        let message = format!("{}: {} to be probed now", answer.service, counted(answer.instances.len(), "instance"));
        Ok((message, answers::probed(&answer)))
    }

    fn explain(&self) -> Outcome {
        let parameters = self.read(&["method", "path", "host", "key_name"])?;
        let request = v1::ExplainRequest {
            method: parameters.text("method"),
            path: parameters.text("path"),
            host: parameters.text("host"),
            key_name: parameters.text("key_name"),
        };
        let answer = self.edge.explain(&request)?;
        Ok((String::new(), answers::explained(&answer)))
    }

    /// The parameters of a path that only shows, for those who may look.
    fn read(&self, known: &[&str]) -> Result<Parameters, Refusal> {
        authorize(&self.edge.registry.config(), &self.peer, Action::Read, None)?;
        self.parameters(known)
    }

    /// The query, each parameter known and given once. Errors: every one that is not.
    fn parameters(&self, known: &[&str]) -> Result<Parameters, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&self.uri)
            .map_err(|error| Refusal::one(Code::Malformed, format!("the query cannot be read: {error}")))?;
        let mut faults = Vec::new();
        for (index, (name, _)) in pairs.iter().enumerate() {
            let field = || if name.len() <= 64 { name.clone() } else { quoted(name) };
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none is known here".to_owned() } else { format!("known are {}", known.join(", ")) };
                faults.push(Fault::new(field(), Code::Validation, format!("unknown query parameter; {known}")));
            } else if pairs.iter().take(index).any(|(earlier, _)| earlier == name) {
                faults.push(Fault::new(field(), Code::Validation, "query parameter given more than once"));
            }
            if faults.len() == json::MAX_FAULTS {
                break;
            }
        }
        if faults.is_empty() { Ok(Parameters(pairs)) } else { Err(faults.into()) }
    }
}

/// The query of a request.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Empty when it is not given.
    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// False when it is not given.
    fn truth(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Fault::new(name, Code::Validation, format!("must be true or false, got {}", quoted(other))).into()),
        }
    }
}

/// A content encoding other than none, quoted.
fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let other = encodings.find(|encoding| !encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))?;
    Some(quoted(&String::from_utf8_lossy(other.as_bytes())))
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A refusal in the envelope, with `Retry-After` and `WWW-Authenticate` where they belong.
pub fn refused(refusal: &Refusal, request_id: &RequestId) -> Response {
    let code = refusal.code();
    let mut details = refusal.details();
    if let Some(more) = details.len().checked_sub(2 * json::MAX_FAULTS).filter(|more| *more > 0) {
        details.truncate(2 * json::MAX_FAULTS);
        details.push(envelope::Detail { field: String::new(), code: code.slug(), message: format!("and {more} more") });
    }
    let body = envelope::error(code.slug(), &refusal.message(), request_id.as_str(), &details);
    let mut response = json_response(code.status(), body);
    if let Some(seconds) = refusal.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if code == Code::Unauthorized {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json_response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What monitors read: no envelope, and never from a cache.
fn unwrapped(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn yes_or_no(yes: bool, word: &str, no_word: &str) -> Response {
    let (status, word) = if yes { (StatusCode::OK, word) } else { (StatusCode::SERVICE_UNAVAILABLE, no_word) };
    unwrapped(status, "application/json", format!("{{\"status\":\"{word}\"}}"))
}
