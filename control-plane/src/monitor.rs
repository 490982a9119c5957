//! The task that probes: what is due, ask, record (DESIGN §5).
//!
//! Here: the loop, its bounds on concurrency, and looking names up again beside it. Not here: what an outcome
//! means (`health`), when the next probe is due (`services`), HTTP (`probe`).

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    health::Policy,
    registry::Registry,
    resolve::Refresher,
    services::{Seen, Ticket},
};

/// Asks one instance how it is.
pub trait Probe: Send + Sync + 'static {
    /// What it said within `timeout`. `epoch` names this life of the control plane.
    fn check(&self, ticket: &Ticket, epoch: &str, timeout: Duration) -> impl Future<Output = Seen> + Send;
}

/// Probes at once, at least.
const LEAST: usize = 16;
/// Probes at once, at most: each holds a descriptor.
const MOST: usize = 2_048;
/// Probes at once to one host, at least.
const LEAST_PER_HOST: usize = 4;
/// A timer that is later than this says that the runtime stood still, and so does an answer that never came in.
const STALLED: Duration = Duration::from_millis(500);

/// The task that probes.
pub struct Monitor<P> {
    registry: Registry,
    probe: P,
    jitter: fn() -> f64,
}

impl<P: Probe> Monitor<P> {
    /// Probes what a registry holds. Does nothing before [`Monitor::run`].
    pub fn new(registry: Registry, probe: P) -> Self {
        Self { registry, probe, jitter: || fastrand::f64() * 2.0 - 1.0 }
    }

    /// With another source of jitter, -1 to 1: for tests that count seconds.
    #[cfg(test)]
    pub(crate) fn with_jitter(self, jitter: fn() -> f64) -> Self {
        Self { jitter, ..self }
    }

    /// Probes, looks names up again and notes in the store that furt runs, until `shutdown`. Probes in flight are dropped then.
    pub async fn run(self, shutdown: CancellationToken) {
        let refresher = Refresher::new(self.registry.clone());
        let registry = self.registry.clone();
        tokio::join!(refresher.run(shutdown.clone()), registry.heartbeats(shutdown.clone()), self.watch(shutdown));
    }

    async fn watch(self, shutdown: CancellationToken) {
        let mut round = Round::new(&self);
        loop {
            let now = Instant::now();
            let room = round.room();
            round.begin(self.registry.take_due(now, room));
            // With no room left, a probe that comes back makes some.
            let next = if round.room() == 0 { None } else { self.registry.next_due() };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.registry.due_changed() => {}
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
                Some(done) = round.running.next() => {
                    self.registry.record(&done.ticket, &done.seen, done.began, (self.jitter)());
                    round.end(&done.ticket);
                }
            }
        }
    }

    async fn check(&self, ticket: Ticket) -> Done {
        let began = Instant::now();
        let timeout = self.registry.config().probing.timeout;
        let probe = self.probe.check(&ticket, self.registry.epoch(), timeout);
        let seen = match tokio::time::timeout_at(began + timeout, probe).await {
            Ok(seen) => seen,
            Err(_) => {
                let late = began.elapsed().saturating_sub(timeout);
                match late > STALLED {
                    true => Seen::Unable(format!("the runtime stood still for {} ms", late.as_millis())),
                    false => Seen::Missed(format!("no answer within {} ms", timeout.as_millis())),
                }
            }
        };
        Done { ticket, seen, began }
    }
}

struct Done {
    ticket: Ticket,
    seen: Seen,
    began: Instant,
}

/// The probes under way, and those that wait for their host.
struct Round<'m, P> {
    monitor: &'m Monitor<P>,
    running: FuturesUnordered<BoxFuture<'m, Done>>,
    hosts: HashMap<String, Host>,
}

#[derive(Default)]
struct Host {
    running: usize,
    waiting: VecDeque<Ticket>,
}

impl<'m, P: Probe> Round<'m, P> {
    fn new(monitor: &'m Monitor<P>) -> Self {
        Self { monitor, running: FuturesUnordered::new(), hosts: HashMap::new() }
    }

    /// How many more probes may begin. Those that wait for their host do not hold up the others.
    fn room(&self) -> usize {
        let most = at_once(&self.monitor.registry.config().probing, self.monitor.registry.instances()).clamp(LEAST, MOST);
        most.saturating_sub(self.running.len())
    }

    fn begin(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            let host = self.hosts.entry(ticket.registration.url.host().to_owned()).or_default();
            if host.running >= per_host(&self.monitor.registry.config().probing, ticket.host_instances) {
                host.waiting.push_back(ticket);
            } else {
                host.running += 1;
                self.start(ticket);
            }
        }
    }

    fn start(&mut self, ticket: Ticket) {
        let monitor = self.monitor;
        self.running.push(Box::pin(monitor.check(ticket)));
    }

    fn end(&mut self, ticket: &Ticket) {
        let name = ticket.registration.url.host();
        let Some(host) = self.hosts.get_mut(name) else { return };
        match host.waiting.pop_front() {
            // The one that waited takes the place of the one that ended.
            Some(next) => self.start(next),
            None => {
                host.running -= 1;
                if host.running == 0 {
                    self.hosts.remove(name);
                }
            }
        }
    }
}

/// Probes under way if every one of `instances` takes the whole timeout, and half as many more.
fn at_once(policy: &Policy, instances: usize) -> usize {
    let share = policy.timeout.as_secs_f64() / policy.interval.as_secs_f64().max(f64::MIN_POSITIVE);
    let expected = (instances as f64 * share * 1.5).ceil();
    // A float beyond usize saturates.
    expected as usize + LEAST
}

/// The same for the instances of one host, which can so hold up nobody but itself.
fn per_host(policy: &Policy, instances: usize) -> usize {
    at_once(policy, instances).saturating_sub(LEAST).max(LEAST_PER_HOST)
}

#[cfg(test)]
mod tests;
