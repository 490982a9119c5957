//! Explain against reality: what `explain` says of a request is what happens to it.
//!
//! Tables and requests are generated, registered over HTTP, sent through the public listener and asked of
//! `/internal/explain`; upstreams say who they are. `FURT_EXPLAIN_TABLES` is the number of tables, each with three
//! requests (10,000 in the full run, a few minutes; fewer when it is not set, so that it stays under 20 s), `FURT_SEED`
//! another choice of them. A failure names the seed and the table.

use std::collections::HashMap;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, Request},
    upstream::{Health, Reply, Upstream, answer},
    world::{ADMIN_KEY, Conf, World, eventually, from_environment},
};

mod generate;

use generate::{Caller, Question};

const TABLES: usize = 1_000;
/// Tables of one furt, which has keys and static routes of its own.
const TABLES_OF_ONE: usize = 500;
const REQUESTS: usize = 3;
const GRANTS: &str = "[service \"*\"]\npermissions = *\npaths = /, /*\nhosts = x.org, *.x.org\nallow_public = true\n";

/// An instance, what it is, and its upstream, which says whose it is.
struct Instance {
    service: &'static str,
    id: &'static str,
    state: State,
    upstream: Upstream,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Drained,
}

/// What is asked once the log is whole: the request's id, the service and pattern that explain named.
type Routed = HashMap<String, (String, String)>;

/// A furt with services whose routes change from table to table.
struct Tables {
    furt: World,
    public: Option<Client>,
    internal: Client,
    callers: Vec<Caller>,
    instances: Vec<Instance>,
    fixed: Upstream,
    rng: Rng,
    routed: Routed,
    asked: usize,
    outcomes: HashMap<String, usize>,
}

/// An upstream whose answers say whose it is.
fn named(name: String) -> Upstream {
    Upstream::with(move |seen| {
        let body = format!("{name} {} {}", seen.method, seen.target);
        let mut bytes = answer(200, &[("X-Upstream", &name)], &body);
        if seen.method == "HEAD" {
            bytes.truncate(bytes.len() - body.len());
        }
        Reply::Bytes(bytes)
    })
}

impl Tables {
    fn start(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let callers = generate::callers(&mut rng);
        let fixed = named("static".into());
        let conf = Conf::new()
            .grants(GRANTS)
            .gateway("registration_rate = 1000000/s")
            .gateway("health_check_interval = 1")
            .gateway("health_check_timeout = 1")
            .gateway("down_check_interval = 1")
            .gateway("stop_ping_after_failures = 100000")
            .more(&generate::sections(&callers))
            .more(&generate::static_routes(&mut rng, &fixed.url()));
        let furt = conf.start();
        use State::{Down, Drained, Up};
        let all = [
            ("alone", "default", Up),
            ("pair", "one", Up),
            ("pair", "two", Up),
            ("half", "up", Up),
            ("half", "down", Down),
            ("gone", "default", Down),
            ("leaving", "stays", Up),
            ("leaving", "drained", Drained),
        ];
        let instances = all.map(|(service, id, state)| Instance { service, id, state, upstream: named(format!("{service}/{id}")) });
        let internal = Client::new(furt.internal);
        let instances = Vec::from(instances);
        let (routed, outcomes) = (HashMap::new(), HashMap::new());
        let mut tables = Self { furt, public: None, internal, callers, instances, fixed, rng, routed, asked: 0, outcomes };
        tables.settle();
        tables
    }

    /// Registers every instance and brings it into its state.
    fn settle(&mut self) {
        for at in 0..self.instances.len() {
            let Instance { state, upstream, service, .. } = &self.instances[at];
            if *state == State::Down {
                upstream.set_health(Health::Status(500));
            }
            // A path of its own, so that none is refused.
            self.register(at, &[json!({"method": "GET", "path": format!("/first/{service}/{at}"), "public": true})]).status(200);
        }
        for Instance { service, id, state, .. } in &self.instances {
            if *state == State::Drained {
                Request::post(&format!("/internal/services/{service}/instances/{id}/drain"), "").send(self.furt.internal).status(200);
            }
        }
        let state = |found: &Value, id: &str| {
            let instances = found["instances"].as_array().expect("instances");
            let one = instances.iter().find(|one| one["id"] == id).expect("registered");
            (one["status"].clone(), one["drained"].as_bool() == Some(true))
        };
        eventually("every instance is in its state", || {
            let all = self.furt.registry();
            let services = all["services"].as_array().expect("services");
            let settled = self.instances.iter().all(|own| {
                let found = services.iter().find(|found| found["service"] == own.service).expect("registered");
                let status = if own.state == State::Down { "DOWN" } else { "UP" };
                state(found, own.id) == (status.into(), own.state == State::Drained)
            });
            settled.then_some(())
        });
    }

    fn register(&mut self, at: usize, routes: &[Value]) -> Answer {
        let Instance { service, id, upstream, .. } = &self.instances[at];
        let body = json!({"service": service, "instance": id, "url": upstream.url(), "routes": routes});
        self.internal.ask(&Request::post("/internal/register-service", body.to_string()))
    }

