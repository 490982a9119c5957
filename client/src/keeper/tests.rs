//! A keeper and a furt of its own, over memory instead of sockets, in paused time.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use furt_proto::v1::{
    self, RegisterResponse, SessionRequest, SessionResponse, registry_service_server::RegistryService,
    registry_service_server::RegistryServiceServer, session_request::Message as Said, session_response::Message as Heard,
};
use futures_util::{StreamExt, stream::BoxStream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming, async_trait, transport::Endpoint};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::state::{Reason, Refusal, Registration};

const LONG: Duration = Duration::from_secs(3600);
const URL: &str = "http://127.0.0.1:7812";

/// What furt does with a session.
#[derive(Clone)]
enum Plan {
    Accept,
    Refuse(Status),
    /// Accepts it and then hears no sign of life.
    Deaf,
    /// Never answers.
    Mute,
}

#[derive(Default)]
struct Seen {
    /// What was said in sessions, and unary drains, in order.
    said: Vec<String>,
    /// When each session was opened.
    opened: Vec<Instant>,
    authorization: Vec<Option<String>>,
}

#[derive(Clone)]
struct Furt(Arc<Inner>);

struct Inner {
    /// What it does with the next sessions; the last one stays.
    plans: Mutex<VecDeque<Plan>>,
    seen: Mutex<Seen>,
    /// Connections that will not be made any more: it is down.
    down: Mutex<bool>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    /// The open sessions' way back.
    sessions: Mutex<Vec<mpsc::Sender<Result<SessionResponse, Status>>>>,
    starts: Mutex<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Furt {
    fn start(plans: impl IntoIterator<Item = Plan>) -> Self {
        Self(Arc::new(Inner {
            plans: Mutex::new(plans.into_iter().collect()),
            seen: Mutex::default(),
            down: Mutex::new(false),
            connections: Mutex::default(),
            sessions: Mutex::default(),
            starts: Mutex::new(1),
        }))
    }

    fn registrar(&self) -> Registrar {
        let furt = self.clone();
        let connect = move |endpoint: Endpoint| -> futures_util::future::BoxFuture<'static, _> {
            let furt = furt.clone();
            let connector = tower::service_fn(move |_| std::future::ready(furt.accept().map(TokioIo::new)));
            Box::pin(async move { endpoint.connect_with_connector(connector).await })
        };
        Registrar::with("furt:7810", Arc::new(connect)).unwrap()
    }

    fn accept(&self) -> io::Result<DuplexStream> {
        if *lock(&self.0.down) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let service = TowerToHyperService::new(RegistryServiceServer::new(self.clone()));
        let serving = async move {
            // It ends with the connection, in whatever way.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(ours), service).await;
        };
        lock(&self.0.connections).push(tokio::spawn(serving));
        Ok(theirs)
    }

    /// A listener whose connections lead nowhere: made, and never read from.
    fn black_hole() -> (Registrar, Arc<Mutex<Vec<DuplexStream>>>) {
        let held = Arc::<Mutex<Vec<DuplexStream>>>::default();
        let keep = held.clone();
        let connect = move |endpoint: Endpoint| -> futures_util::future::BoxFuture<'static, _> {
            let keep = keep.clone();
            let connector = tower::service_fn(move |_| {
                let (theirs, ours) = tokio::io::duplex(64 * 1024);
                lock(&keep).push(ours);
                std::future::ready(Ok::<_, io::Error>(TokioIo::new(theirs)))
            });
            Box::pin(async move { endpoint.connect_with_connector(connector).await })
        };
        (Registrar::with("furt:7810", Arc::new(connect)).unwrap(), held)
    }

    /// kill -9: every connection breaks, none is taken.
    fn kill(&self) {
        *lock(&self.0.down) = true;
        lock(&self.0.sessions).clear();
        lock(&self.0.connections).drain(..).for_each(|connection| connection.abort());
    }

    /// Ends every session in order, as furt does on SIGTERM.
    fn close_sessions(&self) {
        for session in lock(&self.0.sessions).drain(..) {
            // It may have ended by itself.
            let _ = session.try_send(Err(Status::unavailable("furt shuts down")));
        }
    }

    fn start_again(&self) {
        *lock(&self.0.starts) += 1;
        *lock(&self.0.down) = false;
    }

    fn said(&self) -> Vec<String> {
        lock(&self.0.seen).said.clone()
    }

    fn opened(&self) -> Vec<Instant> {
        lock(&self.0.seen).opened.clone()
    }

    async fn tell(&self, message: Heard) {
        let session = lock(&self.0.sessions).last().unwrap().clone();
        session.send(Ok(SessionResponse { message: Some(message) })).await.unwrap();
    }

    fn note(&self, what: impl Into<String>) {
        lock(&self.0.seen).said.push(what.into());
    }

    fn epoch(&self) -> String {
        format!("epoch-{}", lock(&self.0.starts))
    }

    fn answer(&self, plan: &Plan, said: Said) -> Option<Result<Heard, Status>> {
        match said {
            Said::Register(request) => {
                self.note(format!("register {}", request.service));
                let RegisterRequest { service, .. } = request;
                let registered = RegisterResponse {
                    service,
                    instance: "default".into(),
                    registration_id: format!("id-{}", lock(&self.0.starts)),
                    status: "UNKNOWN".into(),
                    epoch: self.epoch(),
                    version: 7,
                    ..Default::default()
                };
                Some(Ok(Heard::Registered(registered)))
            }
            Said::KeepAlive(_) => {
                self.note("keep alive");
                let standing = v1::session_response::State { status: "UP".into(), epoch: self.epoch(), version: 8, drained: false };
                (!matches!(plan, Plan::Deaf)).then_some(Ok(Heard::State(standing)))
            }
            Said::Farewell(farewell) => {
                self.note(format!("farewell {:?}", farewell.seconds));
                let drained = DrainResponse { service: "comments".into(), deregistered: true, ..Default::default() };
                (!matches!(plan, Plan::Deaf)).then_some(Ok(Heard::Drained(drained)))
            }
        }
    }
}

