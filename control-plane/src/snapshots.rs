//! What the data planes are told: `SnapshotService` over the registry (DESIGN §11).
//!
//! Here: the stream to one subscriber, built from what changed since the version it holds, when it asks for more;
//! a burst coalesces and nothing queues. Not here: what is published (`publication`), who may follow (`identity`).

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::{
    names::ServiceName,
    v1::{self, snapshot_service_server::SnapshotService},
};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    config::Config,
    identity::{Action, Peer, authorize},
    publication::{Delta, Notice, Part, field},
    registry::{Registry, Stamp, moment},
};

/// Between two batches of probe reports (DESIGN §11).
const REPORTS_EVERY: Duration = Duration::from_secs(1);
/// Reports of one message; more follow at once in the next.
const REPORTS_AT_ONCE: usize = 2_000;
/// How long a new subscriber may take to say what it holds before it is told the whole.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Suspicions taken from one message.
const MOST_SUSPICIONS: usize = 1_000;
/// Deltas up to this size are kept for the next subscriber that stands at the same version.
const WORTH_SHARING: usize = 1024 * 1024;

/// The last delta that was encoded: since which version, up to which, with which notice, and its bytes.
type Shared = Mutex<Option<(u64, u64, u64, Bytes)>>;

/// `SnapshotService`; clones share the registry.
#[derive(Clone)]
pub struct Snapshots {
    registry: Registry,
    shared: Arc<Shared>,
}

impl Snapshots {
    /// Over a registry.
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, shared: Arc::default() }
    }

    fn encode(&self, delta: &Delta, since: Option<u64>, notice: &Notice) -> Bytes {
        let fresh = || Bytes::from(delta.encode(self.registry.epoch(), notice));
        let Some(since) = since.filter(|_| !delta.whole) else { return fresh() };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((from, to, number, bytes)) = &*shared
            && (*from, *to, *number) == (since, delta.version, notice.number)
        {
            return bytes.clone();
        }
        let bytes = fresh();
        if bytes.len() <= WORTH_SHARING {
            *shared = Some((since, delta.version, notice.number, bytes.clone()));
        }
        bytes
    }
}

