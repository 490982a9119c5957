//! furt.conf → [`Config`]: the text once, at the edge, into what each plane is told (DESIGN §3).
//!
//! Here: the assembly, the relations between sections, where the file is looked for. In `text` the
//! reader of the INI, in [`keys`] the table of known keys, in `report` the findings; one part per
//! kind of section: `server`, `grants`, `routes`, `callers`. Not here: what the planes do
//! with it. Past this module there is nothing left to check.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use furt_control_plane::config::{Digest, Grant, Key, Published, Role, StaticRoute, Token};
use rustls::pki_types::CertificateDer;
use tracing::Level;

mod callers;
mod grants;
pub mod keys;
mod reader;
mod report;
mod routes;
mod server;
mod text;
mod tls;

pub use report::{Finding, Report, hint};

use crate::tls::Listener;
use reader::Reader;
use server::Server;
use text::Section;

/// Where furt.conf is looked for when it is not named.
pub const SEARCHED: [&str; 2] = ["furt.conf", "/etc/furt/furt.conf"];

/// The internal listener when no furt.conf says otherwise.
pub const DEFAULT_GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7810);

/// furt.conf, typed and checked; whatever it is made of cannot fail any more.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, as it was named: where a reload reads it again.
    pub file: PathBuf,
    /// `[gateway] enabled`; without it there is no internal listener and only static routes.
    pub enabled: bool,
    /// What the control plane is told.
    pub control: furt_control_plane::config::Config,
    /// What the data plane is told.
    pub data: furt_data_plane::config::Config,
    /// `[server] tls_cert`, `tls_key` and what else its [`furt_data_plane::config::Config::tls`] is made of.
    pub tls: Option<Listener>,
    /// A digest of the authorities that its [`furt_data_plane::config::Config::upstream_tls`] trusts.
    pub authorities: [u8; 32],
    /// `[server] log_level` and `log_format`.
    pub log: Log,
    /// `[server] state_dir`.
    pub state_dir: PathBuf,
    /// What is odd.
    pub warnings: Vec<Finding>,
}

/// How furt logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// `log_level`.
    pub level: Level,
    /// `log_format`.
    pub format: Format,
}

/// `[server] log_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What a furt.conf is read against.
pub struct Surroundings<'a> {
    /// A variable of the environment.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The text of a file that furt.conf names.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// Whether everyone on this machine can read a file.
    pub open_to_all: &'a dyn Fn(&Path) -> bool,
    /// The certificate authorities that the system trusts.
    pub system_authorities: &'a dyn Fn() -> Vec<CertificateDer<'static>>,
    /// Now, since 1970.
    pub now: Duration,
    /// Descriptors the process may open; `None`: not known.
    pub descriptors: Option<u64>,
    /// Cores of the machine, for `workers = auto`.
    pub cores: usize,
    /// The id of this process.
    pub process_id: u32,
}

impl Surroundings<'_> {
    /// Whether systemd started this very process (systemd.exec(5)). A terminal that systemd started hands the invocation
    /// on to all that run in it, but not the process id; systemd has told that since version 248.
    fn is_system_service(&self) -> bool {
        let started = (self.environment)("SYSTEMD_EXEC_PID").is_none_or(|id| id == self.process_id.to_string());
        (self.environment)("INVOCATION_ID").is_some() && started
    }

    /// `state_dir` when it is not set: systemd's StateDirectory, `/var/lib/furt` for any other
    /// service of systemd, else a directory here.
    fn state_dir(&self) -> PathBuf {
        let given = (self.environment)("STATE_DIRECTORY");
        let first = given.as_deref().and_then(|given| given.split(':').next()).filter(|first| !first.is_empty());
        match first {
            Some(first) => first.into(),
            None if self.is_system_service() => "/var/lib/furt".into(),
            None => "./furt-state".into(),
        }
    }
}

/// Why there is no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No file at any of the places.
    #[error("no furt.conf found: name one with --config, or put one at ./{} or {}", SEARCHED[0], SEARCHED[1])]
    NotFound,
    /// The file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Unreadable {
        /// As it was named.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What is wrong in it.
    #[error("{0}")]
    Faulty(Report),
}

