//! One service and one instance as the registry remembers them, and what of them is told.
//!
//! Here: the records and their shapes in snapshot and answers. Pure. Not here: how services relate (`services`).

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use furt_proto::{
    names::{InstanceId, ServiceName},
    permission::Permission,
    store::v1::{InstanceRecord, StoredTransition},
    time::{format_duration, rfc3339, rfc3339_ms},
    v1,
};
use tokio::time::Instant;

use crate::{
    config::Terms,
    health::{self, Effect, Health, Outcome, Policy, State},
    publication::{Encoded, Part},
    registration::{Registration, Route, RouteKey},
    services::{Admitted, Moment},
    uptime::{Uptime, WINDOWS},
};

/// Transitions kept of an instance (DESIGN §5).
const HISTORY: usize = 64;
/// No furt counts so many registrations.
const MOST_ORDER: u64 = u64::MAX / 2;

/// What a registration is to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The same again.
    Renewed,
    /// The same instance with other routes, weight, version or metadata.
    Updated,
    /// A new instance, or one with another url, health endpoint or protocol.
    Started,
}

/// A change of state of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// When, milliseconds since 1970.
    pub unix_ms: i64,
    /// From which state.
    pub from: State,
    /// To which state.
    pub to: State,
    /// Why.
    pub cause: Arc<str>,
}

impl Transition {
    fn restored(stored: &StoredTransition) -> Self {
        Self {
            unix_ms: stored.unix_ms,
            from: State::from_word(&stored.from, 0),
            to: State::from_word(&stored.to, stored.misses),
            cause: stored.cause.as_str().into(),
        }
    }

    fn view(&self) -> v1::Transition {
        v1::Transition {
            time: rfc3339_ms(self.unix_ms),
            from: self.from.word().into(),
            to: self.to.word().into(),
            cause: self.cause.to_string(),
        }
    }
}

/// The last ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPing {
    /// When it ended, milliseconds since 1970.
    pub unix_ms: i64,
    /// What it took, when it was answered.
    pub response_time: Option<Duration>,
    /// Why it was not; empty when it was.
    pub error: Arc<str>,
}

impl LastPing {
    fn response_time_ms(&self) -> Option<u32> {
        self.response_time.map(|took| u32::try_from(took.as_millis()).unwrap_or(u32::MAX))
    }
}

/// One running copy of a service.
#[derive(Debug)]
pub struct Instance {
    /// Unique for the life of the epoch.
    pub number: u32,
    /// What it registered.
    pub registration: Arc<Registration>,
    /// Names the registration.
    pub registration_id: Arc<str>,
    /// When it registered, milliseconds since 1970.
    pub registered_unix_ms: i64,
    /// Who registered it last.
    pub peer: IpAddr,
    /// With an operator's token, which stands for the grant's `from` and token.
    pub by_operator: bool,
    /// The checked addresses of its url.
    pub addresses: Arc<[SocketAddr]>,
    /// What is known of its health.
    pub health: Health,
    /// The last ping; `None` before the first.
    pub last_ping: Option<LastPing>,
    /// The last transitions, oldest first.
    pub history: VecDeque<Transition>,
    /// UP and DOWN over time.
    pub uptime: Uptime,
    /// Whether it was restored at furt's start and has not renewed since.
    pub restored: bool,
    /// An operator drained it: over renewals and restarts, until an operator undoes it.
    pub drained: bool,
    /// Its service says farewell: it is deregistered when its last request is done.
    pub leaving: bool,
    /// Why furt.conf no longer allows it; `None`: it does.
    pub withdrawn: Option<Arc<str>>,
    /// Sessions that hold it.
    pub(crate) sessions: u32,
    /// Among all registrations; the newest governs a route.
    pub(crate) order: u64,
    pub(crate) due: Option<Instant>,
    pub(crate) extra_due: Option<Instant>,
    pub(crate) parked_at: Option<Instant>,
    /// Not to be forgotten before: forgetting it did not work.
    pub(crate) forget_after: Option<Instant>,
    /// The generation of the probe under way.
    pub(crate) in_flight: Option<u64>,
    pub(crate) generation: u64,
    pub(crate) scheduled_at: Option<Instant>,
    /// The cursor of its newest report.
    pub(crate) report: u64,
}

