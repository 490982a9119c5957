//! From a route of a snapshot to a route of the table.
//!
//! Here: what becomes of what this program does not understand about a route: it governs at least
//! what it was meant to govern, and answers 503. Not here: the table, the parts of a view.

use std::{sync::Arc, time::Duration};

use furt_proto::{
    names::{NameError, RouteHost},
    pattern::{MAX_SEGMENTS, RoutePattern},
    v1,
};
use http::{HeaderName, HeaderValue};

use super::Service;
use crate::table::{Access, Declared, Route};

/// The fields that registered and static routes share.
struct Fields<'a> {
    host: &'a str,
    method: &'a str,
    path: &'a str,
    access: Result<Access, String>,
    timeout_ms: u64,
    deadline_ms: u64,
    instances: Declared,
    set_headers: &'a [v1::SetHeader],
}

/// A registered route. `None` cannot happen while `*` is a method and `/*` a pattern.
pub(super) fn registered(service: &Service, route: &v1::SnapshotRoute) -> Option<Route> {
    let mut numbers = route.instances.clone();
    numbers.sort_unstable();
    let fields = Fields {
        host: &route.host,
        method: &route.method,
        path: &route.path,
        access: access(route.public, &route.permission, Ok(Access::AnyKey)),
        timeout_ms: route.timeout_ms,
        deadline_ms: route.deadline_ms,
        instances: Declared::Only(numbers.into()),
        set_headers: &[],
    };
    compile(service, fields)
}

/// A static route: one of the table for each of its methods.
pub(super) fn fixed(service: &Service, route: &v1::StaticRoute) -> Vec<Option<Route>> {
    let methods = if route.methods.is_empty() { &[String::new()] } else { &route.methods[..] };
    // furt.conf demands one of the two, so neither is something else than "any key".
    let neither = || Err("neither public nor with a permission".into());
    let fields = |method| Fields {
        host: &route.host,
        method,
        path: &route.path,
        access: access(route.public, &route.permission, neither()),
        timeout_ms: route.timeout_ms,
        deadline_ms: route.deadline_ms,
        instances: Declared::All,
        set_headers: &route.set_headers,
    };
    methods.iter().map(|method| compile(service, fields(method))).collect()
}

/// What a caller must show; `neither`: what a route means that says nothing of it.
fn access(public: bool, permission: &str, neither: Result<Access, String>) -> Result<Access, String> {
    match (public, permission) {
        (true, "") => Ok(Access::Public),
        (true, _) => Err("both public and with a permission".into()),
        (false, "") => neither,
        (false, permission) => permission.parse().map(Access::Permission).map_err(|error: NameError| error.to_string()),
    }
}

/// The one instance of a static route: always UP, since nobody probes it.
pub(super) fn static_instance(route: &v1::StaticRoute) -> v1::SnapshotInstance {
    v1::SnapshotInstance {
        id: "default".into(),
        url: route.url.clone(),
        addresses: route.addresses.clone(),
        status: "UP".into(),
        weight: 100,
        protocol: route.protocol.clone(),
        max_in_flight: route.max_in_flight,
        keep_alive_off: route.keep_alive_off,
        ..Default::default()
    }
}

fn compile(service: &Service, fields: Fields<'_>) -> Option<Route> {
    let mut faults = Vec::new();
    let host = fields.host.parse().unwrap_or_else(|error: NameError| {
        faults.push(error.to_string());
        RouteHost::Any
    });
    let any = "*".parse().ok()?;
    let method = fields.method.parse().unwrap_or_else(|error: NameError| {
        faults.push(error.to_string());
        any
    });
    let pattern = match fields.path.parse() {
        Ok(pattern) => pattern,
        Err(error) => {
            faults.push(NameError::to_string(&error));
            wider(fields.path)?
        }
    };
    let mut set_headers = Vec::with_capacity(fields.set_headers.len());
    for header in fields.set_headers {
        match (HeaderName::from_bytes(header.name.as_bytes()), HeaderValue::from_str(&header.value)) {
            (Ok(name), Ok(value)) => set_headers.push((name, value)),
            _ => faults.push(format!("a header that cannot be set: {}", furt_proto::names::quoted(&header.name))),
        }
    }
    let access = fields.access.unwrap_or_else(|fault| {
        faults.push(fault);
        Access::AnyKey
    });
    let access = if faults.is_empty() { access } else { Access::Unusable(faults.join("; ").into()) };
    Some(Route {
        service: Arc::clone(&service.name),
        slot: service.slot,
        host,
        method,
        pattern,
        access,
        timeout: (fields.timeout_ms != 0).then(|| Duration::from_millis(fields.timeout_ms)),
        deadline: (fields.deadline_ms != 0).then(|| Duration::from_millis(fields.deadline_ms)),
        instances: fields.instances,
        is_static: service.is_static,
        set_headers,
    })
}

/// The narrowest pattern over a prefix of one that is not understood: no other service's wildcard
/// may get what was meant for it.
fn wider(path: &str) -> Option<RoutePattern> {
    let ends = path.match_indices('/').map(|(at, _)| at).take(MAX_SEGMENTS);
    let mut prefixes: Vec<&str> = ends.map(|at| &path[..at]).collect();
    prefixes.push("");
    let mut widest_last = prefixes.into_iter().rev().filter(|prefix| prefix.len() < furt_proto::pattern::MAX_BYTES);
    let narrowest = widest_last.find_map(|prefix| format!("{prefix}/*").parse().ok());
    narrowest.or_else(|| "/*".parse().ok())
}
