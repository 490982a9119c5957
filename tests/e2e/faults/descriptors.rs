//! No descriptor is left: what is there goes on, what is new waits or is told so, and no service is blamed for it.

use std::{fs, net::TcpStream, process::Command, thread, time::Duration};

use super::{Held, descriptors, get, post, world_with};
use crate::{
    client::{Client, Request},
    upstream::{Health, Upstream},
    world::{World, eventually},
};

fn limit_descriptors(furt: &World, most: usize) {
    let set = Command::new("prlimit").args([format!("--pid={}", furt.id()), format!("--nofile={most}:4096")]).status();
    assert!(set.expect("util-linux has prlimit").success());
}

/// Processor time in hundredths of a second (proc(5), stat).
fn cpu_ticks(furt: &World) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", furt.id())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("after the name").split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Whether `/health` shows the service as UP and without a miss, over a connection that is there already.
#[track_caller]
fn well(client: &mut Client) {
    let answer = client.ask(&Request::get("/health"));
    let shown = &answer.json()["services"]["faulty"];
    assert_eq!((&shown["status"], shown.get("consecutive_failures")), (&"UP".into(), None), "{shown}");
}

#[test]
fn what_is_there_goes_on_and_no_service_is_blamed() {
    let upstream = Upstream::start("u");
    // Probes often enough to fall into it, and connections that outlast it.
    let probes = ["health_check_interval = 300ms", "health_check_timeout = 300ms", "down_check_interval = 600ms"];
    let furt = world_with(&["client_timeout = 60s", "client_idle_timeout = 60s"], &probes, &upstream.url());
    furt.until("faulty", "UP");
    let before = Held::until(&furt, "it is quiet", |_| true);
    let mut there = [(); 3].map(|()| Client::new(furt.public));
    there.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200));
    // A few more than are open now: silent clients take them all.
    limit_descriptors(&furt, descriptors(&furt) + 4);
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(furt.public).expect("the kernel takes it")).collect();
    let [first, second, third] = &mut there;
    let refused = eventually("none is left for the service", || {
        upstream.drop_connections();
        // What that gave back goes to the clients that wait to be accepted.
        thread::sleep(Duration::from_millis(150));
        Some(first.ask(&get("/t/x"))).filter(|answer| answer.status == 503)
    });
    refused.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!((refused.field("x-furt-reason"), refused.field("retry-after")), (Some("gateway-exhausted"), Some("1")));
    second.ask(&post("/t/x", "pay")).refused(503, "SERVICE_UNAVAILABLE");
    let (spent, said) = (cpu_ticks(&furt), furt.log().len());
    thread::sleep(Duration::from_secs(1));
    let spent = cpu_ticks(&furt) - spent;
    assert!(spent < 30, "{spent} hundredths of a second of processor time in one that has nothing to do");
    let warnings: Vec<_> = furt.log().split_off(said).into_iter().filter(|line| line.contains(" WARN ")).collect();
    assert!(warnings.len() <= 10, "told, and not too often: {warnings:#?}");
    assert!(furt.logged(&[" WARN ", "cannot open one more connection"]));
    assert!(furt.logged(&[" WARN ", "health check could not be made"]));
    // Everything that was there goes on, and what waited is served once there is room.
    well(third);
    there.iter_mut().for_each(|client| assert_eq!(client.ask(&Request::get("/health/live")).status, 200));
    drop(silent);
    let [first, ..] = &mut there;
    eventually("it is well again", || Some(first.ask(&get("/t/x"))).filter(|answer| answer.status == 200));
    furt.send(&get("/t/x")).status(200);
    well(first);
    assert!(!furt.logged(&["suspect"]) && !furt.logged(&["health check failed"]), "it was never the service's fault");
    // The probes go on, too: they find out what is so.
    upstream.set_health(Health::Status(500));
    furt.until("faulty", "DOWN");
    upstream.set_health(Health::Status(200));
    furt.until("faulty", "UP");
    drop(there);
    Held::until(&furt, "all is as before", |held| held.descriptors <= before.descriptors);
    assert!(!furt.log().iter().any(|line| line.contains(" ERROR ") || line.contains("panicked")));
}
