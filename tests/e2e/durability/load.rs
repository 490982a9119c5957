//! Restarts under load: from the first request on, everything goes where it went before.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use super::unlimited;
use crate::{
    client::{Client, Request},
    upstream::Upstream,
    world::{ADMIN_KEY, eventually},
};

const SERVICES: usize = 100;
const CALLERS: usize = 6;

/// What the callers have seen, all of it.
#[derive(Default)]
struct Tally {
    /// Answers for each service by the service itself.
    right: Vec<AtomicUsize>,
    over: AtomicBool,
}

/// Calls one service after another until it is over. furt may be gone, then there is no answer; but
/// every answer is that of the right service.
fn call(tally: &Tally, public: SocketAddr) {
    let mut client = None;
    while !tally.over.load(Ordering::SeqCst) {
        let at = fastrand::usize(..SERVICES);
        let path = format!("/load/{at}/{}", fastrand::u32(..));
        let Ok(connected) = client.take().map_or_else(|| Client::connect(public), Ok) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut connected: Client = connected;
        let sent = connected.write(Request::get(&path).key(ADMIN_KEY).to_bytes(public));
        let Ok(answer) = sent.and_then(|()| connected.read("GET")) else { continue };
        assert_eq!((answer.status, answer.text()), (200, format!("service-{at} GET {path}")));
        tally.right[at].fetch_add(1, Ordering::SeqCst);
        client = Some(connected);
    }
}

#[test]
fn after_a_restart_under_load_every_request_is_answered_by_the_right_service_from_the_first_on() {
    let upstreams: Vec<_> = (0..SERVICES).map(|at| Upstream::start_on(0, &format!("service-{at}"))).collect();
    let mut furt = unlimited().start();
    for (at, upstream) in upstreams.iter().enumerate() {
        furt.register(&format!("service-{at}"), &upstream.url(), &[&format!("GET /load/{at}/*")]);
    }
    let tally = Tally { right: (0..SERVICES).map(|_| AtomicUsize::new(0)).collect(), over: AtomicBool::new(false) };
    let counts = || tally.right.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>();
    let all_called = |before: Vec<usize>| {
        let more = || counts().iter().zip(&before).all(|(now, before)| now > before).then_some(());
        eventually("every service is called", more);
    };
    let public = furt.public;
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| call(&tally, public))).collect();
        for round in 0..4 {
            all_called(counts());
            if round < 3 {
                furt.kill();
            } else {
                furt.terminate();
                assert!(furt.ended().success());
            }
            furt.start_again();
            all_called(counts());
        }
        tally.over.store(true, Ordering::SeqCst);
        callers.into_iter().for_each(|caller| caller.join().expect("every answer was right"));
    });
}
