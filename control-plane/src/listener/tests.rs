//! The internal listener over real loopback sockets: raw HTTP/1.1 text, and tonic's clients.

use futures_util::future::BoxFuture;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::{v1 as reflection, v1alpha};
use tonic_types::StatusExt;
use v1::registry_service_client::RegistryServiceClient;

use super::*;
use crate::config::{Config, Grant, Role, Token};
use crate::identity::tests::config;
use crate::store::{self, Store, StoreError};

const SEED: &str = r#"{"service": "sagjan", "url": "http://127.0.0.1:7812", "health_endpoint": "/health", "routes": [
    {"method": "POST", "path": "/api/comments/*", "permission": "comments:write"},
    {"method": "GET", "path": "/api/comments/*", "permission": "comments:read"},
    {"method": "PUT", "path": "/api/comments/*", "permission": "comments:moderate"},
    {"method": "DELETE", "path": "/api/comments/*", "permission": "comments:delete"}]}"#;

mod roles;
mod streams;

/// A data plane that is there and has one thing to say about everything.
struct Fixed;

impl Observer for Fixed {
    fn health(&self, full: bool) -> Bytes {
        format!(r#"{{"status":"healthy","full":{full}}}"#).into()
    }
    fn live(&self) -> bool {
        true
    }
    fn ready(&self) -> bool {
        false
    }
    fn explain(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainResponse, String> {
        match &*request.key_name {
            "nobody" => Err("there is no key named nobody".into()),
            _ => Ok(v1::ExplainResponse { canonical_path: request.path.clone(), ..v1::ExplainResponse::default() }),
        }
    }
    fn metrics(&self, out: &mut String) {
        out.push_str("# HELP furt_test A test.\n# TYPE furt_test gauge\nfurt_test 1\n");
    }
    fn reload(&self) -> BoxFuture<'static, Result<ReloadDone, Refusal>> {
        let done = ReloadDone { changes: vec!["[gateway] hosts is a".into()], warnings: Vec::new(), version: 7 };
        Box::pin(std::future::ready(Ok(done)))
    }
}

/// A listener that runs, until the test is over.
struct World {
    address: SocketAddr,
    registry: Registry,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        Self::with(with_sagjan(config()), Limits::default()).await
    }

    async fn with(config: Config, limits: Limits) -> Self {
        Self::over(Registry::new(config), limits).await
    }

    async fn over(registry: Registry, limits: Limits) -> Self {
        let socket = TcpListener::bind(registry.config().listen).await.unwrap();
        let address = socket.local_addr().unwrap();
        let internal = Internal::on_within(socket, registry.clone(), Arc::new(Fixed), limits).unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(internal.run(shutdown.clone()));
        Self { address, registry, shutdown, running }
    }

