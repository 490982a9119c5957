//! Events: replayed from a cursor, followed live, over SSE and gRPC (DESIGN §4, §10).

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use furt_proto::v1::{Event, WatchEventsRequest, WatchEventsResponse, registry_service_client::RegistryServiceClient};
use serde_json::Value;
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Code, Status, Streaming};

use crate::{
    client::Request,
    upstream::{Health, Upstream},
    world::{Conf, World, eventually, registration},
};

/// Far more than any event takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that furt tells from the beginning up to the first event that is the last one asked for.
#[track_caller]
pub fn told(furt: &World, what: &str, is_last: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut watcher = Grpc::open(furt.internal, "0", "").expect("furt tells events");
    let mut events = Vec::new();
    loop {
        let Some(event) = watcher.next() else { panic!("never told: {what}; but {events:#?}") };
        let last = is_last(&event);
        events.push(event);
        if last {
            return events;
        }
    }
}

/// One way to watch.
trait Watch: Sized {
    /// Errors: the code of furt's refusal.
    fn open(internal: SocketAddr, since: &str, service: &str) -> Result<Self, String>;
    /// The next event; none when furt ends the stream or tells nothing in time.
    fn next(&mut self) -> Option<Event>;
}

/// Over gRPC.
struct Grpc {
    stream: Streaming<WatchEventsResponse>,
    runtime: Runtime,
}

impl Grpc {
    fn message(&mut self) -> Option<Result<Option<WatchEventsResponse>, Status>> {
        self.runtime.block_on(async { timeout(PATIENCE, self.stream.message()).await.ok() })
    }
}

impl Watch for Grpc {
    fn open(internal: SocketAddr, since: &str, service: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let request = WatchEventsRequest { since: since.into(), service: service.into() };
        let opened = runtime.block_on(async {
            let mut client = RegistryServiceClient::connect(format!("http://{internal}")).await.expect("furt speaks h2c");
            client.watch_events(request).await
        });
        let stream = opened.map_err(|status| format!("{:?}", status.code()))?.into_inner();
        Ok(Self { stream, runtime })
    }

    fn next(&mut self) -> Option<Event> {
        self.message()?.ok()??.event
    }
}

/// Over server-sent events, read byte by byte as curl shows them.
struct Sse {
    reader: BufReader<TcpStream>,
    text: String,
}

impl Sse {
    fn line(&mut self) -> String {
        let mut line = String::new();
        // Nothing in time, or the end: both are no line.
        let _ = self.reader.read_line(&mut line);
        line.trim_end_matches("\r\n").to_owned()
    }

    /// Reads one chunk; false at the end.
    fn fill(&mut self) -> bool {
        let size = self.line();
        let Ok(size @ 1..) = usize::from_str_radix(&size, 16) else { return false };
        let mut chunk = vec![0; size + 2];
        if self.reader.read_exact(&mut chunk).is_err() {
            return false;
        }
        assert!(chunk.ends_with(b"\r\n"), "a chunk that is longer than its size");
        chunk.truncate(size);
        self.text.push_str(&String::from_utf8(chunk).expect("events are UTF-8, and no chunk cuts a character"));
        true
    }
}

impl Watch for Sse {
    fn open(internal: SocketAddr, since: &str, service: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(internal).expect("furt listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let parameters: Vec<_> = [("since", since), ("service", service)].iter().filter(|(_, value)| !value.is_empty()).copied().collect();
        let query = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let request = Request::get(&format!("/internal/events?{query}")).field("Accept", "text/event-stream");
        stream.write_all(&request.to_bytes(internal)).expect("the request is sent");
        let mut sse = Self { reader: BufReader::new(stream), text: String::new() };
        let status = sse.line();
        let mut fields = Vec::new();
        loop {
            match sse.line() {
                line if line.is_empty() => break,
                line => fields.push(line.to_ascii_lowercase()),
            }
        }
        if !status.contains(" 200 ") {
            let answer = request.send(internal);
            return Err(format!("{} {}", answer.status, answer.code()));
        }
        for field in ["content-type: text/event-stream", "cache-control: no-store", "transfer-encoding: chunked"] {
            assert!(fields.iter().any(|line| line == field), "no {field} in {fields:?}");
        }
        Ok(sse)
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            let Some((block, rest)) = self.text.split_once("\n\n").map(|(block, rest)| (block.to_owned(), rest.to_owned())) else {
                if !self.fill() {
                    return None;
                }
                continue;
            };
            self.text = rest;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            // A comment is a sign of life.
            let Some(data) = field("data") else { continue };
            let data: Value = serde_json::from_str(data).expect("data is JSON");
            let event = event(&data);
            assert_eq!((field("id"), field("event")), (Some(event.cursor.as_str()), Some(event.kind.as_str())), "{block}");
            return Some(event);
        }
    }
}

