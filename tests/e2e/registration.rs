//! Registering: by JSON and by gRPC, renewing, replacing, leaving, several at once.

mod decoding;
mod refusals;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use furt_proto::v1::{DeregisterRequest, GetServiceRequest};
use serde_json::{Value, json};

use crate::{
    client::{Client, Request},
    upstream::{Health, Upstream},
    world::{Conf, READER_KEY, WEBSITE_KEY, World, eventually, grpc_registration, registration},
};

/// The seed's body, byte for byte but for the port.
const SEED: &str = r#"{
  "service": "sagjan",
  "url": "http://127.0.0.1:7812",
  "health_endpoint": "/health",
  "routes": [
    {"method": "POST", "path": "/api/comments/*", "permission": "comments:write"},
    {"method": "GET", "path": "/api/comments/*", "permission": "comments:read"},
    {"method": "PUT", "path": "/api/comments/*", "permission": "comments:moderate"},
    {"method": "DELETE", "path": "/api/comments/*", "permission": "comments:delete"}
  ]
}"#;

const COMMENTS: &[&str] = &["POST /api/comments/* comments:write", "GET /api/comments/* comments:read"];

fn register(body: &str) -> Request {
    Request::post("/internal/register-service", body)
}

#[test]
fn the_seeds_body_registers_and_the_very_next_request_is_forwarded() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let body = SEED.replace("http://127.0.0.1:7812", &sagjan.url());
    // What `curl -d` sends without being told a content type.
    let request =
        register(&body).field("User-Agent", "curl/8.5.0").field("Accept", "*/*").field("Content-Type", "application/x-www-form-urlencoded");
    let answer = request.send(furt.internal);
    // No waiting and no second try between the two: DESIGN §4.
    let forwarded = furt.send(
        &Request::post("/api/comments/test-post?page=2&q=a%20b", "{\"text\":\"hi\"}")
            .key(WEBSITE_KEY)
            .field("Content-Type", "application/json")
            .field("X-Custom", "kept"),
    );

    answer.status(200);
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body["success"], true);
    assert_eq!(body["message"], "sagjan registered: 4 routes");
    assert!(body["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    let data = body["data"].as_object().expect("an object");
    let names: Vec<_> = data.keys().map(String::as_str).collect();
    let expected = ["service", "instance", "registration_id", "status", "routes", "warnings", "epoch", "version", "renew_after_seconds"];
    assert_eq!(names, expected);
    assert_eq!(data["service"], "sagjan");
    assert_eq!(data["instance"], "default");
    assert_eq!(data["status"], "UNKNOWN");
    assert_eq!(data["routes"], 4);
    assert_eq!(data["warnings"], json!([]));
    assert!(data["registration_id"].as_str().is_some_and(|id| id.len() == 26), "a ULID");
    assert!(data["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()));
    assert!(data["version"].as_u64().is_some_and(|version| version > 0));
    assert!(data["renew_after_seconds"].as_u64().is_some_and(|seconds| seconds > 0));

    forwarded.status(200);
    assert_eq!(forwarded.field("x-upstream"), Some("sagjan"));
    let seen = sagjan.request();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/comments/test-post?page=2&q=a%20b"));
    assert_eq!(seen.body, b"{\"text\":\"hi\"}");
    assert_eq!(seen.field("content-type"), Some("application/json"));
    assert_eq!(seen.field("x-custom"), Some("kept"));
    assert_eq!(seen.field("x-api-key-name"), Some("Website"));
    assert_eq!(seen.values("x-api-key"), [""; 0]);
    assert!(!String::from_utf8_lossy(&sagjan.raw()).contains(WEBSITE_KEY), "the key itself never reaches a service");
}

#[test]
fn each_route_of_the_seed_needs_its_own_permission() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    register(&SEED.replace("http://127.0.0.1:7812", &sagjan.url())).send(furt.internal).status(200);
    for method in ["POST", "PUT", "DELETE"] {
        furt.send(&Request::new(method, "/api/comments/a").key(READER_KEY)).refused(403, "FORBIDDEN");
    }
    furt.send(&Request::get("/api/comments/a").key(READER_KEY)).status(200);
    assert_eq!(sagjan.request().method, "GET");
    for method in ["POST", "GET", "PUT", "DELETE"] {
        furt.send(&Request::new(method, "/api/comments/a").key(WEBSITE_KEY)).status(200);
    }
}

#[test]
fn grpc_registers_with_the_same_result_as_json() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let request = grpc_registration("sagjan", &sagjan.url(), COMMENTS);
    let answer = furt.grpc(async |mut client| client.register(request).await).expect("registered").into_inner();
    furt.get("/api/comments/first").status(200);
    assert_eq!((answer.service.as_str(), answer.instance.as_str(), answer.routes), ("sagjan", "default", 2));
    assert_eq!(answer.status, "UNKNOWN");
    assert!(answer.version > 0 && answer.renew_after_seconds > 0 && !answer.epoch.is_empty());
    assert_eq!(sagjan.request().field("x-api-key-name"), Some("Website"));

    // JSON of the same is a renewal of it: one registry behind both.
    let data = furt.register("sagjan", &sagjan.url(), COMMENTS);
    assert_eq!(data["registration_id"], answer.registration_id.as_str());
    assert_eq!(data["epoch"], answer.epoch.as_str());
}

#[test]
fn a_dry_run_decides_and_changes_nothing() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let before = furt.registry();
    let body = registration("sagjan", &sagjan.url(), COMMENTS);
    let answer = Request::post("/internal/register-service?dry_run=true", body.to_string()).send(furt.internal);
    answer.status(200);
    assert_eq!(answer.json()["data"]["routes"], 2);
    assert_eq!(furt.registry(), before);
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");

    let mut request = grpc_registration("sagjan", &sagjan.url(), COMMENTS);
    request.dry_run = true;
    furt.grpc(async |mut client| client.register(request).await).expect("would be registered");
    assert_eq!(furt.registry(), before);

    // The refusal is that of the real thing.
    let bad = registration("sagjan", &sagjan.url(), &["GET api comments:read"]).to_string();
    let dry = Request::post("/internal/register-service?dry_run=true", &bad).send(furt.internal);
    let real = register(&bad).send(furt.internal);
    dry.refused(400, "VALIDATION_ERROR");
    assert_eq!(dry.details(), real.details());
    assert_eq!(dry.json()["error"], real.json()["error"]);
    assert!(sagjan.probes().is_empty(), "what was only tried is not probed");
}

