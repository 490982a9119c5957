//! Follows a control plane: snapshots in, what was installed and met out (DESIGN §11).
//!
//! Here: the Watch stream over the generated client, whatever it runs on; decode, apply, install;
//! what is sent back: position, suspicions, requests in flight to drained instances; trying again.
//! Not here: what a snapshot means (`view`).
//!
//! Nothing here queues: what goes back is one pending message that grows no further than a bound,
//! and updates are applied as they come.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::{
    time::unix_ms_now,
    v1::{self, snapshot_service_client::SnapshotServiceClient},
};
use prost::Message;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, client::GrpcService};
use tracing::{debug, info, warn};

use crate::view::{ApplyError, Current, Instance, Service, View, apply};

/// Largest snapshot that is read. A million routes are about 100 MiB; tonic's own limit of 4 MiB
/// would refuse thirty thousand.
const MAX_MESSAGE: usize = 512 << 20;
/// Waits between attempts: doubling from the first to the last, half of each at random, so that
/// many data planes do not come back in step.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(10);
/// How often requests in flight to drained instances are counted, while there are any.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Suspicions that wait to be sent; further ones are dropped, the next failed connect brings them again.
const MAX_SUSPICIONS: usize = 1000;

/// Where the workers leave what they met; clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct Suspicions(Arc<Outbox>);

impl Suspicions {
    /// An instance could not be connected to. `reason`: what the connect said.
    pub fn report(&self, service: &Service, instance: &Instance, reason: &str) {
        // Nobody registered a static route, so nobody could be asked about it.
        if service.is_static {
            return;
        }
        let mut pending = self.0.lock();
        let known = pending.suspicions.iter().any(|known| {
            known.instance == instance.number && *known.service == *service.name && *known.registration_id == *instance.registration_id
        });
        if known || pending.suspicions.len() >= MAX_SUSPICIONS {
            return;
        }
        pending.suspicions.push(v1::Suspicion {
            service: service.name.to_string(),
            instance: instance.number,
            registration_id: instance.registration_id.to_string(),
            reason: reason.to_owned(),
        });
        drop(pending);
        self.0.changed.notify_one();
    }
}

/// What is to be sent next; everything else a message says is read from the view in force when it is sent.
#[derive(Debug, Default)]
struct Outbox {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// Where the view stands is to be said.
    due: bool,
    whole: Whole,
    suspicions: Vec<v1::Suspicion>,
    session: u64,
}

/// Whether the whole is wanted again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Whole {
    #[default]
    Unwanted,
    /// To be asked for.
    Wanted,
    /// Asked for and not yet here: what is held is nothing to build on.
    Asked,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing that holds the lock can panic half-way through a change.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session: its first message says where the view stands. Streams of earlier sessions end.
    fn begin(&self) -> u64 {
        let mut pending = self.lock();
        pending.session += 1;
        (pending.due, pending.whole) = (true, Whole::Unwanted);
        let session = pending.session;
        drop(pending);
        self.changed.notify_waiters();
        self.changed.notify_one();
        session
    }

    /// Ends the stream of the session.
    fn end(&self) {
        self.lock().session += 1;
        self.changed.notify_waiters();
    }

    fn say(&self, whole: Whole) {
        let mut pending = self.lock();
        (pending.due, pending.whole) = (true, whole);
        drop(pending);
        self.changed.notify_one();
    }

    /// The next message of a session; `None` once another has begun.
    async fn next(&self, session: u64, current: &Current) -> Option<v1::WatchRequest> {
        loop {
            let changed = self.changed.notified();
            {
                let mut pending = self.lock();
                if pending.session != session {
                    return None;
                }
                if pending.due || !pending.suspicions.is_empty() {
                    pending.due = false;
                    let whole = pending.whole;
                    if whole == Whole::Wanted {
                        pending.whole = Whole::Asked;
                    }
                    let suspicions = std::mem::take(&mut pending.suspicions);
                    return Some(v1::WatchRequest { suspicions, ..position(&current.load(), whole) });
                }
            }
            changed.await;
        }
    }
}

/// Where a view stands.
fn position(view: &View, whole: Whole) -> v1::WatchRequest {
    // Whoever read that it stands at its version would go on from there instead of sending the whole.
    if whole == Whole::Asked {
        return v1::WatchRequest::default();
    }
    v1::WatchRequest {
        epoch: view.epoch.to_string(),
        version: view.version,
        resync: whole == Whole::Wanted,
        in_flight: view.in_flight(),
        counted: view.drains(),
        ..Default::default()
    }
}

