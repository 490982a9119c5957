//! gRPC through furt by another implementation at both ends: Python's grpcio, which is built on C++.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    client::{Client, Request},
    peer::Peer,
    tls::party::{Files, Pair},
    upstream::Upstream,
    world::{Conf, READER_KEY, WEBSITE_KEY, World, eventually, registration},
};

/// May do everything, twice an hour.
const SLOW_KEY: &str = "slow-key-0123456789-0123456789-01";

/// A furt with a service behind it and a client in front.
struct Line {
    furt: World,
    server: Peer,
    client: Peer,
}

impl Line {
    /// `None`: Python's packages are not here.
    fn start(conf: Conf) -> Option<Self> {
        let server = Peer::start("grpc_server.py", "grpc", [""; 0])?;
        let port = server.tells("port");
        let route = |name: &str, access: &str| {
            format!("[route \"{name}\"]\nmethods = POST\npath = /{name}.S/*\nurl = http://127.0.0.1:{port}\nprotocol = h2\n{access}\n")
        };
        let key = format!("[api_key \"{SLOW_KEY}\"]\nname = Slow\npermissions = *\nrate_limit = 2/h\n");
        let more = [route("t", "public = true"), route("k", "permission = comments:write"), key].concat();
        let furt = conf.more(&more).start();
        let client = Peer::start("grpc_client.py", "grpc", [furt.public.to_string()])?;
        Some(Self { furt, server, client })
    }

    #[track_caller]
    fn call(&mut self, kind: &str, method: &str, send: &[Value]) -> Value {
        self.client.ask(&json!({"call": method, "kind": kind, "send": send}))
    }
}

#[track_caller]
fn ok(outcome: &Value, answers: &Value) {
    assert_eq!((&outcome["code"], &outcome["answers"]), (&json!("OK"), answers), "{outcome}");
}

/// A refusal of furt's own: its status, some words, and its reason for machines.
#[track_caller]
fn refused(outcome: &Value, code: &str, reason: &str) {
    assert_eq!(outcome["code"], code, "{outcome}");
    assert!(outcome["details"].as_str().is_some_and(|details| !details.is_empty()), "{outcome}");
    let told = ["first", "last"].map(|part| outcome[part]["x-furt-reason"].clone());
    assert!(told.contains(&json!(reason)), "{outcome}");
}

#[test]
fn all_four_kinds_of_call_and_their_metadata_go_through() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    let outcome = line.call("unary", "/t.S/Unary", &[json!("hello")]);
    ok(&outcome, &json!(["hello"]));
    assert_eq!((&outcome["first"]["x-first"], &outcome["first"]["x-gateway"]), (&json!("early"), &json!("furt")), "{outcome}");
    assert_eq!((&outcome["last"]["x-last"], &outcome["last"]["x-bytes-bin"]), (&json!("late"), &json!("00ff802c")), "{outcome}");
    let seen = line.server.tells("metadata");
    assert!(seen["x-request-id"].is_string() && seen["user-agent"].as_str().is_some_and(|agent| agent.contains("grpc-python")), "{seen}");

    all_four_kinds(&mut line);
}

#[track_caller]
fn all_four_kinds(line: &mut Line) {
    ok(&line.call("unary", "/t.S/Echo", &[json!("hello")]), &json!(["hello"]));
    ok(&line.call("down", "/t.S/Count", &[json!("5")]), &json!(["0", "1", "2", "3", "4"]));
    ok(&line.call("down", "/t.S/Count", &[json!("0")]), &json!([]));
    ok(&line.call("up", "/t.S/Join", &[json!("a"), json!("b"), json!("c")]), &json!(["a+b+c"]));
    ok(&line.call("both", "/t.S/Bidi", &[json!("a"), json!("b"), json!("c")]), &json!(["A", "B", "C"]));
    ok(&line.call("both", "/t.S/Bidi", &[]), &json!([]));
}

#[test]
fn all_four_kinds_of_call_go_through_over_tls() {
    let (files, (authority, own)) = (Files::new(), Pair::below_an_authority(&["a.test"]));
    files.put("a", &own);
    files.write("authority.pem", &authority.pem);
    let [certificates, keys] = files.lines(&["a"]);
    let Some(mut line) = Line::start(Conf::new().server(&certificates).server(&keys)) else { return };
    let arguments = [line.furt.public.to_string(), files.path("authority.pem").display().to_string(), "a.test".into()];
    line.client = Peer::start("grpc_client.py", "grpc", arguments).expect("the first one started");
    all_four_kinds(&mut line);
    let none = json!({"call": "/k.S/Echo", "kind": "unary", "send": [""]});
    refused(&line.client.ask(&none), "UNAUTHENTICATED", "no-key");
}