/// The names of the JSON are those of the `.proto`.
fn event(data: &Value) -> Event {
    let text = |name: &str| data[name].as_str().unwrap_or_else(|| panic!("no {name} in {data}")).to_owned();
    Event {
        cursor: text("cursor"),
        time: text("time"),
        kind: text("kind"),
        service: text("service"),
        instance: text("instance"),
        from: text("from"),
        to: text("to"),
        message: text("message"),
        version: data["version"].as_u64().expect("a version"),
    }
}

/// Its place among all; the part of a cursor after the epoch.
fn sequence(event: &Event) -> u64 {
    event.cursor.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("an odd cursor: {event:?}"))
}

/// An event by which a test knows that it has seen all before it.
fn push_marker(furt: &World, name: &str) {
    let body = registration(name, "http://127.0.0.1:9", &[&format!("GET /{name}/*")]);
    furt.post(&body).status(200);
}

/// Reads a few events at a time and comes back with the last cursor, until it sees the marker.
fn with_reconnects<W: Watch>(internal: SocketAddr, marker: &str) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let since = events.last().map_or("0", |event| &event.cursor).to_owned();
        let mut watcher = W::open(internal, &since, "").expect("furt tells events");
        for _ in 0..fastrand::usize(1..20) {
            let event = watcher.next().unwrap_or_else(|| panic!("nothing more after {:?}", events.last()));
            let is_last = event.service == marker && event.kind == "REGISTERED";
            events.push(event);
            if is_last {
                return events;
            }
        }
    }
}

#[test]
fn nothing_is_missed_or_told_twice_across_reconnects_during_a_burst_of_transitions() {
    const SERVICES: usize = 30;
    const ROUNDS: usize = 3;
    let furt = Conf::new().quick().start();
    let upstream = Upstream::start("many");
    let names: Vec<_> = (0..SERVICES).map(|number| format!("s{number}")).collect();
    let internal = furt.internal;
    let watchers = [
        std::thread::spawn(move || with_reconnects::<Sse>(internal, "marker")),
        std::thread::spawn(move || with_reconnects::<Grpc>(internal, "marker")),
        std::thread::spawn(move || with_reconnects::<Sse>(internal, "marker")),
    ];
    for name in &names {
        furt.register(name, &upstream.url(), &[&format!("GET /api/{name}/*")]);
    }
    let all_are = |status: &str| {
        eventually(&format!("all are {status}"), || {
            let health = furt.health();
            names.iter().all(|name| health["services"][name]["status"] == status).then_some(())
        });
    };
    for _ in 0..ROUNDS {
        all_are("UP");
        upstream.set_health(Health::Status(500));
        all_are("DOWN");
        upstream.set_health(Health::Status(200));
    }
    all_are("UP");
    push_marker(&furt, "marker");

    let reference = told(&furt, "the marker", |event| event.service == "marker" && event.kind == "REGISTERED");
    let sequences: Vec<_> = reference.iter().map(sequence).collect();
    assert_eq!(sequences, (1..=reference.len() as u64).collect::<Vec<_>>(), "without holes from the beginning");
    let changed = |event: &&Event| event.kind == "TRANSITION";
    assert!(reference.iter().filter(changed).count() >= SERVICES * (1 + 2 * ROUNDS), "{reference:#?}");
    for watcher in watchers {
        let seen = watcher.join().expect("the watcher sees the marker");
        assert_eq!(seen, reference, "the same events, each once, in order");
    }
    // Each instance's transitions follow one another: what an event says was before is what the last one said.
    for name in &names {
        let changes: Vec<_> = reference.iter().filter(changed).filter(|event| event.service == *name).collect();
        assert_eq!(changes.first().map(|event| event.from.as_str()), Some("UNKNOWN"));
        assert!(changes.windows(2).all(|pair| pair[0].to == pair[1].from), "{changes:#?}");
    }
}

