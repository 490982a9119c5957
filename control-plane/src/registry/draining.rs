//! Drain and farewell: no new requests, those in flight to their end (DESIGN §4).
//!
//! Here: whose drain it is, waiting for the data planes, deregistering after a farewell. Not here: counting requests.

use std::collections::HashMap;

use super::*;
use crate::identity::Identity;

/// What is waited for requests in flight when nobody says how long.
pub const DRAIN_SECONDS: u32 = 30;
/// The longest that is waited for them.
pub const MOST_DRAIN_SECONDS: u32 = 300;
/// Drains of one instance, or of one whole service, that are waited for at once: each waits on when whoever asked has
/// gone, so who asks again and again would fill the memory.
const MOST_AT_ONCE: usize = 16;

/// What is being drained, and how often at once; whole services without an instance.
pub(super) type Underway = HashMap<(ServiceName, Option<InstanceId>), usize>;

/// Whose drain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// An operator's: kept until it is undone.
    Operator,
    /// The service's own farewell: deregistered at its end.
    Itself,
}

impl Registry {
    /// Drains instances, or takes an operator's drain back: see `DrainRequest`.
    ///
    /// Errors: VALIDATION_ERROR, NOT_FOUND, STALE_REGISTRATION, UNAUTHORIZED and FORBIDDEN, STORE_UNAVAILABLE; and
    /// SERVICE_UNAVAILABLE while too many wait for the same already.
    pub async fn drain(&self, peer: &Peer, request: v1::DrainRequest) -> Result<v1::DrainResponse, Refusal> {
        let answer = self.try_drain(peer, &request).await;
        if let Err(refusal) = &answer {
            self.telemetry().drain_refused(&request.service, peer.address, refusal);
        }
        answer
    }

    async fn try_drain(&self, peer: &Peer, request: &v1::DrainRequest) -> Result<v1::DrainResponse, Refusal> {
        let (service, instance) = names(&request.service, &request.instance)?;
        let action = match (request.undo, &instance) {
            (true, _) => Action::Undrain,
            (false, None) => Action::DrainService,
            (false, Some(_)) => Action::Drain,
        };
        let identity = authorize(&self.config(), peer, action, Some(&service))?.identity;
        let wait = check(instance.as_ref(), request)?;
        if request.undo {
            let name = service.to_string();
            let (instances, version) = self.change(Operation::Drain { service, instance, on: false }).await?;
            self.installed(version).await;
            return Ok(answer(name, &instances, version));
        }
        // Whoever names the registration speaks for the service itself, also where a loopback peer is operator.
        let by = if identity == Identity::Operator && request.registration_id.is_empty() { By::Operator } else { By::Itself };
        let (registry, registration_id) = (self.clone(), request.registration_id.clone());
        let begun = self.begin_drain(&service, instance.as_ref(), &registration_id)?;
        // To its end, even if whoever asked goes away meanwhile: a service that takes its leave often does.
        let drained = tokio::spawn(async move {
            let _begun = begun;
            registry.drain_to_the_end(by, service, instance, &registration_id, wait).await
        });
        drained.await.unwrap_or_else(|_| Err(Refusal::one(Code::Internal, "draining broke off")))
    }

    /// Counts a drain for as long as the answer lives.
    fn begin_drain(&self, service: &ServiceName, instance: Option<&InstanceId>, registration_id: &str) -> Result<Begun, Refusal> {
        let mut state = self.lock();
        state.services.named(service, instance, registration_id)?;
        let what = (service.clone(), instance.cloned());
        let count = state.underway.entry(what.clone()).or_default();
        if *count >= MOST_AT_ONCE {
            let message = format!("{MOST_AT_ONCE} drains of the same are waited for already");
            return Err(Refusal { retry_after: Some(Duration::from_secs(1)), ..Refusal::one(Code::Unavailable, message) });
        }
        *count += 1;
        drop(state);
        Ok(Begun { registry: self.clone(), what })
    }

    async fn drain_to_the_end(
        &self,
        by: By,
        service: ServiceName,
        instance: Option<InstanceId>,
        registration_id: &str,
        wait: Duration,
    ) -> Result<v1::DrainResponse, Refusal> {
        let (name, deadline) = (service.to_string(), Instant::now() + wait);
        if by == By::Operator {
            let (instances, version) = self.change(Operation::Drain { service, instance, on: true }).await?;
            let in_flight = self.idle(&name, &instances, version, deadline).await;
            return Ok(v1::DrainResponse { in_flight, ..answer(name, &instances, version) });
        }
        let leaving = self.leave(&service, instance.as_ref(), registration_id)?;
        let ids: Vec<_> = leaving.instances.iter().map(|(id, _)| id.clone()).collect();
        let in_flight = self.idle(&name, &ids, leaving.version, deadline).await;
        ids.iter().for_each(|id| self.telemetry().drained(&service, id, false, in_flight));
        let mut answer = v1::DrainResponse { in_flight, ..answer(name, &ids, leaving.version) };
        for (id, registration_id) in leaving.instances {
            answer.deregistered |= self.farewell(&service, id, registration_id, &mut answer.version).await?;
        }
        self.installed(answer.version).await;
        Ok(answer)
    }

