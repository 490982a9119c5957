//! When which instance is probed, and what a probe, a suspicion or a wake-up changes. Pure; takes `now`.
//!
//! Here: the schedule over all instances. Not here: what an outcome means (`health`), probing (`monitor`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use furt_proto::names::{InstanceId, ServiceName};
use tokio::time::Instant;

use super::{Moment, Services, instance_mut};
use crate::{
    health::{Outcome, Policy},
    records::{Instance, LastPing, Transition},
    refusal::{Code, Refusal},
    registration::Registration,
};
/// A probe that is due. Its answer counts only for the registration it was taken for.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Whose.
    pub service: ServiceName,
    /// Which instance.
    pub instance: InstanceId,
    /// What it registered: url, health endpoint, protocol.
    pub registration: Arc<Registration>,
    /// Where to connect, in order.
    pub addresses: Arc<[SocketAddr]>,
    /// Names the registration.
    pub registration_id: Arc<str>,
    /// Instances with the same host in their url; what its share of the probes is sized from.
    pub host_instances: usize,
    /// Whether it has registered or renewed since furt's start.
    pub registered: bool,
    pub(super) number: u32,
    generation: u64,
    extra: bool,
}

#[cfg(test)]
impl Ticket {
    /// A ticket that no registry gave out.
    pub(crate) fn for_test(registration: Arc<Registration>, addresses: Vec<SocketAddr>) -> Self {
        let (service, instance) = (registration.service.clone(), registration.instance.clone());
        Self {
            service,
            instance,
            registration,
            addresses: addresses.into(),
            registration_id: "r".into(),
            host_instances: 1,
            registered: true,
            number: 1,
            generation: 1,
            extra: false,
        }
    }
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// 2xx within the timeout, after so long.
    Answered(Duration),
    /// Anything else, as a sentence.
    Missed(String),
    /// furt could not ask: no descriptor, no local address, a stalled runtime. No miss.
    Unable(String),
}

/// What recording a probe changed.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Misses in a row after it.
    pub misses: u32,
    /// Set when the state changed.
    pub transition: Option<Transition>,
}

/// How long until a probe that furt could not make is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long until a parked instance that could not be forgotten is tried again.
const FORGET_AGAIN: Duration = Duration::from_secs(60);
/// The most that the schedule adds to or takes from an interval.
const JITTER: f64 = 0.1;

/// What [`Services::take_due`] took.
#[derive(Debug)]
pub enum Due {
    /// A probe to make.
    Probe(Ticket),
    /// An instance that was parked for longer than `forget_parked_after`, under this registration.
    Forget(ServiceName, InstanceId, Arc<str>),
    /// A parked instance is its service's last, so it stays: nothing to do.
    Kept,
}

/// Every instance by when it is due and, for two at one instant, by number.
pub(super) type Schedule = BTreeMap<(Instant, u32), (ServiceName, InstanceId)>;