#[test]
fn a_client_that_is_gone_without_a_word_ends_its_calls_at_the_service() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    line.client.order(&json!({"call": "/t.S/Wait", "kind": "unary", "send": [""], "timeout": 60}));
    line.server.tells("patience");
    line.client.kill();
    assert_eq!(line.server.tells("cancelled"), true);
}

#[test]
fn a_call_may_be_silent_for_longer_than_any_body() {
    let Some(mut line) = Line::start(Conf::new().server("body_idle_timeout = 200ms")) else { return };
    line.client.order(&json!({"call": "/t.S/Pause", "kind": "down", "send": ["1"]}));
    line.server.tells("pausing");
    let plain = Upstream::start("plain");
    line.furt.register("plain", &plain.url(), &["POST /plain comments:write"]);
    let upload = format!("POST /plain HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nContent-Length: 9\r\n\r\nhalf");
    for _ in 0..2 {
        let mut stalled = Client::new(line.furt.public);
        stalled.write(&upload).expect("sent");
        stalled.read("POST").expect("an answer").refused(408, "REQUEST_TIMEOUT");
    }
    line.server.order(&json!("go on"));
    ok(&line.client.says(), &json!(["before", "after"]));
}

#[test]
fn messages_of_four_mebibytes_arrive_whole_in_both_directions() {
    let Some(mut line) = Line::start(Conf::new().server("max_body_size = 64 MiB")) else { return };
    let size = 4 * 1024 * 1024;
    let hash: String = Sha256::digest(b"0123456789abcdef".repeat(size / 16)).iter().map(|byte| format!("{byte:02x}")).collect();
    let whole = json!([size, hash]);
    ok(&line.call("unary", "/t.S/Echo", &[json!(size)]), &json!([whole]));
    let streamed = vec![json!(size); 3];
    let outcome = line.call("both", "/t.S/Same", &streamed);
    ok(&outcome, &json!([whole, whole, whole]));
}

#[test]
fn a_status_of_the_service_arrives_with_its_words_and_details() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    let outcome = line.call("unary", "/t.S/Refuse", &[json!("verloren: 100 % & ünïcode\n")]);
    assert_eq!((&outcome["code"], &outcome["details"]), (&json!("DATA_LOSS"), &json!("verloren: 100 % & ünïcode\n")), "{outcome}");
    assert_eq!((&outcome["last"]["grpc-status-details-bin"], &outcome["last"]["x-last"]), (&json!("080f1204676f6e65"), &json!("late")));
    let outcome = line.call("down", "/t.S/FailLater", &[json!("")]);
    assert_eq!(outcome["answers"], json!(["one"]), "{outcome}");
    assert_eq!((&outcome["code"], &outcome["details"]), (&json!("ABORTED"), &json!("in the middle")), "{outcome}");
    // A method that the service does not have is its own answer, not furt's.
    assert_eq!(line.call("unary", "/t.S/None", &[json!("")])["code"], "UNIMPLEMENTED");
}

#[test]
fn a_deadline_and_a_cancel_reach_the_service() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    let before = Instant::now();
    let outcome = line.client.ask(&json!({"call": "/t.S/Wait", "kind": "unary", "send": [""], "timeout": 1}));
    assert_eq!(outcome["code"], "DEADLINE_EXCEEDED", "{outcome}");
    assert!(before.elapsed() < Duration::from_secs(10), "by its deadline: {:?}", before.elapsed());
    let patience = line.server.tells("patience").as_f64();
    assert!(patience.is_some_and(|patience| patience <= 1.0), "the service is told the deadline: {patience:?}");
    assert_eq!(line.server.tells("cancelled"), true, "the service sees that nobody waits");

    let mut order = json!({"call": "/t.S/StreamOn", "kind": "down", "send": [""], "cancel_after": 3});
    assert_eq!(line.client.ask(&order)["received"], 3);
    assert_eq!(line.client.says()["code"], "CANCELLED");
    assert_eq!(line.server.tells("cancelled"), true);
    // The same connection goes on.
    order = json!({"call": "/t.S/Echo", "kind": "unary", "send": ["again"]});
    ok(&line.client.ask(&order), &json!(["again"]));
    eventually("nothing is in flight", || {
        let metrics = Request::get("/metrics").send(line.furt.internal).text();
        let mut flights = metrics.lines().filter(|line| line.starts_with("furt_upstream_in_flight{"));
        flights.all(|line| line.ends_with(" 0")).then_some(())
    });
}