#[track_caller]
fn replays_live_and_filtered<W: Watch>() {
    let furt = World::start();
    let upstream = Upstream::start("both");
    let mut only_new = W::open(furt.internal, "", "").expect("furt tells events");
    furt.register("alpha", &upstream.url(), &["GET /api/alpha/*"]);
    furt.register("beta", &upstream.url(), &["GET /api/beta/*"]);
    furt.until("alpha", "UP");
    furt.until("beta", "UP");

    let first = only_new.next().expect("what happens");
    assert_eq!((first.kind.as_str(), first.service.as_str()), ("REGISTERED", "alpha"), "only what happened after it began");
    let mut of_beta = W::open(furt.internal, "0", "beta").expect("furt tells events");
    let kept: Vec<_> = (0..2).filter_map(|_| of_beta.next()).map(|event| (event.service, event.kind, event.to)).collect();
    let expected = [("REGISTERED", ""), ("TRANSITION", "UP")].map(|(kind, to)| ("beta".to_owned(), kind.to_owned(), to.to_owned()));
    assert_eq!(kept, expected);
    // Live, and past what is not asked for.
    furt.register("alpha", &upstream.url(), &["GET /api/alpha/*", "GET /api/more/*"]);
    furt.register("beta", &upstream.url(), &["GET /api/beta/*", "GET /api/else/*"]);
    let live = of_beta.next().expect("what happens");
    assert_eq!((live.kind.as_str(), live.service.as_str()), ("UPDATED", "beta"));
    // From a cursor on, exactly what is after it.
    let mut after = W::open(furt.internal, &first.cursor, "").expect("furt tells events");
    assert_eq!(after.next().map(|event| sequence(&event)), Some(sequence(&first) + 1));
}

#[test]
fn sse_replays_goes_on_live_and_filters() {
    replays_live_and_filtered::<Sse>();
}

#[test]
fn grpc_replays_goes_on_live_and_filters() {
    replays_live_and_filtered::<Grpc>();
}

#[track_caller]
fn a_new_epoch_is_a_gap<W: Watch>() {
    let mut furt = World::start();
    let upstream = Upstream::start("alpha");
    furt.register("alpha", &upstream.url(), &["GET /api/alpha/*"]);
    let before = told(&furt, "alpha is UP", |event| event.to == "UP").pop().expect("an event");
    furt.kill();
    furt.start_again();
    let mut watcher = W::open(furt.internal, &before.cursor, "").expect("furt tells events");
    let gap = watcher.next().expect("the gap");
    assert_eq!((gap.kind.as_str(), gap.service.as_str()), ("GAP", ""), "{gap:?}");
    let started = watcher.next().expect("what is kept");
    assert_eq!((started.kind.as_str(), started.message.contains("1 instance of 1 service restored")), ("STARTED", true), "{started:?}");
    // A gap is told once: its own cursor goes on behind it.
    let mut again = W::open(furt.internal, &gap.cursor, "").expect("furt tells events");
    assert_eq!(again.next(), Some(started));
    // Whoever watches one service has to know too.
    let mut of_alpha = W::open(furt.internal, &before.cursor, "alpha").expect("furt tells events");
    let kinds: Vec<_> = (0..2).filter_map(|_| of_alpha.next()).map(|event| event.kind).collect();
    assert_eq!(kinds, ["GAP", "TRANSITION"]);
}

#[test]
fn sse_tells_the_gap_after_a_restart() {
    a_new_epoch_is_a_gap::<Sse>();
}

#[test]
fn grpc_tells_the_gap_after_a_restart() {
    a_new_epoch_is_a_gap::<Grpc>();
}

