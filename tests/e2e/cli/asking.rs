//! The commands that ask a running furt.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    cli::{Ended, ask, asking, has},
    upstream::{Health, Upstream},
    world::{Conf, World, eventually, registration},
};

/// A furt where sagjan's `default` is UP.
fn with_sagjan() -> (World, Upstream) {
    with_sagjan_by(Conf::new())
}

fn with_sagjan_by(conf: Conf) -> (World, Upstream) {
    let (furt, upstream) = (conf.start(), Upstream::start("sagjan"));
    let body = registration("sagjan", &upstream.url(), &["GET /api/comments/* comments:read", "POST /api/comments/* comments:write"]);
    fs::write(furt.dir.join("sagjan.json"), body.to_string()).expect("written");
    ask(&furt, "register sagjan.json").done();
    furt.until("sagjan", "UP");
    (furt, upstream)
}

/// The `data` of a successful answer, which must have these fields.
#[track_caller]
fn data(furt: &World, line: &str, fields: &[&str]) -> Value {
    let ended = ask(furt, &format!("{line} --json"));
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line}: {}", ended.out);
    let json = ended.json();
    assert_eq!(json["success"], true, "{line}: {json}");
    assert!(json["request_id"].is_string(), "{line}: {json}");
    for field in fields {
        assert!(json["data"].get(field).is_some(), "{line}: {field} is not in {json}");
    }
    json["data"].clone()
}

#[test]
fn a_registration_is_tried_made_and_shown() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    let body = registration("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    fs::write(furt.dir.join("sagjan.json"), body.to_string()).expect("written");
    has(&ask(&furt, "register sagjan.json --dry-run").done(), &["sagjan could be registered: 1 route"]);
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
    has(&ask(&furt, "services").done(), &["no service is registered"]);
    has(&ask(&furt, "register sagjan.json").done(), &["sagjan registered: 1 route", "registration: ", "repeat it every "]);
    furt.get("/api/comments/a").status(200);
    furt.until("sagjan", "UP");
    has(&ask(&furt, "services").done(), &["SERVICE  STATUS  INSTANCE  URL", "sagjan   UP      default   http://"]);
    has(&ask(&furt, "services sagjan").done(), &["sagjan  UP", "REGISTRATION", "/api/comments/*", "comments:read", "active"]);
    has(&ask(&furt, "routes").done(), &["sagjan", "GET", "/api/comments/*", "registered", "active"]);
    has(
        &ask(&furt, "explain GET /api/comments/a --key-name Reader").done(),
        &["canonical path  /api/comments/a", "forwarded", "won", "Reader: allowed"],
    );
    has(&ask(&furt, "explain DELETE /api/comments/a").done(), &["405 METHOD_NOT_ALLOWED"]);

    let mut from_input = asking(&furt, "register -");
    let file = fs::File::open(furt.dir.join("sagjan.json")).expect("written");
    has(&Ended::of(from_input.stdin(file)).done(), &["sagjan registered: 1 route"]);
}

#[test]
fn a_store_that_was_not_read_is_listed_as_that_and_not_as_empty() {
    let (mut furt, _upstream) = with_sagjan();
    furt.kill();
    fs::write(furt.dir.join("state/registry.redb"), "not a store").expect("the store");
    furt.start_again();
    for command in ["services", "services sagjan", "routes", "probe sagjan"] {
        let refused = ask(&furt, command);
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{command}");
        has(&refused.err, &["STORE_UNAVAILABLE", "registry.redb", "damaged", "move it away"]);
    }
}

