//! `[route "label"]`: the static routes.

use furt_control_plane::config::StaticRoute;
use furt_proto::{names::NameError, pattern::RoutePattern, url::UpstreamUrl};

use super::reader::{Reader, boolean, duration, visible};

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
    let url = reader.read("url", url);
    let permission = reader.optional("permission", str::parse);
    let public = reader.read("public", boolean);
    match (&permission, public) {
        (Some(None), Some(false)) => reader.error("permission", "expected a permission, or public = true"),
        (Some(Some(_)), Some(true)) => reader.error("public", "expected either a permission or public = true, not both"),
        _ => {}
    }
    let set_headers = reader.headers("set_headers");
    let timeout = reader.optional("timeout", duration);
    Some(StaticRoute {
        name: name.ok()?.into(),
        host: host?.unwrap_or_default(),
        methods: methods.filter(|methods| !methods.is_empty())?,
        pattern: pattern?,
        permission: permission?,
        public: public?,
        url: url?,
        set_headers: set_headers?,
        timeout: timeout?,
    })
}

fn pattern(text: &str) -> Result<RoutePattern, NameError> {
    let pattern: RoutePattern = text.parse()?;
    if let Some(first) = pattern.reserved() {
        return Err(NameError(format!("expected a path that is not at or under /{first}, which furt answers itself")));
    }
    Ok(pattern)
}

fn url(text: &str) -> Result<UpstreamUrl, NameError> {
    let url: UpstreamUrl = text.parse()?;
    if url.tls() {
        return Err(NameError("expected http://: https: not supported by this version yet".into()));
    }
    Ok(url)
}
