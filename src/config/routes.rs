//! `[route "label"]`: the static routes.

use furt_control_plane::{config::StaticRoute, registration::Protocol};
use furt_proto::{names::NameError, pattern::RoutePattern};

use super::{
    reader::{Reader, boolean, duration, expected, visible},
    server::in_flight,
};

/// Reads one static route.
pub fn route(reader: &mut Reader<'_>) -> Option<StaticRoute> {
    let name = visible(reader.label());
    if let Err(error) = &name {
        reader.error("[route]", error.to_string());
    }
    let host = reader.optional("host", str::parse);
    let methods = reader.list("methods", str::parse);
    if methods.as_ref().is_some_and(Vec::is_empty) {
        reader.error("methods", "expected methods such as GET, POST, or * for any");
    }
    let pattern = reader.read("path", pattern);
    let url = reader.read("url", str::parse);
    let protocol = reader.read("protocol", protocol);
    let permission = reader.optional("permission", str::parse);
    let public = reader.read("public", boolean);
    match (&permission, public) {
        (Some(None), Some(false)) => reader.error("permission", "expected a permission, or public = true"),
        (Some(Some(_)), Some(true)) => reader.error("public", "expected either a permission or public = true, not both"),
        _ => {}
    }
    let set_headers = reader.headers("set_headers");
    let timeout = reader.optional("timeout", duration);
    let deadline = reader.optional("deadline", duration);
    let max_in_flight = reader.read("max_in_flight", in_flight);
    let keep_alive = reader.read("keep_alive", boolean);
    Some(StaticRoute {
        name: name.ok()?.into(),
        host: host?.unwrap_or_default(),
        methods: methods.filter(|methods| !methods.is_empty())?,
        pattern: pattern?,
        permission: permission?,
        public: public?,
        url: url?,
        protocol: protocol?,
        set_headers: set_headers?,
        timeout: timeout?,
        deadline: deadline?,
        max_in_flight: max_in_flight?,
        keep_alive: keep_alive?,
    })
}

fn pattern(text: &str) -> Result<RoutePattern, NameError> {
    let pattern: RoutePattern = text.parse()?;
    if let Some(first) = pattern.reserved() {
        return Err(NameError(format!("expected a path that is not at or under /{first}, which furt answers itself")));
    }
    Ok(pattern)
}

fn protocol(text: &str) -> Result<Protocol, NameError> {
    match text {
        "http1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::H2),
        _ => Err(expected("http1 or h2", text)),
    }
}
