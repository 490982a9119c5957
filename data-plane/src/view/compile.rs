//! From a snapshot, or a change of one, to the next view.
//!
//! Here: which parts changed, and what becomes of them; the cost grows with the change. What a part
//! has that is not understood closes a door, never opens one. Not here: streams, retries, logs.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use furt_proto::{names::quoted, url::UpstreamUrl, v1};
use http::HeaderValue;

use super::{Instance, Protocol, Report, Service, Status, View, protocol, routes, status};
use crate::{auth::Keys, map::Map, metrics::ServiceMetrics, table::Route, upstream::tls_name};

/// Most notes of one update that are kept for the log.
const MAX_NOTES: usize = 20;

/// Why an update was refused; the view before it stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Neither whole nor a change of what is held.
    #[error("a change of epoch {got:?}, but epoch {held:?} is held")]
    UnknownBase {
        /// The epoch of the view.
        held: String,
        /// The epoch of the update.
        got: String,
    },
    /// Older than what is held.
    #[error("version {got} after version {held}")]
    Older {
        /// The version of the view.
        held: u64,
        /// The version of the update.
        got: u64,
    },
    /// Contradicts itself.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The parts held after it are not those that the control plane holds.
    #[error("the digest after it is {got:016x}, not {expected:016x}")]
    Digest {
        /// As the update says.
        expected: u64,
        /// As it adds up.
        got: u64,
    },
}

/// The parts of snapshots that a view was compiled from.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    services: Map<Arc<str>, Arc<Held>>,
    fixed: Arc<Fixed>,
    fixed_digest: u64,
    keys_digest: u64,
    cors_digest: u64,
    /// Slots that are free again, and the first that was never used.
    free: Arc<Vec<u32>>,
    next_slot: u32,
}

impl Parts {
    pub(super) fn registered(&self) -> usize {
        self.services.len()
    }

    /// What is held of the registered services, in no order that means anything.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.services.values()
    }
}

/// What is held of one service.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) service: Arc<Service>,
    pub(super) routes: Vec<Arc<Route>>,
    routes_digest: u64,
    instances_digest: u64,
    /// The control plane knows nothing of it, so it has no share in the digest: it serves on as it was.
    kept: bool,
}

impl Held {
    fn new(service: Arc<Service>) -> Self {
        Self { service, routes: Vec::new(), routes_digest: 0, instances_digest: 0, kept: false }
    }

    fn digest(&self) -> u64 {
        if self.kept { 0 } else { self.routes_digest.wrapping_add(self.instances_digest) }
    }
}

/// What is held of the static routes.
#[derive(Debug, Default)]
struct Fixed {
    services: Vec<Arc<Service>>,
    routes: Vec<Arc<Route>>,
}

/// The view after an update. Pure: `view` stays as it is, and what did not change is shared.
///
/// Errors: the update does not build on `view` or contradicts itself; then nothing of it counts.
pub fn apply(view: &View, update: v1::WatchResponse) -> Result<View, ApplyError> {
    check(view, &update)?;
    let mut build = Build { view: view.clone(), freed: Vec::new(), notes: Vec::new() };
    if *view.epoch != *update.epoch {
        build.view.epoch = update.epoch.as_str().into();
    }
    build.view.version = update.version;
    build.view.renew_after_seconds = update.renew_after_seconds;
    if *build.view.issues != *update.issues {
        build.view.issues = update.issues.as_slice().into();
    }
    build.remove(&update);
    build.view.partial = update.partial;
    build.services(&update.services, update.whole);
    // A whole snapshot without a part has it empty; a change without it leaves it as it is.
    if let Some(set) = update.static_routes.or_else(|| update.whole.then(Default::default)) {
        build.static_routes(&set);
    }
    if let Some(set) = update.keys.or_else(|| update.whole.then(Default::default)) {
        build.keys(&set);
    }
    if let Some(cors) = update.cors.or_else(|| update.whole.then(Default::default)) {
        build.cors(cors);
    }
    build.reports(&update.reports);
    if build.view.digest != update.digest {
        return Err(ApplyError::Digest { expected: update.digest, got: build.view.digest });
    }
    if !build.freed.is_empty() {
        Arc::make_mut(&mut build.view.parts.free).append(&mut build.freed);
    }
    build.view.notes = build.notes.into();
    Ok(build.view)
}

