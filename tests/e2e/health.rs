//! Health: pings, DOWN and withdrawn, slow pings, parked, back again; and the body of `/health`.

mod body;

use std::time::Duration;

use furt_proto::v1::ProbeRequest;
use serde_json::Value;

use crate::{
    client::{Answer, Request},
    process::Process,
    upstream::{Health, Seen, Upstream},
    world::{Conf, World, eventually, registration},
};

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read"];

/// Asks for `path` again and again until the status is `last`; every answer on the way must be of
/// `allowed`, and one that furt gave itself must be a whole refusal. Gives the last answer.
#[track_caller]
fn transition(furt: &World, path: &str, allowed: &[u16], last: u16) -> Answer {
    let mut seen = Vec::new();
    let answer = eventually(&format!("{path} answers {last}"), || {
        let answer = furt.get(path);
        if seen.last() != Some(&answer.status) {
            seen.push(answer.status);
        }
        assert!(allowed.contains(&answer.status) || answer.status == last, "{seen:?} {answer:?}");
        (answer.status == last).then_some(answer)
    });
    let changes = seen.windows(2).filter(|pair| pair[1] == last).count();
    assert!(changes <= 1, "once {last}, always {last}: {seen:?}");
    answer
}

/// Asserts that pings came one interval apart on the whole: each is jittered by 10 % at most, and seen
/// as late as a busy machine makes it, which shortens the gap that follows.
#[track_caller]
fn apart(probes: &[Seen], interval: Duration) {
    let gaps: Vec<_> = probes.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    let count = u32::try_from(gaps.len()).expect("a few");
    let (shortest, longest) = (interval.mul_f64(0.9) * count, interval.mul_f64(1.1) * count);
    let late = Duration::from_millis(100);
    let span: Duration = gaps.iter().sum();
    assert!(count > 0 && span + late >= shortest && span <= longest + late * count, "{gaps:?}");
}

#[test]
fn pings_come_at_the_interval() {
    let furt = Conf::new().quick().start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let probes = eventually("six pings", || Some(sagjan.probes()).filter(|probes| probes.len() >= 6));
    apart(&probes, Duration::from_millis(200));
    let epoch = furt.register("sagjan", &sagjan.url(), COMMENTS)["epoch"].as_str().map(str::to_owned);
    for probe in probes {
        assert_eq!((probe.method.as_str(), probe.target.as_str()), ("GET", "/health"));
        assert_eq!(probe.field("x-furt-epoch"), epoch.as_deref());
        assert_eq!(probe.field("x-furt-registered"), Some("true"));
        assert_eq!(probe.values("x-api-key"), [""; 0]);
    }
}

#[test]
fn three_failed_checks_mark_it_down_and_withdraw_its_routes_and_an_answer_brings_them_back() {
    let (sagjan, wide) = (Upstream::start("sagjan"), Upstream::start("wide"));
    let grants = "[service \"*\"]\npermissions = *\n[service \"sagjan\"]\npermissions = comments:*\npaths = /api/comments/*\n";
    let furt = Conf::new().quick().grants(grants).start();
    furt.register("wide", &wide.url(), &["GET /api/* comments:read"]);
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("sagjan"));

    let before = sagjan.probes().len();
    sagjan.set_health(Health::Status(500));
    let answer = transition(&furt, "/api/comments/a", &[200], 503);
    answer.refused(503, "SERVICE_UNAVAILABLE");
    let retry_after: u64 = answer.field("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
    assert!((1..=2).contains(&retry_after), "from the next probe: {retry_after}");
    let probes = sagjan.probes();
    // One probe may have been answered well just before the health changed.
    assert!(probes.len() >= before + 3, "three failed checks, not fewer");
    let down = furt.health_of("sagjan");
    assert_eq!(down["status"], "DOWN");
    assert!(down["consecutive_failures"].as_u64().is_some_and(|count| (3..10).contains(&count)), "{down}");
    assert_eq!(furt.get("/api/other").field("x-upstream"), Some("wide"), "another service is not affected");
    let wide_before = wide.requests().len();
    for path in ["/api/comments/a", "/api/comments/a/b", "/api/comments/a/"] {
        furt.get(path).refused(503, "SERVICE_UNAVAILABLE");
    }

    sagjan.set_health(Health::Status(204));
    let answer = transition(&furt, "/api/comments/a", &[503], 200);
    assert_eq!(answer.field("x-upstream"), Some("sagjan"));
    assert_eq!(furt.health_of("sagjan")["status"], "UP");
    assert!(furt.health_of("sagjan").get("consecutive_failures").is_none(), "not when it is 0");
    assert_eq!(wide.requests().len(), wide_before, "the other service's wildcard never saw a request of the withdrawn route");
    let recovered = sagjan.probes();
    eventually("it is pinged at the normal interval again", || Some(sagjan.probes()).filter(|probes| probes.len() >= recovered.len() + 3));
    apart(&sagjan.probes()[recovered.len()..], Duration::from_millis(200));

    for words in [["check failed", "sagjan"], ["down", "sagjan"], ["up", "sagjan"]] {
        eventually("failed probes and transitions are logged", || furt.logged(&words).then_some(()));
    }
}

