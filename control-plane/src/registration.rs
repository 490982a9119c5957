//! A registration: what a service says of one instance, as types that parse or refuse (DESIGN §4, rule 6).
//!
//! Here: the shape, its limits, and every fault of it at once. Not here: whether it is allowed.

use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
    time::Duration,
};

use furt_proto::{
    names::{InstanceId, NameError, RouteHost, RouteMethod, ServiceName, quoted},
    path::canonical,
    pattern::RoutePattern,
    permission::Permission,
    time::{format_duration, parse_duration},
    url::UpstreamUrl,
    v1,
};

use crate::refusal::{Code, Fault};

/// Most routes of one instance.
pub const MAX_ROUTES: usize = 1000;
/// Longest health endpoint, in bytes.
pub const MAX_HEALTH_ENDPOINT: usize = 1024;
/// Share of requests of an instance that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// What is probed when a registration names nothing.
pub const DEFAULT_HEALTH_ENDPOINT: &str = "/health";
/// Most entries of `metadata`; text for people needs no more.
const MAX_METADATA: usize = 64;
/// Longest key, value and version, in bytes.
const MAX_TEXT: usize = 1024;
/// Longest timeout of a route: what waits longer is no request any more.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    H2,
}

impl Protocol {
    /// As in a registration: `http1` or `h2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2 => "h2",
        }
    }
}

/// One route of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it answers for.
    pub key: RouteKey,
    /// What a caller's key needs; `None`: any valid key, or none at all when `public`.
    pub permission: Option<Permission>,
    /// Callers need no key.
    pub public: bool,
    /// To the head of the answer; `None`: furt's `upstream_timeout`.
    pub timeout: Option<Duration>,
    /// From the request to the end of the answer; `None`: furt's `deadline`.
    pub deadline: Option<Duration>,
}

/// What identifies a route among those of all services.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The path pattern.
    pub pattern: RoutePattern,
    /// The host.
    pub host: RouteHost,
    /// The method.
    pub method: RouteMethod,
}

impl std::fmt::Display for RouteKey {
    /// `GET /api/comments/*`, with the host between them when it names one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.method, self.host, self.pattern)
    }
}

/// A whole and sound registration of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceId,
    /// Where it listens.
    pub url: UpstreamUrl,
    /// What is probed, below `url`; a canonical path, perhaps with a query.
    pub health_endpoint: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// The service's own version, for people.
    pub version: String,
    /// Share of requests, 1 to 1000.
    pub weight: u32,
    /// For people.
    pub metadata: BTreeMap<String, String>,
    /// 1 to 1,000, each key once, in the order given.
    pub routes: Vec<Route>,
}

impl Registration {
    /// The whole registration, or every fault of it.
    pub fn parse(request: &v1::RegisterRequest) -> Result<Self, Vec<Fault>> {
        let draft = Draft::read(request);
        match draft.registration {
            Some(registration) => Ok(registration),
            None => Err(draft.faults),
        }
    }

    /// As it could have been sent, every default spelled out: what the store keeps.
    pub fn to_request(&self) -> v1::RegisterRequest {
        let route = |route: &Route| v1::Route {
            method: route.key.method.to_string(),
            path: route.key.pattern.to_string(),
            permission: route.permission.as_ref().map(ToString::to_string).unwrap_or_default(),
            host: route.key.host.to_string(),
            public: route.public,
            timeout: route.timeout.map(format_duration).unwrap_or_default(),
            deadline: route.deadline.map(format_duration).unwrap_or_default(),
        };
        v1::RegisterRequest {
            service: self.service.to_string(),
            url: self.url.to_string(),
            health_endpoint: self.health_endpoint.clone(),
            routes: self.routes.iter().map(route).collect(),
            instance: self.instance.to_string(),
            version: self.version.clone(),
            weight: Some(self.weight),
            metadata: self.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            protocol: self.protocol.as_str().into(),
            dry_run: false,
        }
    }

