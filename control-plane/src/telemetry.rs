//! What is seen of the control plane from outside: one function per event, with its log line, its metric and what
//! watchers are told (DESIGN §10, §13).
//!
//! Here: the words and the counts. Not here: when something happens, how events are kept (`events`). A token never
//! gets here.

use std::{
    fmt::{self, Display},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use furt_proto::{
    names::{InstanceId, ServiceName, quoted},
    v1,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry as Metrics,
};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::{
    events::{Events, Kind},
    records::{Change, Transition},
    refusal::Refusal,
    registration::RouteKey,
    services::{Seen, Ticket},
};

pub use scrape::{Gauges, InstanceRow};

mod scrape;

/// Upper bounds of the probe histogram in seconds: a local service answers in under a millisecond, the longest
/// default timeout is five seconds.
const PROBE_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Upper bounds of the commit histogram in seconds: a sync is some 100 µs on a good disk and seconds on a sick one.
const COMMIT_SECONDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];
/// Characters of an event's message; people read it in a line.
const MOST_MESSAGE: usize = 500;
/// Refusals told to watchers in a second: whoever is refused without end must not push out what else happened.
const REFUSALS_A_SECOND: u32 = 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// The control plane's counts, and its events.
pub struct Telemetry {
    metrics: Metrics,
    gauges: Arc<dyn Gauges>,
    events: Events,
    pushed: Family<KindLabel, Counter>,
    refusals: Mutex<Refusals>,
    registrations: Family<ResultLabel, Counter>,
    probe_duration: Histogram,
    probe_failures: Family<ServiceLabel, Counter>,
    probes_unable: Counter,
    sessions: Gauge,
    store_up: Gauge,
    store_down: AtomicBool,
    store_operations: Counter,
    commit_duration: Histogram,
}

/// How many refusals watchers were told of in the current second, and how many they were not.
struct Refusals {
    second: Instant,
    told: u32,
    untold: u64,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    /// With all counts at 0; what happens is told to `events`.
    pub fn new(gauges: impl Gauges, events: Events) -> Self {
        let telemetry = Self {
            metrics: Metrics::default(),
            gauges: Arc::new(gauges),
            events,
            pushed: Family::default(),
            refusals: Mutex::new(Refusals { second: Instant::now(), told: 0, untold: 0 }),
            registrations: Family::default(),
            probe_duration: Histogram::new(PROBE_SECONDS),
            probe_failures: Family::default(),
            probes_unable: Counter::default(),
            sessions: Gauge::default(),
            store_up: Gauge::default(),
            store_down: AtomicBool::new(false),
            store_operations: Counter::default(),
            commit_duration: Histogram::new(COMMIT_SECONDS),
        };
        telemetry.store_up.set(1);
        telemetry.with_families()
    }

    fn with_families(mut self) -> Self {
        let metrics = &mut self.metrics;
        metrics.register("furt_registrations", "Registrations by result", self.registrations.clone());
        metrics.register("furt_probe_duration_seconds", "How long answered probes took", self.probe_duration.clone());
        metrics.register("furt_probe_failures", "Probes that were not answered with 2xx in time", self.probe_failures.clone());
        let help = "Probes that failed for reasons of furt's own and were repeated";
        metrics.register("furt_probes_unable", help, self.probes_unable.clone());
        metrics.register("furt_events", "Events told to watchers, by kind", self.pushed.clone());
        metrics.register("furt_sessions", "Sessions that services hold now", self.sessions.clone());
        metrics.register("furt_store_up", "1 while registrations can be stored", self.store_up.clone());
        metrics.register("furt_store_operations", "Records written to the store or deleted from it", self.store_operations.clone());
        let help = "How long a commit to the store took, its sync included";
        metrics.register("furt_store_commit_duration_seconds", help, self.commit_duration.clone());
        metrics.register_collector(Box::new(scrape::AtScrape(self.gauges.clone())));
        self
    }

    /// What happens, for those who watch.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// All metrics in text form, without an end mark.
    pub fn encode(&self, out: &mut String) {
        let begin = out.len();
        if let Err(error) = prometheus_text::encode(out, &self.metrics) {
            // Half a family would make the whole page unreadable.
            out.truncate(begin);
            error!(%error, "cannot write the control plane's metrics");
        }
    }

    fn count(&self, result: &'static str) {
        self.registrations.get_or_create(&ResultLabel { result }).inc();
    }

    fn tell(&self, kind: Kind, message: &str, event: v1::Event) {
        self.pushed.get_or_create(&KindLabel { kind: kind.name() }).inc();
        self.events.push(v1::Event { kind: kind.name().into(), message: cut(message, MOST_MESSAGE), ..event });
    }

