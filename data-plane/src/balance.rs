//! Which instance a request goes to: tiers, set-aside, power of two choices (DESIGN §5, §9).
//!
//! Here: who is eligible and who is chosen, and the state of an instance that this data plane alone
//! knows. Not here: connections, health decisions, clocks.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    table::Route,
    view::{Instance, Status},
};

/// What this data plane knows of an instance; carried over from view to view while the registration lives.
#[derive(Debug, Default)]
pub struct InstanceState {
    /// Requests under way.
    in_flight: AtomicU32,
    /// Drained in the view in force, whatever an older view says that a request still holds.
    closed: AtomicBool,
    /// Connects that failed in a row.
    failed_connects: AtomicU32,
    /// Until when it is set aside, nanoseconds of the data plane's clock.
    aside_until: AtomicU64,
    /// When a request could first go to it after it was DOWN; 0: it has not been, [`RECOVERED`]: no request came yet.
    recovered_at: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;
/// No time of the clock.
const RECOVERED: u64 = 1;
/// Parts of a whole share.
pub const WHOLE: u64 = 1_000;
/// With how many of them slow start begins.
const FIRST: u64 = WHOLE / 10;

impl InstanceState {
    /// Counts a request to it, unless it has `most` (0: no limit) under way. Drained: it counts, and should go elsewhere
    /// if it can.
    ///
    /// With a limit, the count is never above it, not for a moment: who is refused has taken nobody's place.
    ///
    /// The count is written before `closed` is read, and [`Self::close`] is called before the count is read
    /// ([`Self::in_flight`]), all in one order: a request either is in the count or hears that it is closed. So a
    /// drained instance with none in flight gets none any more.
    pub fn enter(&self, most: u32) -> Entered {
        if most == 0 {
            self.in_flight.fetch_add(1, Ordering::SeqCst);
        } else if self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count < most).then_some(count + 1)).is_err() {
            return Entered::Full;
        }
        if self.closed.load(Ordering::SeqCst) { Entered::Drained } else { Entered::Yes }
    }

    /// Whether it has `most` requests (0: no limit) under way.
    pub fn is_full(&self, most: u32) -> bool {
        most != 0 && self.in_flight.load(Ordering::Relaxed) >= most
    }

    /// A request to it has ended.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// It is drained.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// It is drained no more.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// A connect failed: set aside for 1, 2, 4 … 30 s. Connects that fail while it is aside are of one failure, however
    /// many requests met it at once.
    pub fn connect_failed(&self, now: u64) {
        if self.is_aside(now) {
            return;
        }
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

    /// It was DOWN and is UP again.
    pub fn recovered(&self) {
        self.recovered_at.store(RECOVERED, Ordering::Relaxed);
    }

    /// Its share at `now` in parts of [`WHOLE`]: a tenth at first and all of it `ramp` nanoseconds later. Only looks.
    pub fn share(&self, now: u64, ramp: u64) -> u64 {
        let began = match self.recovered_at.load(Ordering::Relaxed) {
            0 => return WHOLE,
            RECOVERED => now,
            at => at,
        };
        match now.saturating_sub(began) {
            past if past >= ramp => WHOLE,
            past => FIRST + u64::try_from(u128::from(WHOLE - FIRST) * u128::from(past) / u128::from(ramp)).unwrap_or(WHOLE),
        }
    }

    /// The first request that could go to it is what its time begins with: until then it has nothing to warm up by.
    fn begin(&self, now: u64) {
        if self.recovered_at.load(Ordering::Relaxed) == RECOVERED {
            // Another's time is as good; only that it was DOWN once more meanwhile is not to be lost.
            let _ = self.recovered_at.compare_exchange(RECOVERED, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether a failed connect keeps it aside at `now`.
    pub fn is_aside(&self, now: u64) -> bool {
        self.aside_until.load(Ordering::Relaxed) > now
    }
}

/// What became of a request that would enter an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It counts.
    Yes,
    /// It counts, but the instance has been drained since the request's view.
    Drained,
    /// It does not count: the instance has as many under way as it may.
    Full,
}

/// Why no instance was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoInstance {
    /// None is left that could serve.
    None,
    /// Those that could serve have as many requests under way as they may.
    Full,
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
    if instance.withdrawn {
        return Err("furt.conf no longer allows its registration");
    }
    if instance.drained {
        return Err("drained");
    }
    match instance.status {
        Status::Down if instance.parked => Err("down, pings have stopped"),
        Status::Down => Err("down"),
        _ if instance.state.is_aside(now) => Ok(Tier::Aside),
        Status::Up if !instance.suspect => Ok(Tier::Up),
        _ => Ok(Tier::Doubtful),
    }
}

/// Whether an instance could serve a request for a route at once; else why not, for people.
///
/// # Errors
/// With the reason: that of [`tier`], or that it is full.
pub fn ready(instance: &Instance, route: &Route, now: u64) -> Result<Tier, Cow<'static, str>> {
    match tier(instance, route, now) {
        Ok(_) if instance.state.is_full(instance.max_in_flight) => Err(format!("full ({} in flight)", instance.state.in_flight()).into()),
        Ok(tier) => Ok(tier),
        Err(reason) => Err(reason.into()),
    }
}

