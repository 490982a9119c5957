//! `/internal/openapi.json` against what really serves: every path answers as it is described, and nothing else.

mod schema;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, Request},
    upstream::{Health, Upstream},
    world::{Conf, World, eventually, registration},
};
use schema::Document;

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read"];

/// Asks and compares; keeps what was seen.
struct Asker<'a> {
    furt: &'a World,
    document: Document,
    seen: BTreeMap<String, BTreeSet<u16>>,
}

impl<'a> Asker<'a> {
    fn new(furt: &'a World, document: Value) -> Self {
        Self { furt, document: Document::new(document), seen: BTreeMap::new() }
    }

    /// Sends what is meant for an operation and checks the answer against its description.
    #[track_caller]
    fn ask(&mut self, operation: &str, request: &Request) -> Answer {
        let answer = request.send(self.furt.internal);
        self.check(operation, &answer);
        answer
    }

    #[track_caller]
    fn check(&mut self, operation: &str, answer: &Answer) {
        let described = self.document.response(operation, answer.status);
        for (name, header) in described["headers"].as_object().into_iter().flatten() {
            let value = answer.field(name).unwrap_or_else(|| panic!("{operation}: no {name} in {answer:?}"));
            // What looks like a number is one, as far as a description of a header goes.
            let value = value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from);
            let faults = self.document.faults(&header["schema"], &value);
            assert!(faults.is_empty(), "{operation}: {name}: {faults:?}");
        }
        let content_type = answer.field("content-type").unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
        let Some(content) = described["content"].get(&content_type) else {
            panic!("{operation}: {content_type:?} is not described: {answer:?}")
        };
        let body = if content_type == "application/json" { answer.json() } else { answer.text().into() };
        let faults = self.document.faults(&content["schema"], &body);
        assert!(faults.is_empty(), "{operation}: {faults:#?} in {answer:?}");
        self.seen.entry(operation.into()).or_default().insert(answer.status);
    }

    /// Every operation with its parameters, as `(name, method, path with names filled in, known query parameters)`.
    fn operations(&self) -> Vec<(String, String, String)> {
        self.document
            .operations()
            .map(|(path, method, operation)| {
                let path = path.replace("{service}", "sagjan").replace("{instance}", "default");
                let query = if operation["operationId"] == "explain" { "?method=GET&path=/a" } else { "" };
                (operation["operationId"].as_str().expect("a name").to_owned(), method.to_uppercase(), format!("{path}{query}"))
            })
            .collect()
    }
}

fn described(furt: &World) -> Value {
    let answer = Request::get("/internal/openapi.json").send(furt.internal);
    answer.status(200);
    answer.json()
}

fn get(target: &str) -> Request {
    Request::get(target)
}
fn post(target: &str) -> Request {
    Request::post(target, "")
}
fn delete(target: &str) -> Request {
    Request::new("DELETE", target)
}
fn register(body: &Value) -> Request {
    Request::post("/internal/register-service", body.to_string())
}