#[async_trait]
impl RegistryService for Furt {
    type SessionStream = BoxStream<'static, Result<SessionResponse, Status>>;
    type WatchEventsStream = BoxStream<'static, Result<v1::WatchEventsResponse, Status>>;

    async fn session(&self, request: Request<Streaming<SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
        let plan = {
            let mut plans = lock(&self.0.plans);
            if plans.len() > 1 { plans.pop_front().unwrap() } else { plans[0].clone() }
        };
        {
            let mut seen = lock(&self.0.seen);
            seen.opened.push(Instant::now());
            seen.authorization.push(request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned()));
        }
        let (back, answers) = mpsc::channel(16);
        match plan.clone() {
            Plan::Refuse(status) => return Err(status),
            Plan::Mute => std::future::pending::<()>().await,
            Plan::Accept | Plan::Deaf => {}
        }
        // A weak one: the session ends when `sessions` forgets it.
        let weak = back.downgrade();
        lock(&self.0.sessions).push(back);
        let (furt, mut inbound) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(SessionRequest { message: Some(said) })) = inbound.next().await {
                let (Some(back), Some(answer)) = (weak.upgrade(), furt.answer(&plan, said)) else { continue };
                let _ = back.send(answer.map(|message| SessionResponse { message: Some(message) })).await;
            }
            furt.note("over");
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let DrainRequest { service, instance, registration_id, seconds, .. } = request.into_inner();
        self.note(format!("drain {service} {instance} {registration_id} {seconds:?}"));
        Ok(Response::new(DrainResponse { service, instances: vec![instance], deregistered: true, ..Default::default() }))
    }

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn deregister(&self, _: Request<v1::DeregisterRequest>) -> Result<Response<v1::DeregisterResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_service(&self, _: Request<v1::GetServiceRequest>) -> Result<Response<v1::GetServiceResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_services(&self, _: Request<v1::ListServicesRequest>) -> Result<Response<v1::ListServicesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_routes(&self, _: Request<v1::ListRoutesRequest>) -> Result<Response<v1::ListRoutesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn watch_events(&self, _: Request<v1::WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A keeper that runs.
struct Kept {
    state: watch::Receiver<State>,
    shutdown: CancellationToken,
    keeping: JoinHandle<Option<DrainResponse>>,
}

fn comments() -> RegisterRequest {
    RegisterRequest { service: "comments".into(), url: URL.into(), ..Default::default() }
}

impl Kept {
    fn by(registrar: &Registrar) -> Self {
        let keeper = registrar.keep(comments()).drain_for(Duration::from_secs(20));
        let (state, shutdown) = (keeper.state(), CancellationToken::new());
        let keeping = tokio::spawn(keeper.run(shutdown.clone()));
        Self { state, shutdown, keeping }
    }

    /// The state once it is one of these; how long that took is paused time.
    async fn until(&mut self, wanted: impl FnMut(&State) -> bool) -> State {
        let found = tokio::time::timeout(LONG, self.state.wait_for(wanted)).await.expect("it comes to that");
        found.expect("the keeper runs").clone()
    }

    async fn registered(&mut self, epoch: &str) -> Registration {
        let wanted = |state: &State| matches!(state, State::Registered(registration) if registration.epoch == epoch);
        match self.until(wanted).await {
            State::Registered(registration) => registration,
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&mut self) -> String {
        match self.until(|state| matches!(state, State::Lost(_))).await {
            State::Lost(cause) => cause,
            other => panic!("{other:?}"),
        }
    }

    async fn leave(self) -> Option<DrainResponse> {
        self.shutdown.cancel();
        tokio::time::timeout(LONG, self.keeping).await.expect("it ends").expect("without a panic")
    }
}

#[tokio::test(start_paused = true)]
async fn it_registers_gives_signs_of_life_and_tells_how_it_stands() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar().token("s3cret").unwrap());
    let registration = kept.registered("epoch-1").await;
    assert_eq!((registration.status.as_str(), registration.registration_id.as_str()), ("UNKNOWN", "id-1"));

    let up = kept.until(|state| matches!(state, State::Registered(registration) if registration.status == "UP")).await;
    let expected =
        Registration { registration_id: "id-1".into(), status: "UP".into(), drained: false, epoch: "epoch-1".into(), version: 8 };
    assert_eq!(up, State::Registered(expected), "a keep-alive is answered with the state");
    furt.tell(Heard::State(v1::session_response::State { status: "UP".into(), epoch: "epoch-1".into(), version: 9, drained: true })).await;
    kept.until(|state| matches!(state, State::Registered(Registration { drained: true, version: 9, .. }))).await;

    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(furt.opened().len(), 1, "one session all the while");
    assert_eq!(lock(&furt.0.seen).authorization, [Some("Bearer s3cret".to_owned())]);
    assert!(kept.state.borrow().is_registered());
}

