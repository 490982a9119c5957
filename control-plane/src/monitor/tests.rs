//! The monitor with a probe that answers as a test says, and a clock that a test moves.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{
    config::Grant,
    registry::tests::{config, grant, request},
};

/// What the services answer, and when they were asked.
#[derive(Default)]
struct Script {
    down: bool,
    hang: bool,
    asked: Vec<(String, Instant)>,
    running: usize,
    most_running: usize,
}

#[derive(Default, Clone)]
struct FakeProbe(Arc<Mutex<Script>>);

impl FakeProbe {
    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.lock().unwrap());
    }
    /// Seconds between the questions so far, which are forgotten.
    fn gaps(&self) -> Vec<u64> {
        let mut script = self.0.lock().unwrap();
        let gaps = script.asked.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect();
        let old = script.asked.len().saturating_sub(1);
        script.asked.drain(..old);
        gaps
    }
}

impl Probe for FakeProbe {
    async fn check(&self, ticket: &Ticket, _: &str, _: Duration) -> Seen {
        let (down, hang) = {
            let mut script = self.0.lock().unwrap();
            script.asked.push((ticket.service.to_string(), Instant::now()));
            script.running += 1;
            script.most_running = script.most_running.max(script.running);
            (script.down, script.hang)
        };
        let _running = Leave(self.clone());
        if hang {
            std::future::pending::<()>().await;
        }
        if down { Seen::Missed("connection refused".into()) } else { Seen::Answered(Duration::from_millis(5)) }
    }
}

struct Leave(FakeProbe);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.set(|script| script.running -= 1);
    }
}

struct World {
    registry: Registry,
    probe: FakeProbe,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::new(config());
        let probe = FakeProbe::default();
        let shutdown = CancellationToken::new();
        let monitor = Monitor::new(registry.clone(), probe.clone()).with_jitter(|| 0.0);
        let task = tokio::spawn(monitor.run(shutdown.clone()));
        Self { registry, probe, shutdown, task }
    }

    async fn register(&self) {
        self.registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    }

    /// Lets the paused clock run this far; timers fire in order on the way.
    async fn run(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn status(&self) -> (String, bool, u32) {
        self.registry.status("sagjan")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn is(status: &str, parked: bool, misses: u32) -> (String, bool, u32) {
    (status.to_owned(), parked, misses)
}

#[tokio::test(start_paused = true)]
async fn a_service_is_pinged_at_once_and_every_30_seconds() {
    let world = World::start().await;
    world.register().await;
    world.run(1).await;
    assert_eq!(world.status(), is("UP", false, 0));
    world.run(300).await;
    assert_eq!(world.probe.gaps(), [30; 10]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn three_misses_are_down_then_120_seconds_then_parked_at_ten() {
    let world = World::start().await;
    world.register().await;
    world.run(1).await;
    world.probe.set(|script| script.down = true);
    world.run(60).await;
    assert_eq!(world.status(), is("UP", false, 2));
    world.run(30).await;
    assert_eq!(world.status(), is("DOWN", false, 3));
    world.run(120 * 6).await;
    assert_eq!(world.status(), is("DOWN", false, 9));
    world.run(120).await;
    assert_eq!(world.status(), is("DOWN", true, 10));
    assert_eq!(world.probe.gaps(), [30, 30, 30, 120, 120, 120, 120, 120, 120, 120]);
    world.run(50_000).await;
    assert_eq!(world.probe.gaps(), [0; 0], "pings have stopped");

    // The service is back, and says so.
    world.probe.set(|script| script.down = false);
    world.register().await;
    world.run(1).await;
    assert_eq!(world.status(), is("UP", false, 0));
    world.probe.gaps();
    world.run(60).await;
    assert_eq!(world.probe.gaps(), [30, 30], "at the normal interval");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_down_service_that_answers_is_up_again_and_registering_alone_does_not_do_it() {
    let world = World::start().await;
    world.probe.set(|script| script.down = true);
    world.register().await;
    world.run(61).await;
    assert_eq!(world.status(), is("DOWN", false, 3));
    world.register().await;
    world.run(1).await;
    assert_eq!(world.status(), is("DOWN", false, 3), "registering the same is no answer");
    world.probe.set(|script| script.down = false);
    world.run(120).await;
    assert_eq!(world.status(), is("UP", false, 0));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_is_missed_after_the_timeout() {
    let world = World::start().await;
    world.probe.set(|script| script.hang = true);
    world.register().await;
    world.run(4).await;
    assert_eq!(world.status(), is("UNKNOWN", false, 0));
    world.run(2).await;
    assert_eq!(world.status(), is("UNKNOWN", false, 1));
    assert_eq!(world.registry.get_service("sagjan").unwrap().instances[0].last_error, "no answer within 5000 ms");
    world.run(60).await;
    assert_eq!(world.status(), is("DOWN", false, 3));
    assert_eq!(world.probe.gaps(), [30, 30], "from probe to probe");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_hang_hold_up_nobody_else() {
    let mut config = config();
    config.grants = [Grant { upstreams: Some("127.0.0.0/8".parse().unwrap()), ..grant(None) }].into();
    let registry = Registry::new(config);
    let probe = FakeProbe::default();
    probe.set(|script| script.hang = true);
    for index in 0..1200u16 {
        let mut request = request(&format!("s{index}"), 9000 + index, &[&format!("GET /{index}")]);
        request.url = request.url.replace("127.0.0.1", if index < 1199 { "127.0.0.2" } else { "127.0.0.3" });
        registry.try_it(request).await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(Monitor::new(registry.clone(), probe.clone()).run(shutdown.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (running, other) = {
        let script = probe.0.lock().unwrap();
        (script.running, script.asked.iter().any(|(service, _)| service == "s1199"))
    };
    // 1,199 instances, 5 of 30 seconds, half as many more.
    assert!(running <= 302, "{running}");
    assert!(other, "the other host was asked at once");
    tokio::time::sleep(Duration::from_secs(29)).await;
    let asked = probe.0.lock().unwrap().asked.len();
    assert!(asked >= 1200, "all were asked within the interval though each hangs: {asked}");
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(probe.0.lock().unwrap().running, 0, "none outlives the monitor");
}

#[test]
fn concurrency_is_sized_from_rate_and_timeout() {
    let policy = Policy::default();
    assert_eq!(at_once(&policy, 0), LEAST);
    assert_eq!(at_once(&policy, 1200), 300 + LEAST);
    assert_eq!(per_host(&policy, 1), LEAST_PER_HOST);
    assert_eq!(per_host(&policy, 1200), 300);
}