impl Instance {
    pub(crate) fn new(admitted: Admitted, number: u32, at: Moment) -> Self {
        Self {
            number,
            registration: admitted.registration,
            registration_id: admitted.registration_id,
            registered_unix_ms: at.unix_ms,
            peer: admitted.peer,
            by_operator: admitted.by_operator,
            addresses: admitted.addresses.into(),
            health: Health::default(),
            last_ping: None,
            history: VecDeque::new(),
            uptime: Uptime::new(at.now, at.unix_ms),
            restored: false,
            drained: false,
            leaving: false,
            withdrawn: None,
            sessions: 0,
            order: admitted.order,
            due: Some(at.now),
            extra_due: None,
            parked_at: None,
            forget_after: None,
            in_flight: None,
            generation: 0,
            scheduled_at: None,
            report: 0,
        }
    }

    /// A new start of the same id keeps what was counted and seen, but nothing that decides.
    pub(crate) fn inherit(&mut self, before: &Self, at: Moment) {
        self.uptime = before.uptime.clone();
        self.uptime.advance(at.now, before.health.state);
        self.history = before.history.clone();
        // An operator took it out, and only an operator brings it back.
        self.drained = before.drained;
        if before.health.state.name() != self.health.state.name() {
            self.note_transition(before.health.state, self.health.state, at, "registered anew");
        }
    }

    pub(crate) fn change_to(&self, registration: &Registration) -> Change {
        match () {
            () if *self.registration == *registration => Change::Renewed,
            () if registration.continues(&self.registration) => Change::Updated,
            () => Change::Started,
        }
    }

    /// One step of the machine, with its effects on the probes, the uptime and the history. `from` is what intervals
    /// run from.
    pub(crate) fn step(&mut self, policy: &Policy, outcome: Outcome, at: Moment, from: Instant, cause: &str) -> Option<Transition> {
        self.uptime.advance(at.now, self.health.state);
        let was = self.health;
        let (next, effects) = health::step(policy, was, outcome, from);
        self.health = next;
        for effect in effects {
            match effect {
                Effect::ProbeAt(due) => self.due = Some(due.max(at.now)),
                Effect::ExtraAt(due) => self.extra_due = Some(due.max(at.now)),
                Effect::Park => (self.due, self.parked_at) = (None, Some(at.now)),
                // Whether it serves is published as its state.
                Effect::Restore | Effect::Withdraw => {}
            }
        }
        if next.suspicion.is_none() {
            self.extra_due = None;
        }
        if !next.state.is_parked() {
            self.parked_at = None;
        }
        let changed = was.state.name() != next.state.name() || was.state.is_parked() != next.state.is_parked();
        changed.then(|| self.note_transition(was.state, next.state, at, cause))
    }

    fn note_transition(&mut self, from: State, to: State, at: Moment, cause: &str) -> Transition {
        let transition = Transition { unix_ms: at.unix_ms, from, to, cause: cause.into() };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(transition.clone());
        transition
    }

    /// As the store keeps it.
    pub(crate) fn record(&self, now: Instant) -> InstanceRecord {
        let transition = |transition: &Transition| StoredTransition {
            unix_ms: transition.unix_ms,
            from: transition.from.word().into(),
            to: transition.to.word().into(),
            misses: transition.to.misses(),
            cause: transition.cause.to_string(),
        };
        InstanceRecord {
            registration: Some(self.registration.to_request()),
            registration_id: self.registration_id.to_string(),
            order: self.order,
            peer: self.peer.to_string(),
            by_operator: self.by_operator,
            registered_unix_ms: self.registered_unix_ms,
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            down: !self.health.state.serves(),
            misses: self.health.state.misses(),
            drained: self.drained,
            timeline: self.history.iter().map(transition).collect(),
            uptime: Some(self.uptime.stored(now, self.health.state)),
            last_ping_unix_ms: self.last_ping.as_ref().map_or(0, |ping| ping.unix_ms),
        }
    }