    /// Whether `self` after `before` is the same instance going on, rather than a new start.
    pub fn continues(&self, before: &Self) -> bool {
        self.url == before.url && self.health_endpoint == before.health_endpoint && self.protocol == before.protocol
    }
}

/// As much of a registration as could be read, so that the rules can speak about the sound parts of a faulty one.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The service, when its name is sound.
    pub service: Option<ServiceName>,
    /// The url, when it is sound.
    pub url: Option<UpstreamUrl>,
    /// What it speaks, when that is sound.
    pub protocol: Option<Protocol>,
    /// The instance, when its id is sound.
    pub instance: Option<InstanceId>,
    /// The routes, in the order given.
    pub routes: Vec<DraftRoute>,
    /// The whole, when there is no fault.
    pub registration: Option<Registration>,
    /// Every fault of shape.
    pub faults: Vec<Fault>,
}

/// As much of a route as could be read.
#[derive(Debug, Clone)]
pub struct DraftRoute {
    /// When it is sound.
    pub host: Option<RouteHost>,
    /// When it is sound.
    pub method: Option<RouteMethod>,
    /// When it is sound.
    pub pattern: Option<RoutePattern>,
    /// When there is one and it is sound.
    pub permission: Option<Permission>,
    /// As given.
    pub public: bool,
}

impl DraftRoute {
    /// What identifies the route, when all of it is sound.
    pub fn key(&self) -> Option<RouteKey> {
        Some(RouteKey { host: self.host.clone()?, method: self.method.clone()?, pattern: self.pattern.clone()? })
    }
}

impl Draft {
    /// Reads all that can be read and notes every fault.
    pub fn read(request: &v1::RegisterRequest) -> Self {
        let mut faults = Faults(Vec::new());
        let service: Option<ServiceName> = faults.required("service", &request.service);
        let instance = if request.instance.is_empty() { Some(InstanceId::default()) } else { faults.parsed("instance", &request.instance) };
        let url: Option<UpstreamUrl> = faults.required("url", &request.url);
        let health_endpoint = faults.checked("health_endpoint", health_endpoint(&request.health_endpoint));
        let protocol = faults.checked("protocol", protocol(&request.protocol));
        let weight = faults.checked("weight", weight(request.weight));
        let version = faults.checked("version", text("a version", &request.version));
        faults.metadata(request);
        let (drafts, routes) = faults.routes(request);
        let faults = faults.0;
        let whole = || {
            Some(Registration {
                service: service.clone()?,
                instance: instance.clone()?,
                url: url.clone()?,
                health_endpoint: health_endpoint?,
                protocol: protocol?,
                version: version?,
                weight: weight?,
                metadata: request.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                routes,
            })
        };
        let registration = if faults.is_empty() { whole() } else { None };
        Self { registration, service, url, protocol, instance, routes: drafts, faults }
    }

    /// Of a registration that was read before.
    pub fn of(registration: Registration) -> Self {
        let route = |route: &Route| DraftRoute {
            host: Some(route.key.host.clone()),
            method: Some(route.key.method.clone()),
            pattern: Some(route.key.pattern.clone()),
            permission: route.permission.clone(),
            public: route.public,
        };
        Self {
            service: Some(registration.service.clone()),
            url: Some(registration.url.clone()),
            protocol: Some(registration.protocol),
            instance: Some(registration.instance.clone()),
            routes: registration.routes.iter().map(route).collect(),
            registration: Some(registration),
            faults: Vec::new(),
        }
    }

    /// Adds what decoding found already. A field that was not decoded is not blamed a second time for being empty,
    /// and after a fault of the whole body (of no field) none is.
    pub fn with_decoding(mut self, found: Vec<Fault>) -> Self {
        if found.is_empty() {
            return self;
        }
        let told: HashSet<&str> = found.iter().map(|fault| fault.field.as_str()).collect();
        let inside = |field: &str| {
            let ends = field.char_indices().filter(|(_, character)| matches!(character, '.' | '[')).map(|(at, _)| at);
            ends.chain([0, field.len()]).any(|end| told.contains(&field[..end]))
        };
        self.faults.retain(|fault| !inside(&fault.field));
        self.faults.splice(0..0, found);
        self.registration = None;
        self
    }
}