#[async_trait]
impl SnapshotService for Snapshots {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Bytes>, Status> {
        self.may_follow(&self.registry.config(), request.extensions().get())?;
        let (delta, notice, reports) = {
            let state = self.registry.lock();
            let at = moment();
            let reports: Vec<_> = state.services.reports(0, usize::MAX).map(|(_, name, instance)| instance.report(name, at)).collect();
            (state.services.publication().since(None), self.registry.notice(&state), reports)
        };
        let snapshot = with_reports(self.encode(&delta, None, &notice), &reports);
        let mut answer = Vec::with_capacity(snapshot.len() + 16);
        field(&mut answer, 1, &[&snapshot]);
        Ok(Response::new(answer.into()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<v1::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let config = self.registry.config();
        let peer = self.may_follow(&config, request.extensions().get())?;
        if peer.is_some() && !self.registry.has_room_for_a_plane() {
            return Err(Status::resource_exhausted("too many data planes follow already"));
        }
        let subscriber = Subscriber::new(self.clone(), peer, config, request.into_inner());
        let stream = stream::unfold(Some(subscriber), |subscriber| async move {
            let mut subscriber = subscriber?;
            let message = subscriber.next().await?;
            let goes_on = message.is_ok();
            Some((message, goes_on.then_some(subscriber)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Snapshots {
    /// A peer that may follow; `None` for the data plane of this process.
    fn may_follow(&self, config: &Config, peer: Option<&Peer>) -> Result<Option<Peer>, Status> {
        let Some(peer) = peer else { return Ok(None) };
        authorize(config, peer, Action::Snapshots, None)?;
        Ok(Some(peer.clone()))
    }
}

/// One data plane that follows.
struct Subscriber {
    snapshots: Snapshots,
    /// `None`: the data plane of this process.
    peer: Option<Peer>,
    /// By which it may follow; another one is asked anew.
    config: Arc<Config>,
    inbound: Option<Streaming<v1::WatchRequest>>,
    changed: watch::Receiver<Stamp>,
    /// Whether it has said what it holds.
    greeted: bool,
    /// What it holds once it has installed all that was sent; `None`: nothing that can be built on.
    sent: Option<u64>,
    /// Reports up to this one were sent.
    reported: u64,
    last_batch: Option<Instant>,
    /// The newest notice that was sent.
    noticed: u64,
    /// Its number among the data planes that follow.
    plane: u64,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let registry = &self.snapshots.registry;
        registry.detach(self.plane);
        registry.telemetry().subscriber(self.peer.as_ref().and_then(|peer| peer.address), false);
    }
}

impl Subscriber {
    fn new(snapshots: Snapshots, peer: Option<Peer>, config: Arc<Config>, inbound: Streaming<v1::WatchRequest>) -> Self {
        let registry = &snapshots.registry;
        registry.telemetry().subscriber(peer.as_ref().and_then(|peer| peer.address), true);
        Self {
            plane: registry.attach(peer.is_none()),
            changed: registry.follow(),
            peer,
            config,
            inbound: Some(inbound),
            greeted: false,
            sent: None,
            reported: 0,
            last_batch: None,
            noticed: 0,
            snapshots,
        }
    }

    /// The next message, when there is something to tell; `None` at shutdown and when the other side has failed. An
    /// error: since a reload it may follow no longer.
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let closed = self.snapshots.registry.closed().clone();
        if !self.greeted {
            self.greeted = true;
            let first = timeout(FIRST_WORD, read(&mut self.inbound));
            tokio::select! {
                () = closed.cancelled() => return None,
                // Silence is taken for holding nothing.
                first = first => if let Ok(first) = first { self.hear(first?) }
            }
        }
        loop {
            // What it has installed is heard at once, however much there is to tell.
            while let Some(heard) = read(&mut self.inbound).now_or_never() {
                self.hear(heard?);
            }
            if let Err(refused) = self.may_still_follow() {
                return Some(Err(refused));
            }
            if let Some(message) = self.build() {
                return Some(Ok(message));
            }
            let batch_due = self.last_batch.filter(|_| self.reported < self.changed.borrow().report).map(|last| last + REPORTS_EVERY);
            tokio::select! {
                () = closed.cancelled() => return None,
                changed = self.changed.changed() => changed.ok()?,
                heard = read(&mut self.inbound) => self.hear(heard?),
                () = sleep_until(batch_due.unwrap_or_else(Instant::now)), if batch_due.is_some() => {}
            }
        }
    }

    /// Every reload is a change that wakes it.
    fn may_still_follow(&mut self) -> Result<(), Status> {
        let config = self.snapshots.registry.config();
        if !Arc::ptr_eq(&config, &self.config) {
            self.snapshots.may_follow(&config, self.peer.as_ref())?;
            self.config = config;
        }
        Ok(())
    }

    fn hear(&mut self, request: v1::WatchRequest) {
        let registry = &self.snapshots.registry;
        let ours = request.epoch == registry.epoch();
        if ours {
            registry.heard(self.plane, &request);
        }
        if request.resync {
            (self.sent, self.reported) = (None, 0);
        } else if ours && self.sent.is_none() && request.version > 0 {
            self.sent = Some(request.version);
        }
        for suspicion in request.suspicions.iter().take(MOST_SUSPICIONS) {
            registry.suspect(suspicion);
        }
    }

    /// What is newer than what was sent, if anything is.
    fn build(&mut self) -> Option<Bytes> {
        let stamp = *self.changed.borrow_and_update();
        let behind = self.sent != Some(stamp.version);
        let batch = self.reported < stamp.report && self.last_batch.is_none_or(|last| last.elapsed() >= REPORTS_EVERY);
        if !behind && !batch && self.noticed == stamp.notice {
            return None;
        }
        let registry = self.snapshots.registry.clone();
        let at = moment();
        let state = registry.lock();
        let since = self.sent;
        // Empty when there is nothing but reports; then it says what the subscriber holds already.
        let delta = state.services.publication().since(since);
        let mut reports = Vec::new();
        if batch {
            for (cursor, name, instance) in state.services.reports(self.reported, REPORTS_AT_ONCE) {
                reports.push(instance.report(name, at));
                self.reported = cursor;
            }
            // A batch that was cut short goes on at once.
            self.last_batch = (reports.len() < REPORTS_AT_ONCE).then(Instant::now);
        } else {
            // What the probes saw that changed a state travels with the state.
            for name in changed_services(&delta) {
                let instances = state.services.get(name.as_str()).map(|service| service.instances.values());
                reports.extend(instances.into_iter().flatten().map(|instance| instance.report(name, at)));
            }
        }
        let notice = registry.notice(&state);
        drop(state);
        self.sent = Some(delta.version);
        self.noticed = notice.number;
        Some(with_reports(self.snapshots.encode(&delta, since, &notice), &reports))
    }
}

fn changed_services(delta: &Delta) -> HashSet<&ServiceName> {
    let service = |part| match part {
        &(Part::Instances(ref name), _) if !delta.whole => Some(name),
        _ => None,
    };
    delta.parts.iter().filter_map(service).take(REPORTS_AT_ONCE).collect()
}

/// The next request; never, when the other side has only closed its half. `None` when it has failed.
async fn read(inbound: &mut Option<Streaming<v1::WatchRequest>>) -> Option<v1::WatchRequest> {
    if let Some(stream) = inbound {
        match stream.next().await {
            Some(Ok(request)) => return Some(request),
            Some(Err(_)) => return None,
            None => *inbound = None,
        }
    }
    std::future::pending().await
}

/// Appends reports to an encoded `WatchResponse`: concatenated messages merge.
fn with_reports(message: Bytes, reports: &[v1::ProbeReport]) -> Bytes {
    if reports.is_empty() {
        return message;
    }
    let mut out = Vec::with_capacity(message.len() + reports.len() * 64);
    out.extend_from_slice(&message);
    for report in reports {
        field(&mut out, 10, &[&report.encode_to_vec()]);
    }
    out.into()
}

#[cfg(test)]
mod tests;
