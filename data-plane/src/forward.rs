//! A request that may go to its service: the instance, the connection, and another one while nothing
//! of the request can have been acted on (DESIGN §9, Instances).

use std::{pin::pin, rc::Rc, sync::Arc, time::Duration};

use furt_proto::time::format_duration;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header::CONTENT_TYPE, request::Parts};
use hyper::body::{Body, Incoming};
use tokio::sync::oneshot;
use tracing::debug;

use crate::{
    auth::Caller,
    balance::{self, Entered, NoInstance},
    body::{Progress, RequestBody, Upload},
    clock::nanos,
    connection::Connection,
    deadline::Deadline,
    exchange::Exchange,
    headers::{self, Forwarding},
    metrics::Counters,
    outbound::{self, Outbound},
    respond::ProxyError,
    table::Route,
    upstream::{self, Bounds, ConnectError, Lease, Switched},
    view::{Instance, Service, View},
};

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
    /// What the client asked to switch to.
    pub asked: Option<HeaderValue>,
    /// Where the connection comes out, should the service switch.
    pub switched: Option<oneshot::Receiver<Switched>>,
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
        let upgrade = if has_body { None } else { outbound::asked_upgrade(self.head) };
        let outbound = Outbound { host: self.host, path: self.path, target: &self.head.uri, upgrade: upgrade.as_ref(), has_body };
        let repeatable = !has_body && upgrade.is_none() && is_idempotent(&self.head.method);
        let times = self.times(exchange.started(), has_body);
        exchange.watch().end_by(times.until);
        let deadline = worker.deadlines.set(times.first(exchange.started(), has_body));
        let mut request = self.request(has_body.then(|| self.upload(body, &progress, exchange)));
        worker.retries.earn();
        let mut now = exchange.started();
        let mut tried = Vec::new();
        let (mut again, mut retried) = (false, false);
        loop {
            let instance = match self.choose(now, &tried) {
                Ok(instance) => instance,
                Err(NoInstance::Full) => return Err(ProxyError::Full),
                Err(NoInstance::None) if tried.is_empty() => return Err(self.unavailable()),
                Err(NoInstance::None) => return Err(ProxyError::BadGateway("the service accepts no connection")),
            };
            match exchange.ask(instance) {
                Entered::Yes => {}
                Entered::Drained if !self.leads_elsewhere(instance, now, &mut tried) => {}
                Entered::Drained => continue,
                // Others came between; the next choice leaves it out.
                Entered::Full => {
                    tried.push(instance.number);
                    if self.choose(now, &tried).is_err() {
                        return Err(ProxyError::Full);
                    }
                    continue;
                }
            }
            outbound.fit(&mut request, instance, again)?;
            again = true;
            let idle = if retried { None } else { worker.pool.take(instance, now, repeatable, Bounds::of(&self.view.config)) };
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
            let switched = if upgrade.is_some() { lease.when_switched() } else { None };
            let sent = now;
            let answered = {
                let mut answer = pin!(lease.send(request));
                loop {
                    match deadline.within(answer.as_mut()).await {
                        Ok(answered) => break Ok(answered),
                        Err(_) => match times.next(worker.coarse.now(), has_body, &progress) {
                            Ok(at) => deadline.put_off(at),
                            Err(error) => break Err(error),
                        },
                    }
                }
            };
            now = worker.coarse.exact();
            let mut failed = match answered {
                Err(error) => return Err(error),
                Ok(Ok(response)) => {
                    return Ok(Answered { response, lease, asked: upgrade, switched, upstream_ns: now.saturating_sub(sent) });
                }
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
                Some(unsent) if !progress.touched.get() => {
                    if !lease.reused {
                        tried.push(instance.number);
                    }
                    unsent
                }
                // The service says that it did nothing with it, so any method may go again (RFC 9113 §8.7).
                None if !has_body && !retried && upstream::is_unprocessed(failed.error()) && self.spend(now) => {
                    retried = true;
                    self.request(None)
                }
                None if repeatable && !retried && !lease.heard() && self.again(instance, &lease, now, &mut tried) => {
                    retried = true;
                    self.request(None)
                }
                _ => return Err(ProxyError::BadGateway("the service closed the connection or answered nonsense")),
            };
        }
    }

    fn choose(&self, now: u64, tried: &[u32]) -> Result<&Arc<Instance>, NoInstance> {
        balance::choose(&self.service.instances, self.route, now, tried, nanos(self.view.config.slow_start))
    }

    /// How long what may take.
    fn times(&self, started: u64, has_body: bool) -> Times {
        let config = &self.view.config;
        let grpc = is_grpc(&self.head.headers);
        let asked = if grpc { grpc_timeout(&self.head.headers) } else { None };
        let total = [self.route.deadline.or(config.deadline), asked].into_iter().flatten().min();
        Times {
            timeout: nanos(self.route.timeout.unwrap_or(config.upstream_timeout)),
            until: total.map(|total| started + nanos(total)),
            // A call may be silent for as long as it likes.
            idle: (has_body && !grpc).then_some(nanos(config.body_idle_timeout)),
        }
    }

    /// Whether a request that can be repeated goes again after its connection closed without an answer:
    /// to another instance, as the one may have ended with the connection, or to the same when only a
    /// kept-alive connection closed.
    fn again(&self, instance: &Instance, lease: &Lease, now: u64, tried: &mut Vec<u32>) -> bool {
        tried.push(instance.number);
        if self.choose(now, tried).is_err() {
            if !lease.reused {
                return false;
            }
            tried.pop();
        }
        self.spend(now)
    }

    /// Whether the budget has one more retry.
    fn spend(&self, now: u64) -> bool {
        let worker = &self.connection.worker;
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
        let elsewhere = self.choose(now, tried).is_ok();
        if !elsewhere {
            tried.pop();
        }
        elsewhere
    }

    fn upload(&self, body: Incoming, progress: &Rc<Progress>, exchange: &Exchange) -> Box<Upload> {
        let worker = &self.connection.worker;
        let limit = self.view.config.max_body_size;
        Box::new(Upload::new(body, limit, progress.clone(), exchange.watch().clone(), worker.coarse.clone()))
    }

    /// The request as the service gets it, but for what [`Outbound`] adds.
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
            secure: self.connection.secure,
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
        let patience = self.view.config.connect_timeout;
        let connecting = tokio::time::timeout(patience, upstream::connect(worker, self.view, instance));
        let reason = match deadline.within(connecting).await.map_err(|_| ProxyError::GatewayTimeout)? {
            Ok(Ok(lease)) => {
                instance.state.connected();
                return Ok(Some(lease));
            }
            Ok(Err(ConnectError::Ours(error))) => {
                worker.exhausted(&error);
                return Err(ProxyError::Exhausted);
            }
            Ok(Err(ConnectError::Theirs(reason))) => reason,
            Err(_) => format!("no connection within {}", format_duration(patience)),
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

/// Whether a message is one of gRPC (gRPC's PROTOCOL-HTTP2.md).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// `grpc-timeout`: how long the caller of a gRPC call waits. What cannot be read is left to the service.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = Some(digits).filter(|digits| digits.len() <= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The limits on one request's time, in nanoseconds.
struct Times {
    /// From the end of its body to the head of the answer.
    timeout: u64,
    /// When all has to be over.
    until: Option<u64>,
    /// Between two pieces of its body.
    idle: Option<u64>,
}

impl Times {
    /// When to look for the first time.
    fn first(&self, started: u64, has_body: bool) -> u64 {
        let patience = if has_body { self.timeout.min(self.idle.unwrap_or(self.timeout)) } else { self.timeout };
        self.before_the_end(started + patience)
    }

    fn before_the_end(&self, at: u64) -> u64 {
        self.until.map_or(at, |until| until.min(at))
    }

    /// When to look again. The service has its time from the end of the body on, and a body has all the time it needs
    /// while pieces of it come.
    ///
    /// # Errors
    /// When the service, or the client, has been silent for too long.
    fn next(&self, now: u64, has_body: bool, progress: &Progress) -> Result<u64, ProxyError> {
        if self.until.is_some_and(|until| until <= now) {
            return Err(ProxyError::GatewayTimeout);
        }
        let last = progress.last.get();
        if !has_body || progress.ended.get() {
            let at = last + self.timeout;
            return if at > now { Ok(self.before_the_end(at)) } else { Err(ProxyError::GatewayTimeout) };
        }
        match self.idle {
            Some(idle) if now.saturating_sub(last) > idle => Err(ProxyError::RequestTimeout),
            Some(idle) => Ok(self.before_the_end(last + idle + 1)),
            None => Ok(self.before_the_end(now + self.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn a_body_has_time_while_it_comes_and_the_service_from_its_end_on() {
        let progress = Progress::default();
        let times = Times { timeout: 100, until: Some(1_000), idle: Some(30) };
        assert_eq!((times.first(1, false), times.first(1, true)), (101, 31));
        progress.last.set(90);
        assert_eq!(times.next(101, true, &progress), Ok(121));
        assert_eq!(times.next(121, true, &progress), Err(ProxyError::RequestTimeout));
        progress.ended.set(true);
        assert_eq!(times.next(121, true, &progress), Ok(190));
        assert_eq!(times.next(190, true, &progress), Err(ProxyError::GatewayTimeout));
        progress.last.set(999);
        assert_eq!(times.next(999, true, &progress), Ok(1_000));
        assert_eq!(times.next(1_000, true, &progress), Err(ProxyError::GatewayTimeout));
    }

    #[test]
    fn the_patience_of_a_grpc_caller_is_read() {
        let check = |text: &'static str, expected: Option<Duration>| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), HeaderValue::from_static(text))]);
            assert_eq!(grpc_timeout(&headers), expected, "{text}");
        };
        check("100m", Some(Duration::from_millis(100)));
        check("2S", Some(Duration::from_secs(2)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("123456789S", None);
        check("S", None);
        check("", None);
        check("+1S", None);
        check("1x", None);
    }
}