#[test]
fn json_is_the_answer_as_it_came() {
    let (furt, _upstream) = with_sagjan();
    let registered = ["service", "instance", "status", "routes", "warnings", "epoch", "version", "renew_after_seconds"];
    data(&furt, "register sagjan.json --dry-run", &registered);
    let id = data(&furt, "register sagjan.json", &registered)["registration_id"].clone();
    let services = data(&furt, "services", &["services", "epoch", "version"]);
    assert_eq!((&services["services"][0]["service"], &services["services"][0]["status"]), (&"sagjan".into(), &"UP".into()));
    let one = data(&furt, "services sagjan", &["service"]);
    assert_eq!(one["service"]["instances"][0]["registration_id"], id);
    assert_eq!(data(&furt, "routes", &["routes", "version"])["routes"].as_array().map(Vec::len), Some(2));
    let explained =
        data(&furt, "explain GET /api/comments/a --key-name Reader", &["canonical_path", "candidates", "instances", "snapshot", "key"]);
    assert_eq!((&explained["outcome"]["code"], &explained["route"]["service"]), (&"FORWARD".into(), &"sagjan".into()));
    assert_eq!(data(&furt, "probe sagjan", &["service"])["instances"][0], "default");
    assert_eq!(data(&furt, "deregister sagjan", &["service", "version"])["instances"][0], "default");

    let refused = ask(&furt, "services sagjan --json");
    assert_eq!((refused.code, refused.err.as_str()), (Some(1), ""), "a refusal is an answer too");
    assert_eq!((&refused.json()["success"], &refused.json()["code"]), (&false.into(), &"NOT_FOUND".into()));
}

#[test]
fn a_refusal_tells_the_next_step() {
    let (furt, upstream) = with_sagjan();
    has(&ask(&furt, "services sagian").failed(), &["not found (404 NOT_FOUND)", "did you mean \"sagjan\"?"]);
    has(&ask(&furt, "deregister sagian").failed(), &["did you mean \"sagjan\"?"]);
    has(&ask(&furt, "probe sagjan defaul").failed(), &["instances of sagjan: default (did you mean \"default\"?)"]);
    has(&ask(&furt, "probe kollektiv").failed(), &["`furt services` shows what is registered"]);
    let stale = ask(&furt, "deregister sagjan default --registration-id 01J00000000000000000000000").failed();
    has(&stale, &["refused (409 STALE_REGISTRATION)", "`furt services sagjan` shows"]);

    let bad = registration("Sagjan!", &upstream.url(), &["GET api", "GET /x//y"]);
    fs::write(furt.dir.join("bad.json"), bad.to_string()).expect("written");
    let told = ask(&furt, "register bad.json").failed();
    has(&told, &["refused (400 VALIDATION_ERROR): 3 faults", "\n  service: ", "\n  routes[0].path: ", "\n  routes[1].path: "]);

    let public = format!("services --gateway {}", furt.public);
    let told = Ended::of(&mut super::furt_in(&furt.dir, &super::words(&public))).failed();
    has(&told, &["is furt's public listener", "--gateway names the internal one"]);
}

#[test]
fn a_token_comes_from_the_environment() {
    let digest = Sha256::digest("the-token-of-an-operator").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let token = format!("[token \"ops\"]\nrole = operator\nsha256 = {digest}\n");
    let furt = Conf::new().gateway("loopback_is_operator = false").more(&token).start();
    has(&ask(&furt, "services").failed(), &["401 UNAUTHORIZED", "set FURT_TOKEN to a token that furt.conf knows"]);
    let with = |token: &str| Ended::of(asking(&furt, "services").env("FURT_TOKEN", token));
    has(&with("another-token").failed(), &["401"]);
    with("the-token-of-an-operator").done();
    // As it comes out of a file of one line.
    with("the-token-of-an-operator\n").done();
    has(&with("a\u{7}b").failed(), &["FURT_TOKEN must be visible ASCII"]);
}

#[test]
fn a_deregistration_is_of_one_registration_one_instance_or_all() {
    let (furt, upstream) = with_sagjan();
    let routes = &["GET /api/comments/* comments:read"];
    let blue = furt.register_instance("sagjan", "blue", &upstream.url(), routes)["registration_id"].as_str().expect("an id").to_owned();
    furt.register_instance("sagjan", "green", &upstream.url(), routes);
    has(
        &ask(&furt, &format!("deregister sagjan blue --registration-id {blue}")).done(),
        &["sagjan deregistered: 1 instance", "instances: blue"],
    );
    has(&ask(&furt, "deregister sagjan").done(), &["2 instances", "default, green"]);
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
}

#[test]
fn a_probe_asked_for_is_made_at_once() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    furt.until("sagjan", "UP");
    let before = upstream.probes().len();
    has(&ask(&furt, "probe sagjan default").done(), &["1 instance", "`furt services sagjan` shows the outcome"]);
    eventually("it is probed again, long before its interval", || (upstream.probes().len() > before).then_some(()));
}