#[test]
fn renewing_changes_nothing() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let first = furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    let before = furt.registry();
    let probes = sagjan.probes().len();
    let again = furt.register("sagjan", &sagjan.url(), COMMENTS);
    assert_eq!(again["registration_id"], first["registration_id"]);
    assert_eq!(again["epoch"], first["epoch"]);
    assert_eq!(again["status"], "UP", "it does not touch the health state");
    assert_eq!(furt.registry(), before, "not even the version");
    assert_eq!(sagjan.probes().len(), probes, "one that is UP is not probed for it");
}

#[test]
fn changed_routes_replace_the_old_ones_in_one_step() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let first = furt.register("sagjan", &sagjan.url(), &["GET /api/comments/* comments:read", "GET /api/old comments:read"]);
    furt.until("sagjan", "UP");
    furt.get("/api/old").status(200);
    let second = furt.register("sagjan", &sagjan.url(), &["GET /api/comments/* comments:read", "GET /api/new comments:read"]);
    furt.get("/api/old").refused(404, "NOT_FOUND");
    furt.get("/api/new").status(200);
    furt.get("/api/comments/a").status(200);
    assert_eq!(second["registration_id"], first["registration_id"], "the same url, health endpoint and protocol");
    assert_eq!(second["status"], "UP");
    assert!(second["version"].as_u64() > first["version"].as_u64());
}

