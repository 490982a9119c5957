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
    /// Routes for which callers need less now.
    pub loosened: Vec<RouteKey>,
}

/// Most faults of one registration that are told.
const MOST_FAULTS: usize = 3;

impl Registry {
    /// Takes another furt.conf, all of it; running state is kept. `more`: what else is different, for those who are
    /// told. Answers when the data plane of this process has it.
    pub async fn reload(&self, config: Config, more: Vec<String>) -> Reloaded {
        let reloaded = self.swap(config, more);
        self.installed(reloaded.version).await;
        reloaded
    }

    fn swap(&self, config: Config, more: Vec<String>) -> Reloaded {
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
        }
        state.services.set_grants(rules.config.grants.clone());
        // Whatever changed: those who follow by a token are to ask whether they still may.
        state.notices += 1;
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
        Reloaded { changes, version }
    }

    pub(super) fn tell_verdict(&self, verdict: &Verdict) {
        match &verdict.reason {
            Some(reason) => self.telemetry().withdrawn(&verdict.service, &verdict.instance, reason),
            None => self.telemetry().readmitted(&verdict.service, &verdict.instance),
        }
        self.tell_loosened(&verdict.service, &verdict.instance, &verdict.loosened);
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { service, instance, reason, .. } = self;
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
        verdicts.push((name.clone(), id.clone(), reason));
    }
    verdicts.into_iter().filter_map(|(service, instance, reason)| judge(services, service, instance, reason)).collect()
}

/// Says in the records whether a registration is allowed; what of it is news.
fn judge(services: &mut Services, service: ServiceName, instance: InstanceId, reason: Option<Arc<str>>) -> Option<Verdict> {
    let loosened = services.withdraw(&service, &instance, reason.clone())?;
    Some(Verdict { service, instance, reason, loosened })
}

/// The same for one that was just registered.
pub(super) fn readmit_one(rules: &Rules, services: &mut Services, registration: &Registration) -> Option<Verdict> {
    let (service, id) = (&registration.service, &registration.instance);
    let instances = &services.get(service.as_str())?.instances;
    let instance = instances.get(id)?;
    let earlier = |other: &&Instance| other.order < instance.order && other.is_awake();
    let before = instances.values().filter(earlier).count();
    let reason = reason(rules.admission.still(instance, before, services, &ThisMachine::of(&rules.config)));
    judge(services, service.clone(), id.clone(), reason)
}

