//! What is read at each scrape instead of counted.
//!
//! Here: the rows, and how they become families. Not here: counts.

use std::{fmt, sync::Arc, time::Duration};

use furt_proto::names::{InstanceId, ServiceName};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::MetricType,
};

use crate::uptime::WINDOWS;

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

/// What is read at each scrape instead of counted.
pub trait Gauges: Send + Sync + 'static {
    /// The version of the serving set; asked for events too, so it takes no lock that an event is told under.
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

pub(super) struct AtScrape(pub Arc<dyn Gauges>);

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
