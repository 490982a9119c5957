//! A request that may go to its service: the instance, the connection, and another one while nothing
//! of the request can have been acted on (DESIGN §9, Instances).

use std::{pin::pin, rc::Rc, time::Duration};

use http::{
    HeaderValue, Method, Request, Response, Uri,
    header::{CONTENT_LENGTH, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use hyper::body::{Body, Incoming};
use tracing::debug;

use crate::{
    auth::Caller,
    balance,
    body::{Progress, RequestBody, Upload},
    clock::nanos,
    deadline::Deadline,
    exchange::Exchange,
    headers::{self, Forwarding},
    metrics::Counters,
    respond::ProxyError,
    table::Route,
    upstream::{self, Lease},
    view::{Instance, Service, View},
    worker::Connection,
};

/// For a connection to a service to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Retry-After of a route whose instances are not pinged any more.
const PARKED_RETRY: Duration = Duration::from_secs(120);

/// A request and where it goes.
pub struct Forward<'a> {
    /// Where it came from.
    pub connection: &'a Rc<Connection>,
    /// Whether its peer is one of `trusted_proxies`.
    pub trusted: bool,
    /// The view it sees.
    pub view: &'a View,
    /// The route that governs it.
    pub route: &'a Route,
    /// Whose instances are asked.
    pub service: &'a Service,
    /// Whose key it carries; `None`: a public route without a valid key.
    pub caller: Option<&'a Caller>,
    /// Its id.
    pub request_id: &'a HeaderValue,
    /// Its head, as the client sent it.
    pub head: &'a Parts,
    /// Its host, checked.
    pub host: &'a HeaderValue,
    /// Its canonical path.
    pub path: &'a str,
}

/// What a service answered.
pub struct Answered {
    /// The answer, its body still to come.
    pub response: Response<Incoming>,
    /// The connection it comes over.
    pub lease: Lease,
    /// From sending the request to the head of the answer, in nanoseconds.
    pub upstream_ns: u64,
}

impl Forward<'_> {
    /// Sends the request to an instance and, while that is safe, to another.
    ///
    /// # Errors
    /// With the reason why no answer came.
    pub async fn send(&self, body: Incoming, exchange: &mut Exchange) -> Result<Answered, ProxyError> {
        let worker = &self.connection.worker;
        let progress = Rc::new(Progress::default());
        progress.last.set(exchange.started());
        let has_body = !body.is_end_stream();
        let repeatable = !has_body && is_idempotent(&self.head.method);
        let timeout = self.route.timeout.unwrap_or(self.view.config.upstream_timeout);
        let deadline = worker.deadlines.set(exchange.started() + nanos(timeout));
        let mut request = self.request(has_body.then(|| self.upload(body, &progress)));
        worker.retries.earn();
        let mut now = exchange.started();
        let mut tried = Vec::new();
        let mut retried = false;
        loop {
            let Some(instance) = balance::choose(&self.service.instances, self.route, now, &tried) else {
                return Err(if tried.is_empty() {
                    self.unavailable()
                } else {
                    ProxyError::BadGateway("the service accepts no connection")
                });
            };
            *request.uri_mut() = target(instance, self.path, &self.head.uri)?;
            if self.host.is_empty() {
                // HTTP/1.0 knew no Host, HTTP/1.1 wants one (RFC 9112 §3.2).
                request.headers_mut().insert(HOST, instance.authority.clone());
            }
            if !exchange.ask(instance) && self.leads_elsewhere(instance, now, &mut tried) {
                continue;
            }
            let idle = if retried { None } else { worker.pool.take(instance, now, repeatable) };
            let mut lease = match idle {
                Some(lease) => lease,
                None => {
                    // Boxed because it is seldom and large: it would make every request's future larger.
                    let made = Box::pin(self.connect(instance, &deadline)).await?;
                    now = worker.coarse.exact();
                    let Some(lease) = made else {
                        tried.push(instance.number);
                        continue;
                    };
                    lease
                }
            };
            let sent = now;
            let answered = {
                let mut answer = pin!(lease.sender.try_send_request(request));
                loop {
                    match deadline.within(answer.as_mut()).await {
                        Ok(answered) => break Ok(answered),
                        Err(_) if !has_body => break Err(ProxyError::GatewayTimeout),
                        Err(_) => deadline.put_off(self.still_sending(&progress, timeout)?),
                    }
                }
            };
            now = worker.coarse.exact();
            let mut failed = match answered {
                Err(error) => return Err(error),
                Ok(Ok(response)) => return Ok(Answered { response, lease, upstream_ns: now.saturating_sub(sent) }),
                Ok(Err(failed)) => failed,
            };
            if progress.too_large.get() {
                return Err(ProxyError::PayloadTooLarge);
            }
            if progress.failed.get() {
                return Err(ProxyError::Malformed("the request's body broke off or is malformed"));
            }
            request = match failed.take_message() {
                // Closed before the request was written: nothing was sent, so any method may go again.
                Some(unsent) => {
                    if !lease.reused {
                        tried.push(instance.number);
                    }
                    unsent
                }
                None if repeatable && !retried && !lease.heard() && self.again(instance, &lease, now, &mut tried) => {
                    retried = true;
                    self.request(None)
                }
                None => return Err(ProxyError::BadGateway("the service closed the connection or answered nonsense")),
            };
        }
    }

    /// The service has its time from the end of the body on, and a body has all the time it needs while
    /// pieces of it come.
    ///
    /// # Errors
    /// When the service, or the client, has been silent for too long.
    fn still_sending(&self, progress: &Progress, timeout: Duration) -> Result<u64, ProxyError> {
        let worker = &self.connection.worker;
        let (now, last) = (worker.coarse.now(), progress.last.get());
        if progress.ended.get() {
            return Some(last + nanos(timeout)).filter(|at| *at > now).ok_or(ProxyError::GatewayTimeout);
        }
        let idle = now.saturating_sub(last) > nanos(self.view.config.body_idle_timeout);
        if idle { Err(ProxyError::RequestTimeout) } else { Ok(now + nanos(timeout)) }
    }

    /// Whether a request that can be repeated goes again after its connection closed without an answer:
    /// to another instance, as the one may have ended with the connection, or to the same when only a
    /// kept-alive connection closed.
    fn again(&self, instance: &Instance, lease: &Lease, now: u64, tried: &mut Vec<u32>) -> bool {
        let worker = &self.connection.worker;
        tried.push(instance.number);
        if balance::choose(&self.service.instances, self.route, now, tried).is_none() {
            if !lease.reused {
                return false;
            }
            tried.pop();
        }
        let allowed = worker.retries.spend(now);
        if allowed {
            Counters::add(&worker.shared.counters.retries);
        }
        allowed
    }

    /// Whether another instance can take what was meant for one that has been drained since the request's view. When
    /// there is none, the request goes there all the same: it counts, so whoever drains it waits for it.
    fn leads_elsewhere(&self, drained: &Instance, now: u64, tried: &mut Vec<u32>) -> bool {
        tried.push(drained.number);
        let elsewhere = balance::choose(&self.service.instances, self.route, now, tried).is_some();
        if !elsewhere {
            tried.pop();
        }
        elsewhere
    }

    fn upload(&self, body: Incoming, progress: &Rc<Progress>) -> Box<Upload> {
        let worker = &self.connection.worker;
        let limit = self.view.config.max_body_size;
        Box::new(Upload::new(body, limit, progress.clone(), self.connection.watch.clone(), worker.coarse.clone()))
    }

    /// The request as the service gets it, but for its target.
    fn request(&self, body: Option<Box<Upload>>) -> Request<RequestBody> {
        let with = Forwarding {
            route: self.route,
            caller: self.caller.map(|caller| &caller.name_header),
            request_id: self.request_id,
            host: self.host,
            peer: &self.connection.peer_value,
            trusted: self.trusted,
            version: self.head.version,
            via: &self.connection.worker.shared.via,
            // Without a length a body would be lost on its way to HTTP/1.1.
            chunked: body.is_some() && !self.head.headers.contains_key(CONTENT_LENGTH),
        };
        let fields = headers::forward(&self.head.headers, &with);
        let mut request = Request::new(body.map_or(RequestBody::Empty, RequestBody::Stream));
        *request.method_mut() = self.head.method.clone();
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
        instance.state.connect_failed(worker.coarse.exact());
        debug!(service = %self.service.name, instance = %instance.id, reason, "cannot connect");
        worker.shared.suspicions.report(self.service, instance, &reason);
        Ok(None)
    }

    /// 503 until the next probe may bring an instance back.
    fn unavailable(&self) -> ProxyError {
        let coarse = &self.connection.worker.coarse;
        let now = coarse.unix_ms(coarse.now());
        let wait = self.view.next_probe_unix_ms(self.service).map(|next| next.saturating_sub(now).max(0).unsigned_abs());
        ProxyError::Unavailable(wait.map_or(PARKED_RETRY, Duration::from_millis))
    }
}

/// Idempotent methods (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
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
