//! Which instance gets how much: caps, slow start, and probes in the protocol that an instance speaks.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Request as Asked, Response, Version};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, Request},
    upstream::{Health, Reply, Upstream, ok},
    world::{Conf, WEBSITE_KEY, World, eventually, registration},
};

const ROUTES: &[&str] = &["GET /b comments:read"];

fn get() -> Request {
    Request::get("/b").key(WEBSITE_KEY)
}

fn capped(most: usize) -> Conf {
    Conf::new().grants(&format!("[service \"*\"]\npermissions = *\nmax_in_flight = {most}\n")).server("workers = 2")
}

/// How many requests an upstream has at once, as it sees it.
#[derive(Default)]
struct Counted {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Counted {
    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let done = work();
        self.now.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

/// Answers a request for each word from the sender, and none without one.
fn gated() -> (Upstream, Arc<Counted>, Sender<()>) {
    let (counted, (release, released)) = (Arc::new(Counted::default()), mpsc::channel());
    let (shared, released) = (counted.clone(), Mutex::new(released));
    let upstream = Upstream::with(move |_| {
        shared.during(|| {
            // The sender is gone: nothing is held back any more.
            let _ = released.lock().unwrap_or_else(PoisonError::into_inner).recv();
        });
        Reply::Bytes(ok("x"))
    });
    (upstream, counted, release)
}

#[track_caller]
fn full(answer: &Answer) {
    answer.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!((answer.field("retry-after"), answer.field("x-furt-reason")), (Some("1"), Some("instances-full")));
}

/// The reasons that explain gives for the instances, by id.
fn explained(furt: &World) -> Vec<String> {
    let answer = Request::get("/internal/explain?method=GET&path=/b&key_name=Website").send(furt.internal);
    let instances = answer.json()["data"]["instances"].clone();
    let told = |one: &Value| format!("{} {}", one["id"].as_str().unwrap_or_default(), one["reason"].as_str().unwrap_or_default());
    instances.as_array().expect("a list").iter().map(told).collect()
}

/// `FROM TO CAUSE` of each change of the only instance's state.
fn timeline(furt: &World, service: &str) -> Vec<String> {
    let answer = Request::get(&format!("/internal/services/{service}")).send(furt.internal).json();
    let steps = answer["data"]["service"]["instances"][0]["timeline"].clone();
    let word = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let steps = steps.as_array().expect("a list").iter();
    steps.map(|step| ["from", "to", "cause"].map(|name| word(step, name)).join(" ")).collect()
}

#[track_caller]
fn both_up(furt: &World) {
    eventually("both are UP", || (furt.health_of("sagjan")["instances"].to_string().matches("\"UP\"").count() == 2).then_some(()));
}

#[test]
fn two_instances_take_what_they_may_and_the_others_are_told_at_once() {
    let furt = capped(3).start();
    let (one, at_one, release_one) = gated();
    let (two, at_two, release_two) = gated();
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    both_up(&furt);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..30).map(|_| scope.spawn(|| furt.send(&get()))).collect();
        eventually("all but six are answered", || (asking.iter().filter(|one| one.is_finished()).count() == 24).then_some(()));
        eventually("the six are with the services", || {
            ([&at_one, &at_two].map(|at| at.now.load(Ordering::SeqCst)) == [3, 3]).then_some(())
        });
        assert_eq!(explained(&furt), ["one full (3 in flight)", "two full (3 in flight)"]);
        full(&furt.send(&get()));
        // A place that becomes free is taken by whoever comes next, and by nobody who was refused.
        release_one.send(()).expect("it waits");
        eventually("one is answered", || (asking.iter().filter(|one| one.is_finished()).count() == 25).then_some(()));
        assert_eq!(at_one.now.load(Ordering::SeqCst), 2);
        let next = scope.spawn(|| furt.send(&get()));
        eventually("the next one is there", || (at_one.now.load(Ordering::SeqCst) == 3).then_some(()));
        full(&furt.send(&get()));
        drop((release_one, release_two));
        next.join().expect("it only asks").status(200);
        let answers: Vec<_> = asking.into_iter().map(|one| one.join().expect("it only asks")).collect();
        let served = answers.iter().filter(|answer| answer.status == 200).count();
        answers.iter().filter(|answer| answer.status != 200).for_each(full);
        assert_eq!((served, answers.len()), (6, 30));
    });
    assert_eq!([at_one, at_two].map(|at| at.most.load(Ordering::SeqCst)), [3, 3]);
    assert_eq!(one.requests().len() + two.requests().len(), 7, "who was refused was sent nowhere");
}

#[test]
fn the_cap_holds_while_requests_come_and_go_on_every_worker() {
    let furt = capped(4).start();
    let counted = Arc::new(Counted::default());
    let shared = counted.clone();
    let upstream = Upstream::with(move |_| {
        shared.during(|| thread::sleep(Duration::from_millis(1)));
        Reply::Bytes(ok("x"))
    });
    furt.register("sagjan", &upstream.url(), ROUTES);
    furt.until("sagjan", "UP");
    let mut statuses: HashMap<u16, usize> = HashMap::new();
    thread::scope(|scope| {
        let ask = || {
            let mut client = Client::new(furt.public);
            let answers = (0..50).map(|_| client.ask(&get()));
            answers
                .inspect(|answer| {
                    if answer.status != 200 {
                        full(answer)
                    }
                })
                .map(|answer| answer.status)
                .collect::<Vec<_>>()
        };
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().flat_map(|one| one.join().expect("it only asks")).for_each(|status| *statuses.entry(status).or_default() += 1);
    });
    assert!(statuses[&200] >= 50 && statuses.values().sum::<usize>() == 1_000, "{statuses:?}");
    let most = counted.most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
    // Nothing is left behind: as many as ever fit.
    (0..10).for_each(|_| {
        furt.send(&get()).status(200);
    });
    assert_eq!(explained(&furt), ["default up"]);
}