#[test]
fn every_path_answers_as_it_is_described() {
    let conf = Conf::new()
        .quick()
        .gateway("registration_rate = 30/min")
        .grants("[service \"*\"]\npermissions = comments:*\n[service \"obr\"]\npermissions = comments:*\n");
    let mut furt = conf.clone().start();
    let sagjan = Upstream::start("sagjan");
    let url = sagjan.url();
    furt.rewrite(conf.more("[api_key \"another-key-0123456789-0123456789\"]\nname = Another\npermissions = comments:read\n"));
    let mut asker = Asker::new(&furt, described(&furt));
    let body = registration("sagjan", &url, COMMENTS);

    asker.ask("register", &Request::post("/internal/register-service?dry_run=true", body.to_string())).status(200);
    asker.ask("register", &register(&body)).status(200);
    // A timeline and an uptime, of a service that was away for a while.
    furt.until("sagjan", "UP");
    sagjan.set_health(Health::Status(500));
    furt.until("sagjan", "DOWN");
    asker.ask("getService", &get("/internal/services/sagjan")).status(200);
    asker.ask("health", &get("/health")).status(200);
    sagjan.set_health(Health::Status(200));
    furt.until("sagjan", "UP");

    asker.ask("register", &register(&registration("obr", &url, COMMENTS))).status(409);
    asker.ask("register", &register(&registration("sagjan", "nowhere", &["GET /a", "get /b x:y:"]))).status(400);
    asker.ask("register", &register(&registration("sagjan", &url, &["GET /api/mail mail:read"]))).status(403);
    asker.ask("register", &Request::post("/internal/register-service", "{")).status(400);
    asker.ask("register", &Request::post("/internal/register-service", " ".repeat(2 << 20))).status(413);
    let mut second = body.clone();
    second["instance"] = "second".into();
    asker.ask("register", &register(&second)).status(200);

    let shown = asker.ask("getService", &get("/internal/services/sagjan"));
    let instance = shown.json()["data"]["service"]["instances"][0].clone();
    assert!(instance["timeline"].as_array().is_some_and(|steps| steps.len() >= 3), "{instance}");
    assert_eq!(instance["uptime"].as_array().map(Vec::len), Some(3), "{instance}");
    let listed = asker.ask("listServices", &get("/internal/services")).json()["data"]["services"][0]["instances"][0].clone();
    assert_eq!((&listed["timeline"], &listed["uptime"]), (&json!([]), &json!([])), "a list leaves them out");
    asker.ask("getService", &get("/internal/services/nobody")).status(404);
    asker.ask("listRoutes", &get("/internal/routes")).status(200);
    asker.ask("listRoutes", &get("/internal/routes?service=sagjan")).status(200);
    asker.ask("explain", &get("/internal/explain?method=GET&path=/api/comments/a&key_name=Website")).status(200);
    asker.ask("explain", &get("/internal/explain?method=GET&path=/nowhere")).status(200);
    asker.ask("explain", &get("/internal/explain?method=GET&path=")).status(400);
    asker.ask("health", &get("/health")).status(200);
    asker.ask("live", &get("/health/live")).status(200);
    asker.ask("ready", &get("/health/ready")).status(200);
    asker.ask("metrics", &get("/metrics")).status(200);
    asker.ask("openapi", &get("/internal/openapi.json")).status(200);

    asker.ask("probeService", &post("/internal/services/sagjan/probe")).status(200);
    asker.ask("probe", &post("/internal/services/sagjan/instances/second/probe")).status(200);
    asker.ask("drainService", &post("/internal/services/sagjan/drain?seconds=0")).status(200);
    asker.ask("getService", &get("/internal/services/sagjan")).status(200);
    asker.ask("health", &get("/health")).status(200);
    asker.ask("undrain", &post("/internal/services/sagjan/instances/second/undrain")).status(200);
    asker.ask("undrainService", &post("/internal/services/sagjan/undrain")).status(200);
    asker.ask("drain", &post("/internal/services/sagjan/instances/second/drain?registration_id=old")).status(409);
    let id = instance["registration_id"].as_str().expect("an id");
    let drain = format!("/internal/services/sagjan/instances/default/drain?registration_id={id}&seconds=300");
    let drained = asker.ask("drain", &post(&drain));
    assert_eq!(drained.json()["data"]["deregistered"], true, "{drained:?}");
    asker.ask("deregister", &delete("/internal/services/sagjan/instances/second?registration_id=old")).status(409);
    asker.ask("deregister", &delete("/internal/services/sagjan/instances/second")).status(200);
    asker.ask("register", &register(&body)).status(200);
    let reloaded = furt.reload();
    asker.check("reload", &reloaded);
    reloaded.status(200);
    std::fs::write(furt.dir.join("furt.conf"), "[server]\nport = many\n").expect("furt.conf is written");
    asker.ask("reload", &post("/internal/reload")).status(400);
    let limited = eventually("there is a limit", || Some(asker.ask("register", &register(&body))).filter(|answer| answer.status == 429));
    limited.refused(429, "RATE_LIMIT_EXCEEDED");
    asker.ask("deregisterService", &delete("/internal/services/sagjan")).status(200);

    for (name, method, target) in asker.operations() {
        let request = Request::new(&method, &target);
        // What is wrong before any path is looked at, and what is wrong with every path that knows its parameters.
        asker.ask(&name, &request.clone().field("X-Forwarded-For", "127.0.0.1")).refused(403, "REGISTRATION_REFUSED");
        asker.ask(&name, &request.clone().host("evil.example")).refused(403, "FORBIDDEN");
        asker.ask(&name, &request.clone().field("Host", "localhost")).refused(400, "MALFORMED_REQUEST");
        if asker.document.knows(&name, "VALIDATION_ERROR") && name != "register" {
            let glue = if target.contains('?') { '&' } else { '?' };
            asker.ask(&name, &Request::new(&method, &format!("{target}{glue}unknown=1"))).refused(400, "VALIDATION_ERROR");
        }
        if target.contains("sagjan") {
            asker.ask(&name, &request).refused(404, "NOT_FOUND");
        }
    }
    asker.events();
    for (name, ..) in asker.operations() {
        assert!(asker.seen.get(&name).is_some_and(|statuses| statuses.contains(&200)), "{name} was never asked with success");
    }
}

