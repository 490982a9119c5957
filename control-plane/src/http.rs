//! The paths under `/internal/`, `/health` and `/metrics` of the internal listener, as JSON (DESIGN §4, §6, §13).
//!
//! Here: the router over the table of [`endpoints`], what each of them does with what was asked, the envelope around what
//! comes back; in [`query`] the parameters, in `stream` the events as they happen.
//! Not here: the guard and sockets (`listener`), the body's shape (`json`), the data's (`answers`), decisions.

pub mod endpoints;
pub mod query;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use axum::response::Response;
use axum::routing::on;
use furt_proto::{envelope, names::quoted, v1};
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::identity::{Action, Peer, authorize};
use crate::listener::{Edge, RequestId};
use crate::refusal::{Code, Fault, Refusal};
use crate::{answers, json};
use endpoints::{ENDPOINTS, Endpoint};
use query::Parameters;

/// The answer, or why not.
type Said = Result<Response, Refusal>;
/// What carries out one endpoint.
type Handler = fn(Call, Body) -> BoxFuture<'static, Said>;

/// What event sources say they have seen (WHATWG HTML, server-sent events).
const LAST_EVENT_ID: &str = "last-event-id";

/// Every path of the internal listener that is not gRPC.
pub fn router(edge: Arc<Edge>) -> Router {
    let mut router = Router::new();
    for endpoint in ENDPOINTS {
        let serve = move |call: Call, body: Body| serve(endpoint, call, body);
        router = router.route(endpoint.path, on(endpoint.verb.filter(), serve));
    }
    router.method_not_allowed_fallback(method_not_allowed).fallback(not_found).with_state(edge)
}

async fn serve(endpoint: &'static Endpoint, mut call: Call, body: Body) -> Response {
    let request_id = call.request_id.clone();
    let said = match call.prepare(endpoint) {
        Ok(()) => (endpoint.handler)(call, body).await,
        Err(refusal) => Err(refusal),
    };
    said.unwrap_or_else(|refusal| refused(&refusal, &request_id))
}

async fn not_found(method: Method, call: Call, uri: Uri) -> Response {
    let path = quoted(uri.path());
    let message = format!("nothing answers {method} {path} on the internal listener");
    refused(&Refusal::one(Code::NotFound, message), &call.request_id)
}

/// The router adds `Allow`.
async fn method_not_allowed(method: Method, call: Call, uri: Uri) -> Response {
    let path = quoted(uri.path());
    refused(&Refusal::one(Code::MethodNotAllowed, format!("{path} is not for {method}, see Allow")), &call.request_id)
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
    /// The query, once it is read.
    parameters: Parameters,
    /// What is wrong with the query of a request whose body is still to be read.
    faults: Vec<Fault>,
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
            parameters: Parameters::default(),
            faults: Vec::new(),
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
                let refusal = Refusal::one(Code::Malformed, "the path cannot be decoded as UTF-8");
                Err(refused(&refusal, &call.request_id))
            }
            Err(_) => Ok(call), // No path was matched: `CONNECT host:port` and `OPTIONS *` have none.
        }
    }
}

/// What every endpoint begins and ends with.
impl Call {
    /// Asks for leave, where it is no one service's that is asked for (the registry knows whose a service is), and reads
    /// the query. Its faults are told together with those of the body, when there is one to read.
    fn prepare(&mut self, endpoint: &Endpoint) -> Result<(), Refusal> {
        if let Some(action @ (Action::Read | Action::Reload)) = endpoint.needs {
            authorize(&self.edge.registry.config(), &self.peer, action, None)?;
        }
        let Some(known) = endpoint.parameters else { return Ok(()) };
        (self.parameters, self.faults) = query::read(&self.uri, known);
        match self.faults.is_empty() || endpoint.takes.is_some() {
            true => Ok(()),
            false => Err(std::mem::take(&mut self.faults).into()),
        }
    }

    /// The envelope; `message` may be empty.
    fn answer(&self, message: &str, data: Value) -> Said {
        Ok(json_response(StatusCode::OK, envelope::success(message, self.request_id.as_str(), data)))
    }
}

/// What shows.
impl Call {
    fn list_services(self) -> Said {
        self.edge.registry.readable()?;
        self.answer("", answers::services(&self.edge.registry.list_services()))
    }

    fn get_service(self) -> Said {
        self.edge.registry.readable()?;
        self.answer("", answers::one_service(&self.edge.registry.get_service(&self.service)?))
    }

    fn list_routes(self) -> Said {
        self.edge.registry.readable()?;
        let request = v1::ListRoutesRequest { service: self.parameters.text("service") };
        self.answer("", answers::routes(&self.edge.registry.list_routes(&request)))
    }

    fn explain(self) -> Said {
        let request = v1::ExplainRequest {
            method: self.parameters.text("method"),
            path: self.parameters.text("path"),
            host: self.parameters.text("host"),
            key_name: self.parameters.text("key_name"),
        };
        self.answer("", answers::explained(&self.edge.explain(&request)?))
    }

