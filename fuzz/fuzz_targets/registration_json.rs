//! The JSON body of a registration: whatever the bytes, a request or faults that fit in an answer and
//! a log line; and a body without a fault says the same when it is written again.
#![no_main]

use furt_control_plane::{
    json::{MAX_FAULTS, decode},
    refusal::Fault,
    registration::{MAX_ROUTES, Registration},
};
use furt_proto::{path::canonical, pattern::RoutePattern, v1::RegisterRequest};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|data: &[u8]| {
    let read = decode(data);
    match &read {
        Err(fault) => is_printable(fault),
        Ok((_, faults)) => {
            assert!(faults.len() <= MAX_FAULTS + 1, "{} faults", faults.len());
            faults.iter().for_each(is_printable);
        }
    }
    if let Ok((request, _)) = &read {
        match Registration::parse(request) {
            Ok(registration) => keeps_its_limits(&registration),
            Err(faults) => {
                assert!(!faults.is_empty());
                faults.iter().for_each(is_printable);
            }
        }
    }
    let strict = serde_json::from_slice::<Value>(data.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(data));
    assert_eq!(read.is_ok(), matches!(strict, Ok(Value::Object(_))), "read as an object: {strict:?}");
    if let Ok((request, faults)) = read
        && faults.is_empty()
    {
        assert_eq!(decode(written(&request).to_string().as_bytes()), Ok((request, Vec::new())));
    }
});

fn is_printable(fault: &Fault) {
    for text in [&fault.field, &fault.message] {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.len() < 2048, "{} bytes", text.len());
    }
}

/// DESIGN §4, rule 6, of what was let through.
fn keeps_its_limits(registration: &Registration) {
    assert!((1..=MAX_ROUTES).contains(&registration.routes.len()));
    assert!((1..=1000).contains(&registration.weight));
    let path = registration.health_endpoint.split('?').next().unwrap_or_default();
    assert_eq!(canonical(path).as_deref(), Ok(path));
    for (index, route) in registration.routes.iter().enumerate() {
        let key = &route.key;
        assert_eq!(key.pattern.as_str().parse::<RoutePattern>().as_ref().ok(), Some(&key.pattern));
        assert!(key.method.as_str() != "CONNECT" && !key.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()));
        assert!(!(route.public && route.permission.is_some()));
        assert!(registration.routes[..index].iter().all(|other| other.key != *key), "{key} twice");
    }
}

/// Every field that is not at its default, and those that must be there.
fn written(request: &RegisterRequest) -> Value {
    let mut body = Map::new();
    let mut set = |name: &str, value: Value, default: bool| {
        if !default {
            body.insert(name.to_owned(), value);
        }
    };
    let routes: Vec<_> = request.routes.iter().map(|route| {
        json!({"method": route.method, "path": route.path, "permission": route.permission, "host": route.host, "public": route.public, "timeout": route.timeout})
    }).collect();
    set("service", json!(request.service), false);
    set("url", json!(request.url), false);
    set("routes", json!(routes), false);
    set("health_endpoint", json!(request.health_endpoint), request.health_endpoint.is_empty());
    set("instance", json!(request.instance), request.instance.is_empty());
    set("version", json!(request.version), request.version.is_empty());
    set("weight", json!(request.weight), request.weight.is_none());
    set("metadata", json!(request.metadata), request.metadata.is_empty());
    set("protocol", json!(request.protocol), request.protocol.is_empty());
    set("dry_run", json!(request.dry_run), !request.dry_run);
    Value::Object(body)
}
