//! `[server]`, `[gateway]` and `[cors]`: the listeners, what they hold to, and the probes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use furt_control_plane::health::{Policy, PolicyError};
use furt_data_plane::config::HealthDetail;
use furt_proto::{
    names::{NameError, RouteHost},
    network::Networks,
    rate::Rate,
    time::{format_duration, parse_duration},
    url::UpstreamUrl,
};
use http::{HeaderName, HeaderValue};

use super::{
    Format, Log, Surroundings,
    reader::{Reader, boolean, duration, expected, number, size, size_within},
    tls::{self, Upstream},
};
use crate::tls::Listener;

/// `[server]`.
pub struct Server {
    pub listen: SocketAddr,
    pub listen_line: u32,
    pub log: Log,
    pub log_requests: bool,
    pub client_timeout: Duration,
    pub client_idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub workers: usize,
    pub max_body_size: Option<u64>,
    pub max_header_size: usize,
    pub max_headers: usize,
    pub max_uri_length: usize,
    pub max_connections: usize,
    pub max_connections_per_address: Option<usize>,
    pub h2_max_streams: u32,
    pub trusted_proxies: Networks,
    pub ip_rate_limit: Option<Rate>,
    pub failed_key_limit: Option<Rate>,
    pub state_dir: PathBuf,
    pub tls: Option<Listener>,
    pub add_headers: Vec<(HeaderName, HeaderValue)>,
}

/// `[gateway]`.
pub struct Gateway {
    pub enabled: bool,
    pub listen: SocketAddr,
    pub listen_line: u32,
    pub hosts: Vec<String>,
    pub loopback_is_operator: bool,
    pub operator_line: u32,
    pub probing: Policy,
    pub allow_registration_from: Networks,
    pub registration_rate: Rate,
    pub upstream_timeout: Duration,
    pub deadline: Option<Duration>,
    pub connect_timeout: Duration,
    pub max_idle_upstream: usize,
    pub upstream_idle_timeout: Duration,
    pub slow_start: Duration,
    pub upstream: Upstream,
    pub health_detail: HealthDetail,
}

/// Reads `[server]`.
pub fn server(reader: &mut Reader<'_>, around: &Surroundings<'_>) -> Option<Server> {
    let host = reader.read("host", address);
    let port = reader.read("port", port);
    let level = reader.read("log_level", |text| text.parse().map_err(|_| expected("error, warn, info, debug or trace", text)));
    let format = reader.read("log_format", format);
    let log_requests = reader.read("log_requests", boolean);
    let client_timeout = reader.read("client_timeout", duration);
    let client_idle_timeout = reader.read("client_idle_timeout", duration);
    let body_idle_timeout = reader.read("body_idle_timeout", duration);
    let workers = reader.read("workers", |text| match text {
        "auto" => Ok(around.cores.max(1)),
        _ => count(1, 1024)(text).map_err(|_| expected("auto or a number from 1 to 1024", text)),
    });
    let max_body_size = reader.read("max_body_size", size);
    let max_header_size = reader.read("max_header_size", size_within("1 KiB", "1 MiB"));
    let max_headers = reader.read("max_headers", count(1, 10_000));
    // A longer one is none that any of furt's parts could hold.
    let max_uri_length = reader.read("max_uri_length", size_within("256", "65534"));
    let max_connections = reader.read("max_connections", count(1, 100_000_000));
    let max_connections_per_address = reader.read("max_connections_per_address", count(0, 100_000_000));
    let h2_max_streams = reader.read("h2_max_streams", small(1, 100_000));
    let trusted_proxies = networks(reader, "trusted_proxies");
    let ip_rate_limit = reader.optional("ip_rate_limit", str::parse);
    let failed_key_limit = reader.read("failed_key_limit", |text| if text == "0" { Ok(None) } else { text.parse().map(Some) });
    let state_dir = reader.optional("state_dir", |text| Ok::<_, NameError>(PathBuf::from(text)));
    let tls = tls::listener(reader, around);
    let add_headers = reader.headers("add_headers");
    if let (Some(head), Some(target)) = (max_header_size, max_uri_length)
        && target > head
    {
        let key = if reader.has("max_header_size") { "max_header_size" } else { "max_uri_length" };
        reader.warn(key, format!("max_header_size ({head}) is below max_uri_length ({target}), which is part of it"));
    }
    if let (Some(connections), Some(descriptors)) = (max_connections, around.descriptors)
        && u64::try_from(connections).is_ok_and(|connections| connections > descriptors)
    {
        reader.warn("max_connections", format!("{connections} is above the limit of {descriptors} open files (ulimit -n)"));
    }
    Some(Server {
        listen: SocketAddr::new(host?, port?),
        listen_line: reader.line("port"),
        log: Log { level: level?, format: format? },
        log_requests: log_requests?,
        client_timeout: client_timeout?,
        client_idle_timeout: client_idle_timeout?,
        body_idle_timeout: body_idle_timeout?,
        workers: workers?,
        max_body_size: max_body_size.map(|bytes| (bytes > 0).then_some(bytes))?,
        max_header_size: max_header_size?,
        max_headers: max_headers?,
        max_uri_length: max_uri_length?,
        max_connections: max_connections?,
        max_connections_per_address: max_connections_per_address.map(|most| (most > 0).then_some(most))?,
        h2_max_streams: h2_max_streams?,
        trusted_proxies: trusted_proxies?,
        ip_rate_limit: ip_rate_limit?,
        failed_key_limit: failed_key_limit?,
        state_dir: state_dir?.unwrap_or_else(|| around.state_dir()),
        tls: tls?,
        add_headers: add_headers?,
    })
}

