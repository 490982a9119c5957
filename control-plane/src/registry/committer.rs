//! Makes changes durable before they count (DESIGN §11).
//!
//! Here: what waits for the store, in rounds: admit against what is committed and what is pending, one sync for all of
//! the round with no lock held, apply, publish, answer. A failed round leaves nothing behind. Not here: reading the
//! store, and opening it anew after a fault (`recovery`), how it keeps things (`store`), decisions (`admission`), what
//! applying means (`services`).

use std::collections::{HashMap, HashSet, VecDeque};

use furt_proto::store::v1::InstanceRecord;
use prost::Message;
use tokio::sync::oneshot;
use ulid::Ulid;

use super::{
    recovery::note_issue,
    rules::{Verdict, readmit_one},
    *,
};
use crate::store::{Batch, Key, StoreError};

/// Changes that may wait; further ones are refused, so that no burst fills the memory.
const MOST_WAITING: usize = 4_096;
/// Changes of one round, those that are refused included: what is planned under one hold of the lock.
const MOST_IN_ROUND: usize = 256;
/// How often the store notes that furt runs: uptime after a crash counts up to then.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Why nothing is known and nothing is taken in the first moments.
const NOT_READ: &str = "the store has not been read yet; try again in a moment";

/// A change that counts once it is durable.
pub(super) enum Operation {
    /// Register, or change a registration.
    Register(Box<Registering>),
    /// Take one instance out, or the whole service.
    Remove { service: ServiceName, instance: Option<InstanceId>, registration_id: Arc<str>, why: Removal },
    /// An operator drains, or takes it back.
    Drain { service: ServiceName, instance: Option<InstanceId>, on: bool },
    /// Note that furt runs, and all that nobody waits for.
    Alive,
}

/// Why instances are taken out.
pub(super) enum Removal {
    /// Somebody asked for it.
    Asked { by: String },
    /// It said farewell and has no requests left. If it has registered again meanwhile, it stays.
    Left,
    /// It was parked for longer than `forget_parked_after`. If it has woken meanwhile, it stays.
    Forgotten,
}

impl Removal {
    /// Whether it is still to be done, where an instance may have come back before its round.
    fn holds(&self, services: &Services, service: &ServiceName, id: &InstanceId, registration_id: &str) -> bool {
        match self {
            Self::Asked { .. } => true,
            Self::Left => services.is_leaving(service, id, registration_id),
            Self::Forgotten => services.is_forgettable(service, id, registration_id),
        }
    }

    fn cause(&self) -> String {
        match self {
            Self::Asked { by } => format!("asked for by {by}"),
            Self::Left => "drained and took its leave".into(),
            Self::Forgotten => "parked for longer than forget_parked_after".into(),
        }
    }
}

/// A registration that was admitted when it was asked for; it is admitted again in its round.
pub(super) struct Registering {
    pub rules: Arc<Rules>,
    pub peer: Peer,
    pub draft: Draft,
    pub resolved: Option<Resolved>,
    pub admitted: Admitted,
    pub answer: v1::RegisterResponse,
}

/// What a change has done.
pub(super) enum Done {
    /// The answer, and the version that carries the service.
    Registered { answer: v1::RegisterResponse, carried_by: u64 },
    /// The instances it was about, and the version that says so.
    Changed { instances: Vec<InstanceId>, version: u64 },
}

type Answer = Result<Done, Refusal>;

struct Waiting {
    operation: Operation,
    /// `None`: nobody waits.
    answer: Option<oneshot::Sender<Answer>>,
}

/// What waits for the store, and how the store is.
pub(super) struct Changes {
    queue: VecDeque<Waiting>,
    /// Services with a change that waits or is being made durable, and how many.
    busy: HashMap<ServiceName, usize>,
    running: bool,
    pub(super) loaded: bool,
    /// What the store holds and this furt cannot read: kept for one that can.
    pub(super) foreign: Vec<(Key, Vec<u8>)>,
    /// Why nothing can be made durable for now, and since when.
    pub(super) outage: Option<(Instant, Arc<str>)>,
}