    /// Changes the routes of an instance, and now and then of all of them.
    fn change(&mut self) {
        let all = 0..self.instances.len();
        let some = if self.rng.u8(..50) == 0 { all } else { Some(self.rng.usize(all)).map_or(0..0, |at| at..at + 1) };
        for at in some {
            let routes = generate::routes(&mut self.rng);
            let answer = self.register(at, &routes);
            // A route that another service has already: the table stays as it is.
            assert!(answer.status == 200 || (answer.status, &*answer.code()) == (409, "ROUTE_CONFLICT"), "{answer:?}");
        }
    }

    /// What explain says.
    fn explain(&mut self, question: &Question) -> Value {
        let answer = self.internal.ask(&Request::get(&question.query()));
        answer.status(200);
        answer.json()["data"].clone()
    }

    /// Asks explain, sends the request, and compares; again when the table moved on in between.
    fn compare(&mut self, question: &Question, table: &str) {
        let request_id = format!("asked-{}", self.asked);
        self.asked += 1;
        for attempt in 0.. {
            let explained = self.explain(question);
            let id = format!("{request_id}-{attempt}");
            let answer = self.send(&question.request.clone().field("X-Request-ID", &id));
            if self.explain(question)["snapshot"] != explained["snapshot"] {
                assert!(attempt < 100, "{table}: the table does not come to rest");
                continue;
            }
            let what = || {
                format!(
                    "{table}: {} {} host {:?} key {:?}\n{explained:#}\n{answer:?}",
                    question.method, question.path, question.host, question.key_name
                )
            };
            self.same(&explained, &answer, question, &what);
            let route = &explained["route"];
            let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
            self.routed.insert(id, (text("service"), text("pattern")));
            *self.outcomes.entry(explained["outcome"]["code"].as_str().expect("a code").to_owned()).or_default() += 1;
            return;
        }
    }

    /// The answer is that of the outcome, and comes from an instance that was eligible.
    fn same(&self, explained: &Value, answer: &Answer, question: &Question, what: &impl Fn() -> String) {
        let (status, code) = (&explained["outcome"]["status"], explained["outcome"]["code"].as_str().expect("a code"));
        match code {
            "FORWARD" => {
                assert_eq!((answer.status, status.as_u64()), (200, Some(0)), "{}", what());
                let came_from = answer.field("x-upstream").unwrap_or_else(|| panic!("{}", what()));
                let route = &explained["route"];
                if route["static"] == true {
                    assert_eq!(came_from, "static", "{}", what());
                } else {
                    let (service, instance) = came_from.split_once('/').expect("service/instance");
                    assert_eq!(route["service"], service, "{}", what());
                    let eligible = explained["instances"]
                        .as_array()
                        .expect("instances")
                        .iter()
                        .any(|one| one["id"] == instance && one["eligible"] == true);
                    assert!(eligible, "{}", what());
                }
                if question.method != "HEAD" {
                    let query = question.path.split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
                    let target = format!("{}{query}", explained["canonical_path"].as_str().expect("a path"));
                    assert_eq!(answer.text(), format!("{came_from} {} {target}", question.method), "{}", what());
                }
            }
            _ => {
                assert_eq!(Some(u64::from(answer.status)), status.as_u64(), "{}", what());
                assert!(answer.field("x-upstream").is_none(), "{}", what());
                if code != "LOCAL" && question.method != "HEAD" {
                    assert_eq!(answer.code(), code, "{}", what());
                }
            }
        }
    }

    /// Sends it on the connection there is. What does not parse ends its connection.
    fn send(&mut self, request: &Request) -> Answer {
        let client = self.public.get_or_insert_with(|| Client::new(self.furt.public));
        let answer = client.ask(request);
        if answer.field("connection").is_some_and(|connection| connection.eq_ignore_ascii_case("close")) {
            self.public = None;
        }
        answer
    }