    /// As it is after a restart of furt: what was UP or UNKNOWN is UNKNOWN, what was DOWN is DOWN, and all is probed
    /// at once (DESIGN §7). `alive_unix_ms`: until when furt ran at least. `None`: the record makes no sense.
    pub(crate) fn restore(record: &InstanceRecord, number: u32, alive_unix_ms: i64, policy: &Policy, at: Moment) -> Option<Self> {
        let registration = Arc::new(Registration::parse(record.registration.as_ref()?).ok()?);
        // Nothing is newer than what is registered next.
        if record.order > MOST_ORDER {
            return None;
        }
        let admitted = Admitted {
            registration,
            addresses: record.addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>().ok()?,
            peer: record.peer.parse().ok()?,
            by_operator: record.by_operator,
            registration_id: record.registration_id.as_str().into(),
            order: record.order,
        };
        let mut instance = Self::new(admitted, number, at);
        instance.registered_unix_ms = record.registered_unix_ms;
        instance.restored = true;
        instance.drained = record.drained;
        instance.history = record.timeline.iter().rev().take(HISTORY).rev().map(Transition::restored).collect();
        if let Some(stored) = &record.uptime {
            instance.uptime = Uptime::restored(stored, alive_unix_ms, at.now, at.unix_ms);
        }
        instance.last_ping = (record.last_ping_unix_ms != 0).then(|| LastPing {
            unix_ms: record.last_ping_unix_ms,
            response_time: None,
            error: if record.down { "before furt's start".into() } else { "".into() },
        });
        instance.health.state = State::restored(record.down, record.misses, policy);
        let was = instance.history.back().map_or(State::Unknown { misses: 0 }, |last| last.to);
        if was.word() != instance.health.state.word() {
            instance.note_transition(was, instance.health.state, at, "furt started");
        }
        Some(instance)
    }

    /// Whether it takes no new requests, its health aside.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained || self.leaving
    }

    /// Whether it counts among the instances that its grant allows at once.
    pub(crate) fn is_awake(&self) -> bool {
        !self.health.state.is_parked() && self.withdrawn.is_none()
    }

    /// Whether new requests may go to it at all.
    pub(crate) fn takes_requests(&self) -> bool {
        self.health.state.serves() && !self.is_drained() && self.withdrawn.is_none()
    }

    /// What of its health a data plane knows: a change of it is a version.
    pub(crate) fn published_state(&self) -> (&'static str, bool, bool) {
        (self.health.state.name(), self.health.state.is_parked(), self.health.suspicion.is_some())
    }

    /// When it is forgotten if it stays parked.
    pub(crate) fn forget_at(&self, policy: &Policy) -> Option<Instant> {
        let due = self.parked_at?.checked_add(policy.forget_parked_after?)?;
        Some(self.forget_after.map_or(due, |after| due.max(after)))
    }

    /// When something is to be done with it; nothing while a probe is under way.
    pub(crate) fn next_due(&self, policy: &Policy) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        [self.due, self.extra_due, self.forget_at(policy)].into_iter().flatten().min()
    }

    /// Takes the probe due by `now` under way: whether it is an extra one. A scheduled one takes precedence, and
    /// serves an extra one that is due as well.
    pub(crate) fn take_probe(&mut self, now: Instant) -> Option<bool> {
        let scheduled = self.due.is_some_and(|due| due <= now);
        let extra = self.extra_due.is_some_and(|due| due <= now);
        if !scheduled && !extra {
            return None;
        }
        if scheduled {
            self.due = None;
        } else {
            self.extra_due = None;
        }
        self.generation += 1;
        self.in_flight = Some(self.generation);
        Some(!scheduled)
    }

    /// Moves the next scheduled probe by up to `most` of its interval, unless a miss is being followed up: the first
    /// misses come one interval apart.
    pub(crate) fn jitter(&mut self, policy: &Policy, from: Instant, jitter: f64, most: f64) {
        let following_up = self.health.state.serves() && self.health.state.misses() > 0;
        if let (false, Some(wait), Some(due)) = (following_up, policy.wait(self.health.state), self.due)
            && due == from + wait
        {
            let moved = wait.mul_f64(1.0 + jitter.clamp(-1.0, 1.0) * most);
            self.due = Some(from + moved);
        }
    }

    /// What probes saw, for the data planes.
    pub fn report(&self, service: &ServiceName, at: Moment) -> v1::ProbeReport {
        let next = [self.due, self.extra_due].into_iter().flatten().min();
        let until = next.map(|due| i64::try_from(due.saturating_duration_since(at.now).as_millis()).unwrap_or(i64::MAX));
        v1::ProbeReport {
            service: service.to_string(),
            instance: self.number,
            last_ping_unix_ms: self.last_ping.as_ref().map_or(0, |ping| ping.unix_ms),
            response_time_ms: self.last_ping.as_ref().and_then(LastPing::response_time_ms),
            consecutive_failures: self.health.state.misses(),
            next_probe_unix_ms: until.map_or(0, |until| at.unix_ms.saturating_add(until)),
        }
    }

    fn snapshot(&self, terms: Terms) -> v1::SnapshotInstance {
        v1::SnapshotInstance {
            max_in_flight: terms.max_in_flight,
            keep_alive_off: !terms.keep_alive,
            number: self.number,
            id: self.registration.instance.to_string(),
            url: self.registration.url.to_string(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            status: self.health.state.name().into(),
            weight: self.registration.weight,
            protocol: self.registration.protocol.as_str().into(),
            parked: self.health.state.is_parked(),
            suspect: self.health.suspicion.is_some(),
            drained: self.is_drained(),
            registration_id: self.registration_id.to_string(),
            withdrawn: self.withdrawn.is_some(),
        }
    }

    /// All that is known of it, with its uptime and timeline.
    fn whole_view(&self, now: Instant) -> v1::Instance {
        let mut counted = self.uptime.clone();
        counted.advance(now, self.health.state);
        let uptime = |(window, counted): (&str, crate::uptime::Window)| v1::Uptime {
            window: window.into(),
            up_seconds: counted.up_ms / 1000,
            down_seconds: counted.down_ms / 1000,
            ratio: counted.ratio(),
        };
        v1::Instance {
            uptime: WINDOWS.into_iter().zip(counted.windows()).map(uptime).collect(),
            timeline: self.history.iter().map(Transition::view).collect(),
            ..self.view()
        }
    }

    fn view(&self) -> v1::Instance {
        let registration = &self.registration;
        v1::Instance {
            id: registration.instance.to_string(),
            url: registration.url.to_string(),
            health_endpoint: registration.health_endpoint.clone(),
            status: self.health.state.name().into(),
            parked: self.health.state.is_parked(),
            suspect: self.health.suspicion.is_some(),
            consecutive_failures: self.health.state.misses(),
            last_ping: self.last_ping.as_ref().map(|ping| rfc3339(ping.unix_ms)).unwrap_or_default(),
            response_time_ms: self.last_ping.as_ref().and_then(LastPing::response_time_ms),
            last_error: self.last_ping.as_ref().map(|ping| ping.error.to_string()).unwrap_or_default(),
            registration_id: self.registration_id.to_string(),
            registered_at: rfc3339(self.registered_unix_ms),
            version: registration.version.clone(),
            weight: registration.weight,
            protocol: registration.protocol.as_str().into(),
            metadata: registration.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            drained: self.is_drained(),
            withdrawn: self.withdrawn.as_deref().unwrap_or_default().into(),
            restored: self.restored,
            session: self.sessions > 0,
            uptime: Vec::new(),
            timeline: Vec::new(),
        }
    }
}

