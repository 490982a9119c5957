//! What a store that fails, is slow or cannot be read does to registering.

use std::sync::Condvar;

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::{
    registry::tests::{config, grant, local, request},
    resolve::tests::FakeLookup,
    store::Loaded,
};

/// A store that does as it is told.
#[derive(Default, Clone)]
struct Told(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<Kept>,
    opened: Condvar,
}

#[derive(Default)]
struct Kept {
    records: std::collections::BTreeMap<Key, Vec<u8>>,
    alive_unix_ms: i64,
    fails: bool,
    /// Commits wait while this is set.
    held: bool,
    /// How many puts and deletes each commit had.
    commits: Vec<usize>,
}

impl Told {
    fn with<T>(&self, work: impl FnOnce(&mut Kept) -> T) -> T {
        let result = work(&mut self.0.state.lock().unwrap());
        self.0.opened.notify_all();
        result
    }
    fn registry(&self) -> Registry {
        Registry::with_store(config(), Box::new(self.clone()))
    }
    fn keys(&self) -> Vec<String> {
        self.with(|kept| kept.records.keys().map(|key| format!("{}/{}", key.service, key.instance)).collect())
    }
}

fn broken() -> StoreError {
    StoreError::Io { file: "registry.redb".into(), cause: "told to fail".into() }
}

