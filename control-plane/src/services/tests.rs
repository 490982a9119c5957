//! What registrations, probes and farewells do to the records, with time as an argument.

use std::time::Duration;

use furt_proto::v1;
use prost::Message;

use super::*;
use crate::{
    config::Grant,
    publication::Notice,
    registry::tests::{grant, request},
};

impl Services {
    /// Misses every probe until nothing is due any more.
    pub(crate) fn park_all(&mut self, at: Moment) {
        let mut now = at.now;
        for _ in 0..self.policy.park_after {
            now += self.policy.down_interval * 2;
            while let Some(Due::Probe(ticket)) = self.take_due(now) {
                self.record(&ticket, &Seen::Missed("no".into()), now, Moment { now, ..at }, 0.0);
            }
        }
    }
}

struct World {
    services: Services,
    at: Moment,
    ids: u32,
}

impl World {
    fn new() -> Self {
        let at = Moment { now: Instant::now(), unix_ms: 1_000_000 };
        Self { services: Services::new(Policy::default()), at, ids: 0 }
    }

    fn wait(&mut self, seconds: u64) {
        self.at.now += Duration::from_secs(seconds);
        self.at.unix_ms += seconds as i64 * 1000;
    }

    fn register(&mut self, request: v1::RegisterRequest) -> Applied {
        self.ids += 1;
        let registration = Arc::new(Registration::parse(&request).unwrap());
        let addresses = vec!["127.0.0.1:1".parse().unwrap()];
        let registration_id = format!("r{}", self.ids).into();
        let order = self.services.next_order();
        let peer = [127, 0, 0, 1].into();
        self.services.register(Admitted { registration, addresses, peer, by_operator: false, registration_id, order }, self.at)
    }

    fn ticket(&mut self) -> Option<Ticket> {
        match self.services.take_due(self.at.now) {
            Some(Due::Probe(ticket)) => Some(ticket),
            other => {
                assert!(other.is_none(), "{other:?}");
                None
            }
        }
    }

    fn record(&mut self, ticket: &Ticket, seen: Seen) -> Option<Recorded> {
        self.services.record(ticket, &seen, self.at.now, self.at, 0.0)
    }

    fn probe(&mut self, seen: Seen) -> Recorded {
        let ticket = self.ticket().expect("a probe is due");
        self.record(&ticket, seen).expect("it counts")
    }

    fn due_in(&self) -> Option<u64> {
        self.services.next_due().map(|due| (due - self.at.now).as_secs())
    }

    fn instance(&self) -> &Instance {
        self.services.get("sagjan").unwrap().instances.values().next().unwrap()
    }

    fn message(&self, since: u64) -> v1::WatchResponse {
        v1::WatchResponse::decode(&*self.services.publication().since(Some(since)).encode("e", &Notice::default())).unwrap()
    }
}

fn answered() -> Seen {
    Seen::Answered(Duration::from_millis(5))
}

fn missed() -> Seen {
    Seen::Missed("connection refused".into())
}

fn sagjan() -> v1::RegisterRequest {
    request("sagjan", 7812, &["GET /a"])
}

#[test]
fn withdrawn_is_not_removed() {
    let mut world = World::new();
    world.register(sagjan());
    let before = world.services.publication().version();
    for _ in 0..3 {
        world.probe(missed());
        world.wait(30);
    }
    let message = world.message(before);
    assert_eq!((message.services.len(), message.removed.len()), (1, 0));
    let service = &message.services[0];
    assert!(service.routes.is_none(), "the routes are as they were");
    assert_eq!(service.instances.as_ref().unwrap().instances[0].status, "DOWN");
    assert!(world.services.claims().holder(&world.instance().registration.routes[0].key).is_some(), "still owned");
    let route = world.services.get("sagjan").unwrap().route_views().next().unwrap();
    assert!(!route.active);
}

#[test]
fn a_late_answer_cannot_speak_for_a_newer_registration() {
    let mut world = World::new();
    world.register(sagjan());
    let old = world.ticket().unwrap();
    let started = world.register(request("sagjan", 7813, &["GET /a"]));
    assert_eq!((started.change, started.state), (Change::Started, State::Unknown { misses: 0 }));
    assert!(world.record(&old, missed()).is_none());
    assert!(world.record(&old, answered()).is_none());
    assert_eq!(world.instance().health, Health::default());
    let new = world.ticket().expect("the new start is probed at once");
    assert_ne!(new.number, old.number);
    // Gone and back under the very same url: another life all the same.
    world.services.remove(&new.service, std::slice::from_ref(&new.instance));
    world.register(request("sagjan", 7813, &["GET /a"]));
    assert!(world.record(&new, answered()).is_none());
    let now = world.ticket().unwrap();
    assert!(world.record(&now, answered()).is_some());
    assert!(world.record(&now, missed()).is_none(), "once");
}