/// The faults found so far.
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault::new(field, Code::Validation, message));
    }

    fn checked<T>(&mut self, field: &str, value: Result<T, NameError>) -> Option<T> {
        value.map_err(|error| self.add(field, error.0)).ok()
    }

    fn parsed<T: FromStr<Err = NameError>>(&mut self, field: &str, text: &str) -> Option<T> {
        self.checked(field, text.parse())
    }

    fn required<T: FromStr<Err = NameError>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() {
            self.add(field, "is missing");
            return None;
        }
        self.parsed(field, text)
    }

    fn metadata(&mut self, request: &v1::RegisterRequest) {
        if request.metadata.len() > MAX_METADATA {
            self.add("metadata", format!("metadata may have up to {MAX_METADATA} entries, got {}", request.metadata.len()));
            return;
        }
        for (key, value) in &request.metadata {
            if key.is_empty() || key.len() > MAX_TEXT || value.len() > MAX_TEXT {
                self.add("metadata", format!("keys and values may have up to {MAX_TEXT} bytes, and a key at least 1, got {}", quoted(key)));
            }
        }
    }

    fn routes(&mut self, request: &v1::RegisterRequest) -> (Vec<DraftRoute>, Vec<Route>) {
        if request.routes.is_empty() || request.routes.len() > MAX_ROUTES {
            self.add("routes", format!("an instance has 1 to {MAX_ROUTES} routes, got {}", request.routes.len()));
            return (Vec::new(), Vec::new());
        }
        let mut drafts = Vec::with_capacity(request.routes.len());
        let mut routes = Vec::with_capacity(request.routes.len());
        let mut seen = HashSet::with_capacity(request.routes.len());
        for (index, wire) in request.routes.iter().enumerate() {
            let (draft, route) = self.route(index, wire);
            if let Some(key) = draft.key()
                && !seen.insert(key.clone())
            {
                self.add(format!("routes[{index}]"), format!("{key} is there twice"));
            }
            drafts.push(draft);
            routes.extend(route);
        }
        (drafts, routes)
    }

    fn route(&mut self, index: usize, wire: &v1::Route) -> (DraftRoute, Option<Route>) {
        let field = |name: &str| format!("routes[{index}].{name}");
        let named = |faults: &mut Self, name: &str, text: &str| {
            if text.is_empty() {
                faults.add(field(name), "is missing");
            }
            !text.is_empty()
        };
        let method = if named(self, "method", &wire.method) { self.parsed(&field("method"), &wire.method) } else { None };
        let pattern = if named(self, "path", &wire.path) { self.parsed(&field("path"), &wire.path) } else { None };
        let host = self.parsed(&field("host"), &wire.host);
        let permission: Option<Permission> =
            if wire.permission.is_empty() { None } else { self.parsed(&field("permission"), &wire.permission) };
        if wire.public && !wire.permission.is_empty() {
            self.add(field("public"), "a public route needs no key, so it takes no permission: leave one of the two out");
        }
        let limit = self.checked(&field("timeout"), time("timeout", &wire.timeout));
        let deadline = self.checked(&field("deadline"), time("deadline", &wire.deadline));
        let draft = DraftRoute { host, method, pattern, permission, public: wire.public };
        let key = draft.key();
        let route =
            |timeout, deadline| Some(Route { key: key?, permission: draft.permission.clone(), public: wire.public, timeout, deadline });
        let route = limit.zip(deadline).and_then(|(timeout, deadline)| route(timeout, deadline));
        (draft, route)
    }
}

