//! Every registered service: records, the probe schedule, and what of them is published. Pure; takes `now`.
//!
//! Here: what a registration or a farewell changes; in `schedule`, what a probe does. Not here: whether it is allowed (`admission`),
//! clocks, locks, logs. Withdrawn is not removed: routes stay owned and published while their instances are down.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use furt_proto::{
    names::{InstanceId, ServiceName},
    store::v1::InstanceRecord,
    url::UpstreamUrl,
};
use tokio::time::Instant;

use crate::{
    admission::Held,
    claims::Claims,
    config::Grants,
    health::{Health, Policy, State},
    publication::Publication,
    records::{Change, Instance, Merged, Service, Transition},
    refusal::{Code, Refusal},
    registration::{Registration, RouteKey},
};

mod schedule;

use schedule::Schedule;
pub use schedule::{Due, Recorded, Seen, Ticket};

/// A registration that was admitted, with all that applying it needs.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// What was registered.
    pub registration: Arc<Registration>,
    /// The checked addresses of its url.
    pub addresses: Vec<SocketAddr>,
    /// Who registered it.
    pub peer: IpAddr,
    /// With an operator's token.
    pub by_operator: bool,
    /// The id it gets if it is a new start.
    pub registration_id: Arc<str>,
    /// Its place among all registrations if its routes are new, from [`Services::next_order`].
    pub order: u64,
}

/// When something happens, on both clocks: decisions use the first, display the second.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For decisions.
    pub now: Instant,
    /// For display, milliseconds since 1970.
    pub unix_ms: i64,
}

/// What a registration did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Renewed, updated or started.
    pub change: Change,
    /// Which registration holds now.
    pub registration_id: Arc<str>,
    /// The state of the instance.
    pub state: State,
    /// The version now.
    pub version: u64,
    /// The version that carries this service: what a data plane must have installed to serve it.
    pub carried_by: u64,
    /// Set when it woke a parked instance.
    pub transition: Option<Transition>,
    /// Where the registration listened whose place it took, when that was somewhere else.
    pub replaces: Option<UpstreamUrl>,
    /// It was withdrawn, and is no more: this registration was admitted.
    pub readmitted: bool,
    /// Routes that let callers through whom they kept out before.
    pub loosened: Vec<RouteKey>,
}

/// All services.
#[derive(Debug)]
pub struct Services {
    pub(crate) policy: Policy,
    grants: Grants,
    services: BTreeMap<ServiceName, Service>,
    claims: Claims<ServiceName>,
    publication: Publication,
    schedule: Schedule,
    by_host: HashMap<String, usize>,
    instances: usize,
    /// Numbers of instances, unique among all services and never used again, not even by a service of the same name.
    last_number: u32,
    /// Counts registrations that changed something; the newest governs a route.
    last_order: u64,
    last_report: u64,
    reports: BTreeMap<u64, (ServiceName, InstanceId)>,
    /// Instances of which the store does not have all yet: changes that nobody waits for.
    dirty: BTreeSet<(ServiceName, InstanceId)>,
}

