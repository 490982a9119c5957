//! furt.conf read again while furt runs: all of it holds, or none (DESIGN §3).
//!
//! Here: reading, what needs a restart, handing each plane its part, what is told. Not here: what a plane does with it.

use std::{net::SocketAddr, time::Duration};

use furt_control_plane::{listener::ReloadDone, registry::Registry};
use furt_data_plane::view::Current;
use furt_proto::rate::Rate;
use tokio::sync::Mutex;
use tracing::{error, warn};

use crate::config::{self, Config, Finding, LoadError, Log};

/// Takes another level and format of the log.
pub type Relog = Box<dyn Fn(Log) + Send + Sync>;

/// What a reload needs of a running furt.
pub(crate) struct Reload {
    /// furt.conf as it is in force; held by one reload to its end.
    running: Mutex<Config>,
    registry: Registry,
    current: Current,
    relog: std::sync::OnceLock<Relog>,
}

impl Reload {
    /// Of a furt that runs with `config`.
    pub(crate) fn new(config: Config, registry: Registry, current: Current) -> Self {
        Self { running: Mutex::new(config), registry, current, relog: std::sync::OnceLock::new() }
    }

    /// How another level and format of the log are taken; the first one given holds.
    pub(crate) fn relog_with(&self, relog: Relog) {
        let _ = self.relog.set(relog);
    }

    /// Reads furt.conf, and takes all of it.
    ///
    /// # Errors
    /// With everything that is wrong in it, and everything that only a restart can change; nothing is taken then.
    pub(crate) async fn reload(&self) -> Result<ReloadDone, Vec<Finding>> {
        let mut running = self.running.lock().await;
        let file = running.file.clone();
        // It reads files, and furt.conf may name more of them.
        let read = tokio::task::spawn_blocking(move || config::load_again(&file)).await;
        let next = read.map_err(|fault| vec![about(&running, "", fault.to_string())]).and_then(|read| {
            let next = read.map_err(|error| findings(&running, error))?;
            let fixed = self.fixed(&running, &next);
            if fixed.is_empty() { Ok(next) } else { Err(fixed) }
        });
        let next = match next {
            Ok(next) => keeping(&running, next),
            Err(findings) => {
                findings.iter().for_each(|finding| error!("{finding}"));
                let first = findings.first().map(ToString::to_string).unwrap_or_default();
                self.registry.telemetry().reload_refused(findings.len(), &first);
                return Err(findings);
            }
        };
        next.warnings.iter().for_each(|warning| warn!("{warning}"));
        let mut control = next.control.clone();
        let now = self.registry.config();
        // Where furt really listens, which port 0 in furt.conf does not say.
        (control.listen, control.public) = (now.listen, now.public);
        let changes = differences(&running, &next);
        // The routes may need what the data plane is told, never the other way round.
        self.current.reconfigure(next.data.clone());
        if let Some(relog) = self.relog.get() {
            relog(next.log);
        }
        let warnings = next.warnings.iter().map(ToString::to_string).collect();
        // Before anything is waited for: whoever asked may go away, and all of it is in force from here on.
        *running = next;
        let reloaded = self.registry.reload(control, changes).await;
        Ok(ReloadDone { changes: reloaded.changes, warnings, version: reloaded.version })
    }
}

impl Reload {
    /// What only a restart can change.
    fn fixed(&self, running: &Config, next: &Config) -> Vec<Finding> {
        let bound = self.registry.config();
        // Port 0 may be written as the port that it turned out to be.
        let moves = |was: SocketAddr, is: SocketAddr, bound: SocketAddr| is != was && is != bound;
        let (public, internal) = (bound.public.unwrap_or(running.data.listen), bound.listen);
        let keys = [
            ("[server] host and port", moves(running.data.listen, next.data.listen, public)),
            ("[server] workers", running.data.workers != next.data.workers),
            ("[server] state_dir", running.state_dir != next.state_dir),
            ("[server] tls_cert and tls_key", running.tls.is_some() != next.tls.is_some()),
            ("[gateway] enabled", running.enabled != next.enabled),
            ("[gateway] listen", moves(running.control.listen, next.control.listen, internal)),
        ];
        let changed = keys.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(key, _)| about(running, key, "a change of this needs a restart of furt")).collect()
    }
}