#[test]
fn the_first_three_misses_come_one_interval_apart_and_further_pings_are_slow_and_end_after_ten() {
    let furt = Conf::new()
        .gateway("health_check_interval = 200ms")
        .gateway("health_check_timeout = 200ms")
        .gateway("down_check_interval = 300ms")
        .start();
    let (sagjan, witness) = (Upstream::start("sagjan"), Upstream::start("witness"));
    sagjan.set_health(Health::Status(500));
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.register("witness", &witness.url(), &["GET /witness comments:read"]);
    let parked = eventually("it is parked", || Some(furt.health_of("sagjan")).filter(|sagjan| sagjan["parked"] == true));
    assert_eq!((&parked["status"], &parked["consecutive_failures"]), (&"DOWN".into(), &10.into()));
    let probes = sagjan.probes();
    assert_eq!(probes.len(), 10, "each of the ten was one ping");
    apart(&probes[..3], Duration::from_millis(200));
    apart(&probes[2..], Duration::from_millis(300));

    // No more pings: by the time that the witness had six, a slow one would have come.
    let seen = witness.probes().len();
    eventually("six pings of the witness", || (witness.probes().len() >= seen + 6).then_some(()));
    assert_eq!(sagjan.probes().len(), 10);
    let answer = furt.get("/api/comments/a");
    answer.refused(503, "SERVICE_UNAVAILABLE");

    // Healthy again, it is not noticed until it registers: then at once.
    sagjan.set_health(Health::Status(200));
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    transition(&furt, "/api/comments/a", &[503], 200);
    let woken = furt.until("sagjan", "UP");
    assert!(woken.get("parked").is_none_or(|parked| parked == false), "{woken}");
    let seen = sagjan.probes().len();
    eventually("pings at the normal interval", || (sagjan.probes().len() >= seen + 3).then_some(()));
}

#[test]
fn a_parked_one_is_woken_by_a_probe_asked_for() {
    let furt = Conf::new()
        .gateway("health_check_interval = 200ms")
        .gateway("health_check_timeout = 200ms")
        .gateway("down_check_interval = 200ms")
        .gateway("stop_ping_after_failures = 4")
        .start();
    let sagjan = Upstream::start("sagjan");
    sagjan.set_health(Health::Status(500));
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    eventually("it is parked", || (furt.health_of("sagjan")["parked"] == true).then_some(()));
    assert_eq!(furt.health_of("sagjan")["consecutive_failures"], 4);
    sagjan.set_health(Health::Status(200));
    let request = ProbeRequest { service: "sagjan".into(), instance: String::new() };
    let answer = furt.grpc(async |mut client| client.probe(request).await).expect("woken").into_inner();
    assert_eq!(answer.instances, ["default"]);
    furt.until("sagjan", "UP");
    furt.get("/api/comments/a").status(200);
}

