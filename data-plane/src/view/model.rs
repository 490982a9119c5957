//! For tests: a control plane's end of the snapshot protocol, without a registry behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use furt_proto::{network::Networks, tls::UpstreamTls, v1};
use prost::Message;
use sha2::{Digest, Sha256};

use super::View;
use crate::config::{Config, HealthDetail};

/// What furt.conf says when it says nothing, for one worker on a free port.
pub(crate) fn config() -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        workers: 1,
        tls: None,
        client_timeout: Duration::from_secs(10),
        client_idle_timeout: Duration::from_secs(75),
        max_header_size: 64 * 1024,
        max_headers: 100,
        max_uri_length: 8 * 1024,
        body_idle_timeout: Duration::from_secs(30),
        max_body_size: None,
        max_connections: 100,
        max_connections_per_address: None,
        h2_max_streams: 128,
        trusted_proxies: Networks::default(),
        ip_rate_limit: None,
        failed_key_limit: None,
        add_headers: Vec::new(),
        upstream_timeout: Duration::from_secs(30),
        deadline: None,
        connect_timeout: Duration::from_secs(5),
        max_idle_upstream: 256,
        upstream_idle_timeout: Duration::from_secs(30),
        slow_start: Duration::ZERO,
        upstream_tls: std::sync::Arc::new(UpstreamTls::new(rustls::RootCertStore::empty())),
        health_detail: HealthDetail::Auto,
        allow_registration_from: Networks::default(),
        log_requests: false,
        log_json: false,
        internal: None,
    }
}

/// Before the first snapshot.
pub(crate) fn empty() -> View {
    View::empty(config())
}

/// What is published, and what changed since it was last told.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub epoch: String,
    pub version: u64,
    services: BTreeMap<String, (v1::RouteSet, v1::InstanceSet)>,
    keys: v1::KeySet,
    fixed: v1::StaticRouteSet,
    cors: v1::Cors,
    changed: v1::WatchResponse,
    removed: BTreeSet<String>,
}

/// The digest of a part, as the protocol has it.
fn digest(kind: u8, name: &str, part: &impl Message) -> u64 {
    let hash = Sha256::new().chain_update([kind]).chain_update(name).chain_update([0]).chain_update(part.encode_to_vec());
    u64::from_le_bytes(*hash.finalize().first_chunk().unwrap())
}

/// `METHOD pattern`, and more words: `permission=…`, `host=…`, `public`, `by=0,1`.
pub(crate) fn route(text: &str) -> v1::SnapshotRoute {
    let mut words = text.split(' ');
    let mut route = v1::SnapshotRoute {
        method: words.next().unwrap().into(),
        path: words.next().unwrap().into(),
        instances: vec![0],
        ..Default::default()
    };
    for word in words {
        match word.split_once('=') {
            Some(("permission", value)) => route.permission = value.into(),
            Some(("host", value)) => route.host = value.into(),
            Some(("by", value)) => route.instances = value.split(',').map(|number| number.parse().unwrap()).collect(),
            Some(("timeout", value)) => route.timeout_ms = value.parse().unwrap(),
            None if word == "public" => route.public = true,
            _ => panic!("{word}"),
        }
    }
    route
}

/// An instance on this machine, on port `7000 + number`.
pub(crate) fn instance(number: u32, status: &str) -> v1::SnapshotInstance {
    v1::SnapshotInstance {
        number,
        id: format!("i{number}"),
        url: format!("http://127.0.0.1:{}", 7000 + number),
        addresses: vec![format!("127.0.0.1:{}", 7000 + number)],
        status: status.into(),
        weight: 100,
        protocol: "http1".into(),
        registration_id: format!("r{number}"),
        ..Default::default()
    }
}

/// A static route to port 7900; `text` as of [`route`].
pub(crate) fn fixed(name: &str, text: &str) -> v1::StaticRoute {
    let route = route(text);
    v1::StaticRoute {
        name: name.into(),
        host: route.host,
        methods: route.method.split(',').map(str::to_owned).collect(),
        path: route.path,
        permission: route.permission,
        public: route.public,
        url: "http://127.0.0.1:7900".into(),
        addresses: vec!["127.0.0.1:7900".into()],
        ..Default::default()
    }
}

