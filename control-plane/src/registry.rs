//! The registry: the one lock around the services, and what gRPC and JSON both call.
//!
//! Here: registering, deregistering, probing, reading; what the monitor asks. In `committer` what makes a change durable
//! before it counts, in `recovery` the store read and opened anew, in `draining` farewells, in `rules` furt.conf and its
//! reloads, in `planes` the data planes, in `naming` the names of hosts, in `sessions` the sessions. Not here: decisions
//! (`admission`, `services`), wire shapes of HTTP, sockets.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
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

use crate::{
    admission::{Resolved, Who},
    config::Config,
    events::{self, Events},
    identity::{Action, Peer, authorize},
    limits::Limits,
    machine::ThisMachine,
    publication::Notice,
    published,
    records::Change,
    refusal::{Code, Fault, Refusal},
    registration::{Draft, Registration, RouteKey},
    resolve::{Lookup, Resolver, SystemLookup, with_port},
    services::{Admitted, Applied, Due, Moment, Seen, Services, Ticket},
    snapshots::Snapshots,
    store::{Memory, Store},
    telemetry::{Gauges, InstanceRow, Registered, Telemetry},
};

mod committer;
mod draining;
mod naming;
mod planes;
mod recovery;
mod rules;
mod sessions;

use committer::{Changes, Done, Operation, Registering, Removal};
use draining::Underway;
pub use draining::{DRAIN_SECONDS, MOST_DRAIN_SECONDS};
use planes::Planes;
pub use rules::Reloaded;
use rules::Rules;

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
    /// furt.conf, and admission by it.
    rules: ArcSwap<Rules>,
    epoch: String,
    began: Instant,
    resolver: Resolver,
    telemetry: Telemetry,
    /// One call at a time, on a thread that may block if it does.
    store: Arc<Mutex<Box<dyn Store>>>,
    store_blocks: bool,
    state: Mutex<State>,
    /// Tells subscribers that there is something newer; they read what under the lock.
    changed: watch::Sender<Stamp>,
    /// Tells the monitor that something may be due sooner than it thinks.
    due: Notify,
    /// Tells the resolver that furt.conf names other hosts.
    renamed: Notify,
    /// The version that every data plane of this process has installed; `None` while there is none.
    installed: watch::Sender<Option<u64>>,
    /// Counts what data planes said of requests in flight.
    counted: watch::Sender<u64>,
    closed: CancellationToken,
}

pub(crate) struct State {
    pub(crate) services: Services,
    limits: Limits,
    /// The addresses of each static route, in the order of furt.conf.
    statics: Vec<Vec<SocketAddr>>,
    planes: Planes,
    /// Drains that are waited for.
    underway: Underway,
    changes: Changes,
    /// What furt lacks, for `/health`.
    issues: Vec<String>,
    /// Counts what subscribers are told besides the version: issues, intervals, whether all is known.
    notices: u64,
}

/// What there is to tell: the version, the newest report, the newest notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub version: u64,
    pub report: u64,
    pub notice: u64,
}

impl Registry {
    /// Empty, with a new epoch; names are looked up by the system, nothing outlives it.
    pub fn new(config: Config) -> Self {
        Self::with_store(config, Box::new(Memory))
    }

    /// With a new epoch, over a store; [`Registry::restore`] reads it.
    pub fn with_store(config: Config, store: Box<dyn Store>) -> Self {
        Self::with_lookup(config, Arc::new(SystemLookup), store)
    }