#[test]
fn a_since_that_is_no_cursor_is_refused() {
    let furt = World::start();
    push_marker(&furt, "marker");
    let event = told(&furt, "the marker", |event| event.kind == "REGISTERED").pop().expect("an event");
    let (epoch, _) = event.cursor.split_once('.').expect("epoch and sequence");
    for bad in ["yesterday", "1", &format!("{epoch}.x"), &format!("{epoch}.999999")] {
        assert_eq!(Sse::open(furt.internal, bad, "").err().as_deref(), Some("400 VALIDATION_ERROR"), "{bad}");
        assert_eq!(Grpc::open(furt.internal, bad, "").err().as_deref(), Some("InvalidArgument"), "{bad}");
    }
}

#[test]
fn the_life_of_a_registration_is_told_and_no_token_with_it() {
    const TOKEN: &str = "token-0123456789-0123456789-01234567";
    let digest = sha256_hex(TOKEN);
    let grants = format!(
        "[service \"*\"]\npermissions = *\nallow_public = true\n\n[service \"locked\"]\npermissions = *\ntoken_sha256 = {digest}\n"
    );
    let furt = Conf::new().grants(&grants).start();
    let upstream = Upstream::start("alpha");
    let post = |service: &str, route: &str, token: &str| {
        let body = registration(service, &upstream.url(), &[route]).to_string();
        Request::post("/internal/register-service", body).field("Authorization", &format!("Bearer {token}")).send(furt.internal)
    };
    post("alpha", "GET /api/alpha/* comments:read", TOKEN).status(200);
    furt.until("alpha", "UP");
    post("alpha", "GET /api/alpha/*", TOKEN).status(200);
    post("locked", "GET /api/locked/*", "wrong-0123456789-0123456789-01234567").refused(403, "REGISTRATION_REFUSED");
    post("beta", "GET /api/alpha/*", TOKEN).refused(409, "ROUTE_CONFLICT");
    let act = |method: &str, target: &str| Request::new(method, target).send(furt.internal).status(200).status;
    act("POST", "/internal/services/alpha/instances/default/drain?seconds=0");
    act("POST", "/internal/services/alpha/instances/default/undrain");
    act("DELETE", "/internal/services/alpha/instances/default");
    push_marker(&furt, "marker");

    let events = told(&furt, "the marker", |event| event.service == "marker" && event.kind == "REGISTERED");
    let short = |event: &Event| (event.kind.clone(), event.service.clone());
    let expected = [
        ("STARTED", ""),
        ("REGISTERED", "alpha"),
        ("TRANSITION", "alpha"),
        ("UPDATED", "alpha"),
        ("LOOSENED", "alpha"),
        ("REFUSED", "locked"),
        ("REFUSED", "beta"),
        ("DRAINED", "alpha"),
        ("UNDRAINED", "alpha"),
        ("DEREGISTERED", "alpha"),
        ("REGISTERED", "marker"),
    ];
    let expected = expected.map(|(kind, service)| (kind.to_owned(), service.to_owned()));
    assert_eq!(events.iter().map(short).collect::<Vec<_>>(), expected, "{events:#?}");
    let refused: Vec<_> = events.iter().filter(|event| event.kind == "REFUSED").map(|event| event.message.as_str()).collect();
    assert!(refused[0].contains("REGISTRATION_REFUSED") && refused[1].contains("ROUTE_CONFLICT"), "{refused:?}");
    let shown = format!("{events:?}{:?}", furt.log());
    for secret in [TOKEN, digest.as_str(), "wrong-0123456789"] {
        assert!(!shown.contains(secret), "{secret} is told");
    }
    // What shows an event is a snapshot that there is.
    assert!(events.windows(2).all(|pair| pair[0].version <= pair[1].version || pair[1].version == 0), "{events:#?}");
    assert!(events.iter().all(|event| event.time.ends_with('Z') && event.time.len() == 24), "{events:#?}");
}

fn sha256_hex(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn watching_does_not_keep_furt_from_ending() {
    let mut furt = World::start();
    let mut sse = Sse::open(furt.internal, "", "").expect("furt tells events");
    let mut grpc = Grpc::open(furt.internal, "", "").expect("furt tells events");
    furt.terminate();
    assert_eq!(sse.next(), None);
    let ended = grpc.message().expect("it ends");
    assert!(
        ended.as_ref().is_ok_and(Option::is_none) || ended.as_ref().is_err_and(|status| status.code() == Code::Unavailable),
        "{ended:?}"
    );
    assert!(furt.ended().success());
}