impl Model {
    pub fn new(epoch: &str) -> Self {
        Self { epoch: epoch.into(), ..Self::default() }
    }

    pub fn routes(&mut self, service: &str, routes: Vec<v1::SnapshotRoute>) {
        let mut part = v1::RouteSet { routes, digest: 0 };
        part.digest = digest(1, service, &part);
        self.services.entry(service.into()).or_default().0 = part.clone();
        self.change(service).routes = Some(part);
    }

    pub fn instances(&mut self, service: &str, instances: Vec<v1::SnapshotInstance>) {
        let mut part = v1::InstanceSet { instances, digest: 0 };
        part.digest = digest(2, service, &part);
        self.services.entry(service.into()).or_default().1 = part.clone();
        self.change(service).instances = Some(part);
    }

    /// One instance that is up, and these routes.
    pub fn service(&mut self, service: &str, routes: &[&str]) {
        self.routes(service, routes.iter().map(|text| route(text)).collect());
        self.instances(service, vec![instance(0, "UP")]);
    }

    pub fn remove(&mut self, service: &str) {
        if self.services.remove(service).is_some() {
            self.changed.services.retain(|changed| changed.name != service);
            self.removed.insert(service.into());
        }
    }

    pub fn keys(&mut self, keys: Vec<v1::Key>) {
        self.keys = v1::KeySet { keys, digest: 0 };
        self.keys.digest = digest(3, "", &self.keys);
        self.changed.keys = Some(self.keys.clone());
    }

    pub fn fixed(&mut self, routes: Vec<v1::StaticRoute>) {
        self.fixed = v1::StaticRouteSet { routes, digest: 0 };
        self.fixed.digest = digest(4, "", &self.fixed);
        self.changed.static_routes = Some(self.fixed.clone());
    }

    pub fn cors(&mut self, origins: &[&str]) {
        self.cors = v1::Cors { allowed_origins: origins.iter().map(|origin| (*origin).to_owned()).collect(), digest: 0 };
        self.cors.digest = digest(5, "", &self.cors);
        self.changed.cors = Some(self.cors.clone());
    }

    pub fn report(&mut self, service: &str, instance: u32, last_ping_unix_ms: i64, change: impl FnOnce(&mut v1::ProbeReport)) {
        let mut report = v1::ProbeReport { service: service.into(), instance, last_ping_unix_ms, ..Default::default() };
        change(&mut report);
        self.changed.reports.push(report);
    }

    fn change(&mut self, service: &str) -> &mut v1::ServiceSnapshot {
        let changed = &mut self.changed.services;
        let at = changed.iter().position(|changed| changed.name == service).unwrap_or_else(|| {
            changed.push(v1::ServiceSnapshot { name: service.into(), ..Default::default() });
            changed.len() - 1
        });
        &mut changed[at]
    }

    fn digest(&self) -> u64 {
        let parts = self.services.values().flat_map(|(routes, instances)| [routes.digest, instances.digest]);
        parts.chain([self.keys.digest, self.fixed.digest, self.cors.digest]).fold(0, u64::wrapping_add)
    }

    /// What changed since the last `delta`.
    pub fn delta(&mut self) -> v1::WatchResponse {
        self.version += 1;
        let changed = std::mem::take(&mut self.changed);
        let removed = std::mem::take(&mut self.removed).into_iter().collect();
        v1::WatchResponse { epoch: self.epoch.clone(), version: self.version, removed, digest: self.digest(), ..changed }
    }

    /// All of it.
    pub fn whole(&self) -> v1::WatchResponse {
        let services = self.services.iter().map(|(name, (routes, instances))| v1::ServiceSnapshot {
            name: name.clone(),
            routes: Some(routes.clone()),
            instances: Some(instances.clone()),
        });
        v1::WatchResponse {
            epoch: self.epoch.clone(),
            version: self.version,
            whole: true,
            services: services.collect(),
            keys: Some(self.keys.clone()),
            static_routes: Some(self.fixed.clone()),
            cors: Some(self.cors.clone()),
            digest: self.digest(),
            renew_after_seconds: 60,
            ..Default::default()
        }
    }
}
