//! furt.conf read again while furt serves: all of it or none, running state kept (DESIGN §3).

use serde_json::{Value, json};

use crate::{
    client::{Answer, Request},
    upstream::{Health, Upstream},
    world::{ADMIN_KEY, Conf, WEBSITE_KEY, World, eventually},
};

const COMMENTS: &[&str] = &["GET /api/comments/* comments:read"];
const NEW_KEY: &str = "new-key-0123456789-0123456789-000";

/// The changes that a reload told of.
#[track_caller]
fn changes(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["data"]["changes"].as_array().expect("a list").iter().map(|line| line.as_str().expect("text").to_owned()).collect()
}

/// What `/internal/services/{service}` says of its only instance.
fn instance(furt: &World, service: &str) -> Value {
    Request::get(&format!("/internal/services/{service}")).send(furt.internal).json()["data"]["service"]["instances"][0].clone()
}

fn comments(furt: &World, key: &str) -> u16 {
    furt.send(&Request::get("/api/comments/a").key(key)).status
}

#[test]
fn a_key_that_is_gone_is_refused_at_once_and_a_new_one_works() {
    let mut furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let key = format!("[api_key \"{NEW_KEY}\"]\nname = New\npermissions = comments:read\n");
    assert_eq!((comments(&furt, WEBSITE_KEY), comments(&furt, NEW_KEY)), (200, 401));
    furt.rewrite(Conf::new().more(&key));
    assert_eq!(changes(&furt.reload()), ["[api_key \"New\"] is new"]);
    // The answer comes when the data plane has it: the very next request is decided by it.
    assert_eq!(comments(&furt, NEW_KEY), 200);
    furt.rewrite(Conf::new());
    assert_eq!(changes(&furt.reload()), ["[api_key \"New\"] is gone"]);
    assert_eq!((comments(&furt, NEW_KEY), comments(&furt, WEBSITE_KEY)), (401, 200));
    assert_eq!(changes(&furt.reload()), Vec::<String>::new());
}

#[test]
fn a_key_expires_on_time() {
    let furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let mut furt = furt;
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64 + 3;
    let expires = furt_proto::time::rfc3339(soon * 1000);
    furt.rewrite(Conf::new().more(&format!("[api_key \"{NEW_KEY}\"]\nname = New\npermissions = comments:read\nexpires = {expires}\n")));
    furt.reload().status(200);
    let mut seen = Vec::new();
    eventually("it expires", || {
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        let status = comments(&furt, NEW_KEY);
        let after = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        seen.push((before, status, after));
        (status == 401).then_some(())
    });
    for (before, status, after) in seen {
        // furt's clock may be a few milliseconds behind within the second.
        assert!(if status == 200 { before <= soon } else { status == 401 && after >= soon }, "{status} between {before} and {after}");
    }
}

#[test]
fn sighup_does_the_same() {
    let mut furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.rewrite(Conf::new().more(&format!("[api_key \"{NEW_KEY}\"]\nname = New\npermissions = comments:read\n")));
    furt.signal("HUP");
    let mut seen = Vec::new();
    eventually("the key works", || {
        seen.push(comments(&furt, NEW_KEY));
        (seen.last() == Some(&200)).then_some(())
    });
    assert!(seen.iter().all(|status| [401, 200].contains(status)), "{seen:?}");
    furt.rewrite(Conf::new().server("log_level = loud"));
    furt.signal("HUP");
    eventually("it is told", || furt.logged(&["ERROR", "log_level: expected error, warn"]).then_some(()));
    assert_eq!(comments(&furt, NEW_KEY), 200, "nothing of it holds");
    assert!(furt.runs());
}

#[test]
fn what_is_no_file_is_refused_and_keeps_neither_reloads_nor_the_end_waiting() {
    let mut furt = World::start();
    let file = furt.dir.join("furt.conf");
    std::fs::remove_file(&file).expect("it is there");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo runs").success());
    furt.signal("HUP");
    eventually("it is told", || furt.logged(&["ERROR", "furt.conf: not a file"]).then_some(()));
    let answer = furt.reload();
    answer.refused(400, "VALIDATION_ERROR");
    assert!(answer.text().contains("not a file"), "{answer:?}");
    std::fs::remove_file(&file).expect("it is there");
    furt.rewrite(Conf::new().more(&format!("[api_key \"{NEW_KEY}\"]\nname = New\nkey_sha256_file = fifo\npermissions = *\n")));
    assert!(std::process::Command::new("mkfifo").arg(furt.dir.join("fifo")).status().expect("mkfifo runs").success());
    furt.reload().refused(400, "VALIDATION_ERROR");
    furt.rewrite(Conf::new());
    furt.reload().status(200);
    furt.terminate();
    assert!(furt.ended().success());
}

#[test]
fn a_faulty_file_changes_nothing_and_every_fault_is_told() {
    let mut furt = World::start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    let before = furt.registry();
    furt.rewrite(Conf::new().grants("").server("log_level = loud").gateway("health_check_interval = never"));
    let answer = furt.reload();
    answer.refused(400, "VALIDATION_ERROR");
    let details = answer.json()["details"].clone();
    let fields: Vec<_> =
        details.as_array().expect("a list").iter().map(|detail| detail["field"].as_str().expect("text").to_owned()).collect();
    assert_eq!(fields.len(), 2, "{details}");
    assert!(fields[0].contains("furt.conf:5: log_level") && fields[1].contains(": health_check_interval"), "{fields:?}");
    assert_eq!(furt.registry(), before);
    assert_eq!(comments(&furt, WEBSITE_KEY), 200);
    furt.register("sagjan", &sagjan.url(), COMMENTS);
}

