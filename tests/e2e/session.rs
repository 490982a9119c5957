//! Sessions: the stream is the sign of life of a service (DESIGN §7).

use std::{net::SocketAddr, time::Duration};

use furt_proto::v1::{
    DrainResponse, GetServiceRequest, Instance, RegisterRequest, RegisterResponse, SessionRequest, SessionResponse,
    registry_service_client::RegistryServiceClient,
    session_request::{Farewell, KeepAlive, Message as Said},
    session_response::{Message as Heard, State},
};
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Code, Status, Streaming, codegen::tokio_stream::wrappers::ReceiverStream};

use crate::{
    client::Request,
    events::told,
    process::Process,
    upstream::{Reply, Upstream, answer, ok},
    world::{Conf, WEBSITE_KEY, World, eventually, grpc_registration},
};

/// Far more than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A session that a test holds, on a connection of its own; the connection is gone when it is dropped.
struct Session {
    says: Option<mpsc::Sender<SessionRequest>>,
    answers: Streaming<SessionResponse>,
    runtime: Runtime,
}

impl Session {
    fn open(internal: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (says, requests) = mpsc::channel(16);
        let answers = runtime.block_on(async {
            let mut client = RegistryServiceClient::connect(format!("http://{internal}")).await.expect("furt speaks h2c");
            client.session(ReceiverStream::new(requests)).await.expect("a session").into_inner()
        });
        Self { says: Some(says), answers, runtime }
    }

    #[track_caller]
    fn registered(internal: SocketAddr, registration: RegisterRequest) -> (Self, RegisterResponse) {
        let mut session = Self::open(internal);
        session.say(Said::Register(registration));
        match session.answer() {
            Ok(Some(Heard::Registered(answer))) => (session, answer),
            other => panic!("not registered: {other:?}"),
        }
    }

    fn say(&self, message: Said) {
        let request = SessionRequest { message: Some(message) };
        self.says.as_ref().expect("still talking").blocking_send(request).expect("the session is open");
    }

    fn answer(&mut self) -> Result<Option<Heard>, Status> {
        let answer = self.runtime.block_on(async { timeout(PATIENCE, self.answers.message()).await.expect("an answer in time") })?;
        Ok(answer.map(|answer| answer.message.expect("an answer says something")))
    }

    #[track_caller]
    fn state(&mut self) -> State {
        match self.answer() {
            Ok(Some(Heard::State(state))) => state,
            other => panic!("not a state: {other:?}"),
        }
    }

    /// What the session is told last, when what is told before that are states; then how it ends.
    #[track_caller]
    fn last(&mut self) -> (Option<DrainResponse>, Option<Status>) {
        let mut drained = None;
        loop {
            match self.answer() {
                Ok(Some(Heard::State(_))) => {}
                Ok(Some(Heard::Drained(answer))) => drained = Some(answer),
                Ok(Some(other)) => panic!("neither a state nor an end: {other:?}"),
                Ok(None) => return (drained, None),
                Err(status) => return (drained, Some(status)),
            }
        }
    }
}

fn alpha(instance: &str, url: &str) -> RegisterRequest {
    RegisterRequest { instance: instance.into(), ..grpc_registration("alpha", url, &["GET /api/alpha/* comments:read"]) }
}

/// What furt shows of alpha's instance; none when it is not registered.
fn instance(furt: &World, id: &str) -> Option<Instance> {
    let service = furt.grpc(async |mut client| client.get_service(GetServiceRequest { service: "alpha".into() }).await);
    let instances = service.ok()?.into_inner().service?.instances;
    instances.into_iter().find(|instance| instance.id == id)
}

/// The same of one that is registered.
#[track_caller]
fn held(furt: &World, id: &str) -> Instance {
    instance(furt, id).unwrap_or_else(|| panic!("alpha/{id} is not registered"))
}