/// A route of a service: declared by some of its instances, governed by the newest registration among them that
/// furt.conf allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitedRoute {
    /// What it answers for.
    pub key: RouteKey,
    /// What callers need.
    pub permission: Option<Permission>,
    /// Callers need no key.
    pub public: bool,
    /// To the head of the answer.
    pub timeout: Option<Duration>,
    /// From the request to the end of the answer.
    pub deadline: Option<Duration>,
    /// The numbers of the instances that declared it.
    pub instances: Vec<u32>,
}

impl UnitedRoute {
    /// Whether it lets callers through that were kept out before: without a key, without a permission, or with another one.
    fn is_looser_than(&self, before: &Self) -> bool {
        // Of another permission nobody can say that it is held by fewer: whoever has only that one gets in now.
        let other = before.permission.is_some() && self.permission != before.permission;
        !before.public && (self.public || other)
    }
}

/// What making the union of a service's routes anew changed.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// No longer in it.
    pub gone: Vec<RouteKey>,
    /// New in it.
    pub new: Vec<RouteKey>,
    /// In it as before, for callers that were not let through before.
    pub loosened: Vec<RouteKey>,
}

/// A service with its instances.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// By id.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The union of the instances' routes, by key.
    pub routes: Vec<UnitedRoute>,
}

impl Service {
    pub(crate) fn new(name: ServiceName) -> Self {
        Self { name, instances: BTreeMap::new(), routes: Vec::new() }
    }

    /// The best of its instances' states.
    pub fn state(&self) -> State {
        let rank = |state: &State| match state {
            State::Up { .. } => 0,
            State::Unknown { .. } => 1,
            State::Down { .. } => 2,
            State::Parked { .. } => 3,
        };
        let states = self.instances.values().map(|instance| instance.health.state);
        states.min_by_key(rank).unwrap_or(State::Unknown { misses: 0 })
    }