impl Services {
    /// None yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            grants: Grants::default(),
            services: BTreeMap::new(),
            claims: Claims::default(),
            publication: Publication::default(),
            schedule: BTreeMap::new(),
            by_host: HashMap::new(),
            instances: 0,
            last_number: 0,
            last_order: 0,
            last_report: 0,
            reports: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// A service.
    pub fn get(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }
    /// Every service from a name on, in the order of names.
    pub fn from(&self, after: Option<&ServiceName>) -> impl Iterator<Item = (&ServiceName, &Service)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.services.range::<ServiceName, _>((after.map_or(Unbounded, Excluded), Unbounded))
    }
    /// How many services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
    /// How many instances there are.
    pub fn instances(&self) -> usize {
        self.instances
    }
    /// What is published.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }
    /// What is published, for the parts that are not services.
    pub fn publication_mut(&mut self) -> &mut Publication {
        &mut self.publication
    }

    /// Whether this registration is the one that holds, and which instance it is.
    pub fn current(&self, name: &str, id: &str, registration_id: &str) -> Option<&Instance> {
        let instance = self.services.get(name)?.instances.get(id)?;
        (*instance.registration_id == *registration_id).then_some(instance)
    }

    /// What registering would do, without doing it: the change, the id it would answer (of a new start it is not known
    /// yet: empty) and the state.
    pub fn preview(&self, registration: &Registration) -> (Change, Arc<str>, State) {
        let existing = self.instance(&registration.service, registration.instance.as_str());
        match existing.map(|instance| (instance, instance.change_to(registration))) {
            None | Some((_, Change::Started)) => (Change::Started, "".into(), Health::default().state),
            Some((instance, change)) => (change, instance.registration_id.clone(), instance.health.state),
        }
    }

    /// A place among all registrations: the newest governs a route. Places may stay unused.
    pub fn next_order(&mut self) -> u64 {
        self.last_order += 1;
        self.last_order
    }

    /// What the store is to hold once this is applied.
    pub fn planned(&self, admitted: &Admitted, at: Moment) -> InstanceRecord {
        let registration = &admitted.registration;
        let existing = self.instance(&registration.service, registration.instance.as_str());
        let Some(existing) = existing.filter(|existing| existing.change_to(registration) != Change::Started) else {
            let mut started = Instance::new(admitted.clone(), 0, at);
            if let Some(before) = existing {
                started.inherit(before, at);
            }
            return started.record(at.now);
        };
        let routes_differ = existing.registration.routes != registration.routes;
        InstanceRecord {
            registration: Some(registration.to_request()),
            order: if routes_differ { admitted.order } else { existing.order },
            peer: admitted.peer.to_string(),
            by_operator: admitted.by_operator,
            addresses: admitted.addresses.iter().map(ToString::to_string).collect(),
            ..existing.record(at.now)
        }
    }

    /// Claims the routes of what is being made durable, so that nobody else is admitted to them meanwhile.
    pub fn reserve(&mut self, registration: &Registration) {
        for route in &registration.routes {
            self.claims.insert(&route.key, registration.service.clone());
        }
    }

    /// Gives back what was reserved for a registration that did not become durable.
    pub fn unreserve(&mut self, registration: &Registration) {
        let held = self.services.get(&registration.service).map(|service| &service.routes[..]).unwrap_or_default();
        for route in &registration.routes {
            if held.binary_search_by(|held| held.key.cmp(&route.key)).is_err() {
                self.claims.remove(&route.key);
            }
        }
    }

    /// Applies what was admitted. The same again is a renewal: it touches no health, but wakes a parked instance and
    /// makes the probe of one that is not UP due at once.
    pub fn register(&mut self, admitted: Admitted, at: Moment) -> Applied {
        let name = admitted.registration.service.clone();
        let id = admitted.registration.instance.clone();
        let existing = self.instance(&name, id.as_str());
        let change = existing.map_or(Change::Started, |instance| instance.change_to(&admitted.registration));
        let readmitted = existing.is_some_and(|instance| instance.withdrawn.is_some());
        let before = existing.map(|instance| instance.registration.url.clone());
        let replaces = before.filter(|before| *before != admitted.registration.url);
        let (transition, loosened) = match change {
            Change::Started => (None, self.start(admitted, at)),
            Change::Updated | Change::Renewed => self.renew(admitted, change, at),
        };
        let version = self.publication.version();
        let instance = self.instance(&name, id.as_str());
        Applied {
            change,
            registration_id: instance.map_or_else(|| "".into(), |instance| instance.registration_id.clone()),
            state: instance.map_or(Health::default().state, |instance| instance.health.state),
            version,
            carried_by: self.publication.version_of(&name),
            transition,
            replaces,
            readmitted,
            loosened,
        }
    }

    fn start(&mut self, admitted: Admitted, at: Moment) -> Vec<RouteKey> {
        let name = admitted.registration.service.clone();
        let id = admitted.registration.instance.clone();
        let mut instance = Instance::new(admitted, self.next_number(), at);
        if let Some(before) = self.services.get_mut(&name).and_then(|service| service.instances.remove(&id)) {
            instance.inherit(&before, at);
            self.unlist(&before);
        }
        self.put(instance);
        self.forgettable_again(&name);
        self.routes_changed(&name)
    }

    /// What the store held at furt's start; every instance is probed at once. `false`: the record makes no sense.
    pub fn restore(&mut self, record: &InstanceRecord, alive_unix_ms: i64, at: Moment) -> bool {
        let number = self.next_number();
        let Some(instance) = Instance::restore(record, number, alive_unix_ms, &self.policy, at) else { return false };
        let name = instance.registration.service.clone();
        self.last_order = self.last_order.max(instance.order);
        self.put(instance);
        self.routes_changed(&name);
        true
    }

    fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        self.last_number
    }

    /// Puts an instance among the others of its service, due at once.
    fn put(&mut self, mut instance: Instance) {
        let (name, id) = (instance.registration.service.clone(), instance.registration.instance.clone());
        self.count_host(instance.registration.url.host(), 1);
        self.instances += 1;
        instance.scheduled_at = instance.due;
        if let Some(due) = instance.due {
            self.schedule.insert((due, instance.number), (name.clone(), id.clone()));
        }
        let service = self.services.entry(name.clone()).or_insert_with(|| Service::new(name.clone()));
        service.instances.insert(id.clone(), instance);
        self.note_report(&name, &id);
    }

    fn renew(&mut self, admitted: Admitted, change: Change, at: Moment) -> (Option<Transition>, Vec<RouteKey>) {
        let (name, id) = (admitted.registration.service.clone(), admitted.registration.instance.clone());
        let Some(instance) = instance_mut(&mut self.services, &name, &id) else { return (None, Vec::new()) };
        let routes_differ = instance.registration.routes != admitted.registration.routes;
        let mut publish = change == Change::Updated;
        if instance.addresses[..] != admitted.addresses[..] {
            instance.addresses = admitted.addresses.into();
            publish = true;
            self.dirty.insert((name.clone(), id.clone()));
        }
        // Who speaks for it is asked again at a reload, so the store has to know.
        if (instance.peer, instance.by_operator) != (admitted.peer, admitted.by_operator) {
            (instance.peer, instance.by_operator) = (admitted.peer, admitted.by_operator);
            self.dirty.insert((name.clone(), id.clone()));
        }
        instance.restored = false;
        // What was just admitted is allowed, and a registration after the farewell says that its service goes on.
        let readmitted = instance.withdrawn.take().is_some();
        publish |= std::mem::take(&mut instance.leaving);
        if change == Change::Updated {
            instance.registration = admitted.registration;
        }
        if routes_differ {
            instance.order = admitted.order;
        }
        let woken = self.wake_instance(&name, &id, at, false);
        if routes_differ || readmitted {
            return (woken, self.routes_changed(&name));
        }
        if publish || woken.is_some() {
            self.instances_changed(&name);
        }
        (woken, Vec::new())
    }

    /// The instances that an operation on one instance, or on the whole service, is about. A `registration_id` that is
    /// not the current one is refused.
    pub fn named(&self, name: &ServiceName, id: Option<&InstanceId>, registration_id: &str) -> Result<Vec<InstanceId>, Refusal> {
        let unknown = |what: String| Refusal::one(Code::NotFound, format!("{what} is not registered"));
        let service = self.services.get(name).ok_or_else(|| unknown(name.to_string()))?;
        let Some(id) = id else { return Ok(service.instances.keys().cloned().collect()) };
        let instance = service.instances.get(id).ok_or_else(|| unknown(format!("instance {id} of {name}")))?;
        if !registration_id.is_empty() && *instance.registration_id != *registration_id {
            let message = format!("instance {id} of {name} has registered anew since; its registration is {}", instance.registration_id);
            return Err(Refusal::one(Code::StaleRegistration, message));
        }
        Ok(vec![id.clone()])
    }

    /// Takes instances out; of those that are gone already nothing is left to take. The routes for which callers need
    /// less now, as an older registration governs them.
    pub fn remove(&mut self, name: &ServiceName, ids: &[InstanceId]) -> Vec<RouteKey> {
        for id in ids {
            let removed = self.services.get_mut(name).and_then(|service| service.instances.remove(id));
            if let Some(removed) = removed {
                self.unlist(&removed);
            }
        }
        self.routes_changed(name)
    }

    /// Whether an instance still says farewell: it has not registered again since.
    pub fn is_leaving(&self, name: &ServiceName, id: &InstanceId, registration_id: &str) -> bool {
        self.current(name.as_str(), id.as_str(), registration_id).is_some_and(|instance| instance.leaving)
    }

    /// Whether a parked instance may be forgotten: it has not woken since, and others are left.
    pub fn is_forgettable(&self, name: &ServiceName, id: &InstanceId, registration_id: &str) -> bool {
        let lonely = self.services.get(name).is_none_or(|service| service.instances.len() < 2);
        let parked = self.current(name.as_str(), id.as_str(), registration_id).is_some_and(|instance| instance.health.state.is_parked());
        parked && !lonely
    }

    /// An operator drains instances, or takes it back; a farewell under way goes on.
    pub fn drain(&mut self, name: &ServiceName, ids: &[InstanceId], on: bool) {
        for id in ids {
            if let Some(instance) = instance_mut(&mut self.services, name, id) {
                instance.drained = on;
            }
        }
        self.instances_changed(name);
    }

    /// Instances say farewell.
    pub fn leave(&mut self, name: &ServiceName, ids: &[InstanceId]) {
        for id in ids {
            if let Some(instance) = instance_mut(&mut self.services, name, id) {
                instance.leaving = true;
            }
        }
        self.instances_changed(name);
    }

    /// Says that furt.conf no longer allows an instance, or does again (`None`). When that is news: the routes for which
    /// callers need less now, as another registration governs them.
    pub fn withdraw(&mut self, name: &ServiceName, id: &InstanceId, reason: Option<Arc<str>>) -> Option<Vec<RouteKey>> {
        let instance = instance_mut(&mut self.services, name, id)?;
        let news = instance.withdrawn.is_some() != reason.is_some();
        instance.withdrawn = reason;
        news.then(|| self.routes_changed(name))
    }

    /// A session began to hold a registration, or no longer does. `false`: another registration has its place.
    pub fn count_session(&mut self, name: &ServiceName, id: &InstanceId, registration_id: &str, begins: bool) -> bool {
        let Some(instance) = instance_mut(&mut self.services, name, id) else { return false };
        if *instance.registration_id != *registration_id {
            return false;
        }
        instance.sessions = if begins { instance.sessions.saturating_add(1) } else { instance.sessions.saturating_sub(1) };
        true
    }

    /// Every instance by the place of its registration, the oldest first.
    pub fn by_order(&self) -> Vec<(&ServiceName, &InstanceId, &Instance)> {
        let each =
            self.services.iter().flat_map(|(name, service)| service.instances.iter().map(move |(id, instance)| (name, id, instance)));
        let mut all: Vec<_> = each.collect();
        all.sort_by_key(|(_, _, instance)| instance.order);
        all
    }

    /// Notes that the store does not have all of an instance.
    pub fn mark(&mut self, name: &ServiceName, id: &InstanceId) {
        self.dirty.insert((name.clone(), id.clone()));
    }

    /// Whether there is something to store that nobody waits for.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Up to `most` instances to store, as the store keeps them; those that are gone meanwhile are not among them.
    pub fn take_dirty(&mut self, most: usize, now: Instant) -> Vec<(ServiceName, InstanceId, InstanceRecord)> {
        let rest = match self.dirty.iter().nth(most).cloned() {
            Some(first) => self.dirty.split_off(&first),
            None => BTreeSet::new(),
        };
        let taken = std::mem::replace(&mut self.dirty, rest);
        let record = |(name, id): (ServiceName, InstanceId)| {
            let record = self.instance(&name, id.as_str())?.record(now);
            Some((name, id, record))
        };
        taken.into_iter().filter_map(record).collect()
    }

    /// New checked addresses of a url that is a name, found by looking it up again.
    pub fn set_addresses(&mut self, name: &ServiceName, id: &InstanceId, registration_id: &str, addresses: Vec<SocketAddr>) -> bool {
        let Some(instance) = instance_mut(&mut self.services, name, id) else { return false };
        if *instance.registration_id != *registration_id || instance.addresses[..] == addresses[..] {
            return false;
        }
        instance.addresses = addresses.into();
        // After a restart they serve before the name has been looked up again.
        self.dirty.insert((name.clone(), id.clone()));
        self.instances_changed(name);
        true
    }

    /// Reports newer than a cursor, oldest first, each with its own cursor: at most `limit`.
    pub fn reports(&self, after: u64, limit: usize) -> impl Iterator<Item = (u64, &ServiceName, &Instance)> {
        let newer = self.reports.range(after.saturating_add(1)..).take(limit);
        newer.filter_map(|(cursor, (name, id))| Some((*cursor, name, self.instance(name, id.as_str())?)))
    }
    /// The cursor of the newest report.
    pub fn last_report(&self) -> u64 {
        self.last_report
    }

    /// Nodes that questions about routes have looked at, ever: what tests of cost compare.
    pub fn work(&self) -> u64 {
        self.claims.work()
    }

    fn instance(&self, name: &ServiceName, id: &str) -> Option<&Instance> {
        self.services.get(name)?.instances.get(id)
    }

    fn note_report(&mut self, name: &ServiceName, id: &InstanceId) {
        let Some(instance) = instance_mut(&mut self.services, name, id) else { return };
        self.last_report += 1;
        self.reports.remove(&instance.report);
        instance.report = self.last_report;
        self.reports.insert(self.last_report, (name.clone(), id.clone()));
    }

    /// Forgets what is kept about an instance outside its service.
    fn unlist(&mut self, instance: &Instance) {
        if let Some(at) = instance.scheduled_at {
            self.schedule.remove(&(at, instance.number));
        }
        self.reports.remove(&instance.report);
        self.count_host(instance.registration.url.host(), -1);
        self.instances -= 1;
    }

    fn count_host(&mut self, host: &str, by: isize) {
        match self.by_host.get_mut(host) {
            Some(count) => *count = count.saturating_add_signed(by),
            None => drop(self.by_host.insert(host.to_owned(), by.max(0).unsigned_abs())),
        }
        if self.by_host.get(host) == Some(&0) {
            self.by_host.remove(host);
        }
    }

    /// Brings claims and publication in line with a service whose instances or routes changed; the routes for which
    /// callers need less now.
    fn routes_changed(&mut self, name: &ServiceName) -> Vec<RouteKey> {
        let Some(service) = self.services.get_mut(name) else { return Vec::new() };
        let Merged { gone, new, loosened } = service.merge_routes();
        for key in gone {
            self.claims.remove(&key);
        }
        for key in new {
            self.claims.insert(&key, name.clone());
        }
        if service.instances.is_empty() {
            self.services.remove(name);
            self.publication.remove(name);
        } else {
            let terms = self.grants.terms(name);
            self.publication.publish([service.route_set(), service.instance_set(terms)]);
        }
        loosened
    }

    fn instances_changed(&mut self, name: &ServiceName) {
        if let Some(service) = self.services.get(name) {
            self.publication.publish([service.instance_set(self.grants.terms(name))]);
        }
    }

    /// Takes other grants; what they say of connections is published where it is different.
    pub fn set_grants(&mut self, grants: Grants) {
        let before = std::mem::replace(&mut self.grants, grants);
        for (name, service) in &self.services {
            let terms = self.grants.terms(name);
            if terms != before.terms(name) {
                self.publication.publish([service.instance_set(terms)]);
            }
        }
    }
}