    /// With another way to look names up.
    pub fn with_lookup(config: Config, lookup: Arc<dyn Lookup>, store: Box<dyn Store>) -> Self {
        let config = Arc::new(config);
        let store_blocks = store.blocks();
        let statics = published::literal_addresses(&config);
        let mut services = Services::new(config.probing.clone());
        services.set_grants(config.grants.clone());
        services.publication_mut().publish(published::parts(&config, &statics));
        let stamp = Stamp { version: services.publication().version(), ..Stamp::default() };
        let state = State {
            services,
            limits: Limits::new(config.registration_rate),
            statics,
            planes: Planes::default(),
            underway: Underway::new(),
            // What blocks has something to read first.
            changes: Changes::new(!store_blocks),
            issues: Vec::new(),
            notices: 0,
        };
        let epoch = format!("{:032x}", fastrand::u128(..));
        let shared = Arc::new_cyclic(|weak| Shared {
            began: Instant::now(),
            rules: ArcSwap::from_pointee(Rules::new(config)),
            resolver: Resolver::new(lookup),
            telemetry: Telemetry::new(AtScrape(weak.clone()), Events::new(&epoch, events::ROOM)),
            epoch,
            store: Arc::new(Mutex::new(store)),
            store_blocks,
            state: Mutex::new(state),
            changed: watch::Sender::new(stamp),
            due: Notify::new(),
            renamed: Notify::new(),
            installed: watch::Sender::new(None),
            counted: watch::Sender::new(0),
            closed: CancellationToken::new(),
        });
        Self { shared }
    }