impl Changes {
    pub(super) fn new(loaded: bool) -> Self {
        Self { queue: VecDeque::new(), busy: HashMap::new(), running: false, loaded, foreign: Vec::new(), outage: None }
    }
    /// Whether the store was read.
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }
    /// Refuses to tell what is registered while the store was not read.
    pub(super) fn readable(&self) -> Result<(), Refusal> {
        if self.loaded {
            return Ok(());
        }
        let why = self.outage.as_ref().map_or(NOT_READ, |(_, why)| why);
        Err(store_unavailable(format!("what is registered is not known for now: {why}")))
    }
    /// Whether no change of a service waits or is under way.
    pub(super) fn is_quiet(&self, service: &ServiceName) -> bool {
        !self.busy.contains_key(service)
    }

    /// A record that this furt cannot read is no more once a registration has its place, whatever becomes of that.
    fn written_over(&mut self, registration: &Registration) {
        let place = (registration.service.as_str(), registration.instance.as_str());
        self.foreign.retain(|(key, _)| (key.service.as_str(), key.instance.as_str()) != place);
    }

    fn done_with(&mut self, service: Option<&ServiceName>) {
        let Some(service) = service else { return };
        match self.busy.get_mut(service) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.busy.remove(service)),
        }
    }
}

impl Operation {
    fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Register(registering) => Some(&registering.admitted.registration.service),
            Self::Remove { service, .. } | Self::Drain { service, .. } => Some(service),
            Self::Alive => None,
        }
    }
}

/// A change that was admitted in its round, with all that applying it needs.
enum Step {
    Register(Box<Registering>),
    Remove { service: ServiceName, instances: Vec<InstanceId>, why: Removal },
    Drain { service: ServiceName, instances: Vec<InstanceId>, on: bool },
    Alive,
}

impl Step {
    fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Register(registering) => Some(&registering.admitted.registration.service),
            Self::Remove { service, .. } | Self::Drain { service, .. } => Some(service),
            Self::Alive => None,
        }
    }
}

/// What is made durable with one sync.
#[derive(Default)]
struct Round {
    steps: Vec<(Step, Option<oneshot::Sender<Answer>>)>,
    /// Stored with them; nobody waits.
    dirty: Vec<(ServiceName, InstanceId)>,
    batch: Batch,
    /// What needs no store after all.
    settled: Vec<Settled>,
}

struct Settled {
    answer: Answer,
    to: Option<oneshot::Sender<Answer>>,
    told: Option<Told>,
}

/// What is told once the lock is free.
enum Told {
    Registered(Admitted, Applied),
    Removed { service: ServiceName, instances: Vec<InstanceId>, why: Removal, gone: bool, loosened: Vec<RouteKey> },
    Drained { service: ServiceName, instances: Vec<InstanceId>, on: bool },
    Admission(Verdict),
}

