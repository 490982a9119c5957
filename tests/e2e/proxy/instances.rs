//! Several instances of one service.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::json;

use crate::{
    client::{Client, Request},
    port::Port,
    process::Process,
    upstream::{Health, Reply, Upstream, ok},
    world::{Conf, READER_KEY, WEBSITE_KEY, World, eventually, registration},
};

const ROUTES: &[&str] = &["GET /i comments:read"];

/// Asks until both instances have answered; every answer must be 200.
fn both_serve(furt: &World, names: [&str; 2]) {
    let mut seen = Vec::new();
    eventually("both instances serve", || {
        let answer = furt.get("/i");
        assert_eq!(answer.status, 200, "{answer:?}");
        seen.push(answer.field("x-upstream").unwrap_or_default().to_owned());
        names.iter().all(|name| seen.iter().any(|upstream| upstream.starts_with(name))).then_some(())
    });
}

#[test]
fn requests_are_shared_among_the_instances() {
    let furt = Conf::new().start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    eventually("both are UP", || (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
    for _ in 0..100 {
        furt.get("/i").status(200);
    }
    let counts = (one.requests().len(), two.requests().len());
    assert_eq!(counts.0 + counts.1, 100);
    // Equal weights: 100 fair draws leave this range once in ten million times.
    assert!(counts.0 >= 20 && counts.1 >= 20, "{counts:?}");
}

#[test]
fn weights_share_the_requests_unevenly() {
    let furt = Conf::new().start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    for (name, upstream, weight) in [("one", &one, 1), ("two", &two, 1000)] {
        let mut body = registration("sagjan", &upstream.url(), ROUTES);
        body["instance"] = name.into();
        body["weight"] = weight.into();
        furt.post(&body).status(200);
    }
    eventually("both are UP", || (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
    for _ in 0..100 {
        furt.get("/i").status(200);
    }
    assert!(two.requests().len() >= 90, "{} of 100", two.requests().len());
}

#[test]
fn kill_9_of_one_of_two_instances_fails_no_get() {
    let furt = Conf::new().quick().start();
    let mut one = Process::start("one");
    let two = Process::start("two");
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    both_serve(&furt, ["one", "two"]);
    let done = AtomicBool::new(false);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let askers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut statuses = Vec::new();
                    while !done.load(Ordering::SeqCst) {
                        statuses.push(furt.get("/i").status);
                    }
                    statuses
                })
            })
            .collect();
        one.kill();
        eventually("its end is noticed", || furt.health_of("sagjan")["instances"].to_string().contains("\"DOWN\"").then_some(()));
        one.start_again();
        eventually("its return is noticed", || {
            (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(())
        });
        done.store(true, Ordering::SeqCst);
        askers.into_iter().flat_map(|asker| asker.join().expect("only answers")).collect()
    });
    assert!(statuses.len() > 20, "{}", statuses.len());
    let failed: Vec<_> = furt.log().into_iter().filter(|line| line.contains("/i") && !line.contains("status=200")).collect();
    assert!(statuses.iter().all(|status| *status == 200), "{failed:#?}");
    both_serve(&furt, ["one", "two"]);
}

#[test]
fn a_connect_failure_moves_on_to_another_instance_for_any_method() {
    let furt = Conf::new().start();
    let (nobody, two) = (Port::take(), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &nobody.url(), &["* /i comments:write"]);
    furt.register_instance("sagjan", "two", &two.url(), &["* /i comments:write"]);
    for number in 0..10 {
        let answer = furt.send(&Request::post("/i", format!("body {number}")).key(WEBSITE_KEY));
        assert_eq!((answer.status, answer.field("x-upstream")), (200, Some("two")));
    }
    let bodies: Vec<_> = two.requests().into_iter().map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect();
    assert_eq!(bodies, (0..10).map(|number| format!("body {number}")).collect::<Vec<_>>());
}

