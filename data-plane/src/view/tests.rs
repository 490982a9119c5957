//! Changes applied one after the other against the whole compiled at once, and what is carried over.

use std::collections::HashSet;

use proptest::prelude::*;

use super::{
    model::{Model, empty, fixed, instance, route},
    *,
};
use crate::{
    balance::Entered,
    table::{Access, Lookup},
};

fn view(model: &Model) -> View {
    apply(&empty(), model.whole()).unwrap()
}

/// Everything that a request or a person could see of a view, slots and keys of this process apart.
fn seen(view: &View) -> Vec<String> {
    let mut seen = vec![format!("{} {} {:016x} {:?}", view.epoch, view.version, view.digest, view.cors_origins)];
    for service in view.services() {
        assert!(Arc::ptr_eq(view.service(service.slot).unwrap(), service));
        seen.push(format!("{} {}", service.name, service.is_static));
        for one in &service.instances {
            seen.push(format!("{} {} {} {:?} {:?} {}", one.number, one.id, one.url, one.addresses, one.status, one.parked));
        }
    }
    seen.extend(view.keys.iter().map(|caller| format!("{} {:?}", caller.name, caller.permissions)));
    seen.push(format!("{} routes", view.table.len()));
    for path in ["/a", "/b", "/a/", "/a/a", "/a/b", "/b/a", "/b/c", "/a/b/c", "/c/a/b/c"] {
        for host in ["", "x.org"] {
            for method in ["GET", "POST"] {
                seen.push(match view.table.find(host, method, path) {
                    Lookup::Found(route) => {
                        let service = view.service(route.slot).expect("a route's slot has its service");
                        assert_eq!((&service.name, service.is_static), (&route.service, route.is_static));
                        format!(
                            "{} {:?} {} {} {:?} {:?}",
                            route.service, route.host, route.method, route.pattern, route.access, route.instances
                        )
                    }
                    Lookup::MethodNotAllowed(methods) => methods.join(" "),
                    Lookup::NotFound => String::new(),
                });
            }
        }
    }
    seen
}

/// One thing that happens at the control plane.
#[derive(Debug, Clone)]
enum Step {
    Routes(u8, Vec<String>),
    Instances(u8, Vec<(u32, bool)>),
    Remove(u8),
    Fixed(Vec<String>),
    Keys(u8),
    Cors(u8),
    /// What happened is told; until then it is one update.
    Tell,
}

fn any_step() -> impl Strategy<Value = Step> {
    let text =
        || ("(GET|POST|\\*) (/(a|b|\\*)){1,3}", prop::option::of(Just(" host=x.org"))).prop_map(|(text, host)| text + host.unwrap_or(""));
    prop_oneof![
        4 => (0..5u8, prop::collection::vec(text(), 0..5)).prop_map(|(service, routes)| Step::Routes(service, routes)),
        4 => (0..5u8, prop::collection::vec((0..4u32, any::<bool>()), 0..4)).prop_map(|(service, all)| Step::Instances(service, all)),
        2 => (0..5u8).prop_map(Step::Remove),
        1 => prop::collection::vec(text(), 0..3).prop_map(Step::Fixed),
        1 => (0..3u8).prop_map(Step::Keys),
        1 => (0..3u8).prop_map(Step::Cors),
        4 => Just(Step::Tell),
    ]
}