impl Registry {
    /// Waits until a change is durable, applied and published, or refused.
    pub(super) async fn submit(&self, operation: Operation) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.enqueue(&mut self.lock(), operation, Some(answer));
        answered.await.unwrap_or_else(|_| Err(Refusal::one(Code::Unavailable, "furt shuts down")))
    }

    /// The same for a change of instances.
    pub(super) async fn change(&self, operation: Operation) -> Result<(Vec<InstanceId>, u64), Refusal> {
        match self.submit(operation).await? {
            Done::Changed { instances, version } => Ok((instances, version)),
            Done::Registered { .. } => Err(Refusal::one(Code::Internal, "a change was taken for a registration")),
        }
    }

    /// Lets a change wait for its round; one that cannot wait is answered at once.
    pub(super) fn enqueue(&self, state: &mut State, operation: Operation, answer: Option<oneshot::Sender<Answer>>) {
        let changes = &mut state.changes;
        let refusal = match &changes.outage {
            Some((_, why)) => Some(unavailable(why)),
            None if !changes.loaded => Some(unavailable(NOT_READ)),
            None if changes.queue.len() >= MOST_WAITING => Some(unavailable("too many changes wait for the store; try again in a moment")),
            None => None,
        };
        if let Some(refusal) = refusal {
            return reply(answer, Err(refusal));
        }
        if let Some(service) = operation.service() {
            *changes.busy.entry(service.clone()).or_default() += 1;
        }
        changes.queue.push_back(Waiting { operation, answer });
        self.run_rounds(state);
    }

    /// Stores what is dirty, with nobody waiting for it.
    pub(super) fn store_soon(&self, state: &mut State) {
        if state.services.is_dirty() && state.changes.loaded && state.changes.outage.is_none() {
            self.run_rounds(state);
        }
    }

    fn run_rounds(&self, state: &mut State) {
        if !std::mem::replace(&mut state.changes.running, true) {
            // A task of its own: a caller that goes away takes nobody's change with it.
            tokio::spawn(self.clone().rounds());
        }
    }

    async fn rounds(self) {
        while let Some(mut round) = self.plan() {
            for Settled { answer, to, told } in std::mem::take(&mut round.settled) {
                self.tell(told);
                reply(to, answer);
            }
            if round.steps.is_empty() && round.dirty.is_empty() {
                continue;
            }
            let began = Instant::now();
            round.batch.alive_unix_ms = unix_ms_now();
            let batch = std::mem::take(&mut round.batch);
            match self.on_store(move |store| store.commit(&batch)).await {
                Ok(()) => {
                    self.telemetry().committed(began.elapsed(), round.steps.len() + round.dirty.len());
                    self.apply(round);
                }
                Err(error) => return self.abandon(round, &error),
            }
        }
    }

    /// The next round; `None` when there is nothing to do any more.
    fn plan(&self) -> Option<Round> {
        let mut held = self.lock();
        let state = &mut *held;
        let mut round = Round::default();
        let mut taken: HashSet<ServiceName> = HashSet::new();
        let mut later = VecDeque::new();
        for waiting in std::mem::take(&mut state.changes.queue) {
            let service = waiting.operation.service().cloned();
            // The second change of a service is planned on what the first has made of it.
            let full = round.steps.len() + round.settled.len() >= MOST_IN_ROUND;
            if full || service.as_ref().is_some_and(|service| taken.contains(service)) {
                later.push_back(waiting);
                continue;
            }
            match self.plan_one(state, waiting.operation, &mut round.batch) {
                Ok(step) => {
                    taken.extend(service);
                    round.steps.push((step, waiting.answer));
                }
                Err(settled) => {
                    state.changes.done_with(service.as_ref());
                    let (answer, told) = *settled;
                    round.settled.push(Settled { answer, to: waiting.answer, told });
                }
            }
        }
        state.changes.queue = later;
        let planned: HashSet<Key> = round.batch.puts.iter().map(|(key, _)| key).chain(&round.batch.deletes).cloned().collect();
        for (name, id, record) in state.services.take_dirty(MOST_IN_ROUND, Instant::now()) {
            // What is planned for an instance has all of it already, or takes it out.
            let key = key(&name, &id);
            if !planned.contains(&key) {
                round.batch.puts.push((key, record.encode_to_vec()));
            }
            round.dirty.push((name, id));
        }
        if round.steps.is_empty() && round.dirty.is_empty() && round.settled.is_empty() {
            state.changes.running = false;
            return None;
        }
        if !round.settled.is_empty() {
            // A renewal is durable already, so what it changed (it wakes, it goes on after a farewell) counts at once.
            self.publish(held);
            self.shared.due.notify_one();
        }
        Some(round)
    }

    /// Admits one change and says what the store is to hold; settled when it is refused or changes nothing.
    fn plan_one(&self, state: &mut State, operation: Operation, batch: &mut Batch) -> Result<Step, Box<(Answer, Option<Told>)>> {
        let refused = |refusal: Refusal| Box::new((Err(refusal), None));
        match operation {
            Operation::Alive => Ok(Step::Alive),
            Operation::Register(registering) => self.plan_registration(state, registering, batch),
            Operation::Remove { service, instance: Some(id), registration_id, why }
                if !why.holds(&state.services, &service, &id, &registration_id) =>
            {
                let version = state.services.publication().version();
                Err(Box::new((Ok(Done::Changed { instances: Vec::new(), version }), None)))
            }
            Operation::Remove { service, instance, registration_id, why } => {
                let instances = state.services.named(&service, instance.as_ref(), &registration_id).map_err(refused)?;
                batch.deletes.extend(instances.iter().map(|id| key(&service, id)));
                Ok(Step::Remove { service, instances, why })
            }
            Operation::Drain { service, instance, on } => {
                let instances = state.services.named(&service, instance.as_ref(), "").map_err(refused)?;
                let held = state.services.get(service.as_str()).into_iter().flat_map(|service| &service.instances);
                for (id, found) in held.filter(|(id, _)| instances.contains(id)) {
                    let record = InstanceRecord { drained: on, ..found.record(Instant::now()) };
                    batch.puts.push((key(&service, id), record.encode_to_vec()));
                }
                Ok(Step::Drain { service, instances, on })
            }
        }
    }

    fn plan_registration(
        &self,
        state: &mut State,
        mut registering: Box<Registering>,
        batch: &mut Batch,
    ) -> Result<Step, Box<(Answer, Option<Told>)>> {
        let Registering { rules, peer, draft, resolved, admitted, answer } = &mut *registering;
        let now = self.rules();
        let mut faults = Vec::new();
        if !Arc::ptr_eq(rules, &now) {
            // furt.conf has changed since it was asked for.
            let machine = ThisMachine::of(&now.config);
            faults.extend(now.admission.granted(&Who::Asks(peer), admitted.peer, draft, resolved.as_ref(), &machine));
            *rules = now;
        }
        let (unclaimed, warnings) = rules.admission.unclaimed(draft, &state.services);
        faults.extend(unclaimed);
        if !faults.is_empty() {
            return Err(Box::new((Err(faults.into()), None)));
        }
        answer.warnings = warnings;
        let (change, registration_id, _) = state.services.preview(&admitted.registration);
        let at = moment();
        if change == Change::Renewed {
            let applied = state.services.register(admitted.clone(), at);
            fill(answer, &applied);
            let done = Done::Registered { answer: answer.clone(), carried_by: applied.carried_by };
            return Err(Box::new((Ok(done), Some(Told::Registered(admitted.clone(), applied)))));
        }
        admitted.registration_id = match change {
            Change::Started => Ulid::from_parts(u64::try_from(at.unix_ms).unwrap_or(0), fastrand::u128(..)).to_string().into(),
            _ => registration_id,
        };
        admitted.order = state.services.next_order();
        let record = state.services.planned(admitted, at);
        state.services.reserve(&admitted.registration);
        batch.puts.push((key(&admitted.registration.service, &admitted.registration.instance), record.encode_to_vec()));
        Ok(Step::Register(registering))
    }

    /// What is durable counts now.
    fn apply(&self, round: Round) {
        let mut answers = Vec::with_capacity(round.steps.len());
        let mut told = Vec::with_capacity(round.steps.len());
        let mut state = self.lock();
        let now = self.rules();
        for (step, to) in round.steps {
            state.changes.done_with(step.service());
            let done = match step {
                Step::Register(registering) => {
                    let Registering { rules, admitted, mut answer, .. } = *registering;
                    state.changes.written_over(&admitted.registration);
                    let applied = state.services.register(admitted.clone(), moment());
                    fill(&mut answer, &applied);
                    let carried_by = applied.carried_by;
                    let registration = admitted.registration.clone();
                    told.push(Told::Registered(admitted, applied));
                    if !Arc::ptr_eq(&rules, &now) {
                        // furt.conf changed during the sync: it holds for this one as for all others.
                        told.extend(readmit_one(&now, &mut state.services, &registration).map(Told::Admission));
                    }
                    Done::Registered { answer, carried_by }
                }
                Step::Remove { service, instances, why } => {
                    let loosened = state.services.remove(&service, &instances);
                    let version = state.services.publication().version();
                    let gone = state.services.get(service.as_str()).is_none();
                    told.push(Told::Removed { service, instances: instances.clone(), why, gone, loosened });
                    Done::Changed { instances, version }
                }
                Step::Drain { service, instances, on } => {
                    state.services.drain(&service, &instances, on);
                    let version = state.services.publication().version();
                    told.push(Told::Drained { service, instances: instances.clone(), on });
                    Done::Changed { instances, version }
                }
                Step::Alive => Done::Changed { instances: Vec::new(), version: state.services.publication().version() },
            };
            answers.push((to, done));
        }
        self.publish(state);
        self.shared.due.notify_one();
        told.into_iter().for_each(|told| self.tell(Some(told)));
        answers.into_iter().for_each(|(to, done)| reply(to, Ok(done)));
    }

    /// Nothing of a round that is not durable counts, and the store is opened anew.
    fn abandon(&self, round: Round, error: &StoreError) {
        let why: Arc<str> = error.to_string().into();
        let mut state = self.lock();
        let changes = &mut state.changes;
        changes.running = false;
        changes.outage = Some((Instant::now(), why.clone()));
        changes.busy.clear();
        let waiting = std::mem::take(&mut changes.queue);
        for (step, _) in &round.steps {
            if let Step::Register(registering) = step {
                state.services.unreserve(&registering.admitted.registration);
            }
        }
        for (name, id) in &round.dirty {
            state.services.mark(name, id);
        }
        note_issue(&mut state, Some(&why));
        self.publish(state);
        self.telemetry().store_failed(error);
        let answers = round.steps.into_iter().map(|(_, to)| to).chain(waiting.into_iter().map(|waiting| waiting.answer));
        answers.for_each(|to| reply(to, Err(unavailable(&why))));
        tokio::spawn(self.clone().recover());
    }

    /// Runs something on the store, where it may block.
    pub(super) async fn on_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.shared.store.clone();
        let run = move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut **store)
        };
        if !self.shared.store_blocks {
            return run();
        }
        // A thread that broke off, or that shutdown did not let begin.
        let broken = |error: tokio::task::JoinError| Err(StoreError::Io { file: "the store".into(), cause: error.to_string() });
        tokio::task::spawn_blocking(run).await.unwrap_or_else(broken)
    }

    /// Notes in the store now and then that furt runs, until `shutdown`.
    pub(crate) async fn heartbeats(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
            // One that fails is told as every failure of the store.
            let _ = self.submit(Operation::Alive).await;
        }
    }

    /// Stores all that is known, at shutdown, as far as the store takes it.
    pub async fn flush(&self) {
        // What a failed commit has cost is made good now, or not at all.
        let broken = {
            let state = self.lock();
            state.changes.loaded && state.changes.outage.is_some()
        };
        if broken && self.reopen().await.is_err() {
            return;
        }
        // A round takes only some of what is dirty, and the one before it may be under way.
        let mut more = true;
        while more {
            more = self.lock().services.is_dirty();
            if self.submit(Operation::Alive).await.is_err() {
                return;
            }
        }
    }

    fn tell(&self, told: Option<Told>) {
        match told {
            None => {}
            Some(Told::Registered(admitted, applied)) => self.tell_registered(&admitted, &applied),
            Some(Told::Removed { service, instances, why, gone, loosened }) => {
                self.telemetry().deregistered(&service, &instances, &why.cause(), gone);
                if matches!(why, Removal::Forgotten) {
                    instances.iter().for_each(|id| self.telemetry().forgotten(&service, id));
                }
                // The last of those that went: which of them governed what is not worth keeping.
                instances.last().into_iter().for_each(|id| self.tell_loosened(&service, id, &loosened));
            }
            Some(Told::Drained { service, instances, on }) => {
                for id in &instances {
                    if on {
                        self.telemetry().drained(&service, id, true, 0);
                    } else {
                        self.telemetry().undrained(&service, id);
                    }
                }
            }
            Some(Told::Admission(verdict)) => self.tell_verdict(&verdict),
        }
    }
}

fn reply(to: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(to) = to {
        // Whoever asked may be gone; what was done holds.
        let _ = to.send(answer);
    }
}

pub(super) fn key(service: &ServiceName, instance: &InstanceId) -> Key {
    Key { service: service.to_string(), instance: instance.to_string() }
}

fn unavailable(why: &str) -> Refusal {
    store_unavailable(format!("nothing can be made durable for now: {why}"))
}

fn store_unavailable(message: String) -> Refusal {
    Refusal { retry_after: Some(Duration::from_secs(1)), ..Refusal::one(Code::StoreUnavailable, message) }
}

#[cfg(test)]
mod tests;
