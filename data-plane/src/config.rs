//! What the data plane is told: `[server]` and what of `[gateway]` concerns requests.

use std::{net::SocketAddr, time::Duration};

use furt_proto::{network::Networks, rate::Rate};
use http::{HeaderName, HeaderValue};

/// Typed and complete; nothing is left to check. `listen`, `workers` and `internal` are those of the start; all else
/// changes with a reload, from the next request on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public listener.
    pub listen: SocketAddr,
    /// Threads that serve it; at least 1.
    pub workers: usize,
    /// For a request head to arrive.
    pub client_timeout: Duration,
    /// Between two pieces of a body, either way.
    pub body_idle_timeout: Duration,
    /// Bytes of a request body; `None`: no limit.
    pub max_body_size: Option<u64>,
    /// Client connections of the process.
    pub max_connections: usize,
    /// Peers whose `X-Forwarded-*` and `X-Request-ID` are believed.
    pub trusted_proxies: Networks,
    /// Per client address.
    pub ip_rate_limit: Option<Rate>,
    /// Set on every proxied answer.
    pub add_headers: Vec<(HeaderName, HeaderValue)>,
    /// To the head of the answer, unless the route has its own.
    pub upstream_timeout: Duration,
    /// What `/health` shows to whom.
    pub health_detail: HealthDetail,
    /// With [`HealthDetail::Auto`], who sees all of `/health`.
    pub allow_registration_from: Networks,
    /// The access log.
    pub log_requests: bool,
    /// Its lines are JSON (`log_format = json`).
    pub log_json: bool,
    /// Where the internal listener is, for the words to a client that looks for it here.
    pub internal: Option<SocketAddr>,
}

/// `[gateway] health_detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthDetail {
    /// Everything to clients inside `allow_registration_from` without a forwarding header, names and status to others.
    Auto,
    /// Everything to everyone.
    Full,
    /// Names and status.
    Names,
}
