//! What the JSON paths and the RPCs share: the registry, the rest of furt as they see it, and what both answer alike.
//!
//! Here: `Observer`, through which the root is asked, `Edge`, and the name of a request. Not here: sockets, wire shapes.

use std::sync::Arc;

use bytes::Bytes;
use furt_proto::{names::ServiceName, v1};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::body;
use crate::config::Config;
use crate::identity::{Action, Peer, authorize};
use crate::refusal::{Code, Fault, Refusal};
use crate::registry::Registry;

/// What the internal listener shows of the data plane and asks of the whole; the root implements it, so that the planes
/// need not meet.
pub trait Observer: Send + Sync + 'static {
    /// The body of `/health` (DESIGN §6); `full`: to someone who may see urls and times.
    fn health(&self, full: bool) -> Bytes;
    /// Whether furt runs.
    fn live(&self) -> bool;
    /// Whether furt should be sent requests.
    fn ready(&self) -> bool;
    /// Where a request would go and why; a sentence when it cannot be said.
    fn explain(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainResponse, String>;
    /// Appends the data plane's metrics in Prometheus text format 0.0.4.
    fn metrics(&self, out: &mut String);
    /// Reads furt.conf anew and lets all of it apply, or nothing; whoever asks is an operator.
    ///
    /// Errors: VALIDATION_ERROR, with a fault for each that furt.conf has (its field says where: `furt.conf:12: key`).
    fn reload(&self) -> BoxFuture<'static, Result<ReloadDone, Refusal>>;
}

/// What reading furt.conf anew has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadDone {
    /// A sentence for each thing that is different now.
    pub changes: Vec<String>,
    /// A sentence for each thing in furt.conf that is worth a look.
    pub warnings: Vec<String>,
    /// The snapshot that carries it.
    pub version: u64,
}

/// Watchers of events at once: one that does not read costs its connection's buffers, some 100 kB.
pub(super) const MOST_WATCHERS: usize = 1_000;

/// What handlers of both kinds share.
pub struct Edge {
    /// What is asked.
    pub registry: Registry,
    /// The rest of furt.
    pub observer: Arc<dyn Observer>,
    /// Reads bodies within bounds.
    pub bodies: body::Reader,
    /// The description of the JSON paths.
    pub openapi: Bytes,
    /// Cancelled when the listener ends: what would last longer hears it.
    pub closing: CancellationToken,
    /// Room for watchers of events.
    pub(super) watchers: Arc<Semaphore>,
}

impl Edge {
    /// Explains a request, with what is missing in the question told at once.
    pub fn explain(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainResponse, Refusal> {
        let asked = [("method", &request.method), ("path", &request.path)];
        let missing = asked.into_iter().filter(|(_, value)| value.is_empty());
        let faults: Vec<_> = missing.map(|(name, _)| Fault::new(name, Code::Validation, "is missing")).collect();
        if !faults.is_empty() {
            return Err(faults.into());
        }
        self.observer.explain(request).map_err(|sentence| Refusal::one(Code::Validation, sentence))
    }

    /// What happens, from a cursor on. It ends with an error: at the listener's end, and when the peer may no longer
    /// read because furt.conf has changed.
    pub fn watch_events(
        &self,
        peer: &Peer,
        request: &v1::WatchEventsRequest,
    ) -> Result<BoxStream<'static, Result<v1::Event, Refusal>>, Refusal> {
        let config = self.registry.config();
        authorize(&config, peer, Action::Read, None)?;
        if !request.service.is_empty() {
            request.service.parse::<ServiceName>().map_err(|error| Fault::new("service", Code::Validation, error.0))?;
        }
        let events = self.registry.events().watch(&request.since, &request.service)?.boxed();
        let too_many = |_| Refusal::one(Code::Unavailable, format!("there are {MOST_WATCHERS} watchers of events already"));
        let counted = Arc::clone(&self.watchers).try_acquire_owned().map_err(too_many)?;
        let watcher = Watcher {
            _counted: counted,
            events,
            registry: self.registry.clone(),
            peer: peer.clone(),
            config,
            closing: self.closing.clone(),
        };
        Ok(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let next = watcher.next().await;
            let rest = next.is_ok().then_some(watcher);
            Some((next, rest))
        })
        .boxed())
    }
}

/// Someone who watches events.
struct Watcher {
    _counted: OwnedSemaphorePermit,
    events: BoxStream<'static, v1::Event>,
    registry: Registry,
    peer: Peer,
    /// The configuration that let the peer read.
    config: Arc<Config>,
    closing: CancellationToken,
}

impl Watcher {
    async fn next(&mut self) -> Result<v1::Event, Refusal> {
        let event = tokio::select! {
            event = self.events.next() => event.ok_or_else(closing)?,
            () = self.closing.cancelled() => return Err(closing()),
        };
        let config = self.registry.config();
        if !Arc::ptr_eq(&config, &self.config) {
            authorize(&config, &self.peer, Action::Read, None)?;
            self.config = config;
        }
        Ok(event)
    }
}

fn closing() -> Refusal {
    Refusal::one(Code::Unavailable, "furt shuts down")
}

/// Names one request in the answer and the log: a ULID.
#[derive(Debug, Clone, Default)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new one.
    pub(super) fn new() -> Self {
        Self(Ulid::generate().to_string().into())
    }
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