fn instance_mut<'s>(services: &'s mut BTreeMap<ServiceName, Service>, name: &ServiceName, id: &InstanceId) -> Option<&'s mut Instance> {
    services.get_mut(name)?.instances.get_mut(id)
}

impl Held for Services {
    fn claims(&self) -> &Claims<ServiceName> {
        &self.claims
    }
    fn is_past(&self, service: &ServiceName) -> Option<&'static str> {
        let instances = &self.services.get(service)?.instances;
        let all = |is: fn(&Instance) -> bool| instances.values().all(is);
        if all(|instance| instance.health.state.is_parked()) {
            return Some("is down and its pings have stopped");
        }
        all(|instance| instance.withdrawn.is_some()).then_some("is withdrawn, as furt.conf no longer allows it")
    }
    fn others_awake(&self, service: &ServiceName, instance: &str) -> usize {
        let awake = |(id, other): (&InstanceId, &Instance)| id.as_str() != instance && other.is_awake();
        self.services.get(service).map_or(0, |service| service.instances.iter().filter(|entry| awake(*entry)).count())
    }
    fn is_awake(&self, service: &ServiceName, instance: &str) -> bool {
        self.instance(service, instance).is_some_and(Instance::is_awake)
    }
}

#[cfg(test)]
mod tests;
