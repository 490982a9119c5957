//! The parts of furt.conf that travel in the snapshot: keys, static routes, CORS.
//!
//! Here: their wire form. Pure. Keys cross only as digests. Not here: services (`records`), versions (`publication`).

use std::net::SocketAddr;

use furt_proto::{time::format_duration, v1};

use crate::{
    config::{Config, Key, StaticRoute},
    publication::{Encoded, Part},
    records::milliseconds,
    resolve::with_port,
};

/// All three parts, given the addresses of the static routes in the order of furt.conf.
pub fn parts(config: &Config, addresses: &[Vec<SocketAddr>]) -> [Encoded; 3] {
    let keys = v1::KeySet { keys: config.published.keys.iter().map(key).collect(), digest: 0 };
    let cors = v1::Cors { allowed_origins: config.published.cors_origins.clone(), digest: 0 };
    [Encoded::new(Part::Keys, keys), static_routes(config, addresses), Encoded::new(Part::Cors, cors)]
}

/// The static routes.
pub fn static_routes(config: &Config, addresses: &[Vec<SocketAddr>]) -> Encoded {
    let routes = config.published.static_routes.iter().enumerate();
    let routes = routes.map(|(index, route)| static_route(route, addresses.get(index).map_or(&[], Vec::as_slice))).collect();
    Encoded::new(Part::StaticRoutes, v1::StaticRouteSet { routes, digest: 0 })
}

/// The addresses of the static routes whose url has one, before any name is looked up.
pub fn literal_addresses(config: &Config) -> Vec<Vec<SocketAddr>> {
    let literal = |route: &StaticRoute| route.url.address().map(|address| with_port(&[address], &route.url)).unwrap_or_default();
    config.published.static_routes.iter().map(literal).collect()
}

fn key(key: &Key) -> v1::Key {
    v1::Key {
        name: key.name.clone(),
        sha256: key.digests.iter().map(|digest| digest.to_vec()).collect(),
        permissions: key.permissions.iter().map(ToString::to_string).collect(),
        allowed_ips: key.allowed_ips.iter().map(ToString::to_string).collect(),
        rate_limit: key.rate_limit.map(|rate| rate.to_string()).unwrap_or_default(),
        expires_unix: key.expires_unix.unwrap_or(0),
    }
}

fn static_route(route: &StaticRoute, addresses: &[SocketAddr]) -> v1::StaticRoute {
    let header = |(name, value): &(http::HeaderName, http::HeaderValue)| v1::SetHeader {
        name: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    v1::StaticRoute {
        name: route.name.to_string(),
        host: route.host.to_string(),
        methods: route.methods.iter().map(ToString::to_string).collect(),
        path: route.pattern.to_string(),
        permission: route.permission.as_ref().map(ToString::to_string).unwrap_or_default(),
        public: route.public,
        url: route.url.to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        set_headers: route.set_headers.iter().map(header).collect(),
        protocol: route.protocol.as_str().to_owned(),
        max_in_flight: route.max_in_flight,
        keep_alive_off: !route.keep_alive,
        deadline_ms: milliseconds(route.deadline),
        timeout_ms: milliseconds(route.timeout),
    }
}

/// The static routes as answers show them, one for each method.
pub fn static_views(config: &Config) -> Vec<v1::ServiceRoute> {
    let mut out = Vec::new();
    for route in &config.published.static_routes {
        for method in &route.methods {
            out.push(v1::ServiceRoute {
                service: route.name.to_string(),
                host: route.host.to_string(),
                method: method.to_string(),
                path: route.pattern.to_string(),
                permission: route.permission.as_ref().map(ToString::to_string).unwrap_or_default(),
                public: route.public,
                r#static: true,
                active: true,
                instances: Vec::new(),
                timeout: route.timeout.map(format_duration).unwrap_or_default(),
                deadline: route.deadline.map(format_duration).unwrap_or_default(),
            });
        }
    }
    out
}