/// `next` with what of `running` is made of the same certificates. Session tickets, and connections to services, are
/// then good for longer than until the next reload.
fn keeping(running: &Config, mut next: Config) -> Config {
    if running.tls.as_ref().zip(next.tls.as_ref()).is_some_and(|(was, is)| was.is_as(is)) {
        (next.tls, next.data.tls) = (running.tls.clone(), running.data.tls.clone());
    }
    if running.authorities == next.authorities {
        next.data.upstream_tls = running.data.upstream_tls.clone();
        next.control.upstream_tls = running.control.upstream_tls.clone();
    }
    next
}

fn about(running: &Config, key: &str, message: impl Into<String>) -> Finding {
    Finding { file: running.file.display().to_string(), line: None, key: key.into(), message: message.into() }
}

fn findings(running: &Config, error: LoadError) -> Vec<Finding> {
    match error {
        LoadError::Faulty(report) => report.errors,
        error => vec![about(running, "", error.to_string())],
    }
}

/// One line for each setting of the data plane and the log that is different.
fn differences(running: &Config, next: &Config) -> Vec<String> {
    let (old, new) = (&running.data, &next.data);
    let limit = |most: Option<u64>| most.unwrap_or_default().to_string();
    let rate = |rate: Option<Rate>| rate.map_or("none".to_owned(), |rate| rate.to_string());
    let headers = || new.add_headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let time = |key, was: Duration, is: Duration| (key, was != is, format!("{is:?}"));
    let count = |key, was: usize, is: usize| (key, was != is, is.to_string());
    let (streams, deadline) = (old.h2_max_streams != new.h2_max_streams, old.deadline != new.deadline);
    let tls = running.tls.as_ref().zip(next.tls.as_ref()).is_some_and(|(was, is)| !was.is_as(is));
    let hosts = || next.tls.as_ref().map(|tls| tls.names.join(", ")).unwrap_or_default();
    let lines = [
        time("[server] client_timeout", old.client_timeout, new.client_timeout),
        time("[server] client_idle_timeout", old.client_idle_timeout, new.client_idle_timeout),
        time("[server] body_idle_timeout", old.body_idle_timeout, new.body_idle_timeout),
        ("[server] max_body_size", old.max_body_size != new.max_body_size, limit(new.max_body_size)),
        count("[server] max_header_size", old.max_header_size, new.max_header_size),
        count("[server] max_headers", old.max_headers, new.max_headers),
        count("[server] max_uri_length", old.max_uri_length, new.max_uri_length),
        count("[server] max_connections", old.max_connections, new.max_connections),
        count(
            "[server] max_connections_per_address",
            old.max_connections_per_address.unwrap_or_default(),
            new.max_connections_per_address.unwrap_or_default(),
        ),
        ("[server] h2_max_streams", streams, new.h2_max_streams.to_string()),
        ("[server] trusted_proxies", old.trusted_proxies != new.trusted_proxies, new.trusted_proxies.to_string()),
        ("[server] ip_rate_limit", old.ip_rate_limit != new.ip_rate_limit, rate(new.ip_rate_limit)),
        ("[server] failed_key_limit", old.failed_key_limit != new.failed_key_limit, rate(new.failed_key_limit)),
        ("[server] tls_cert", tls, format!("read again, for {}", hosts())),
        ("[server] add_headers", old.add_headers != new.add_headers, headers()),
        ("[server] log_requests", old.log_requests != new.log_requests, new.log_requests.to_string()),
        ("[server] log_level", running.log.level != next.log.level, next.log.level.to_string().to_lowercase()),
        ("[server] log_format", running.log.format != next.log.format, format!("{:?}", next.log.format).to_lowercase()),
        time("[gateway] connect_timeout", old.connect_timeout, new.connect_timeout),
        time("[gateway] upstream_timeout", old.upstream_timeout, new.upstream_timeout),
        ("[gateway] deadline", deadline, new.deadline.map_or("none".to_owned(), |deadline| format!("{deadline:?}"))),
        count("[gateway] max_idle_upstream", old.max_idle_upstream, new.max_idle_upstream),
        time("[gateway] upstream_idle_timeout", old.upstream_idle_timeout, new.upstream_idle_timeout),
        time("[gateway] slow_start", old.slow_start, new.slow_start),
        ("[gateway] upstream_ca", running.authorities != next.authorities, "other certificates".into()),
        ("[gateway] health_detail", old.health_detail != new.health_detail, format!("{:?}", new.health_detail).to_lowercase()),
    ];
    lines.into_iter().filter(|(_, changed, _)| *changed).map(|(key, _, value)| format!("{key} is {value}")).collect()
}