fn take(model: &mut Model, step: Step) {
    let once = |mut routes: Vec<String>| {
        let mut seen = HashSet::new();
        routes.retain(|text| seen.insert(text.clone()));
        routes
    };
    match step {
        Step::Routes(service, routes) => model.routes(&format!("s{service}"), once(routes).iter().map(|text| route(text)).collect()),
        Step::Instances(service, all) => {
            let mut seen = HashSet::new();
            let all = all.into_iter().filter(|(number, _)| seen.insert(*number));
            let all = all.map(|(number, up)| instance(number, if up { "UP" } else { "DOWN" })).collect();
            model.instances(&format!("s{service}"), all);
        }
        Step::Remove(service) => model.remove(&format!("s{service}")),
        Step::Fixed(routes) => {
            let named = once(routes).into_iter().enumerate().map(|(at, text)| fixed(&format!("f{at}"), &format!("{text} public")));
            model.fixed(named.collect());
        }
        Step::Keys(count) => {
            model.keys((0..count).map(|at| furt_proto::v1::Key { name: format!("k{at}"), ..Default::default() }).collect());
        }
        Step::Cors(count) => model.cors(&["https://a.org", "https://b.org"][..usize::from(count)]),
        Step::Tell => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn changes_one_after_the_other_come_to_what_the_whole_is(steps in prop::collection::vec(any_step(), 0..40)) {
        let mut model = Model::new("e");
        let mut current = view(&model);
        let mut kept = Vec::new();
        for step in steps {
            let tell = matches!(step, Step::Tell);
            take(&mut model, step);
            if tell {
                kept.push((seen(&current), current.clone()));
                current = apply(&current, model.delta()).unwrap();
                prop_assert_eq!(seen(&current), seen(&view(&model)));
                let slots: HashSet<u32> = current.services().iter().map(|service| service.slot).collect();
                prop_assert_eq!(slots.len(), current.services().len());
            }
        }
        for (was, view) in kept {
            prop_assert_eq!(was, seen(&view));
        }
    }

    #[test]
    fn a_whole_over_another_view_comes_to_the_whole(
        before in prop::collection::vec(any_step(), 0..20),
        after in prop::collection::vec(any_step(), 0..20),
        same_epoch in any::<bool>(),
    ) {
        let mut model = Model::new("e");
        before.into_iter().for_each(|step| take(&mut model, step));
        let current = view(&model);
        if !same_epoch {
            model = Model::new("f");
        }
        after.into_iter().for_each(|step| take(&mut model, step));
        prop_assert_eq!(seen(&apply(&current, model.whole()).unwrap()), seen(&view(&model)));
    }
}

#[test]
fn one_more_service_compiles_one_service_at_ten_and_at_ten_thousand() {
    for services in [10, 10_000] {
        let mut model = Model::new("e");
        for at in 0..services {
            model.service(&format!("s{at}"), &[&format!("GET /s{at}/*"), &format!("POST /s{at}/*/reply")]);
        }
        model.delta();
        let before = view(&model);
        assert_eq!(before.compiled(), Compiled { services, routes: 2 * services });
        model.service("new", &["GET /new/*"]);
        let after = apply(&before, model.delta()).unwrap();
        assert_eq!(after.compiled(), Compiled { services: services + 1, routes: 2 * services + 1 });
        assert!(after.table.knows("", "/new/a") && !before.table.knows("", "/new/a"));
        // The whole again: nothing is new.
        assert_eq!(apply(&after, model.whole()).unwrap().compiled(), after.compiled());
        // Health moves no route.
        model.instances("new", vec![instance(0, "DOWN")]);
        let down = apply(&after, model.delta()).unwrap();
        assert_eq!(down.compiled(), Compiled { services: services + 2, routes: 2 * services + 1 });
        assert!(down.table.knows("", "/new/a"));
    }
}

#[test]
fn what_lives_on_is_carried_over() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.fixed(vec![fixed("f", "GET,POST /f public")]);
    let first = view(&model);
    let service = |view: &View, name: &str| view.services().into_iter().find(|service| *service.name == *name).cloned();
    let one = |view: &View, name: &str| service(view, name).unwrap().instances[0].clone();
    model.delta();
    // Health: the same instance, its connections and its state.
    model.instances("a", vec![instance(0, "DOWN")]);
    let down = apply(&first, model.delta()).unwrap();
    let (was, is) = (one(&first, "a"), one(&down, "a"));
    assert_eq!((was.status, is.status), (Status::Up, Status::Down));
    assert!(Arc::ptr_eq(&was.state, &is.state));
    assert!(Arc::ptr_eq(&service(&first, "a").unwrap().metrics, &service(&down, "a").unwrap().metrics));
    // Another registration: another instance.
    model.instances("a", vec![furt_proto::v1::SnapshotInstance { registration_id: "new".into(), ..instance(0, "UP") }]);
    let renewed = apply(&down, model.delta()).unwrap();
    assert!(!Arc::ptr_eq(&one(&renewed, "a").state, &was.state));
    // A static route that stays, beside one that is new.
    model.fixed(vec![fixed("g", "GET /g public"), fixed("f", "GET /f public")]);
    let more = apply(&renewed, model.delta()).unwrap();
    let (was, is) = (service(&first, "f").unwrap(), service(&more, "f").unwrap());
    assert_eq!(was.slot, is.slot);
    assert!(Arc::ptr_eq(&was.metrics, &is.metrics) && is.is_static && is.instances[0].status == Status::Up);
    // A new epoch, the same service: counts go on, and what did not change is not compiled again.
    let mut next = Model::new("next");
    next.service("a", &["GET /a"]);
    let over = apply(&more, next.whole()).unwrap();
    assert!(Arc::ptr_eq(&service(&first, "a").unwrap().metrics, &service(&over, "a").unwrap().metrics));
    assert!(service(&over, "f").is_none());
    assert_eq!(over.compiled().routes, more.compiled().routes);
}