/// The furt.conf to use: the one named, else the first of [`SEARCHED`] that is there.
pub fn find(named: Option<&Path>) -> Option<PathBuf> {
    match named {
        Some(named) => Some(named.to_owned()),
        None => SEARCHED.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

/// Reads and checks a furt.conf against this process's surroundings.
pub fn load(named: Option<&Path>) -> Result<Config, LoadError> {
    load_by(&find(named).ok_or(LoadError::NotFound)?, &read)
}

/// The same for a furt that runs. All it names must be files: reading anything else may wait without end, and so would
/// every reload after it, and furt's shutdown.
pub fn load_again(file: &Path) -> Result<Config, LoadError> {
    load_by(file, &read_only_files)
}

fn load_by(file: &Path, read: &dyn Fn(&Path) -> io::Result<String>) -> Result<Config, LoadError> {
    let text = read(file).map_err(|error| LoadError::Unreadable { file: file.to_owned(), error })?;
    parse_by(&text, &file.to_string_lossy(), read).map_err(LoadError::Faulty)
}

/// [`parse`] against this process's surroundings.
pub fn parse_here(text: &str, file: &str) -> Result<Config, Report> {
    parse_by(text, file, &read)
}

fn parse_by(text: &str, file: &str, read_file: &dyn Fn(&Path) -> io::Result<String>) -> Result<Config, Report> {
    let around = Surroundings {
        environment: &|name| std::env::var(name).ok(),
        read_file,
        open_to_all: &open_to_all,
        // What of them cannot be read is missing; no program of this machine has it.
        system_authorities: &|| rustls_native_certs::load_native_certs().certs,
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        descriptors: descriptor_limit(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        process_id: std::process::id(),
    };
    parse(text, file, &around)
}

/// Where the internal listener of a furt.conf can be reached from this machine, whatever else is in it.
pub fn gateway_address(named: Option<&Path>) -> SocketAddr {
    let text = find(named).and_then(|file| read(&file).ok()).unwrap_or_default();
    let (sections, _) = text::read(&text);
    let entries = sections.iter().filter(|section| section.name == "gateway").flat_map(|section| &section.entries);
    let listen = entries.filter(|entry| entry.key == "listen").find_map(|entry| server::listen(&entry.value.whole).ok());
    // Port 0 is a port that only the running furt knows.
    let listen = listen.filter(|address| address.port() != 0);
    let mut address = listen.unwrap_or(DEFAULT_GATEWAY);
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The most that is read of a furt.conf or a file that it names.
const MOST: u64 = 16 << 20;

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = io::Read::take(fs::File::open(path)?, MOST + 1);
    let bytes = io::Read::read_to_string(&mut { read }, &mut text)?;
    match u64::try_from(bytes).is_ok_and(|bytes| bytes <= MOST) {
        true => Ok(text),
        false => Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 16 MiB")),
    }
}

fn read_only_files(path: &Path) -> io::Result<String> {
    let kind = fs::metadata(path)?;
    match kind.is_file() || kind.is_dir() {
        // Of a directory the system says that it is one.
        true => read(path),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file")),
    }
}

fn open_to_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

/// The hard limit of open files (proc(5)), to which furt raises its own; `None` where there is no /proc.
fn descriptor_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Reads and checks the text of a furt.conf. `file` is how it is called in findings, and where
/// relative `key_file` paths start. Every fault is told at once.
pub fn parse(text: &str, file: &str, around: &Surroundings<'_>) -> Result<Config, Report> {
    let mut report = Report::new(file);
    let (mut sections, faults) = text::read(text);
    for fault in faults {
        // What an unknown section holds is none of furt's business.
        let foreign = fault.section.and_then(|index| sections.get(index)).is_some_and(|section| keys::kind(&section.name).is_none());
        if !foreign {
            report.error(fault.line, &fault.key, fault.message);
        }
    }
    // Absent sections are read like empty ones, in no line, so that defaults have one way in.
    for name in ["server", "gateway"] {
        if !sections.iter().any(|section| section.name == name) {
            sections.push(Section { name: name.to_owned(), label: None, line: 0, entries: Vec::new() });
        }
    }
    check_headers(&sections, &mut report);
    let mut parts = Parts::default();
    for section in &sections {
        if let Some(kind) = keys::kind(&section.name) {
            let mut reader = Reader::new(section, kind, around, file, &mut report);
            parts.take(&mut reader, section, around);
        }
    }
    let config = parts.assemble(&mut report);
    report.sort();
    match config {
        Some(config) if report.errors.is_empty() => Ok(Config { file: file.into(), warnings: report.warnings, ..config }),
        _ => Err(report),
    }
}

/// Unknown and repeated sections, labels where they belong.
fn check_headers(sections: &[Section], report: &mut Report) {
    let mut seen: HashMap<(&str, Option<&str>), u32> = HashMap::new();
    for section in sections {
        let name = format!("[{}]", section.name);
        if keys::LATER.contains(&&*section.name) {
            report.warn(section.line, &name, "this version does not use it yet; it is ignored");
            continue;
        }
        let Some(kind) = keys::kind(&section.name) else {
            let hint = hint(&section.name, keys::KINDS.iter().map(|kind| kind.name));
            report.warn(section.line, &name, format!("no such section{hint}; it is ignored"));
            continue;
        };
        match (&section.label, kind.labelled) {
            (None, true) => report.error(section.line, &name, format!("expected a label: [{} \"name\"]", kind.name)),
            (Some(_), false) => report.error(section.line, &name, format!("expected no label: [{}]", kind.name)),
            _ => {}
        }
        if let Some(earlier) = seen.insert((&section.name, section.label.as_deref()), section.line) {
            report.error(section.line, &name, format!("expected once, it begins in line {earlier} already"));
        }
    }
}

/// What was read so far, each part with the line of its section.
#[derive(Default)]
struct Parts {
    server: Option<server::Server>,
    gateway: Option<server::Gateway>,
    grants: Vec<(u32, Grant)>,
    routes: Vec<(u32, StaticRoute)>,
    keys: Vec<(u32, u32, Key)>,
    tokens: Vec<(u32, Token)>,
    origins: Vec<String>,
}

impl Parts {
    fn take(&mut self, reader: &mut Reader<'_>, section: &Section, around: &Surroundings<'_>) {
        let line = section.line;
        match &*section.name {
            "server" => self.server = server::server(reader, around),
            "gateway" => self.gateway = server::gateway(reader, around),
            "cors" => self.origins = server::cors(reader).unwrap_or_default(),
            // Without its label there is nothing to read; that is told already.
            _ if section.label.is_none() => {}
            "service" => self.grants.extend(grants::grant(reader).map(|grant| (line, grant))),
            "route" => self.routes.extend(routes::route(reader).map(|route| (line, route))),
            "api_key" => {
                let read = callers::api_key(reader);
                self.keys.extend(read.map(|key| (line, reader.line("allowed_ips"), key)));
            }
            _ => self.tokens.extend(callers::token(reader).map(|token| (line, token))),
        }
    }

    fn assemble(self, report: &mut Report) -> Option<Config> {
        self.check_unique(report);
        let (server, gateway) = (self.server?, self.gateway?);
        if gateway.enabled && collide(server.listen, gateway.listen) {
            let message = format!("expected another address than the public listener's, {}", server.listen);
            report.error(gateway.listen_line.max(server.listen_line), "listen", message);
        }
        warn_of_open_grants(&self.grants, &gateway, report);
        let operator = self.tokens.iter().any(|(_, token)| token.role == Role::Operator);
        if gateway.enabled && !gateway.loopback_is_operator && !operator {
            let message = "nobody is operator then: add a [token \"name\"] with role = operator";
            report.warn(gateway.operator_line, "loopback_is_operator", message);
        }
        if gateway.upstream.trusts_nobody
            && let Some((line, _)) = self.routes.iter().find(|(_, route)| route.url.tls())
        {
            let message = "no certificate leads to anyone trusted: name its authority in [gateway] upstream_ca (the system trusts nobody)";
            report.warn(*line, "url", message);
        }
        for (_, line, key) in &self.keys {
            if server.trusted_proxies.is_empty() && key.allowed_ips.iter().any(|network| network.addr().is_loopback()) {
                let message = "a loopback address without trusted_proxies lets in everyone who comes through a proxy on this machine";
                report.warn(*line, "allowed_ips", message);
            }
        }
        let published = Published {
            keys: self.keys.into_iter().map(|(_, _, key)| key).collect(),
            static_routes: self.routes.into_iter().map(|(_, route)| route).collect(),
            cors_origins: self.origins,
        };
        let data = furt_data_plane::config::Config {
            listen: server.listen,
            workers: server.workers,
            tls: server.tls.as_ref().map(|tls| tls.config.clone()),
            client_timeout: server.client_timeout,
            client_idle_timeout: server.client_idle_timeout,
            max_header_size: server.max_header_size,
            max_headers: server.max_headers,
            max_uri_length: server.max_uri_length,
            body_idle_timeout: server.body_idle_timeout,
            max_body_size: server.max_body_size,
            max_connections: server.max_connections,
            max_connections_per_address: server.max_connections_per_address,
            h2_max_streams: server.h2_max_streams,
            trusted_proxies: server.trusted_proxies,
            ip_rate_limit: server.ip_rate_limit,
            failed_key_limit: server.failed_key_limit,
            add_headers: server.add_headers,
            upstream_timeout: gateway.upstream_timeout,
            deadline: gateway.deadline,
            connect_timeout: gateway.connect_timeout,
            max_idle_upstream: gateway.max_idle_upstream,
            upstream_idle_timeout: gateway.upstream_idle_timeout,
            slow_start: gateway.slow_start,
            upstream_tls: gateway.upstream.tls.clone(),
            health_detail: gateway.health_detail,
            allow_registration_from: gateway.allow_registration_from.clone(),
            log_requests: server.log_requests,
            log_json: server.log.format == Format::Json,
            internal: gateway.enabled.then_some(gateway.listen),
        };
        let control = furt_control_plane::config::Config {
            listen: gateway.listen,
            public: Some(server.listen),
            hosts: gateway.hosts,
            probing: gateway.probing,
            allow_registration_from: gateway.allow_registration_from,
            registration_rate: gateway.registration_rate,
            loopback_is_operator: gateway.loopback_is_operator,
            grants: self.grants.into_iter().map(|(_, grant)| grant).collect(),
            tokens: self.tokens.into_iter().map(|(_, token)| token).collect(),
            published,
            upstream_tls: gateway.upstream.tls,
        };
        let Server { tls, log, state_dir, .. } = server;
        let (enabled, authorities) = (gateway.enabled, gateway.upstream.material);
        Some(Config { file: PathBuf::new(), enabled, control, data, tls, authorities, log, state_dir, warnings: Vec::new() })
    }

    /// No two keys with one name or secret, no two tokens with one secret, no two routes in one place.
    fn check_unique(&self, report: &mut Report) {
        let mut names: HashMap<&str, u32> = HashMap::new();
        let mut secrets: HashMap<Digest, u32> = HashMap::new();
        for (line, _, key) in &self.keys {
            if let Some(earlier) = names.insert(&key.name, *line) {
                report.error(*line, "name", format!("expected a name of its own, the key of line {earlier} has it too"));
            }
            for digest in &key.digests {
                if let Some(earlier) = secrets.insert(*digest, *line) {
                    report.error(*line, "key_sha256", format!("expected a key of its own, that of line {earlier} is the same"));
                }
            }
        }
        let mut secrets: HashMap<Digest, u32> = HashMap::new();
        for (line, token) in &self.tokens {
            for digest in &token.digests {
                if let Some(earlier) = secrets.insert(*digest, *line) {
                    report.error(*line, "sha256", format!("expected a token of its own, that of line {earlier} is the same"));
                }
            }
        }
        let mut places = HashMap::new();
        for (line, route) in &self.routes {
            for method in &route.methods {
                if let Some(earlier) = places.insert((&route.host, method, &route.pattern), *line) {
                    // The method is one of few words; the path may come from the environment and is not repeated.
                    let message = format!("expected a place of its own, the route of line {earlier} has the same host, path and {method}");
                    report.error(*line, "path", message);
                }
            }
        }
    }
}

/// Whether the second listener could not be told from the first.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.port() != 0 && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

fn warn_of_open_grants(grants: &[(u32, Grant)], gateway: &server::Gateway, report: &mut Report) {
    let outside = gateway.allow_registration_from.iter().find(|network| !loopback(network));
    // Without the internal listener nobody registers.
    let Some(network) = outside.filter(|_| gateway.enabled) else { return };
    for (line, grant) in grants.iter().filter(|(_, grant)| grant.from.is_none() && grant.tokens.is_empty()) {
        let who = grant.service.as_ref().map_or("any service", |name| name.as_str());
        report.warn(*line, "[service]", format!("anyone in {network} may register {who}; set from or token_sha256"));
    }
}

fn loopback(network: &ipnet::IpNet) -> bool {
    network.network().is_loopback() && network.broadcast().is_loopback()
}

#[cfg(test)]
mod tests;
