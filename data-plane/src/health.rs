//! `GET /health`: the body that monitors read, from the view (seed §5, DESIGN §6).
//!
//! Here: its fields and their order, who sees how much, and the cache that bounds its cost.
//! Not here: health decisions, headers.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::{network::FORWARDING_FIELDS, time::rfc3339};
use http::HeaderMap;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    config::{Config, HealthDetail},
    view::{Instance, Report, Service, Status, View},
};

/// From how many services on the body is rendered at most once in [`FRESH`].
const CACHED_FROM: usize = 100;
const FRESH: Duration = Duration::from_secs(1);

/// Whether a client sees all of it. With a forwarding header its peer is a proxy and not who asks.
pub fn sees_all(config: &Config, peer: IpAddr, fields: &HeaderMap) -> bool {
    match config.health_detail {
        HealthDetail::Full => true,
        HealthDetail::Names => false,
        HealthDetail::Auto => {
            config.allow_registration_from.contains(peer) && !FORWARDING_FIELDS.iter().any(|name| fields.contains_key(*name))
        }
    }
}

/// The body: `status`, `service`, `version`, `services` in this order. `full`: with urls, times and
/// instances, and after the seed's fields `snapshot_version`, `snapshot_age` and, when degraded, `issues`. `age`: since
/// the control plane was last heard, if ever.
pub fn body(view: &View, full: bool, age: Option<Duration>) -> Bytes {
    let early = (!view.is_ready()).then_some("no snapshot from the control plane yet");
    let issues: Vec<&str> = early.into_iter().chain(view.issues.iter().map(String::as_str)).collect();
    let status = if issues.is_empty() { "healthy" } else { "degraded" };
    let mut out = format!(r#"{{"status":"{status}","service":"furt","version":"{}","services":{{"#, env!("CARGO_PKG_VERSION"));
    let mut services = view.services();
    services.retain(|service| !service.is_static);
    for (index, service) in services.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&Value::from(&*service.name).to_string());
        out.push(':');
        out.push_str(&Value::Object(entry(view, service, full)).to_string());
    }
    out.push('}');
    if full {
        out.push_str(&format!(r#","snapshot_version":{}"#, view.version));
        if let Some(age) = age {
            out.push_str(&format!(r#","snapshot_age":{}"#, age.as_secs()));
        }
        if !issues.is_empty() {
            out.push_str(&format!(r#","issues":{}"#, Value::from(issues)));
        }
    }
    out.push('}');
    out.into()
}

/// One service: its best instance, and all of them when there are several.
fn entry(view: &View, service: &Service, full: bool) -> Map<String, Value> {
    let report = |instance: &Instance| view.report(service.slot, instance.number);
    // Of equals the first registered, so that the answer does not flicker.
    let best = service.instances.iter().min_by_key(|instance| rank(instance.status));
    let Some(best) = best else {
        return Map::from_iter([("status".to_owned(), Status::Down.as_str().into())]);
    };
    if !full {
        return Map::from_iter([("status".to_owned(), best.status.as_str().into())]);
    }
    let mut fields = instance_fields(best, report(best));
    if service.instances.len() > 1 {
        let each = service.instances.iter().map(|instance| {
            let mut fields = Map::from_iter([("id".to_owned(), Value::from(&*instance.id))]);
            fields.extend(instance_fields(instance, report(instance)));
            Value::Object(fields)
        });
        fields.insert("instances".into(), each.collect());
    }
    fields
}

fn rank(status: Status) -> u8 {
    match status {
        Status::Up => 0,
        Status::Unknown => 1,
        Status::Down => 2,
    }
}

fn instance_fields(instance: &Instance, report: Option<&Report>) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("status".into(), instance.status.as_str().into());
    fields.insert("url".into(), instance.url.as_str().into());
    let last_ping = report.map(|report| report.last_ping_unix_ms).filter(|ms| *ms != 0);
    fields.insert("last_ping".into(), last_ping.map_or(Value::Null, |ms| rfc3339(ms).into()));
    if let Some(ms) = report.and_then(|report| report.response_time_ms) {
        fields.insert("response_time_ms".into(), ms.into());
    }
    if let Some(failures) = report.map(|report| report.consecutive_failures).filter(|failures| *failures != 0) {
        fields.insert("consecutive_failures".into(), failures.into());
    }
    let flags =
        [("parked", instance.parked), ("suspect", instance.suspect), ("drained", instance.drained), ("withdrawn", instance.withdrawn)];
    for (name, set) in flags {
        if set {
            fields.insert(name.into(), true.into());
        }
    }
    fields
}

/// Bodies rendered lately, so that asking often does not cost in the number of services.
#[derive(Debug, Default)]
pub struct HealthCache([Mutex<Option<(Instant, Bytes)>>; 2]);

impl HealthCache {
    /// The body; of more than a hundred services up to a second old.
    pub fn body(&self, view: &View, full: bool, age: Option<Duration>, now: Instant) -> Bytes {
        if view.registered() <= CACHED_FROM {
            return body(view, full, age);
        }
        let [names, all] = &self.0;
        // Rendered under the lock: whoever asks meanwhile waits for this one instead of rendering too.
        let mut kept = (if full { all } else { names }).lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((rendered, body)) if now.duration_since(*rendered) < FRESH => body.clone(),
            _ => kept.insert((now, body(view, full, age))).1.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use furt_proto::v1::SnapshotInstance;

    use super::*;
    use crate::view::{
        apply,
        model::{Model, config, empty, fixed, instance},
    };

    fn view(model: &mut Model) -> View {
        let whole = model.whole();
        let view = apply(&empty(), whole).unwrap();
        apply(&view, model.delta()).unwrap()
    }

    fn services(body: &Bytes) -> String {
        let body = std::str::from_utf8(body).unwrap();
        let (_, services) = body.split_once(r#""services":"#).unwrap();
        services.to_owned()
    }

    #[test]
    fn the_body_is_the_seeds_in_its_order() {
        let mut model = Model::new("e");
        let at = |port: u16, status: &str| SnapshotInstance { url: format!("http://127.0.0.1:{port}"), ..instance(0, status) };
        model.instances("sagjan", vec![at(7812, "UP")]);
        model.instances("obr", vec![at(7820, "DOWN")]);
        model.fixed(vec![fixed("mail", "POST /mail public")]);
        model.report("sagjan", 0, 1_763_152_200_000, |report| report.response_time_ms = Some(5));
        model.report("obr", 0, 1_763_152_185_000, |report| report.consecutive_failures = 5);
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            concat!(
                r#"{{"status":"healthy","service":"furt","version":"{}","services":{{"#,
                r#""obr":{{"status":"DOWN","url":"http://127.0.0.1:7820","last_ping":"2025-11-14T20:29:45Z","consecutive_failures":5}},"#,
                r#""sagjan":{{"status":"UP","url":"http://127.0.0.1:7812","last_ping":"2025-11-14T20:30:00Z","response_time_ms":5}}}},"#,
                r#""snapshot_version":1}}"#
            ),
            version
        );
        assert_eq!(body(&view(&mut model), true, None), expected);
    }

    #[test]
    fn others_see_names_and_status() {
        let mut model = Model::new("e");
        model.instances("a", vec![instance(0, "DOWN"), instance(1, "UNKNOWN")]);
        let body = body(&view(&mut model), false, Some(Duration::ZERO));
        assert!(body.ends_with(br#""services":{"a":{"status":"UNKNOWN"}}}"#), "{body:?}");
    }

    #[test]
    fn nothing_registered_and_no_snapshot_yet() {
        let mut model = Model::new("e");
        assert_eq!(services(&body(&view(&mut model), true, None)), r#"{},"snapshot_version":1}"#);
        let early = body(&empty(), true, None);
        assert!(early.starts_with(br#"{"status":"degraded","service":"furt","#), "{early:?}");
        assert_eq!(services(&early), r#"{},"snapshot_version":0,"issues":["no snapshot from the control plane yet"]}"#);
    }

    #[test]
    fn of_several_instances_the_best_speaks_and_all_are_listed() {
        let mut model = Model::new("e");
        let parked = SnapshotInstance { parked: true, ..instance(1, "DOWN") };
        model.instances("a", vec![parked, instance(2, "UNKNOWN"), instance(3, "UP")]);
        model.report("a", 1, 1000, |report| report.consecutive_failures = 10);
        assert_eq!(
            services(&body(&view(&mut model), true, None)),
            concat!(
                r#"{"a":{"status":"UP","url":"http://127.0.0.1:7003","last_ping":null,"instances":["#,
                r#"{"id":"i1","status":"DOWN","url":"http://127.0.0.1:7001","last_ping":"1970-01-01T00:00:01Z","#,
                r#""consecutive_failures":10,"parked":true},"#,
                r#"{"id":"i2","status":"UNKNOWN","url":"http://127.0.0.1:7002","last_ping":null},"#,
                r#"{"id":"i3","status":"UP","url":"http://127.0.0.1:7003","last_ping":null}]}},"snapshot_version":1}"#
            )
        );
    }

    #[test]
    fn who_sees_all() {
        let inside: furt_proto::network::Networks = "127.0.0.1, 10.0.0.0/8".parse().unwrap();
        let check = |health_detail: HealthDetail, peer: &str, forwarded: bool, expected: bool| {
            let config = Config { health_detail, allow_registration_from: inside.clone(), ..config() };
            let mut fields = HeaderMap::new();
            if forwarded {
                fields.insert("x-real-ip", http::HeaderValue::from_static("10.0.0.1"));
            }
            assert_eq!(sees_all(&config, peer.parse().unwrap(), &fields), expected, "{health_detail:?} {peer} {forwarded}");
        };
        check(HealthDetail::Auto, "127.0.0.1", false, true);
        check(HealthDetail::Auto, "127.0.0.1", true, false);
        check(HealthDetail::Auto, "192.0.2.1", false, false);
        check(HealthDetail::Full, "192.0.2.1", true, true);
        check(HealthDetail::Names, "127.0.0.1", false, false);
    }

    #[tokio::test(start_paused = true)]
    async fn at_scale_it_is_rendered_once_a_second() {
        let cache = HealthCache::default();
        let mut model = Model::new("e");
        model.instances("a", vec![instance(0, "UP")]);
        let small = view(&mut model);
        for at in 0..101 {
            model.instances(&format!("s{at}"), vec![instance(0, "UP")]);
        }
        let many = view(&mut model);
        model.remove("s0");
        let later = view(&mut model);
        let lists = |body: &Bytes| services(body).contains(r#""s0""#);
        assert!(lists(&cache.body(&many, false, None, Instant::now())));
        assert!(lists(&cache.body(&later, false, None, Instant::now())));
        assert!(!lists(&cache.body(&later, true, None, Instant::now())), "each detail has a body of its own");
        assert!(!lists(&cache.body(&small, false, None, Instant::now())), "few services are always fresh");
        tokio::time::advance(FRESH).await;
        assert!(!lists(&cache.body(&later, false, None, Instant::now())));
    }
}