    /// What furt.conf says now.
    pub fn config(&self) -> Arc<Config> {
        self.rules().config.clone()
    }
    fn rules(&self) -> Arc<Rules> {
        self.shared.rules.load_full()
    }
    /// This life of the control plane.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }
    /// Events and their counts.
    pub fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }
    /// What happens, for those who watch.
    pub fn events(&self) -> &Events {
        self.shared.telemetry.events()
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
        self.events().close();
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
        let rules = self.rules();
        let address = authorize(&rules.config, peer, Action::Register, None)?.address;
        self.check_rate(&rules.config, address, request)?;
        let mut draft = Draft::read(request).with_decoding(faults);
        let resolved = self.resolve(&rules, &draft).await;
        let mut faults = std::mem::take(&mut draft.faults);
        let machine = ThisMachine::of(&rules.config);
        faults.extend(rules.admission.granted(&Who::Asks(peer), address, &draft, resolved.as_ref(), &machine));

        match self.decide(rules, peer, address, draft, faults, resolved, request.dry_run)? {
            Decided::Answered(answer, carried_by) => Ok((*answer, carried_by)),
            Decided::Waits(registering) => match self.submit(Operation::Register(registering)).await? {
                Done::Registered { answer, carried_by } => Ok((answer, carried_by)),
                Done::Changed { .. } => Err(Refusal::one(Code::Internal, "a registration was taken for something else")),
            },
        }
    }

    /// Under the lock: what others hold, and what is answered at once: refusals, dry runs, and the same again.
    #[allow(clippy::too_many_arguments, reason = "all that was found out before the lock")]
    fn decide(
        &self,
        rules: Arc<Rules>,
        peer: &Peer,
        address: IpAddr,
        mut draft: Draft,
        mut faults: Vec<Fault>,
        resolved: Option<Resolved>,
        dry_run: bool,
    ) -> Result<Decided, Refusal> {
        let mut state = self.lock();
        let (unclaimed, warnings) = rules.admission.unclaimed(&draft, &state.services);
        faults.extend(unclaimed);
        let Some(registration) = draft.registration.take().filter(|_| faults.is_empty()) else { return Err(faults.into()) };
        let (change, registration_id, status) = state.services.preview(&registration);
        let mut answer = v1::RegisterResponse {
            service: registration.service.to_string(),
            instance: registration.instance.to_string(),
            routes: u32::try_from(registration.routes.len()).unwrap_or(u32::MAX),
            warnings,
            epoch: self.shared.epoch.clone(),
            renew_after_seconds: rules.config.probing.renew_after_seconds(),
            registration_id: registration_id.to_string(),
            status: status.name().into(),
            version: state.services.publication().version(),
        };
        if dry_run {
            drop(state);
            self.telemetry().dry_run(&registration.service, address);
            return Ok(Decided::Answered(answer.into(), 0));
        }
        let addresses = with_port(&resolved.clone().and_then(Result::ok).unwrap_or_default(), &registration.url);
        let by_operator = peer.bears_operator_token(&rules.config);
        let admitted = Admitted { registration: Arc::new(registration), addresses, peer: address, by_operator, registration_id, order: 0 };
        // The same again is durable already, so it waits for no store; but never before a change that waits for it, nor
        // by a furt.conf that holds no more.
        let holds = Arc::ptr_eq(&rules, &self.rules());
        if change == Change::Renewed && holds && state.changes.is_quiet(&admitted.registration.service) {
            let applied = state.services.register(admitted.clone(), moment());
            self.store_soon(&mut state);
            self.publish(state);
            self.shared.due.notify_one();
            self.tell_registered(&admitted, &applied);
            fill(&mut answer, &applied);
            return Ok(Decided::Answered(answer.into(), applied.carried_by));
        }
        Ok(Decided::Waits(Box::new(Registering { rules, peer: peer.clone(), draft, resolved, admitted, answer })))
    }

    /// Tells what registering did, after the lock.
    fn tell_registered(&self, admitted: &Admitted, applied: &Applied) {
        let registration = &admitted.registration;
        let registered = Registered {
            service: &registration.service,
            instance: &registration.instance,
            change: applied.change,
            url: registration.url.as_str(),
            replaces: applied.replaces.as_ref().map(|url| url.as_str()),
            routes: registration.routes.len(),
            registration_id: &applied.registration_id,
            version: applied.version,
        };
        self.telemetry().registered(admitted.peer, &registered);
        if let Some(transition) = &applied.transition {
            self.telemetry().transition(&registration.service, &registration.instance, transition);
        }
        if applied.readmitted {
            self.telemetry().readmitted(&registration.service, &registration.instance);
        }
        self.tell_loosened(&registration.service, &registration.instance, &applied.loosened);
    }

    fn tell_loosened(&self, service: &ServiceName, instance: &InstanceId, routes: &[RouteKey]) {
        if !routes.is_empty() {
            self.telemetry().loosened(service, instance, routes);
        }
    }

    fn check_rate(&self, config: &Config, address: IpAddr, request: &v1::RegisterRequest) -> Result<(), Refusal> {
        let service: Option<ServiceName> = if request.dry_run { None } else { request.service.parse().ok() };
        let now = u64::try_from(self.shared.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let wait = match self.lock().limits.check(address, service.as_ref(), now) {
            Ok(()) => return Ok(()),
            Err(wait) => wait,
        };
        let seconds = wait.as_secs() + 1;
        let rate = config.registration_rate;
        let message = format!("too many registrations from {address}: registration_rate is {rate}; try again in {seconds} s");
        Err(Refusal { retry_after: Some(wait), ..Refusal::one(Code::RateLimited, message) })
    }

    /// Looks the url's host up when it is worth it: nobody without a grant makes furt ask a name server.
    async fn resolve(&self, rules: &Rules, draft: &Draft) -> Option<Resolved> {
        let url = draft.url.as_ref()?;
        rules.admission.grant(draft.service.as_ref()?)?;
        Some(self.shared.resolver.resolve(url).await)
    }

    /// Takes one instance out, or a whole service. Answers when that is durable and the data plane of the same process
    /// knows.
    pub async fn deregister(&self, peer: &Peer, request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Refusal> {
        let answer = self.try_deregister(peer, &request).await;
        if let Err(refusal) = &answer {
            self.telemetry().deregistration_refused(&request.service, peer.address, refusal);
        }
        let answer = answer?;
        self.installed(answer.version).await;
        Ok(answer)
    }

    async fn try_deregister(&self, peer: &Peer, request: &v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Refusal> {
        let (service, instance) = names(&request.service, &request.instance)?;
        let action = if instance.is_some() { Action::Deregister } else { Action::DeregisterService };
        authorize(&self.config(), peer, action, Some(&service))?;
        of_one_instance(instance.as_ref(), &request.registration_id)?;
        let who = peer.address.map(|address| address.to_string()).unwrap_or_default();
        let (registration_id, why) = (request.registration_id.as_str().into(), Removal::Asked { by: who });
        let name = service.to_string();
        let (instances, version) = self.change(Operation::Remove { service, instance, registration_id, why }).await?;
        Ok(v1::DeregisterResponse { service: name, instances: instances.iter().map(ToString::to_string).collect(), version })
    }

    /// Makes probes due now, also of parked instances.
    pub fn probe(&self, peer: &Peer, request: v1::ProbeRequest) -> Result<v1::ProbeResponse, Refusal> {
        let (name, id) = names(&request.service, &request.instance)?;
        authorize(&self.config(), peer, Action::Probe, Some(&name))?;
        self.readable()?;
        let mut state = self.lock();
        let woken = state.services.wake(&name, id.as_ref(), moment())?;
        self.store_soon(&mut state);
        self.publish(state);
        self.shared.due.notify_one();
        for (id, transition) in &woken {
            if let Some(transition) = transition {
                self.telemetry().transition(&name, id, transition);
            }
        }
        Ok(v1::ProbeResponse { service: name.to_string(), instances: woken.iter().map(|(id, _)| id.to_string()).collect() })
    }

    /// Whether it is known what is registered; to be asked before anything is listed, since a store that was not read is
    /// not an empty one.
    ///
    /// Errors: STORE_UNAVAILABLE, with the way out.
    pub fn readable(&self) -> Result<(), Refusal> {
        self.lock().changes.readable()
    }

    /// One service, with the uptime and timeline of its instances.
    pub fn get_service(&self, name: &str) -> Result<v1::Service, Refusal> {
        let now = Instant::now();
        let service = self.lock().services.get(name).map(|service| service.whole_view(now));
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
                let mut routes = published::static_views(&self.config());
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Lets go of the lock and tells the subscribers what there is; the version now.
    fn publish(&self, state: MutexGuard<'_, State>) -> u64 {
        let stamp = Stamp { version: state.services.publication().version(), report: state.services.last_report(), notice: state.notices };
        // Under the lock, so that stamps never go back.
        self.shared.changed.send_if_modified(|last| std::mem::replace(last, stamp) != stamp);
        drop(state);
        stamp.version
    }

    /// What goes with every message to a subscriber.
    pub(crate) fn notice(&self, state: &State) -> Notice {
        Notice {
            number: state.notices,
            renew_after_seconds: self.config().probing.renew_after_seconds(),
            partial: !state.changes.is_loaded(),
            issues: state.issues.clone(),
        }
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
        let mut state = self.lock();
        while tickets.len() < most {
            match state.services.take_due(now) {
                Some(Due::Probe(ticket)) => tickets.push(ticket),
                Some(Due::Forget(service, instance, registration_id)) => {
                    let (instance, why) = (Some(instance), Removal::Forgotten);
                    // It waits for the store like any other; when that fails, its turn comes again.
                    self.enqueue(&mut state, Operation::Remove { service, instance, registration_id, why }, None);
                }
                Some(Due::Kept) => {}
                None => break,
            }
        }
        self.publish(state);
        tickets
    }

    /// Notes what a probe saw that began at `began`.
    pub(crate) fn record(&self, ticket: &Ticket, seen: &Seen, began: Instant, jitter: f64) {
        let mut state = self.lock();
        let recorded = state.services.record(ticket, seen, began, moment(), jitter);
        self.store_soon(&mut state);
        self.publish(state);
        // A late answer says nothing about the registration that holds now.
        let Some(recorded) = recorded else { return };
        self.telemetry().probed(ticket, seen, recorded.misses);
        if let Some(transition) = &recorded.transition {
            self.telemetry().transition(&ticket.service, &ticket.instance, transition);
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

/// What is to be done about a registration.
enum Decided {
    /// Nothing more; the version that carries the service.
    Answered(Box<v1::RegisterResponse>, u64),
    /// It counts once it is durable.
    Waits(Box<Registering>),
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

/// A registration_id names one instance's registration.
fn of_one_instance(instance: Option<&InstanceId>, registration_id: &str) -> Result<(), Refusal> {
    if instance.is_none() && !registration_id.is_empty() {
        let fault = Fault::new("registration_id", Code::Validation, "a registration_id is one instance's: name the instance");
        return Err(fault.into());
    }
    Ok(())
}

/// What an answer says once the registration is applied.
fn fill(answer: &mut v1::RegisterResponse, applied: &Applied) {
    answer.registration_id = applied.registration_id.to_string();
    answer.status = applied.state.name().into();
    answer.version = applied.version;
}

#[cfg(test)]
pub(crate) mod tests;