    /// About an instance, as the snapshot of now shows it.
    fn tell_of(&self, kind: Kind, service: &ServiceName, instance: &InstanceId, message: &str) {
        let version = self.gauges.version();
        self.tell(kind, message, v1::Event { service: service.to_string(), instance: instance.to_string(), version, ..Default::default() });
    }
}

/// Registrations.
impl Telemetry {
    /// A service registered, changed its registration, or renewed it.
    pub fn registered(&self, peer: IpAddr, request: &Registered<'_>) {
        let Registered { service, instance, change, url, replaces, routes, registration_id, version } = *request;
        let kind = match change {
            Change::Started => {
                self.count("registered");
                info!(%service, %instance, url, replaces, routes, registration_id, version, %peer, "service registered");
                Kind::Registered
            }
            Change::Updated => {
                self.count("updated");
                info!(%service, %instance, url, routes, registration_id, version, %peer, "registration changed");
                Kind::Updated
            }
            Change::Renewed => {
                self.count("renewed");
                debug!(%service, %instance, registration_id, %peer, "registration renewed");
                return;
            }
        };
        let event = v1::Event { service: service.to_string(), instance: instance.to_string(), version, ..Default::default() };
        let was = replaces.map(|was| format!(" in the place of {was}")).unwrap_or_default();
        self.tell(kind, &format!("{} at {url}{was}, registered by {peer}", count_of(routes, "route")), event);
    }

    /// Routes of a service that let callers through whom they kept out before.
    pub fn loosened(&self, service: &ServiceName, instance: &InstanceId, routes: &[RouteKey]) {
        let first = routes.first().map(ToString::to_string).unwrap_or_default();
        info!(%service, %instance, routes = routes.len(), first, "routes loosened: callers are let through that were not before");
        let named: Vec<_> = routes.iter().take(5).map(ToString::to_string).collect();
        let more = routes.len() - named.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let message = format!("callers are let through that were not before: {}{more}", named.join(", "));
        self.tell_of(Kind::Loosened, service, instance, &message);
    }

    /// Somebody asked what registering would do.
    pub fn dry_run(&self, service: &ServiceName, peer: IpAddr) {
        self.count("dry_run");
        debug!(%service, %peer, "dry run answered");
    }

    /// A registration was refused. `service` is what was sent, which may be no name.
    pub fn registration_refused(&self, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        self.count("refused");
        self.refused("registration", service, peer, refusal);
    }

    /// A deregistration was refused. `service` as above.
    pub fn deregistration_refused(&self, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        self.refused("deregistration", service, peer, refusal);
    }

    /// A drain, or taking it back, was refused. `service` as above.
    pub fn drain_refused(&self, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        self.refused("drain", service, peer, refusal);
    }

    fn refused(&self, what: &str, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        let reason = cut(&refusal.line(), MOST_MESSAGE / 2);
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        let code = refusal.code();
        let name = service.parse::<ServiceName>().ok();
        // Like in every other line, unless it is no name: then it could hold anything.
        let shown = name.as_ref().map_or_else(|| quoted(service), ToString::to_string);
        warn!(service = shown, peer, %code, faults = refusal.faults.len(), reason, "{what} refused");
        let Some(untold) = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now()) else { return };
        let before = if untold == 0 { String::new() } else { format!("; {untold} refusals before it are not told") };
        // What has no name at all, such as a body that is no JSON, is not called "".
        let of = if name.is_some() || service.is_empty() { String::new() } else { format!(" of {shown}") };
        let event = v1::Event { service: name.map(|name| name.to_string()).unwrap_or_default(), ..Default::default() };
        // What was refused is in no snapshot.
        let message = format!("{what}{of} by {peer} refused: {code}: {reason}{before}");
        self.tell(Kind::Refused, &message, event);
    }

    /// An answer did not wait any longer for the data plane of this process.
    pub fn not_installed(&self, version: u64, waited: Duration) {
        warn!(version, waited_ms = waited.as_millis(), "the data plane has not installed a change in time; it was answered all the same");
    }

    /// Instances were taken out; `gone` when the service has none left.
    pub fn deregistered(&self, service: &ServiceName, instances: &[InstanceId], cause: &str, gone: bool) {
        for instance in instances {
            info!(%service, %instance, cause, "service deregistered");
            self.tell_of(Kind::Deregistered, service, instance, cause);
        }
        if gone {
            self.probe_failures.remove(&ServiceLabel { service: service.to_string() });
        }
    }

    /// A parked instance was forgotten, since nothing was heard of it for `forget_parked_after`.
    pub fn forgotten(&self, service: &ServiceName, instance: &InstanceId) {
        info!(%service, %instance, "service forgotten, it was parked for longer than forget_parked_after");
        self.tell_of(Kind::Forgotten, service, instance, "parked for longer than forget_parked_after");
    }

    /// An instance takes no new requests. `in_flight`: requests it had not answered when the time was over.
    pub fn drained(&self, service: &ServiceName, instance: &InstanceId, by_operator: bool, in_flight: u32) {
        let by = if by_operator { "an operator" } else { "the service" };
        info!(%service, %instance, by, in_flight, "service drained");
        let left = match in_flight {
            0 => String::new(),
            1 => ", 1 request was still in flight".into(),
            more => format!(", {more} requests were still in flight"),
        };
        self.tell_of(Kind::Drained, service, instance, &format!("asked for by {by}{left}"));
    }

    /// An operator's drain was taken back.
    pub fn undrained(&self, service: &ServiceName, instance: &InstanceId) {
        info!(%service, %instance, "service undrained, it takes requests again");
        self.tell_of(Kind::Undrained, service, instance, "takes requests again");
    }

    /// furt.conf no longer allows a registration: it stays, and takes no requests.
    pub fn withdrawn(&self, service: &ServiceName, instance: &InstanceId, reason: &str) {
        warn!(%service, %instance, reason, "service withdrawn, furt.conf no longer allows its registration");
        self.tell_of(Kind::Withdrawn, service, instance, reason);
    }

    /// furt.conf allows a withdrawn registration again.
    pub fn readmitted(&self, service: &ServiceName, instance: &InstanceId) {
        info!(%service, %instance, "service readmitted, furt.conf allows its registration again");
        self.tell_of(Kind::Readmitted, service, instance, "furt.conf allows the registration again");
    }
}