#[test]
fn what_is_down_is_shown_with_its_reason() {
    let (furt, upstream) = with_sagjan_by(Conf::new().quick());
    upstream.set_health(Health::Status(500));
    furt.until("sagjan", "DOWN");
    has(&ask(&furt, "services").done(), &["DOWN", "500"]);
    has(&ask(&furt, "explain GET /api/comments/a --key-name Reader").done(), &["503 SERVICE_UNAVAILABLE", "DOWN"]);
}

#[test]
fn one_service_is_shown_with_its_uptime_and_the_causes_of_its_changes() {
    let (furt, upstream) = with_sagjan_by(Conf::new().quick());
    upstream.set_health(Health::Status(500));
    furt.until("sagjan", "DOWN");
    upstream.set_health(Health::Status(200));
    furt.until("sagjan", "UP");
    let shown = ask(&furt, "services sagjan").done();
    has(&shown, &["UP IN 1h", "UP IN 24h", "UP IN 30d", " %", "CAUSE"]);
    let changes: Vec<Vec<&str>> = shown
        .lines()
        .skip_while(|line| !line.contains("CAUSE"))
        .skip(1)
        .map(|line| line.split_whitespace().skip(2).take(2).collect())
        .collect();
    assert_eq!(changes, [["UNKNOWN", "UP"], ["UP", "DOWN"], ["DOWN", "UP"]], "{shown}");
    has(&shown, &["500"]);
    let instance = data(&furt, "services sagjan", &["service"])["service"]["instances"][0].clone();
    assert_eq!(instance["uptime"].as_array().map(Vec::len), Some(3), "{instance}");
    assert_eq!((&instance["timeline"][1]["from"], &instance["timeline"][1]["to"]), (&"UP".into(), &"DOWN".into()));
}

#[test]
fn a_drain_holds_until_it_is_taken_back() {
    let (furt, upstream) = with_sagjan();
    furt.register_instance("sagjan", "blue", &upstream.url(), &["GET /api/comments/* comments:read"]);
    let told = ask(&furt, "drain sagjan default --seconds 0").done();
    has(&told, &["sagjan drained: 1 instance", "instances: default", "`furt undrain sagjan default` takes it back"]);
    furt.get("/api/comments/a").status(200);
    has(&ask(&furt, "services").done(), &["UP (drained)"]);
    let drained = data(&furt, "drain sagjan --seconds 0", &["service", "instances", "version", "in_flight", "deregistered"]);
    assert_eq!(drained["deregistered"], false);
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
    has(&ask(&furt, "undrain sagjan").done(), &["sagjan undrained: 2 instances", "blue, default"]);
    furt.get("/api/comments/a").status(200);
    has(&ask(&furt, "drain sagian").failed(), &["did you mean \"sagjan\"?"]);
    has(&ask(&furt, "undrain sagjan green").failed(), &["instances of sagjan: blue, default"]);
}

#[test]
fn a_reload_tells_the_difference_or_every_fault_by_its_place() {
    let (furt, _upstream) = with_sagjan();
    let conf = furt.dir.join("furt.conf");
    let before = fs::read_to_string(&conf).expect("furt.conf");
    has(&ask(&furt, "reload").done(), &["furt.conf reloaded\n", "nothing has changed"]);
    let key = format!("[api_key \"newcomer\"]\nkey_sha256 = {}\npermissions = comments:read\n", "ab".repeat(32));
    fs::write(&conf, format!("{before}\n{key}")).expect("written");
    has(&ask(&furt, "reload").done(), &["furt.conf reloaded: 1 change", "\n  ", "newcomer"]);
    fs::write(&conf, &before).expect("written");
    let reloaded = data(&furt, "reload", &["changes", "warnings", "version"]);
    assert_eq!(reloaded["changes"].as_array().map(Vec::len), Some(1), "{reloaded}");

    fs::write(&conf, format!("{before}\n[api_key \"a\"]\npermissoins = comments:read\n[cors]\nallowed_origins = nowhere\n"))
        .expect("written");
    let line = before.lines().count() + 1;
    let told = ask(&furt, "reload").failed();
    let place = |line: usize, key: &str| format!("\n  {}:{line}: {key}: ", conf.display());
    has(
        &told,
        &["refused (400 VALIDATION_ERROR): ", "all is as it was", &place(line + 2, "permissoins"), &place(line + 4, "allowed_origins")],
    );
    furt.get("/api/comments/a").status(200);
}