    /// What comes back for these bytes until the connection closes.
    async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        Answer(answer)
    }

    /// One request with these header lines, and Host unless they hold one.
    async fn send(&self, request_line: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = format!("{request_line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.starts_with("Host:")) {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        for header in headers {
            text.push_str(&format!("{header}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        self.raw(text.as_bytes()).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.send(&format!("GET {target}"), &[], "").await
    }

    async fn register(&self, target: &str, headers: &[&str], body: &str) -> Answer {
        self.send(&format!("POST {target}"), headers, body).await
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

/// An HTTP/1.1 answer as text.
struct Answer(String);

impl Answer {
    fn status(&self) -> u16 {
        self.0.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {:?}", self.0))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let head = self.0.split("\r\n\r\n").next()?;
        head.lines().filter_map(|line| line.split_once(": ")).find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    /// The envelope, which every answer of furt's own has.
    fn envelope(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.0);
        let body: Value = serde_json::from_str(self.body()).unwrap();
        assert_eq!(body["success"], self.status() == 200);
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        assert_eq!(body["request_id"].as_str().map(str::len), Some(26));
        body
    }

    fn is_refused(&self, status: u16, code: &str) -> Value {
        let body = self.envelope();
        assert_eq!((self.status(), body["code"].as_str()), (status, Some(code)), "{}", self.0);
        body
    }
}

fn with_sagjan(config: Config) -> Config {
    let granted = config.grants.iter().take(1).cloned();
    let grant =
        |grant: Grant| Grant { service: Some("sagjan".parse().unwrap()), permissions: vec!["comments:*".parse().unwrap()], ..grant };
    Config { grants: granted.map(grant).collect(), ..config }
}

fn with_token(config: Config, token: &str, role: Role) -> Config {
    let tokens = vec![Token { name: "test".into(), role, digests: vec![Sha256::digest(token).into()] }];
    Config { tokens, loopback_is_operator: false, ..config }
}

#[tokio::test]
async fn the_guard_stands_in_front_of_every_path() {
    let furt = World::start().await;
    for target in ["POST /internal/register-service", "GET /health", "GET /metrics", "GET /nowhere"] {
        let refused = |headers: &'static [&'static str]| furt.send(target, headers, "");
        refused(&["X-Forwarded-For: 127.0.0.1"]).await.is_refused(403, "REGISTRATION_REFUSED");
        refused(&["Forwarded: for=127.0.0.1"]).await.is_refused(403, "REGISTRATION_REFUSED");
        refused(&["X-Real-IP: 127.0.0.1"]).await.is_refused(403, "REGISTRATION_REFUSED");
        refused(&["Host: evil.example:7810"]).await.is_refused(403, "FORBIDDEN");
        refused(&["Origin: http://evil.example"]).await.is_refused(403, "FORBIDDEN");
        refused(&["Sec-Fetch-Site: cross-site"]).await.is_refused(403, "FORBIDDEN");
        refused(&["Sec-Fetch-Site: same-site"]).await.is_refused(403, "FORBIDDEN");
        refused(&["Host: localhost", "Host: localhost"]).await.is_refused(400, "MALFORMED_REQUEST");
    }
    furt.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").await.is_refused(400, "MALFORMED_REQUEST");

    let stranger = Config { allow_registration_from: "10.0.0.0/8".parse().unwrap(), ..config() };
    let furt = World::with(stranger, Limits::default()).await;
    furt.get("/health").await.is_refused(403, "REGISTRATION_REFUSED");
}

#[tokio::test]
async fn the_seeds_body_registers_with_any_content_type() {
    let furt = World::start().await;
    for content_type in ["application/json", "application/x-www-form-urlencoded", "text/plain", "image/png"] {
        let header = format!("Content-Type: {content_type}");
        let answer = furt.register("/internal/register-service", &[&header], SEED).await;
        let body = answer.envelope();
        assert_eq!((answer.status(), &body["message"]), (200, &"sagjan registered: 4 routes".into()), "{}", answer.0);
        assert_eq!((&body["data"]["service"], &body["data"]["instance"]), (&"sagjan".into(), &"default".into()));
        assert_eq!((&body["data"]["routes"], &body["data"]["warnings"]), (&4.into(), &Value::Array(Vec::new())));
    }
    let body = furt.register("/internal/register-service?dry_run=true", &[], SEED).await.envelope();
    assert_eq!(body["message"], "sagjan could be registered: 4 routes");
}

#[tokio::test]
async fn a_bad_registration_is_told_everything_at_once() {
    let furt = World::start().await;
    let register = |body: &'static str| furt.register("/internal/register-service", &[], body);
    let body = register(r#"{"service": "sagjan", "url": 1, "routes": [{"methd": "GET", "path": "/a"}], "x": 1}"#).await;
    let body = body.is_refused(400, "VALIDATION_ERROR");
    let fields: Vec<_> = body["details"].as_array().unwrap().iter().map(|detail| detail["field"].as_str().unwrap()).collect();
    for field in ["url", "routes[0].methd", "routes[0].method", "x"] {
        assert_eq!(fields.iter().filter(|known| **known == field).count(), 1, "{field} in {fields:?}");
    }
    for malformed in ["", "{", "{} x", "service=sagjan"] {
        let body = register(malformed).await.is_refused(400, "MALFORMED_REQUEST");
        assert!(body["error"].as_str().unwrap().starts_with("the body is "), "{body}");
    }
    assert_eq!(register("[]").await.is_refused(400, "VALIDATION_ERROR").get("details"), None);
    let services = furt.get("/internal/services").await.envelope();
    assert_eq!(services["data"]["services"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_flood_of_rubbish_is_limited_like_any_other() {
    let furt = World::with(Config { registration_rate: "1/min".parse().unwrap(), ..config() }, Limits::default()).await;
    let mut refused = 0;
    let last = loop {
        let answer = furt.register("/internal/register-service", &[], "{").await;
        if answer.status() != 400 {
            break answer;
        }
        refused += 1;
        assert!(refused <= 1000, "there is no limit");
    };
    last.is_refused(429, "RATE_LIMIT_EXCEEDED");
    assert!(last.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|seconds| seconds >= 1)));
}

#[tokio::test]
async fn queries_and_encodings_are_known_or_refused() {
    let furt = World::start().await;
    for query in ["dry_run=maybe", "dry_run", "dryrun=true", "dry_run=true&dry_run=true", "a=1"] {
        let target = format!("/internal/register-service?{query}");
        furt.register(&target, &[], SEED).await.is_refused(400, "VALIDATION_ERROR");
    }
    let encoded = furt.register("/internal/register-service", &["Content-Encoding: gzip"], SEED).await;
    let encoded = encoded.is_refused(400, "VALIDATION_ERROR");
    assert!(encoded["error"].as_str().unwrap().starts_with("Content-Encoding must be identity"), "{encoded}");
    assert_eq!(furt.register("/internal/register-service", &["Content-Encoding: identity"], SEED).await.status(), 200);
    furt.get("/internal/routes?servce=a").await.is_refused(400, "VALIDATION_ERROR");
    furt.get("/internal/explain?path=/a").await.is_refused(400, "VALIDATION_ERROR");
    furt.get("/internal/explain?method=GET&path=/a&key_name=nobody").await.is_refused(400, "VALIDATION_ERROR");
    let explained = furt.get("/internal/explain?method=GET&path=%2Fa&host=a.example").await.envelope();
    assert_eq!(explained["data"]["canonical_path"], "/a");
}

#[tokio::test]
async fn a_body_is_read_to_a_mebibyte_and_no_further() {
    let furt = World::start().await;
    let head =
        |framing: &str| format!("POST /internal/register-service HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{framing}\r\n\r\n");

    let mut chunked = head("Transfer-Encoding: chunked").into_bytes();
    for _ in 0..33 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.resize(chunked.len() + 0x10000, b' ');
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    furt.raw(&chunked).await.is_refused(413, "PAYLOAD_TOO_LARGE");

    let mut counted = head("Content-Length: 2000000").into_bytes();
    counted.resize(counted.len() + 2_000_000, b' ');
    furt.raw(&counted).await.is_refused(413, "PAYLOAD_TOO_LARGE");

    // A client that waits for leave to send hears no at once, and has sent nothing.
    furt.raw(head("Content-Length: 2000000\r\nExpect: 100-continue").as_bytes()).await.is_refused(413, "PAYLOAD_TOO_LARGE");

    let spaces = " ".repeat((1 << 20) - SEED.len());
    assert_eq!(furt.register("/internal/register-service", &[], &format!("{SEED}{spaces}")).await.status(), 200);
}

#[tokio::test]
async fn heads_are_bounded() {
    let furt = World::start().await;
    let long = format!("X-Long: {}", "x".repeat(MAX_HEAD));
    let many: Vec<String> = (0..200).map(|index| format!("X-{index}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for headers in [&[long.as_str()][..], &many] {
        let answer = furt.send("GET /health", headers, "").await;
        assert_eq!(answer.status(), 431, "{}", answer.0);
    }
}

#[tokio::test]
async fn silence_and_slow_heads_are_closed() {
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let furt = World::with(config(), limits).await;
    for slow in [&b""[..], b"P", b"PR", b"G", b"GET /health HTTP/1.1\r\nHost: local"] {
        // `raw` returns when furt closes; nothing else would end it.
        let answer = furt.raw(slow).await;
        assert!(!answer.0.starts_with("HTTP/1.1 200"), "{}", answer.0);
    }
    assert_eq!(furt.get("/health").await.status(), 200);
}

#[tokio::test]
async fn connections_wait_for_room() {
    let furt = World::with(config(), Limits { connections: 1, ..Limits::default() }).await;
    let mut first = TcpStream::connect(furt.address).await.unwrap();
    let mut ask = async || {
        first.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"true}") {
            answer.push(first.read_u8().await.unwrap());
        }
    };
    ask().await;
    let mut second = TcpStream::connect(furt.address).await.unwrap();
    second.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    // The first is served again and again while the second has nothing.
    for _ in 0..20 {
        ask().await;
        assert_eq!(second.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    drop(first);
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert_eq!(Answer(answer).status(), 200);
}

#[tokio::test]
async fn one_address_does_not_keep_the_others_out() {
    let furt = World::with(config(), Limits { connections_each: 1, ..Limits::default() }).await;
    let mut held = TcpStream::connect(furt.address).await.unwrap();
    held.write_all(b"GET /internal/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    held.read_u8().await.unwrap();
    let mut one_more = TcpStream::connect(furt.address).await.unwrap();
    assert!(!matches!(one_more.read(&mut [0]).await, Ok(1..)), "it is closed without a word");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(furt.address).await.unwrap();
    other.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert_eq!(Answer(answer).status(), 403, "heard, though not on the list");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_say_so() {
    let furt = World::start().await;
    for path in ["/", "/internal", "/internal/register-service/", "/api/comments/1", "/furt.v1.RegistryService/Register"] {
        furt.get(path).await.is_refused(404, "NOT_FOUND");
    }
    let answer = furt.get("/internal/register-service").await;
    answer.is_refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = furt.send("PUT /internal/services/sagjan", &[], "").await;
    answer.is_refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(answer.header("allow"), Some("GET,HEAD,DELETE"));
    furt.get("/internal/services/nobody").await.is_refused(404, "NOT_FOUND");
    furt.get("/internal/services/%ff").await.is_refused(400, "MALFORMED_REQUEST");
    for odd in ["CONNECT localhost:7810", "OPTIONS *"] {
        furt.send(odd, &["Host: localhost:7810"], "").await.is_refused(404, "NOT_FOUND");
    }
    let head = furt.send("HEAD /health", &[], "").await;
    assert_eq!((head.status(), head.body()), (200, ""));
    let web = furt.send("POST /furt.v1.RegistryService/ListServices", &["Content-Type: application/grpc-web"], "").await;
    web.is_refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn what_monitors_read_has_no_envelope() {
    let furt = World::start().await;
    let health = furt.get("/health").await;
    assert_eq!((health.status(), health.body()), (200, r#"{"status":"healthy","full":true}"#));
    assert_eq!((health.header("cache-control"), health.header("content-type")), (Some("no-store"), Some("application/json")));
    assert_eq!(furt.get("/health/live").await.status(), 200);
    assert_eq!(furt.get("/health/ready").await.status(), 503);
    let metrics = furt.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.body().ends_with("furt_test 1\n"), "{}", metrics.body());
}

#[tokio::test]
async fn reading_needs_a_role_by_both_ways() {
    let furt = World::with(with_token(config(), "look", Role::Reader), Limits::default()).await;
    let openapi = "/internal/openapi.json";
    for target in ["/internal/services", "/internal/routes", "/internal/explain?method=GET&path=/a", "/metrics", openapi] {
        let answer = furt.get(target).await;
        answer.is_refused(401, "UNAUTHORIZED");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        furt.send(&format!("GET {target}"), &["Authorization: Bearer guess"], "").await.is_refused(401, "UNAUTHORIZED");
        assert_eq!(furt.send(&format!("GET {target}"), &["Authorization: Bearer look"], "").await.status(), 200);
    }
    assert_eq!(furt.get("/health").await.status(), 200);
    furt.send("DELETE /internal/services/sagjan", &["Authorization: Bearer look"], "").await.is_refused(403, "FORBIDDEN");

    let mut client = RegistryServiceClient::new(furt.channel().await);
    let mut list = async |token: Option<&str>| {
        let mut request = tonic::Request::new(v1::ListServicesRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        client.list_services(request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(list(None).await, Err(tonic::Code::Unauthenticated));
    assert_eq!(list(Some("guess")).await, Err(tonic::Code::Unauthenticated));
    assert_eq!(list(Some("look")).await, Ok(()));
}

#[tokio::test]
async fn draining_takes_seconds_and_is_taken_back() {
    let furt = World::start().await;
    furt.register("/internal/register-service", &[], SEED).await.envelope();
    let post = |target: &'static str| furt.send(target, &[], "");
    let drained = post("POST /internal/services/sagjan/instances/default/drain?seconds=0").await.envelope();
    assert_eq!((&drained["message"], &drained["data"]["deregistered"]), (&"sagjan drained: 1 instance".into(), &false.into()));
    let shown = furt.get("/internal/services/sagjan").await.envelope();
    assert_eq!(shown["data"]["service"]["instances"][0]["drained"], true);
    let back = post("POST /internal/services/sagjan/undrain").await.envelope();
    assert_eq!((&back["message"], &back["data"]["instances"][0]), (&"sagjan undrained: 1 instance".into(), &"default".into()));
    let shown = furt.get("/internal/services/sagjan").await.envelope();
    assert_eq!(shown["data"]["service"]["instances"][0]["drained"], false);

    for query in ["seconds=301", "seconds=", "seconds=-1", "second=1", "seconds=1&seconds=1", "registration_id=a"] {
        let target = format!("POST /internal/services/sagjan/drain?{query}");
        furt.send(&target, &[], "").await.is_refused(400, "VALIDATION_ERROR");
    }
    post("POST /internal/services/sagjan/instances/default/drain?registration_id=old").await.is_refused(409, "STALE_REGISTRATION");
    post("POST /internal/services/obr/drain").await.is_refused(404, "NOT_FOUND");
    post("POST /internal/services/OBR/drain").await.is_refused(400, "VALIDATION_ERROR");
    let gone = post("POST /internal/services/sagjan/drain?seconds=0").await.envelope();
    assert_eq!(gone["data"]["deregistered"], false, "a whole service stays: it is an operator who drains it");
    furt.get("/internal/services/sagjan/drain").await.is_refused(405, "METHOD_NOT_ALLOWED");
}

#[tokio::test]
async fn a_reload_is_for_operators_and_tells_what_changed() {
    let furt = World::start().await;
    let done = furt.send("POST /internal/reload", &[], "").await.envelope();
    assert_eq!(done["message"], "furt.conf reloaded: 1 change");
    assert_eq!(done["data"].to_string(), r#"{"changes":["[gateway] hosts is a"],"warnings":[],"version":7}"#);
    furt.send("POST /internal/reload?now=1", &[], "").await.is_refused(400, "VALIDATION_ERROR");
    let furt = World::with(with_token(config(), "look", Role::Reader), Limits::default()).await;
    furt.send("POST /internal/reload", &[], "").await.is_refused(401, "UNAUTHORIZED");
    furt.send("POST /internal/reload", &["Authorization: Bearer look"], "").await.is_refused(403, "FORBIDDEN");
}

#[tokio::test]
async fn the_description_is_served_to_readers() {
    let furt = World::start().await;
    let answer = furt.get("/internal/openapi.json").await;
    assert_eq!((answer.status(), answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(serde_json::from_str::<Value>(answer.body()).unwrap(), openapi::document().unwrap());
}

#[tokio::test]
async fn a_client_without_proto_files_finds_the_services() {
    let furt = World::start().await;
    let channel = furt.channel().await;
    let expected = [
        "furt.v1.RegistryService",
        "furt.v1.SnapshotService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];

    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let ask = |message| reflection::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = [MessageRequest::ListServices(String::new()), MessageRequest::FileContainingSymbol("furt.v1.RegisterRequest".into())];
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter(questions.map(ask))).await.unwrap().into_inner();
    let listed = answers.message().await.unwrap().and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else { panic!("{listed:?}") };
    let mut names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    let file = answers.message().await.unwrap().and_then(|answer| answer.message_response);
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");

    use v1alpha::server_reflection_request::MessageRequest as AlphaRequest;
    use v1alpha::server_reflection_response::MessageResponse as AlphaResponse;
    let question =
        v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(AlphaRequest::ListServices(String::new())) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
    let listed = answers.message().await.unwrap().and_then(|answer| answer.message_response);
    let Some(AlphaResponse::ListServicesResponse(listed)) = listed else { panic!("{listed:?}") };
    let mut names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn an_rpc_registers_like_the_json_endpoint() {
    let furt = World::start().await;
    let mut client = RegistryServiceClient::new(furt.channel().await);
    let (request, _) = crate::json::decode(SEED.as_bytes()).unwrap();
    let answer = client.register(request.clone()).await.unwrap().into_inner();
    assert_eq!((&*answer.service, &*answer.instance, answer.routes), ("sagjan", "default", 4));

    let bad = v1::RegisterRequest { url: "ftp://a".into(), ..request };
    let status = client.register(bad).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| &*info.reason), Some("VALIDATION_ERROR"));
    let violations = &details.bad_request().unwrap().field_violations;
    assert!(violations.iter().any(|violation| violation.field == "url"), "{violations:?}");

    let large = v1::RegisterRequest { version: "x".repeat(2 << 20), ..v1::RegisterRequest::default() };
    let status = client.register(large).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    let explained = client.explain(v1::ExplainRequest::default()).await.unwrap_err();
    assert_eq!(explained.code(), tonic::Code::InvalidArgument);
}

/// A store that has something against every commit.
struct Broken;

fn full() -> StoreError {
    StoreError::Full { file: "store".into(), cause: "a test".into() }
}

impl Store for Broken {
    fn load(&mut self) -> Result<store::Loaded, StoreError> {
        Ok(store::Loaded::default())
    }
    fn commit(&mut self, _: &store::Batch) -> Result<(), StoreError> {
        Err(full())
    }
    fn recover(&mut self, _: &[(store::Key, Vec<u8>)], _: i64) -> Result<(), StoreError> {
        Err(full())
    }
    fn blocks(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_with_when_to_try_again_by_both_ways() {
    let furt = World::over(Registry::with_store(with_sagjan(config()), Box::new(Broken)), Limits::default()).await;
    let answer = furt.register("/internal/register-service", &[], SEED).await;
    answer.is_refused(503, "STORE_UNAVAILABLE");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let mut client = RegistryServiceClient::new(furt.channel().await);
    let (request, _) = crate::json::decode(SEED.as_bytes()).unwrap();
    let status = client.register(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| &*info.reason), Some("STORE_UNAVAILABLE"));
    assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_secs(1)));
    assert_eq!(furt.get("/internal/services").await.envelope()["data"]["services"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_refused_rpc_gets_a_status() {
    let furt = World::start().await;
    let channel = furt.channel().await;
    let forwarded = |()| {
        let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
        request.metadata_mut().insert("x-forwarded-for", "127.0.0.1".parse().unwrap());
        request
    };
    let status = HealthClient::new(channel.clone()).check(forwarded(())).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert_eq!(status.get_error_details().error_info().map(|info| info.reason.clone()), Some("REGISTRATION_REFUSED".into()));

    let foreign = Channel::from_shared(format!("http://{}", furt.address)).unwrap();
    let foreign = foreign.origin("http://evil.example".parse().unwrap()).connect().await.unwrap();
    let status = RegistryServiceClient::new(foreign).list_services(v1::ListServicesRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");

    // Over HTTP/1.1 too: the head alone carries the status.
    let answer = furt.send("POST /any.Thing/Else", &["Content-Type: application/grpc", "X-Real-IP: 127.0.0.1"], "").await;
    assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("7")), "{}", answer.0);
    let answer = furt.send("POST /any.Thing/Else", &["Content-Type: application/grpc"], "").await;
    assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("12")), "{}", answer.0);
}

#[tokio::test]
async fn snapshots_are_for_data_planes() {
    use v1::snapshot_service_client::SnapshotServiceClient;
    let furt = World::with(with_token(config(), "plane", Role::DataPlane), Limits::default()).await;
    let mut client = SnapshotServiceClient::new(furt.channel().await);
    assert_eq!(client.get(v1::GetRequest {}).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(v1::GetRequest {});
    request.metadata_mut().insert("authorization", "Bearer plane".parse().unwrap());
    assert!(client.get(request).await.is_ok());
}

#[tokio::test]
async fn shutdown_ends_streams_and_returns() {
    let furt = World::start().await;
    let mut client = HealthClient::new(furt.channel().await);
    let request = HealthCheckRequest { service: "furt.v1.RegistryService".into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let mut idle = TcpStream::connect(furt.address).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    idle.readable().await.unwrap();

    furt.shutdown.cancel();
    let ended = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    assert_eq!(ended.await, tonic::Code::Unavailable);
    timeout(Duration::from_secs(2), furt.running).await.expect("no connection had to be cut").unwrap();
    assert!(TcpStream::connect(furt.address).await.is_err());
}
