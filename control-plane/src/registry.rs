//! The registry: the one lock around the services; admit, apply and publish in one critical section.
//!
//! Here: what gRPC and JSON both call, and what the monitor, the resolver and the snapshots ask. Not here:
//! decisions (`admission`, `services`), wire shapes of HTTP, sockets.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use furt_proto::{
    names::{InstanceId, NameError, ServiceName, quoted},
    time::unix_ms_now,
    v1,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    admission::{Admission, Resolved},
    config::Config,
    identity::{Action, Peer, authorize},
    limits::Limits,
    machine::ThisMachine,
    published,
    refusal::{Code, Fault, Refusal},
    registration::{Draft, Registration},
    resolve::{Lookup, Resolver, SystemLookup, Wanted, with_port},
    services::{Admitted, Due, Moment, Seen, Services, Ticket},
    snapshots::Snapshots,
    telemetry::{Gauges, InstanceRow, Registered, Telemetry},
};

/// How long an answer waits for the data plane of the same process to install what it tells of.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Services that one hold of the lock turns into answers.
const CHUNK: usize = 64;

/// The registry; clones share it.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    epoch: String,
    began: Instant,
    admission: Admission,
    resolver: Resolver,
    telemetry: Telemetry,
    state: Mutex<State>,
    /// Tells subscribers that there is something newer; they read what under the lock.
    changed: watch::Sender<Stamp>,
    /// Tells the monitor that something may be due sooner than it thinks.
    due: Notify,
    /// The version that every data plane of this process has installed; `None` while there is none.
    installed: watch::Sender<Option<u64>>,
    closed: CancellationToken,
}

pub(crate) struct State {
    pub(crate) services: Services,
    limits: Limits,
    /// The addresses of each static route, in the order of furt.conf.
    statics: Vec<Vec<SocketAddr>>,
    /// Data planes of this process and what they have installed.
    local: HashMap<u64, u64>,
    last_local: u64,
}

/// What there is to tell: the version, and the newest report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub version: u64,
    pub report: u64,
}

impl Registry {
    /// Empty, with a new epoch; names are looked up by the system.
    pub fn new(config: Config) -> Self {
        Self::with_lookup(config, Arc::new(SystemLookup))
    }

    /// Empty, with a new epoch and another way to look names up.
    pub fn with_lookup(config: Config, lookup: Arc<dyn Lookup>) -> Self {
        let config = Arc::new(config);
        let statics = published::literal_addresses(&config);
        let mut services = Services::new(config.probing.clone());
        services.publication_mut().publish(published::parts(&config, &statics));
        let stamp = Stamp { version: services.publication().version(), report: 0 };
        let limits = Limits::new(config.registration_rate);
        let state = State { services, limits, statics, local: HashMap::new(), last_local: 0 };
        let shared = Arc::new_cyclic(|weak| Shared {
            epoch: format!("{:032x}", fastrand::u128(..)),
            began: Instant::now(),
            admission: Admission::new(config.clone()),
            resolver: Resolver::new(lookup),
            telemetry: Telemetry::new(AtScrape(weak.clone())),
            state: Mutex::new(state),
            changed: watch::Sender::new(stamp),
            due: Notify::new(),
            installed: watch::Sender::new(None),
            closed: CancellationToken::new(),
            config,
        });
        Self { shared }
    }

