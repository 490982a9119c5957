use std::pin::Pin;

use tokio::{sync::mpsc, time::advance};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code as Grpc;
use tonic_types::StatusExt;

use super::*;
use crate::{
    registry::tests::{config, local, request},
    services::Seen,
};

/// A client with its session.
struct Client {
    registry: Registry,
    shutdown: CancellationToken,
    sends: Option<mpsc::Sender<Result<v1::SessionRequest, Status>>>,
    answers: Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>,
}

impl Client {
    fn of(registry: &Registry) -> Self {
        let (sends, inbound) = mpsc::channel(100);
        let shutdown = CancellationToken::new();
        let answers = Box::pin(open(registry.clone(), local(), ReceiverStream::new(inbound), shutdown.clone()).unwrap());
        Self { registry: registry.clone(), shutdown, sends: Some(sends), answers }
    }

    async fn registered(registry: &Registry, port: u16) -> (Self, v1::RegisterResponse) {
        let mut client = Self::of(registry);
        client.send(Heard::Register(sagjan(port)));
        let Some(Ok(Said::Registered(answer))) = client.answer().await else { panic!("not registered") };
        (client, answer)
    }

    fn send(&self, message: Heard) {
        self.send_raw(Ok(v1::SessionRequest { message: Some(message) }));
    }
    fn send_raw(&self, message: Result<v1::SessionRequest, Status>) {
        self.sends.as_ref().unwrap().try_send(message).unwrap();
    }

    async fn answer(&mut self) -> Option<Result<Said, Status>> {
        let answer = self.answers.next().await?;
        Some(answer.map(|answer| answer.message.unwrap()))
    }

    async fn state(&mut self) -> (String, bool) {
        match self.answer().await {
            Some(Ok(Said::State(state))) => (state.status, state.drained),
            other => panic!("not a state: {other:?}"),
        }
    }

    /// The error that ends it, and nothing after it.
    async fn error(&mut self) -> (Grpc, String) {
        let Some(Err(status)) = self.answer().await else { panic!("no error") };
        assert!(self.answer().await.is_none(), "it goes on after {status:?}");
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
        (status.code(), reason.unwrap_or_else(|| status.message().to_owned()))
    }

    /// What of the session became an event, and whether the instance is suspect and held by a session.
    fn seen(&self) -> (Vec<String>, bool, bool) {
        seen(&self.registry)
    }
}

fn seen(registry: &Registry) -> (Vec<String>, bool, bool) {
    use futures_util::FutureExt;
    let mut stream = Box::pin(registry.events().watch("0", "").unwrap());
    let events = std::iter::from_fn(|| stream.next().now_or_never().flatten());
    let told = events.filter(|event| event.kind.starts_with("SESSION") || event.kind == "SUSPECTED");
    let told = told.map(|event| if event.kind == "SESSION_LOST" { format!("LOST: {}", event.message) } else { event.kind }).collect();
    let instance = registry.get_service("sagjan").ok().and_then(|service| service.instances.into_iter().next());
    (told, instance.as_ref().is_some_and(|instance| instance.suspect), instance.is_some_and(|instance| instance.session))
}

fn sagjan(port: u16) -> v1::RegisterRequest {
    request("sagjan", port, &["GET /api/comments/*"])
}

fn keep_alive() -> Heard {
    Heard::KeepAlive(v1::session_request::KeepAlive {})
}

fn farewell(seconds: u32) -> Heard {
    Heard::Farewell(v1::session_request::Farewell { seconds: Some(seconds) })
}

