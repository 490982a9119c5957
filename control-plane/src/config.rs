//! What the control plane is told: typed, relations checked by whoever parsed it (the root's `config`).
//!
//! Here: the types. Not here: text, files, lines.

use std::{collections::HashMap, net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use furt_proto::{
    names::{RouteHost, RouteMethod, ServiceName},
    network::Networks,
    pattern::RoutePattern,
    permission::{Allowed, Permission},
    rate::Rate,
    tls::UpstreamTls,
    url::UpstreamUrl,
};

use crate::{health::Policy, registration::Protocol};

/// A SHA-256 digest of a secret; the secret itself is nowhere in the program.
pub type Digest = [u8; 32];

/// `[gateway]`, the grants, and what is published to the data planes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The internal listener.
    pub listen: SocketAddr,
    /// The public listener of the same machine; registered urls must not point at it.
    pub public: Option<SocketAddr>,
    /// Host names that the internal listener answers to, besides addresses and localhost.
    pub hosts: Vec<String>,
    /// Intervals and thresholds of the probes.
    pub probing: Policy,
    /// Peers that may talk to the internal listener.
    pub allow_registration_from: Networks,
    /// Per peer address and service name; a hundred times that per peer address.
    pub registration_rate: Rate,
    /// Whether a loopback peer is operator and reader.
    pub loopback_is_operator: bool,
    /// Who may register what.
    pub grants: Grants,
    /// Bearer tokens of registrars, readers, operators and data planes.
    pub tokens: Vec<Token>,
    /// What the data planes get besides the services.
    pub published: Published,
    /// Whom https services have to show probes a certificate of.
    pub upstream_tls: Arc<UpstreamTls>,
}

/// The parts of furt.conf that travel in the snapshot.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Callers.
    pub keys: Vec<Key>,
    /// Routes of furt.conf, in its order.
    pub static_routes: Vec<StaticRoute>,
    /// `[cors] allowed_origins`.
    pub cors_origins: Vec<String>,
}

/// `[service "name"]`: what a service name may register.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// The name it is for; `None` is the default grant, `"*"`.
    pub service: Option<ServiceName>,
    /// What its routes may ask of callers.
    pub permissions: Vec<Allowed>,
    /// Where its routes may lie; `None`: any path that is nobody else's.
    pub paths: Option<Vec<RoutePattern>>,
    /// Hosts its routes may name; empty: none.
    pub hosts: Vec<RouteHost>,
    /// Peers that may register it; `None`: `allow_registration_from`.
    pub from: Option<Networks>,
    /// Where its urls may point to; `None`: the registering peer's own address.
    pub upstreams: Option<Networks>,
    /// Registering needs one of these tokens, when there are any.
    pub tokens: Vec<Digest>,
    /// Instances at once, parked ones not counted.
    pub max_instances: usize,
    /// Whether its routes may be public.
    pub allow_public: bool,
    /// Requests that one data plane may have under way to one instance; 0: no limit.
    pub max_in_flight: u32,
    /// Whether connections to its instances are kept for more than one request.
    pub keep_alive: bool,
}

/// What furt.conf says of the connections to a service's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Requests that one data plane may have under way to one instance; 0: no limit.
    pub max_in_flight: u32,
    /// Whether connections are kept for more than one request.
    pub keep_alive: bool,
}

/// Every grant, in the order of furt.conf, found by the name it is for.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    list: Vec<Grant>,
    /// Where in the list; `None` is the default grant. A registration looks its grant up, so that costs no walk.
    places: HashMap<Option<ServiceName>, usize>,
}

impl Grants {
    /// The grant that holds for a service: its own, else the default one.
    pub fn of(&self, service: &ServiceName) -> Option<&Grant> {
        let place = self.places.get(&Some(service.clone())).or_else(|| self.places.get(&None))?;
        self.list.get(*place)
    }

    /// The terms of a service; without a grant it takes no requests, and they do not matter.
    pub fn terms(&self, service: &ServiceName) -> Terms {
        self.of(service).map_or(Terms { max_in_flight: 0, keep_alive: true }, |grant| Terms {
            max_in_flight: grant.max_in_flight,
            keep_alive: grant.keep_alive,
        })
    }
}

impl Deref for Grants {
    type Target = [Grant];
    fn deref(&self) -> &[Grant] {
        &self.list
    }
}

impl FromIterator<Grant> for Grants {
    fn from_iter<T: IntoIterator<Item = Grant>>(grants: T) -> Self {
        let list: Vec<Grant> = grants.into_iter().collect();
        let places = list.iter().enumerate().map(|(place, grant)| (grant.service.clone(), place)).collect();
        Self { list, places }
    }
}

impl<const N: usize> From<[Grant; N]> for Grants {
    fn from(grants: [Grant; N]) -> Self {
        grants.into_iter().collect()
    }
}

/// What a token makes its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// May register, renew, drain and deregister.
    Registrar,
    /// May look.
    Reader,
    /// May do everything.
    Operator,
    /// May follow snapshots.
    DataPlane,
}

/// `[token "name"]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The label, for logs.
    pub name: String,
    /// What it makes its bearer.
    pub role: Role,
    /// SHA-256 of the token; two during rotation.
    pub digests: Vec<Digest>,
}

/// `[api_key "label"]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The caller's name.
    pub name: String,
    /// SHA-256 of the key; two during rotation.
    pub digests: Vec<Digest>,
    /// What the caller may do.
    pub permissions: Vec<Allowed>,
    /// Where it may be used from; empty: anywhere.
    pub allowed_ips: Networks,
    /// Requests it may make.
    pub rate_limit: Option<Rate>,
    /// Seconds since 1970 from which it is refused.
    pub expires_unix: Option<i64>,
}

/// `[route "label"]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticRoute {
    /// The label.
    pub name: Arc<str>,
    /// The host it answers for.
    pub host: RouteHost,
    /// The methods; at least one.
    pub methods: Vec<RouteMethod>,
    /// The pattern.
    pub pattern: RoutePattern,
    /// What callers need; `None` only together with `public`.
    pub permission: Option<Permission>,
    /// Callers need no key.
    pub public: bool,
    /// Where requests go.
    pub url: UpstreamUrl,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Headers set on the way to the service; values may be secret and are never logged.
    pub set_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// To the head of the answer; `None`: the data plane's `upstream_timeout`.
    pub timeout: Option<Duration>,
    /// From the request to the end of the answer; `None`: the data plane's `deadline`.
    pub deadline: Option<Duration>,
    /// Requests that one data plane may have under way to it; 0: no limit.
    pub max_in_flight: u32,
    /// Whether connections to it are kept for more than one request.
    pub keep_alive: bool,
}