#[test]
fn a_slot_is_used_again_only_after_its_service_is_gone() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.service("b", &["GET /b"]);
    model.delta();
    let first = view(&model);
    let slot = |view: &View, path: &str| match view.table.find("", "GET", path) {
        Lookup::Found(route) => route.slot,
        other => panic!("{other:?}"),
    };
    model.remove("a");
    model.service("c", &["GET /c"]);
    let second = apply(&first, model.delta()).unwrap();
    assert!(slot(&second, "/c") != slot(&first, "/a") && slot(&second, "/c") != slot(&first, "/b"));
    model.service("d", &["GET /d"]);
    let third = apply(&second, model.delta()).unwrap();
    assert_eq!(slot(&third, "/d"), slot(&first, "/a"));
    assert_eq!(&*third.service(slot(&third, "/d")).unwrap().name, "d");
}

#[test]
fn a_route_changes_hands_within_an_update() {
    let mut model = Model::new("e");
    model.service("a", &["GET /x"]);
    model.service("b", &["GET /y"]);
    model.delta();
    let first = view(&model);
    model.service("a", &["GET /y"]);
    model.service("b", &["GET /x"]);
    let second = apply(&first, model.delta()).unwrap();
    let holder = |view: &View, path: &str| match view.table.find("", "GET", path) {
        Lookup::Found(route) => route.service.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!((holder(&first, "/x"), holder(&second, "/x"), holder(&second, "/y")), ("a".into(), "b".into(), "a".into()));
}

#[test]
fn reports_come_and_go_with_their_instance() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.delta();
    let mut current = view(&model);
    model.report("a", 0, 1000, |report| report.next_probe_unix_ms = 31_000);
    model.report("a", 9, 1000, |_| {});
    model.report("gone", 0, 1000, |_| {});
    current = apply(&current, model.delta()).unwrap();
    let service = current.services()[0].clone();
    assert_eq!(current.report(service.slot, 0).unwrap().last_ping_unix_ms, 1000);
    assert_eq!((current.report(service.slot, 9), current.next_probe_unix_ms(&service)), (None, Some(31_000)));
    // Health changes: the report stays.
    model.instances("a", vec![instance(0, "DOWN")]);
    current = apply(&current, model.delta()).unwrap();
    assert!(current.report(service.slot, 0).is_some());
    // The number names another registration by now, or nobody.
    model.instances("a", vec![furt_proto::v1::SnapshotInstance { registration_id: "new".into(), ..instance(0, "UP") }]);
    let renewed = apply(&current, model.delta()).unwrap();
    assert!(renewed.report(service.slot, 0).is_none());
    model.remove("a");
    current = apply(&current, model.delta()).unwrap();
    assert!(current.report(service.slot, 0).is_none() && current.reports.is_empty());
}