    fn events(self) -> Said {
        let seen = match self.headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
            None => self.parameters.text("since"),
            Some(id) => id.to_str().map(str::to_owned).map_err(|_| Fault::new("Last-Event-ID", Code::Validation, "is no cursor"))?,
        };
        // Whoever asks for what comes is told from where, and can go on from there when the connection breaks.
        let from = seen.is_empty().then(|| self.edge.registry.events().newest());
        let since = from.clone().unwrap_or(seen);
        let request = v1::WatchEventsRequest { since, service: self.parameters.text("service") };
        let events = self.edge.watch_events(&self.peer, &request)?;
        Ok(unwrapped(StatusCode::OK, "text/event-stream", stream::body(events, from.as_deref())))
    }

    fn openapi(self) -> Said {
        Ok(unwrapped(StatusCode::OK, "application/json", self.edge.openapi.clone()))
    }

    /// Whoever gets past the guard is inside `allow_registration_from` and came through no proxy: they see all.
    fn health(self) -> Said {
        Ok(unwrapped(StatusCode::OK, "application/json", self.edge.observer.health(true)))
    }

    fn live(self) -> Said {
        Ok(yes_or_no(self.edge.observer.live(), "live", "not live"))
    }

    fn ready(self) -> Said {
        Ok(yes_or_no(self.edge.observer.ready(), "ready", "not ready"))
    }

    fn metrics(self) -> Said {
        let mut text = String::new();
        self.edge.registry.metrics(&mut text);
        self.edge.observer.metrics(&mut text);
        Ok(unwrapped(StatusCode::OK, prometheus_client::encoding::prometheus_text::CONTENT_TYPE, text))
    }
}

/// What changes something.
impl Call {
    async fn register(mut self, body: Body) -> Said {
        let mut faults = std::mem::take(&mut self.faults);
        // Nothing happens with a fault; and if it did, then the lesser thing.
        let dry_run = self.parameters.truth("dry_run") || !faults.is_empty();
        let (mut request, found) = self.request(body).await?;
        faults.extend(found);
        request.dry_run |= dry_run;
        let only_asked = request.dry_run;
        let answer = self.edge.registry.register(&self.peer, request, faults).await?;
        let did = if only_asked { "could be registered" } else { "registered" };
        let message = format!("{} {did}: {}", answer.service, counted(answer.routes as usize, "route"));
        self.answer(&message, answers::registered(&answer))
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

    async fn deregister(self) -> Said {
        let request = v1::DeregisterRequest {
            registration_id: self.parameters.text("registration_id"),
            service: self.service.clone(),
            instance: self.instance.clone(),
        };
        let answer = self.edge.registry.deregister(&self.peer, request).await?;
        let message = format!("{} deregistered: {}", answer.service, counted(answer.instances.len(), "instance"));
        self.answer(&message, answers::deregistered(&answer))
    }

    fn probe(self) -> Said {
        let request = v1::ProbeRequest { service: self.service.clone(), instance: self.instance.clone() };
        let answer = self.edge.registry.probe(&self.peer, request)?;
        let message = format!("{}: {} to be probed now", answer.service, counted(answer.instances.len(), "instance"));
        self.answer(&message, answers::probed(&answer))
    }

    async fn drain(self) -> Said {
        let answer = self.edge.registry.drain(&self.peer, self.drain_request(false)).await?;
        let instances = counted(answer.instances.len(), "instance");
        let and = if answer.deregistered { " and deregistered" } else { "" };
        let left = match answer.in_flight {
            0 => String::new(),
            left => format!("; {} still in flight", counted(left as usize, "request")),
        };
        self.answer(&format!("{} drained{and}: {instances}{left}", answer.service), answers::drained(&answer))
    }

    async fn undrain(self) -> Said {
        let answer = self.edge.registry.drain(&self.peer, self.drain_request(true)).await?;
        let message = format!("{} undrained: {}", answer.service, counted(answer.instances.len(), "instance"));
        self.answer(&message, answers::drained(&answer))
    }

    fn drain_request(&self, undo: bool) -> v1::DrainRequest {
        v1::DrainRequest {
            service: self.service.clone(),
            instance: self.instance.clone(),
            registration_id: self.parameters.text("registration_id"),
            seconds: self.parameters.whole("seconds"),
            undo,
        }
    }

    async fn reload(self) -> Said {
        let reloaded = self.edge.observer.reload().await?;
        let message = match reloaded.changes.len() {
            0 => "furt.conf reloaded".to_owned(),
            changes => format!("furt.conf reloaded: {}", counted(changes, "change")),
        };
        self.answer(&message, answers::reloaded(&reloaded))
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
    // What cannot be done for now is worth trying again soon, whoever forgot to say when.
    let soon = (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
    if let Some(seconds) = refusal.retry_after_seconds().or(soon) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_for_now_says_when_to_try_again() {
        let check = |code: Code, retry_after: Option<u64>, expected: Option<&str>| {
            let retry_after = retry_after.map(std::time::Duration::from_secs);
            let answer = refused(&Refusal { retry_after, ..Refusal::one(code, "not now") }, &RequestId::default());
            assert_eq!(answer.status(), code.status());
            assert_eq!(answer.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap()), expected, "{code}");
        };
        check(Code::StoreUnavailable, None, Some("1"));
        check(Code::Unavailable, Some(7), Some("7"));
        check(Code::RateLimited, Some(2), Some("2"));
        check(Code::NotFound, None, None);
    }
}
