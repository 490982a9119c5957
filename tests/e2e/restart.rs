//! furt gone and back: the services are there, and register again without anybody's help.

use crate::{
    client::Request,
    process::Process,
    world::{Conf, WEBSITE_KEY, World, eventually},
};

fn get(furt: &World, path: &str) -> Option<u16> {
    Request::get(path).key(WEBSITE_KEY).try_send(furt.public).ok().map(|answer| answer.status)
}

#[test]
fn after_kill_9_of_furt_the_services_are_there_before_it_answers_and_register_again_by_themselves() {
    let mut furt = Conf::new().quick().start();
    let processes = ["alpha", "beta"].map(|name| Process::registering(name, furt.internal));
    for process in &processes {
        let path = format!("/api/{}/a", process.name);
        eventually("the service registered itself", || (get(&furt, &path) == Some(200)).then_some(()));
        furt.until(&process.name, "UP");
    }
    let ids = processes.each_ref().map(|process| furt.get(&format!("/api/{}/a", process.name)).text());
    let epoch = furt.registry_epoch();

    furt.kill();
    assert_eq!(get(&furt, "/api/alpha/a"), None, "it is gone");
    furt.start_again();
    for (process, before) in processes.iter().zip(ids) {
        let answer = furt.get(&format!("/api/{}/a", process.name));
        assert_eq!((answer.status, answer.text()), (200, before), "the very first request, by the same process as before");
    }
    assert_ne!(furt.registry_epoch(), epoch);
    for process in &processes {
        furt.until(&process.name, "UP");
        eventually("it registered again", || {
            let shown = Request::get(&format!("/internal/services/{}", process.name)).send(furt.internal).json();
            (shown["data"]["service"]["instances"][0]["restored"] == false).then_some(())
        });
    }
}

#[test]
fn uptime_and_timelines_survive_a_restart_and_say_why() {
    let mut furt = Conf::new().quick().start();
    let upstream = crate::upstream::Upstream::start("sagjan");
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    let instance =
        |furt: &World| Request::get("/internal/services/sagjan").send(furt.internal).json()["data"]["service"]["instances"][0].clone();
    let up =
        eventually("a second of uptime", || Some(instance(&furt)).filter(|found| found["uptime"][0]["up_seconds"].as_u64() >= Some(1)));
    furt.terminate();
    assert!(furt.ended().success());
    furt.start_again();
    let back = furt.until("sagjan", "UP");
    assert_eq!(back["status"], "UP");
    let after = instance(&furt);
    for (window, before) in after["uptime"].as_array().expect("three").iter().zip(up["uptime"].as_array().expect("three")) {
        assert!(window["up_seconds"].as_u64() >= before["up_seconds"].as_u64(), "{window} {before}");
        assert_eq!((&window["down_seconds"], &window["ratio"]), (&0.into(), &1.0.into()), "the time in between counts for neither");
    }
    let steps: Vec<_> = after["timeline"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|step| format!("{} {} {}", step["from"], step["to"], step["cause"]))
        .collect();
    let text = |steps: &[String]| steps.join("\n").replace('"', "");
    assert_eq!(text(&steps), "UNKNOWN UP answered\nUP UNKNOWN furt started\nUNKNOWN UP answered");
}

#[test]
fn a_new_start_of_furt_is_a_new_epoch() {
    let mut furt = World::start();
    let upstream = crate::upstream::Upstream::start("sagjan");
    let routes = &["GET /api/comments/* comments:read"];
    let first = furt.register("sagjan", &upstream.url(), routes);
    furt.terminate();
    assert!(furt.ended().success());
    furt.start_again();
    let second = furt.register("sagjan", &upstream.url(), routes);
    assert_ne!(first["epoch"], second["epoch"]);
    furt.get("/api/comments/a").status(200);
}

#[test]
fn a_service_that_restarts_under_its_registration_is_served_again() {
    let furt = Conf::new().quick().start();
    let mut service = Process::registering("alpha", furt.internal);
    eventually("it registered itself", || (get(&furt, "/api/alpha/a") == Some(200)).then_some(()));
    let before = furt.get("/api/alpha/a").text();
    service.kill();
    furt.until("alpha", "DOWN");
    furt.get("/api/alpha/a").refused(503, "SERVICE_UNAVAILABLE");
    service.start_again();
    let after = eventually("it is back", || Some(furt.get("/api/alpha/a")).filter(|answer| answer.status == 200));
    assert_ne!(after.text(), before, "another process of the same service");
}
