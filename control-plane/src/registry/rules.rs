//! furt.conf as the registry holds to it, and what a new one changes (DESIGN §3, §4).
//!
//! Here: the configuration and admission by it, swapped as one; admitting anew what is registered already; what is told
//! of a reload. Not here: reading furt.conf, the rules themselves (`admission`).

use std::collections::HashMap;

use super::*;
use crate::{admission::Admission, config::StaticRoute, records::Instance};

/// furt.conf, and admission by it.
pub(super) struct Rules {
    pub config: Arc<Config>,
    pub admission: Admission,
}

impl Rules {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self { admission: Admission::new(config.clone()), config }
    }
}

/// What a reload changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// One line for each difference, and for each registration that is withdrawn or allowed again.
    pub changes: Vec<String>,
    /// The snapshot that carries it.
    pub version: u64,
}

/// Whether furt.conf allows a registration, where that is news.
pub(super) struct Verdict {
    pub service: ServiceName,
    pub instance: InstanceId,
    /// Why not; `None`: it does again.
    pub reason: Option<Arc<str>>,
}

/// Most faults of one registration that are told.
const MOST_FAULTS: usize = 3;

impl Registry {
    /// Takes another furt.conf, all of it; running state is kept. `more`: what else is different, for those who are
    /// told. Answers when the data plane of this process has it.
    pub async fn reload(&self, config: Config, more: Vec<String>) -> Reloaded {
        let rules = Arc::new(Rules::new(Arc::new(config)));
        let now = Instant::now();
        let mut state = self.lock();
        let before = self.rules();
        let mut changes = more;
        changes.extend(differences(&before.config, &rules.config));
        self.shared.rules.store(rules.clone());
        if before.config.registration_rate != rules.config.registration_rate {
            state.limits = Limits::new(rules.config.registration_rate);
        }
        if before.config.probing != rules.config.probing {
            state.services.set_policy(rules.config.probing.clone(), now);
            state.notices += 1;
        }
        state.statics = kept_addresses(&before.config, &state.statics, &rules.config);
        let parts = published::parts(&rules.config, &state.statics);
        state.services.publication_mut().publish(parts);
        let verdicts = readmit_all(&rules, &mut state.services);
        let version = self.publish(state);
        self.shared.due.notify_one();
        self.shared.renamed.notify_one();
        changes.extend(verdicts.iter().map(ToString::to_string));
        verdicts.iter().for_each(|verdict| self.tell_verdict(verdict));
        self.telemetry().reloaded(&changes, version);
        self.installed(version).await;
        Reloaded { changes, version }
    }

