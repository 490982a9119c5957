//! What the data plane is told: `[server]` and what of `[gateway]` concerns requests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use furt_proto::{network::Networks, rate::Rate, tls::UpstreamTls};
use http::{HeaderName, HeaderValue};

/// Typed and complete; nothing is left to check. `listen`, `workers` and `internal` are those of the start; all else
/// changes with a reload, from the next request on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public listener.
    pub listen: SocketAddr,
    /// Threads that serve it; at least 1.
    pub workers: usize,
    /// What the public listener shows of itself over TLS; `None`: it speaks plain HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// For a TLS handshake, and for a request head to arrive.
    pub client_timeout: Duration,
    /// For the next request of a connection to begin.
    pub client_idle_timeout: Duration,
    /// Between two pieces of a body, either way.
    pub body_idle_timeout: Duration,
    /// Bytes of a request body; `None`: no limit.
    pub max_body_size: Option<u64>,
    /// Bytes of a request's head: request line and header fields, in HTTP/2 as they are decoded.
    pub max_header_size: usize,
    /// Header fields of a request.
    pub max_headers: usize,
    /// Bytes of a request's target: path and query.
    pub max_uri_length: usize,
    /// Client connections of the process.
    pub max_connections: usize,
    /// Client connections from one address that is none of `trusted_proxies`; `None`: no limit.
    pub max_connections_per_address: Option<usize>,
    /// Requests that one HTTP/2 connection may have open at once.
    pub h2_max_streams: u32,
    /// Peers whose `X-Forwarded-*` and `X-Request-ID` are believed.
    pub trusted_proxies: Networks,
    /// Per client address.
    pub ip_rate_limit: Option<Rate>,
    /// Keys that are not valid, per client address.
    pub failed_key_limit: Option<Rate>,
    /// Set on every proxied answer.
    pub add_headers: Vec<(HeaderName, HeaderValue)>,
    /// To the head of the answer, unless the route has its own.
    pub upstream_timeout: Duration,
    /// From the request to the end of the answer, unless the route has its own; `None`: no limit.
    pub deadline: Option<Duration>,
    /// For a connection to an instance, its TLS handshake included.
    pub connect_timeout: Duration,
    /// Idle connections to one address, of the process.
    pub max_idle_upstream: usize,
    /// How long a connection to an instance may be idle.
    pub upstream_idle_timeout: Duration,
    /// How long an instance that was DOWN takes to get its whole share; zero: at once.
    pub slow_start: Duration,
    /// Whom https services have to show a certificate of.
    pub upstream_tls: Arc<UpstreamTls>,
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