#[test]
fn a_renewal_touches_no_health_but_asks_at_once_while_not_up() {
    let mut world = World::new();
    world.register(sagjan());
    world.probe(answered());
    let version = world.services.publication().version();
    let renewed = world.register(sagjan());
    assert_eq!((renewed.change, renewed.version, renewed.state.name()), (Change::Renewed, version, "UP"));
    assert_eq!(world.due_in(), Some(30), "an UP one keeps its schedule");
    for _ in 0..3 {
        world.wait(30);
        world.probe(missed());
    }
    assert_eq!(world.due_in(), Some(120));
    let renewed = world.register(sagjan());
    assert_eq!(renewed.state, State::Down { misses: 3 }, "registering makes nobody UP");
    assert_eq!(world.due_in(), Some(0));
    world.probe(missed());
    assert_eq!(world.instance().health.state, State::Down { misses: 3 }, "that probe was extra");
    assert_eq!(world.due_in(), Some(120), "and the schedule is as it was");
    world.register(sagjan());
    let recorded = world.probe(answered());
    assert_eq!(recorded.transition.unwrap().to, State::Up { misses: 0 });
    assert_eq!(world.due_in(), Some(30));
}

#[test]
fn a_hung_service_with_a_live_timer_still_goes_down() {
    let mut world = World::new();
    world.register(sagjan());
    for second in 0..61 {
        world.register(sagjan());
        while let Some(ticket) = world.ticket() {
            world.record(&ticket, missed());
        }
        if second < 60 {
            world.wait(1);
        }
    }
    assert_eq!(world.instance().health.state, State::Down { misses: 3 });
}

#[test]
fn a_parked_one_is_woken_by_registering_and_gets_the_whole_series() {
    let mut world = World::new();
    world.register(sagjan());
    world.services.park_all(world.at);
    assert!(world.instance().health.state.is_parked());
    world.wait(80_000);
    assert!(world.ticket().is_none());
    let woken = world.register(sagjan());
    assert_eq!((woken.change, woken.state), (Change::Renewed, State::Down { misses: 3 }));
    assert!(woken.transition.unwrap().from.is_parked());
    for _ in 0..7 {
        world.probe(missed());
        world.wait(120);
    }
    assert!(world.instance().health.state.is_parked());
    assert!(world.services.wake(&"sagjan".parse().unwrap(), None, world.at).unwrap()[0].1.is_some());
    world.probe(answered());
    assert_eq!(world.instance().health.state, State::Up { misses: 0 });
}