fn reason(faults: Vec<Fault>) -> Option<Arc<str>> {
    if faults.is_empty() {
        return None;
    }
    // The lines to add to furt.conf are for whoever registers, not for a list.
    let sentence = |fault: &Fault| fault.headline().to_owned();
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

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        config::{Grant, Grants},
        registry::tests::{config, grant, local, request, static_route},
    };

    fn withdrawn(registry: &Registry, service: &str) -> String {
        registry.get_service(service).unwrap().instances[0].withdrawn.clone()
    }

    async fn reload(registry: &Registry, change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut next = (*registry.config()).clone();
        change(&mut next);
        registry.reload(next, Vec::new()).await.changes
    }

    #[tokio::test]
    async fn what_furt_conf_no_longer_allows_is_withdrawn_and_comes_back_with_it() {
        let registry = Registry::new(config());
        registry.try_it(request("sagjan", 7812, &["GET /api/*"])).await.unwrap();
        registry.try_it(request("obr", 7813, &["GET /obr"])).await.unwrap();
        assert_eq!(reload(&registry, |_| {}).await, Vec::<String>::new(), "the same again is nothing");
        let version = registry.stamp().version;

        let mut narrow = grant(Some("sagjan"));
        narrow.permissions = vec!["c:*".parse().unwrap()];
        let changes = reload(&registry, |config| config.grants = [grant(None), narrow].into()).await;
        let reason = "a:b is outside the permissions granted to sagjan: c:*";
        assert_eq!(changes, ["[service \"sagjan\"] is new".to_owned(), format!("instance default of sagjan is withdrawn: {reason}")]);
        assert_eq!(withdrawn(&registry, "sagjan"), reason);
        assert_eq!(withdrawn(&registry, "obr"), "");
        assert!(registry.stamp().version > version, "the data planes are told");
        let routes = registry.list_routes(&v1::ListRoutesRequest { service: "sagjan".into() }).routes;
        assert!(!routes[0].active);
        // It still owns its route, and it cannot renew.
        let other = registry.try_it(request("obr", 7813, &["GET /obr", "GET /api/*"])).await.unwrap_err();
        assert_eq!(other.code(), Code::RouteConflict);
        let renewed = registry.try_it(request("sagjan", 7812, &["GET /api/*"])).await.unwrap_err();
        assert_eq!(renewed.code(), Code::PermissionNotGranted);

        let changes = reload(&registry, |config| config.grants = [grant(None)].into()).await;
        assert_eq!(changes, ["[service \"sagjan\"] is gone", "instance default of sagjan is allowed again"]);
        assert_eq!(withdrawn(&registry, "sagjan"), "");
    }

    #[tokio::test]
    async fn every_rule_is_asked_anew() {
        type Case = (&'static str, fn(&mut Config));
        let cases: [Case; 7] = [
            ("there is no grant for sagjan", |config| config.grants = Grants::default()),
            ("127.0.0.1 may not register sagjan; its grant says from = 10.0.0.0/8", |config| {
                let mut from = grant(None);
                from.from = Some("10.0.0.0/8".parse().unwrap());
                config.grants = [from].into();
            }),
            ("127.0.0.1 is not in allow_registration_from", |config| {
                config.allow_registration_from = "10.0.0.0/8".parse().unwrap();
            }),
            ("/api/* is outside the paths granted to sagjan: /other", |config| {
                let mut paths = grant(None);
                paths.paths = Some(vec!["/other".parse().unwrap()]);
                config.grants = [paths].into();
            }),
            ("127.0.0.1 is not where sagjan may be; its grant says upstreams = 10.0.0.0/8", |config| {
                let mut upstreams = grant(None);
                upstreams.upstreams = Some("10.0.0.0/8".parse().unwrap());
                config.grants = [upstreams].into();
            }),
            ("GET /api/* is covered by GET /api/*, the route \"mail\" of furt.conf, which always wins", |config| {
                config.published.static_routes = vec![static_route("mail", "GET", "/api/*", "http://127.0.0.1:1")];
            }),
            ("127.0.0.1:7812 is furt itself", |config| config.public = Some("127.0.0.1:7812".parse().unwrap())),
        ];
        for (expected, change) in cases {
            let registry = Registry::new(config());
            registry.try_it(request("sagjan", 7812, &["GET /api/*"])).await.unwrap();
            reload(&registry, change).await;
            assert!(withdrawn(&registry, "sagjan").starts_with(expected), "{expected}: {}", withdrawn(&registry, "sagjan"));
            registry.reload(config(), Vec::new()).await;
            assert_eq!(withdrawn(&registry, "sagjan"), "", "{expected}");
        }
    }

    #[tokio::test]
    async fn of_too_many_instances_the_oldest_stay() {
        let registry = Registry::new(config());
        for instance in ["c", "a", "b"] {
            let request = v1::RegisterRequest { instance: instance.into(), ..request("sagjan", 7812, &["GET /api/*"]) };
            registry.try_it(request).await.unwrap();
        }
        let mut two = grant(None);
        two.max_instances = 2;
        reload(&registry, |config| config.grants = [two].into()).await;
        let instances = registry.get_service("sagjan").unwrap().instances;
        let withdrawn: Vec<_> = instances.iter().map(|instance| (instance.id.as_str(), !instance.withdrawn.is_empty())).collect();
        assert_eq!(withdrawn, [("a", false), ("b", true), ("c", false)]);
    }

    #[tokio::test]
    async fn what_is_withdrawn_opens_no_route_of_the_others() {
        let mut may_be_public = config();
        may_be_public.grants = [Grant { allow_public: true, ..grant(None) }].into();
        let registry = Registry::new(may_be_public);
        let closed = v1::RegisterRequest { instance: "a".into(), ..request("sagjan", 7812, &["GET /a"]) };
        let mut open = v1::RegisterRequest { instance: "b".into(), ..request("sagjan", 7812, &["GET /a", "GET /b"]) };
        open.routes.iter_mut().for_each(|route| (route.public, route.permission) = (true, String::new()));
        registry.try_it(closed).await.unwrap();
        registry.try_it(open.clone()).await.unwrap();
        let public = || {
            let routes = registry.list_routes(&v1::ListRoutesRequest::default()).routes.into_iter();
            routes.map(|route| (route.path, route.public, route.active)).collect::<Vec<_>>()
        };
        assert_eq!(public(), [("/a".to_owned(), true, true), ("/b".to_owned(), true, true)], "the newest governs");
        reload(&registry, |config| config.grants = [grant(None)].into()).await;
        assert_eq!(public(), [("/a".to_owned(), false, true), ("/b".to_owned(), true, false)]);
        reload(&registry, |config| config.grants = [Grant { allow_public: true, ..grant(None) }].into()).await;
        assert_eq!(public(), [("/a".to_owned(), true, true), ("/b".to_owned(), true, true)]);

        // The same when the registration that closed a route goes: another one governs it then.
        let closed = v1::RegisterRequest { instance: "c".into(), ..request("sagjan", 7812, &["GET /a"]) };
        registry.try_it(closed).await.unwrap();
        assert!(!public()[0].1);
        let farewell = v1::DeregisterRequest { service: "sagjan".into(), instance: "c".into(), ..Default::default() };
        registry.deregister(&local(), farewell).await.unwrap();
        assert!(public()[0].1);
        let mut told = Box::pin(registry.events().watch("0", "").unwrap());
        let kept = std::iter::from_fn(|| told.next().now_or_never().flatten());
        let loosened: Vec<_> = kept.filter(|event| event.kind == "LOOSENED").map(|event| event.instance).collect();
        assert_eq!(loosened, ["b", "b", "c"], "by registering, by the reload, by leaving");
    }

    #[tokio::test]
    async fn what_registers_as_furt_conf_allows_is_withdrawn_no_more() {
        let registry = Registry::new(config());
        for instance in ["a", "b"] {
            let request = v1::RegisterRequest { instance: instance.into(), ..request("sagjan", 7812, &["GET /api/*"]) };
            registry.try_it(request).await.unwrap();
        }
        registry.try_it(request("obr", 7813, &["GET /obr"])).await.unwrap();
        let one = Grant { max_instances: 1, ..grant(None) };
        let obr = Grant { paths: Some(vec!["/other".parse().unwrap()]), ..grant(Some("obr")) };
        let changes = reload(&registry, |config| config.grants = [one, obr].into()).await;
        assert_eq!(changes.len(), 4, "{changes:?}");

        // The same again, once there is room for it.
        let farewell = v1::DeregisterRequest { service: "sagjan".into(), instance: "a".into(), ..Default::default() };
        registry.deregister(&local(), farewell).await.unwrap();
        assert_ne!(withdrawn(&registry, "sagjan"), "");
        let again = v1::RegisterRequest { instance: "b".into(), ..request("sagjan", 7812, &["GET /api/*"]) };
        registry.try_it(again).await.unwrap();
        assert_eq!(withdrawn(&registry, "sagjan"), "");
        // With a route that it may have.
        registry.try_it(request("obr", 7813, &["GET /other"])).await.unwrap();
        assert_eq!(withdrawn(&registry, "obr"), "");
        assert!(registry.list_routes(&v1::ListRoutesRequest::default()).routes.iter().all(|route| route.active));
        let mut told = Box::pin(registry.events().watch("0", "").unwrap());
        let kept = std::iter::from_fn(|| told.next().now_or_never().flatten());
        let readmitted: Vec<_> = kept.filter(|event| event.kind == "READMITTED").map(|event| event.service).collect();
        assert_eq!(readmitted, ["sagjan", "obr"]);
        assert_eq!(reload(&registry, |_| {}).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn one_too_many_stays_withdrawn_until_there_is_room() {
        let registry = Registry::new(config());
        let of = |instance: &str, port| v1::RegisterRequest { instance: instance.into(), ..request("sagjan", port, &["GET /api/*"]) };
        for instance in ["a", "b", "c"] {
            registry.try_it(of(instance, 7812)).await.unwrap();
        }
        reload(&registry, |config| config.grants = [Grant { max_instances: 1, ..grant(None) }].into()).await;
        let serving = || {
            let instances = registry.get_service("sagjan").unwrap().instances;
            instances.into_iter().filter(|instance| instance.withdrawn.is_empty()).map(|instance| instance.id).collect::<Vec<_>>()
        };
        assert_eq!(serving(), ["a"]);
        for again in [of("b", 7812), of("c", 7899)] {
            assert_eq!(registry.try_it(again).await.unwrap_err().code(), Code::PermissionNotGranted);
        }
        registry.try_it(of("a", 7812)).await.unwrap();
        assert_eq!(serving(), ["a"]);
        let farewell = v1::DeregisterRequest { service: "sagjan".into(), instance: "a".into(), ..Default::default() };
        registry.deregister(&local(), farewell).await.unwrap();
        registry.try_it(of("c", 7812)).await.unwrap();
        assert_eq!(registry.try_it(of("b", 7812)).await.unwrap_err().code(), Code::PermissionNotGranted);
        assert_eq!(serving(), ["c"]);
    }

    #[tokio::test]
    async fn running_state_is_kept() {
        let registry = Registry::new(config());
        let first = registry.try_it(request("sagjan", 7812, &["GET /api/*"])).await.unwrap();
        for _ in 0..3 {
            let ticket = registry.take_due(Instant::now() + Duration::from_secs(3600), 1).remove(0);
            registry.record(&ticket, &Seen::Missed("no".into()), Instant::now(), 0.0);
        }
        let changes = reload(&registry, |config| config.probing.interval = Duration::from_secs(7)).await;
        assert_eq!(changes, ["[gateway] health_check_interval is 7s"]);
        assert_eq!(registry.status("sagjan"), ("DOWN".into(), false, 3), "a DOWN instance is DOWN after a reload");
        assert_eq!(registry.get_service("sagjan").unwrap().instances[0].registration_id, first.registration_id);
        assert_eq!(registry.notice(&registry.lock()).renew_after_seconds, 14);
        let again = registry.register(&local(), request("sagjan", 7812, &["GET /api/*"]), Vec::new()).await.unwrap();
        assert_eq!((again.registration_id, again.renew_after_seconds), (first.registration_id, 14));
    }
}