/// What a probe of the one instance sees.
fn probed(registry: &Registry, seen: Seen) {
    let now = Instant::now();
    for ticket in registry.take_due(now + Duration::from_secs(1000), 10) {
        registry.record(&ticket, &seen, now, 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_message_registers_or_there_is_no_session() {
    let registry = Registry::new(config());
    for first in [Some(keep_alive()), Some(farewell(1)), None] {
        let mut client = Client::of(&registry);
        client.send_raw(Ok(v1::SessionRequest { message: first }));
        assert_eq!(client.error().await, (Grpc::InvalidArgument, "VALIDATION_ERROR".into()));
    }
    let mut refused = Client::of(&registry);
    refused.send(Heard::Register(request("sagjan", 80, &["GET /internal/x"])));
    assert_eq!(refused.error().await, (Grpc::AlreadyExists, "ROUTE_CONFLICT".into()));
    let mut dry = Client::of(&registry);
    dry.send(Heard::Register(v1::RegisterRequest { dry_run: true, ..sagjan(80) }));
    assert_eq!(dry.error().await, (Grpc::InvalidArgument, "VALIDATION_ERROR".into()));
    let mut silent = Client::of(&registry);
    assert_eq!(silent.error().await, (Grpc::DeadlineExceeded, "REQUEST_TIMEOUT".into()));
    let mut gone = Client::of(&registry);
    gone.sends = None;
    assert!(gone.answer().await.is_none());
    assert_eq!(registry.list_services().services, []);
    assert_eq!(seen(&registry), (vec![], false, false));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_register_gets_no_session() {
    let registry = Registry::new(config());
    let stranger = Peer { address: Some("192.0.2.1".parse().unwrap()), bearer: None };
    let (_sends, inbound) = mpsc::channel(1);
    let refusal = open(registry, stranger, ReceiverStream::new(inbound), CancellationToken::new()).err().unwrap();
    assert_eq!(refusal.code(), Code::RegistrationRefused);
}

#[tokio::test(start_paused = true)]
async fn a_session_registers_renews_changes_and_tells_the_state() {
    let registry = Registry::new(config());
    let (mut client, first) = Client::registered(&registry, 8001).await;
    assert_eq!((first.service.as_str(), first.instance.as_str(), first.status.as_str()), ("sagjan", "default", "UNKNOWN"));
    assert_eq!(client.seen(), (vec!["SESSION_OPENED".into()], false, true));
    client.send(keep_alive());
    assert_eq!(client.state().await, ("UNKNOWN".into(), false));
    client.send(Heard::Register(sagjan(8001)));
    let Some(Ok(Said::Registered(renewed))) = client.answer().await else { panic!("not renewed") };
    assert_eq!(renewed.registration_id, first.registration_id);
    assert_eq!(client.seen(), (vec!["SESSION_OPENED".into()], false, true));
    // Another url is a new start, which the same session holds.
    client.send(Heard::Register(sagjan(8002)));
    let Some(Ok(Said::Registered(moved))) = client.answer().await else { panic!("not moved") };
    assert_ne!(moved.registration_id, first.registration_id);
    client.send(keep_alive());
    assert_eq!(client.state().await, ("UNKNOWN".into(), false));
    assert_eq!(client.seen(), (vec!["SESSION_OPENED".into(); 2], false, true));
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_unasked_and_coalesced() {
    let registry = Registry::new(config());
    let (mut client, _) = Client::registered(&registry, 8001).await;
    probed(&registry, Seen::Answered(Duration::from_millis(1)));
    assert_eq!(client.state().await, ("UP".into(), false));
    // There and back again within a second is nothing to tell; what comes to stay is told when the second is over.
    let at = Instant::now();
    for _ in 0..5 {
        probed(&registry, Seen::Missed("refused".into()));
    }
    probed(&registry, Seen::Answered(Duration::from_millis(1)));
    let drain = v1::DrainRequest { service: "sagjan".into(), instance: "default".into(), seconds: Some(0), ..Default::default() };
    registry.drain(&local(), drain).await.unwrap();
    assert_eq!(client.state().await, ("UP".into(), true));
    assert_eq!(at.elapsed(), LOOK_EVERY);
    let (told, none) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), client.answer()), async {
        for _ in 0..10 {
            advance(Duration::from_secs(3)).await;
            probed(&registry, Seen::Answered(Duration::from_millis(2)));
        }
    });
    assert!(told.is_err(), "told what is no news: {told:?} {none:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_stands_is_told_after_registering() {
    let registry = Registry::new(config());
    registry.try_it(sagjan(8001)).await.unwrap();
    let drain = v1::DrainRequest { service: "sagjan".into(), instance: "default".into(), seconds: Some(0), ..Default::default() };
    registry.drain(&local(), drain).await.unwrap();
    let (mut client, _) = Client::registered(&registry, 8001).await;
    assert_eq!(client.state().await, ("UNKNOWN".into(), true));
}

#[tokio::test(start_paused = true)]
async fn an_end_without_farewell_is_a_crash_told_once() {
    type End = fn(&mut Client);
    let ends: [(End, &str, Option<Grpc>); 3] = [
        (|client| client.answers = Box::pin(stream::empty()), CONNECTION_LOST, None),
        (|client| client.sends = None, "the session was closed without a farewell", None),
        (|client| client.send_raw(Err(Status::cancelled("reset"))), CONNECTION_LOST, Some(Grpc::Cancelled)),
    ];
    for (end, cause, code) in ends {
        let registry = Registry::new(config());
        let (mut client, _) = Client::registered(&registry, 8001).await;
        end(&mut client);
        let answer = client.answer().await;
        assert_eq!(answer.map(|answer| answer.err().map(|status| status.code())), code.map(Some));
        drop(client);
        let expected = ["SESSION_OPENED".into(), format!("LOST: {cause}"), "SUSPECTED".into()];
        assert_eq!(seen(&registry), (expected.into(), true, false));
        assert_eq!(registry.list_services().services.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_by_furts_own_word_is_not_lost() {
    let undecodable = Status::internal("failed to decode Protobuf message: Route.path: invalid string value");
    let validation = "VALIDATION_ERROR";
    let ends = [
        (Heard::Register(request("obr", 8001, &["GET /x"])).into(), Grpc::InvalidArgument, validation),
        (Heard::Register(v1::RegisterRequest { instance: "two".into(), ..sagjan(8001) }).into(), Grpc::InvalidArgument, validation),
        (Heard::Register(request("sagjan", 8001, &["GET /internal/x"])).into(), Grpc::AlreadyExists, "ROUTE_CONFLICT"),
        (None, Grpc::InvalidArgument, validation),
    ];
    let ends = ends.map(|(message, code, reason): (Option<Heard>, _, _)| (Ok(v1::SessionRequest { message }), code, reason));
    for (message, code, reason) in ends.into_iter().chain([(Err(undecodable), Grpc::InvalidArgument, "MALFORMED_REQUEST")]) {
        let registry = Registry::new(config());
        let (mut client, registered) = Client::registered(&registry, 8001).await;
        let shown = format!("{message:?}");
        client.send_raw(message);
        assert_eq!(client.error().await, (code, reason.into()), "{shown}");
        assert_eq!(client.seen(), (vec!["SESSION_OPENED".into()], false, false), "{shown}");
        let service = registry.get_service("sagjan").unwrap();
        assert_eq!(service.instances[0].registration_id, registered.registration_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_another_replaced_ends_its_session() {
    let registry = Registry::new(config());
    let (mut old, _) = Client::registered(&registry, 8001).await;
    let (mut new, _) = Client::registered(&registry, 8002).await;
    assert_eq!(old.error().await, (Grpc::FailedPrecondition, "STALE_REGISTRATION".into()));
    drop(old);
    new.send(keep_alive());
    assert_eq!(new.state().await, ("UNKNOWN".into(), false));
    assert_eq!(new.seen(), (vec!["SESSION_OPENED".into(); 2], false, true));
    let request = v1::DeregisterRequest { service: "sagjan".into(), instance: "default".into(), ..Default::default() };
    registry.deregister(&local(), request).await.unwrap();
    new.send(keep_alive());
    assert_eq!(new.error().await, (Grpc::FailedPrecondition, "STALE_REGISTRATION".into()));
}

#[tokio::test(start_paused = true)]
async fn a_farewell_drains_deregisters_and_ends() {
    let registry = Registry::new(config());
    let (mut client, _) = Client::registered(&registry, 8001).await;
    client.send(farewell(1));
    let Some(Ok(Said::Drained(drained))) = client.answer().await else { panic!("not drained") };
    assert_eq!((drained.service.as_str(), drained.instances, drained.deregistered), ("sagjan", vec!["default".into()], true));
    assert!(client.answer().await.is_none());
    assert_eq!(registry.list_services().services, []);
    assert_eq!(seen(&registry).0, ["SESSION_OPENED"]);
    let (mut refused, _) = Client::registered(&registry, 8001).await;
    refused.send(farewell(100_000));
    assert_eq!(refused.error().await, (Grpc::InvalidArgument, "VALIDATION_ERROR".into()));
    drop(refused);
    let (told, suspect, _) = seen(&registry);
    assert_eq!(told[2..], ["LOST: its farewell was refused: VALIDATION_ERROR", "SUSPECTED"]);
    assert!(suspect);
}

#[tokio::test(start_paused = true)]
async fn furts_own_end_is_no_loss() {
    let registry = Registry::new(config());
    let (mut client, _) = Client::registered(&registry, 8001).await;
    let (dropped, _) = Client::registered(&registry, 8001).await;
    client.shutdown.cancel();
    dropped.shutdown.cancel();
    assert_eq!(client.error().await, (Grpc::Unavailable, "furt shuts down".into()));
    drop((client, dropped));
    let lost = registry.get_service("sagjan").unwrap();
    assert!(!lost.instances[0].suspect && !lost.instances[0].session);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_for_a_client_that_does_not_read() {
    let registry = Registry::new(config());
    let (client, _) = Client::registered(&registry, 8001).await;
    for _ in 0..50 {
        client.send(keep_alive());
    }
    probed(&registry, Seen::Answered(Duration::from_millis(1)));
    advance(Duration::from_secs(60)).await;
    assert_eq!(client.sends.as_ref().unwrap().capacity(), 50, "what is not answered was read");
}

#[tokio::test(start_paused = true)]
async fn there_is_a_most_of_sessions() {
    let registry = Registry::new(config());
    let mut all: Vec<_> = (0..MOST_SESSIONS).map(|_| Client::of(&registry)).collect();
    let another = || open(registry.clone(), local(), stream::empty(), CancellationToken::new()).err().map(|refusal| refusal.code());
    assert_eq!(another(), Some(Code::Unavailable));
    all.pop();
    assert_eq!(another(), None);
}
