//! A store that cannot be read at start is not an empty one: furt serves what needs no registry, says
//! what is wrong and what to do, leaves the file alone, and goes on when the fault is gone.

use std::fs;

use furt_proto::v1::{GetServiceRequest, ListRoutesRequest, ListServicesRequest};
use serde_json::{Value, json};

use super::{store_of, store_unavailable, unlimited};
use crate::{
    client::Request,
    upstream::Upstream,
    world::{Conf, World, eventually, registration},
};

const ROUTES: &[&str] = &["GET /api/comments/* comments:read"];

/// A furt with a static route and a registered service, which was killed.
fn killed() -> (World, Upstream, Upstream) {
    let (fixed, kept) = (Upstream::start("fixed"), Upstream::start("kept"));
    let route = format!("[route \"fixed\"]\nmethods = GET\npath = /fixed\nurl = {}\npermission = comments:read\n", fixed.url());
    let mut furt = unlimited().more(&route).start();
    furt.register("sagjan", &kept.url(), ROUTES);
    furt.kill();
    (furt, fixed, kept)
}

/// What a furt does whose store cannot be read.
fn serves_without_its_store(furt: &World, kept: &Upstream, words: &[&str]) {
    furt.get("/fixed").status(200);
    let health = furt.health();
    assert_eq!(health["status"], "degraded", "{health}");
    let issues = health["issues"].to_string();
    assert!(words.iter().all(|word| issues.contains(word)), "{words:?} in {issues}");
    for service in ["sagjan", "another"] {
        store_unavailable(&furt.post(&registration(service, &kept.url(), ROUTES)), words);
    }
    store_unavailable(&Request::new("DELETE", "/internal/services/sagjan").send(furt.internal), words);
    store_unavailable(&Request::new("POST", "/internal/services/sagjan/probe").send(furt.internal), words);
    for path in ["/internal/services", "/internal/services/sagjan", "/internal/routes"] {
        store_unavailable(&Request::get(path).send(furt.internal), words);
    }
    let request = GetServiceRequest { service: "sagjan".into() };
    let status = furt.grpc(async |mut client| client.get_service(request).await).expect_err("not known");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let status = furt.grpc(async |mut client| client.list_services(ListServicesRequest {}).await).expect_err("not known");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let status = furt.grpc(async |mut client| client.list_routes(ListRoutesRequest::default()).await).expect_err("not known");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(Request::get("/health/ready").send(furt.internal).status == 200, "it serves");
}

fn is_back(furt: &World) {
    eventually("furt is healthy again", || (furt.health()["status"] == "healthy").then_some(()));
    assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("kept"));
}

#[test]
fn a_damaged_store_is_said_to_be_so_and_left_alone_until_it_is_moved_away() {
    let (mut furt, _fixed, kept) = killed();
    let store = store_of(&furt);
    let mut damaged = fs::read(&store).expect("the store");
    // All that is written below the head.
    damaged.iter_mut().skip(4096).filter(|byte| **byte != 0).for_each(|byte| *byte ^= 0x55);
    fs::write(&store, &damaged).expect("the store");
    furt.start_again();
    serves_without_its_store(&furt, &kept, &["registry.redb", "damaged", "move it away"]);
    assert!(fs::read(&store).expect("the store") == damaged, "it was written to");

    fs::rename(&store, furt.dir.join("aside")).expect("the store");
    eventually("furt begins a new one", || (furt.post(&registration("sagjan", &kept.url(), ROUTES)).status == 200).then_some(()));
    is_back(&furt);
    furt.kill();
    furt.start_again();
    is_back(&furt);
}

#[test]
fn a_store_that_another_process_holds_is_read_when_it_is_free() {
    let (mut furt, _fixed, kept) = killed();
    let holder = redb::Database::open(store_of(&furt)).expect("the store opens");
    furt.start_again();
    serves_without_its_store(&furt, &kept, &["registry.redb", "another furt", "state_dir"]);
    drop(holder);
    is_back(&furt);
    furt.post(&registration("another", &kept.url(), &["GET /other comments:read"])).status(200);
}