    /// What furt.conf says.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }
    /// This life of the control plane.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }
    /// Events and their counts.
    pub fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }
    /// The control plane's metrics in text form, without an end mark.
    pub fn metrics(&self, out: &mut String) {
        self.shared.telemetry.encode(out);
    }
    /// The `SnapshotService` over this registry. A request that carries no [`Peer`] extension was made in process:
    /// it needs no authorization, and `register` waits until its subscriber has installed what was registered.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.clone())
    }
    /// Ends every Watch stream: for shutdown.
    pub fn close(&self) {
        self.shared.closed.cancel();
    }

    /// Registers, renews, changes or dry-runs. `faults` is what decoding found already.
    ///
    /// Answers when the data plane of the same process has installed it, at most a second later.
    pub async fn register(&self, peer: &Peer, request: v1::RegisterRequest, faults: Vec<Fault>) -> Result<v1::RegisterResponse, Refusal> {
        let (answer, carried_by) = match self.try_register(peer, &request, faults).await {
            Ok(answer) => answer,
            Err(refusal) => {
                self.telemetry().registration_refused(&request.service, peer.address, &refusal);
                return Err(refusal);
            }
        };
        self.installed(carried_by).await;
        Ok(answer)
    }

    async fn try_register(
        &self,
        peer: &Peer,
        request: &v1::RegisterRequest,
        faults: Vec<Fault>,
    ) -> Result<(v1::RegisterResponse, u64), Refusal> {
        let address = authorize(self.config(), peer, Action::Register, None)?.address;
        self.check_rate(address, request)?;
        let mut draft = Draft::read(request).with_decoding(faults);
        let resolved = self.resolve(&draft).await;
        let mut faults = std::mem::take(&mut draft.faults);
        faults.extend(self.shared.admission.granted(peer, address, &draft, resolved.as_ref(), &self.machine()));

        let state = self.lock();
        let (unclaimed, warnings) = self.shared.admission.unclaimed(&draft, &state.services);
        faults.extend(unclaimed);
        let Some(registration) = draft.registration.filter(|_| faults.is_empty()) else { return Err(faults.into()) };
        let mut answer = v1::RegisterResponse {
            service: registration.service.to_string(),
            instance: registration.instance.to_string(),
            routes: u32::try_from(registration.routes.len()).unwrap_or(u32::MAX),
            warnings,
            epoch: self.shared.epoch.clone(),
            renew_after_seconds: self.shared.config.probing.renew_after_seconds(),
            ..Default::default()
        };
        if request.dry_run {
            let (_, registration_id, status) = state.services.preview(&registration);
            answer.registration_id = registration_id.to_string();
            answer.status = status.name().into();
            answer.version = state.services.publication().version();
            drop(state);
            self.telemetry().dry_run(&registration.service, address);
            return Ok((answer, 0));
        }
        let addresses = with_port(&resolved.and_then(Result::ok).unwrap_or_default(), &registration.url);
        let carried_by = self.apply(state, registration, addresses, address, &mut answer);
        Ok((answer, carried_by))
    }

    /// Under the lock it is given: apply and publish. After it: tell and log.
    fn apply(
        &self,
        mut state: MutexGuard<'_, State>,
        registration: Registration,
        addresses: Vec<SocketAddr>,
        peer: IpAddr,
        answer: &mut v1::RegisterResponse,
    ) -> u64 {
        let at = moment();
        let registration = Arc::new(registration);
        let registration_id = Ulid::from_parts(u64::try_from(at.unix_ms).unwrap_or(0), fastrand::u128(..)).to_string();
        let admitted = Admitted { registration: registration.clone(), addresses, peer, registration_id: registration_id.into() };
        let applied = state.services.register(admitted, at);
        self.publish(state);
        self.shared.due.notify_one();
        answer.registration_id = applied.registration_id.to_string();
        answer.status = applied.state.name().into();
        answer.version = applied.version;
        let registered = Registered {
            service: &registration.service,
            instance: &registration.instance,
            change: applied.change,
            url: registration.url.as_str(),
            routes: registration.routes.len(),
            registration_id: &applied.registration_id,
            version: applied.version,
        };
        self.telemetry().registered(peer, &registered);
        if let Some(transition) = &applied.transition {
            self.telemetry().transition(&registration.service, &registration.instance, transition);
        }
        if !applied.loosened.is_empty() {
            self.telemetry().loosened(&registration.service, &registration.instance, &applied.loosened);
        }
        applied.carried_by
    }

    fn check_rate(&self, address: IpAddr, request: &v1::RegisterRequest) -> Result<(), Refusal> {
        let service: Option<ServiceName> = if request.dry_run { None } else { request.service.parse().ok() };
        let now = u64::try_from(self.shared.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let wait = match self.lock().limits.check(address, service.as_ref(), now) {
            Ok(()) => return Ok(()),
            Err(wait) => wait,
        };
        let seconds = wait.as_secs() + 1;
        let message = format!(
            "too many registrations from {address}: registration_rate is {}; try again in {seconds} s",
            self.config().registration_rate
        );
        Err(Refusal { retry_after: Some(wait), ..Refusal::one(Code::RateLimited, message) })
    }

    /// Looks the url's host up when it is worth it: nobody without a grant makes furt ask a name server.
    async fn resolve(&self, draft: &Draft) -> Option<Resolved> {
        let url = draft.url.as_ref()?;
        self.shared.admission.grant(draft.service.as_ref()?)?;
        Some(self.shared.resolver.resolve(url).await)
    }

    /// Takes one instance out, or a whole service. Answers when the data plane of the same process knows.
    pub async fn deregister(&self, peer: &Peer, request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Refusal> {
        let answer = self.try_deregister(peer, &request);
        if let Err(refusal) = &answer {
            self.telemetry().deregistration_refused(&request.service, peer.address, refusal);
        }
        let answer = answer?;
        self.installed(answer.version).await;
        Ok(answer)
    }

    fn try_deregister(&self, peer: &Peer, request: &v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Refusal> {
        let (name, id) = names(&request.service, &request.instance)?;
        let action = if id.is_some() { Action::Deregister } else { Action::DeregisterService };
        authorize(self.config(), peer, action, Some(&name))?;
        if id.is_none() && !request.registration_id.is_empty() {
            let fault = Fault::new("registration_id", Code::Validation, "a registration_id is one instance's: name the instance");
            return Err(fault.into());
        }
        let mut state = self.lock();
        let instances = state.services.deregister(&name, id.as_ref(), &request.registration_id)?;
        let gone = state.services.get(name.as_str()).is_none();
        let version = self.publish(state);
        let who = peer.address.map(|address| address.to_string()).unwrap_or_default();
        self.telemetry().deregistered(&name, &instances, &format!("asked for by {who}"), gone);
        Ok(v1::DeregisterResponse { service: name.to_string(), instances: instances.iter().map(ToString::to_string).collect(), version })
    }

    /// Sends instances no new requests.
    pub async fn drain(&self, _peer: &Peer, _request: v1::DrainRequest) -> Result<v1::DrainResponse, Refusal> {
        Err(Refusal::one(Code::Unavailable, "not yet"))
    }

    /// Makes probes due now, also of parked instances.
    pub fn probe(&self, peer: &Peer, request: v1::ProbeRequest) -> Result<v1::ProbeResponse, Refusal> {
        let (name, id) = names(&request.service, &request.instance)?;
        authorize(self.config(), peer, Action::Probe, Some(&name))?;
        let mut state = self.lock();
        let woken = state.services.wake(&name, id.as_ref(), moment())?;
        self.publish(state);
        self.shared.due.notify_one();
        for (id, transition) in &woken {
            if let Some(transition) = transition {
                self.telemetry().transition(&name, id, transition);
            }
        }
        Ok(v1::ProbeResponse { service: name.to_string(), instances: woken.iter().map(|(id, _)| id.to_string()).collect() })
    }

    /// One service.
    pub fn get_service(&self, name: &str) -> Result<v1::Service, Refusal> {
        let service = self.lock().services.get(name).map(|service| service.view());
        service.ok_or_else(|| Refusal::one(Code::NotFound, format!("{} is not registered", quoted(name))))
    }

    /// All services, in the order of names.
    pub fn list_services(&self) -> v1::ListServicesResponse {
        let services = self.walk(|service, out| out.push(service.view()));
        v1::ListServicesResponse { services, epoch: self.shared.epoch.clone(), version: self.stamp().version }
    }

    /// Routes, static ones first, then by service, pattern, host and method.
    pub fn list_routes(&self, request: &v1::ListRoutesRequest) -> v1::ListRoutesResponse {
        let routes = match request.service.as_str() {
            "" => {
                let mut routes = published::static_views(self.config());
                routes.extend(self.walk(|service, out| out.extend(service.route_views())));
                routes
            }
            name => self.lock().services.get(name).map(|service| service.route_views().collect()).unwrap_or_default(),
        };
        v1::ListRoutesResponse { routes, version: self.stamp().version }
    }

    /// Every service in turn, the lock held for a few of them at a time.
    fn walk<T>(&self, mut visit: impl FnMut(&crate::records::Service, &mut Vec<T>)) -> Vec<T> {
        let mut out = Vec::new();
        let mut last: Option<ServiceName> = None;
        loop {
            let state = self.lock();
            let mut seen = None;
            for (name, service) in state.services.from(last.as_ref()).take(CHUNK) {
                visit(service, &mut out);
                seen = Some(name.clone());
            }
            match seen {
                Some(name) => last = Some(name),
                None => return out,
            }
        }
    }

    /// Waits until the data planes of this process have installed a version.
    async fn installed(&self, version: u64) {
        let mut installed = self.shared.installed.subscribe();
        let there = installed.wait_for(|installed| installed.is_none_or(|installed| installed >= version));
        // A data plane that cannot follow is its own trouble; the change holds.
        if timeout(INSTALL_TIMEOUT, there).await.is_err() {
            self.telemetry().not_installed(version, INSTALL_TIMEOUT);
        }
    }

    fn machine(&self) -> ThisMachine<'_> {
        ThisMachine::of(&self.shared.config)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Lets go of the lock and tells the subscribers what there is; the version now.
    fn publish(&self, state: MutexGuard<'_, State>) -> u64 {
        let stamp = Stamp { version: state.services.publication().version(), report: state.services.last_report() };
        // Under the lock, so that stamps never go back.
        self.shared.changed.send_if_modified(|last| std::mem::replace(last, stamp) != stamp);
        drop(state);
        stamp.version
    }

    fn stamp(&self) -> Stamp {
        *self.shared.changed.borrow()
    }
}

/// What the monitor asks.
impl Registry {
    /// When the next probe is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.lock().services.next_due()
    }
    /// Resolves when something may be due sooner than it was.
    pub(crate) async fn due_changed(&self) {
        self.shared.due.notified().await;
    }
    /// How many instances there are.
    pub(crate) fn instances(&self) -> usize {
        self.lock().services.instances()
    }

    /// Takes up to `most` probes that are due; parked instances whose time is over are forgotten on the way.
    pub(crate) fn take_due(&self, now: Instant, most: usize) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        let mut forgotten = Vec::new();
        let mut state = self.lock();
        while tickets.len() < most {
            match state.services.take_due(now) {
                Some(Due::Probe(ticket)) => tickets.push(ticket),
                Some(Due::Forgotten(service, instance)) => forgotten.push((service, instance)),
                Some(Due::Kept) => {}
                None => break,
            }
        }
        self.publish(state);
        for (service, instance) in forgotten {
            self.telemetry().deregistered(&service, &[instance], "parked for longer than forget_parked_after", false);
        }
        tickets
    }

    /// Notes what a probe saw that began at `began`.
    pub(crate) fn record(&self, ticket: &Ticket, seen: &Seen, began: Instant, jitter: f64) {
        let mut state = self.lock();
        let recorded = state.services.record(ticket, seen, began, moment(), jitter);
        self.publish(state);
        // A late answer says nothing about the registration that holds now.
        let Some(recorded) = recorded else { return };
        self.telemetry().probed(ticket, seen, recorded.misses);
        if let Some(transition) = &recorded.transition {
            self.telemetry().transition(&ticket.service, &ticket.instance, transition);
        }
    }
}

