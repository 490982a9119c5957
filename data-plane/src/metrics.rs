//! What the data plane counts (DESIGN §13): plain counters per worker, summed when somebody asks.
//!
//! A worker is the only writer of its shard, so a count is a load and a store, no locked instruction.
//! Label values are bounded: services, known methods, known statuses; never a path.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder},
    metrics::MetricType,
};

use crate::view::Service;

/// Methods with a label of their own; the last stands for all others.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"];

/// Statuses with a label of their own; any other is counted under its class.
const STATUSES: [u16; 56] = [
    101, 200, 201, 202, 203, 204, 205, 206, 207, 300, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410,
    411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511,
    520, 599,
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const SLOTS: usize = STATUSES.len() + CLASSES.len();

/// Upper bounds of the duration buckets, in microseconds; the last bucket has none.
const BOUNDS_US: [u64; 14] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];

fn count(counter: &AtomicU64, by: u64) {
    // One writer: no read-modify-write is needed.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// The counts of one service; made once per service and carried over from view to view.
#[derive(Debug)]
pub struct ServiceMetrics {
    shards: Box<[OnceLock<Box<Shard>>]>,
}

#[derive(Debug, Default)]
struct Shard {
    requests: [OnceLock<Box<Statuses>>; METHODS.len()],
    request: Histogram,
    upstream: Histogram,
}

#[derive(Debug)]
struct Statuses([AtomicU64; SLOTS]);

impl Default for Statuses {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        count(&self.buckets[bucket], 1);
        count(&self.sum_us, us);
    }
}

fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::PATCH => 4,
        Method::DELETE => 5,
        Method::OPTIONS => 6,
        _ => 7,
    }
}

fn status_index(status: StatusCode) -> usize {
    match STATUSES.binary_search(&status.as_u16()) {
        Ok(index) => index,
        Err(_) => STATUSES.len() + usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1,
    }
}

impl ServiceMetrics {
    /// For a data plane with so many workers; shards are made at their first count.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    /// Counts one answered request. `worker` is the calling worker's own number.
    pub fn observe(&self, worker: usize, method: &Method, status: StatusCode, total: Duration, upstream: Option<Duration>) {
        let Some(shard) = self.shards.get(worker) else { return };
        let shard = shard.get_or_init(Box::default);
        let statuses = shard.requests[method_index(method)].get_or_init(Box::default);
        count(&statuses.0[status_index(status)], 1);
        shard.request.observe(total);
        if let Some(upstream) = upstream {
            shard.upstream.observe(upstream);
        }
    }

    fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter_map(|shard| shard.get().map(|shard| &**shard))
    }

    /// Every (method, status, count) that is not 0.
    fn requests(&self) -> impl Iterator<Item = (&'static str, String, u64)> {
        let cell = |method: usize, slot: usize| -> u64 {
            let statuses = self.shards().filter_map(move |shard| shard.requests[method].get());
            statuses.map(|statuses| statuses.0[slot].load(Ordering::Relaxed)).sum()
        };
        (0..METHODS.len()).flat_map(move |method| {
            (0..SLOTS).filter_map(move |slot| {
                let label = STATUSES.get(slot).map_or_else(|| CLASSES[slot - STATUSES.len()].to_owned(), u16::to_string);
                Some(cell(method, slot)).filter(|count| *count > 0).map(|count| (METHODS[method], label, count))
            })
        })
    }

    fn histogram(&self, which: fn(&Shard) -> &Histogram) -> Option<([u64; BOUNDS_US.len() + 1], u64)> {
        let mut buckets = [0; BOUNDS_US.len() + 1];
        let mut sum = 0;
        for shard in self.shards() {
            let histogram = which(shard);
            for (total, bucket) in buckets.iter_mut().zip(&histogram.buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
            sum += histogram.sum_us.load(Ordering::Relaxed);
        }
        (buckets.iter().sum::<u64>() > 0).then_some((buckets, sum))
    }
}

/// Counts of the whole data plane that belong to no service. Atomics that are seldom written.
#[derive(Debug, Default)]
pub struct Counters {
    /// Client connections open now.
    pub connections: AtomicU64,
    /// Client connections accepted.
    pub accepted: AtomicU64,
    /// Client connections closed at once because of `max_connections`.
    pub refused_connections: AtomicU64,
    /// Connections made to upstreams.
    pub upstream_connects: AtomicU64,
    /// Connects to upstreams that failed.
    pub upstream_connect_failures: AtomicU64,
    /// Requests sent again on a fresh connection.
    pub retries: AtomicU64,
    /// Access log lines dropped because the log's reader was too slow.
    pub log_lines_dropped: AtomicU64,
}

impl Counters {
    /// One more.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The data plane's part of `/metrics`.
pub struct DataPlaneCollector(pub Arc<crate::worker::Shared>);

impl fmt::Debug for DataPlaneCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataPlaneCollector")
    }
}

struct Labels<'a>(&'a [(&'static str, &'a str)]);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        for label in self.0 {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

impl Collector for DataPlaneCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shared = &self.0;
        let view = shared.current.load();
        let services = view.services();
        let names: Vec<Cow<'_, str>> = services.iter().map(|service| label(service)).collect();
        // What met no route is counted under the name "-", which no service can have.
        let all = || names.iter().zip(&services).map(|(name, service)| (&**name, &*service.metrics)).chain([("-", &shared.unrouted)]);