#[test]
fn updates_that_do_not_build_on_the_view_are_refused() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.delta();
    let held = view(&model);
    model.service("b", &["GET /b"]);
    let good = model.delta();
    let check = |change: &dyn Fn(&mut furt_proto::v1::WatchResponse), expected: &str| {
        let mut update = good.clone();
        change(&mut update);
        let refused = apply(&held, update).expect_err(expected).to_string();
        assert!(refused.contains(expected), "{refused}");
    };
    check(&|update| update.epoch = "other".into(), "a change of epoch");
    check(&|update| update.epoch.clear(), "no epoch");
    check(&|update| update.version = 0, "version 0 after version 1");
    check(&|update| update.digest ^= 1, "the digest after it");
    check(&|update| update.services.push(update.services[0].clone()), "twice");
    check(&|update| update.services.clear(), "the digest after it");
    assert!(matches!(apply(&empty(), good.clone()), Err(ApplyError::UnknownBase { .. })));
    assert!(apply(&held, good).is_ok());
}

#[test]
fn a_route_that_is_not_understood_answers_503_and_never_opens() {
    let access = |text: &str, change: &dyn Fn(&mut furt_proto::v1::SnapshotRoute), host: &str, method: &str, path: &str| {
        let mut odd = route(text);
        change(&mut odd);
        let mut model = Model::new("e");
        model.routes("odd", vec![odd]);
        model.service("wide", &["* /* public"]);
        let view = view(&model);
        assert_eq!(view.notes.len(), 1, "{:?}", view.notes);
        match view.table.find(host, method, path) {
            Lookup::Found(route) => route.access.clone(),
            other => panic!("{other:?}"),
        }
    };
    let unusable = |access: Access| assert!(matches!(access, Access::Unusable(_)), "{access:?}");
    unusable(access("GET /a/b permission=x:*", &|_| {}, "", "GET", "/a/b"));
    unusable(access("GET /a/b permission=x:y public", &|_| {}, "", "GET", "/a/b"));
    unusable(access("get /a/b", &|_| {}, "", "GET", "/a/b"));
    unusable(access("GET /a/b", &|route| route.host = "a b".into(), "x.org", "GET", "/a/b"));
    unusable(access("GET /a/b*c", &|_| {}, "", "GET", "/a/bxc"));
    unusable(access("GET /a/**/c", &|_| {}, "", "GET", "/a/b/c"));
    unusable(access("GET odd", &|_| {}, "", "GET", "/anything"));
    let endless = "/a".repeat(40);
    unusable(access(&format!("GET {endless}"), &|_| {}, "", "GET", &endless));
}

#[test]
fn an_instance_that_is_not_understood_gets_no_requests() {
    type Change = fn(&mut furt_proto::v1::SnapshotInstance);
    let odd: [(Change, Option<Status>); 4] = [
        (|one| one.status = "MAYBE".into(), Some(Status::Down)),
        (|one| one.protocol = "h9".into(), Some(Status::Down)),
        (|one| one.url = "ftp://a".into(), None),
        (|_| {}, Some(Status::Up)),
    ];
    for (change, expected) in odd {
        let mut one = instance(0, "UP");
        change(&mut one);
        let mut model = Model::new("e");
        model.instances("a", vec![one]);
        let view = view(&model);
        assert_eq!(view.services()[0].instances.first().map(|one| one.status), expected);
        assert_eq!(view.notes.is_empty(), expected == Some(Status::Up));
    }
}