#[tokio::test(start_paused = true)]
async fn nothing_changes_hands_when_nothing_changed() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    kept.until(|state| matches!(state, State::Registered(registration) if registration.status == "UP")).await;
    kept.state.mark_unchanged();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(furt.said().iter().filter(|said| *said == "keep alive").count() >= 6);
    assert!(!kept.state.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn it_registers_again_after_a_crash_of_furt() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    kept.registered("epoch-1").await;
    tokio::time::sleep(Duration::from_secs(60)).await;

    furt.kill();
    kept.lost().await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(furt.opened().len(), 1);
    furt.start_again();
    let began = Instant::now();
    kept.registered("epoch-2").await;
    assert!(began.elapsed() <= Duration::from_secs(10), "waits are bounded: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn it_registers_again_at_once_when_furt_ends_the_session_in_order() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    kept.registered("epoch-1").await;
    tokio::time::sleep(Duration::from_secs(60)).await;

    furt.start_again();
    let began = Instant::now();
    furt.close_sessions();
    kept.registered("epoch-2").await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_furt_that_ends_every_session_is_not_asked_in_a_circle() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        kept.until(State::is_registered).await;
        furt.close_sessions();
        assert_eq!(kept.lost().await, "furt shuts down");
    }
    // Full jitter: 60 s of waits of 5 s on average, after a handful of shorter ones.
    let opened = furt.opened().len();
    assert!((5..60).contains(&opened), "{opened} sessions in a minute");
}