/// Reads `[gateway]`.
pub fn gateway(reader: &mut Reader<'_>, around: &Surroundings<'_>) -> Option<Gateway> {
    let enabled = reader.read("enabled", boolean);
    let listen = reader.read("listen", listen);
    let hosts = reader.list("hosts", exact_host);
    let loopback_is_operator = reader.read("loopback_is_operator", boolean);
    let probing = probing(reader);
    let allow_registration_from = networks(reader, "allow_registration_from");
    let registration_rate = reader.read("registration_rate", str::parse);
    let store = reader.read("store", store);
    let connect_timeout = reader.read("connect_timeout", duration);
    let upstream_timeout = reader.read("upstream_timeout", duration);
    let deadline = reader.optional("deadline", duration);
    let max_idle_upstream = reader.read("max_idle_upstream", count(0, 1_000_000));
    let upstream_idle_timeout = reader.read("upstream_idle_timeout", duration);
    let slow_start = reader.read("slow_start", parse_duration);
    let upstream = tls::upstream(reader, around);
    let health_detail = reader.read("health_detail", health_detail);
    store?;
    // One that is not written is no promise.
    if let (Some(connect), Some(head)) = (connect_timeout, upstream_timeout)
        && connect > head
        && reader.has("connect_timeout")
    {
        let (connect, head) = (format_duration(connect), format_duration(head));
        reader.warn("connect_timeout", format!("connect_timeout ({connect}) is above upstream_timeout ({head}), which includes it"));
    }
    Some(Gateway {
        enabled: enabled?,
        listen: listen?,
        listen_line: reader.line("listen"),
        hosts: hosts?,
        loopback_is_operator: loopback_is_operator?,
        operator_line: reader.line("loopback_is_operator"),
        probing: probing?,
        allow_registration_from: allow_registration_from?,
        registration_rate: registration_rate?,
        upstream_timeout: upstream_timeout?,
        deadline: deadline?,
        connect_timeout: connect_timeout?,
        max_idle_upstream: max_idle_upstream?,
        upstream_idle_timeout: upstream_idle_timeout?,
        slow_start: slow_start?,
        upstream: upstream?,
        health_detail: health_detail?,
    })
}

/// Reads `[cors]`: the allowed origins.
pub fn cors(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    reader.list("allowed_origins", origin)
}

