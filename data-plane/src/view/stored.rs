//! A view's services as they are kept on disk, and the view that starts from them.
//!
//! Here: from compiled services back to messages. Keys, static routes and CORS are not kept: furt.conf has them, and
//! there are secrets among them. Not here: files (`disk`).

use std::time::Duration;

use furt_proto::v1;

use super::{ApplyError, Instance, Protocol, Service, Status, View, apply};
use crate::{
    config::Config,
    table::{Access, Declared, Route},
};

/// Stands where a permission should for a route that is not understood; beside `public` it is not understood again.
const NOT_UNDERSTOOD: &str = "not understood";

impl View {
    /// Its registered services, in the order of names, as a whole snapshot. Parts have no digest: whoever reads them
    /// compiles them anew.
    pub fn stored(&self) -> v1::WatchResponse {
        let mut services: Vec<_> = self.parts.services().map(|held| service(&held.service, &held.routes)).collect();
        services.sort_unstable_by(|one, two| one.name.cmp(&two.name));
        v1::WatchResponse {
            epoch: self.epoch.to_string(),
            version: self.version,
            whole: true,
            services,
            renew_after_seconds: self.renew_after_seconds,
            ..Default::default()
        }
    }

    /// Before the first snapshot of this life, with the services of an earlier one. They serve as soon as a control
    /// plane says that it does not know every service, and go when one knows better.
    ///
    /// What was UP is UNKNOWN now: nobody has probed it since.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub fn restored(config: Config, mut snapshot: v1::WatchResponse) -> Result<Self, ApplyError> {
        let instances = snapshot.services.iter_mut().filter_map(|service| service.instances.as_mut());
        for instance in instances.flat_map(|set| &mut set.instances).filter(|instance| instance.status == Status::Up.as_str()) {
            instance.status = Status::Unknown.as_str().into();
        }
        let view = apply(&Self::empty(config), v1::WatchResponse { whole: true, partial: true, ..snapshot })?;
        Ok(Self { epoch: "".into(), version: 0, ..view })
    }
}

fn service(service: &Service, routes: &[std::sync::Arc<Route>]) -> v1::ServiceSnapshot {
    let routes = routes.iter().map(|own| route(own)).collect();
    let instances = service.instances.iter().map(|own| instance(own)).collect();
    v1::ServiceSnapshot {
        name: service.name.to_string(),
        routes: Some(v1::RouteSet { routes, digest: 0 }),
        instances: Some(v1::InstanceSet { instances, digest: 0 }),
    }
}

fn route(route: &Route) -> v1::SnapshotRoute {
    let (public, permission) = match &route.access {
        Access::Public => (true, String::new()),
        Access::AnyKey => (false, String::new()),
        Access::Permission(permission) => (false, permission.to_string()),
        Access::Unusable(_) => (true, NOT_UNDERSTOOD.to_owned()),
    };
    v1::SnapshotRoute {
        host: route.host.to_string(),
        method: route.method.to_string(),
        path: route.pattern.to_string(),
        permission,
        public,
        timeout_ms: milliseconds(route.timeout),
        deadline_ms: milliseconds(route.deadline),
        instances: match &route.instances {
            Declared::Only(numbers) => numbers.to_vec(),
            // Only static routes are declared by all, and they are not kept.
            Declared::All => Vec::new(),
        },
    }
}

fn instance(instance: &Instance) -> v1::SnapshotInstance {
    let protocol = match instance.protocol {
        Protocol::Http1 => "http1",
        Protocol::H2 => "h2",
    };
    v1::SnapshotInstance {
        number: instance.number,
        id: instance.id.to_string(),
        url: instance.url.to_string(),
        addresses: instance.addresses.iter().map(ToString::to_string).collect(),
        status: instance.status.as_str().into(),
        weight: instance.weight,
        protocol: protocol.into(),
        parked: instance.parked,
        suspect: instance.suspect,
        drained: instance.drained,
        withdrawn: instance.withdrawn,
        registration_id: instance.registration_id.to_string(),
        max_in_flight: instance.max_in_flight,
        keep_alive_off: !instance.keep_alive,
    }
}

/// 0: none.
fn milliseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