    /// The service and the pattern of every request, refused ones too, by the access log.
    fn check_log(&mut self) {
        let parts = |line: &str| -> HashMap<String, String> {
            line.split(' ').filter_map(|word| word.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
        };
        let (mut routed, mut seen) = (std::mem::take(&mut self.routed), 0);
        eventually("every request is in the log", || {
            let log = self.furt.log();
            for line in &log[seen..] {
                let parts = parts(line);
                let Some((service, pattern)) = parts.get("request_id").and_then(|id| routed.remove(id)) else { continue };
                let text = |key: &str| parts.get(key).cloned().unwrap_or_default();
                assert_eq!((text("service"), text("route")), (service, pattern), "{line}");
            }
            seen = log.len();
            // What hyper refuses by itself has no line; it has met no route either.
            routed.values().all(|(service, _)| service.is_empty()).then_some(())
        });
    }
}

#[test]
fn generated_requests_fare_as_explain_says_over_generated_tables() {
    let (tables, seed) = (from_environment("FURT_EXPLAIN_TABLES", TABLES), from_environment("FURT_SEED", 1) as u64);
    let (mut left, mut outcomes) = (tables, HashMap::<String, usize>::new());
    while left > 0 {
        let now = left.min(TABLES_OF_ONE);
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(left as u64);
        let mut running = Tables::start(seed);
        for table in 0..now {
            running.change();
            for _ in 0..REQUESTS {
                let question = generate::question(&mut running.rng, &running.callers);
                running.compare(&question, &format!("seed {seed}, table {table}"));
            }
        }
        running.check_log();
        let upstreams = running.instances.iter().map(|one| &one.upstream).chain([&running.fixed]);
        assert!(upstreams.map(Upstream::faults).all(|faults| faults.is_empty()));
        running.outcomes.into_iter().for_each(|(code, count)| *outcomes.entry(code).or_default() += count);
        left -= now;
    }
    assert_eq!(outcomes.values().sum::<usize>(), tables * REQUESTS);
    // It is no agreement when everything is refused for one reason.
    if tables >= TABLES {
        for code in [
            "FORWARD",
            "LOCAL",
            "MALFORMED_REQUEST",
            "UNAUTHORIZED",
            "FORBIDDEN",
            "NOT_FOUND",
            "METHOD_NOT_ALLOWED",
            "URI_TOO_LONG",
            "RATE_LIMIT_EXCEEDED",
            "SERVICE_UNAVAILABLE",
        ] {
            assert!(outcomes.get(code).is_some_and(|count| *count > 0), "no {code}: {outcomes:?}");
        }
        assert!(outcomes["FORWARD"] * 10 > tables, "{outcomes:?}");
    }
}

#[test]
fn an_explanation_has_every_candidate_the_key_its_rate_and_every_instance() {
    let more = "[api_key \"a-key-with-at-least-32-characters-limited\"]\nname = Limited\npermissions = a:*\nrate_limit = 2/h\n";
    let furt = Conf::new().grants(GRANTS).more(more).start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register("wide", &one.url(), &["GET /a/* a:read"]);
    furt.register_instance("narrow", "one", &one.url(), &["GET /a/b a:read"]);
    furt.register_instance("narrow", "two", &two.url(), &["GET /a/b a:read", "POST /a/b a:write"]);
    eventually("both are UP", || (furt.health_of("narrow")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
    Request::post("/internal/services/narrow/instances/two/drain", "").send(furt.internal).status(200);
    let ask = || {
        let answer = Request::get("/internal/explain?method=GET&path=/%2561/b?q&host=x.org&key_name=Limited").send(furt.internal);
        answer.status(200);
        answer.json()["data"].clone()
    };
    let data = ask();
    assert_eq!((&data["canonical_path"], &data["outcome"]), (&"/a/b".into(), &json!({"status": 0, "code": "FORWARD"})));
    assert_eq!(
        data["route"],
        json!({"service": "narrow", "host": "", "method": "GET", "pattern": "/a/b", "permission": "a:read", "static": false})
    );
    let candidates: Vec<_> = data["candidates"]
        .as_array()
        .expect("candidates")
        .iter()
        .map(|one| format!("{} {} {}: {}", one["service"], one["method"], one["won"], one["reason"]))
        .collect();
    assert_eq!(
        candidates,
        [
            "\"narrow\" \"GET\" true: \"the best that fits host, method and path\"",
            "\"wide\" \"GET\" false: \"/a/b is more specific\"",
            "\"narrow\" \"POST\" false: \"other method\"",
        ]
    );
    assert_eq!(
        data["key"],
        json!({"name": "Limited", "allowed": true, "reason": "the key has a:read", "rate": {"limit": "2/h", "remaining": 2, "retry_after_seconds": 0}})
    );
    let instances: Vec<_> = data["instances"]
        .as_array()
        .expect("instances")
        .iter()
        .map(|one| format!("{} {} {} {}", one["id"], one["status"], one["eligible"], one["reason"]))
        .collect();
    assert_eq!(instances, ["\"one\" \"UP\" true \"up\"", "\"two\" \"UP\" false \"drained\""]);
    assert_eq!(data["snapshot"]["version"], furt.registry()["version"]);
    // Two requests use the rate up; asking uses none of it.
    for _ in 0..2 {
        furt.send(&Request::get("/a/b").key("a-key-with-at-least-32-characters-limited")).status(200);
        ask();
    }
    let data = ask();
    assert_eq!(data["outcome"], json!({"status": 429, "code": "RATE_LIMIT_EXCEEDED"}));
    let rate = &data["key"]["rate"];
    assert_eq!((&rate["remaining"], data["key"]["allowed"].as_bool()), (&0.into(), Some(false)));
    assert!(rate["retry_after_seconds"].as_u64().is_some_and(|seconds| (1..=1800).contains(&seconds)), "{rate}");
    furt.send(&Request::get("/a/b").key("a-key-with-at-least-32-characters-limited")).refused(429, "RATE_LIMIT_EXCEEDED");
    furt.send(&Request::get("/a/b").key(ADMIN_KEY)).status(200);
}
