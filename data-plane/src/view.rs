//! What a request sees: everything it needs, immutable, behind one pointer (DESIGN §11).
//!
//! Here: `View`, compiled from the snapshots of a control plane, with what furt.conf says of requests, and
//! `apply`, which compiles a change and shares the rest with the view before. `Current` holds the one in force.
//! Not here: how snapshots arrive, what is done with a request.

use std::{net::SocketAddr, sync::Arc};

use furt_proto::{url::UpstreamUrl, v1};
use http::HeaderValue;

use crate::{
    address_limit::AddressLimits, auth::Keys, balance::InstanceState, config::Config, map::Map, metrics::ServiceMetrics, table::Table,
};

mod compile;
mod current;
#[cfg(test)]
pub(crate) mod model;
mod routes;
mod stored;
#[cfg(test)]
mod tests;

pub use compile::{ApplyError, apply};
pub use current::{Current, CurrentCache};

/// The health of an instance as the control plane decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its last scheduled probes were answered.
    Up,
    /// Not decided yet.
    Unknown,
    /// Too many misses.
    Down,
}

impl Status {
    /// As the wire and `/health` write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Unknown => "UNKNOWN",
            Self::Down => "DOWN",
        }
    }
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    H2,
}

/// One running copy of a service.
#[derive(Debug)]
pub struct Instance {
    /// Names it within its service for as long as it is registered.
    pub number: u32,
    /// The id it registered with.
    pub id: Arc<str>,
    /// As registered.
    pub url: UpstreamUrl,
    /// The addresses that may be connected to.
    pub addresses: Vec<SocketAddr>,
    /// As the control plane decided.
    pub status: Status,
    /// Share of requests, 1 to 1000.
    pub weight: u32,
    /// What it speaks.
    pub protocol: Protocol,
    /// Pings have stopped.
    pub parked: bool,
    /// Something other than a probe speaks against it.
    pub suspect: bool,
    /// Takes no new requests.
    pub drained: bool,
    /// furt.conf no longer allows its registration: takes no requests.
    pub withdrawn: bool,
    /// Names the registration.
    pub registration_id: Arc<str>,
    /// What this data plane knows of it; the same for as long as the registration stays.
    pub state: Arc<InstanceState>,
    /// Host and port of its url.
    pub authority: HeaderValue,
    /// Most requests that this data plane has under way to it; 0: no limit.
    pub max_in_flight: u32,
    /// Whether its connections are used again.
    pub keep_alive: bool,
    /// The name that its certificate has to have; `None`: no TLS.
    pub tls: Option<Arc<str>>,
}

/// A service, or a static route in the same clothes.
#[derive(Debug)]
pub struct Service {
    /// Its name; the label of a static route.
    pub name: Arc<str>,
    /// Its place in the view; another may get it only when this one is gone.
    pub slot: u32,
    /// In the order of numbers.
    pub instances: Vec<Arc<Instance>>,
    /// Whether it stands for a static route.
    pub is_static: bool,
    /// Its counts, the same for as long as it is there.
    pub metrics: Arc<ServiceMetrics>,
}

/// What the probes of an instance last saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Milliseconds since 1970; 0: not yet pinged.
    pub last_ping_unix_ms: i64,
    /// What the last answered ping took; `None`: it was not answered.
    pub response_time_ms: Option<u32>,
    /// Misses in a row.
    pub consecutive_failures: u32,
    /// When it is pinged next, milliseconds since 1970; 0: not.
    pub next_probe_unix_ms: i64,
}

/// How much was compiled to come to a view, over the life of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Services of which a part was compiled.
    pub services: u64,
    /// Routes put into the table; a change of health adds none.
    pub routes: u64,
}

