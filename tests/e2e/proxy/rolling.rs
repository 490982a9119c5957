//! Instances that go and come under load: no request fails, and every answer is looked at.
//!
//! `FURT_RATE` is the number of requests a second (2,000 in the full run; fewer when it is not set, so that a busy
//! machine bears them), `FURT_ROLLS` how often instances are replaced.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    client::{Client, Request},
    process::Process,
    upstream::{Reply, Upstream, ok},
    world::{Conf, WEBSITE_KEY, World, eventually, from_environment},
};

const RATE: usize = 1_000;
const ROLLS: usize = 100;
/// Connections that the requests are spread over.
const CLIENTS: usize = 10;
const ROUTES: &[&str] = &["GET /i comments:read", "POST /i comments:write"];

/// What came of one request, by the number of its path: a status, or what went wrong on the way to furt.
#[derive(Debug, Clone)]
struct Came {
    request: usize,
    method: &'static str,
    got: Result<u16, String>,
    body_came_back: bool,
    by: String,
    asked: Instant,
    answered: Instant,
}

/// Requests at a steady rate, whatever becomes of them.
struct Load {
    done: Arc<AtomicBool>,
    came: Arc<Mutex<Vec<Came>>>,
    clients: Vec<JoinHandle<()>>,
    began: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// `requests` in turn, `rate` a second all together.
    fn start(to: SocketAddr, rate: usize, requests: &[(&'static str, &'static str)]) -> Self {
        let (done, came): (Arc<AtomicBool>, Arc<Mutex<Vec<Came>>>) = Default::default();
        let began = Instant::now();
        let clients = (0..CLIENTS).map(|number| {
            let (done, came, requests) = (Arc::clone(&done), Arc::clone(&came), requests.to_vec());
            let pause = Duration::from_secs(1) * CLIENTS as u32 / rate as u32;
            thread::spawn(move || {
                let mut client = None;
                for turn in 0u32.. {
                    let due = began + pause * turn + pause * number as u32 / CLIENTS as u32;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let request = (turn as usize + number) % requests.len();
                    let one = ask(&mut client, to, request, requests[request]);
                    lock(&came).push(one);
                }
            })
        });
        let clients = clients.collect();
        Self { done, came, clients, began }
    }

    /// What came so far.
    fn so_far(&self) -> usize {
        lock(&self.came).len()
    }

    /// Waits until `more` further requests are answered.
    fn go_on(&self, more: usize) {
        let before = self.so_far();
        eventually("requests are answered", || (self.so_far() >= before + more).then_some(()));
    }

    /// Everything that came, in the order in which it did; and how many a second.
    fn stop(self) -> (Vec<Came>, f64) {
        self.done.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().expect("a client that only asks");
        }
        let came = std::mem::take(&mut *lock(&self.came));
        let rate = came.len() as f64 / self.began.elapsed().as_secs_f64();
        (came, rate)
    }
}

/// One request on the connection there is; a lost connection is what went wrong, and the next request has a new one.
fn ask(client: &mut Option<Client>, to: SocketAddr, request: usize, (method, path): (&'static str, &'static str)) -> Came {
    let asked = Instant::now();
    let mut send = || {
        let open = match client {
            Some(open) => open,
            None => client.insert(Client::connect(to)?),
        };
        let mut sent = Request::new(method, path).key(WEBSITE_KEY);
        if method == "POST" {
            sent = sent.body("some words");
        }
        open.write(sent.to_bytes(to))?;
        open.read(method)
    };
    let (got, by, body) = match send() {
        Ok(answer) => (Ok(answer.status), answer.field("x-upstream").unwrap_or_default().to_owned(), answer.text()),
        Err(error) => {
            *client = None;
            (Err(error.to_string()), String::new(), String::new())
        }
    };
    let body_came_back = body == format!("{by} {method} {path}");
    Came { request, method, got, body_came_back, by, asked, answered: Instant::now() }
}

/// Every one of them was answered with 200 and the whole body, by one of these.
#[track_caller]
fn all_served(came: &[Came], by: &[&str], furt: &World) {
    let failed: Vec<_> = came.iter().filter(|one| one.got != Ok(200) || !one.body_came_back).collect();
    let lines: Vec<_> = furt.log().into_iter().filter(|line| line.contains(" request ") && !line.contains("status=200")).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}\n{lines:#?}", failed.len(), came.len());
    assert!(came.iter().all(|one| by.iter().any(|name| one.by.starts_with(name))));
    for name in by {
        assert!(came.iter().any(|one| one.by.starts_with(name)), "none came from {name}");
    }
}