    /// Marks instances as leaving. It needs no store: after a restart of furt there is nobody left to drain.
    fn leave(&self, service: &ServiceName, instance: Option<&InstanceId>, registration_id: &str) -> Result<Leaving, Refusal> {
        let mut state = self.lock();
        let ids = state.services.named(service, instance, registration_id)?;
        state.services.leave(service, &ids);
        let held = state.services.get(service.as_str()).into_iter().flat_map(|service| &service.instances);
        let leaving = held.filter(|(id, _)| ids.contains(id)).map(|(id, instance)| (id.clone(), instance.registration_id.clone()));
        let instances = leaving.collect();
        let version = self.publish(state);
        Ok(Leaving { instances, version })
    }

    /// Deregisters one that has left, unless it has registered again meanwhile: `false`.
    async fn farewell(&self, service: &ServiceName, id: InstanceId, registration_id: Arc<str>, version: &mut u64) -> Result<bool, Refusal> {
        let remove = Operation::Remove { service: service.clone(), instance: Some(id), registration_id, why: Removal::Left };
        match self.change(remove).await {
            Ok((removed, removed_at)) => {
                *version = (*version).max(removed_at);
                Ok(!removed.is_empty())
            }
            // Somebody else was quicker.
            Err(refusal) if matches!(refusal.code(), Code::NotFound | Code::StaleRegistration) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Waits until no request is in flight to drained instances, at most until `deadline`; how many still are. Those
    /// that are drained no more meanwhile, or gone, are waited for no longer.
    async fn idle(&self, service: &str, ids: &[InstanceId], version: u64, deadline: Instant) -> u32 {
        let in_flight_now = || {
            let state = self.lock();
            let instances = state.services.get(service).map(|service| &service.instances);
            let drained = ids.iter().filter_map(|id| instances?.get(id)).filter(|instance| instance.is_drained());
            let numbers: Vec<u32> = drained.map(|instance| instance.number).collect();
            if numbers.is_empty() { Some(0) } else { state.planes.in_flight(service, &numbers, version) }
        };
        let mut counted = self.shared.counted.subscribe();
        let mut in_flight = None;
        let idle = async {
            loop {
                counted.mark_unchanged();
                in_flight = in_flight_now();
                if in_flight == Some(0) || counted.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = idle => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = self.shared.closed.cancelled() => {}
        }
        in_flight.unwrap_or(0)
    }
}

/// A drain that is counted as under way until this is dropped.
struct Begun {
    registry: Registry,
    what: (ServiceName, Option<InstanceId>),
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        match state.underway.get_mut(&self.what) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(state.underway.remove(&self.what)),
        }
    }
}

/// Instances that take their leave, and since which version.
struct Leaving {
    instances: Vec<(InstanceId, Arc<str>)>,
    version: u64,
}

fn answer(service: String, instances: &[InstanceId], version: u64) -> v1::DrainResponse {
    let instances = instances.iter().map(ToString::to_string).collect();
    v1::DrainResponse { service, instances, version, in_flight: 0, deregistered: false }
}

/// How long to wait, when what is asked goes together.
fn check(instance: Option<&InstanceId>, request: &v1::DrainRequest) -> Result<Duration, Refusal> {
    of_one_instance(instance, &request.registration_id)?;
    if request.undo && !request.registration_id.is_empty() {
        let message = "an operator's drain is the instance's, whatever its registration: leave it out";
        return Err(Fault::new("registration_id", Code::Validation, message).into());
    }
    let seconds = request.seconds.unwrap_or(DRAIN_SECONDS);
    if seconds > MOST_DRAIN_SECONDS {
        let fault = Fault::new("seconds", Code::Validation, format!("expected 0 to {MOST_DRAIN_SECONDS}, got {seconds}"));
        return Err(fault.into());
    }
    Ok(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::FutureExt;

    use super::*;
    use crate::registry::tests::{config, local, request};

    /// A data plane that says what the test makes it say.
    struct Plane(Registry, u64);

    impl Plane {
        fn says(&self, version: u64, requests: &[(u32, u32)]) {
            let in_flight = requests.iter().map(|(instance, requests)| v1::InFlight {
                service: "sagjan".into(),
                instance: *instance,
                requests: *requests,
            });
            let request = v1::WatchRequest { version, counted: true, in_flight: in_flight.collect(), ..Default::default() };
            self.0.heard(self.1, &request);
        }
    }

    async fn two_instances() -> (Registry, Vec<v1::RegisterResponse>) {
        let registry = Registry::new(config());
        let mut answers = Vec::new();
        for instance in ["a", "b"] {
            let request = v1::RegisterRequest { instance: instance.into(), ..request("sagjan", 7812, &["GET /api/*"]) };
            answers.push(registry.try_it(request).await.unwrap());
        }
        (registry, answers)
    }

    fn of(instance: &str, registration_id: &str) -> v1::DrainRequest {
        v1::DrainRequest {
            service: "sagjan".into(),
            instance: instance.into(),
            registration_id: registration_id.into(),
            ..Default::default()
        }
    }

    fn drained(registry: &Registry) -> BTreeSet<String> {
        let instances = registry.get_service("sagjan").unwrap().instances;
        instances.into_iter().filter(|instance| instance.drained).map(|instance| instance.id).collect()
    }

    async fn draining(registry: &Registry, request: v1::DrainRequest) -> tokio::task::JoinHandle<Result<v1::DrainResponse, Refusal>> {
        let (task, version) = (registry.clone(), registry.stamp().version);
        let task = tokio::spawn(async move { task.drain(&local(), request).await });
        let mut changed = registry.follow();
        while changed.borrow_and_update().version == version {
            changed.changed().await.unwrap();
        }
        task
    }

    #[tokio::test(start_paused = true)]
    async fn a_farewell_waits_for_every_data_plane_and_deregisters() {
        let (registry, answers) = two_instances().await;
        let planes = [Plane(registry.clone(), registry.attach(false)), Plane(registry.clone(), registry.attach(false))];
        let task = draining(&registry, of("a", &answers[0].registration_id)).await;
        assert_eq!(drained(&registry), ["a".to_owned()].into());
        let version = registry.stamp().version;
        planes[0].says(version, &[]);
        planes[1].says(version - 1, &[]);
        planes[1].says(version, &[(1, 2)]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!task.is_finished(), "one of the two has requests in flight");
        planes[1].says(version, &[]);
        let answer = task.await.unwrap().unwrap();
        assert_eq!((answer.in_flight, answer.deregistered, answer.instances), (0, true, vec!["a".to_owned()]));
        assert_eq!(registry.get_service("sagjan").unwrap().instances.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_no_longer_than_asked_and_for_no_plane_that_has_left() {
        let (registry, answers) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        let began = Instant::now();
        let request = v1::DrainRequest { seconds: Some(7), ..of("a", &answers[0].registration_id) };
        let task = draining(&registry, request).await;
        plane.says(registry.stamp().version, &[(1, 3)]);
        let answer = task.await.unwrap().unwrap();
        assert_eq!((answer.in_flight, answer.deregistered, began.elapsed()), (3, true, Duration::from_secs(7)));
        let task = draining(&registry, of("b", &answers[1].registration_id)).await;
        registry.detach(plane.1);
        assert!(task.await.unwrap().unwrap().deregistered);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operators_drain_outlives_renewals_and_new_starts_until_it_is_undone() {
        let (registry, _) = two_instances().await;
        let answer = registry.drain(&local(), of("a", "")).await.unwrap();
        assert_eq!((answer.deregistered, answer.in_flight), (false, 0));
        for port in [7812, 7899] {
            let again = v1::RegisterRequest { instance: "a".into(), ..request("sagjan", port, &["GET /api/*"]) };
            registry.try_it(again).await.unwrap();
            assert_eq!(drained(&registry), ["a".to_owned()].into(), "{port}");
        }
        registry.drain(&local(), v1::DrainRequest { service: "sagjan".into(), ..Default::default() }).await.unwrap();
        assert_eq!(drained(&registry).len(), 2, "a whole service");
        registry.drain(&local(), v1::DrainRequest { service: "sagjan".into(), undo: true, ..Default::default() }).await.unwrap();
        assert!(drained(&registry).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_operators_drain_and_a_farewell_do_not_undo_each_other() {
        let (registry, answers) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        let undo = v1::DrainRequest { service: "sagjan".into(), undo: true, ..Default::default() };
        // Whoever takes the drain of the whole service back sends nothing to a process that is about to end.
        let leaving = draining(&registry, of("a", &answers[0].registration_id)).await;
        plane.says(registry.stamp().version, &[(1, 1)]);
        registry.drain(&local(), undo).await.unwrap();
        assert_eq!(drained(&registry), ["a".to_owned()].into());
        plane.says(registry.stamp().version, &[]);
        assert!(leaving.await.unwrap().unwrap().deregistered);
        // A service that registers after its farewell is drained as an operator left it.
        let operator = draining(&registry, of("b", "")).await;
        let leaving = tokio::spawn({
            let (registry, farewell) = (registry.clone(), of("b", &answers[1].registration_id));
            async move { registry.drain(&local(), farewell).await }
        });
        while !registry.lock().services.is_leaving(&"sagjan".parse().unwrap(), &"b".parse().unwrap(), &answers[1].registration_id) {
            tokio::task::yield_now().await;
        }
        let again = v1::RegisterRequest { instance: "b".into(), ..request("sagjan", 7812, &["GET /api/*"]) };
        registry.try_it(again).await.unwrap();
        plane.says(registry.stamp().version, &[]);
        assert!(!leaving.await.unwrap().unwrap().deregistered);
        assert!(!operator.await.unwrap().unwrap().deregistered);
        assert_eq!(drained(&registry), ["b".to_owned()].into());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_what_is_drained_no_more() {
        let (registry, _) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        let began = Instant::now();
        let task = draining(&registry, of("a", "")).await;
        plane.says(registry.stamp().version, &[(1, 5)]);
        registry.drain(&local(), v1::DrainRequest { undo: true, ..of("a", "") }).await.unwrap();
        // It counts no longer what is drained nowhere.
        registry.heard(plane.1, &v1::WatchRequest { version: registry.stamp().version, ..Default::default() });
        assert_eq!(task.await.unwrap().unwrap().in_flight, 0);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_after_the_farewell_goes_on() {
        let (registry, answers) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        let task = draining(&registry, of("a", &answers[0].registration_id)).await;
        let again = v1::RegisterRequest { instance: "a".into(), ..request("sagjan", 7812, &["GET /api/*"]) };
        registry.try_it(again).await.unwrap();
        plane.says(registry.stamp().version, &[]);
        assert!(!task.await.unwrap().unwrap().deregistered);
        assert!(drained(&registry).is_empty());
        assert_eq!(registry.get_service("sagjan").unwrap().instances.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_and_again_is_refused_and_the_others_are_not() {
        let (registry, answers) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        // Whoever asked goes away at once; what was asked goes on.
        let farewell = v1::DrainRequest { seconds: Some(300), ..of("a", &answers[0].registration_id) };
        for _ in 0..MOST_AT_ONCE {
            assert!(registry.drain(&local(), farewell.clone()).now_or_never().is_none());
        }
        let refused = registry.drain(&local(), farewell).await.unwrap_err();
        assert_eq!((refused.code(), refused.retry_after_seconds()), (Code::Unavailable, Some(1)));
        let other = draining(&registry, of("b", &answers[1].registration_id)).await;
        plane.says(registry.stamp().version, &[]);
        assert!(other.await.unwrap().unwrap().deregistered);
        while !registry.lock().underway.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(registry.get_service("sagjan").is_err(), "both have left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_data_plane_is_not_remembered_for_what_nobody_drains() {
        let (registry, answers) = two_instances().await;
        let plane = Plane(registry.clone(), registry.attach(false));
        plane.says(u64::MAX, &[(1, 0)]);
        let task = draining(&registry, of("a", &answers[0].registration_id)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!task.is_finished(), "nor believed before it can know");
        plane.says(registry.stamp().version, &[(1, 2), (2, 3), (77, 1)]);
        assert_eq!(registry.lock().planes.remembered(), 1);
        plane.says(registry.stamp().version, &[]);
        assert!(task.await.unwrap().unwrap().deregistered);
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let (registry, answers) = two_instances().await;
        let check = async |request: v1::DrainRequest, expected: Code| {
            assert_eq!(registry.drain(&local(), request).await.unwrap_err().code(), expected);
            assert!(drained(&registry).is_empty());
        };
        check(of("a", "01J"), Code::StaleRegistration).await;
        check(of("a", &answers[1].registration_id), Code::StaleRegistration).await;
        check(of("c", ""), Code::NotFound).await;
        check(of("", &answers[0].registration_id), Code::Validation).await;
        check(v1::DrainRequest { seconds: Some(301), ..of("a", "") }, Code::Validation).await;
        check(v1::DrainRequest { service: "Obr".into(), ..of("a", "") }, Code::Validation).await;
        check(v1::DrainRequest { undo: true, ..of("a", &answers[0].registration_id) }, Code::Validation).await;
    }
}
