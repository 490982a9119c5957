//! What is seen of the control plane from outside: one function per event, its log line and its metric (DESIGN §13).
//!
//! Here: the words and the counts. Not here: when something happens. A token never gets here.

use std::{fmt, net::IpAddr, time::Duration};

use furt_proto::names::{InstanceId, ServiceName, quoted};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, prometheus_text},
    metrics::{MetricType, counter::Counter, family::Family, histogram::Histogram},
    registry::Registry as Metrics,
};
use tracing::{debug, error, info, warn};

use crate::{
    records::{Change, Transition},
    refusal::Refusal,
    registration::RouteKey,
    services::{Seen, Ticket},
    uptime::WINDOWS,
};

/// Upper bounds of the probe histogram in seconds: a local service answers in under a millisecond, the longest
/// default timeout is five seconds.
const PROBE_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabel {
    service: String,
    instance: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WindowLabel {
    service: String,
    window: &'static str,
}

/// The control plane's counts.
pub struct Telemetry {
    metrics: Metrics,
    registrations: Family<ResultLabel, Counter>,
    probe_duration: Histogram,
    probe_failures: Family<ServiceLabel, Counter>,
    probes_unable: Counter,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry")
    }
}

/// What is read at each scrape instead of counted.
pub trait Gauges: Send + Sync + 'static {
    /// The version of the serving set.
    fn version(&self) -> u64;
    /// Seconds since the control plane began.
    fn uptime(&self) -> Duration;
    /// One row for each instance, in the order of services.
    fn instances(&self) -> Vec<InstanceRow>;
}

/// What is told of one instance at a scrape.
#[derive(Debug, Clone)]
pub struct InstanceRow {
    /// Its service.
    pub service: ServiceName,
    /// Its id.
    pub instance: InstanceId,
    /// Whether it is UP.
    pub up: bool,
    /// The share of UP over each of [`WINDOWS`].
    pub uptime: [Option<f64>; 3],
}