/// Health.
impl Telemetry {
    /// An instance's state changed.
    pub fn transition(&self, service: &ServiceName, instance: &InstanceId, transition: &Transition) {
        let Transition { from, to, cause, .. } = transition;
        let misses = to.misses();
        match (to.is_parked(), to.serves()) {
            (true, _) => info!(%service, %instance, misses, cause = &**cause, "service parked, pings have stopped"),
            (false, true) => info!(%service, %instance, from = from.name(), to = to.name(), cause = &**cause, "service up"),
            (false, false) if from.is_parked() => info!(%service, %instance, cause = &**cause, "service woken, pings begin again"),
            (false, false) => {
                info!(%service, %instance, misses, from = from.name(), cause = &**cause, "service down, its routes are withdrawn")
            }
        }
        let event = v1::Event {
            service: service.to_string(),
            instance: instance.to_string(),
            from: from.word().into(),
            to: to.word().into(),
            version: self.gauges.version(),
            ..Default::default()
        };
        self.tell(Kind::Transition, cause, event);
    }

    /// A probe came back.
    pub fn probed(&self, ticket: &Ticket, seen: &Seen, misses: u32) {
        let (service, instance) = (&ticket.service, &ticket.instance);
        match seen {
            Seen::Answered(took) => self.probe_duration.observe(took.as_secs_f64()),
            Seen::Missed(reason) => {
                self.probe_failures.get_or_create(&ServiceLabel { service: service.to_string() }).inc();
                warn!(%service, %instance, url = ticket.registration.url.as_str(), misses, reason, "health check failed");
            }
            Seen::Unable(reason) => {
                self.probes_unable.inc();
                warn!(%service, %instance, reason, "health check could not be made, it will be repeated");
            }
        }
    }

    /// Something other than a probe speaks against an instance: a data plane could not connect, a session was lost.
    pub fn suspected(&self, service: &str, instance: &InstanceId, reason: &str) {
        info!(service, %instance, reason, "service suspected, extra health checks begin");
        let version = self.gauges.version();
        let event = v1::Event { service: service.into(), instance: instance.to_string(), version, ..Default::default() };
        self.tell(Kind::Suspected, reason, event);
    }

    /// A name that is in use was looked up in vain, or stands for addresses that are not allowed.
    pub fn not_resolved(&self, who: &str, host: &str, reason: &str) {
        warn!(service = who, host, reason, "host name not usable, the last good addresses are kept");
    }

    /// A name that is in use stands for other addresses now.
    pub fn resolved(&self, who: &str, host: &str, addresses: &str) {
        info!(service = who, host, addresses, "host name has new addresses");
    }
}

/// Sessions and data planes.
impl Telemetry {
    /// Counts one more session for as long as the answer lives; `None` when there are `most` already.
    pub(crate) fn session(&self, most: i64) -> Option<OpenSession> {
        // Counted before it is asked, so that two at once are not both the last one.
        let before = self.sessions.inc();
        let counted = OpenSession(self.sessions.clone());
        (before < most).then_some(counted)
    }