#[test]
fn a_worker_sees_what_is_installed() {
    let current = Current::new(empty());
    let mut cache = current.cache();
    assert!(!cache.load().is_ready());
    current.install(view(&Model::new("e")));
    assert_eq!((&*cache.load().epoch, &*current.load().epoch), ("e", "e"));
}

#[test]
fn what_a_control_plane_cannot_know_is_kept_until_one_does() {
    let mut known = Model::new("e");
    known.service("a", &["GET /a"]);
    known.service("b", &["GET /b"]);
    known.fixed(vec![fixed("f", "GET /f public")]);
    known.delta();
    let before = view(&known);
    // The next furt cannot read its store: it knows furt.conf, and what registers.
    let mut next = Model::new("f");
    next.fixed(vec![fixed("g", "GET /g public")]);
    next.delta();
    let partial = |update| furt_proto::v1::WatchResponse { partial: true, ..update };
    let routed = |view: &View| ["/a", "/b", "/c", "/f", "/g"].map(|path| view.table.knows("", path));
    let kept = apply(&before, partial(next.whole())).unwrap();
    assert_eq!((routed(&kept), kept.registered(), &*kept.epoch), ([true, true, false, false, true], 2, "f"));
    let slot = |view: &View, name: &str| view.services().iter().find(|service| *service.name == *name).map(|service| service.slot);
    assert_eq!(slot(&kept, "a"), slot(&before, "a"));
    // Named with what is held, it is known again, and nothing is compiled; named with other parts, those hold.
    next.service("a", &["GET /a"]);
    let named = apply(&kept, partial(next.delta())).unwrap();
    assert_eq!((routed(&named), named.compiled().routes), ([true, true, false, false, true], kept.compiled().routes));
    next.routes("b", vec![route("GET /c")]);
    let renamed = apply(&named, partial(next.delta())).unwrap();
    assert_eq!(routed(&renamed), [true, false, true, false, true]);
    let service = renamed.services().into_iter().find(|service| &*service.name == "b").unwrap();
    assert!(service.instances.is_empty(), "nothing stays of what was not known");
    // Known again, all the same as if they had never been kept.
    for named in [&kept, &named, &renamed] {
        let whole = apply(named, next.whole()).unwrap();
        assert_eq!(seen(&whole), seen(&view(&next)));
    }
    let whole = apply(&renamed, next.delta()).unwrap();
    assert_eq!(seen(&whole), seen(&view(&next)));
}

#[test]
fn a_change_that_knows_every_service_lets_go_of_what_was_kept() {
    let mut known = Model::new("e");
    known.service("a", &["GET /a"]);
    known.service("b", &["GET /b"]);
    known.delta();
    let mut next = Model::new("f");
    next.delta();
    let partial = furt_proto::v1::WatchResponse { partial: true, ..next.whole() };
    let kept = apply(&view(&known), partial).unwrap();
    assert!(kept.partial && kept.table.knows("", "/a") && kept.table.knows("", "/b"));
    next.service("b", &["GET /b"]);
    let whole = apply(&kept, next.delta()).unwrap();
    assert!(!whole.partial && !whole.table.knows("", "/a") && whole.table.knows("", "/b"));
    assert_eq!(seen(&whole), seen(&view(&next)));
}