    /// Makes the union anew.
    pub(crate) fn merge_routes(&mut self) -> Merged {
        let mut instances: Vec<&Instance> = self.instances.values().collect();
        // What is withdrawn loosens nothing for the others; it governs only what nobody else declared.
        instances.sort_by_key(|instance| (instance.withdrawn.is_none(), instance.order));
        let mut union: BTreeMap<&RouteKey, (&Route, Vec<u32>)> = BTreeMap::new();
        for instance in instances {
            for route in &instance.registration.routes {
                let (governing, numbers) = union.entry(&route.key).or_insert((route, Vec::with_capacity(1)));
                *governing = route;
                numbers.push(instance.number);
            }
        }
        let united: Vec<_> = union
            .into_values()
            .map(|(route, mut instances)| {
                instances.sort_unstable();
                let Route { key, permission, public, timeout, deadline } = route.clone();
                UnitedRoute { key, permission, public, timeout, deadline, instances }
            })
            .collect();
        let before = std::mem::replace(&mut self.routes, united);
        let loosened = self.routes.iter().filter(|route| {
            let before = before.binary_search_by(|other| other.key.cmp(&route.key)).ok().and_then(|at| before.get(at));
            before.is_some_and(|before| route.is_looser_than(before))
        });
        let loosened = loosened.map(|route| route.key.clone()).collect();
        Merged { gone: only_in(&before, &self.routes), new: only_in(&self.routes, &before), loosened }
    }

    pub(crate) fn route_set(&self) -> Encoded {
        let route = |route: &UnitedRoute| v1::SnapshotRoute {
            host: route.key.host.to_string(),
            method: route.key.method.to_string(),
            path: route.key.pattern.to_string(),
            permission: route.permission.as_ref().map(ToString::to_string).unwrap_or_default(),
            public: route.public,
            timeout_ms: milliseconds(route.timeout),
            deadline_ms: milliseconds(route.deadline),
            instances: route.instances.clone(),
        };
        let set = v1::RouteSet { routes: self.routes.iter().map(route).collect(), digest: 0 };
        Encoded::new(Part::Routes(self.name.clone()), set)
    }

    pub(crate) fn instance_set(&self, terms: Terms) -> Encoded {
        let mut instances: Vec<_> = self.instances.values().map(|instance| instance.snapshot(terms)).collect();
        instances.sort_unstable_by_key(|instance| instance.number);
        Encoded::new(Part::Instances(self.name.clone()), v1::InstanceSet { instances, digest: 0 })
    }

    /// What lists show of it.
    pub fn view(&self) -> v1::Service {
        self.with(Instance::view)
    }

    /// All that furt knows of it, with the uptime and timeline of each instance.
    pub fn whole_view(&self, now: Instant) -> v1::Service {
        self.with(|instance| instance.whole_view(now))
    }

    fn with(&self, instance: impl FnMut(&Instance) -> v1::Instance) -> v1::Service {
        v1::Service {
            service: self.name.to_string(),
            status: self.state().name().into(),
            instances: self.instances.values().map(instance).collect(),
            routes: self.route_views().collect(),
        }
    }

    /// Its routes, by pattern, host and method.
    pub fn route_views(&self) -> impl Iterator<Item = v1::ServiceRoute> {
        self.routes.iter().map(|route| {
            let declaring = || self.instances.values().filter(|instance| route.instances.contains(&instance.number));
            v1::ServiceRoute {
                service: self.name.to_string(),
                host: route.key.host.to_string(),
                method: route.key.method.to_string(),
                path: route.key.pattern.to_string(),
                permission: route.permission.as_ref().map(ToString::to_string).unwrap_or_default(),
                public: route.public,
                r#static: false,
                active: declaring().any(Instance::takes_requests),
                instances: declaring().map(|instance| instance.registration.instance.to_string()).collect(),
                timeout: route.timeout.map(format_duration).unwrap_or_default(),
                deadline: route.deadline.map(format_duration).unwrap_or_default(),
            }
        })
    }
}

/// 0: none.
pub(crate) fn milliseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The keys of one sorted list that are not in the other.
fn only_in(these: &[UnitedRoute], those: &[UnitedRoute]) -> Vec<RouteKey> {
    let missing = |route: &&UnitedRoute| those.binary_search_by(|other| other.key.cmp(&route.key)).is_err();
    these.iter().filter(missing).map(|route| route.key.clone()).collect()
}