/// What the snapshots ask.
impl Registry {
    pub(crate) fn follow(&self) -> watch::Receiver<Stamp> {
        self.shared.changed.subscribe()
    }
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.shared.closed
    }

    /// A data plane of this process begins to follow.
    pub(crate) fn attach_local(&self) -> u64 {
        let mut state = self.lock();
        state.last_local += 1;
        let id = state.last_local;
        state.local.insert(id, 0);
        self.tell_installed(&state);
        id
    }
    /// It has installed a version.
    pub(crate) fn local_installed(&self, id: u64, version: u64) {
        let mut state = self.lock();
        if let Some(installed) = state.local.get_mut(&id) {
            *installed = version;
        }
        self.tell_installed(&state);
    }
    /// It has left.
    pub(crate) fn detach_local(&self, id: u64) {
        let mut state = self.lock();
        state.local.remove(&id);
        self.tell_installed(&state);
    }
    fn tell_installed(&self, state: &State) {
        let least = state.local.values().copied().min();
        self.shared.installed.send_if_modified(|last| std::mem::replace(last, least) != least);
    }

    /// A data plane could not connect.
    pub(crate) fn suspect(&self, suspicion: &v1::Suspicion) {
        let mut state = self.lock();
        let suspected = state.services.suspect(&suspicion.service, suspicion.instance, &suspicion.registration_id, moment());
        self.publish(state);
        if let Some(instance) = suspected {
            self.shared.due.notify_one();
            let reason: String = suspicion.reason.chars().take(200).collect();
            self.telemetry().suspected(&suspicion.service, &instance, &reason);
        }
    }
}