impl Store for Told {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.with(|kept| match kept.fails {
            true => Err(broken()),
            false => Ok(Loaded { records: kept.records.clone().into_iter().collect(), alive_unix_ms: kept.alive_unix_ms }),
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut kept = self.0.state.lock().unwrap();
        while kept.held {
            kept = self.0.opened.wait(kept).unwrap();
        }
        kept.commits.push(batch.puts.len() + batch.deletes.len());
        if kept.fails {
            return Err(broken());
        }
        batch.deletes.iter().for_each(|key| drop(kept.records.remove(key)));
        kept.records.extend(batch.puts.iter().cloned());
        kept.alive_unix_ms = batch.alive_unix_ms;
        Ok(())
    }

    fn recover(&mut self, records: &[(Key, Vec<u8>)], alive_unix_ms: i64) -> Result<(), StoreError> {
        self.with(|kept| {
            if kept.fails {
                return Err(broken());
            }
            kept.records = records.iter().cloned().collect();
            kept.alive_unix_ms = alive_unix_ms;
            Ok(())
        })
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// Waits until something holds; whatever makes it so tells the subscribers.
async fn until(registry: &Registry, mut holds: impl FnMut() -> bool) {
    let mut changed = registry.follow();
    while !holds() {
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_published_or_answered_before_it_is_durable() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    store.with(|kept| kept.held = true);
    let before = registry.stamp().version;
    let registering = tokio::spawn({
        let registry = registry.clone();
        async move { registry.try_it(request("sagjan", 7812, &["GET /a"])).await }
    });
    // It is in the store's hands once another service is refused the same route.
    let conflict = loop {
        match registry.try_it(v1::RegisterRequest { dry_run: true, ..request("obr", 7813, &["GET /a"]) }).await {
            Err(refusal) => break refusal,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(conflict.code(), Code::RouteConflict, "pending holds as committed does");
    assert!(registry.get_service("sagjan").is_err());
    assert_eq!((registry.stamp().version, registering.is_finished()), (before, false));
    store.with(|kept| kept.held = false);
    let answer = registering.await.unwrap().unwrap();
    assert_eq!(store.keys(), ["sagjan/default"]);
    assert_eq!(registry.get_service("sagjan").unwrap().instances[0].registration_id, answer.registration_id);
}

#[tokio::test]
async fn a_burst_is_one_commit_or_two_and_renewals_are_none() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    let burst = async |prefix: &str| {
        let each = (0..200u16)
            .map(|index| registry.try_it(request(&format!("{prefix}{index}"), 8000 + index, &[&format!("GET /{prefix}{index}")])));
        futures_util::future::join_all(each).await
    };
    assert!(burst("s").await.iter().all(Result::is_ok));
    let commits = store.with(|kept| std::mem::take(&mut kept.commits));
    assert!(commits.len() <= 3, "{commits:?}");
    assert_eq!(commits.iter().sum::<usize>(), 200);
    assert!(burst("s").await.iter().all(Result::is_ok));
    assert_eq!(store.with(|kept| kept.commits.clone()), Vec::<usize>::new());
    assert!(burst("t").await.iter().all(Result::is_ok));
    assert!(store.with(|kept| kept.commits.len()) <= 3);
}

#[tokio::test]
async fn of_two_that_want_one_route_at_once_one_gets_it_whole() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    for round in 0..20 {
        let route = format!("GET /both/{round}");
        let own = |name: &str| format!("GET /{name}/{round}");
        let one = request(&format!("a{round}"), 7812, &[&route, &own("a")]);
        let two = request(&format!("b{round}"), 7813, &[&own("b"), &route]);
        let (one, two) = tokio::join!(registry.try_it(one), registry.try_it(two));
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        let refused = one.err().or(two.err()).unwrap();
        assert_eq!(refused.code(), Code::RouteConflict);
    }
    assert_eq!(store.keys().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_acknowledges_nothing_and_is_opened_again() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    registry.try_it(request("kept", 7812, &["GET /kept"])).await.unwrap();
    store.with(|kept| kept.fails = true);
    let refused = registry.try_it(request("lost", 7813, &["GET /lost"])).await.unwrap_err();
    assert_eq!((refused.code(), refused.retry_after_seconds()), (Code::StoreUnavailable, Some(1)));
    assert!(refused.message().contains("told to fail"), "{refused}");
    // Nothing of it is left: neither the service, nor its claim.
    assert!(registry.get_service("lost").is_err());
    let claimed = registry.try_it(v1::RegisterRequest { dry_run: true, ..request("other", 7814, &["GET /lost"]) }).await;
    assert!(claimed.is_ok(), "{claimed:?}");
    // What is durable already is renewed, what is there stays, a farewell has to wait.
    registry.try_it(request("kept", 7812, &["GET /kept"])).await.unwrap();
    let farewell = v1::DeregisterRequest { service: "kept".into(), instance: "default".into(), ..Default::default() };
    assert_eq!(registry.deregister(&local(), farewell.clone()).await.unwrap_err().code(), Code::StoreUnavailable);
    assert!(registry.get_service("kept").is_ok());
    assert_eq!(registry.notice(&registry.lock()).issues.len(), 1);

    store.with(|kept| {
        // As if the commit that failed had landed all the same.
        kept.records.insert(Key { service: "lost".into(), instance: "default".into() }, vec![1]);
        kept.fails = false;
    });
    let mended = Instant::now();
    until(&registry, || registry.notice(&registry.lock()).issues.is_empty()).await;
    assert!(mended.elapsed() <= Duration::from_secs(2), "{:?}", mended.elapsed());
    assert_eq!(store.keys(), ["kept/default"], "what was not acknowledged is out of the store");
    registry.try_it(request("lost", 7813, &["GET /lost"])).await.unwrap();
    registry.deregister(&local(), farewell).await.unwrap();
    assert_eq!(store.keys(), ["lost/default"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_is_not_an_empty_one() {
    let store = Told::default();
    {
        let before = store.registry();
        before.restore().await.unwrap();
        before.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    }
    store.with(|kept| kept.fails = true);
    let registry = store.registry();
    assert!(registry.restore().await.is_err());
    assert!(registry.notice(&registry.lock()).partial);
    // Somebody else's route, though nobody can say whose.
    let refused = registry.try_it(request("obr", 7813, &["GET /a"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::StoreUnavailable);
    assert_eq!(store.keys(), ["sagjan/default"]);
    // Nor does anybody read it as empty.
    let probe = v1::ProbeRequest { service: "sagjan".into(), instance: String::new() };
    for refused in [registry.readable().unwrap_err(), registry.probe(&local(), probe).unwrap_err()] {
        assert_eq!((refused.code(), refused.retry_after_seconds()), (Code::StoreUnavailable, Some(1)));
    }
    store.with(|kept| kept.fails = false);
    until(&registry, || !registry.notice(&registry.lock()).partial).await;
    registry.readable().unwrap();
    assert!(registry.get_service("sagjan").unwrap().instances[0].restored);
    assert_eq!(registry.try_it(request("obr", 7813, &["GET /a"])).await.unwrap_err().code(), Code::RouteConflict);
    // For whoever watches the outage is over too, and the next one is told anew.
    let mut metrics = String::new();
    registry.telemetry().encode(&mut metrics);
    assert!(metrics.contains("furt_store_up 1\n"), "{metrics}");
    store.with(|kept| kept.fails = true);
    registry.try_it(request("obr", 7813, &["GET /b"])).await.unwrap_err();
    let mut told = Box::pin(registry.events().watch("0", "").unwrap());
    let kinds = std::iter::from_fn(|| told.next().now_or_never().flatten()).map(|event| event.kind);
    let of_the_store: Vec<_> = kinds.filter(|kind| kind.starts_with("ST")).collect();
    assert_eq!(of_the_store, ["STORE_FAILED", "STORE_RECOVERED", "STARTED", "STORE_FAILED"]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_makes_no_sense_is_kept_until_a_registration_has_its_place() {
    let store = Told::default();
    {
        let before = store.registry();
        before.restore().await.unwrap();
        for (name, port) in [("good", 7812), ("moved", 7813), ("newest", 7814)] {
            before.try_it(request(name, port, &[&format!("GET /{name}")])).await.unwrap();
        }
    }
    let key = |service: &str| Key { service: service.into(), instance: "default".into() };
    store.with(|kept| {
        let newest = kept.records.get_mut(&key("newest")).unwrap();
        *newest = InstanceRecord { order: u64::MAX, ..InstanceRecord::decode(&newest[..]).unwrap() }.encode_to_vec();
        // The record of another instance, which is there as well.
        let good = kept.records[&key("good")].clone();
        kept.records.insert(key("moved"), good);
    });
    let registry = store.registry();
    registry.restore().await.unwrap();
    let names: Vec<_> = registry.list_services().services.into_iter().map(|service| service.service).collect();
    assert_eq!((names, registry.instances()), (vec!["good".to_owned()], 1));
    assert_eq!(store.keys(), ["good/default", "moved/default", "newest/default"]);

    registry.try_it(request("moved", 7813, &["GET /moved"])).await.unwrap();
    let farewell = v1::DeregisterRequest { service: "moved".into(), instance: "default".into(), ..Default::default() };
    registry.deregister(&local(), farewell).await.unwrap();
    store.with(|kept| kept.fails = true);
    registry.try_it(request("lost", 7816, &["GET /lost"])).await.unwrap_err();
    store.with(|kept| kept.fails = false);
    until(&registry, || registry.notice(&registry.lock()).issues.is_empty()).await;
    assert_eq!(store.keys(), ["good/default", "newest/default"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_down_is_down_after_a_restart_and_what_was_up_is_unknown() {
    let store = Told::default();
    let before = store.registry();
    before.restore().await.unwrap();
    for (name, port) in [("up", 7812), ("down", 7813), ("parked", 7814)] {
        before.try_it(request(name, port, &[&format!("GET /{name}")])).await.unwrap();
    }
    let mut misses = 0;
    while before.status("parked") != ("DOWN".to_owned(), true, 10) {
        tokio::time::advance(Duration::from_secs(60)).await;
        for ticket in before.take_due(Instant::now(), 10) {
            let seen = match ticket.service.as_str() {
                "up" => Seen::Answered(Duration::from_millis(1)),
                "down" if before.status("down").2 >= 5 => continue,
                _ => Seen::Missed("no".into()),
            };
            before.record(&ticket, &seen, Instant::now(), 0.0);
        }
        misses += 1;
        assert!(misses < 100, "{:?}", before.status("parked"));
    }
    let farewell = v1::DrainRequest { service: "up".into(), instance: "default".into(), seconds: Some(0), ..Default::default() };
    before.drain(&local(), farewell).await.unwrap();
    before.flush().await;
    let timeline = before.get_service("down").unwrap().instances[0].timeline.clone();

    let after = store.registry();
    after.restore().await.unwrap();
    assert_ne!(after.epoch(), before.epoch());
    assert_eq!(after.status("up"), ("UNKNOWN".into(), false, 0));
    // Misses are stored with the transitions, not one by one.
    let (status, parked, misses) = after.status("down");
    assert!((status.as_str(), parked) == ("DOWN", false) && (3..=5).contains(&misses), "{status} {parked} {misses}");
    assert_eq!(after.status("parked"), ("DOWN".into(), false, 3), "woken, with a whole series before it");
    let up = after.get_service("up").unwrap().instances.remove(0);
    assert!(up.drained && up.restored, "an operator's drain outlives furt");
    assert_eq!(up.timeline.last().map(|last| (last.to.as_str(), last.cause.as_str())), Some(("UNKNOWN", "furt started")));
    let down = after.get_service("down").unwrap().instances.remove(0);
    assert_eq!(down.timeline, timeline);
    let mut due = after.take_due(Instant::now(), 10);
    due.sort_by(|one, other| one.service.cmp(&other.service));
    assert_eq!(
        due.iter().map(|ticket| (ticket.service.as_str(), ticket.registered)).collect::<Vec<_>>(),
        [("down", false), ("parked", false), ("up", false)]
    );
    // The newest still governs, and the same registration is a renewal.
    let renewed = after.try_it(request("up", 7812, &["GET /up"])).await.unwrap();
    assert_eq!(renewed.registration_id, up.registration_id);
    assert!(!after.get_service("up").unwrap().instances[0].restored);
}

#[tokio::test]
async fn who_registers_again_before_the_round_of_its_farewell_stays() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    let of = |instance: &str, route: &str| v1::RegisterRequest { instance: instance.into(), ..request("sagjan", 7812, &[route]) };
    let first = registry.try_it(of("a", "GET /a")).await.unwrap();
    registry.try_it(of("b", "GET /a")).await.unwrap();
    let plane = registry.attach(false);
    let counts = |requests: u32| {
        let version = registry.stamp().version;
        let in_flight = vec![v1::InFlight { service: "sagjan".into(), instance: 1, requests }];
        registry.heard(plane, &v1::WatchRequest { version, counted: true, in_flight, ..Default::default() });
    };
    let spawn = |request: v1::RegisterRequest| {
        let registry = registry.clone();
        tokio::spawn(async move { registry.try_it(request).await })
    };
    let waits = async |changes: usize| {
        while registry.lock().changes.busy.get("sagjan").is_none_or(|busy| *busy < changes) {
            tokio::task::yield_now().await;
        }
    };

    let farewell = v1::DrainRequest {
        service: "sagjan".into(),
        instance: "a".into(),
        registration_id: first.registration_id.clone(),
        ..Default::default()
    };
    let leaving = tokio::spawn({
        let registry = registry.clone();
        async move { registry.drain(&local(), farewell).await }
    });
    until(&registry, || registry.get_service("sagjan").unwrap().instances[0].drained).await;
    // Another instance's change holds the service up; the renewal waits behind it, and the end of the farewell behind that.
    store.with(|kept| kept.held = true);
    let other = spawn(of("b", "GET /b"));
    waits(1).await;
    let renewal = spawn(of("a", "GET /a"));
    waits(2).await;
    counts(0);
    waits(3).await;
    store.with(|kept| kept.held = false);

    other.await.unwrap().unwrap();
    assert_eq!(renewal.await.unwrap().unwrap().registration_id, first.registration_id);
    assert!(!leaving.await.unwrap().unwrap().deregistered);
    let stays = registry.get_service("sagjan").unwrap().instances.remove(0);
    assert_eq!((stays.id.as_str(), stays.drained), ("a", false), "what was acknowledged is there");
    let version = registry.lock().services.publication().version();
    assert_eq!(registry.stamp().version, version, "and the data planes are told that it takes requests again");
    assert_eq!(store.keys(), ["sagjan/a", "sagjan/b"]);
}

#[tokio::test]
async fn new_addresses_of_a_name_are_stored() {
    let (store, lookup) = (Told::default(), FakeLookup::default());
    lookup.set("sagjan.internal", &["10.0.0.7"]);
    let mut config = config();
    config.grants = [crate::config::Grant { upstreams: Some("10.0.0.0/24".parse().unwrap()), ..grant(None) }].into();
    let registry = Registry::with_lookup(config, Arc::new(lookup), Box::new(store.clone()));
    registry.restore().await.unwrap();
    let named = v1::RegisterRequest { url: "http://sagjan.internal:7812".into(), ..request("sagjan", 1, &["GET /a"]) };
    registry.try_it(named).await.unwrap();
    let wanted = registry.registered_names().remove(0);
    registry.registered_resolved(&wanted, Ok(vec!["10.0.0.8".parse().unwrap()]));
    registry.flush().await;
    let record = store.with(|kept| kept.records.values().next().cloned().unwrap());
    assert_eq!(InstanceRecord::decode(&record[..]).unwrap().addresses, ["10.0.0.8:7812"]);
}

#[tokio::test]
async fn at_the_end_all_that_is_dirty_is_stored_however_much_it_is() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    let many = MOST_IN_ROUND * 2 + 1;
    for index in 0..many {
        registry.try_it(request(&format!("s{index}"), 7812, &[&format!("GET /{index}")])).await.unwrap();
    }
    store.with(|kept| kept.commits.clear());
    {
        let mut state = registry.lock();
        let all: Vec<_> = state.services.by_order().into_iter().map(|(name, id, _)| (name.clone(), id.clone())).collect();
        all.iter().for_each(|(name, id)| state.services.mark(name, id));
    }
    registry.flush().await;
    assert_eq!(store.with(|kept| kept.commits.iter().sum::<usize>()), many);
}

#[tokio::test(start_paused = true)]
async fn parked_instances_are_forgotten_in_the_store_too_but_for_the_last_one() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    for instance in ["a", "b", "c"] {
        let request = v1::RegisterRequest { instance: instance.into(), ..request("sagjan", 7812, &["GET /a"]) };
        registry.try_it(request).await.unwrap();
    }
    let parked = || registry.get_service("sagjan").unwrap().instances.iter().all(|instance| instance.parked);
    let pass = |seconds: u64| {
        let registry = registry.clone();
        async move {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            for ticket in registry.take_due(Instant::now(), 10) {
                registry.record(&ticket, &Seen::Missed("no".into()), Instant::now(), 0.0);
            }
        }
    };
    while !parked() {
        pass(60).await;
    }
    // All of them are due at once, and a store that fails only puts it off.
    store.with(|kept| kept.fails = true);
    pass(86_400).await;
    until(&registry, || !registry.notice(&registry.lock()).issues.is_empty()).await;
    assert_eq!(store.keys().len(), 3);
    store.with(|kept| kept.fails = false);
    until(&registry, || registry.notice(&registry.lock()).issues.is_empty()).await;
    let left = || registry.get_service("sagjan").unwrap().instances.len();
    while left() > 1 {
        pass(60).await;
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        pass(86_400).await;
    }
    registry.flush().await;
    assert_eq!((left(), store.keys().len()), (1, 1), "its routes would be anybody's");
    let mut told = Box::pin(registry.events().watch("0", "").unwrap());
    let kept = std::iter::from_fn(|| told.next().now_or_never().flatten());
    assert_eq!(kept.filter(|event| event.kind == "FORGOTTEN").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_failed_is_made_good_at_shutdown() {
    let store = Told::default();
    let registry = store.registry();
    registry.restore().await.unwrap();
    registry.try_it(request("kept", 7812, &["GET /kept"])).await.unwrap();
    store.with(|kept| kept.fails = true);
    registry.try_it(request("lost", 7813, &["GET /lost"])).await.unwrap_err();
    // As if the file had been taken away, and came back a moment before the end.
    store.with(|kept| {
        kept.fails = false;
        kept.records.clear();
    });
    registry.close();
    registry.flush().await;
    assert_eq!(store.keys(), ["kept/default"]);
}