fn health_endpoint(text: &str) -> Result<String, NameError> {
    if text.is_empty() {
        return Ok(DEFAULT_HEALTH_ENDPOINT.to_owned());
    }
    let refuse = |why: &str| Err(NameError(format!("{why}, got {}", quoted(text))));
    if text.len() > MAX_HEALTH_ENDPOINT {
        return refuse("a health endpoint may have up to 1024 bytes");
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return refuse("a health endpoint must be visible ASCII without \"#\"");
    }
    let path = text.split_once('?').map_or(text, |(path, _)| path);
    match canonical(path) {
        Ok(canonical) if canonical == path => Ok(text.to_owned()),
        Ok(canonical) => refuse(&format!("a health endpoint must be in canonical form, which is {canonical}")),
        Err(fault) => refuse(&fault.to_string()),
    }
}

fn protocol(text: &str) -> Result<Protocol, NameError> {
    match text {
        "" | "http1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::H2),
        other => Err(NameError(format!("a protocol is \"http1\" or \"h2\", got {}", quoted(other)))),
    }
}

fn weight(weight: Option<u32>) -> Result<u32, NameError> {
    match weight.unwrap_or(DEFAULT_WEIGHT) {
        weight @ 1..=1000 => Ok(weight),
        other => Err(NameError(format!("a weight is 1 to 1000, got {other}"))),
    }
}

fn text(what: &str, text: &str) -> Result<String, NameError> {
    if text.len() > MAX_TEXT {
        return Err(NameError(format!("{what} may have up to {MAX_TEXT} bytes")));
    }
    Ok(text.to_owned())
}