/// Its status, and whether a session holds it and it is suspect.
fn how(instance: &Instance) -> (&str, bool, bool) {
    (&instance.status, instance.session, instance.suspect)
}

/// Waits until an instance of alpha is as it should be.
#[track_caller]
fn until(furt: &World, what: &str, id: &str, condition: impl Fn(&Instance) -> bool) -> Instance {
    eventually(what, || instance(furt, id).filter(|instance| condition(instance)))
}

/// Who answered a request to alpha.
#[track_caller]
fn answered_by(furt: &World) -> String {
    let answer = furt.get("/api/alpha/a");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().split('-').next().unwrap_or_default().to_owned()
}

/// Kinds of alpha's sessions and suspicions, up to an event that is pushed now.
fn sessions_told(furt: &World) -> Vec<String> {
    let upstream = Upstream::start("marker");
    furt.register("marker", &upstream.url(), &["GET /marker/*"]);
    let events = told(furt, "the marker", |event| event.service == "marker");
    let kinds = events.into_iter().filter(|event| event.service == "alpha").map(|event| event.kind);
    kinds.filter(|kind| kind.starts_with("SESSION") || kind == "SUSPECTED").collect()
}

#[test]
fn a_session_registers_and_is_told_the_state_asked_and_unasked() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let (mut session, registered) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    assert_eq!((registered.service.as_str(), registered.instance.as_str(), registered.routes), ("alpha", "one", 1));
    // The route can be used as soon as that is answered.
    assert_eq!(answered_by(&furt), "alpha GET /api/alpha/a");
    if registered.status != "UP" {
        assert_eq!(session.state().status, "UP");
    }
    session.say(Said::KeepAlive(KeepAlive {}));
    let state = session.state();
    assert_eq!((state.status.as_str(), state.drained, &state.epoch), ("UP", false, &registered.epoch));
    assert_eq!(how(&held(&furt, "one")), ("UP", true, false));

    // Changes and renewals go the same way, and only of what the session began with.
    let more = RegisterRequest {
        routes: grpc_registration("", "", &["GET /api/alpha/*", "GET /api/beta/*"]).routes,
        ..alpha("one", &upstream.url())
    };
    session.say(Said::Register(more));
    let Ok(Some(Heard::Registered(changed))) = session.answer() else { panic!("not changed") };
    assert_eq!((changed.routes, &changed.registration_id), (2, &registered.registration_id));
    furt.get("/api/beta/b").status(200);
    session.say(Said::Register(alpha("two", &upstream.url())));
    let (_, status) = session.last();
    assert_eq!(status.map(|status| status.code()), Some(Code::InvalidArgument));
    // It ended by furt's own word, so what was registered stands and is not suspect.
    furt.get("/api/beta/b").status(200);
    let instance = until(&furt, "no session holds it any more", "one", |instance| !instance.session);
    assert_eq!(how(&instance), ("UP", false, false));
    assert_eq!(sessions_told(&furt), ["SESSION_OPENED"]);
}

#[test]
fn a_first_message_that_does_not_register_is_refused() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let bad = RegisterRequest { url: "ftp://a".into(), ..alpha("one", &upstream.url()) };
    let cases = [(Said::KeepAlive(KeepAlive {}), Code::InvalidArgument), (Said::Register(bad), Code::InvalidArgument)];
    for (first, code) in cases {
        let mut session = Session::open(furt.internal);
        session.say(first);
        assert_eq!(session.last().1.map(|status| status.code()), Some(code));
    }
    furt.get("/api/alpha/a").refused(404, "NOT_FOUND");
}