#[test]
fn while_routes_are_replaced_a_route_that_stays_is_never_missing() {
    let furt = Conf::new().gateway("registration_rate = 100000/s").start();
    let sagjan = Upstream::start("sagjan");
    let change = |path: &str| furt.register("sagjan", &sagjan.url(), &["GET /stays comments:read", &format!("GET {path} comments:read")]);
    change("/one");
    let done = AtomicBool::new(false);
    let statuses: Vec<_> = thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut client = Client::new(furt.public);
            let mut statuses = Vec::new();
            while !done.load(Ordering::SeqCst) {
                statuses.push(client.ask(&Request::get("/stays").key(WEBSITE_KEY)).status);
            }
            statuses
        });
        for _ in 0..50 {
            change("/two");
            assert_eq!((furt.get("/one").status, furt.get("/two").status), (404, 200));
            change("/one");
            assert_eq!((furt.get("/one").status, furt.get("/two").status), (200, 404));
        }
        done.store(true, Ordering::SeqCst);
        asker.join().expect("only answers")
    });
    assert!(statuses.len() > 50 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[test]
fn a_changed_url_is_a_new_start() {
    let furt = World::start();
    let (old, new) = (Upstream::start("old"), Upstream::start("new"));
    let first = furt.register("sagjan", &old.url(), COMMENTS);
    furt.until("sagjan", "UP");
    let second = furt.register("sagjan", &new.url(), COMMENTS);
    assert_ne!(second["registration_id"], first["registration_id"]);
    assert_eq!(second["status"], "UNKNOWN");
    assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("new"));
    assert!(old.requests().is_empty());
}

#[test]
fn deregistering_takes_the_routes_out() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    let data = furt.register("sagjan", &sagjan.url(), COMMENTS);
    let id = data["registration_id"].as_str().expect("an id");
    let path = format!("/internal/services/sagjan/instances/default?registration_id={id}");
    let answer = Request::new("DELETE", &path).send(furt.internal);
    answer.status(200);
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
    assert_eq!(answer.json()["data"]["service"], "sagjan");
    assert_eq!(answer.json()["data"]["instances"], json!(["default"]));
    assert_eq!(furt.health()["services"], json!({}));
    Request::new("DELETE", &path).send(furt.internal).refused(404, "NOT_FOUND");
}

#[test]
fn a_stale_farewell_cannot_remove_the_successor() {
    let furt = World::start();
    let (old, new) = (Upstream::start("old"), Upstream::start("new"));
    let first = furt.register("sagjan", &old.url(), COMMENTS);
    let id = first["registration_id"].as_str().expect("an id").to_owned();
    furt.register("sagjan", &new.url(), COMMENTS);
    let path = format!("/internal/services/sagjan/instances/default?registration_id={id}");
    Request::new("DELETE", &path).send(furt.internal).refused(409, "STALE_REGISTRATION");
    let request = DeregisterRequest { service: "sagjan".into(), instance: "default".into(), registration_id: id };
    let status = furt.grpc(async |mut client| client.deregister(request).await).expect_err("refused");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("new"));
}

#[test]
fn an_operator_takes_out_a_whole_service() {
    let furt = World::start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), COMMENTS);
    furt.register_instance("sagjan", "two", &two.url(), COMMENTS);
    let answer = Request::new("DELETE", "/internal/services/sagjan").send(furt.internal);
    answer.status(200);
    assert_eq!(answer.json()["data"]["instances"], json!(["one", "two"]));
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
    let request = GetServiceRequest { service: "sagjan".into() };
    let status = furt.grpc(async |mut client| client.get_service(request).await).expect_err("gone");
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[test]
fn several_services_register_at_the_same_time() {
    let furt = World::start();
    let names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];
    let upstreams: Vec<_> = names.iter().map(|name| Upstream::start(name)).collect();
    let furt = &furt;
    thread::scope(|scope| {
        for (name, upstream) in names.iter().zip(&upstreams) {
            scope.spawn(move || {
                let path = format!("GET /api/{name}/* comments:read");
                furt.register(name, &upstream.url(), &[path.as_str()]);
                // Each can use its route at once, whatever the others do meanwhile.
                let answer = furt.get(&format!("/api/{name}/first"));
                assert_eq!((answer.status, answer.field("x-upstream")), (200, Some(*name)));
            });
        }
    });
    for (name, upstream) in names.iter().zip(&upstreams) {
        assert_eq!(upstream.request().target, format!("/api/{name}/first"));
    }
    let health = furt.health();
    let mut shown: Vec<_> = health["services"].as_object().expect("an object").keys().map(String::as_str).collect();
    shown.sort_unstable();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(shown, expected);
}