        let mut family = encoder.encode_descriptor("furt_requests", "Requests answered", None, MetricType::Counter)?;
        for (service, metrics) in all() {
            for (method, status, count) in metrics.requests() {
                let labels = [("service", service), ("method", method), ("status", &status)];
                prometheus_client::metrics::counter::ConstCounter::new(count).encode(family.encode_family(&Labels(&labels))?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "furt_request_duration_seconds",
            "From a request's head to the end of its answer",
            None,
            MetricType::Histogram,
        )?;
        for (service, metrics) in all() {
            histogram(&mut family, service, metrics.histogram(|shard| &shard.request))?;
        }
        let mut family = encoder.encode_descriptor(
            "furt_upstream_duration_seconds",
            "From sending a request to the head of its answer",
            None,
            MetricType::Histogram,
        )?;
        for (service, metrics) in all() {
            histogram(&mut family, service, metrics.histogram(|shard| &shard.upstream))?;
        }
        let mut family =
            encoder.encode_descriptor("furt_upstream_in_flight", "Requests under way to a service's instances", None, MetricType::Gauge)?;
        for (name, service) in names.iter().zip(&services) {
            let in_flight: u32 = service.instances.iter().map(|instance| instance.state.in_flight()).sum();
            let labels = [("service", &**name)];
            prometheus_client::metrics::gauge::ConstGauge::new(i64::from(in_flight)).encode(family.encode_family(&Labels(&labels))?)?;
        }
        let compiled = view.compiled();
        for (name, help, count) in [
            ("furt_services_compiled", "Services of which a published change compiled a part", compiled.services),
            ("furt_routes_compiled", "Routes put into the table; a change of health adds none", compiled.routes),
            ("furt_snapshots_refused", "Snapshots that did not decode or compile; the last good one serves", shared.current.refused()),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            prometheus_client::metrics::counter::ConstCounter::new(count).encode(family)?;
        }
        if let Some(age) = shared.snapshot_age() {
            let help = "Since the control plane was last heard";
            let family = encoder.encode_descriptor("furt_snapshot_age_seconds", help, None, MetricType::Gauge)?;
            prometheus_client::metrics::gauge::ConstGauge::new(age.as_secs_f64()).encode(family)?;
        }
        counters(&mut encoder, &shared.counters)
    }
}

/// The label of a service; a static route's is set apart, since a service may have the same name.
fn label(service: &Service) -> Cow<'_, str> {
    if service.is_static { format!("route:{}", service.name).into() } else { Cow::Borrowed(&*service.name) }
}

fn histogram(family: &mut MetricEncoder<'_>, service: &str, sums: Option<([u64; BOUNDS_US.len() + 1], u64)>) -> Result<(), fmt::Error> {
    let Some((buckets, sum_us)) = sums else { return Ok(()) };
    let bounds = BOUNDS_US.iter().map(|us| seconds(*us)).chain([f64::INFINITY]);
    let rows: Vec<(f64, u64)> = bounds.zip(buckets).collect();
    let labels = [("service", service)];
    let labels = Labels(&labels);
    let mut encoder = family.encode_family(&labels)?;
    encoder.encode_histogram::<Labels<'_>>(seconds(sum_us), buckets.iter().sum(), &rows, None)
}

#[allow(clippy::cast_precision_loss)] // microseconds of a process' life stay far below 2^53
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn counters(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> Result<(), fmt::Error> {
    let rows = [
        ("furt_connections_accepted", "Client connections accepted", &counters.accepted),
        ("furt_connections_refused", "Client connections closed because of max_connections", &counters.refused_connections),
        ("furt_upstream_connects", "Connections made to upstreams", &counters.upstream_connects),
        ("furt_upstream_connect_failures", "Connects to upstreams that failed", &counters.upstream_connect_failures),
        ("furt_retries", "Requests sent again on a fresh connection", &counters.retries),
        ("furt_log_lines_dropped", "Access log lines dropped because the log's reader was too slow", &counters.log_lines_dropped),
    ];
    for (name, help, counter) in rows {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        prometheus_client::metrics::counter::ConstCounter::new(counter.load(Ordering::Relaxed)).encode(family)?;
    }
    let open = i64::try_from(counters.connections.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
    let family = encoder.encode_descriptor("furt_connections", "Client connections open", None, MetricType::Gauge)?;
    prometheus_client::metrics::gauge::ConstGauge::new(open).encode(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_workers_are_summed_by_method_and_status() {
        let metrics = ServiceMetrics::new(2);
        let ms = Duration::from_millis(1);
        metrics.observe(0, &Method::GET, StatusCode::OK, ms, Some(ms));
        metrics.observe(1, &Method::GET, StatusCode::OK, ms, None);
        metrics.observe(1, &Method::from_bytes(b"BREW").unwrap(), StatusCode::from_u16(299).unwrap(), ms, None);
        let rows: Vec<_> = metrics.requests().collect();
        assert_eq!(rows, [("GET", "200".to_owned(), 2), ("OTHER", "2xx".to_owned(), 1)]);
        let (buckets, sum) = metrics.histogram(|shard| &shard.request).unwrap();
        assert_eq!((buckets[1], sum), (3, 3_000));
    }

    #[test]
    fn statuses_are_sorted_for_the_search() {
        assert!(STATUSES.is_sorted());
    }
}
