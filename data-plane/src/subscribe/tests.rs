//! The subscriber over the generated server, in process, as `furt run` has it; time is paused.

use furt_proto::v1::snapshot_service_server::{SnapshotService, SnapshotServiceServer};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::balance::Entered;
use crate::view::model::{Model, empty, fixed, instance};

/// A control plane whose part the test plays.
struct Fake(mpsc::Sender<Session>);

/// One Watch stream, from the control plane's end.
struct Session {
    requests: Streaming<v1::WatchRequest>,
    updates: mpsc::Sender<Result<Bytes, Status>>,
}

#[tonic::async_trait]
impl SnapshotService for Fake {
    type WatchStream = ReceiverStream<Result<Bytes, Status>>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<Bytes>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn watch(&self, request: Request<Streaming<v1::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (updates, stream) = mpsc::channel(16);
        let session = Session { requests: request.into_inner(), updates };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Session {
    async fn request(&mut self) -> v1::WatchRequest {
        self.requests.message().await.unwrap().expect("a request")
    }

    async fn tell(&self, update: v1::WatchResponse) {
        self.updates.send(Ok(update.encode_to_vec().into())).await.unwrap();
    }

    /// Waits until the data plane says that it stands at `version`.
    async fn installed(&mut self, version: u64) {
        loop {
            let request = self.request().await;
            assert!(!request.resync, "{request:?}");
            if request.version == version {
                return;
            }
        }
    }
}

struct World {
    current: Current,
    suspicions: Suspicions,
    sessions: mpsc::Receiver<Session>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    model: Model,
}

impl World {
    fn start() -> Self {
        let (sender, sessions) = mpsc::channel(1);
        let current = Current::new(empty());
        let (suspicions, shutdown) = (Suspicions::default(), CancellationToken::new());
        let client = SnapshotServiceClient::new(SnapshotServiceServer::new(Fake(sender)));
        let subscriber = Subscriber::new(client, current.clone(), suspicions.clone());
        let task = tokio::spawn(subscriber.run(shutdown.clone()));
        let mut model = Model::new("e");
        model.service("a", &["GET /a"]);
        model.fixed(vec![fixed("f", "GET /f public")]);
        model.delta();
        Self { current, suspicions, sessions, shutdown, task, model }
    }

    async fn session(&mut self) -> Session {
        self.sessions.recv().await.expect("a session")
    }

    /// A session that has installed the whole.
    async fn following(&mut self) -> Session {
        let mut session = self.session().await;
        session.tell(self.model.whole()).await;
        session.installed(self.model.version).await;
        session
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_then_changes_are_installed_and_said() {
    let mut world = World::start();
    let mut session = world.session().await;
    assert_eq!(session.request().await, v1::WatchRequest::default());
    session.tell(world.model.whole()).await;
    session.installed(1).await;
    assert!(world.current.load().table.knows("", "/a"));
    world.model.service("b", &["GET /b"]);
    session.tell(world.model.delta()).await;
    session.installed(2).await;
    let view = world.current.load();
    assert!(view.table.knows("", "/b"));
    assert_eq!((&*view.epoch, view.version, world.current.refused()), ("e", 2, 0));
    world.shutdown.cancel();
    world.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_that_does_not_add_up_asks_for_the_whole_and_the_last_good_view_serves() {
    let mut world = World::start();
    let mut session = world.following().await;
    world.model.service("b", &["GET /b"]);
    let lost = world.model.delta();
    world.model.service("c", &["GET /c"]);
    session.tell(world.model.delta()).await;
    let request = session.request().await;
    assert_eq!((request.resync, request.version, &*request.epoch), (true, 1, "e"));
    assert_eq!((world.current.refused(), world.current.load().version), (1, 1));
    // What was on its way already does not count; then comes the whole.
    session.tell(lost).await;
    session.tell(world.model.whole()).await;
    session.installed(3).await;
    let view = world.current.load();
    assert!(view.table.knows("", "/b") && view.table.knows("", "/c"));
    assert_eq!(world.current.refused(), 1);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_do_not_decode_are_refused_and_counted() {
    let mut world = World::start();
    let mut session = world.following().await;
    session.updates.send(Ok(Bytes::from_static(b"\xff\xff\xff"))).await.unwrap();
    assert!(session.request().await.resync);
    // A bad whole too: asking at once again would bring the same, so the session ends.
    let mut bad = world.model.whole();
    bad.digest ^= 1;
    session.tell(bad).await;
    let mut next = world.session().await;
    let request = next.request().await;
    assert_eq!((request.resync, request.version, &*request.epoch), (false, 1, "e"));
    assert_eq!(world.current.refused(), 2);
    assert!(world.current.load().table.knows("", "/a"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_is_taken_up_where_it_was() {
    let mut world = World::start();
    let session = world.following().await;
    session.updates.send(Err(Status::unavailable("going"))).await.unwrap();
    let mut session = world.session().await;
    let request = session.request().await;
    assert_eq!((request.version, &*request.epoch), (1, "e"));
    world.model.service("b", &["GET /b"]);
    session.tell(world.model.delta()).await;
    session.installed(2).await;
    drop(session);
    // A new life of the control plane: only the whole will do.
    world.model = Model::new("f");
    world.model.service("c", &["GET /c"]);
    let mut session = world.session().await;
    assert_eq!(session.request().await.version, 2);
    session.tell(world.model.delta()).await;
    assert!(session.request().await.resync);
    session.tell(world.model.whole()).await;
    session.installed(1).await;
    let view = world.current.load();
    assert!(view.table.knows("", "/c") && !view.table.knows("", "/b"));
}

#[tokio::test(start_paused = true)]
async fn suspicions_go_back_once_with_where_the_view_stands() {
    let mut world = World::start();
    let mut session = world.following().await;
    let view = world.current.load();
    for service in view.services() {
        world.suspicions.report(service, &service.instances[0], "connection refused");
        world.suspicions.report(service, &service.instances[0], "connection refused");
    }
    let request = session.request().await;
    assert_eq!((request.version, &*request.epoch, request.suspicions.len()), (1, "e", 1));
    let suspicion = &request.suspicions[0];
    assert_eq!((&*suspicion.service, suspicion.instance, &*suspicion.registration_id), ("a", 0, "r0"));
    // Once told, a new one is news.
    let service = view.services()[0].clone();
    world.suspicions.report(&service, &service.instances[0], "timed out");
    assert_eq!(session.request().await.suspicions[0].reason, "timed out");
}

#[tokio::test(start_paused = true)]
async fn shutdown_is_heard_while_waiting() {
    let mut world = World::start();
    let mut session = world.following().await;
    world.shutdown.cancel();
    world.task.await.unwrap();
    // Both directions have ended.
    assert!(!matches!(session.requests.message().await, Ok(Some(_))));
    session.updates.closed().await;
}

/// `a` has this instance beside one that is up.
fn beside(model: &mut Model, change: impl FnOnce(&mut v1::SnapshotInstance)) -> v1::WatchResponse {
    let mut one = instance(1, "UP");
    change(&mut one);
    model.instances("a", vec![instance(0, "UP"), one]);
    model.delta()
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_to_a_drained_instance_are_told_at_once_and_again_when_there_are_none() {
    let mut world = World::start();
    let mut session = world.following().await;
    session.tell(beside(&mut world.model, |_| {})).await;
    let request = session.request().await;
    assert!(!request.counted && request.in_flight.is_empty(), "nothing is drained: {request:?}");
    let instances = world.current.load().services()[0].instances.clone();
    for instance in &instances {
        assert!((0..2).all(|_| instance.state.enter(0) == Entered::Yes));
    }
    session.tell(beside(&mut world.model, |one| one.drained = true)).await;
    let request = session.request().await;
    assert_eq!((request.version, request.counted), (world.model.version, true));
    let [counted] = &request.in_flight[..] else { panic!("{request:?}") };
    assert_eq!((&*counted.service, counted.instance, counted.requests), ("a", 1, 2));
    assert_eq!(instances[1].state.enter(0), Entered::Drained, "a request that holds the view before hears of it");
    instances[1].state.leave();
    instances[1].state.leave();
    // One is left: nothing to tell, however often it is looked at.
    tokio::time::sleep(DRAIN_LOOK * 10).await;
    let before = tokio::time::Instant::now();
    instances[1].state.leave();
    let request = session.request().await;
    assert!(before.elapsed() <= DRAIN_LOOK, "{:?}", before.elapsed());
    assert_eq!((request.version, request.counted, request.in_flight.len()), (world.model.version, true, 0));
    // Undrained it is open again, and nothing is counted.
    session.tell(beside(&mut world.model, |_| {})).await;
    let request = session.request().await;
    assert!(!request.counted && request.in_flight.is_empty(), "{request:?}");
    assert_eq!(instances[1].state.enter(0), Entered::Yes);
}

#[tokio::test(start_paused = true)]
async fn an_idle_drained_instance_is_told_at_once_and_again_to_the_next_control_plane() {
    let mut world = World::start();
    let mut session = world.following().await;
    session.tell(beside(&mut world.model, |one| one.drained = true)).await;
    let request = session.request().await;
    assert_eq!((request.version, request.counted, request.in_flight.len()), (world.model.version, true, 0));
    drop(session);
    let request = world.session().await.request().await;
    assert_eq!((request.version, request.counted, request.in_flight.len()), (world.model.version, true, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_said_while_the_whole_is_awaited_is_nothing_to_build_on() {
    let mut world = World::start();
    let mut session = world.following().await;
    session.updates.send(Ok(Bytes::from_static(b"\xff\xff\xff"))).await.unwrap();
    assert!(session.request().await.resync);
    let service = world.current.load().services()[0].clone();
    world.suspicions.report(&service, &service.instances[0], "connection refused");
    let request = session.request().await;
    assert_eq!((&*request.epoch, request.version, request.resync, request.suspicions.len()), ("", 0, false, 1));
    session.tell(world.model.whole()).await;
    session.installed(world.model.version).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_lacks_is_installed_without_a_version() {
    let mut world = World::start();
    assert_eq!(world.current.heard_unix_ms(), None);
    let mut session = world.following().await;
    assert!(world.current.heard_unix_ms().is_some_and(|ms| unix_ms_now() - ms < 60_000));
    let version = world.model.version;
    let (epoch, digest) = (world.model.epoch.clone(), world.current.load().digest);
    for issues in [vec!["the store is full".to_owned()], vec![]] {
        session.tell(v1::WatchResponse { epoch: epoch.clone(), version, digest, issues: issues.clone(), ..Default::default() }).await;
        session.installed(version).await;
        assert_eq!(*world.current.load().issues, issues[..]);
    }
    assert_eq!(world.current.refused(), 0);
}