#[test]
fn a_store_of_a_newer_furt_is_refused_with_the_remedy_and_left_alone() {
    let (mut furt, _fixed, kept) = killed();
    let path = store_of(&furt);
    let set_format = |format: u64| {
        let store = redb::Database::open(&path).expect("the store opens");
        let change = store.begin_write().expect("a transaction");
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        change.open_table(meta).expect("a table").insert("format", format).expect("a format");
        change.commit().expect("a commit");
    };
    set_format(2);
    furt.start_again();
    serves_without_its_store(&furt, &kept, &["registry.redb", "newer furt", "run that version", "move the file away"]);
    furt.kill();
    set_format(1);
    furt.start_again();
    is_back(&furt);
}

#[test]
fn a_state_dir_that_cannot_be_one_is_unwritable() {
    let (mut furt, _fixed, kept) = killed();
    let state = furt.dir.join("state");
    fs::rename(&state, furt.dir.join("aside")).expect("the state_dir");
    fs::write(&state, "a file").expect("a file");
    furt.start_again();
    serves_without_its_store(&furt, &kept, &["registry.redb", "cannot write", "state_dir"]);
    // In one step: furt would make a new one in between.
    std::os::unix::fs::symlink(furt.dir.join("aside"), furt.dir.join("back")).expect("a link");
    fs::rename(furt.dir.join("back"), &state).expect("the state_dir");
    is_back(&furt);
}

#[test]
fn a_store_that_is_taken_away_while_furt_runs_is_written_anew() {
    let (mut furt, _fixed, kept) = killed();
    furt.start_again();
    // In one step, as a directory that furt writes snapshots to may never be found empty.
    fs::rename(furt.dir.join("state"), furt.dir.join("away")).expect("the state_dir");
    fs::remove_dir_all(furt.dir.join("away")).expect("the state_dir");
    let other = registration("another", &kept.url(), &["GET /other comments:read"]);
    eventually("it is noticed and mended", || (furt.post(&other).status == 200).then_some(()));
    furt.kill();
    furt.start_again();
    is_back(&furt);
    furt.get("/other").status(200);
}

/// Written by 0.1.0, the first version that kept anything: `sagjan`, UP and drained by an operator, and `obr`, DOWN.
const WRITTEN_BY_0_1_0: &[u8] = include_bytes!("format-1.redb");

#[test]
fn a_store_written_by_an_older_furt_opens_with_all_that_was_in_it() {
    let mut furt = Conf::new().grants("[service \"*\"]\npermissions = *\nallow_public = true\nhosts = example.org\n").start();
    furt.terminate();
    assert!(furt.ended().success());
    std::fs::write(furt.dir.join("state/registry.redb"), WRITTEN_BY_0_1_0).expect("the store is put in its place");
    furt.start_again();
    let instance = |service: &str| {
        let shown = Request::get(&format!("/internal/services/{service}")).send(furt.internal).json()["data"]["service"].clone();
        (shown["instances"][0].clone(), shown["routes"].clone())
    };
    let (sagjan, routes) = instance("sagjan");
    assert_eq!(sagjan["registration_id"], "01M88C0AG2J2X3QMX2CV7ZEG4S");
    assert_eq!((&sagjan["url"], &sagjan["health_endpoint"]), (&json!("http://127.0.0.1:7812/base"), &json!("/health?full=1")));
    assert_eq!((&sagjan["version"], &sagjan["weight"], &sagjan["metadata"]), (&json!("1.2"), &json!(7), &json!({"team": "web"})));
    assert_eq!(
        (&sagjan["drained"], &sagjan["withdrawn"], &sagjan["registered_at"]),
        (&json!(true), &json!(""), &json!("2026-11-25T03:29:18Z"))
    );
    let place =
        |route: &Value| json!([route["host"], route["method"], route["path"], route["permission"], route["public"], route["timeout"]]);
    let places: Vec<_> = routes.as_array().expect("a list").iter().map(place).collect();
    assert_eq!(
        places,
        [json!(["example.org", "GET", "/api/comments/*", "comments:read", false, "500ms"]), json!(["", "*", "/open", "", true, ""])]
    );
    let steps: Vec<_> = sagjan["timeline"].as_array().expect("a list").iter().map(|step| step["cause"].clone()).collect();
    assert_eq!(steps[..2], ["answered", "furt started"]);
    let (obr, _) = instance("obr");
    assert_eq!((&obr["status"], &obr["id"]), (&json!("DOWN"), &json!("a")), "DOWN stays DOWN");
    furt.get("/obr").refused(503, "SERVICE_UNAVAILABLE");
}