/// The instance for the next attempt: of the best tier with room, not in `tried`, by power of two choices on
/// requests in flight, weighted. One that was DOWN gets its whole share in the course of `ramp` nanoseconds.
///
/// # Errors
/// When there is none left.
pub fn choose<'a>(
    instances: &'a [Arc<Instance>],
    route: &Route,
    now: u64,
    tried: &[u32],
    ramp: u64,
) -> Result<&'a Arc<Instance>, NoInstance> {
    // The common case: one instance.
    if let [only] = instances {
        return match tried.is_empty() && tier(only, route, now).is_ok() {
            true if only.state.is_full(only.max_in_flight) => Err(NoInstance::Full),
            true => {
                only.state.begin(now);
                Ok(only)
            }
            false => Err(NoInstance::None),
        };
    }
    let left = || instances.iter().filter(|instance| !tried.contains(&instance.number));
    let with_room = || left().filter(|instance| !instance.state.is_full(instance.max_in_flight));
    let Some(best) = with_room().filter_map(|instance| tier(instance, route, now).ok()).min() else {
        let full = left().any(|instance| tier(instance, route, now).is_ok());
        return Err(if full { NoInstance::Full } else { NoInstance::None });
    };
    // Other threads fill and leave instances meanwhile: each look may find a few more or less of them.
    let eligible = || with_room().filter(|instance| tier(instance, route, now) == Ok(best));
    let weight = |instance: &Instance| u64::from(instance.weight) * instance.state.share(now, ramp);
    let began = |instance: &&Arc<Instance>| instance.state.begin(now);
    let total: u64 = eligible().inspect(began).map(|instance| weight(instance)).sum();
    let one = drawn(eligible(), &weight, total).ok_or(NoInstance::Full)?;
    // The second choice is drawn from the others, so that two instances are always compared.
    let others = eligible().filter(|instance| instance.number != one.number);
    let Some(two) = drawn(others, &weight, total.saturating_sub(weight(one))) else { return Ok(one) };
    // Requests in flight for each unit of weight; the draw was weighted already, so equal loads keep the first.
    let load = |instance: &Instance| u64::from(instance.state.in_flight.load(Ordering::Relaxed));
    let (first, second) = (load(one) * weight(two), load(two) * weight(one));
    Ok(if second < first { two } else { one })
}

/// One of the instances at random, by weight; `total` is the sum of theirs. When it has become too much since it was
/// added up, that may be the last of them more often; none only when there is none.
fn drawn<'a>(
    instances: impl Iterator<Item = &'a Arc<Instance>>,
    weight: &impl Fn(&Instance) -> u64,
    total: u64,
) -> Option<&'a Arc<Instance>> {
    let mut at = fastrand::u64(..total.max(1));
    let mut last = None;
    for instance in instances {
        let weight = weight(instance);
        if at < weight {
            return Some(instance);
        }
        at -= weight;
        last = Some(instance);
    }
    last
}

#[cfg(test)]
mod tests {
    use furt_proto::names::RouteHost;

    use super::*;
    use crate::{
        table::{Access, Declared},
        view::Protocol,
    };

    fn instance(number: u32, status: Status, weight: u32) -> Arc<Instance> {
        Arc::new(Instance {
            number,
            id: "default".into(),
            url: "http://127.0.0.1:1".parse().unwrap(),
            addresses: vec![],
            status,
            weight,
            protocol: Protocol::Http1,
            parked: false,
            suspect: false,
            drained: false,
            withdrawn: false,
            registration_id: "r".into(),
            state: Arc::default(),
            authority: http::HeaderValue::from_static("a"),
            max_in_flight: 0,
            keep_alive: true,
            tls: None,
        })
    }