#[test]
fn a_reload_and_a_snapshot_do_not_lose_each_other() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.delta();
    let current = Current::new(view(&model));
    let stale = current.load();
    let limited = |rate: &str| Config {
        max_connections: 7,
        ip_rate_limit: rate.parse().ok(),
        failed_key_limit: "7/s".parse().ok(),
        ..model::config()
    };
    current.reconfigure(Config { workers: 9, ..limited("5/s") });
    model.service("b", &["GET /b"]);
    current.install(apply(&stale, model.delta()).unwrap());
    let both = current.load();
    assert!(both.table.knows("", "/b"));
    assert_eq!((both.config.max_connections, both.config.workers), (7, 1), "workers are those of the start");
    let limits = |view: &View| view.address_limits.clone();
    current.reconfigure(limited("5/s"));
    assert!(Arc::ptr_eq(&limits(&both).unwrap(), &limits(&current.load()).unwrap()));
    let failed = both.failed_keys.clone().unwrap();
    current.reconfigure(limited("6/s"));
    assert!(Arc::ptr_eq(&failed, current.load().failed_keys.as_ref().unwrap()), "another limit is another table");
    assert!(!Arc::ptr_eq(&limits(&both).unwrap(), &limits(&current.load()).unwrap()));
    current.reconfigure(limited(""));
    assert!(limits(&current.load()).is_none() && current.load().table.knows("", "/b"));
    assert_eq!((stale.config.max_connections, both.config.max_connections), (100, 7), "a view stays as it was");
}

#[test]
fn writers_at_once_lose_nothing() {
    let mut model = Model::new("e");
    model.delta();
    let current = Current::new(view(&model));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..200 {
                model.service(&format!("s{at}"), &[&format!("GET /s{at}")]);
                current.install(apply(&current.load(), model.delta()).unwrap());
            }
        });
        scope.spawn(|| (1..=200).for_each(|most| current.reconfigure(Config { max_connections: most, ..model::config() })));
    });
    let view = current.load();
    assert_eq!((view.registered(), view.config.max_connections), (200, 200));
}

#[test]
fn drained_instances_are_closed_and_opened_with_the_view() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.delta();
    let current = Current::new(view(&model));
    let one = |view: &View| view.services()[0].instances[0].clone();
    let with = |change: fn(&mut furt_proto::v1::SnapshotInstance)| {
        let mut only = instance(0, "UP");
        change(&mut only);
        vec![only]
    };
    let mut tell = |instances| {
        model.instances("a", instances);
        current.install(apply(&current.load(), model.delta()).unwrap());
        current.load()
    };
    let state = one(&current.load()).state.clone();
    assert!(state.enter(0) == Entered::Yes && !current.load().drains());
    let drained = tell(with(|one| one.drained = true));
    assert!(state.enter(0) == Entered::Drained && drained.drains());
    assert_eq!(drained.in_flight().iter().map(|one| one.requests).collect::<Vec<_>>(), [2]);
    // Its requests go on when its addresses change.
    let moved = tell(with(|one| (one.drained, one.addresses) = (true, vec!["127.0.0.2:7000".into()])));
    assert_eq!(moved.in_flight()[0].requests, 2);
    // Another registration has none.
    let renewed = tell(with(|one| (one.drained, one.registration_id) = (true, "new".into())));
    assert!(renewed.in_flight().is_empty() && renewed.drains() && one(&renewed).state.enter(0) == Entered::Drained);
    let undrained = tell(with(|one| one.registration_id = "new".into()));
    assert!(!undrained.drains() && one(&undrained).state.enter(0) == Entered::Yes);
    tell(with(|one| one.drained = true));
    model.remove("a");
    assert!(!apply(&current.load(), model.delta()).unwrap().drains());
}

#[test]
fn what_comes_back_from_down_starts_slowly_and_what_is_new_or_was_doubted_does_not() {
    let mut model = Model::new("e");
    model.service("a", &["GET /a"]);
    model.delta();
    let mut held = view(&model);
    let mut share_after = |status: &str, registration: &str| {
        model.instances("a", vec![furt_proto::v1::SnapshotInstance { registration_id: registration.into(), ..instance(0, status) }]);
        held = apply(&held, model.delta()).unwrap();
        held.services()[0].instances[0].state.share(2, 10)
    };
    assert_eq!(["UNKNOWN", "UP", "DOWN"].map(|status| share_after(status, "r0")), [1000; 3]);
    assert_eq!(share_after("UP", "r0"), 100);
    assert_eq!(share_after("DOWN", "r0"), 100);
    assert_eq!(share_after("UP", "r1"), 1000, "another registration");
}