#[test]
fn a_reload_raises_and_lowers_the_cap_of_a_service_that_runs() {
    let mut furt = capped(1).start();
    let (upstream, at, release) = gated();
    furt.register("sagjan", &upstream.url(), ROUTES);
    furt.until("sagjan", "UP");
    let public = furt.public;
    let hold = || thread::spawn(move || get().send(public));
    let first = hold();
    eventually("the first is there", || (at.now.load(Ordering::SeqCst) == 1).then_some(()));
    full(&furt.send(&get()));
    furt.rewrite(capped(2));
    furt.reload().status(200);
    let second = hold();
    eventually("the second is there", || (at.now.load(Ordering::SeqCst) == 2).then_some(()));
    furt.rewrite(capped(1));
    furt.reload().status(200);
    full(&furt.send(&get()));
    release.send(()).expect("it waits");
    eventually("one is answered", || (at.now.load(Ordering::SeqCst) == 1).then_some(()));
    full(&furt.send(&get()));
    drop(release);
    for one in [first, second] {
        one.join().expect("it only asks").status(200);
    }
    furt.send(&get()).status(200);
}

/// Of 300 requests, how many the second one got.
fn share_of(two: &Upstream, furt: &World) -> usize {
    let before = two.requests().len();
    (0..300).for_each(|_| {
        furt.send(&get()).status(200);
    });
    two.requests().len() - before
}

#[test]
fn one_that_was_down_starts_with_a_tenth_and_ends_with_its_whole_share() {
    let conf = |seconds: &str| Conf::new().quick().gateway(&format!("slow_start = {seconds}"));
    let mut furt = conf("3600").start();
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    furt.register_instance("sagjan", "one", &one.url(), ROUTES);
    furt.register_instance("sagjan", "two", &two.url(), ROUTES);
    both_up(&furt);
    // Fair draws leave these ranges once in millions of times.
    let share = share_of(&two, &furt);
    assert!((100..=200).contains(&share), "who is new does not start slowly: {share}");
    two.set_health(Health::Status(500));
    eventually("it is DOWN", || furt.health_of("sagjan")["instances"].to_string().contains("\"DOWN\"").then_some(()));
    assert_eq!(share_of(&two, &furt), 0);
    two.set_health(Health::Status(200));
    both_up(&furt);
    let share = share_of(&two, &furt);
    assert!((3..=65).contains(&share), "one in eleven: {share}");
    assert_eq!(explained(&furt), ["one up", "two up, with 10 % of its share so soon after it was down"]);
    furt.rewrite(conf("1"));
    furt.reload().status(200);
    let shares = eventually("it has its whole share", || {
        let share = share_of(&two, &furt);
        (share >= 100).then_some(share)
    });
    assert!(shares <= 200, "{shares}");
    eventually("explain says so", || (explained(&furt) == ["one up", "two up"]).then_some(()));
}

/// A service that speaks HTTP/2 with prior knowledge and nothing else; what it was asked, probes included.
struct H2c {
    url: String,
    asked: Arc<Mutex<Vec<(Version, String)>>>,
    _runtime: tokio::runtime::Runtime,
}

impl H2c {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::default());
        let all = Arc::clone(&asked);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let asked: Arc<Mutex<Vec<_>>> = Arc::clone(&all);
                let service = service_fn(move |request: Asked<Incoming>| {
                    let asked_for = (request.version(), request.uri().path().to_owned());
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked_for);
                    async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("over h2c"))) }
                });
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, asked, _runtime: runtime }
    }
}

#[test]
fn an_instance_over_h2c_is_probed_so_and_one_that_does_not_speak_it_is_told_in_the_timeline() {
    let furt = Conf::new().quick().start();
    let (speaks, silent) = (H2c::start(), Upstream::start("http1"));
    let over_h2 = |service: &str, url: &str, routes: &[&str]| {
        let mut body = registration(service, url, routes);
        body["protocol"] = json!("h2");
        furt.post(&body).status(200);
    };
    over_h2("speaks", &speaks.url, ROUTES);
    over_h2("silent", &silent.url(), &["GET /silent comments:read"]);
    furt.until("speaks", "UP");
    furt.until("silent", "DOWN");
    assert_eq!(furt.send(&get()).status(200).text(), "over h2c");
    let asked = speaks.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(asked.contains(&(Version::HTTP_2, "/health".into())) && asked.contains(&(Version::HTTP_2, "/b".into())), "{asked:?}");
    let told = timeline(&furt, "silent");
    assert!(told[0].starts_with("UNKNOWN DOWN ") && told[0].contains("not speak HTTP/2"), "{told:?}");
    assert_eq!(silent.requests().len() + silent.probes().len(), 0);
    furt.get("/silent").refused(503, "SERVICE_UNAVAILABLE");
}
