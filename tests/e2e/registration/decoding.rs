//! Bodies that are no registration: a 4xx that names the fault, and the registry as it was.

use serde_json::json;

use crate::{
    client::{Answer, Client, Request},
    upstream::Upstream,
    world::{Conf, World, eventually, grpc_registration, registration},
};

const PATH: &str = "/internal/register-service";

fn world() -> World {
    Conf::new().gateway("registration_rate = 100000/s").start()
}

/// Asserts a 4xx in the envelope that says `words`, and that nothing changed.
#[track_caller]
fn refused(furt: &World, body: impl AsRef<[u8]>, words: &[&str]) -> Answer {
    let before = furt.registry();
    let answer = Request::post(PATH, body).send(furt.internal);
    assert!((400..500).contains(&answer.status), "{answer:?}");
    answer.refused(answer.status, &answer.code());
    let text = answer.text();
    for word in words {
        assert!(text.contains(word), "{word:?} is not told: {answer:?}");
    }
    assert_eq!(furt.registry(), before, "a refused registration changes nothing");
    answer
}

#[test]
fn malformed_json_is_refused_with_the_place() {
    let furt = world();
    for body in ["", "{", "nonsense", "{\"service\": }", "[1,2", "{\"service\": \"a\",}", "{} {}", "{'service': 'a'}"] {
        refused(&furt, body, &[]).refused(400, "MALFORMED_REQUEST");
    }
    refused(&furt, "{\n\"service\": oops}", &["line 2"]);
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    let furt = world();
    for body in ["null", "[]", "\"sagjan\"", "7", "true"] {
        assert_eq!(refused(&furt, body, &[]).status, 400);
    }
}

#[test]
fn wrong_types_unknown_missing_and_repeated_fields_are_told_by_name_all_at_once() {
    let furt = world();
    let body = r#"{
        "service": 7, "url": null, "health_endpoint": [], "servce": "a", "weight": "much", "metadata": {"a": 1},
        "routes": [{"method": "GET", "path": 5, "premission": "a:b"}, "GET /x", {"method": "GET", "method": "PUT", "path": "/y", "public": "yes"}, {}]
    }"#;
    let answer = refused(&furt, body, &[]);
    answer.refused(400, "VALIDATION_ERROR");
    let details = answer.details();
    for field in [
        "service",
        "url",
        "health_endpoint",
        "servce",
        "weight",
        "routes[0].path",
        "routes[0].premission",
        "routes[1]",
        "routes[2].method",
        "routes[2].public",
        "routes[3].method",
        "routes[3].path",
    ] {
        assert!(details.iter().any(|(told, _)| told == field), "{field} is not told in {details:?}");
    }
    assert!(details.iter().any(|(told, _)| told.starts_with("metadata")), "{details:?}");
    let mut fields: Vec<_> = details.iter().map(|(field, _)| field).collect();
    fields.sort();
    fields.dedup();
    assert_eq!(fields.len(), details.len(), "no field is told twice: {details:?}");

    for missing in ["service", "url", "routes"] {
        let mut body = registration("sagjan", "http://127.0.0.1:7812", &["GET /x a:b"]);
        body.as_object_mut().expect("an object").remove(missing);
        let details = refused(&furt, body.to_string(), &[missing]).details();
        assert_eq!(details.len(), 1, "{details:?}");
    }
    for routes in [json!({}), json!("GET /x"), json!(null)] {
        refused(&furt, json!({"service": "sagjan", "url": "http://127.0.0.1:7812", "routes": routes}).to_string(), &["routes"]);
    }
}