/// The task that keeps [`Current`] up to date. `T`: the snapshot service itself, or a channel to it.
pub struct Subscriber<T> {
    client: SnapshotServiceClient<T>,
    current: Current,
    suspicions: Suspicions,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the control plane ended the stream")]
    Stream,
    #[error("{0}")]
    Status(#[from] Status),
    #[error("a whole snapshot was refused: {0}")]
    Refused(Refused),
}

/// Why one message was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// What became of one message.
enum Received {
    Installed,
    /// A change that does not lead on from what is held.
    Resync,
    /// A change that was on its way before the whole that was asked for.
    Skipped,
}

impl<T> Subscriber<T>
where
    T: GrpcService<Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    /// Follows over `client`, installs into `current`, sends back what is left in `suspicions`.
    pub fn new(client: SnapshotServiceClient<T>, current: Current, suspicions: Suspicions) -> Self {
        Self { client: client.max_decoding_message_size(MAX_MESSAGE), current, suspicions }
    }

    /// Follows until `shutdown`. While no control plane answers, the last good view serves.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut wait = FIRST_WAIT;
        loop {
            let before = self.current.load();
            let ended = tokio::select! {
                // A stream that ends because furt stops is no loss of the control plane.
                biased;
                () = shutdown.cancelled() => return self.suspicions.0.end(),
                ended = self.session() => ended,
            };
            let now = self.current.load();
            if !Arc::ptr_eq(&before, &now) {
                wait = FIRST_WAIT;
            }
            warn!(reason = %ended, epoch = %now.epoch, version = now.version, retry_ms = wait.as_millis(), "lost the control plane");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait / 2 + wait.mul_f64(fastrand::f64() / 2.0)) => {}
            }
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// One stream, to its end.
    async fn session(&mut self) -> Ended {
        let outbox = self.suspicions.0.clone();
        let session = outbox.begin();
        let requests = futures_util::stream::unfold((outbox, self.current.clone()), move |(outbox, current)| async move {
            let next = outbox.next(session, &current).await?;
            Some((next, (outbox, current)))
        });
        match self.follow(requests).await {
            Ok(never) => never,
            Err(ended) => ended,
        }
    }

    async fn follow(&mut self, requests: impl futures_util::Stream<Item = v1::WatchRequest> + Send + 'static) -> Result<Ended, Ended> {
        let mut updates = self.client.watch(requests).await?.into_inner();
        let mut resyncing = false;
        let mut busy = Vec::new();
        loop {
            tokio::select! {
                update = updates.message() => {
                    let Some(update) = update? else { return Ok(Ended::Stream) };
                    self.current.hear(unix_ms_now());
                    match self.receive(update, resyncing)? {
                        Received::Installed => {
                            resyncing = false;
                            self.suspicions.0.say(Whole::Unwanted);
                        }
                        Received::Resync => {
                            resyncing = true;
                            self.suspicions.0.say(Whole::Wanted);
                        }
                        Received::Skipped => {}
                    }
                }
                () = tokio::time::sleep(DRAIN_LOOK), if !busy.is_empty() => {}
            }
            let are_busy = self.busy();
            if !resyncing && busy.iter().any(|was| !are_busy.contains(was)) {
                self.suspicions.0.say(Whole::Unwanted);
            }
            busy = are_busy;
        }
    }

    /// The drained instances that have requests in flight.
    fn busy(&self) -> Vec<(String, u32)> {
        self.current.load().in_flight().into_iter().map(|one| (one.service, one.instance)).collect()
    }

    /// Decodes, applies, installs. A bad change is answered by asking for the whole; a bad whole
    /// ends the session, since asking again at once would bring the same.
    fn receive(&self, bytes: Bytes, resyncing: bool) -> Result<Received, Ended> {
        let size = bytes.len();
        let update = match v1::WatchResponse::decode(bytes) {
            Ok(update) => update,
            Err(error) => return self.refuse(error.into(), resyncing),
        };
        let whole = update.whole;
        if resyncing && !whole {
            return Ok(Received::Skipped);
        }
        let held = self.current.load();
        let view = match apply(&held, update) {
            Ok(view) => view,
            Err(error) => return self.refuse(error.into(), whole),
        };
        for note in view.notes.iter() {
            warn!(version = view.version, %note, "not understood, answers 503");
        }
        if view.issues != held.issues {
            match view.issues.is_empty() {
                true => info!("the control plane lacks nothing any more"),
                false => warn!(issues = view.issues.join("; "), partial = view.partial, "the control plane lacks something"),
            }
        }
        if view.epoch != held.epoch {
            info!(epoch = %view.epoch, version = view.version, services = view.registered(), routes = view.table.len(), "first snapshot");
        } else if view.version != held.version {
            debug!(version = view.version, whole, size, "snapshot installed");
        }
        self.current.install(view);
        Ok(Received::Installed)
    }

    fn refuse(&self, refused: Refused, whole: bool) -> Result<Received, Ended> {
        self.current.refuse();
        let held = self.current.load();
        warn!(reason = %refused, whole, epoch = %held.epoch, version = held.version, "snapshot refused, the last good one serves");
        if whole { Err(Ended::Refused(refused)) } else { Ok(Received::Resync) }
    }
}

#[cfg(test)]
mod tests;