#[test]
fn of_many_that_want_one_route_at_the_same_time_exactly_one_gets_it() {
    let furt = World::start();
    let upstream = Upstream::start("any");
    let statuses: Vec<_> = thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|number| {
                let (furt, url) = (&furt, upstream.url());
                scope.spawn(move || furt.post(&registration(&format!("service-{number}"), &url, &["GET /api/wanted comments:read"])).status)
            })
            .collect();
        tries.into_iter().map(|handle| handle.join().expect("an answer")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 7, "{statuses:?}");
    assert_eq!(furt.health()["services"].as_object().map(|services| services.len()), Some(1));
}

#[test]
fn the_optional_fields_are_kept_and_shown() {
    let furt = Conf::new().grants("[service \"*\"]\npermissions = *\nallow_public = true\nhosts = *.example.org\n").start();
    let sagjan = Upstream::start("sagjan");
    let body = json!({
        "service": "sagjan", "url": format!("{}/base", sagjan.url()), "instance": "blue", "version": "1.2.3", "weight": 7,
        "metadata": {"owner": "team a"}, "protocol": "http1",
        "routes": [
            {"method": "GET", "path": "/open", "public": true},
            {"method": "GET", "path": "/any-key"},
            {"method": "GET", "path": "/hosted", "host": "A.example.org", "permission": "comments:read", "timeout": "500ms"},
        ],
    });
    let answer = furt.post(&body);
    answer.status(200);
    assert_eq!(answer.json()["data"]["instance"], "blue");
    let request = GetServiceRequest { service: "sagjan".into() };
    let service = furt.grpc(async |mut client| client.get_service(request).await).expect("there").into_inner().service.expect("set");
    let instance = service.instances.first().expect("one instance");
    assert_eq!(instance.url, format!("{}/base", sagjan.url()));
    assert_eq!((instance.id.as_str(), instance.version.as_str(), instance.weight), ("blue", "1.2.3", 7));
    assert_eq!((instance.health_endpoint.as_str(), instance.protocol.as_str()), ("/health", "http1"));
    assert_eq!(instance.metadata.get("owner").map(String::as_str), Some("team a"));
    assert_eq!(service.routes.len(), 3);

    furt.send(&Request::get("/open")).status(200);
    assert_eq!(sagjan.last().target, "/base/open", "the base path goes before every path");
    furt.get("/any-key").status(200);
    furt.send(&Request::get("/any-key")).refused(401, "UNAUTHORIZED");
    furt.get("/hosted").refused(404, "NOT_FOUND");
    furt.send(&Request::get("/hosted").host("a.EXAMPLE.org:80").key(WEBSITE_KEY)).status(200);
    let probe = eventually("the first probe", || sagjan.probes().into_iter().next());
    assert_eq!(probe.target, "/base/health");
}

#[test]
fn the_log_tells_of_registrations_deregistrations_and_refusals_and_of_no_key() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.get("/api/comments/a").status(200);
    furt.send(&Request::get("/api/comments/a").key("a-wrong-key-of-a-client-0123456789")).refused(401, "UNAUTHORIZED");
    furt.post(&registration("obr", &sagjan.url(), &["GET /api/comments/* comments:read"])).refused(409, "ROUTE_CONFLICT");
    Request::new("DELETE", "/internal/services/sagjan").send(furt.internal).status(200);
    eventually("the registration is logged", || furt.logged(&["registered", "sagjan"]).then_some(()));
    eventually("the refusal is logged", || furt.logged(&["obr", "ROUTE_CONFLICT"]).then_some(()));
    eventually("the deregistration is logged", || furt.logged(&["deregistered", "sagjan"]).then_some(()));
    eventually("the access is logged", || furt.logged(&["/api/comments/a", "Website", "200"]).then_some(()));
    for line in furt.log() {
        assert!(!line.contains(WEBSITE_KEY) && !line.contains("a-wrong-key"), "a key in the log: {line}");
    }
}

