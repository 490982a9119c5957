//! What does not end by itself: events over both ways, sessions.

use tokio_stream::wrappers::ReceiverStream;
use v1::{session_request::Message as Say, session_response::Message as Said};

use super::*;

/// A connection that reads server-sent events.
struct Source {
    stream: TcpStream,
    text: String,
}

impl Source {
    async fn open(furt: &World, target: &str, headers: &[&str]) -> Self {
        let mut stream = TcpStream::connect(furt.address).await.unwrap();
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n");
        headers.iter().for_each(|header| head.push_str(&format!("{header}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        let mut source = Self { stream, text: String::new() };
        let head = source.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
        source
    }

    /// All up to the first of these words; they come, or the connection ends and the test fails.
    async fn until(&mut self, words: &str) -> String {
        loop {
            if let Some(at) = self.text.find(words) {
                let rest = self.text.split_off(at + words.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended without {words:?}: {}", self.text);
            self.text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    }

    /// The next event: its id, its kind, its data.
    async fn next(&mut self) -> (String, String, Value) {
        loop {
            self.until("id: ").await;
            let text = self.until("\n\n").await;
            let mut lines = text.lines();
            let id = lines.next().unwrap().to_owned();
            // A cursor alone says from where it is told.
            let Some(kind) = lines.next().and_then(|line| line.strip_prefix("event: ")) else { continue };
            let data: Value = serde_json::from_str(lines.next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!((data["cursor"].as_str(), data["kind"].as_str()), (Some(&*id), Some(kind)));
            return (id, kind.to_owned(), data);
        }
    }
}

#[tokio::test]
async fn watchers_are_bounded_and_make_room_when_they_go() {
    let furt = World::start().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(RegistryServiceClient::new(furt.channel().await));
    }
    let mut held = Vec::new();
    for index in 0..edge::MOST_WATCHERS {
        held.push(clients[index % 8].watch_events(v1::WatchEventsRequest::default()).await.unwrap());
    }
    let refused = clients[0].watch_events(v1::WatchEventsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(furt.get("/internal/events").await.status(), 503);
    held.clear();
    // furt learns of each that is gone when its connection is read.
    while clients[0].watch_events(v1::WatchEventsRequest::default()).await.is_err() {}
}

#[tokio::test]
async fn events_are_told_from_a_cursor_on_and_end_at_shutdown() {
    let furt = World::start().await;
    furt.register("/internal/register-service", &[], SEED).await.envelope();
    let mut all = Source::open(&furt, "/internal/events?since=0&service=sagjan", &[]).await;
    let (first, kind, data) = all.next().await;
    assert_eq!((&*kind, &data["service"], &data["instance"]), ("REGISTERED", &"sagjan".into(), &"default".into()));

    let mut later = Source::open(&furt, "/internal/events", &[]).await;
    furt.send("DELETE /internal/services/sagjan", &[], "").await.envelope();
    loop {
        let (_, kind, data) = later.next().await;
        assert_ne!(kind, "REGISTERED", "told to one who asked for what comes: {data}");
        if kind == "DEREGISTERED" {
            break;
        }
    }
    // What an event source says by itself outranks the url it was opened with.
    let header = format!("Last-Event-ID: {first}");
    let mut again = Source::open(&furt, "/internal/events?since=0&service=sagjan", &[&header]).await;
    let (next, kind, _) = again.next().await;
    assert_ne!((&next, &*kind), (&first, "REGISTERED"));

    for (target, headers) in [("?since=x", &[][..]), ("", &["Last-Event-ID: x y"]), ("?service=A", &[]), ("?sinc=0", &[])] {
        let target = format!("GET /internal/events{target}");
        furt.send(&target, headers, "").await.is_refused(400, "VALIDATION_ERROR");
    }
    furt.shutdown.cancel();
    for source in [&mut all, &mut later, &mut again] {
        source.until(": furt shuts down\n\n").await;
        source.until("0\r\n\r\n").await;
    }
    timeout(Duration::from_secs(2), furt.running).await.expect("no connection had to be cut").unwrap();
}

#[tokio::test]
async fn events_over_grpc_are_the_same_and_end_with_unavailable() {
    let furt = World::start().await;
    let mut client = RegistryServiceClient::new(furt.channel().await);
    furt.register("/internal/register-service", &[], SEED).await.envelope();
    let request = v1::WatchEventsRequest { since: "0".into(), service: "sagjan".into() };
    let mut events = client.watch_events(request).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap().event.unwrap();
    let (id, kind, _) = Source::open(&furt, "/internal/events?since=0&service=sagjan", &[]).await.next().await;
    assert_eq!((first.cursor, first.kind), (id, kind));
    for bad in [("x", ""), ("", "A")] {
        let request = v1::WatchEventsRequest { since: bad.0.into(), service: bad.1.into() };
        assert_eq!(client.watch_events(request).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    furt.shutdown.cancel();
    let ended = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), ended.message()), (tonic::Code::Unavailable, "furt shuts down"));
}

#[tokio::test]
async fn watching_events_is_reading() {
    let furt = World::with(with_token(config(), "look", Role::Reader), Limits::default()).await;
    furt.get("/internal/events").await.is_refused(401, "UNAUTHORIZED");
    furt.send("GET /internal/events", &["Authorization: Bearer guess"], "").await.is_refused(401, "UNAUTHORIZED");
    let mut source = Source::open(&furt, "/internal/events", &["Authorization: Bearer look"]).await;
    let mut client = RegistryServiceClient::new(furt.channel().await);
    let mut request = tonic::Request::new(v1::WatchEventsRequest::default());
    request.metadata_mut().insert("authorization", "Bearer look".parse().unwrap());
    let mut events = client.watch_events(request).await.unwrap().into_inner();

    // A token that is no longer one of furt.conf is told nothing more, not even that furt.conf has changed.
    furt.registry.reload(Config { tokens: Vec::new(), ..(*furt.registry.config()).clone() }, Vec::new()).await;
    let told = source.until("0\r\n\r\n").await;
    assert!(told.contains(": reading needs the token of a reader or an operator; the one sent is not known here\n\n"), "{told}");
    assert!(!told.contains("data: "), "{told}");
    assert_eq!(events.message().await.unwrap_err().code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn a_session_registers_is_told_its_state_and_says_farewell() {
    let furt = World::start().await;
    let mut client = RegistryServiceClient::new(furt.channel().await);
    let (request, _) = crate::json::decode(SEED.as_bytes()).unwrap();
    let (say, heard) = tokio::sync::mpsc::channel(4);
    let send = async |message| say.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
    send(Say::Register(request.clone())).await;
    let mut said = client.session(ReceiverStream::new(heard)).await.unwrap().into_inner();
    let mut hear = async || said.message().await.unwrap().and_then(|response| response.message);
    let Some(Said::Registered(registered)) = hear().await else { panic!("not registered") };
    assert_eq!((&*registered.service, registered.routes), ("sagjan", 4));
    send(Say::KeepAlive(v1::session_request::KeepAlive {})).await;
    assert!(matches!(hear().await, Some(Said::State(state)) if !state.drained));
    let shown = furt.get("/internal/services/sagjan").await.envelope();
    assert_eq!(shown["data"]["service"]["instances"][0]["session"], true);
    send(Say::Farewell(v1::session_request::Farewell { seconds: Some(0) })).await;
    let drained = loop {
        match hear().await {
            Some(Said::Drained(drained)) => break drained,
            Some(Said::State(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(drained.deregistered, "{drained:?}");
    assert_eq!(hear().await, None);
    furt.get("/internal/services/sagjan").await.is_refused(404, "NOT_FOUND");

    // A message that is larger than any registration may be ends the session with the code that says so.
    let large = v1::RegisterRequest { version: "x".repeat(2 << 20), ..request };
    let large = tokio_stream::once(v1::SessionRequest { message: Some(Say::Register(large)) });
    let status = match client.session(large).await {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
}