#[test]
fn a_body_of_more_than_a_mebibyte_is_refused() {
    let furt = world();
    let big = format!("{{\"service\": \"{}\"}}", "a".repeat(1 << 20));
    refused(&furt, &big, &[]).refused(413, "PAYLOAD_TOO_LARGE");
    // Also without a length told in advance.
    let answer = Request::post(PATH, &big).chunked().send(furt.internal);
    answer.refused(413, "PAYLOAD_TOO_LARGE");
    // And at once when only the length says so: nothing of the body need be sent.
    let mut client = Client::new(furt.internal);
    client.write(format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{{")).expect("sent");
    client.read("POST").expect("an answer").refused(413, "PAYLOAD_TOO_LARGE");
}

#[test]
fn a_hundred_thousand_routes_are_refused() {
    let furt = world();
    let routes: Vec<_> = (0..100_000).map(|number| json!({"method": "GET", "path": format!("/{number}")})).collect();
    let body = json!({"service": "sagjan", "url": "http://127.0.0.1:7812", "routes": routes}).to_string();
    refused(&furt, &body, &[]).refused(413, "PAYLOAD_TOO_LARGE");
    // As many as fit into the body: too many still, and every fault told stays within bounds.
    let routes: Vec<_> = (0..100_000).map(|_| json!({})).collect();
    let body = json!({"service": "sagjan", "url": "http://127.0.0.1:7812", "routes": routes}).to_string();
    let answer = refused(&furt, &body, &["routes"]);
    answer.refused(400, "VALIDATION_ERROR");
    assert!(answer.body.len() < 1 << 20, "{} bytes of answer", answer.body.len());
}

#[test]
fn bytes_that_are_no_utf8_are_refused() {
    let furt = world();
    refused(&furt, b"{\"service\": \"\xff\xfe\"}", &[]).refused(400, "MALFORMED_REQUEST");
    refused(&furt, b"\x00\x01\x02", &[]).refused(400, "MALFORMED_REQUEST");
}

#[test]
fn deep_nesting_is_refused() {
    let furt = world();
    for depth in [200, 100_000] {
        let body = format!("{{\"service\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(refused(&furt, body, &[]).status, 400);
        let body = format!("{{\"x\": {}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert_eq!(refused(&furt, body, &[]).status, 400);
    }
}

#[test]
fn any_content_type_will_do_but_no_content_encoding() {
    let furt = world();
    let upstream = Upstream::start("any");
    let body = registration("sagjan", &upstream.url(), &["GET /x a:b"]).to_string();
    for content_type in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        Request::post(PATH, &body).field("Content-Type", content_type).send(furt.internal).status(200);
    }
    Request::post(PATH, &body).send(furt.internal).status(200);
    furt.until("sagjan", "UP");
    let before = furt.registry();
    let answer = Request::post(PATH, &body).field("Content-Encoding", "gzip").send(furt.internal);
    assert!((400..500).contains(&answer.status), "{answer:?}");
    answer.refused(answer.status, &answer.code());
    assert_eq!(furt.registry(), before);
}

#[test]
fn another_method_or_path_is_told_so() {
    let furt = world();
    let answer = Request::get(PATH).send(furt.internal);
    answer.refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(answer.field("allow"), Some("POST"));
    Request::post("/internal/register-servce", "{}").send(furt.internal).refused(404, "NOT_FOUND");
}

#[test]
fn grpc_that_does_not_decode_is_refused() {
    let furt = world();
    let before = furt.registry();
    let request = http::Request::post(format!("http://{}/furt.v1.RegistryService/Register", furt.internal))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let answer = crate::h2::send(furt.internal, request, &["\0\0\0\0\x03\x7f\x7f\x7f"], None).expect("an answer");
    let status = answer
        .field("grpc-status")
        .map(str::to_owned)
        .or_else(|| answer.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")?.to_str().ok().map(str::to_owned)));
    // INVALID_ARGUMENT: it is the caller's fault, and told like any other.
    assert_eq!(status.as_deref(), Some("3"), "{answer:?}");
    assert_eq!(furt.registry(), before);
    eventually("it is logged", || furt.logged(&["registration refused", "MALFORMED_REQUEST"]).then_some(()));
}

#[test]
fn all_bodies_under_way_have_one_bound_whatever_they_are_written_in() {
    let furt = world();
    let upstream = Upstream::start("any");
    // 32 MiB may be read at once. Each of these lacks its last byte.
    let body = vec![b' '; (1 << 20) - 1];
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", furt.internal, body.len() + 1);
    let mut waiting: Vec<Client> = (0..32).map(|_| Client::new(furt.internal)).collect();
    for client in &mut waiting {
        client.write([head.as_bytes(), &body].concat()).expect("sent");
    }
    let register = || {
        furt.grpc(async |mut client| {
            client.register(grpc_registration("sagjan", &upstream.url(), &["GET /x a:b"])).await.map_err(|status| status.code())
        })
    };
    eventually("gRPC has no room either", || (register().err() == Some(tonic::Code::Unavailable)).then_some(()));
    drop(waiting);
    eventually("there is room again", || register().ok());
}
