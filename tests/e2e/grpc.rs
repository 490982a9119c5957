//! Every RPC by the real grpcurl, with no proto file; in `docs` the page that shows them.
//!
//! Its path comes from `FURT_GRPCURL`; without it these tests say that they were skipped.

mod docs;
mod python;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    client::Request,
    upstream::Upstream,
    world::{World, eventually, registration},
};

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read"];

struct Grpcurl {
    program: String,
    address: String,
}

impl Grpcurl {
    /// None when there is no grpcurl, which is said aloud: not through the captured output of a test that passes.
    fn find(furt: &World) -> Option<Self> {
        let Ok(program) = std::env::var("FURT_GRPCURL") else {
            let _ = writeln!(std::io::stderr(), "SKIPPED: FURT_GRPCURL is not set, the tests with the real grpcurl did not run");
            return None;
        };
        Some(Self { program, address: furt.internal.to_string() })
    }

    fn run(&self, before: &[&str], after: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("-plaintext").args(["-max-time", "20"]).args(before).arg(&self.address).args(after).stdin(Stdio::null());
        command.output().unwrap_or_else(|error| panic!("{}: {error}", self.program))
    }

    #[track_caller]
    fn text(&self, before: &[&str], after: &[&str]) -> String {
        let output = self.run(before, after);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Sends messages on one stream, which furt ends.
    fn say(&self, method: &str, messages: &[Value]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(["-plaintext", "-max-time", "20", "-emit-defaults", "-d", "@", &self.address, method]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("grpcurl starts");
        let text: String = messages.iter().map(|message| format!("{message}\n")).collect();
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("grpcurl reads");
        child.wait_with_output().expect("grpcurl ends")
    }

    /// What was answered on such a stream.
    #[track_caller]
    fn to_its_end(&self, method: &str, messages: &[Value]) -> Vec<Value> {
        let output = self.say(method, messages);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        answers.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// The first answers on a stream that does not end by itself.
    #[track_caller]
    fn first(&self, count: usize, method: &str, request: &Value) -> Vec<Value> {
        let mut command = Command::new(&self.program);
        command.args(["-plaintext", "-max-time", "20", "-emit-defaults", "-d", &request.to_string(), &self.address, method]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("grpcurl starts");
        let answers = serde_json::Deserializer::from_reader(child.stdout.take().expect("piped")).into_iter();
        let answers = answers.take(count).collect::<Result<Vec<_>, _>>();
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        let answers = answers.expect("whole answers");
        assert_eq!(answers.len(), count, "{method}: {answers:?}");
        answers
    }

    #[track_caller]
    fn call(&self, method: &str, request: &Value) -> Value {
        let text = self.text(&["-emit-defaults", "-d", &request.to_string()], &[method]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

#[test]
fn grpcurl_lists_and_describes_the_api() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let services = grpcurl.text(&[], &["list"]);
    let expected = [
        "furt.v1.RegistryService",
        "furt.v1.SnapshotService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    assert_eq!(services.lines().collect::<Vec<_>>(), expected);
    let methods = grpcurl.text(&[], &["list", "furt.v1.RegistryService"]);
    let names =
        ["Register", "Deregister", "Drain", "Probe", "GetService", "ListServices", "ListRoutes", "Explain", "WatchEvents", "Session"];
    for name in names {
        assert!(methods.lines().any(|line| line == format!("furt.v1.RegistryService.{name}")), "{name} is not listed:\n{methods}");
    }
    let described = grpcurl.text(&[], &["describe", "furt.v1.RegisterRequest"]);
    for words in ["string service = 1;", "repeated .furt.v1.Route routes = 4;", "The service's name"] {
        assert!(described.contains(words), "{words:?} is not described:\n{described}");
    }
}

#[test]
fn grpcurl_registers_lists_explains_and_is_refused_in_words() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let sagjan = Upstream::start("sagjan");
    let body = registration("sagjan", &sagjan.url(), COMMENTS);
    // The very body of the JSON endpoint.
    let answer = grpcurl.call("furt.v1.RegistryService/Register", &body);
    assert_eq!((&answer["service"], &answer["routes"]), (&json!("sagjan"), &json!(1)));
    furt.get("/api/comments/a").status(200);
    furt.until("sagjan", "UP");

    let services = grpcurl.call("furt.v1.RegistryService/ListServices", &json!({}));
    assert_eq!(services["services"][0]["service"], "sagjan");
    assert_eq!(services["services"][0]["status"], "UP");
    assert_eq!(services["services"][0]["instances"][0]["url"], sagjan.url());
    let routes = grpcurl.call("furt.v1.RegistryService/ListRoutes", &json!({"service": "sagjan"}));
    assert_eq!((&routes["routes"][0]["path"], &routes["routes"][0]["active"]), (&json!("/api/comments/*"), &json!(true)));
    let request = json!({"method": "GET", "path": "/api/comments/a", "key_name": "Reader"});
    let explained = grpcurl.call("furt.v1.RegistryService/Explain", &request);
    assert_eq!((&explained["outcome"]["code"], &explained["canonicalPath"]), (&json!("FORWARD"), &json!("/api/comments/a")));
    // The names that the JSON answer has (DESIGN §4).
    assert_eq!((&explained["route"]["service"], &explained["route"]["pattern"]), (&json!("sagjan"), &json!("/api/comments/*")));
    let snapshot = grpcurl.call("furt.v1.SnapshotService/Get", &json!({}));
    assert_eq!(snapshot["snapshot"]["services"][0]["name"], "sagjan");

    let bad = registration("sagjan", "ftp://a", COMMENTS).to_string();
    let output = grpcurl.run(&["-d", &bad], &["furt.v1.RegistryService/Register"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("InvalidArgument") && told.contains("url"), "{told}");

    let gone = grpcurl.call("furt.v1.RegistryService/Deregister", &json!({"service": "sagjan", "instance": "default"}));
    assert_eq!(gone["instances"], json!(["default"]));
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
}

#[test]
fn grpcurl_drains_probes_and_follows() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let sagjan = Upstream::start("sagjan");
    let registered = grpcurl.call("furt.v1.RegistryService/Register", &registration("sagjan", &sagjan.url(), COMMENTS));
    furt.until("sagjan", "UP");
    let one = json!({"service": "sagjan", "instance": "default", "seconds": 1});
    let drained = grpcurl.call("furt.v1.RegistryService/Drain", &one);
    assert_eq!((&drained["instances"], &drained["deregistered"]), (&json!(["default"]), &json!(false)), "an operator's");
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
    let service = grpcurl.call("furt.v1.RegistryService/GetService", &json!({"service": "sagjan"}));
    let instance = &service["service"]["instances"][0];
    assert_eq!((&instance["drained"], &instance["status"]), (&json!(true), &json!("UP")));
    assert_eq!((instance["uptime"].as_array().map(Vec::len), &instance["timeline"][0]["to"]), (Some(3), &json!("UP")));
    let undrained = grpcurl.call("furt.v1.RegistryService/Drain", &json!({"service": "sagjan", "instance": "default", "undo": true}));
    assert_eq!(undrained["instances"], json!(["default"]));
    furt.get("/api/comments/a").status(200);
    let probes = sagjan.probes().len();
    let probed = grpcurl.call("furt.v1.RegistryService/Probe", &json!({"service": "sagjan"}));
    assert_eq!(probed["instances"], json!(["default"]));
    eventually("it is probed now", || (sagjan.probes().len() > probes).then_some(()));

    let events = grpcurl.first(4, "furt.v1.RegistryService/WatchEvents", &json!({"since": "0", "service": "sagjan"}));
    let kinds: Vec<_> = events.iter().filter_map(|event| event["event"]["kind"].as_str()).collect();
    assert_eq!(kinds, ["REGISTERED", "TRANSITION", "DRAINED", "UNDRAINED"]);
    let snapshots = grpcurl.first(1, "furt.v1.SnapshotService/Watch", &json!({}));
    assert_eq!((&snapshots[0]["whole"], &snapshots[0]["services"][0]["name"]), (&json!(true), &json!("sagjan")));
    let health = grpcurl.first(1, "grpc.health.v1.Health/Watch", &json!({}));
    assert_eq!(health, [json!({"status": "SERVING"})]);

    let farewell = json!({"service": "sagjan", "instance": "default", "registration_id": registered["registrationId"]});
    assert_eq!(grpcurl.call("furt.v1.RegistryService/Drain", &farewell)["deregistered"], true);
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
}

#[test]
fn grpcurl_holds_a_session() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let sagjan = Upstream::start("sagjan");
    let body = registration("sagjan", &sagjan.url(), COMMENTS);
    let said = [json!({"register": body}), json!({"keep_alive": {}}), json!({"farewell": {"seconds": 1}})];
    let answers = grpcurl.to_its_end("furt.v1.RegistryService/Session", &said);
    assert_eq!(answers[0]["registered"]["service"], "sagjan");
    let states = &answers[1..answers.len() - 1];
    assert!(!states.is_empty() && states.iter().all(|answer| answer["state"]["status"].is_string()), "{answers:?}");
    let drained = &answers[answers.len() - 1]["drained"];
    assert_eq!((&drained["instances"], &drained["deregistered"]), (&json!(["default"]), &json!(true)));
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");

    let output = grpcurl.say("furt.v1.RegistryService/Session", &said[1..]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("InvalidArgument") && told.contains("register"), "{told}");
}

#[test]
fn grpcurl_checks_health() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let answer = grpcurl.call("grpc.health.v1.Health/Check", &json!({}));
    assert_eq!(answer["status"], "SERVING");
    let answer = grpcurl.call("grpc.health.v1.Health/Check", &json!({"service": "furt.v1.RegistryService"}));
    assert_eq!(answer["status"], "SERVING");
}

#[test]
fn grpc_and_http_share_the_internal_port() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let services = furt.grpc(async |mut client| client.list_services(furt_proto::v1::ListServicesRequest {}).await).expect("answered");
    let services = services.into_inner().services;
    assert_eq!(services.iter().map(|service| service.service.as_str()).collect::<Vec<_>>(), ["sagjan"]);
    // A plain request for an unknown path is furt's own 404, not an empty gRPC answer.
    Request::get("/nowhere").send(furt.internal).refused(404, "NOT_FOUND");
}