#[test]
fn a_second_copy_that_names_no_instance_takes_the_place_of_the_first_and_that_is_told() {
    let furt = World::start();
    let (first, second) = (Upstream::start("first"), Upstream::start("second"));
    furt.register("sagjan", &first.url(), COMMENTS);
    furt.register("sagjan", &second.url(), COMMENTS);
    let replaces = format!("replaces=\"{}\"", first.url());
    eventually("it is logged", || furt.logged(&["service registered", &second.url(), &replaces]).then_some(()));
    let place = format!("in the place of {}", first.url());
    crate::events::told(&furt, "the place that was taken", |event| event.kind == "REGISTERED" && event.message.contains(&place));
}

#[test]
fn the_metrics_count_registrations_by_result() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.post(&registration("obr", &sagjan.url(), &["GET /api/comments/* comments:read"])).refused(409, "ROUTE_CONFLICT");
    furt.get("/api/comments/a").status(200);
    furt.until("sagjan", "UP");
    let ill = Upstream::start("ill");
    ill.set_health(Health::Status(500));
    furt.register("ill", &ill.url(), &["GET /ill comments:read"]);
    eventually("a failed probe", || (furt.health_of("ill")["consecutive_failures"] == 1).then_some(()));
    let metrics = Request::get("/metrics").send(furt.internal);
    metrics.status(200);
    let text = metrics.text();
    for name in [
        "furt_requests_total{",
        "furt_request_duration_seconds_bucket{",
        "furt_upstream_duration_seconds_bucket{",
        "furt_service_up{",
        "furt_probe_duration_seconds",
        "furt_probe_failures_total",
        "furt_registrations_total{",
        "furt_snapshot_version",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert!(!text.contains("/api/comments"), "labels are bounded: service, never path");
    furt.send(&Request::get("/metrics")).refused(404, "NOT_FOUND");
}

#[test]
fn lists_and_explanations_tell_what_is_registered() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    let ask = |path: &str| -> Value {
        let answer = Request::get(path).send(furt.internal);
        answer.status(200);
        answer.json()["data"].clone()
    };
    let services = ask("/internal/services");
    assert_eq!(services["services"][0]["service"], "sagjan");
    assert_eq!(services["services"][0]["status"], "UP");
    assert_eq!(services["services"][0]["instances"][0]["url"], sagjan.url());
    let routes = ask("/internal/routes");
    assert_eq!(routes["routes"].as_array().map(Vec::len), Some(2));
    assert_eq!(routes["routes"][0]["path"], "/api/comments/*");
    Request::get("/internal/services/sagjan").send(furt.internal).status(200);
    Request::get("/internal/services/obr").send(furt.internal).refused(404, "NOT_FOUND");

    // The path is what a client would send, so `%63` reaches it encoded.
    let explained = ask("/internal/explain?method=GET&path=/api/%2563omments/a&key_name=Reader");
    assert_eq!(explained["canonical_path"], "/api/comments/a");
    assert_eq!(explained["outcome"]["code"], "FORWARD");
    assert_eq!(explained["route"]["service"], "sagjan");
    assert_eq!(explained["candidates"].as_array().map(|all| all.iter().filter(|one| one["won"] == true).count()), Some(1));
    assert_eq!(explained["key"]["allowed"], true);
    assert_eq!(explained["instances"][0]["eligible"], true);
    let explained = ask("/internal/explain?method=POST&path=/api/comments/a&key_name=Reader");
    assert_eq!((&explained["outcome"]["status"], &explained["outcome"]["code"]), (&json!(403), &json!("FORBIDDEN")));
    assert!(sagjan.requests().is_empty(), "nothing is sent for it");
}
