//! Which instance a request goes to: tiers, set-aside, power of two choices (DESIGN §5, §9).
//!
//! Here: who is eligible and who is chosen, and the state of an instance that this data plane alone
//! knows. Not here: connections, health decisions, clocks.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    table::Route,
    view::{Instance, Status},
};

/// What this data plane knows of an instance; carried over from view to view while the registration lives.
#[derive(Debug, Default)]
pub struct InstanceState {
    /// Requests under way.
    pub in_flight: AtomicU32,
    /// Connects that failed in a row.
    failed_connects: AtomicU32,
    /// Until when it is set aside, nanoseconds of the data plane's clock.
    aside_until: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;

impl InstanceState {
    /// A connect failed: set aside for 1, 2, 4 … 30 s.
    pub fn connect_failed(&self, now: u64) {
        let failures = self.failed_connects.fetch_add(1, Ordering::Relaxed);
        let seconds = 1u64.checked_shl(failures).map_or(30, |seconds| seconds.min(30));
        self.aside_until.store(now + seconds * SECOND, Ordering::Relaxed);
    }

    /// A connect succeeded.
    pub fn connected(&self) {
        if self.failed_connects.load(Ordering::Relaxed) != 0 {
            self.failed_connects.store(0, Ordering::Relaxed);
            self.aside_until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a failed connect keeps it aside at `now`.
    pub fn is_aside(&self, now: u64) -> bool {
        self.aside_until.load(Ordering::Relaxed) > now
    }
}

/// How willingly an instance is chosen; the least that is eligible serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// UP.
    Up,
    /// UNKNOWN, or something other than a probe speaks against it.
    Doubtful,
    /// A connect from here failed lately.
    Aside,
}

/// The tier of an instance for a route, or why it cannot serve.
pub fn tier(instance: &Instance, route: &Route, now: u64) -> Result<Tier, &'static str> {
    if !route.declared_by(instance.number) {
        return Err("did not declare this route");
    }
    if instance.drained {
        return Err("drained");
    }
    match instance.status {
        Status::Down if instance.parked => return Err("down, pings have stopped"),
        Status::Down => return Err("down"),
        _ if instance.state.is_aside(now) => return Ok(Tier::Aside),
        Status::Up if !instance.suspect => Ok(Tier::Up),
        _ => Ok(Tier::Doubtful),
    }
}

/// The instance for the next attempt: of the best tier, not in `tried`, by power of two choices on
/// requests in flight, weighted. `None` when there is none left.
pub fn choose<'a>(instances: &'a [Arc<Instance>], route: &Route, now: u64, tried: &[u32]) -> Option<&'a Arc<Instance>> {
    // The common case: one instance.
    if let [only] = instances {
        return (tried.is_empty() && tier(only, route, now).is_ok()).then_some(only);
    }
    let best = instances
        .iter()
        .filter(|instance| !tried.contains(&instance.number))
        .filter_map(|instance| tier(instance, route, now).ok())
        .min()?;
    let eligible = || instances.iter().filter(|instance| !tried.contains(&instance.number) && tier(instance, route, now) == Ok(best));
    let total: u64 = eligible().map(|instance| u64::from(instance.weight)).sum();
    let pick = |mut at: u64| {
        eligible().find(|instance| {
            let weight = u64::from(instance.weight);
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit
        })
    };
    let one = pick(fastrand::u64(..total.max(1)))?;
    // The second choice is drawn from the others, so that two instances are always compared.
    let rest = total - u64::from(one.weight);
    if rest == 0 {
        return Some(one);
    }
    let mut at = fastrand::u64(..rest);
    let two = eligible().filter(|instance| instance.number != one.number).find(|instance| {
        let weight = u64::from(instance.weight);
        let hit = at < weight;
        at = at.saturating_sub(weight);
        hit
    })?;
    // Requests in flight for each unit of weight; the draw was weighted already, so equal loads keep the first.
    let load = |instance: &Instance| u64::from(instance.state.in_flight.load(Ordering::Relaxed) + 1);
    let (first, second) = (load(one) * u64::from(two.weight), load(two) * u64::from(one.weight));
    Some(if second < first { two } else { one })
}