#[test]
fn three_hundred_calls_at_once_on_one_connection() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    let outcomes = line.client.ask(&json!({"call": "/t.S/Echo", "kind": "unary", "send": ["x"], "times": 300}));
    let outcomes = outcomes.as_array().expect("outcomes");
    assert_eq!(outcomes.len(), 300);
    outcomes.iter().for_each(|outcome| ok(outcome, &json!(["x"])));
    let outcomes = line.client.ask(&json!({"call": "/t.S/Count", "kind": "down", "send": ["3"], "times": 300}));
    outcomes.as_array().expect("outcomes").iter().for_each(|outcome| ok(outcome, &json!(["0", "1", "2"])));
}

#[test]
fn a_service_that_dies_in_the_middle_is_an_error_and_no_silence() {
    let Some(mut line) = Line::start(Conf::new()) else { return };
    line.client.order(&json!({"call": "/t.S/StreamOn", "kind": "down", "send": [""]}));
    eventually("the call is under way", || {
        let metrics = Request::get("/metrics").send(line.furt.internal).text();
        metrics.lines().any(|line| line.starts_with("furt_upstream_in_flight{") && line.ends_with(" 1")).then_some(())
    });
    line.server.kill();
    let outcome = line.client.says();
    assert!(["UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"].map(Value::from).contains(&outcome["code"]), "{outcome}");
    let outcome = line.call("unary", "/t.S/Echo", &[json!("x")]);
    assert_eq!(outcome["code"], "UNAVAILABLE", "nobody listens any more: {outcome}");
}

#[test]
fn furt_refuses_in_words_of_grpc() {
    let Some(mut line) = Line::start(Conf::new().quick()) else { return };
    let order = |method: &str, key: &str| json!({"call": method, "kind": "unary", "send": [""], "key": key});
    let none = json!({"call": "/k.S/Echo", "kind": "unary", "send": [""]});
    refused(&line.client.ask(&none), "UNAUTHENTICATED", "no-key");
    refused(&line.client.ask(&order("/k.S/Echo", "no such key")), "UNAUTHENTICATED", "unknown-key");
    refused(&line.client.ask(&order("/k.S/Echo", READER_KEY)), "PERMISSION_DENIED", "permission");
    refused(&line.client.ask(&order("/none.S/Echo", WEBSITE_KEY)), "NOT_FOUND", "no-route");
    ok(&line.client.ask(&order("/k.S/Echo", WEBSITE_KEY)), &json!([""]));
    for _ in 0..2 {
        ok(&line.client.ask(&order("/k.S/Echo", SLOW_KEY)), &json!([""]));
    }
    refused(&line.client.ask(&order("/k.S/Echo", SLOW_KEY)), "RESOURCE_EXHAUSTED", "rate-limit");
}

#[test]
fn a_service_that_registers_is_called_and_unavailable_when_it_is_down() {
    let Some(mut line) = Line::start(Conf::new().quick()) else { return };
    let mut other = Peer::start("grpc_server.py", "grpc", [""; 0]).expect("the first one started");
    let url = format!("http://127.0.0.1:{}", other.tells("port"));
    let mut body = registration("greeter", &url, &["POST /r.S/* comments:read"]);
    body["protocol"] = json!("h2");
    body["health_endpoint"] = json!("/grpc.health.v1.Health/Check");
    assert_eq!(line.furt.post(&body).status, 200);
    line.furt.until("greeter", "UP");
    let order = json!({"call": "/r.S/Echo", "kind": "unary", "send": ["x"], "key": READER_KEY});
    ok(&line.client.ask(&order), &json!(["x"]));
    other.kill();
    line.furt.until("greeter", "DOWN");
    refused(&line.client.ask(&order), "UNAVAILABLE", "no-instance");
}
