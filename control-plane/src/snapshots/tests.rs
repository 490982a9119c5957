//! The stream as the data plane of the same process reads it: the generated client over the service itself.

use furt_proto::v1::{snapshot_service_client::SnapshotServiceClient, snapshot_service_server::SnapshotServiceServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{
    config::{Role, Token},
    registry::tests::{config, request},
    services::Seen,
};

struct Plane {
    inbound: Option<mpsc::Sender<v1::WatchRequest>>,
    stream: Streaming<Bytes>,
}

impl Plane {
    async fn attach(registry: &Registry, first: v1::WatchRequest) -> Self {
        let mut client = SnapshotServiceClient::new(SnapshotServiceServer::new(registry.snapshots()));
        let (inbound, outbound) = mpsc::channel(16);
        inbound.send(first).await.unwrap();
        let stream = client.watch(ReceiverStream::new(outbound)).await.unwrap().into_inner();
        Self { inbound: Some(inbound), stream }
    }

    async fn message(&mut self) -> Option<v1::WatchResponse> {
        let bytes = self.stream.message().await.unwrap()?;
        Some(v1::WatchResponse::decode(bytes).unwrap())
    }

    async fn say(&self, request: v1::WatchRequest) {
        self.inbound.as_ref().unwrap().send(request).await.unwrap();
    }
}

fn names(message: &v1::WatchResponse) -> Vec<&str> {
    message.services.iter().map(|service| service.name.as_str()).collect()
}

#[tokio::test]
async fn first_the_whole_then_what_changed() {
    let registry = Registry::new(config());
    registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    let mut plane = Plane::attach(&registry, v1::WatchRequest::default()).await;
    let whole = plane.message().await.unwrap();
    assert!(whole.whole && whole.keys.is_some() && whole.static_routes.is_some() && whole.cors.is_some());
    assert_eq!((names(&whole), whole.epoch.as_str(), whole.renew_after_seconds), (vec!["sagjan"], registry.epoch(), 60));
    assert_eq!(whole.reports.len(), 1);
    let position = |version| v1::WatchRequest { epoch: registry.epoch().into(), version, ..Default::default() };
    plane.say(position(whole.version)).await;

    let register = tokio::spawn({
        let registry = registry.clone();
        async move { registry.try_it(request("obr", 7813, &["GET /b"])).await }
    });
    let delta = plane.message().await.unwrap();
    assert!(!delta.whole && delta.keys.is_none());
    assert_eq!((names(&delta), delta.version), (vec!["obr"], whole.version + 1));
    assert!(!register.is_finished(), "the answer waits for the data plane");
    plane.say(position(delta.version)).await;
    // The data plane goes on reading, as it always does.
    let reading = tokio::spawn(async move {
        let message = plane.message().await;
        (message, plane)
    });
    assert_eq!(register.await.unwrap().unwrap().version, delta.version);
    let farewell = v1::DeregisterRequest { service: "obr".into(), ..Default::default() };
    let leave = tokio::spawn({
        let registry = registry.clone();
        async move { registry.deregister(&crate::registry::tests::local(), farewell).await }
    });
    let (gone, mut plane) = reading.await.unwrap();
    let gone = gone.unwrap();
    // The report of obr's start may have come before its farewell.
    let gone = if gone.removed.is_empty() { plane.message().await.unwrap() } else { gone };
    assert_eq!(gone.removed, ["obr"]);
    assert_eq!(gone.digest, whole.digest, "it holds again what it held");
    plane.say(position(gone.version)).await;
    let reading = tokio::spawn(async move { plane.message().await });
    leave.await.unwrap().unwrap();
    registry.close();
    assert_eq!(reading.await.unwrap(), None, "shutdown ends the stream");
}

#[tokio::test]
async fn a_subscriber_goes_on_from_what_it_holds_or_starts_anew() {
    let registry = Registry::new(config());
    let first = registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    let second = registry.try_it(request("obr", 7813, &["GET /b"])).await.unwrap();
    let check = async |epoch: &str, version: u64, resync: bool, whole: bool| {
        let request = v1::WatchRequest { epoch: epoch.into(), version, resync, ..Default::default() };
        let message = Plane::attach(&registry, request).await.message().await.unwrap();
        assert_eq!((message.whole, message.version), (whole, second.version), "{epoch} {version} {resync}");
        message
    };
    let delta = check(registry.epoch(), first.version, false, false).await;
    assert_eq!(names(&delta), ["obr"]);
    check(registry.epoch(), first.version, true, true).await;
    check("another", first.version, false, true).await;
    check(registry.epoch(), second.version + 5, false, true).await;
    check("", 0, false, true).await;
}

#[tokio::test]
async fn a_slow_subscriber_gets_a_burst_as_one() {
    let registry = Registry::new(config());
    let mut plane = Plane::attach(&registry, v1::WatchRequest::default()).await;
    let whole = plane.message().await.unwrap();
    // Detached from the wait for it: nobody reads, so nothing is installed.
    for index in 0..50u16 {
        let registering = request(&format!("s{index}"), 7000 + index, &[&format!("GET /{index}")]);
        assert!(registry.try_it(registering).now_or_never().is_none());
    }
    let burst = plane.message().await.unwrap();
    assert_eq!((burst.services.len(), burst.version), (50, whole.version + 50));
}

#[tokio::test(start_paused = true)]
async fn a_data_plane_that_does_not_follow_delays_an_answer_for_a_second_and_one_that_left_not_at_all() {
    let registry = Registry::new(config());
    let mut plane = Plane::attach(&registry, v1::WatchRequest::default()).await;
    plane.message().await.unwrap();
    let began = Instant::now();
    registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 1);
    drop(plane);
    let began = Instant::now();
    registry.try_it(request("obr", 7813, &["GET /b"])).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn reports_come_at_once_and_then_once_a_second_and_are_no_version() {
    let registry = Registry::new(config());
    for index in 0..3u16 {
        registry.try_it(request(&format!("s{index}"), 7000 + index, &[&format!("GET /{index}")])).await.unwrap();
    }
    let mut plane = Plane::attach(&registry, v1::WatchRequest::default()).await;
    let whole = plane.message().await.unwrap();
    assert_eq!(whole.reports.len(), 3);
    let probe = |answered: bool| {
        for ticket in registry.take_due(Instant::now() + Duration::from_secs(3600), 10) {
            let seen = if answered { Seen::Answered(Duration::from_millis(3)) } else { Seen::Missed("no".into()) };
            registry.record(&ticket, &seen, Instant::now(), 0.0);
        }
    };
    probe(true);
    let up = plane.message().await.unwrap();
    assert_eq!((up.services.len(), up.reports.len()), (3, 3), "a new state travels with what was seen");
    assert!(up.services.iter().all(|service| service.routes.is_none()));
    probe(true);
    let began = Instant::now();
    let batch = plane.message().await.unwrap();
    assert!(began.elapsed() <= REPORTS_EVERY);
    assert_eq!((batch.version, batch.digest, batch.whole, batch.services.len()), (up.version, up.digest, false, 0));
    assert_eq!((batch.reports.len(), batch.reports[0].response_time_ms), (3, Some(3)));
    probe(false);
    let began = Instant::now();
    assert_eq!(plane.message().await.unwrap().reports[0].consecutive_failures, 1);
    assert!(began.elapsed() >= REPORTS_EVERY - Duration::from_millis(1));
}

#[tokio::test]
async fn suspicions_reach_the_registry_and_a_half_closed_stream_goes_on() {
    let registry = Registry::new(config());
    let id = registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap().registration_id;
    let mut plane = Plane::attach(&registry, v1::WatchRequest::default()).await;
    let whole = plane.message().await.unwrap();
    let instance = whole.services[0].instances.as_ref().unwrap().instances[0].number;
    let suspicion = v1::Suspicion { service: "sagjan".into(), instance, registration_id: id, reason: "connection refused".into() };
    plane.say(v1::WatchRequest { suspicions: vec![suspicion], ..Default::default() }).await;
    plane.inbound = None;
    let message = plane.message().await.unwrap();
    assert!(message.services[0].instances.as_ref().unwrap().instances[0].suspect);
}

#[tokio::test]
async fn get_is_the_whole_for_people() {
    let registry = Registry::new(config());
    registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    let mut client = SnapshotServiceClient::new(SnapshotServiceServer::new(registry.snapshots()));
    let bytes = client.get(v1::GetRequest {}).await.unwrap().into_inner();
    let snapshot = v1::GetResponse::decode(bytes).unwrap().snapshot.unwrap();
    assert!(snapshot.whole);
    assert_eq!((names(&snapshot), snapshot.reports.len()), (vec!["sagjan"], 1));
}

#[tokio::test]
async fn a_token_that_a_reload_takes_away_ends_the_stream() {
    let token = Token { name: "edge".into(), role: Role::DataPlane, digests: vec![[7; 32]] };
    let with_token = Config { tokens: vec![token], loopback_is_operator: false, ..config() };
    let registry = Registry::new(with_token.clone());
    let peer = Peer { address: Some("127.0.0.1".parse().unwrap()), bearer: Some([7; 32]) };
    let service = SnapshotServiceServer::with_interceptor(registry.snapshots(), move |mut request: Request<()>| {
        request.extensions_mut().insert(peer.clone());
        Ok(request)
    });
    let (inbound, outbound) = mpsc::channel(16);
    inbound.send(v1::WatchRequest::default()).await.unwrap();
    let mut stream = SnapshotServiceClient::new(service).watch(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    // Another furt.conf under which it may follow goes on.
    let narrower = Config { hosts: vec!["furt.example".into()], ..with_token.clone() };
    registry.reload(narrower, Vec::new()).await;
    assert!(stream.message().await.unwrap().is_some());
    registry.reload(Config { tokens: Vec::new(), ..with_token }, Vec::new()).await;
    assert_eq!(stream.message().await.unwrap_err().code(), tonic::Code::Unauthenticated);
}