/// With health checks every 30 s, of which none is due within the test.
#[test]
fn kill_9_of_a_service_in_session_makes_it_suspect_at_once() {
    let furt = World::start();
    let mut one = Process::in_session("alpha", "one", furt.internal);
    let _two = Process::in_session("alpha", "two", furt.internal);
    let is_well = |instance: &Instance| instance.status == "UP" && instance.session && !instance.suspect;
    for id in ["one", "two"] {
        until(&furt, "it registered and is UP", id, is_well);
    }
    eventually("both answer", || (answered_by(&furt) == "one").then_some(()));
    eventually("both answer", || (answered_by(&furt) == "two").then_some(()));
    let before = held(&furt, "one");

    // Nobody sends a request, so nothing but the session tells.
    one.kill();
    let suspect = until(&furt, "the lost session makes it suspect", "one", |instance| instance.suspect);
    assert_eq!(how(&suspect), ("UP", false, true), "suspect, not down and not removed");
    let events = told(&furt, "one is suspected", |event| event.kind == "SUSPECTED");
    let of_one = events.iter().filter(|event| event.instance == "one").map(|event| event.kind.as_str());
    let of_session: Vec<_> = of_one.filter(|kind| kind.starts_with("SESSION") || *kind == "SUSPECTED").collect();
    assert_eq!(of_session, ["SESSION_OPENED", "SESSION_LOST", "SUSPECTED"]);
    for _ in 0..50 {
        assert_eq!(answered_by(&furt), "two", "the one that is not suspect is preferred");
    }
    let checked = until(&furt, "extra health checks are made", "one", |instance| !instance.last_error.is_empty());
    assert_eq!((checked.status.as_str(), checked.consecutive_failures), ("UP", before.consecutive_failures), "and do not count");

    one.start_again();
    until(&furt, "an answered health check clears it", "one", is_well);
    eventually("it gets requests again", || (answered_by(&furt) == "one").then_some(()));
}

#[test]
fn a_lost_session_of_a_service_that_still_answers_is_forgiven_by_an_extra_health_check() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let (session, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    until(&furt, "it is UP", "one", |instance| instance.status == "UP");
    let (probes, began) = (upstream.probes().len(), Instant::now());
    drop(session);
    told(&furt, "it is suspected", |event| event.kind == "SUSPECTED");
    eventually("an extra health check", || (upstream.probes().len() > probes).then_some(()));
    assert!(began.elapsed() < PATIENCE, "the next one by schedule is 30 s after the last");
    let instance = until(&furt, "it is forgiven", "one", |instance| !instance.suspect);
    assert_eq!(how(&instance), ("UP", false, false));
    assert_eq!(sessions_told(&furt), ["SESSION_OPENED", "SESSION_LOST", "SUSPECTED"]);
}

#[test]
fn a_farewell_lets_requests_in_flight_finish_and_deregisters() {
    let furt = World::start();
    let (piece, pieces) = std::sync::mpsc::channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = Upstream::with(move |seen| match seen.target.as_str() {
        "/api/alpha/slow" => Reply::Pieces(pieces.lock().expect("nobody panics with it").take().expect("one slow request")),
        _ => Reply::Bytes(ok("quick")),
    });
    let (mut session, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    let public = furt.public;
    let slow = std::thread::spawn(move || Request::get("/api/alpha/slow").key(WEBSITE_KEY).send(public));
    eventually("the slow request is in flight", || (upstream.requests().len() == 1).then_some(()));

    session.say(Said::Farewell(Farewell { seconds: Some(60) }));
    let drained = until(&furt, "it takes its leave", "one", |instance| instance.drained);
    assert!(drained.session, "still there");
    furt.get("/api/alpha/quick").refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(upstream.requests().len(), 1, "no new request");
    piece.send(answer(200, &[], "slow, and whole")).expect("the upstream waits for it");
    assert_eq!(slow.join().expect("the client").text(), "slow, and whole");

    let (drained, status) = session.last();
    let drained = drained.expect("the farewell is answered");
    assert_eq!((drained.instances, drained.in_flight, drained.deregistered), (vec!["one".to_owned()], 0, true));
    assert!(status.is_none(), "{status:?}");
    furt.get("/api/alpha/quick").refused(404, "NOT_FOUND");
    assert_eq!(sessions_told(&furt), ["SESSION_OPENED"]);
}

#[test]
fn a_farewell_is_carried_out_when_the_service_does_not_wait_for_it() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let (session, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    session.say(Said::Farewell(Farewell { seconds: Some(1) }));
    eventually("it was heard", || instance(&furt, "one").is_none_or(|instance| instance.drained).then_some(()));
    drop(session);
    eventually("it is deregistered", || instance(&furt, "one").is_none().then_some(()));
    assert_eq!(sessions_told(&furt), ["SESSION_OPENED"]);
}

#[test]
fn a_registration_that_was_replaced_ends_its_session() {
    let furt = World::start();
    let (old, new) = (Upstream::start("old"), Upstream::start("new"));
    let (mut session, _) = Session::registered(furt.internal, alpha("one", &old.url()));
    furt.register_instance("alpha", "one", &new.url(), &["GET /api/alpha/* comments:read"]);
    let (_, status) = session.last();
    let status = status.expect("the session ends");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("another one has taken its place"), "{status:?}");
    drop(session);
    assert_eq!(sessions_told(&furt), ["SESSION_OPENED"], "nobody is blamed");
    assert_eq!(answered_by(&furt), "new GET /api/alpha/a");
}