impl Services {
    /// Makes the probes of a service, or of one instance, due now, and wakes parked ones.
    pub fn wake(
        &mut self,
        name: &ServiceName,
        id: Option<&InstanceId>,
        at: Moment,
    ) -> Result<Vec<(InstanceId, Option<Transition>)>, Refusal> {
        let unknown = |what: String| Refusal::one(Code::NotFound, format!("{what} is not registered"));
        let service = self.services.get(name).ok_or_else(|| unknown(name.to_string()))?;
        let ids: Vec<_> = service.instances.keys().filter(|other| id.is_none_or(|id| id == *other)).cloned().collect();
        if let (Some(id), []) = (id, &ids[..]) {
            return Err(unknown(format!("instance {id} of {name}")));
        }
        let woken: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let transition = self.wake_instance(name, &id, at, true);
                (id, transition)
            })
            .collect();
        self.instances_changed(name);
        Ok(woken)
    }

    /// A parked instance gets its schedule back; of others the next probe is due now, of UP ones when `even_up`.
    pub(super) fn wake_instance(&mut self, name: &ServiceName, id: &InstanceId, at: Moment, even_up: bool) -> Option<Transition> {
        let instance = instance_mut(&mut self.services, name, id)?;
        let parked = instance.health.state.is_parked();
        let transition = instance.step(&self.policy, Outcome::Woken, at, at.now, "registered again or asked to be probed");
        // Under way already is as good as due now.
        if !parked && (even_up || !instance.health.state.is_up()) && instance.in_flight.is_none() {
            instance.extra_due = Some(at.now);
        }
        reschedule(&mut self.schedule, name, instance, &self.policy);
        if transition.is_some() {
            self.mark(name, id);
        }
        transition
    }

    /// The id of the instance with a number.
    pub fn numbered(&self, name: &str, number: u32) -> Option<InstanceId> {
        let instances = &self.services.get(name)?.instances;
        instances.iter().find(|(_, instance)| instance.number == number).map(|(id, _)| id.clone())
    }

    /// Whether the instance with a number takes no new requests since it is drained.
    pub fn is_drained(&self, name: &str, number: u32) -> bool {
        let instances = self.services.get(name).into_iter().flat_map(|service| service.instances.values());
        instances.into_iter().any(|instance| instance.number == number && instance.is_drained())
    }

    /// An instance that something other than a probe speaks against. Nothing happens when it was another registration.
    pub fn suspect(&mut self, name: &str, id: &InstanceId, registration_id: &str, at: Moment) -> Option<InstanceId> {
        let service = self.services.get_mut(name)?;
        let name = service.name.clone();
        let instance = service.instances.get_mut(id)?;
        if *instance.registration_id != *registration_id || instance.health.suspicion.is_some() {
            return None;
        }
        instance.step(&self.policy, Outcome::Suspected, at, at.now, "suspected");
        instance.health.suspicion?;
        reschedule(&mut self.schedule, &name, instance, &self.policy);
        self.instances_changed(&name);
        Some(id.clone())
    }

    /// When the next probe (or the forgetting of a parked instance) is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next thing due by `now`: a probe to make, or an instance to forget.
    pub fn take_due(&mut self, now: Instant) -> Option<Due> {
        let entry = self.schedule.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let (name, id) = entry.remove();
        let service = self.services.get_mut(&name)?;
        let lonely = service.instances.len() == 1;
        let instance = service.instances.get_mut(&id)?;
        instance.scheduled_at = None;
        if instance.forget_at(&self.policy).is_some_and(|forget| forget <= now) {
            // Never a service's last instance: its routes would be anybody's.
            if lonely {
                return Some(Due::Kept);
            }
            instance.forget_after = Some(now + FORGET_AGAIN);
            let registration_id = instance.registration_id.clone();
            reschedule(&mut self.schedule, &name, instance, &self.policy);
            return Some(Due::Forget(name, id, registration_id));
        }
        let Some(extra) = instance.take_probe(now) else { return Some(Due::Kept) };
        let host_instances = self.by_host.get(instance.registration.url.host()).copied().unwrap_or(1);
        Some(Due::Probe(Ticket {
            service: name,
            instance: id,
            registration: instance.registration.clone(),
            addresses: instance.addresses.clone(),
            registration_id: instance.registration_id.clone(),
            host_instances,
            registered: !instance.restored,
            number: instance.number,
            generation: instance.generation,
            extra,
        }))
    }

    /// What a probe saw that began at `began`. `None` when it cannot speak for the registration that holds now.
    /// `jitter` is -1 to 1 and moves the next scheduled probe by up to a tenth of the interval.
    pub fn record(&mut self, ticket: &Ticket, seen: &Seen, began: Instant, at: Moment, jitter: f64) -> Option<Recorded> {
        let instance = instance_mut(&mut self.services, &ticket.service, &ticket.instance)?;
        if instance.number != ticket.number || instance.in_flight != Some(ticket.generation) {
            return None;
        }
        instance.in_flight = None;
        let (outcome, cause, response_time) = match (seen, ticket.extra) {
            (Seen::Answered(took), false) => (Outcome::Answered, "answered", Some(*took)),
            (Seen::Answered(took), true) => (Outcome::ExtraAnswered, "answered", Some(*took)),
            (Seen::Missed(why), false) => (Outcome::Missed, why.as_str(), None),
            (Seen::Missed(why), true) => (Outcome::ExtraMissed, why.as_str(), None),
            (Seen::Unable(_), extra) => {
                let due = if extra { &mut instance.extra_due } else { &mut instance.due };
                *due = Some(at.now + AGAIN);
                reschedule(&mut self.schedule, &ticket.service, instance, &self.policy);
                return Some(Recorded { misses: instance.health.state.misses(), transition: None });
            }
        };
        let before = instance.published_state();
        // Scheduled probes run from start to start; extra ones wait from the end, since a timeout may be the longer.
        let from = if ticket.extra { at.now } else { began };
        let transition = instance.step(&self.policy, outcome, at, from, cause);
        instance.jitter(&self.policy, from, jitter, JITTER);
        let error = if let Seen::Missed(why) = seen { why.as_str().into() } else { "".into() };
        instance.last_ping = Some(LastPing { unix_ms: at.unix_ms, response_time, error });
        if transition.is_some() {
            self.dirty.insert((ticket.service.clone(), ticket.instance.clone()));
        }
        let recorded = Recorded { misses: instance.health.state.misses(), transition };
        let changed = instance.published_state() != before;
        reschedule(&mut self.schedule, &ticket.service, instance, &self.policy);
        self.note_report(&ticket.service, &ticket.instance);
        if changed {
            self.instances_changed(&ticket.service);
        }
        Some(recorded)
    }

    /// Other intervals and thresholds: no probe is later than they say, and the states stay as they are.
    pub fn set_policy(&mut self, policy: Policy, now: Instant) {
        if self.policy == policy {
            return;
        }
        self.policy = policy;
        for (name, service) in &mut self.services {
            for instance in service.instances.values_mut() {
                if let (Some(due), Some(wait)) = (instance.due, self.policy.wait(instance.health.state)) {
                    instance.due = Some(due.min(now + wait));
                }
                reschedule(&mut self.schedule, name, instance, &self.policy);
            }
        }
    }

    /// A parked instance that was kept as its service's last is none any more.
    pub(super) fn forgettable_again(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get_mut(name) else { return };
        for instance in service.instances.values_mut().filter(|instance| instance.scheduled_at.is_none()) {
            reschedule(&mut self.schedule, name, instance, &self.policy);
        }
    }
}

pub(super) fn reschedule(schedule: &mut Schedule, name: &ServiceName, instance: &mut Instance, policy: &Policy) {
    let next = instance.next_due(policy);
    if next == instance.scheduled_at {
        return;
    }
    if let Some(at) = instance.scheduled_at {
        schedule.remove(&(at, instance.number));
    }
    instance.scheduled_at = next;
    if let Some(at) = next {
        schedule.insert((at, instance.number), (name.clone(), instance.registration.instance.clone()));
    }
}