#[test]
fn the_union_of_routes_is_governed_by_the_newest_registration() {
    let mut world = World::new();
    let with = |instance: &str, port: u16, permission: &str, routes: &[&str]| {
        let mut request = v1::RegisterRequest { instance: instance.into(), ..request("sagjan", port, routes) };
        request.routes.iter_mut().for_each(|route| route.permission = permission.into());
        request
    };
    let permission = |world: &World, path: &str| {
        let service = world.services.get("sagjan").unwrap();
        service.routes.iter().find(|route| route.key.pattern.as_str() == path).unwrap().permission.clone().unwrap().to_string()
    };
    world.register(with("a", 1, "old:a", &["GET /both", "GET /only-a"]));
    world.register(with("b", 2, "new:b", &["GET /both", "GET /only-b"]));
    assert_eq!((permission(&world, "/both"), permission(&world, "/only-a")), ("new:b".into(), "old:a".into()));
    world.register(with("a", 1, "old:a", &["GET /both", "GET /only-a"]));
    assert_eq!(permission(&world, "/both"), "new:b", "a renewal is not newer");
    let service = world.services.get("sagjan").unwrap();
    assert_eq!(service.routes.iter().map(|route| route.instances.len()).collect::<Vec<_>>(), [2, 1, 1]);
    world.register(with("a", 1, "newest:a", &["GET /both"]));
    assert_eq!(permission(&world, "/both"), "newest:a");
    assert_eq!(world.services.get("sagjan").unwrap().routes.len(), 2, "what only a declared is gone");
    world.services.remove(&"sagjan".parse().unwrap(), &["a".parse().unwrap()]);
    assert_eq!(permission(&world, "/both"), "new:b");
    let mut loosened = |permission: &str| {
        let applied = world.register(with("b", 2, permission, &["GET /both", "GET /only-b", "GET /new"]));
        applied.loosened.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(loosened(""), ["GET /both", "GET /only-b"]);
    assert!(loosened("tighter:b").is_empty(), "who has it got in before");
    assert_eq!(loosened("other:b").len(), 3, "who has only that one did not get in before");
    assert!(loosened("other:b").is_empty());
}

#[test]
fn a_suspicion_is_published_and_asks_again_until_answered() {
    let mut world = World::new();
    let id = world.register(sagjan()).registration_id;
    world.probe(answered());
    let (number, before) = (world.instance().number, world.services.publication().version());
    let instance = world.services.numbered("sagjan", number).expect("it is there");
    assert!(world.services.numbered("sagjan", number + 1).is_none());
    assert!(world.services.suspect("sagjan", &instance, "another", world.at).is_none());
    assert!(world.services.suspect("obr", &instance, &id, world.at).is_none());
    assert!(world.services.suspect("sagjan", &instance, &id, world.at).is_some());
    assert!(world.message(before).services[0].instances.as_ref().unwrap().instances[0].suspect);
    let mut waits = Vec::new();
    for _ in 0..4 {
        waits.push(world.due_in().unwrap());
        world.wait(world.due_in().unwrap());
        world.probe(missed());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    assert_eq!(world.instance().health.state, State::Up { misses: 0 }, "extra probes count for nothing");
    world.wait(world.due_in().unwrap());
    world.probe(answered());
    assert!(world.instance().health.suspicion.is_none());
    assert!(world.services.suspect("sagjan", &instance, &id, world.at).is_some(), "and it may begin again");
}

#[test]
fn what_furt_could_not_ask_is_no_miss_and_is_asked_again() {
    let mut world = World::new();
    world.register(sagjan());
    for _ in 0..20 {
        let recorded = world.probe(Seen::Unable("no descriptor".into()));
        assert_eq!((recorded.misses, recorded.transition), (0, None));
        assert_eq!(world.due_in(), Some(1));
        world.wait(1);
    }
    assert!(world.instance().last_ping.is_none());
}

#[test]
fn jitter_is_at_most_a_tenth_and_none_while_a_miss_is_followed_up() {
    for jitter in [-5.0, -1.0, 0.5, 1.0, 5.0] {
        let mut world = World::new();
        world.register(sagjan());
        let mut next = |seen: Seen| {
            let ticket = world.ticket().unwrap();
            world.services.record(&ticket, &seen, world.at.now, world.at, jitter).unwrap();
            let due = world.services.next_due().unwrap() - world.at.now;
            world.at.now += due;
            due.as_secs_f64()
        };
        assert!((27.0..=33.0).contains(&next(answered())));
        assert_eq!(next(missed()), 30.0);
        assert_eq!(next(missed()), 30.0);
        assert!((108.0..=132.0).contains(&next(missed())));
    }
}

#[test]
fn a_parked_instance_is_forgotten_after_a_while_but_never_the_last_one() {
    let mut world = World::new();
    world.register(v1::RegisterRequest { instance: "a".into(), ..sagjan() });
    world.services.park_all(world.at);
    world.wait(200_000);
    assert!(matches!(world.services.take_due(world.at.now), Some(Due::Kept)));
    world.register(v1::RegisterRequest { instance: "b".into(), ..sagjan() });
    let mut forgotten = Vec::new();
    while let Some(due) = world.services.take_due(world.at.now) {
        if let Due::Forget(name, id, registration_id) = due {
            assert!(world.services.is_forgettable(&name, &id, &registration_id));
            forgotten.push(id.to_string());
        }
    }
    assert_eq!(forgotten, ["a"]);
    let (name, id) = ("sagjan".parse().unwrap(), "a".parse().unwrap());
    assert_eq!(world.due_in(), Some(60), "and once more if that does not work");
    world.services.remove(&name, &[id]);
    let left = world.instance();
    assert_eq!(left.registration.instance.as_str(), "b");
    let (id, registration_id) = (left.registration.instance.clone(), left.registration_id.clone());
    assert!(!world.services.is_forgettable(&name, &id, &registration_id), "never the last one");
}

#[test]
fn the_last_64_changes_of_state_are_kept_with_their_causes_also_over_a_restart() {
    let mut world = World::new();
    world.register(sagjan());
    for _ in 0..50 {
        while world.instance().health.state.serves() {
            world.wait(world.due_in().unwrap());
            world.probe(Seen::Missed("connection refused".into()));
        }
        world.wait(world.due_in().unwrap());
        world.probe(answered());
    }
    let told = |instance: &Instance| {
        instance.history.iter().map(|change| format!("{} {} {}", change.from.word(), change.to.word(), change.cause)).collect::<Vec<_>>()
    };
    let kept = told(world.instance());
    assert_eq!(kept.len(), 64);
    assert!(kept.chunks(2).all(|pair| pair == ["UP DOWN connection refused", "DOWN UP answered"]), "{kept:?}");
    let record = world.instance().record(world.at.now);
    let mut after = World::new();
    assert!(after.services.restore(&record, 0, after.at));
    let restored = told(after.instance());
    assert_eq!((&restored[..63], &*restored[63]), (&kept[1..], "UP UNKNOWN furt started"));
}

#[test]
fn nothing_is_left_of_services_that_are_gone() {
    let mut world = World::new();
    for index in 0..100 {
        let name = format!("s{index}");
        world.register(request(&name, 7000 + index, &["GET /a", "POST /b/*"]));
        if index % 2 == 0 {
            world.ticket();
        }
        world.services.remove(&name.parse().unwrap(), &["default".parse().unwrap()]);
    }
    let services = &world.services;
    assert!(services.services.is_empty() && services.schedule.is_empty() && services.reports.is_empty() && services.by_host.is_empty());
    assert_eq!(services.instances(), 0);
    let whole = v1::WatchResponse::decode(&*services.publication().since(None).encode("e", &Notice::default())).unwrap();
    assert_eq!((whole.services.len(), whole.digest), (0, 0));
}

#[test]
fn reports_say_what_was_seen_and_when_it_is_asked_next() {
    let mut world = World::new();
    world.register(sagjan());
    world.probe(answered());
    let read = |world: &World, after| {
        let reports = world.services.reports(after, 10).map(|(_, name, instance)| instance.report(name, world.at));
        reports.collect::<Vec<_>>()
    };
    let report = &read(&world, 0)[0];
    assert_eq!((report.last_ping_unix_ms, report.response_time_ms, report.consecutive_failures), (1_000_000, Some(5), 0));
    assert_eq!(report.next_probe_unix_ms, 1_030_000);
    let seen = world.services.last_report();
    assert!(read(&world, seen).is_empty());
    world.wait(30);
    world.probe(missed());
    let report = &read(&world, seen)[0];
    assert_eq!((report.response_time_ms, report.consecutive_failures), (None, 1));
}

#[test]
fn terms_of_a_grant_and_times_of_a_route_reach_the_data_planes_and_only_what_changed_is_told_again() {
    let mut world = World::new();
    let mut timed = sagjan();
    (timed.routes[0].timeout, timed.routes[0].deadline) = ("500ms".into(), "60".into());
    world.register(timed);
    world.register(request("obr", 7813, &["GET /b"]));
    let all = world.message(0);
    let route = &all.services.iter().find(|service| service.name == "sagjan").unwrap().routes.as_ref().unwrap().routes[0];
    assert_eq!((route.timeout_ms, route.deadline_ms), (500, 60_000));

    let mut version = world.services.publication().version();
    let mut after = |grants: Vec<Grant>| {
        world.services.set_grants(grants.into_iter().collect());
        let told = world.message(version);
        version = told.version;
        assert!(told.services.iter().all(|service| service.routes.is_none()), "routes are untouched");
        let terms = |service: &v1::ServiceSnapshot| {
            let one = &service.instances.as_ref().unwrap().instances[0];
            (service.name.clone(), one.max_in_flight, one.keep_alive_off)
        };
        told.services.iter().map(terms).collect::<Vec<_>>()
    };
    let capped = |most, keep_alive| Grant { max_in_flight: most, keep_alive, ..grant(Some("sagjan")) };
    assert_eq!(after(vec![grant(None)]), [], "what a default grant says of it is what was said");
    assert_eq!(after(vec![grant(None), capped(3, true)]), [("sagjan".into(), 3, false)]);
    let narrower = Grant { max_instances: 1, ..capped(3, true) };
    assert_eq!(after(vec![grant(None), narrower]), [], "no data plane needs to know");
    assert_eq!(after(vec![grant(None), capped(3, false)]), [("sagjan".into(), 3, true)]);
    assert_eq!(after(vec![Grant { max_in_flight: 9, ..grant(None) }, capped(3, false)]), [("obr".into(), 9, false)]);
    assert_eq!(after(vec![Grant { max_in_flight: 9, ..grant(None) }]), [("sagjan".into(), 9, false)]);
    world.register(request("mail", 7814, &["GET /c"]));
    let told = world.message(version);
    assert_eq!(told.services[0].instances.as_ref().unwrap().instances[0].max_in_flight, 9, "who comes later has them too");
}
