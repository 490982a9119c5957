//! The body of `/health`: the seed's fields in the seed's order, and who sees what.

use serde_json::{Value, json};

use crate::{
    client::Request,
    upstream::{Health, Upstream},
    world::{Conf, World, eventually},
};

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read"];

/// Asserts that `names` are fields of `object`, in this order.
#[track_caller]
fn in_order(object: &Value, names: &[&str]) {
    let found: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).filter(|key| names.contains(key)).collect();
    assert_eq!(found, names, "{object}");
}

/// Asserts a time as the seed writes it: `2025-11-14T20:30:00Z`.
#[track_caller]
fn seconds_in_utc(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("a time, not {value}"));
    let shape: String = text.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z", "{text}");
}

#[test]
fn the_body_is_that_of_the_seed_on_both_listeners() {
    let furt = Conf::new().quick().start();
    let (sagjan, obr) = (Upstream::start("sagjan"), Upstream::start("obr"));
    obr.set_health(Health::Status(500));
    // As registered, byte for byte: whatever spelling the service chose.
    let odd_url = sagjan.url().replace("http", "HTTP") + "/";
    furt.register("sagjan", &odd_url, COMMENTS);
    furt.register("obr", &obr.url(), &["GET /api/books/* comments:read"]);
    furt.until("sagjan", "UP");
    furt.until("obr", "DOWN");
    for address in [furt.internal, furt.public] {
        let answer = eventually("both are shown", || {
            let answer = Request::get("/health").send(address);
            (answer.status(200).json()["services"]["obr"]["status"] == "DOWN").then_some(answer)
        });
        assert_eq!(answer.field("content-type"), Some("application/json"));
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        let version = env!("CARGO_PKG_VERSION");
        let text = answer.text();
        let compact: String = text.chars().filter(|character| !character.is_whitespace()).collect();
        assert!(compact.starts_with(&format!("{{\"status\":\"healthy\",\"service\":\"furt\",\"version\":\"{version}\"")), "{text}");
        let body = answer.json();
        in_order(&body, &["status", "service", "version", "services"]);
        let up = &body["services"]["sagjan"];
        in_order(up, &["status", "url", "last_ping", "response_time_ms"]);
        assert_eq!((&up["status"], &up["url"]), (&json!("UP"), &json!(odd_url)));
        seconds_in_utc(&up["last_ping"]);
        assert!(up["response_time_ms"].is_u64(), "{up}");
        assert!(up.get("consecutive_failures").is_none(), "{up}");
        let down = &body["services"]["obr"];
        in_order(down, &["status", "url", "last_ping", "consecutive_failures"]);
        assert_eq!(down["url"], obr.url());
        seconds_in_utc(&down["last_ping"]);
        assert!(down.get("response_time_ms").is_none(), "only when the last ping was answered: {down}");
        assert!(down["consecutive_failures"].as_u64().is_some_and(|count| count >= 3), "{down}");
    }
}

#[test]
fn services_is_empty_when_there_are_none() {
    let furt = World::start();
    for address in [furt.internal, furt.public] {
        let body = Request::get("/health").send(address).json();
        assert_eq!((&body["status"], &body["services"]), (&json!("healthy"), &json!({})));
    }
}

#[test]
fn one_that_was_not_pinged_yet_has_no_last_ping() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    sagjan.set_health(Health::Hang);
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let shown = furt.health_of("sagjan");
    assert_eq!((&shown["status"], &shown["last_ping"]), (&json!("UNKNOWN"), &Value::Null), "{shown}");
    assert!(shown.get("response_time_ms").is_none() && shown.get("consecutive_failures").is_none(), "{shown}");
}

#[test]
fn several_instances_are_listed_and_the_best_speaks_for_the_service() {
    let furt = Conf::new().quick().start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    one.set_health(Health::Status(500));
    furt.register_instance("sagjan", "one", &one.url(), COMMENTS);
    furt.register_instance("sagjan", "two", &two.url(), COMMENTS);
    let shown = eventually("one is DOWN and two UP", || {
        let shown = furt.health_of("sagjan");
        let text = shown["instances"].to_string();
        (text.contains("\"DOWN\"") && text.contains("\"UP\"")).then_some(shown)
    });
    assert_eq!((&shown["status"], &shown["url"]), (&json!("UP"), &json!(two.url())));
    let text = shown["instances"].to_string();
    assert!(text.contains(&one.url()) && text.contains(&two.url()), "{shown}");
}

#[test]
fn outsiders_see_names_and_status_only() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    let names = json!({"sagjan": {"status": "UP"}});
    let ask = |furt: &World, name: &str, value: &str| {
        eventually("the public listener shows it UP", || {
            let body = Request::get("/health").field(name, value).send(furt.public).json();
            (body["services"]["sagjan"]["status"] == "UP").then_some(body)
        })
    };
    for (name, value) in
        [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1"), ("X-Real-IP", "127.0.0.1")]
    {
        assert_eq!(ask(&furt, name, value)["services"], names, "{name}: {value}");
    }
    assert_eq!(ask(&furt, "X-Nothing", "")["services"]["sagjan"]["url"], sagjan.url());
    drop(furt);

    let furt = Conf::new().gateway("health_detail = names").start();
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    assert_eq!(ask(&furt, "X-Nothing", "")["services"], names);
    drop(furt);
    let furt = Conf::new().gateway("health_detail = full").start();
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    assert_eq!(ask(&furt, "X-Forwarded-For", "203.0.113.9")["services"]["sagjan"]["url"], sagjan.url());
}

#[test]
fn a_down_service_leaves_furt_healthy_live_and_ready() {
    let furt = Conf::new().quick().start();
    let sagjan = Upstream::start("sagjan");
    sagjan.set_health(Health::Status(500));
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "DOWN");
    assert_eq!(furt.health()["status"], "healthy");
    for address in [furt.internal, furt.public] {
        for path in ["/health/live", "/health/ready"] {
            Request::get(path).send(address).status(200);
        }
        let head = Request::new("HEAD", "/health").send(address);
        head.status(200);
        Request::post("/health", "").send(address).refused(405, "METHOD_NOT_ALLOWED");
    }
}