#[tokio::test(start_paused = true)]
async fn attempts_come_further_and_further_apart() {
    let furt = Furt::start([Plan::Refuse(Status::unavailable("starting"))]);
    let _kept = Kept::by(&furt.registrar());
    tokio::time::sleep(Duration::from_secs(600)).await;
    let opened = furt.opened();
    let gaps: Vec<Duration> = opened.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (index, gap) in gaps.iter().enumerate() {
        let ceiling = Duration::from_millis(200).saturating_mul(2_u32.saturating_pow(index.try_into().unwrap()));
        // A timer of tokio's is a millisecond late.
        let ceiling = ceiling.min(Duration::from_secs(10)) + Duration::from_millis(2);
        assert!(*gap <= ceiling, "gap {index} is {gap:?}");
    }
    assert!((30..300).contains(&opened.len()), "{} attempts in ten minutes", opened.len());
    let late: Duration = gaps[gaps.len() - 20..].iter().sum();
    assert!(late > Duration::from_secs(20), "the last twenty took {late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_with_its_reasons_and_asked_again_slowly_until_it_is_mended() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("routes[0].path", "PERMISSION_NOT_GRANTED: outside the grant");
    let refused = Status::with_error_details(Code::PermissionDenied, "there is no grant", details);
    let furt = Furt::start([Plan::Refuse(refused.clone()), Plan::Refuse(refused), Plan::Accept]);
    let began = Instant::now();
    let mut kept = Kept::by(&furt.registrar());
    let state = kept.until(|state| matches!(state, State::Refused(_))).await;
    let reason = Reason { field: "routes[0].path".into(), description: "PERMISSION_NOT_GRANTED: outside the grant".into() };
    let expected = Refusal { code: Code::PermissionDenied, message: "there is no grant".into(), reasons: vec![reason] };
    assert_eq!(expected.to_string(), "PermissionDenied: there is no grant; routes[0].path: PERMISSION_NOT_GRANTED: outside the grant");
    assert_eq!(state, State::Refused(expected));

    kept.registered("epoch-1").await;
    let seconds = began.elapsed().as_secs();
    assert!((30..=60).contains(&seconds), "two waits of 15 to 30 s: {seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_furt_that_wants_to_be_asked_later_is() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "too many registrations", details);
    let furt = Furt::start([Plan::Refuse(busy), Plan::Accept]);
    let began = Instant::now();
    let mut kept = Kept::by(&furt.registrar());
    assert_eq!(kept.lost().await, "too many registrations");
    kept.registered("epoch-1").await;
    assert!((3_000..3_300).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_furt_that_has_vanished_without_a_word_is_noticed() {
    let (registrar, held) = Furt::black_hole();
    let mut kept = Kept::by(&registrar);
    let began = Instant::now();
    let cause = kept.lost().await;
    // An HTTP/2 ping after 10 s that is not answered within 10 s.
    assert!((10..=21).contains(&began.elapsed().as_secs()), "{:?}: {cause}", began.elapsed());
    assert_eq!(lock(&held).len(), 1, "on its first connection");
}

#[tokio::test(start_paused = true)]
async fn a_furt_that_answers_pings_and_nothing_else_is_noticed() {
    for plan in [Plan::Deaf, Plan::Mute] {
        let furt = Furt::start([plan, Plan::Accept]);
        let mut kept = Kept::by(&furt.registrar());
        let began = Instant::now();
        assert_eq!(kept.lost().await, "furt has said nothing for too long");
        assert_eq!(began.elapsed().as_secs(), 30);
        kept.registered("epoch-1").await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_says_farewell_and_waits_for_furt_to_have_drained_it() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    kept.registered("epoch-1").await;
    let state = kept.state.clone();
    let drained = kept.leave().await.expect("furt heard it");
    assert!(drained.deregistered);
    assert_eq!(furt.said()[..2], ["register comments", "farewell Some(20)"]);
    assert_eq!(*state.borrow(), State::Left);
}

#[tokio::test(start_paused = true)]
async fn a_farewell_that_is_not_answered_ends_all_the_same() {
    let furt = Furt::start([Plan::Deaf]);
    let mut kept = Kept::by(&furt.registrar());
    kept.registered("epoch-1").await;
    let began = Instant::now();
    assert_eq!(kept.leave().await, None);
    assert_eq!(began.elapsed().as_secs(), 25, "20 s to drain and 5 for the answer");
}

#[tokio::test(start_paused = true)]
async fn one_that_never_was_registered_does_not_wait_for_a_drain() {
    let furt = Furt::start([Plan::Mute]);
    let kept = Kept::by(&furt.registrar());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    assert_eq!(kept.leave().await, None);
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_says_farewell_by_its_registration() {
    let furt = Furt::start([Plan::Accept]);
    let mut kept = Kept::by(&furt.registrar());
    kept.registered("epoch-1").await;
    furt.kill();
    // Not by `start_again`: it is the same furt with the same registration.
    kept.lost().await;
    *lock(&furt.0.down) = false;
    assert!(kept.leave().await.is_some_and(|drained| drained.deregistered));
    assert_eq!(furt.said().last().unwrap(), "drain comments default id-1 Some(20)");
}

#[tokio::test(start_paused = true)]
async fn without_a_furt_it_ends_at_once() {
    let furt = Furt::start([Plan::Accept]);
    furt.kill();
    let mut kept = Kept::by(&furt.registrar());
    assert!(kept.lost().await.starts_with("Unavailable: no connection to furt:7810: "), "{:?}", kept.state.borrow());
    let began = Instant::now();
    assert_eq!(kept.leave().await, None);
    assert_eq!(began.elapsed(), Duration::ZERO);

    let mut kept = Kept::by(&furt.registrar());
    kept.lost().await;
    assert_eq!(furt.said(), [""; 0], "nothing was ever said");
}