fn status(furt: &World, instance: &str) -> String {
    let services = Request::get("/internal/services").send(furt.internal).json()["data"]["services"].clone();
    let instances =
        services.as_array().into_iter().flatten().flat_map(|service| service["instances"].as_array().cloned().unwrap_or_default());
    let found = instances.into_iter().find(|one| one["id"] == instance);
    found.map_or_else(String::new, |one| one["status"].as_str().unwrap_or_default().to_owned())
}

#[track_caller]
fn until_up(furt: &World, instance: &str) {
    eventually(&format!("{instance} is UP"), || (status(furt, instance) == "UP").then_some(()));
}

/// The service's own farewell, heard to its end.
#[track_caller]
fn drain(furt: &World, instance: &str, registered: &Value) {
    let id = registered["registration_id"].as_str().expect("a registration");
    let answer = Request::post(&format!("/internal/services/sagjan/instances/{instance}/drain?registration_id={id}&seconds=20"), "")
        .send(furt.internal);
    answer.status(200);
    let data = &answer.json()["data"];
    assert_eq!((&data["in_flight"], &data["deregistered"]), (&0.into(), &true.into()), "{answer:?}");
}

#[test]
fn kill_9_of_one_of_two_instances_fails_no_get_at_a_steady_rate() {
    let rate = from_environment("FURT_RATE", RATE);
    let furt = Conf::new().quick().start();
    let (mut one, two) = (Process::start("one"), Process::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    until_up(&furt, "one");
    until_up(&furt, "two");
    let load = Load::start(furt.public, rate, &[("GET", "/i")]);
    for _ in 0..3 {
        load.go_on(rate / 4);
        one.kill();
        load.go_on(rate / 4);
        eventually("its end is noticed", || (status(&furt, "one") == "DOWN").then_some(()));
        one.start_again();
        until_up(&furt, "one");
    }
    load.go_on(rate / 4);
    let (came, reached) = load.stop();
    all_served(&came, &["one", "two"], &furt);
    // Whoever asks for a rate wants to know whether it was one.
    let enough = std::env::var_os("FURT_RATE").is_none() || reached > rate as f64 * 0.9;
    assert!(enough, "{reached:.0} requests a second instead of {rate}: the machine is too busy");
}

#[test]
fn instances_replaced_one_after_the_other_fail_no_request() {
    let rate = from_environment("FURT_RATE", RATE);
    let furt = Conf::new().gateway("registration_rate = 1000/s").start();
    let mut instances = ["one", "two"].map(|name| (name, Process::start(name)));
    let mut registered = instances.each_ref().map(|(name, process)| furt.register_instance("sagjan", name, &process.url(), ROUTES));
    instances.iter().for_each(|(name, _)| until_up(&furt, name));
    let load = Load::start(furt.public, rate, &[("GET", "/i"), ("POST", "/i"), ("POST", "/i")]);
    load.go_on(CLIENTS * 2);
    for roll in 0..from_environment("FURT_ROLLS", ROLLS) {
        let (name, process) = &mut instances[roll % 2];
        drain(&furt, name, &registered[roll % 2]);
        // It may go at once: no request is with it, and none comes.
        process.kill();
        load.go_on(CLIENTS);
        process.start_again();
        registered[roll % 2] = furt.register_instance("sagjan", name, &process.url(), ROUTES);
        until_up(&furt, name);
    }
    load.go_on(CLIENTS);
    let (came, _) = load.stop();
    all_served(&came, &["one", "two"], &furt);
    assert!(came.iter().filter(|one| one.method == "POST").count() * 2 > came.len());
}

#[test]
fn a_change_from_one_instance_to_another_with_other_routes_fails_no_request() {
    let furt = Conf::new().gateway("registration_rate = 1000/s").start();
    let own = [
        ["GET /i comments:read", "POST /i comments:write", "GET /odd comments:read"],
        ["GET /i comments:read", "POST /i comments:write", "GET /even comments:read"],
    ];
    let names = ["odd", "even"];
    let mut now = Process::start(names[0]);
    let mut registered = furt.register_instance("sagjan", names[0], &now.url(), &own[0]);
    until_up(&furt, names[0]);
    for roll in 1..=from_environment("FURT_ROLLS", ROLLS / 5) {
        let (before, after) = (names[(roll + 1) % 2], names[roll % 2]);
        let requests: &[_] = match after {
            "even" => &[("GET", "/i"), ("POST", "/i"), ("GET", "/odd"), ("GET", "/even")],
            _ => &[("GET", "/i"), ("POST", "/i"), ("GET", "/even"), ("GET", "/odd")],
        };
        let load = Load::start(furt.public, from_environment("FURT_RATE", RATE), requests);
        load.go_on(CLIENTS * 4);
        let next = Process::start(after);
        let next_registered = furt.register_instance("sagjan", after, &next.url(), &own[roll % 2]);
        until_up(&furt, after);
        load.go_on(CLIENTS * 2);
        drain(&furt, before, &registered);
        (now, registered) = (next, next_registered);
        load.go_on(CLIENTS * 4);
        let (came, _) = load.stop();
        let (both, apart): (Vec<_>, Vec<_>) = came.into_iter().partition(|one| one.request < 2);
        all_served(&both, &names, &furt);
        // A route of one of them is known for as long as that is registered, and never half.
        phases(&apart, 2, &[200, 503, 404], before);
        phases(&apart, 3, &[404, 200], after);
    }
    drop(now);
}

/// The answers to one of the requests are these statuses in this order, of which the first and the last did come: none
/// that was asked for after another had come is older than that. 200 comes from `by` alone.
#[track_caller]
fn phases(came: &[Came], request: usize, statuses: &[u16], by: &str) {
    let own: Vec<_> = came.iter().filter(|one| one.request == request).collect();
    let phase = |one: &Came| one.got.as_ref().ok().and_then(|got| statuses.iter().position(|status| status == got));
    assert!(own.iter().all(|one| phase(one).is_some()), "{statuses:?}: {own:#?}");
    for at in [0, statuses.len() - 1] {
        assert!(own.iter().any(|one| phase(one) == Some(at)), "none was {}: {own:#?}", statuses[at]);
    }
    for later in &own {
        let before = own.iter().filter(|one| one.answered < later.asked).max_by_key(|one| phase(one));
        assert!(before.is_none_or(|before| phase(before) <= phase(later)), "{later:?} after {before:?}");
    }
    assert!(own.iter().filter(|one| one.got == Ok(200)).all(|one| one.by.starts_with(by) && one.body_came_back), "{own:#?}");
}

#[test]
fn a_drain_waits_for_the_request_in_flight_and_no_longer() {
    let furt = Conf::new().start();
    let (pieces, hold) = mpsc::channel();
    let hold = Mutex::new(Some(hold));
    let slow = Upstream::with(move |_| match lock(&hold).take() {
        Some(pieces) => Reply::Pieces(pieces),
        None => Reply::Bytes(ok("quick")),
    });
    let other = Upstream::start("other");
    let registered = furt.register_instance("sagjan", "slow", &slow.url(), ROUTES);
    until_up(&furt, "slow");
    let mut client = Client::new(furt.public);
    client.write(Request::get("/i").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
    pieces.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst".to_vec()).expect("the upstream waits");
    assert!(client.head().expect("the head of the answer").line.contains("200"));
    furt.register_instance("sagjan", "other", &other.url(), ROUTES);
    until_up(&furt, "other");
    thread::scope(|scope| {
        let drained = scope.spawn(|| drain(&furt, "slow", &registered));
        eventually("it is drained", || (furt.health_of("sagjan")["instances"].to_string().contains("\"drained\":true")).then_some(()));
        for _ in 0..20 {
            assert_eq!(furt.get("/i").field("x-upstream"), Some("other"));
        }
        assert!(!drained.is_finished(), "a request is in flight");
        assert_eq!(status(&furt, "slow"), "UP", "it is not deregistered");
        pieces.send(b" last".to_vec()).expect("the upstream waits");
        assert_eq!(client.exactly(10).expect("the whole body"), b"first last");
        drained.join().expect("drained");
    });
    assert_eq!((status(&furt, "slow"), slow.requests().len()), (String::new(), 1));
}

#[test]
fn an_instance_drained_by_an_operator_takes_no_request_until_it_is_undrained() {
    let mut furt = Conf::new().start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    let ask = |furt: &World, what: &str| Request::post(&format!("/internal/services/sagjan/instances/one/{what}"), "").send(furt.internal);
    let data = ask(&furt, "drain").status(200).json()["data"].clone();
    assert_eq!((&data["in_flight"], &data["deregistered"]), (&0.into(), &false.into()));
    let only_two = |furt: &World| {
        for _ in 0..20 {
            assert_eq!(furt.get("/i").field("x-upstream"), Some("two"));
        }
    };
    only_two(&furt);
    // Over a renewal and a restart of furt.
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    only_two(&furt);
    furt.kill();
    furt.start_again();
    only_two(&furt);
    Request::new("DELETE", "/internal/services/sagjan/instances/two").send(furt.internal).status(200);
    furt.get("/i").refused(503, "SERVICE_UNAVAILABLE");
    ask(&furt, "undrain").status(200);
    assert_eq!(furt.get("/i").field("x-upstream"), Some("one"));
    assert!(one.requests().len() == 1);
}