/// Everything a request needs. A clone shares all of it.
#[derive(Debug, Clone)]
pub struct View {
    /// The life of the control plane it came from; empty: there has been no snapshot yet.
    pub epoch: Arc<str>,
    /// Counts changes within that life.
    pub version: u64,
    /// The wrapping sum of the digests of all parts.
    pub digest: u64,
    /// The routes.
    pub table: Table,
    /// The callers.
    pub keys: Arc<Keys>,
    /// Who may read answers from a browser: origins, or `*`.
    pub cors_origins: Arc<[String]>,
    /// How often services repeat their registration, in seconds.
    pub renew_after_seconds: u32,
    /// What the control plane lacks, in sentences for `/health`.
    pub issues: Arc<[String]>,
    /// The control plane cannot read its store, so services that it does not name are kept.
    pub partial: bool,
    /// What the last update had that this program does not understand, for the log; at most 20.
    pub notes: Arc<[String]>,
    /// What furt.conf says of requests.
    pub config: Arc<Config>,
    /// How many configurations there have been before this one.
    pub reloads: u32,
    /// `ip_rate_limit`; the same limiters for as long as the rate stays.
    pub address_limits: Option<Arc<AddressLimits>>,
    /// `failed_key_limit`; the same limiters for as long as the rate stays.
    pub failed_keys: Option<Arc<AddressLimits>>,
    compiled: Compiled,
    parts: compile::Parts,
    slots: Map<u32, Arc<Service>>,
    reports: Map<(u32, u32), Report>,
    drained: Map<(u32, u32), Arc<Instance>>,
}

impl View {
    /// Before the first snapshot.
    pub fn empty(config: Config) -> Self {
        Self {
            epoch: "".into(),
            version: 0,
            digest: 0,
            table: Table::default(),
            keys: Arc::default(),
            cors_origins: Arc::default(),
            renew_after_seconds: 0,
            issues: Arc::default(),
            partial: false,
            notes: Arc::default(),
            address_limits: config.ip_rate_limit.map(AddressLimits::new).map(Arc::new),
            failed_keys: config.failed_key_limit.map(AddressLimits::new).map(Arc::new),
            config: Arc::new(config),
            reloads: 0,
            compiled: Compiled::default(),
            parts: compile::Parts::default(),
            slots: Map::new(),
            reports: Map::new(),
            drained: Map::new(),
        }
    }

    /// Whether there has been a snapshot.
    pub fn is_ready(&self) -> bool {
        !self.epoch.is_empty()
    }

    /// The service in a slot: what `Route::slot` points to.
    pub fn service(&self, slot: u32) -> Option<&Arc<Service>> {
        self.slots.get(&slot)
    }

    /// Services and static routes, by name; of one name, the service first.
    pub fn services(&self) -> Vec<&Arc<Service>> {
        let mut all: Vec<_> = self.slots.values().collect();
        all.sort_unstable_by_key(|service| (&*service.name, service.is_static, service.slot));
        all
    }

    /// How many registered services there are, static routes not counted.
    pub fn registered(&self) -> usize {
        self.parts.registered()
    }

    /// What the probes of an instance last saw; `None`: nothing was said yet.
    pub fn report(&self, slot: u32, number: u32) -> Option<&Report> {
        self.reports.get(&(slot, number))
    }

    /// When an instance of a service is pinged next, milliseconds since 1970: the earliest a service
    /// without a serving instance may be back. `None`: no ping is due.
    pub fn next_probe_unix_ms(&self, service: &Service) -> Option<i64> {
        let reports = service.instances.iter().filter_map(|instance| self.report(service.slot, instance.number));
        reports.map(|report| report.next_probe_unix_ms).filter(|next| *next > 0).min()
    }

    /// Requests in flight to drained instances, those with none left out.
    pub fn in_flight(&self) -> Vec<v1::InFlight> {
        let counted = self.drained.iter().filter_map(|((slot, number), instance)| {
            let requests = instance.state.in_flight();
            let service = self.service(*slot).filter(|_| requests > 0)?;
            Some(v1::InFlight { service: service.name.to_string(), instance: *number, requests })
        });
        counted.collect()
    }

    /// Whether it has a drained instance.
    pub fn drains(&self) -> bool {
        !self.drained.is_empty()
    }

    /// How much was compiled to come to this view, over the life of the process.
    pub fn compiled(&self) -> Compiled {
        self.compiled
    }
}

/// A status as the wire writes it; what is not understood takes no requests.
fn status(text: &str) -> Option<Status> {
    match text {
        "UP" => Some(Status::Up),
        "UNKNOWN" => Some(Status::Unknown),
        "DOWN" => Some(Status::Down),
        _ => None,
    }
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "" | "http1" => Some(Protocol::Http1),
        "h2" => Some(Protocol::H2),
        _ => None,
    }
}

impl From<&v1::ProbeReport> for Report {
    fn from(report: &v1::ProbeReport) -> Self {
        Self {
            last_ping_unix_ms: report.last_ping_unix_ms,
            response_time_ms: report.response_time_ms,
            consecutive_failures: report.consecutive_failures,
            next_probe_unix_ms: report.next_probe_unix_ms,
        }
    }
}
