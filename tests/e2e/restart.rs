//! furt gone and back: services register again, without anybody's help.

use crate::{
    client::Request,
    process::Process,
    world::{Conf, WEBSITE_KEY, World, eventually},
};

fn get(furt: &World, path: &str) -> Option<u16> {
    Request::get(path).key(WEBSITE_KEY).try_send(furt.public).ok().map(|answer| answer.status)
}

#[test]
fn after_kill_9_of_furt_the_services_register_again_by_themselves() {
    let mut furt = Conf::new().quick().start();
    let processes = ["alpha", "beta"].map(|name| Process::registering(name, furt.internal));
    for process in &processes {
        let path = format!("/api/{}/a", process.name);
        eventually("the service registered itself", || (get(&furt, &path) == Some(200)).then_some(()));
        furt.until(&process.name, "UP");
    }
    let ids = processes.each_ref().map(|process| furt.get(&format!("/api/{}/a", process.name)).text());

    furt.kill();
    assert_eq!(get(&furt, "/api/alpha/a"), None, "it is gone");
    furt.start_again();
    for (process, before) in processes.iter().zip(ids) {
        let path = format!("/api/{}/a", process.name);
        let mut seen = Vec::new();
        let answer = eventually("the service is back", || {
            let answer = furt.get(&path);
            seen.push(answer.status);
            (answer.status == 200).then_some(answer)
        });
        // Not registered yet is 404 where the registry does not survive; never anything else.
        assert!(seen.iter().all(|status| [200, 404].contains(status)), "{seen:?}");
        assert_eq!(answer.text(), before, "by the same process as before, never touched");
        furt.until(&process.name, "UP");
    }
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