    pub(super) fn tell_verdict(&self, verdict: &Verdict) {
        match &verdict.reason {
            Some(reason) => self.telemetry().withdrawn(&verdict.service, &verdict.instance, reason),
            None => self.telemetry().readmitted(&verdict.service, &verdict.instance),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { service, instance, reason } = self;
        match reason {
            Some(reason) => write!(f, "instance {instance} of {service} is withdrawn: {reason}"),
            None => write!(f, "instance {instance} of {service} is allowed again"),
        }
    }
}

/// Admits every registration anew, the oldest first, and says so in the records; the news of it.
pub(super) fn readmit_all(rules: &Rules, services: &mut Services) -> Vec<Verdict> {
    let machine = ThisMachine::of(&rules.config);
    let mut awake: HashMap<ServiceName, usize> = HashMap::new();
    let mut verdicts = Vec::new();
    for (name, id, instance) in services.by_order() {
        let before = awake.get(name).copied().unwrap_or(0);
        let reason = reason(rules.admission.still(instance, before, services, &machine));
        if reason.is_none() && !instance.health.state.is_parked() {
            *awake.entry(name.clone()).or_default() += 1;
        }
        verdicts.push(Verdict { service: name.clone(), instance: id.clone(), reason });
    }
    verdicts.retain(|verdict| services.withdraw(&verdict.service, &verdict.instance, verdict.reason.clone()));
    verdicts
}

/// The same for one that was just registered.
pub(super) fn readmit_one(rules: &Rules, services: &mut Services, registration: &Registration) -> Option<Verdict> {
    let (service, id) = (&registration.service, &registration.instance);
    let instances = &services.get(service.as_str())?.instances;
    let instance = instances.get(id)?;
    let earlier = |other: &&Instance| other.order < instance.order && !other.health.state.is_parked();
    let before = instances.values().filter(earlier).count();
    let reason = reason(rules.admission.still(instance, before, services, &ThisMachine::of(&rules.config)));
    let verdict = Verdict { service: service.clone(), instance: id.clone(), reason };
    services.withdraw(service, id, verdict.reason.clone()).then_some(verdict)
}

fn reason(faults: Vec<Fault>) -> Option<Arc<str>> {
    if faults.is_empty() {
        return None;
    }
    // The lines to add to furt.conf are for whoever registers, not for a list.
    let sentence = |fault: &Fault| fault.message.lines().next().unwrap_or_default().to_owned();
    let mut told: Vec<_> = faults.iter().take(MOST_FAULTS).map(sentence).collect();
    if faults.len() > told.len() {
        told.push(format!("and {} more", faults.len() - told.len()));
    }
    Some(told.join("; ").into())
}

/// The addresses of the static routes: those of names that stay are kept until they are looked up again.
fn kept_addresses(before: &Config, known: &[Vec<SocketAddr>], now: &Config) -> Vec<Vec<SocketAddr>> {
    let old: HashMap<&str, &Vec<SocketAddr>> = before.published.static_routes.iter().map(|route| route.url.as_str()).zip(known).collect();
    let literal = published::literal_addresses(now);
    let address = |(route, literal): (&StaticRoute, Vec<SocketAddr>)| match old.get(route.url.as_str()) {
        Some(known) if literal.is_empty() => (*known).clone(),
        _ => literal,
    };
    now.published.static_routes.iter().zip(literal).map(address).collect()
}

/// One line for each part of furt.conf that is different. Secrets are compared, never told.
fn differences(before: &Config, now: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let mut setting = |name: &str, differs: bool, value: String| {
        if differs {
            lines.push(format!("[gateway] {name} is {value}"));
        }
    };
    setting("hosts", before.hosts != now.hosts, now.hosts.join(", "));
    let (old, new) = (&before.probing, &now.probing);
    setting("health_check_interval", old.interval != new.interval, format!("{:?}", new.interval));
    setting("health_check_timeout", old.timeout != new.timeout, format!("{:?}", new.timeout));
    setting("down_check_interval", old.down_interval != new.down_interval, format!("{:?}", new.down_interval));
    setting("max_consecutive_failures", old.down_after != new.down_after, new.down_after.to_string());
    setting("stop_ping_after_failures", old.park_after != new.park_after, new.park_after.to_string());
    let forget = new.forget_parked_after.map_or("0".to_owned(), |wait| format!("{wait:?}"));
    setting("forget_parked_after", old.forget_parked_after != new.forget_parked_after, forget);
    let networks = now.allow_registration_from.to_string();
    setting("allow_registration_from", before.allow_registration_from != now.allow_registration_from, networks);
    setting("registration_rate", before.registration_rate != now.registration_rate, now.registration_rate.to_string());
    let loopback = before.loopback_is_operator != now.loopback_is_operator;
    setting("loopback_is_operator", loopback, now.loopback_is_operator.to_string());
    let grant = |grant: &crate::config::Grant| grant.service.as_ref().map_or("*".to_owned(), ToString::to_string);
    lines.extend(named("service", &before.grants, &now.grants, grant));
    lines.extend(named("token", &before.tokens, &now.tokens, |token| token.name.clone()));
    lines.extend(named("api_key", &before.published.keys, &now.published.keys, |key| key.name.clone()));
    lines.extend(named("route", &before.published.static_routes, &now.published.static_routes, |route| route.name.to_string()));
    if before.published.cors_origins != now.published.cors_origins {
        lines.push(format!("[cors] allowed_origins is {}", now.published.cors_origins.join(", ")));
    }
    lines
}

/// What was added, changed and removed among sections with labels.
fn named<T: PartialEq>(section: &str, before: &[T], now: &[T], name: impl Fn(&T) -> String) -> Vec<String> {
    let old: HashMap<String, &T> = before.iter().map(|entry| (name(entry), entry)).collect();
    let new: HashMap<String, &T> = now.iter().map(|entry| (name(entry), entry)).collect();
    let mut lines = Vec::new();
    for entry in now {
        let label = name(entry);
        match old.get(&label) {
            None => lines.push(format!("[{section} \"{label}\"] is new")),
            Some(before) if *before != entry => lines.push(format!("[{section} \"{label}\"] has changed")),
            Some(_) => {}
        }
    }
    let gone = before.iter().map(&name).filter(|label| !new.contains_key(label));
    lines.extend(gone.map(|label| format!("[{section} \"{label}\"] is gone")));
    lines
}