    fn route(instances: Declared) -> Route {
        Route {
            service: "s".into(),
            slot: 0,
            host: RouteHost::Any,
            method: "GET".parse().unwrap(),
            pattern: "/*".parse().unwrap(),
            access: Access::Public,
            timeout: None,
            deadline: None,
            instances,
            is_static: false,
            set_headers: vec![],
        }
    }

    fn counts(instances: &[Arc<Instance>], route: &Route, now: u64, tried: &[u32]) -> [usize; 4] {
        let mut counts = [0; 4];
        for _ in 0..4000 {
            if let Ok(instance) = choose(instances, route, now, tried, 0) {
                counts[instance.number as usize] += 1;
            }
        }
        counts
    }

    #[test]
    fn up_serves_first_then_unknown_and_down_never() {
        let all = [instance(0, Status::Down, 100), instance(1, Status::Unknown, 100), instance(2, Status::Up, 100)];
        let any = route(Declared::All);
        assert_eq!(counts(&all, &any, 1, &[]), [0, 0, 4000, 0]);
        assert_eq!(counts(&all, &any, 1, &[2]), [0, 4000, 0, 0]);
        assert_eq!(counts(&all, &any, 1, &[2, 1]), [0; 4]);
        assert_eq!(counts(&all, &route(Declared::Only([0, 1].into())), 1, &[]), [0, 4000, 0, 0]);
        assert_eq!(counts(&all[..1], &any, 1, &[]), [0; 4]);
    }

    #[test]
    fn a_failed_connect_sets_aside_while_another_is_eligible() {
        let all = [instance(0, Status::Up, 100), instance(1, Status::Up, 100)];
        let any = route(Declared::All);
        all[0].state.connect_failed(1);
        assert_eq!(counts(&all, &any, 2, &[]), [0, 4000, 0, 0]);
        assert_eq!(counts(&all, &any, 2, &[1])[0], 4000, "better than none");
        assert!(counts(&all, &any, 1 + SECOND, &[])[0] > 0, "a second later");
        let mut now = 1 + SECOND;
        for seconds in [2, 4, 8, 16, 30, 30] {
            // Many at once find out together.
            (0..70).for_each(|later| all[0].state.connect_failed(now + later));
            assert!(all[0].state.is_aside(now + seconds * SECOND - 1) && !all[0].state.is_aside(now + seconds * SECOND), "{seconds}");
            now += seconds * SECOND;
        }
        (0..70).for_each(|_| {
            all[0].state.connect_failed(now);
            now += 30 * SECOND;
        });
        assert!(all[0].state.is_aside(now - 1) && !all[0].state.is_aside(now), "never more than thirty");
        all[0].state.connect_failed(now);
        all[0].state.connected();
        assert!(!all[0].state.is_aside(now));
    }

