//! Many connections at once: as many as may be are held, one more is closed, and all of them are forgotten.

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::{Held, get, leaves_nothing, metric, world_with};
use crate::{
    client::{Client, Request},
    upstream::Upstream,
    world::{World, eventually},
};

/// No connection ends by a limit on its time.
const PATIENT: [&str; 2] = ["client_timeout = 60s", "client_idle_timeout = 60s"];

#[test]
fn two_thousand_connections_come_and_go() {
    const COUNT: u64 = 2_000;
    let upstream = Upstream::start("u");
    let furt = world_with(&PATIENT, &[], &upstream.url());
    let most = AtomicU64::new(0);
    leaves_nothing(&furt, || {
        let before = Held::until(&furt, "it is quiet", |_| true);
        let silent: Vec<_> = (0..COUNT / 2).map(|_| TcpStream::connect(furt.public).expect("furt listens")).collect();
        let mut idle: Vec<_> = (0..COUNT / 2).map(|_| Client::new(furt.public)).collect();
        let served = |client: &mut Client| assert_eq!(client.ask(&Request::get("/health/live")).status, 200);
        idle.iter_mut().for_each(served);
        eventually("all are taken", || (metric(&furt, "furt_connections") >= COUNT).then_some(()));
        furt.send(&get("/t/x")).status(200);
        most.fetch_max(Held::of(&furt).resident_kib.saturating_sub(before.resident_kib), Ordering::SeqCst);
        // They were idle and not forgotten.
        idle.iter_mut().step_by(10).for_each(served);
        drop((silent, idle));
    });
    // In a debug build, whose futures are large.
    let most = most.load(Ordering::SeqCst);
    assert!(most < COUNT * 32, "{most} KiB for {COUNT} connections");
}

/// Connects so often at once; says how many were closed without a word, once no more than `stay` are left.
fn flood(furt: &World, count: usize, stay: usize) -> usize {
    let mut clients: Vec<_> = (0..count).map(|_| TcpStream::connect(furt.public).expect("the kernel takes it")).collect();
    for client in &clients {
        client.set_nonblocking(true).expect("a socket takes it");
    }
    eventually("what is too much is closed", || {
        clients.retain_mut(|client| match client.read(&mut [0; 16]) {
            Ok(0) => false,
            Ok(_) => panic!("an answer to nothing"),
            Err(error) => error.kind() != ErrorKind::ConnectionReset,
        });
        (clients.len() <= stay).then_some(())
    });
    // Whoever is left stays.
    thread::sleep(Duration::from_millis(100));
    clients.retain_mut(|client| client.read(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    count - clients.len()
}

#[track_caller]
fn survives_a_flood(limit: &[&str]) {
    let upstream = Upstream::start("u");
    let furt = world_with(&[&PATIENT, limit].concat(), &[], &upstream.url());
    leaves_nothing(&furt, || {
        let mut kept: Vec<_> = (0..10).map(|_| Client::new(furt.public)).collect();
        kept.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200));
        let before = metric(&furt, "furt_connections_refused_total");
        // Twenty are open at the most, ten of them from before.
        assert_eq!(flood(&furt, 500, 10), 490);
        assert_eq!(metric(&furt, "furt_connections_refused_total") - before, 490);
        kept.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/t/x")).status, 200, "those that are there go on"));
        drop(kept);
        eventually("there is room again", || get("/t/x").try_send(furt.public).ok().filter(|answer| answer.status == 200));
    });
}

#[test]
fn above_max_connections_those_that_are_there_go_on() {
    survives_a_flood(&["max_connections = 20"]);
}

#[test]
fn above_max_connections_per_address_those_that_are_there_go_on() {
    survives_a_flood(&["max_connections_per_address = 20", "trusted_proxies = 192.0.2.1"]);
}