    /// A session holds an instance.
    pub fn session_opened(&self, service: &ServiceName, instance: &InstanceId) {
        info!(%service, %instance, "session opened");
        self.tell_of(Kind::SessionOpened, service, instance, "the service holds a session");
    }

    /// A session ended without a farewell.
    pub fn session_lost(&self, service: &ServiceName, instance: &InstanceId, cause: &str) {
        warn!(%service, %instance, cause, "session lost");
        self.tell_of(Kind::SessionLost, service, instance, cause);
    }

    /// A data plane follows, or has left.
    pub fn subscriber(&self, peer: Option<IpAddr>, attached: bool) {
        let peer = peer.map_or_else(|| "this process".to_owned(), |peer| peer.to_string());
        let what = if attached { "attached" } else { "left" };
        debug!(peer, "data plane {what}");
    }
}

/// The control plane itself: its store, its configuration.
impl Telemetry {
    /// The control plane began with what its store held.
    pub fn restored(&self, instances: usize, services: usize, took: Duration) {
        let took_ms = millis(took);
        info!(instances, services, took_ms, "registrations restored");
        let message = format!("{} of {} restored in {took_ms} ms", count_of(instances, "instance"), count_of(services, "service"));
        self.tell(Kind::Started, &message, v1::Event { version: self.gauges.version(), ..Default::default() });
    }

    /// What the store holds of an instance makes no sense to this version.
    pub fn not_restored(&self, service: &str, instance: &str) {
        error!(service, instance, "a stored registration makes no sense to this version; it stays in the store and is not served");
    }

    /// A commit is durable.
    pub fn committed(&self, took: Duration, operations: usize) {
        self.commit_duration.observe(took.as_secs_f64());
        self.store_operations.inc_by(u64::try_from(operations).unwrap_or(u64::MAX));
    }

    /// Nothing can be stored, as far as is known. Told once until [`Telemetry::store_recovered`].
    pub fn store_failed(&self, error: &dyn Display) {
        if self.store_down.swap(true, Ordering::SeqCst) {
            debug!(%error, "the store is still not usable");
            return;
        }
        self.store_up.set(0);
        error!(%error, "the store is not usable: what is registered serves on, registering is refused until it is back");
        self.tell(Kind::StoreFailed, &error.to_string(), v1::Event::default());
    }

    /// It can be stored again, `after` the first failure.
    pub fn store_recovered(&self, after: Duration) {
        if !self.store_down.swap(false, Ordering::SeqCst) {
            return;
        }
        self.store_up.set(1);
        let after_ms = millis(after);
        info!(after_ms, "the store is usable again");
        self.tell(Kind::StoreRecovered, &format!("usable again after {after_ms} ms"), v1::Event::default());
    }

    /// furt.conf was read anew and applied; `changes` says what is different, a sentence each.
    pub fn reloaded(&self, changes: &[String], version: u64) {
        for change in changes {
            info!(change, "furt.conf changed");
        }
        info!(changes = changes.len(), version, "furt.conf reloaded");
        let message = if changes.is_empty() { "nothing changed".to_owned() } else { changes.join("; ") };
        self.tell(Kind::Reloaded, &message, v1::Event { version, ..Default::default() });
    }

    /// furt.conf was read anew and does not apply: all is as before. `first` is the first of its faults.
    pub fn reload_refused(&self, faults: usize, first: &str) {
        warn!(faults, first, "furt.conf not reloaded, all stays as it was");
        let more = if faults > 1 { format!(" (and {} more)", faults - 1) } else { String::new() };
        self.tell(Kind::ReloadRefused, &format!("{}{more}", cut(first, MOST_MESSAGE / 2)), v1::Event::default());
    }
}

/// What was registered, for the log line.
#[derive(Debug)]
pub struct Registered<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The instance.
    pub instance: &'a InstanceId,
    /// What the registration was to the one before.
    pub change: Change,
    /// Where it listens.
    pub url: &'a str,
    /// Where the registration listens whose place it took, when that is somewhere else: two copies that name no
    /// instance take each other's.
    pub replaces: Option<&'a str>,
    /// How many routes.
    pub routes: usize,
    /// Names the registration.
    pub registration_id: &'a str,
    /// The version now.
    pub version: u64,
}

/// A session that is counted as open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenSession(Gauge);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Refusals {
    /// Whether one more is told, and then how many before it were not.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.told) = (now, 0);
        }
        if self.told == REFUSALS_A_SECOND {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// One line, and not a long one.
fn cut(text: &str, most: usize) -> String {
    let line = |character: char| if character.is_control() { ' ' } else { character };
    let mut characters = text.chars().map(line);
    let mut out: String = characters.by_ref().take(most).collect();
    if characters.next().is_some() {
        out.push('…');
    }
    out
}

fn count_of(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