/// Whether an update may be applied to a view at all.
fn check(view: &View, update: &v1::WatchResponse) -> Result<(), ApplyError> {
    if update.epoch.is_empty() {
        return Err(ApplyError::Malformed("it has no epoch".into()));
    }
    if !update.whole && *view.epoch != *update.epoch {
        return Err(ApplyError::UnknownBase { held: view.epoch.to_string(), got: update.epoch.clone() });
    }
    if !update.whole && update.version < view.version {
        return Err(ApplyError::Older { held: view.version, got: update.version });
    }
    let mut names = HashSet::with_capacity(update.services.len());
    match update.services.iter().find(|service| !names.insert(&service.name)) {
        Some(twice) => Err(ApplyError::Malformed(format!("it has service {} twice", quoted(&twice.name)))),
        None => Ok(()),
    }
}

/// A view under construction.
struct Build {
    view: View,
    /// Slots given back; no service of this view gets one, so that a slot never changes hands between two views.
    freed: Vec<u32>,
    notes: Vec<String>,
}

impl Build {
    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(what());
        }
    }

    /// Takes out the services that are gone. One that is gone and there again keeps its slot and
    /// its counts, and nothing else.
    ///
    /// What is not named by a control plane that does not know every service is not gone but kept, until there
    /// is one that does.
    fn remove(&mut self, update: &v1::WatchResponse) {
        let named: HashSet<&str> = update.services.iter().map(|service| &*service.name).collect();
        let unnamed = |held: &&Arc<Held>| !named.contains(&*held.service.name);
        let held = &self.view.parts.services;
        if update.whole && update.partial {
            for held in held.values().filter(unnamed).filter(|held| !held.kept).cloned().collect::<Vec<_>>() {
                self.put(Some(&held), Held { kept: true, ..Held::clone(&held) });
            }
            return;
        }
        let mut gone: Vec<Arc<Held>> = match update.whole {
            true => held.values().filter(unnamed).cloned().collect(),
            false => update.removed.iter().filter_map(|name| held.get(&**name)).cloned().collect(),
        };
        if self.view.partial && !update.partial && !update.whole {
            let removed: HashSet<&str> = update.removed.iter().map(String::as_str).collect();
            gone.extend(held.values().filter(|held| held.kept && !removed.contains(&*held.service.name)).filter(unnamed).cloned());
        }
        for held in gone {
            self.take_routes(&held.routes);
            if named.contains(&*held.service.name) {
                let service = Arc::new(Service { instances: Vec::new(), ..same(&held.service) });
                self.put(Some(&held), Held::new(service));
                continue;
            }
            self.view.digest = self.view.digest.wrapping_sub(held.digest());
            self.view.parts.services.remove(&held.service.name);
            self.free(&held.service);
        }
    }

    /// Compiles the changed parts of services. All old routes are out before the first new one is
    /// in: a route may change hands within an update.
    fn services(&mut self, snapshots: &[v1::ServiceSnapshot], whole: bool) {
        let (no_routes, no_instances) = (v1::RouteSet::default(), v1::InstanceSet::default());
        let mut changed = Vec::new();
        for snapshot in snapshots {
            let old = self.view.parts.services.get(&*snapshot.name).cloned();
            let kept = old.as_ref().is_some_and(|old| old.kept);
            // Nothing stays as it is of what the control plane knew nothing of.
            let routes = snapshot.routes.as_ref().or((whole || kept).then_some(&no_routes));
            let instances = snapshot.instances.as_ref().or((whole || kept).then_some(&no_instances));
            // A part with the digest of the one that is held is the one that is held.
            let routes = routes.filter(|part| old.as_ref().is_none_or(|old| old.routes_digest != part.digest));
            let instances = instances.filter(|part| old.as_ref().is_none_or(|old| old.instances_digest != part.digest));
            if old.is_some() && !kept && routes.is_none() && instances.is_none() {
                continue;
            }
            self.view.compiled.services += 1;
            let mut next = match &old {
                Some(old) => Held { kept: false, ..Held::clone(old) },
                None => Held::new(Arc::new(self.new_service(&snapshot.name, false))),
            };
            if let Some(part) = instances {
                next.service = Arc::new(self.with_instances(&next.service, &part.instances));
                next.instances_digest = part.digest;
            }
            if routes.is_some() {
                self.take_routes(&next.routes);
            }
            changed.push((old, next, routes));
        }
        for (old, mut next, routes) in changed {
            if let Some(part) = routes {
                next.routes = part.routes.iter().filter_map(|route| self.route(&next.service, route)).collect();
                next.routes_digest = part.digest;
                self.put_routes(&next.routes);
            }
            self.put(old.as_deref(), next);
        }
    }

    /// Puts `next` in the place of `old`. The table has its routes already.
    fn put(&mut self, old: Option<&Held>, next: Held) {
        self.view.digest = self.view.digest.wrapping_sub(old.map_or(0, Held::digest)).wrapping_add(next.digest());
        if old.is_none_or(|old| !Arc::ptr_eq(&old.service, &next.service)) {
            let slot = next.service.slot;
            let stays = |was: &Arc<Instance>| {
                next.service.instances.iter().any(|is| is.number == was.number && is.registration_id == was.registration_id)
            };
            let was = || old.iter().flat_map(|old| &old.service.instances);
            for gone in was().filter(|was| !stays(was)) {
                self.view.reports.remove(&(slot, gone.number));
            }
            for drained in was().filter(|was| was.drained) {
                self.view.drained.remove(&(slot, drained.number));
            }
            for drained in next.service.instances.iter().filter(|is| is.drained) {
                self.view.drained.insert((slot, drained.number), drained.clone());
            }
            self.view.slots.insert(next.service.slot, next.service.clone());
        }
        self.view.parts.services.insert(next.service.name.clone(), Arc::new(next));
    }

    fn route(&mut self, service: &Service, route: &v1::SnapshotRoute) -> Option<Arc<Route>> {
        let understood = routes::registered(service, route);
        self.noted(&service.name, &route.path, understood)
    }

    /// A route, and a note when something about it is not understood.
    fn noted(&mut self, service: &str, path: &str, route: Option<Route>) -> Option<Arc<Route>> {
        let reason = match &route {
            Some(Route { access: crate::table::Access::Unusable(reason), .. }) => Some(reason.clone()),
            Some(_) => None,
            None => Some("no place for it in the table".into()),
        };
        if let Some(reason) = reason {
            self.note(|| format!("route {} of {service}: {reason}", quoted(path)));
        }
        route.map(Arc::new)
    }

    fn put_routes(&mut self, routes: &[Arc<Route>]) {
        for route in routes {
            self.view.table.insert(route.clone());
            self.view.compiled.routes += 1;
        }
    }

    fn take_routes(&mut self, routes: &[Arc<Route>]) {
        for route in routes {
            self.view.table.remove(route);
        }
    }

    /// A service without instances, in a slot of its own.
    fn new_service(&mut self, name: &str, is_static: bool) -> Service {
        let parts = &mut self.view.parts;
        let slot = if parts.free.is_empty() { None } else { Arc::make_mut(&mut parts.free).pop() };
        let slot = slot.unwrap_or_else(|| {
            parts.next_slot += 1;
            parts.next_slot - 1
        });
        let metrics = Arc::new(ServiceMetrics::new(self.view.config.workers));
        Service { name: name.into(), slot, instances: Vec::new(), is_static, metrics }
    }

    /// Takes a service out of its slot.
    fn free(&mut self, service: &Service) {
        self.view.slots.remove(&service.slot);
        for instance in &service.instances {
            self.view.reports.remove(&(service.slot, instance.number));
            self.view.drained.remove(&(service.slot, instance.number));
        }
        self.freed.push(service.slot);
    }

    /// The service with these instances; what is known of those that stay is taken over.
    fn with_instances(&mut self, service: &Service, snapshots: &[v1::SnapshotInstance]) -> Service {
        let old: HashMap<u32, &Arc<Instance>> = service.instances.iter().map(|instance| (instance.number, instance)).collect();
        let mut instances: Vec<_> = snapshots
            .iter()
            .filter_map(|snapshot| self.instance(&service.name, old.get(&snapshot.number).copied(), snapshot))
            .map(Arc::new)
            .collect();
        instances.sort_by_key(|instance| instance.number);
        Service { instances, ..same(service) }
    }

    /// `None` when its url is not understood: there is nowhere to send a request to.
    fn instance(&mut self, service: &str, old: Option<&Arc<Instance>>, snapshot: &v1::SnapshotInstance) -> Option<Instance> {
        let mut odd = |what: &str, text: &str| self.note(|| format!("{what} of instance {} of {service}: {}", snapshot.id, quoted(text)));
        let Ok(url) = snapshot.url.parse::<UpstreamUrl>() else {
            odd("url", &snapshot.url);
            return None;
        };
        let Ok(authority) = HeaderValue::from_str(&url.authority()) else {
            odd("url", &snapshot.url);
            return None;
        };
        let mut addresses: Vec<SocketAddr> = Vec::with_capacity(snapshot.addresses.len());
        for text in &snapshot.addresses {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => odd("address", text),
            }
        }
        let understood = (status(&snapshot.status), protocol(&snapshot.protocol));
        // What it is or speaks is not understood: it takes no requests.
        let (status, protocol) = match understood {
            (Some(status), Some(protocol)) => (status, protocol),
            (_, known) => {
                odd("status or protocol", &format!("{} {}", snapshot.status, snapshot.protocol));
                (Status::Down, known.unwrap_or(Protocol::Http1))
            }
        };
        // Its requests in flight go on when its addresses change.
        let old = old.filter(|old| *old.registration_id == *snapshot.registration_id);
        // What the view before has of it: DOWN, so nobody looks at its share yet.
        if let Some(was) = old.filter(|old| old.status == Status::Down && status == Status::Up) {
            was.state.recovered();
        }
        let tls = tls_name(&url);
        Some(Instance {
            number: snapshot.number,
            id: snapshot.id.as_str().into(),
            url,
            addresses,
            status,
            weight: if snapshot.weight == 0 { 100 } else { snapshot.weight.min(1000) },
            protocol,
            parked: snapshot.parked,
            suspect: snapshot.suspect,
            drained: snapshot.drained,
            withdrawn: snapshot.withdrawn,
            registration_id: snapshot.registration_id.as_str().into(),
            state: old.map_or_else(Arc::default, |old| old.state.clone()),
            authority,
            max_in_flight: snapshot.max_in_flight,
            keep_alive: !snapshot.keep_alive_off,
            tls,
        })
    }

    /// Static routes change as a whole, seldom; a label that stays keeps slot, counts and connections.
    fn static_routes(&mut self, set: &v1::StaticRouteSet) {
        if self.view.parts.fixed_digest == set.digest {
            return;
        }
        let old = std::mem::take(&mut self.view.parts.fixed);
        self.take_routes(&old.routes);
        let mut stays: HashMap<&str, Vec<&Arc<Service>>> = HashMap::new();
        for service in &old.services {
            stays.entry(&service.name).or_default().push(service);
        }
        let mut fixed = Fixed::default();
        for route in &set.routes {
            let base = match stays.get_mut(&*route.name).and_then(Vec::pop) {
                Some(service) => same(service),
                None => self.new_service(&route.name, true),
            };
            let service = Arc::new(self.with_instances(&base, &[routes::static_instance(route)]));
            self.view.slots.insert(service.slot, service.clone());
            for understood in routes::fixed(&service, route) {
                fixed.routes.extend(self.noted(&service.name, &route.path, understood));
            }
            fixed.services.push(service);
        }
        for gone in stays.into_values().flatten() {
            self.free(gone);
        }
        self.put_routes(&fixed.routes);
        self.view.parts.fixed = Arc::new(fixed);
        self.view.digest = self.view.digest.wrapping_sub(self.view.parts.fixed_digest).wrapping_add(set.digest);
        self.view.parts.fixed_digest = set.digest;
    }

    fn keys(&mut self, set: &v1::KeySet) {
        if self.view.parts.keys_digest == set.digest {
            return;
        }
        let keys = Keys::compile(set, &self.view.keys);
        for caller in keys.iter() {
            if let Some(reason) = &caller.unusable {
                self.note(|| format!("key of {}: {reason}", quoted(&caller.name)));
            }
        }
        self.view.keys = Arc::new(keys);
        self.view.digest = self.view.digest.wrapping_sub(self.view.parts.keys_digest).wrapping_add(set.digest);
        self.view.parts.keys_digest = set.digest;
    }

    fn cors(&mut self, cors: v1::Cors) {
        if self.view.parts.cors_digest == cors.digest {
            return;
        }
        self.view.cors_origins = cors.allowed_origins.into();
        self.view.digest = self.view.digest.wrapping_sub(self.view.parts.cors_digest).wrapping_add(cors.digest);
        self.view.parts.cors_digest = cors.digest;
    }

    /// Reports of an instance that is gone by now are nobody's.
    fn reports(&mut self, reports: &[v1::ProbeReport]) {
        for report in reports {
            let Some(held) = self.view.parts.services.get(&*report.service) else { continue };
            if held.service.instances.iter().any(|instance| instance.number == report.instance) {
                self.view.reports.insert((held.service.slot, report.instance), Report::from(report));
            }
        }
    }
}

/// The same service, to be changed.
fn same(service: &Service) -> Service {
    Service {
        name: service.name.clone(),
        slot: service.slot,
        instances: service.instances.clone(),
        is_static: service.is_static,
        metrics: service.metrics.clone(),
    }
}
