use furt_proto::names::ServiceName;
use futures_util::{FutureExt, StreamExt};
use tokio::time::advance;

use super::*;
use crate::{
    health::State,
    refusal::{Code, Fault},
};

struct Fixed;

impl Gauges for Fixed {
    fn version(&self) -> u64 {
        17
    }
    fn uptime(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn instances(&self) -> Vec<InstanceRow> {
        Vec::new()
    }
}

fn telemetry() -> Telemetry {
    Telemetry::new(Fixed, Events::new("e", 1000))
}

fn told(telemetry: &Telemetry) -> Vec<v1::Event> {
    let mut stream = Box::pin(telemetry.events().watch("0", "").unwrap());
    std::iter::from_fn(|| stream.next().now_or_never().flatten()).collect()
}

fn names() -> (ServiceName, InstanceId) {
    ("sagjan".parse().unwrap(), "one".parse().unwrap())
}

/// kind, service, instance, from, to, message, version.
fn short(event: &v1::Event) -> (&str, &str, &str, &str, &str, &str, u64) {
    (&event.kind, &event.service, &event.instance, &event.from, &event.to, &event.message, event.version)
}

#[test]
fn registering_and_health_are_told_with_the_version_that_shows_them() {
    let telemetry = telemetry();
    let (service, instance) = names();
    let peer: IpAddr = "10.0.0.7".parse().unwrap();
    let registered = |change, routes| {
        let url = "http://10.0.0.7:80";
        telemetry.registered(
            peer,
            &Registered { service: &service, instance: &instance, change, url, replaces: None, routes, registration_id: "01J", version: 5 },
        );
    };
    registered(Change::Started, 1);
    registered(Change::Updated, 2);
    registered(Change::Renewed, 2);
    let transition = |from, to| Transition { unix_ms: 0, from, to, cause: "because".into() };
    let parked = State::Parked { misses: 10 };
    telemetry.transition(&service, &instance, &transition(State::Down { misses: 9 }, parked));
    telemetry.transition(&service, &instance, &transition(parked, State::Unknown { misses: 0 }));
    telemetry.suspected(service.as_str(), &instance, "connection refused");
    telemetry.deregistered(&service, std::slice::from_ref(&instance), "asked for by 10.0.0.7", true);
    let of_sagjan = |event: &v1::Event| (event.service.as_str(), event.instance.as_str()) == ("sagjan", "one");
    let events = told(&telemetry);
    assert!(events.iter().all(of_sagjan), "{events:?}");
    let events: Vec<_> = events.iter().map(|event| (&*event.kind, &*event.from, &*event.to, &*event.message, event.version)).collect();
    let expected = [
        ("REGISTERED", "", "", "1 route at http://10.0.0.7:80, registered by 10.0.0.7", 5),
        ("UPDATED", "", "", "2 routes at http://10.0.0.7:80, registered by 10.0.0.7", 5),
        ("TRANSITION", "DOWN", "PARKED", "because", 17),
        ("TRANSITION", "PARKED", "UNKNOWN", "because", 17),
        ("SUSPECTED", "", "", "connection refused", 17),
        ("DEREGISTERED", "", "", "asked for by 10.0.0.7", 17),
    ];
    assert_eq!(events, expected);
}

#[test]
fn an_outage_of_the_store_is_told_once_and_shown_as_a_gauge() {
    let telemetry = telemetry();
    let up = || {
        let mut out = String::new();
        telemetry.encode(&mut out);
        out.lines().find_map(|line| line.strip_prefix("furt_store_up ").map(str::to_owned))
    };
    assert_eq!(up().as_deref(), Some("1"));
    telemetry.store_recovered(Duration::ZERO);
    telemetry.store_failed(&"disk full");
    telemetry.store_failed(&"disk full");
    assert_eq!(up().as_deref(), Some("0"));
    telemetry.store_recovered(Duration::from_millis(1500));
    telemetry.store_recovered(Duration::from_millis(1500));
    assert_eq!(up().as_deref(), Some("1"));
    telemetry.store_failed(&"gone");
    let events = told(&telemetry);
    let expected = [
        ("STORE_FAILED", "", "", "", "", "disk full", 0),
        ("STORE_RECOVERED", "", "", "", "", "usable again after 1500 ms", 0),
        ("STORE_FAILED", "", "", "", "", "gone", 0),
    ];
    assert_eq!(events.iter().map(short).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_in_a_line_and_not_without_end() {
    let telemetry = telemetry();
    let peer = "10.0.0.7".parse().ok();
    let refusal = Refusal::from(vec![
        Fault::new("service", Code::PermissionNotGranted, format!("no grant\n[service \"x\"]\n{}", "y".repeat(5000))),
        Fault::new("url", Code::PermissionNotGranted, "not here"),
    ]);
    telemetry.registration_refused("sagjan", peer, &refusal);
    telemetry.deregistration_refused("no\nname", peer, &refusal);
    telemetry.registration_refused("", peer, &Refusal::one(Code::Malformed, "the body is empty"));
    for _ in 0..50 {
        telemetry.drain_refused("sagjan", peer, &Refusal::one(Code::Forbidden, "z".repeat(9000)));
    }
    let events = told(&telemetry);
    assert_eq!(events.len(), REFUSALS_A_SECOND as usize);
    let first = "registration by 10.0.0.7 refused: PERMISSION_NOT_GRANTED: service: no grant; url: not here";
    assert_eq!(short(&events[0]), ("REFUSED", "sagjan", "", "", "", first, 0));
    let second = "deregistration of \"no\\nname\" by 10.0.0.7 refused: PERMISSION_NOT_GRANTED: service: no grant; url: not here";
    assert_eq!(short(&events[1]), ("REFUSED", "", "", "", "", second, 0));
    let third = "registration by 10.0.0.7 refused: MALFORMED_REQUEST: the body is empty";
    assert_eq!(short(&events[2]), ("REFUSED", "", "", "", "", third, 0));
    assert!(events.iter().all(|event| event.message.chars().count() < 400), "{events:?}");
    advance(Duration::from_secs(1)).await;
    telemetry.registration_refused("sagjan", peer, &Refusal::one(Code::Forbidden, "w".repeat(9000)));
    let last = told(&telemetry).pop().unwrap();
    assert!(last.message.ends_with("; 33 refusals before it are not told"), "{last:?}");
}

#[test]
fn what_an_operator_did_is_told() {
    let telemetry = telemetry();
    let (service, instance) = names();
    telemetry.restored(12, 5, Duration::from_millis(13));
    telemetry.drained(&service, &instance, true, 0);
    telemetry.undrained(&service, &instance);
    telemetry.drained(&service, &instance, false, 2);
    telemetry.withdrawn(&service, &instance, "the grant no longer names /api/x");
    telemetry.readmitted(&service, &instance);
    telemetry.forgotten(&service, &instance);
    telemetry.reloaded(&["key Website: permissions changed".into(), "route legacy: gone".into()], 9);
    telemetry.reloaded(&[], 9);
    telemetry.reload_refused(2, "furt.conf:3: host: expected an address");
    telemetry.session_opened(&service, &instance);
    telemetry.session_lost(&service, &instance, "the connection was lost");
    let expected = [
        ("STARTED", "", "", "", "", "12 instances of 5 services restored in 13 ms", 17),
        ("DRAINED", "sagjan", "one", "", "", "asked for by an operator", 17),
        ("UNDRAINED", "sagjan", "one", "", "", "takes requests again", 17),
        ("DRAINED", "sagjan", "one", "", "", "asked for by the service, 2 requests were still in flight", 17),
        ("WITHDRAWN", "sagjan", "one", "", "", "the grant no longer names /api/x", 17),
        ("READMITTED", "sagjan", "one", "", "", "furt.conf allows the registration again", 17),
        ("FORGOTTEN", "sagjan", "one", "", "", "parked for longer than forget_parked_after", 17),
        ("RELOADED", "", "", "", "", "key Website: permissions changed; route legacy: gone", 9),
        ("RELOADED", "", "", "", "", "nothing changed", 9),
        ("RELOAD_REFUSED", "", "", "", "", "furt.conf:3: host: expected an address (and 1 more)", 0),
        ("SESSION_OPENED", "sagjan", "one", "", "", "the service holds a session", 17),
        ("SESSION_LOST", "sagjan", "one", "", "", "the connection was lost", 17),
    ];
    assert_eq!(told(&telemetry).iter().map(short).collect::<Vec<_>>(), expected);
    let mut metrics = String::new();
    telemetry.encode(&mut metrics);
    assert!(metrics.contains("furt_events_total{kind=\"DRAINED\"} 2"), "{metrics}");
}

#[test]
fn sessions_are_counted_while_they_are_open() {
    let telemetry = telemetry();
    let open = || {
        let mut out = String::new();
        telemetry.encode(&mut out);
        out.lines().find_map(|line| line.strip_prefix("furt_sessions ").map(str::to_owned))
    };
    let (one, two) = (telemetry.session(2), telemetry.session(2));
    assert!(one.is_some() && two.is_some() && telemetry.session(2).is_none());
    assert_eq!(open().as_deref(), Some("2"));
    drop(one);
    assert_eq!(open().as_deref(), Some("1"));
    drop(two);
    assert_eq!(open().as_deref(), Some("0"));
}
