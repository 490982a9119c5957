//! What a worker keeps between requests: idle connections over HTTP/1.1, shared ones over HTTP/2.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use foldhash::fast::RandomState;
use hyper::client::conn::http1;
use tokio::sync::Mutex;

use super::{Endpoint, Held, Http1, Http2, Lease, Line, MAX_AHEAD, RequestBody, Stream, Wire};
use crate::{
    clock::nanos,
    config::Config,
    view::{Instance, Protocol},
};

/// A request that may not be sent twice does not use a connection idle for longer (DESIGN §9).
const FRESH_NS: u64 = 1_000_000_000;

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    line: Rc<Line>,
    since: u64,
    held: Held,
}

type ByEndpoint<T> = RefCell<HashMap<Endpoint, T, RandomState>>;

/// The connections of one worker that no request has for itself, by endpoint. Instances at one endpoint share them: it
/// is the same server.
#[derive(Default)]
pub struct Pool {
    /// The latest used last.
    idle: ByEndpoint<Vec<Idle>>,
    shared: ByEndpoint<Vec<Rc<Http2>>>,
    /// Where those wait who want a connection over HTTP/2 that is being made.
    gates: ByEndpoint<Rc<Mutex<()>>>,
}

/// What furt.conf says of connections that are kept, for one worker.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Idle connections to one endpoint.
    pub most: usize,
    /// Nanoseconds that one may be idle.
    pub longest: u64,
    /// The trust that one over TLS was made under.
    pub trust: u64,
}

impl Bounds {
    /// A worker's share of what the process may have.
    pub fn of(config: &Config) -> Self {
        Self {
            most: config.max_idle_upstream.div_ceil(config.workers.max(1)),
            longest: nanos(config.upstream_idle_timeout),
            trust: config.upstream_tls.id(),
        }
    }
}

impl Pool {
    /// A connection for a request to an instance that is there already and still open. `repeatable`: the request may
    /// be sent again if the connection turns out to be closed.
    pub fn take(&self, instance: &Instance, now: u64, repeatable: bool, bounds: Bounds) -> Option<Lease> {
        if !instance.keep_alive {
            return None;
        }
        if instance.protocol == Protocol::H2 {
            return self.share(instance, now, repeatable, bounds.trust);
        }
        let mut idle = self.idle.borrow_mut();
        let longest = if repeatable { bounds.longest } else { bounds.longest.min(FRESH_NS) };
        instance.addresses.iter().find_map(|address| {
            let endpoint = Endpoint::of(instance, *address, bounds.trust);
            let connections = idle.get_mut(&endpoint)?;
            // The latest used is last: once it has been idle for too long, all have.
            while let Some(Idle { sender, line, held, .. }) = connections.pop_if(|idle| now.saturating_sub(idle.since) <= longest) {
                if sender.is_ready() {
                    line.left.set(MAX_AHEAD);
                    return Some(Lease { endpoint, reused: true, wire: Wire::Http1(Http1 { sender, line, held }) });
                }
            }
            None
        })
    }

    /// A share of a connection over HTTP/2 that has room for one more request.
    pub(super) fn share(&self, instance: &Instance, now: u64, repeatable: bool, trust: u64) -> Option<Lease> {
        let shared = self.shared.borrow();
        instance.addresses.iter().find_map(|address| {
            let endpoint = Endpoint::of(instance, *address, trust);
            let fit = |one: &&Rc<Http2>| {
                let idle = one.streams.get() == 0 && one.idle_since.get() != 0 && now.saturating_sub(one.idle_since.get()) > FRESH_NS;
                !one.sender.is_closed() && one.streams.get() < one.most.get() && (repeatable || !idle)
            };
            let one = shared.get(&endpoint)?.iter().find(fit)?.clone();
            one.streams.set(one.streams.get() + 1);
            one.idle_since.set(0);
            Some(Lease { endpoint, reused: true, wire: Wire::Http2(Stream(one)) })
        })
    }

    /// Keeps a connection over HTTP/2 for others to share.
    pub(super) fn keep(&self, endpoint: Endpoint, connection: Rc<Http2>) {
        self.shared.borrow_mut().entry(endpoint).or_default().push(connection);
    }

    /// Where those take turns who make a connection over HTTP/2.
    pub(super) fn gate(&self, endpoint: &Endpoint) -> Rc<Mutex<()>> {
        self.gates.borrow_mut().entry(endpoint.clone()).or_default().clone()
    }

    /// Keeps a connection whose answer has ended.
    pub fn give_back(&self, lease: Lease, now: u64, bounds: Bounds) {
        let Wire::Http1(Http1 { sender, line, held }) = lease.wire else { return };
        if !sender.is_ready() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(lease.endpoint).or_default();
        if connections.len() < bounds.most {
            connections.push(Idle { sender, line, since: now, held });
        }
    }

    /// Closes what has been idle for too long or was closed from the other side.
    pub fn look(&self, now: u64, bounds: Bounds) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| now.saturating_sub(idle.since) <= bounds.longest && !idle.sender.is_closed());
            !connections.is_empty()
        });
        self.shared.borrow_mut().retain(|_, connections| {
            connections.retain(|one| {
                if one.streams.get() == 0 && one.idle_since.get() == 0 {
                    one.idle_since.set(now);
                }
                let idle = one.streams.get() == 0 && now.saturating_sub(one.idle_since.get()) > bounds.longest;
                !idle && !one.sender.is_closed()
            });
            !connections.is_empty()
        });
        self.gates.borrow_mut().retain(|_, gate| Rc::strong_count(gate) > 1);
    }
}

/// The name that an https instance's certificate has to have.
pub fn tls_name(url: &furt_proto::url::UpstreamUrl) -> Option<Arc<str>> {
    url.tls().then(|| url.host().into())
}