#[test]
fn a_connection_that_ends_without_an_answer_moves_a_get_to_another_instance_and_no_post() {
    let furt = Conf::new().start();
    let ends = Upstream::with(|_| Reply::Last(Vec::new()));
    let answers = Upstream::start("answers");
    furt.register_instance("sagjan", "ends", &ends.url(), &["* /i comments:write"]);
    furt.register_instance("sagjan", "answers", &answers.url(), &["* /i comments:write"]);
    eventually("both are UP", || (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
    for _ in 0..10 {
        assert_eq!(furt.get("/i").field("x-upstream"), Some("answers"));
    }
    let before = answers.requests().len();
    let posts: Vec<_> = (0..20).map(|number| furt.send(&Request::post("/i", number.to_string()).key(WEBSITE_KEY)).status).collect();
    let reached = ends.requests().iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(posts.iter().filter(|status| **status == 200).count(), answers.requests().len() - before);
    assert_eq!(posts.iter().filter(|status| **status == 502).count(), reached, "each that may have been acted upon was sent once");
    assert_eq!(posts.len(), answers.requests().len() - before + reached);
}

#[test]
fn a_request_goes_only_to_instances_that_declared_its_route() {
    let furt = Conf::new().start();
    let (old, new) = (Upstream::start("old"), Upstream::start("new"));
    furt.register_instance("sagjan", "old", &old.url(), &["GET /api/* comments:read", "GET /i comments:read"]);
    furt.register_instance("sagjan", "new", &new.url(), &["GET /api/v2 comments:read", "GET /i comments:read"]);
    for _ in 0..10 {
        assert_eq!(furt.get("/api/v2").field("x-upstream"), Some("new"));
        assert_eq!(furt.get("/api/v1").field("x-upstream"), Some("old"));
    }
    // No eligible instance is 503, even where a wider route of the service has one.
    Request::new("DELETE", "/internal/services/sagjan/instances/old").send(furt.internal).status(200);
    furt.get("/api/v1").refused(404, "NOT_FOUND");
    furt.get("/api/v2").status(200);
}

#[test]
fn a_narrow_route_whose_instances_are_down_is_503_though_a_wider_one_is_up() {
    let furt = Conf::new().quick().start();
    let (wide, narrow) = (Upstream::start("wide"), Upstream::start("narrow"));
    furt.register_instance("sagjan", "wide", &wide.url(), &["GET /api/* comments:read"]);
    furt.register_instance("sagjan", "narrow", &narrow.url(), &["GET /api/v2 comments:read"]);
    furt.get("/api/v2").status(200);
    narrow.set_health(Health::Status(500));
    eventually("narrow is DOWN", || (furt.get("/api/v2").status == 503).then_some(()));
    furt.get("/api/v2").refused(503, "SERVICE_UNAVAILABLE");
    furt.get("/api/v1").status(200);
    assert!(wide.requests().iter().all(|seen| seen.target != "/api/v2"));
}

#[test]
fn the_newest_registrations_permission_governs_a_route() {
    let furt = Conf::new().start();
    let upstream = Upstream::start("any");
    let reader = Request::get("/i").key(READER_KEY);
    furt.register_instance("sagjan", "old", &upstream.url(), &["GET /i comments:read"]);
    furt.send(&reader).status(200);
    furt.register_instance("sagjan", "new", &upstream.url(), &["GET /i comments:write"]);
    furt.send(&reader).refused(403, "FORBIDDEN");
    furt.register_instance("sagjan", "old", &upstream.url(), &["GET /i comments:read"]);
    let answer = furt.send(&reader);
    assert_eq!(answer.status, 403, "a renewal of the same is no newer registration: {answer:?}");
}

#[test]
fn slow_instances_get_fewer_requests() {
    let furt = Conf::new().start();
    let slow = Upstream::with(|_| Reply::Hang);
    let quick = Upstream::with(|_| Reply::Bytes(ok("x")));
    let body = |instance: &str, url: String| json!({"service": "sagjan", "instance": instance, "url": url, "routes": [{"method": "GET", "path": "/i", "permission": "comments:read"}]});
    furt.post(&body("slow", slow.url())).status(200);
    furt.post(&body("quick", quick.url())).status(200);
    eventually("both are UP", || (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
    // The first that lands on the slow one stays in flight there; with two instances both are always
    // compared, so every other request then goes to the quick one.
    let waiting = eventually("one waits at the slow instance", || {
        let mut client = Client::new(furt.public);
        let before = quick.requests().len();
        client.write(Request::get("/i").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
        eventually("it is with one of them", || (quick.requests().len() > before || slow.requests().len() == 1).then_some(()));
        (slow.requests().len() == 1).then_some(client)
    });
    for _ in 0..20 {
        furt.get("/i").status(200);
    }
    assert_eq!(slow.requests().len(), 1);
    drop(waiting);
}