impl Telemetry {
    /// With all counts at 0.
    pub fn new(gauges: impl Gauges) -> Self {
        let mut metrics = Metrics::default();
        let registrations = Family::<ResultLabel, Counter>::default();
        let probe_duration = Histogram::new(PROBE_SECONDS);
        let probe_failures = Family::<ServiceLabel, Counter>::default();
        let probes_unable = Counter::default();
        metrics.register("furt_registrations", "Registrations by result", registrations.clone());
        metrics.register("furt_probe_duration_seconds", "How long answered probes took", probe_duration.clone());
        metrics.register("furt_probe_failures", "Probes that were not answered with 2xx in time", probe_failures.clone());
        metrics.register("furt_probes_unable", "Probes that failed for reasons of furt's own and were repeated", probes_unable.clone());
        metrics.register_collector(Box::new(AtScrape(Box::new(gauges))));
        Self { metrics, registrations, probe_duration, probe_failures, probes_unable }
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

    /// A service registered, changed its registration, or renewed it.
    pub fn registered(&self, peer: IpAddr, request: &Registered<'_>) {
        let Registered { service, instance, change, routes, registration_id, version, .. } = request;
        match change {
            Change::Started => {
                self.count("registered");
                info!(%service, %instance, url = request.url, routes, registration_id, version, %peer, "service registered");
            }
            Change::Updated => {
                self.count("updated");
                info!(%service, %instance, url = request.url, routes, registration_id, version, %peer, "registration changed");
            }
            Change::Renewed => {
                self.count("renewed");
                debug!(%service, %instance, registration_id, %peer, "registration renewed");
            }
        }
    }

    /// Routes of a service that callers reach with less than before.
    pub fn loosened(&self, service: &ServiceName, instance: &InstanceId, routes: &[RouteKey]) {
        let first = routes.first().map(ToString::to_string).unwrap_or_default();
        info!(%service, %instance, routes = routes.len(), first, "routes loosened: they need no permission or no key any more");
    }

    /// Somebody asked what registering would do.
    pub fn dry_run(&self, service: &ServiceName, peer: IpAddr) {
        self.count("dry_run");
        debug!(%service, %peer, "dry run answered");
    }

    /// A registration was refused. `service` is what was sent, which may be no name.
    pub fn registration_refused(&self, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        self.count("refused");
        warn_refused("registration", service, peer, refusal);
    }

    /// A deregistration was refused. `service` as above.
    pub fn deregistration_refused(&self, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
        warn_refused("deregistration", service, peer, refusal);
    }

    /// An answer did not wait any longer for the data plane of this process.
    pub fn not_installed(&self, version: u64, waited: Duration) {
        warn!(version, waited_ms = waited.as_millis(), "the data plane has not installed a change in time; it was answered all the same");
    }

    /// Instances were taken out; `gone` when the service has none left.
    pub fn deregistered(&self, service: &ServiceName, instances: &[InstanceId], cause: &str, gone: bool) {
        for instance in instances {
            info!(%service, %instance, cause, "service deregistered");
        }
        if gone {
            self.probe_failures.remove(&ServiceLabel { service: service.to_string() });
        }
    }

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

    /// A data plane could not connect to an instance.
    pub fn suspected(&self, service: &str, instance: &InstanceId, reason: &str) {
        info!(service, %instance, reason, "service suspected, extra health checks begin");
    }

    /// A name that is in use was looked up in vain, or stands for addresses that are not allowed.
    pub fn not_resolved(&self, who: &str, host: &str, reason: &str) {
        warn!(service = who, host, reason, "host name not usable, the last good addresses are kept");
    }

    /// A name that is in use stands for other addresses now.
    pub fn resolved(&self, who: &str, host: &str, addresses: &str) {
        info!(service = who, host, addresses, "host name has new addresses");
    }

    /// A data plane follows, or has left.
    pub fn subscriber(&self, peer: Option<IpAddr>, attached: bool) {
        let peer = peer.map_or_else(|| "this process".to_owned(), |peer| peer.to_string());
        let what = if attached { "attached" } else { "left" };
        debug!(peer, "data plane {what}");
    }
}

fn warn_refused(what: &str, service: &str, peer: Option<IpAddr>, refusal: &Refusal) {
    // The message may have several lines, for people who read it where they sent the request.
    let reason = refusal.message();
    let reason = reason.lines().next().unwrap_or_default();
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    // Like in every other line, unless it is no name: then it could hold anything.
    let service = service.parse().map_or_else(|_| quoted(service), |name: ServiceName| name.to_string());
    warn!(%service, peer, code = %refusal.code(), faults = refusal.faults.len(), reason, "{what} refused");
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
    /// How many routes.
    pub routes: usize,
    /// Names the registration.
    pub registration_id: &'a str,
    /// The version now.
    pub version: u64,
}

struct AtScrape(Box<dyn Gauges>);

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge =
            |name: &str, help: &str, value: f64| encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value);
        let uptime = self.0.uptime();
        gauge("furt_snapshot_version", "The version of the serving set that the control plane publishes", self.0.version() as f64)?;
        gauge("furt_uptime_seconds", "Seconds since the control plane began", uptime.as_secs_f64())?;
        let rows = self.0.instances();
        if rows.is_empty() {
            // A family without a metric would be announced for nothing.
            return Ok(());
        }
        let mut up = encoder.encode_descriptor("furt_service_up", "1 while the instance is UP", None, MetricType::Gauge)?;
        for row in &rows {
            let labels = InstanceLabel { service: row.service.to_string(), instance: row.instance.to_string() };
            up.encode_family(&labels)?.encode_gauge(&u32::from(row.up))?;
        }
        let ratios = by_service(&rows);
        if ratios.is_empty() {
            return Ok(());
        }
        let help = "Share of the time in which the service was UP, of that in which it was UP or DOWN";
        let mut family = encoder.encode_descriptor("furt_service_uptime_ratio", help, None, MetricType::Gauge)?;
        for (labels, ratio) in &ratios {
            family.encode_family(labels)?.encode_gauge(ratio)?;
        }
        Ok(())
    }
}

/// The ratio of a service is that of the best of its instances. Rows come in the order of services.
fn by_service(rows: &[InstanceRow]) -> Vec<(WindowLabel, f64)> {
    let mut out = Vec::new();
    for of_one in rows.chunk_by(|one, two| one.service == two.service) {
        for (index, window) in WINDOWS.into_iter().enumerate() {
            let best = of_one.iter().filter_map(|row| row.uptime.get(index).copied().flatten()).reduce(f64::max);
            if let (Some(best), Some(row)) = (best, of_one.first()) {
                out.push((WindowLabel { service: row.service.to_string(), window }, best));
            }
        }
    }
    out
}