impl Asker<'_> {
    /// Every event so far, each compared with its description.
    fn events(&mut self) {
        let mut client = Client::new(self.furt.internal);
        client.write(get("/internal/events?since=0").to_bytes(self.furt.internal)).expect("the request is sent");
        let head = client.head().expect("an answer");
        assert!(head.line.starts_with("HTTP/1.1 200 "), "{}", head.line);
        let schema = self.document.response("watchEvents", 200)["content"]["text/event-stream"]["x-data"].clone();
        let mut kinds = BTreeSet::new();
        let mut text = Vec::new();
        // The refused reload is among the last that happened.
        while !kinds.contains("RELOAD_REFUSED") {
            text.extend(client.exactly(1).expect("events"));
            if !text.ends_with(b"\n\n") {
                continue;
            }
            let block = String::from_utf8(std::mem::take(&mut text)).expect("UTF-8");
            let Some(data) = block.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
            let event: Value = serde_json::from_str(data).expect("JSON");
            let faults = self.document.faults(&schema, &event);
            assert!(faults.is_empty(), "{faults:?} in {event}");
            kinds.insert(event["kind"].as_str().expect("a kind").to_owned());
        }
        for kind in ["REGISTERED", "TRANSITION", "DRAINED", "UNDRAINED", "DEREGISTERED", "REFUSED", "RELOADED"] {
            assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
        }
        self.seen.entry("watchEvents".into()).or_default().insert(200);
    }
}

#[test]
fn without_a_token_every_path_answers_as_it_is_described() {
    let grant = format!("[service \"sagjan\"]\npermissions = *\ntoken_sha256 = {}\n", "a".repeat(64));
    let furt = Conf::new().gateway("loopback_is_operator = false").grants(&grant).start();
    let document = {
        let operator = World::start();
        described(&operator)
    };
    let mut asker = Asker::new(&furt, document);
    let mut needs = 0;
    for (name, method, target) in asker.operations() {
        if asker.document.knows(&name, "UNAUTHORIZED") {
            asker.ask(&name, &Request::new(&method, &target)).refused(401, "UNAUTHORIZED");
            needs += 1;
        } else {
            assert_ne!(asker.ask(&name, &Request::new(&method, &target)).status, 401);
        }
    }
    assert!(needs >= 15, "only {needs} paths need a token");
}
