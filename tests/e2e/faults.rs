//! Peers that hang, reset, trickle, close at the worst moment or never read: what the others see of it, and that furt
//! is afterwards as it was before: connections, requests under way, descriptors, memory, and nothing to complain about.
//!
//! Here: how that is measured. The faults are in the modules, by who commits them.

mod clients;
mod descriptors;
mod floods;
mod reuse;
mod services;
mod slow_readers;
mod uploads;

use std::{fs, thread, time::Duration};

use tokio::time::Instant;

use crate::{
    client::Request,
    world::{Conf, WEBSITE_KEY, World},
};

/// What a second round of the same may leave of memory, in KiB: the allocator keeps pages for a while.
const GROWTH: u64 = 4 * 1024;
/// How many complaints one fault may cause in the log: it is told, and not for each request.
const WARNINGS: usize = 8;
/// Longer than the slowest of the limits in [`conf`] and what is lazy behind them.
const PATIENCE: Duration = Duration::from_secs(15);

/// Every limit on time that faults run into is about a second, unless one of these lines says otherwise.
fn conf(server: &[&str], gateway: &[&str]) -> Conf {
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let lines = |short: &[&str], changed: &[&str]| {
        let kept = short.iter().filter(|line| changed.iter().all(|other| key(other) != key(line)));
        kept.chain(changed).map(|line| (*line).to_owned()).collect::<Vec<_>>()
    };
    let short = ["client_timeout = 1s", "client_idle_timeout = 2s", "body_idle_timeout = 1s", "max_body_size = 0"];
    let conf = lines(&short, server).iter().fold(Conf::new(), |conf, line| conf.server(line));
    let short = ["upstream_timeout = 1s", "upstream_idle_timeout = 1s", "connect_timeout = 500ms", "health_check_timeout = 500ms"];
    lines(&short, gateway).iter().fold(conf, |conf, line| conf.gateway(line))
}

/// A furt with short limits and these lines, and a service at `url`.
fn world_with(server: &[&str], gateway: &[&str], url: &str) -> World {
    let furt = conf(server, gateway).start();
    furt.register("faulty", url, &["* /t/* comments:read"]);
    furt
}

/// A furt with short limits and a service at `url`.
fn world(url: &str) -> World {
    world_with(&[], &[], url)
}

fn get(target: &str) -> Request {
    Request::get(target).key(WEBSITE_KEY)
}

fn post(target: &str, body: impl AsRef<[u8]>) -> Request {
    Request::post(target, body).key(WEBSITE_KEY)
}

/// What furt holds while nobody asks anything.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    resident_kib: u64,
    /// Client connections and requests to services.
    under_way: u64,
}

impl Held {
    fn of(furt: &World) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", furt.id())).expect("it runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        Self {
            descriptors: descriptors(furt),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
            under_way: metric(furt, "furt_connections") + metric(furt, "furt_upstream_in_flight"),
        }
    }

    /// Waits until two looks, one shortly after the other, are alike and `enough`.
    #[track_caller]
    fn until(furt: &World, what: &str, enough: impl Fn(&Self) -> bool) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = Self::of(furt);
            // The look itself took a connection.
            thread::sleep(Duration::from_millis(150));
            let quiet = descriptors(furt);
            let held = Self { descriptors: quiet, ..held };
            if held.under_way == 0 && enough(&held) && descriptors(furt) == quiet {
                return held;
            }
            assert!(Instant::now() < deadline, "never happened: {what}; now it is {held:?}");
        }
    }
}

fn descriptors(furt: &World) -> usize {
    fs::read_dir(format!("/proc/{}/fd", furt.id())).expect("it runs").count()
}

/// The sum of a metric over its labels.
fn metric(furt: &World, name: &str) -> u64 {
    let text = Request::get("/metrics").send(furt.internal).text();
    let rows = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let values: Vec<u64> = rows.map(|row| row.rsplit(' ').next().expect("a value").parse().expect("a whole number")).collect();
    assert!(!values.is_empty(), "{name} in {text}");
    values.iter().sum()
}

/// Runs a fault again and again until one more round of it leaves furt with what it held before: connections,
/// requests and descriptors at once, memory after a few rounds, for the allocator's pools grow to their size. What leaks
/// grows with each.
#[track_caller]
pub fn leaves_nothing(furt: &World, fault: impl Fn()) {
    const ROUNDS: usize = 6;
    let said = furt.log().len();
    fault();
    let mut seen = vec![Held::until(furt, "the first round is over", |_| true)];
    for _ in 1..ROUNDS {
        let before = *seen.last().expect("the first");
        fault();
        let what = format!("the descriptors are as before: {before:?}");
        let after = Held::until(furt, &what, |held| held.descriptors <= before.descriptors);
        seen.push(after);
        if after.resident_kib <= before.resident_kib + GROWTH {
            clean(&furt.log()[said..], seen.len());
            furt.get("/health").status(200);
            return;
        }
    }
    panic!("memory grows with every round: {seen:#?}");
}

/// Nothing in these lines of the log needs a person, and what is told is not told for ever.
#[track_caller]
fn clean(log: &[String], rounds: usize) {
    let of = |word: &str| log.iter().filter(|line| line.contains(word)).cloned().collect::<Vec<_>>();
    assert_eq!([of(" ERROR "), of("panicked")], [vec![], Vec::<String>::new()]);
    let warnings = of(" WARN ");
    assert!(warnings.len() <= WARNINGS * rounds, "{warnings:#?}");
}