#[test]
fn a_service_that_accepts_and_never_answers_goes_down_though_it_renews() {
    let furt = Conf::new()
        .gateway("health_check_interval = 150ms")
        .gateway("health_check_timeout = 100ms")
        .gateway("registration_rate = 100000/s")
        .start();
    let sagjan = Upstream::start("sagjan");
    sagjan.set_health(Health::Hang);
    let first = furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.get("/api/comments/a").status(200);
    // Its own timer still lives: renewing must not hide that it hangs.
    eventually("it is DOWN", || {
        let again = furt.register("sagjan", &sagjan.url(), COMMENTS);
        assert_eq!(again["registration_id"], first["registration_id"]);
        (furt.health_of("sagjan")["status"] == "DOWN").then_some(())
    });
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
}

#[test]
fn only_2xx_within_the_timeout_is_an_answer_and_redirects_are_not_followed() {
    let furt = Conf::new().quick().start();
    for status in [204, 299] {
        let upstream = Upstream::start("well");
        upstream.set_health(Health::Status(status));
        furt.register("well", &upstream.url(), &["GET /well comments:read"]);
        furt.until("well", "UP");
    }
    for status in [302, 404, 503] {
        let upstream = Upstream::start("ill");
        upstream.set_health(Health::Status(status));
        furt.register("ill", &upstream.url(), &["GET /ill comments:read"]);
        furt.until("ill", "DOWN");
        assert!(upstream.probes().iter().all(|probe| probe.target == "/health"), "{:?}", upstream.probes());
        assert!(upstream.requests().is_empty());
    }
}

#[test]
fn a_killed_service_is_deregistered_and_a_restarted_one_is_back() {
    let furt = Conf::new().quick().start();
    let mut sagjan = Process::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    let first = furt.get("/api/comments/a");
    first.status(200);

    sagjan.kill();
    // Until the third miss the route stands and the connect fails; then the route is withdrawn.
    let answer = transition(&furt, "/api/comments/a", &[200, 502], 503);
    answer.refused(503, "SERVICE_UNAVAILABLE");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
    let routes = Request::get("/internal/routes").send(furt.internal).json()["data"]["routes"].clone();
    assert_eq!(routes[0]["active"], false, "out of the active table, still owned: {routes}");
    let owned = furt.post(&registration("thief", &sagjan.url(), COMMENTS));
    owned.refused(409, "ROUTE_CONFLICT");

    sagjan.start_again();
    let back = transition(&furt, "/api/comments/a", &[503], 200);
    assert_ne!(back.field("x-upstream"), first.field("x-upstream"), "another process answers");
    furt.until("sagjan", "UP");
}

#[test]
fn up_instances_serve_before_unknown_ones_and_down_ones_never() {
    let furt = Conf::new().quick().start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), COMMENTS);
    furt.until("sagjan", "UP");
    two.set_health(Health::Hang);
    furt.register_instance("sagjan", "two", &two.url(), COMMENTS);
    for _ in 0..20 {
        assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("one"));
    }
    assert!(two.requests().is_empty(), "UNKNOWN serves only while no UP one can");
    two.set_health(Health::Status(200));
    eventually("both serve", || (furt.get("/api/comments/a").field("x-upstream") == Some("two")).then_some(()));
    one.set_health(Health::Status(500));
    eventually("one is DOWN", || (instance(&furt, "one")["status"] == "DOWN").then_some(()));
    let before = one.requests().len();
    for _ in 0..20 {
        assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("two"));
    }
    assert_eq!(one.requests().len(), before);
    assert_eq!(furt.health_of("sagjan")["status"], "UP", "the best of them");
}

fn instance(furt: &World, id: &str) -> Value {
    let health = furt.health_of("sagjan");
    match &health["instances"] {
        Value::Object(all) => all.get(id).cloned().unwrap_or_default(),
        Value::Array(all) => all.iter().find(|one| one["id"] == id).cloned().unwrap_or_default(),
        _ => Value::Null,
    }
}