/// Whose addresses may change: an instance under one registration.
pub(crate) struct NamedInstance {
    service: ServiceName,
    instance: InstanceId,
    registration_id: Arc<str>,
    peer: IpAddr,
}

/// What the resolver asks.
impl Registry {
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.shared.resolver
    }

    /// Static routes whose url is a name, by their place in furt.conf.
    pub(crate) fn static_names(&self) -> Vec<Wanted<usize>> {
        let routes = self.config().published.static_routes.iter().enumerate();
        routes.filter(|(_, route)| route.url.address().is_none()).map(|(user, route)| Wanted { url: route.url.clone(), user }).collect()
    }

    /// An operator wrote the name, so whatever it stands for is taken.
    pub(crate) fn static_resolved(&self, wanted: &Wanted<usize>, answer: Resolved) {
        let name = self.config().published.static_routes.get(wanted.user).map(|route| route.name.clone()).unwrap_or_default();
        let addresses = match answer {
            Ok(addresses) => with_port(&addresses, &wanted.url),
            Err(error) => return self.telemetry().not_resolved(&name, wanted.url.host(), &error),
        };
        let mut state = self.lock();
        match state.statics.get_mut(wanted.user) {
            Some(known) if *known != addresses => *known = addresses.clone(),
            _ => return,
        }
        let part = published::static_routes(&self.shared.config, &state.statics);
        state.services.publication_mut().publish([part]);
        self.publish(state);
        self.telemetry().resolved(&name, wanted.url.host(), &format!("{addresses:?}"));
    }

    /// Instances whose url is a name.
    pub(crate) fn registered_names(&self) -> Vec<Wanted<NamedInstance>> {
        self.walk(|service, out| {
            for (id, instance) in service.instances.iter().filter(|(_, instance)| instance.registration.url.address().is_none()) {
                let user = NamedInstance {
                    service: service.name.clone(),
                    instance: id.clone(),
                    registration_id: instance.registration_id.clone(),
                    peer: instance.peer,
                };
                out.push(Wanted { url: instance.registration.url.clone(), user });
            }
        })
    }

    /// What a registered name stands for now, checked as at registration; the last good addresses stay otherwise.
    pub(crate) fn registered_resolved(&self, wanted: &Wanted<NamedInstance>, answer: Resolved) {
        let Wanted { url, user } = wanted;
        if let Some(fault) = self.shared.admission.addresses(&user.service, user.peer, url, &answer, &self.machine()) {
            return self.telemetry().not_resolved(user.service.as_str(), url.host(), &fault.message);
        }
        let addresses = with_port(&answer.unwrap_or_default(), url);
        let mut state = self.lock();
        let changed = state.services.set_addresses(&user.service, &user.instance, &user.registration_id, addresses.clone());
        self.publish(state);
        if changed {
            self.telemetry().resolved(user.service.as_str(), url.host(), &format!("{addresses:?}"));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics; were it to, the records would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What metrics read; weak, since the registry holds the metrics.
struct AtScrape(Weak<Shared>);

impl Gauges for AtScrape {
    fn version(&self) -> u64 {
        self.0.upgrade().map_or(0, |shared| shared.changed.borrow().version)
    }
    fn uptime(&self) -> Duration {
        self.0.upgrade().map_or(Duration::ZERO, |shared| shared.began.elapsed())
    }
    fn instances(&self) -> Vec<InstanceRow> {
        let Some(shared) = self.0.upgrade() else { return Vec::new() };
        let now = Instant::now();
        Registry { shared }.walk(|service, out| {
            for (id, instance) in &service.instances {
                let mut uptime = instance.uptime.clone();
                uptime.advance(now, instance.health.state);
                let up = instance.health.state.is_up();
                out.push(InstanceRow { service: service.name.clone(), instance: id.clone(), up, uptime: uptime.ratios() });
            }
        })
    }
}

/// Now, on both clocks.
pub(crate) fn moment() -> Moment {
    Moment { now: Instant::now(), unix_ms: unix_ms_now() }
}

fn names(service: &str, instance: &str) -> Result<(ServiceName, Option<InstanceId>), Refusal> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, error: NameError| faults.push(Fault::new(field, Code::Validation, error.0));
    let name = service.parse().map_err(|error| fault("service", error));
    let id = if instance.is_empty() { Ok(None) } else { instance.parse().map(Some) };
    let id = id.map_err(|error| fault("instance", error));
    match (name, id) {
        (Ok(name), Ok(id)) => Ok((name, id)),
        _ => Err(faults.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