#[test]
fn two_sessions_of_one_registration_are_not_lost_with_the_first() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let (first, registered) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    // As when a connection broke and furt has not noticed yet.
    let (mut second, again) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    assert_eq!(again.registration_id, registered.registration_id);
    drop(first);
    eventually("the first is gone", || sessions_open(&furt).filter(|open| *open == 1));
    second.say(Said::KeepAlive(KeepAlive {}));
    assert!(second.answer().is_ok());
    let instance = held(&furt, "one");
    assert_eq!(how(&instance), ("UP", true, false), "another session holds it");
}

fn sessions_open(furt: &World) -> Option<u64> {
    let metrics = Request::get("/metrics").send(furt.internal).text();
    metrics.lines().find_map(|line| line.strip_prefix("furt_sessions ")?.parse().ok())
}

#[test]
fn the_end_of_furt_is_no_ones_crash() {
    let mut furt = Conf::new().start();
    let upstream = Upstream::start("alpha");
    let (mut session, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    furt.terminate();
    let (_, status) = session.last();
    assert_eq!(status.map(|status| status.code()), Some(Code::Unavailable));
    assert!(furt.ended().success());
    assert!(furt.logged(&["session opened"]) && !furt.logged(&["session lost"]), "{:#?}", furt.log());
    furt.start_again();
    let restored = held(&furt, "one");
    assert!(restored.restored && !restored.session && !restored.suspect, "{restored:?}");
    let (_, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    assert!(!held(&furt, "one").restored);
}

#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let furt = World::start();
    let upstream = Upstream::start("alpha");
    let (session, _) = Session::registered(furt.internal, alpha("one", &upstream.url()));
    let keep_alive = || SessionRequest { message: Some(Said::KeepAlive(KeepAlive {})) };
    let says = session.says.as_ref().expect("still talking");
    let before = resident(&furt);
    // Until nothing has been taken for a second: then every window between here and there is full. Or until furt hangs
    // up, as HTTP/2 lets it when too many small frames wait to be read.
    let mut said = 0;
    session.runtime.block_on(async {
        while let Ok(Ok(())) = timeout(Duration::from_secs(1), says.send(keep_alive())).await {
            said += 1;
            assert!(said < 5_000_000, "furt reads on without being read");
        }
    });
    let grown = resident(&furt).saturating_sub(before);
    assert!(grown < 16 << 20, "{said} messages that nobody read the answers of cost {} KiB", grown >> 10);
    assert_eq!(answered_by(&furt), "alpha GET /api/alpha/a", "furt serves on");
}

/// Bytes of furt in memory.
fn resident(furt: &World) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", furt.id())).expect("a process of ours");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("a size") << 10
}
