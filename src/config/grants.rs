//! `[service "name"]`: the grants.

use furt_control_plane::config::Grant;

use super::{
    reader::{Reader, boolean, number, sha256},
    server::{in_flight, networks},
};

/// Reads one grant.
pub fn grant(reader: &mut Reader<'_>) -> Option<Grant> {
    let service = match reader.label() {
        "*" => Some(None),
        label => match label.parse() {
            Ok(name) => Some(Some(name)),
            Err(error) => {
                let error: furt_proto::names::NameError = error;
                reader.error("[service]", format!("{error}; \"*\" is the default grant"));
                None
            }
        },
    };
    let permissions = reader.list("permissions", str::parse);
    let paths = reader.list("paths", str::parse);
    let hosts = reader.list("hosts", str::parse);
    let from = networks(reader, "from");
    let upstreams = networks(reader, "upstreams");
    let tokens = reader.list("token_sha256", sha256);
    let max_instances = reader.read("max_instances", number(1, 100_000));
    let allow_public = reader.read("allow_public", boolean);
    let max_in_flight = reader.read("max_in_flight", in_flight);
    let keep_alive = reader.read("keep_alive", boolean);
    Some(Grant {
        service: service?,
        permissions: permissions?,
        paths: paths.map(|paths| (!paths.is_empty()).then_some(paths))?,
        hosts: hosts?,
        from: from.map(|from| (!from.is_empty()).then_some(from))?,
        upstreams: upstreams.map(|upstreams| (!upstreams.is_empty()).then_some(upstreams))?,
        tokens: tokens?,
        max_instances: max_instances.map(|count| usize::try_from(count).unwrap_or(usize::MAX))?,
        allow_public: allow_public?,
        max_in_flight: max_in_flight?,
        keep_alive: keep_alive?,
    })
}