#[test]
fn what_needs_a_restart_is_refused_with_those_words() {
    let mut furt = World::start();
    for conf in [Conf::new().server("workers = 3"), Conf::new().disabled()] {
        furt.rewrite(conf);
        let answer = furt.reload();
        answer.refused(400, "VALIDATION_ERROR");
        assert!(answer.text().contains("needs a restart"), "{answer:?}");
    }
    furt.rewrite(Conf::new().server("workers = 3").more(&format!("[api_key \"{NEW_KEY}\"]\nname = New\npermissions = *\n")));
    furt.reload().status(400);
    assert_eq!(comments(&furt, NEW_KEY), 404, "without a route whatever the key");
    furt.send(&Request::get("/auth/status").key(NEW_KEY)).refused(401, "UNAUTHORIZED");
}

#[test]
fn a_grant_that_is_gone_withdraws_its_service_and_one_that_is_back_restores_it() {
    let mut furt = Conf::new().quick().start();
    let sagjan = Upstream::start("sagjan");
    let first = furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "UP");
    furt.rewrite(Conf::new().quick().grants("[service \"obr\"]\npermissions = *\n"));
    let told = changes(&furt.reload());
    assert!(told.iter().any(|line| line.starts_with("instance default of sagjan is withdrawn: there is no grant for sagjan")), "{told:?}");
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
    assert!(instance(&furt, "sagjan")["withdrawn"].as_str().expect("text").contains("no grant"));
    furt.post(&crate::world::registration("sagjan", &sagjan.url(), COMMENTS)).refused(403, "PERMISSION_NOT_GRANTED");
    let explained = Request::get("/internal/explain?method=GET&path=/api/comments/a&key_name=Website").send(furt.internal).json();
    assert_eq!(explained["data"]["outcome"], json!({"status": 503, "code": "SERVICE_UNAVAILABLE"}));
    assert_eq!(explained["data"]["instances"][0]["eligible"], false);

    furt.rewrite(Conf::new().quick());
    assert!(changes(&furt.reload()).contains(&"instance default of sagjan is allowed again".to_owned()));
    furt.get("/api/comments/a").status(200);
    assert_eq!(furt.register("sagjan", &sagjan.url(), COMMENTS)["registration_id"], first["registration_id"]);
}

/// Quick to find an instance DOWN, slow to look again.
fn slow(down_check_interval: u32) -> Conf {
    let conf = Conf::new().gateway("health_check_interval = 200ms").gateway("health_check_timeout = 200ms");
    conf.gateway(&format!("down_check_interval = {down_check_interval}"))
}

#[test]
fn a_service_that_is_down_stays_down_over_a_reload_and_a_restart_and_sees_no_request() {
    let mut furt = slow(3600).start();
    let sagjan = Upstream::start("sagjan");
    sagjan.set_health(Health::Status(500));
    furt.register("sagjan", &sagjan.url(), COMMENTS);
    furt.until("sagjan", "DOWN");
    let requests = sagjan.requests().len();
    furt.rewrite(slow(3601));
    assert_eq!(changes(&furt.reload()), ["[gateway] down_check_interval is 3601s"]);
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
    eventually("the transition is stored", || furt.logged(&["service down"]).then_some(()));
    furt.terminate();
    assert!(furt.ended().success());
    furt.start_again();
    furt.get("/api/comments/a").refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(furt.health_of("sagjan")["status"], "DOWN");
    assert_eq!(sagjan.requests().len(), requests);
}

#[test]
fn limits_headers_and_logs_of_the_data_plane_change_with_it() {
    let mut furt = Conf::new().server("log_requests = false").start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), &["POST /api/comments/* comments:write", "GET /api/comments/* comments:read"]);
    let post = || furt.send(&Request::post("/api/comments/a", "0123456789".repeat(10)).key(ADMIN_KEY)).status;
    assert_eq!(post(), 200);
    let conf = Conf::new().server("max_body_size = 50").server("add_headers = X-Frame-Options: DENY").server("log_format = json");
    furt.rewrite(conf.server("log_level = warn"));
    let told = changes(&furt.reload());
    for key in ["max_body_size is 50", "add_headers is x-frame-options", "log_requests is true", "log_format is json", "log_level is warn"]
    {
        assert!(told.contains(&format!("[server] {key}")), "{key}: {told:?}");
    }
    let post = furt.send(&Request::post("/api/comments/a", "0123456789".repeat(10)).key(ADMIN_KEY));
    post.refused(413, "PAYLOAD_TOO_LARGE");
    let answer = furt.get("/api/comments/a");
    assert_eq!(answer.field("x-frame-options"), Some("DENY"));
    eventually("requests are logged as JSON", || {
        furt.log().iter().any(|line| line.starts_with('{') && line.contains("/api/comments/a")).then_some(())
    });
}