fn time(what: &str, text: &str) -> Result<Option<Duration>, NameError> {
    if text.is_empty() {
        return Ok(None);
    }
    match parse_duration(text)? {
        timeout if timeout < Duration::from_millis(1) || timeout > MAX_TIMEOUT => {
            Err(NameError(format!("a {what} is 1ms to a day, got {}", quoted(text))))
        }
        timeout => Ok(Some(timeout)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn seed() -> v1::RegisterRequest {
        let route = |method: &str, permission: &str| v1::Route {
            method: method.into(),
            path: "/api/comments/*".into(),
            permission: permission.into(),
            ..Default::default()
        };
        v1::RegisterRequest {
            service: "sagjan".into(),
            url: "http://127.0.0.1:7812".into(),
            health_endpoint: "/health".into(),
            routes: vec![
                route("POST", "comments:write"),
                route("GET", "comments:read"),
                route("PUT", "comments:moderate"),
                route("DELETE", "comments:delete"),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn the_seeds_body_is_a_registration() {
        let registration = Registration::parse(&seed()).unwrap();
        assert_eq!(registration.instance.as_str(), "default");
        assert_eq!((registration.weight, registration.protocol), (100, Protocol::Http1));
        assert_eq!(registration.routes.len(), 4);
        assert_eq!(registration.routes[0].key.to_string(), "POST /api/comments/*");
        let short = v1::RegisterRequest { health_endpoint: String::new(), ..seed() };
        assert_eq!(Registration::parse(&short).unwrap(), registration, "/health is the default");
    }

    #[test]
    fn every_fault_is_told_with_its_field() {
        let mut request = seed();
        request.service = "Sagjan".into();
        request.url = String::new();
        request.health_endpoint = "/../etc".into();
        request.weight = Some(0);
        request.protocol = "spdy".into();
        request.routes[1].method = "get".into();
        request.routes[1].path = "/a//b".into();
        request.routes[2].permission = "comments:*".into();
        request.routes[2].timeout = "0".into();
        request.routes[2].deadline = "2d".into();
        request.routes[3].host = "a:80".into();
        let faults = Registration::parse(&request).unwrap_err();
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        let expected = [
            "service",
            "url",
            "health_endpoint",
            "protocol",
            "weight",
            "routes[1].method",
            "routes[1].path",
            "routes[2].permission",
            "routes[2].timeout",
            "routes[2].deadline",
            "routes[3].host",
        ];
        assert_eq!(fields, expected);
        assert!(faults.iter().all(|fault| fault.code == Code::Validation));
    }

    #[test]
    fn each_limit_of_the_contract_holds() {
        let check = |change: &dyn Fn(&mut v1::RegisterRequest), expected: &str| {
            let mut request = seed();
            change(&mut request);
            match Registration::parse(&request) {
                Ok(_) => assert_eq!(expected, "", "accepted"),
                Err(faults) => assert_eq!(faults[0].field, expected, "{faults:?}"),
            }
        };
        check(&|request| request.routes.clear(), "routes");
        check(&|request| request.routes = vec![request.routes[0].clone(); 1001], "routes");
        check(&|request| request.routes[1] = request.routes[0].clone(), "routes[1]");
        check(&|request| request.routes[1] = v1::Route { host: "a.org".into(), ..request.routes[0].clone() }, "");
        check(&|request| request.routes[0].method = "CONNECT".into(), "routes[0].method");
        check(&|request| request.routes[0].method = "*".into(), "");
        check(&|request| request.routes[0].permission.clear(), "");
        check(&|request| request.routes[0].public = true, "routes[0].public");
        check(&|request| request.routes[0].permission = "a".repeat(129), "routes[0].permission");
        check(&|request| request.health_endpoint = "/health?full=1".into(), "");
        check(&|request| request.health_endpoint = "/h%65alth".into(), "health_endpoint");
        check(&|request| request.health_endpoint = "/health#a".into(), "health_endpoint");
        check(&|request| request.health_endpoint = format!("/{}", "a".repeat(1024)), "health_endpoint");
        check(&|request| request.url = "http://127.0.0.1:0".into(), "url");
        check(&|request| request.url = "http://u:p@127.0.0.1".into(), "url");
        check(&|request| request.instance = "A".into(), "instance");
        check(&|request| request.weight = Some(1001), "weight");
        check(&|request| request.version = "v".repeat(1025), "version");
        check(&|request| request.metadata = (0..65).map(|n| (n.to_string(), String::new())).collect(), "metadata");
    }

    #[test]
    fn times_of_a_route_are_a_millisecond_to_a_day_each_by_itself() {
        let check = |timeout: &str, deadline: &str, expected: Result<[Option<u64>; 2], &str>| {
            let mut request = seed();
            (request.routes[0].timeout, request.routes[0].deadline) = (timeout.into(), deadline.into());
            let ms = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap());
            let read = Registration::parse(&request);
            let told = read.as_ref().map(|read| [ms(read.routes[0].timeout), ms(read.routes[0].deadline)]);
            assert_eq!(told.map_err(|faults| faults[0].message.as_str()), expected, "{timeout} {deadline}");
            // What is kept in the store and read again is the same.
            if let Ok(read) = &read {
                assert_eq!(Registration::parse(&read.to_request()).as_ref(), Ok(read));
            }
        };
        check("", "", Ok([None, None]));
        check("30", "60", Ok([Some(30_000), Some(60_000)]));
        // The deadline ends what the timeout would have let go on: no fault, as the one may be furt.conf's.
        check("30", "1ms", Ok([Some(30_000), Some(1)]));
        check("", "86400", Ok([None, Some(86_400_000)]));
        check("", "86401", Err("a deadline is 1ms to a day, got \"86401\""));
        check("", "0", Err("a deadline is 1ms to a day, got \"0\""));
        check("0", "", Err("a timeout is 1ms to a day, got \"0\""));
    }

    #[test]
    fn what_decoding_found_is_not_told_twice() {
        let mut request = seed();
        request.url = String::new();
        request.routes[1] = v1::Route::default();
        request.routes[2].path = String::new();
        let found = vec![
            Fault::new("url", Code::Validation, "expected a string, got a number"),
            Fault::new("routes[1]", Code::Validation, "expected an object, got null"),
        ];
        let draft = Draft::read(&request).with_decoding(found);
        let fields: Vec<_> = draft.faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["url", "routes[1]", "routes[2].path"]);
        assert!(draft.registration.is_none());

        let whole = vec![Fault::new("", Code::Malformed, "the body is empty")];
        assert_eq!(Draft::read(&v1::RegisterRequest::default()).with_decoding(whole.clone()).faults, whole);
    }
}