    #[test]
    fn who_drains_an_instance_and_counts_none_sees_none_come_any_more() {
        for _ in 0..200 {
            let (state, none) = (InstanceState::default(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while state.enter(0) == Entered::Yes {
                            assert!(!none.load(Ordering::SeqCst), "counted by nobody");
                            state.leave();
                        }
                        state.leave();
                    });
                }
                state.close();
                while state.in_flight() > 0 {
                    std::hint::spin_loop();
                }
                none.store(true, Ordering::SeqCst);
            });
            assert_eq!(state.in_flight(), 0);
        }
    }

    #[test]
    fn a_full_instance_is_left_out_and_its_cap_holds_exactly() {
        let capped = |number, most| {
            let mut own = Arc::into_inner(instance(number, Status::Up, 100)).unwrap();
            own.max_in_flight = most;
            Arc::new(own)
        };
        let all = [capped(0, 3), capped(1, 0)];
        let any = route(Declared::All);
        (0..3).for_each(|_| assert_eq!(all[0].state.enter(3), Entered::Yes));
        assert_eq!((all[0].state.enter(3), all[0].state.in_flight()), (Entered::Full, 3));
        assert_eq!(counts(&all, &any, 1, &[]), [0, 4000, 0, 0]);
        assert_eq!(choose(&all, &any, 1, &[1], 0).err(), Some(NoInstance::Full));
        assert_eq!(choose(&all[..1], &any, 1, &[], 0).err(), Some(NoInstance::Full));
        assert_eq!(choose(&all[..1], &any, 1, &[0], 0).err(), Some(NoInstance::None));
        all[0].state.leave();
        assert!(choose(&all[..1], &any, 1, &[], 0).is_ok());
    }

    #[test]
    fn however_many_come_at_once_the_count_is_never_above_the_cap() {
        const MOST: u32 = 2;
        let (state, full) = (InstanceState::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let entered = state.enter(MOST);
                        std::thread::yield_now();
                        assert!(state.in_flight() <= MOST, "also while others are refused");
                        match entered {
                            Entered::Yes => state.leave(),
                            _ => _ = full.fetch_add(1, Ordering::Relaxed),
                        }
                    }
                });
            }
        });
        assert_eq!(state.in_flight(), 0);
        assert!(full.into_inner() > 0);
    }

    #[test]
    fn a_choice_beside_others_that_fill_and_leave_finds_the_one_with_room() {
        let mut capped = Arc::into_inner(instance(0, Status::Up, 1000)).unwrap();
        capped.max_in_flight = 1;
        let all = [instance(1, Status::Up, 1), Arc::new(capped)];
        let (any, done) = (route(Declared::All), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(all[1].state.enter(1), Entered::Yes);
                    all[1].state.leave();
                }
            });
            let failed = (0..20_000).filter(|_| choose(&all, &any, 2, &[], 0).is_err()).count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, 0, "number 1 has room at any time");
        });
    }

    #[test]
    fn one_that_was_down_gets_its_share_by_and_by() {
        let all = [instance(0, Status::Up, 100), instance(1, Status::Up, 100)];
        let (any, state, ramp) = (route(Declared::All), &all[1].state, 10 * SECOND);
        let newcomer = |now| (0..4000).filter(|_| choose(&all, &any, now, &[], ramp).unwrap().number == 1).count();
        state.recovered();
        assert_eq!([2 * SECOND, 90 * SECOND].map(|now| state.share(now, ramp)), [100, 100], "no request has come yet");
        assert!((200..600).contains(&newcomer(5 * SECOND)), "a tenth of the other's share");
        let grows = [5, 6, 10, 14, 15, 90].map(|second| state.share(second * SECOND, ramp));
        assert_eq!(grows, [100, 190, 550, 910, 1000, 1000]);
        assert!((1700..2300).contains(&newcomer(15 * SECOND)), "the whole");
        state.recovered();
        assert_eq!(state.share(20 * SECOND, ramp), 100, "once more");
        assert_eq!(state.share(20 * SECOND, 0), WHOLE, "without slow start");
    }

    #[test]
    fn the_time_of_one_that_is_alone_runs_as_well() {
        let all = [instance(0, Status::Up, 100), instance(1, Status::Up, 100)];
        let (any, ramp) = (route(Declared::All), 10 * SECOND);
        all[0].state.recovered();
        choose(&all[..1], &any, 5 * SECOND, &[], ramp).unwrap();
        choose(&all, &any, 60 * SECOND, &[], ramp).unwrap();
        assert_eq!(all[0].state.share(60 * SECOND, ramp), WHOLE, "who joins it finds it warm");
    }

    #[test]
    fn who_is_full_is_told_with_how_many() {
        let mut capped = Arc::into_inner(instance(0, Status::Up, 100)).unwrap();
        capped.max_in_flight = 2;
        let any = route(Declared::All);
        assert_eq!(ready(&capped, &any, 2), Ok(Tier::Up));
        (0..2).for_each(|_| assert_eq!(capped.state.enter(2), Entered::Yes));
        assert_eq!(ready(&capped, &any, 2), Err("full (2 in flight)".into()));
        capped.drained = true;
        assert_eq!(ready(&capped, &any, 2), Err("drained".into()));
    }

    #[test]
    fn what_is_drained_or_withdrawn_takes_no_requests() {
        let change = |change: fn(&mut Instance)| {
            let mut own = Arc::into_inner(instance(0, Status::Up, 100)).unwrap();
            change(&mut own);
            tier(&own, &route(Declared::All), 1)
        };
        assert_eq!(change(|_| {}), Ok(Tier::Up));
        assert_eq!(change(|one| one.drained = true), Err("drained"));
        assert_eq!(change(|one| one.withdrawn = true), Err("furt.conf no longer allows its registration"));
    }

    #[test]
    fn weights_share_and_the_busier_of_two_is_spared() {
        let all = [instance(0, Status::Up, 100), instance(1, Status::Up, 300)];
        let any = route(Declared::All);
        let [light, heavy, ..] = counts(&all, &any, 1, &[]);
        assert!((800..1200).contains(&light) && light + heavy == 4000, "{light}");
        all[1].state.in_flight.store(50, Ordering::Relaxed);
        assert_eq!(counts(&all, &any, 1, &[]), [4000, 0, 0, 0]);
    }
}