fn probing(reader: &mut Reader<'_>) -> Option<Policy> {
    let interval = reader.read("health_check_interval", duration);
    let timeout = reader.read("health_check_timeout", duration);
    let down_interval = reader.read("down_check_interval", duration);
    let down_after = reader.read("max_consecutive_failures", misses);
    let park_after = reader.read("stop_ping_after_failures", misses);
    let forget = reader.read("forget_parked_after", parse_duration);
    let (interval, timeout, down_interval, down_after, park_after, forget) =
        (interval?, timeout?, down_interval?, down_after?, park_after?, forget?);
    // The file may set one of the two and leave the other to its default; the one that is there gets the blame.
    let blame = |reader: &Reader<'_>, one: &'static str, other: &'static str| if reader.has(one) { one } else { other };
    if down_interval < interval {
        let key = blame(reader, "down_check_interval", "health_check_interval");
        let (down_interval, interval) = (format_duration(down_interval), format_duration(interval));
        reader.warn(key, format!("down_check_interval ({down_interval}) is below health_check_interval ({interval})"));
    }
    let policy = Policy::new(interval, timeout, down_interval, down_after, park_after, (!forget.is_zero()).then_some(forget));
    let faults = match policy {
        Ok(policy) => return Some(policy),
        Err(faults) => faults,
    };
    for fault in faults {
        let (one, other, expected) = match fault {
            PolicyError::TimeoutAboveInterval => {
                let (timeout, interval) = (format_duration(timeout), format_duration(interval));
                let expected = format!("health_check_timeout ({timeout}) to be at most health_check_interval ({interval})");
                ("health_check_timeout", "health_check_interval", expected)
            }
            PolicyError::ParkedBeforeDown => {
                let expected =
                    format!("stop_ping_after_failures ({park_after}) to be greater than max_consecutive_failures ({down_after})");
                ("stop_ping_after_failures", "max_consecutive_failures", expected)
            }
            // Not reached: what is read is above zero, each value by itself.
            PolicyError::Zero => ("health_check_interval", "health_check_timeout", fault.to_string()),
        };
        let key = blame(reader, one, other);
        reader.error(key, format!("expected {expected}"));
    }
    None
}

/// A list of networks, each fault told.
pub fn networks(reader: &mut Reader<'_>, key: &'static str) -> Option<Networks> {
    reader.list(key, furt_proto::network::parse_network).map(Networks::from_iter)
}

fn count(least: u64, most: u64) -> impl Fn(&str) -> Result<usize, NameError> {
    move |text| number(least, most)(text).and_then(|count| usize::try_from(count).map_err(|_| expected("a smaller number", text)))
}

fn small(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, NameError> {
    move |text| {
        number(least.into(), most.into())(text).and_then(|count| u32::try_from(count).map_err(|_| expected("a smaller number", text)))
    }
}

/// Requests at once to one instance; 0: no limit.
pub fn in_flight(text: &str) -> Result<u32, NameError> {
    small(0, 1_000_000)(text)
}

fn misses(text: &str) -> Result<u32, NameError> {
    small(1, 1_000_000)(text)
}

fn port(text: &str) -> Result<u16, NameError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| expected("a port from 0 to 65535", text))
}

fn address(text: &str) -> Result<IpAddr, NameError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => bare.parse().map_err(|_| expected("an address such as 127.0.0.1 or ::", text)),
    }
}

/// `address:port` of a listener.
pub fn listen(text: &str) -> Result<SocketAddr, NameError> {
    let split = || {
        let (host, digits) = text.rsplit_once(':')?;
        let bracketed = host.starts_with('[') == host.contains(':');
        bracketed.then(|| Some(SocketAddr::new(address(host).ok()?, port(digits).ok()?)))?
    };
    split().ok_or_else(|| expected("an address and port such as 127.0.0.1:7810", text))
}

fn format(text: &str) -> Result<Format, NameError> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(expected("text or json", text)),
    }
}

fn health_detail(text: &str) -> Result<HealthDetail, NameError> {
    match text {
        "auto" => Ok(HealthDetail::Auto),
        "full" => Ok(HealthDetail::Full),
        "names" => Ok(HealthDetail::Names),
        _ => Err(expected("auto, full or names", text)),
    }
}

fn store(text: &str) -> Result<(), NameError> {
    match text {
        "embedded" => Ok(()),
        _ if text.starts_with("etcd://") => {
            Err(NameError("expected embedded: a store in etcd is not supported by this version yet".into()))
        }
        _ => Err(expected("embedded", text)),
    }
}

fn exact_host(text: &str) -> Result<String, NameError> {
    match text.parse()? {
        RouteHost::Exact(host) => Ok(host.to_string()),
        _ => Err(expected("a host name without port", text)),
    }
}

/// An origin as a browser sends it: scheme and host in lower case, no default port, no path.
fn origin(text: &str) -> Result<String, NameError> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let refuse = || expected("an origin such as https://example.org, or *", text);
    let (scheme, authority) = text.split_once("://").ok_or_else(refuse)?;
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(word) {
        return Err(refuse());
    }
    // Other schemes than http and https (an app's own) name a host in the same way.
    let secure = scheme.eq_ignore_ascii_case("https");
    let url: UpstreamUrl = format!("{}://{authority}", if secure { "https" } else { "http" }).parse().map_err(|_| refuse())?;
    if authority.contains('/') {
        return Err(refuse());
    }
    Ok(format!("{}://{}", scheme.to_ascii_lowercase(), url.authority()))
}
