//! Who may not register what: each rule of DESIGN §4, and that a refused registration changes nothing.

use serde_json::{Value, json};

use crate::{
    client::{Answer, Request},
    upstream::Upstream,
    world::{Conf, WEBSITE_KEY, World, eventually, grpc_registration, registration},
};

const GRANTS: &str = "
[service \"sagjan\"]
permissions = comments:*
paths = /api/comments, /api/comments/*
hosts = *.example.org
max_instances = 2

[service \"obr\"]
permissions = books:*

[service \"wide\"]
permissions = *
allow_public = true
";

const STATIC: &str = "
[route \"legacy-mail\"]
methods = POST
path = /v1/mail/*
url = http://127.0.0.1:9
permission = mail:send

[route \"site\"]
methods = *
path = /site/page
url = http://127.0.0.1:9
public = true
";

fn world() -> World {
    Conf::new().grants(GRANTS).more(STATIC).gateway("registration_rate = 100000/s").start()
}

/// Asserts that a registration is refused so, for this field among others, and that nothing changed.
#[track_caller]
fn refused(furt: &World, body: &Value, status: u16, code: &str, field: &str) -> Answer {
    let before = furt.registry();
    let answer = furt.post(body);
    answer.refused(status, code);
    let details = answer.details();
    assert!(details.contains(&(field.into(), code.into())), "{field}: {code} is not among {details:?}");
    assert_eq!(furt.registry(), before, "a refused registration changes nothing");
    answer
}

/// A registration of one route.
fn one(service: &str, url: &str, route: Value) -> Value {
    json!({"service": service, "url": url, "routes": [route]})
}

fn comments(method: &str, path: &str) -> Value {
    json!({"method": method, "path": path, "permission": "comments:read"})
}

#[test]
fn a_service_without_a_grant_is_told_the_lines_to_add() {
    let furt = world();
    let upstream = Upstream::start("any");
    let answer = refused(&furt, &registration("nobody", &upstream.url(), &["GET /x a:b"]), 403, "PERMISSION_NOT_GRANTED", "service");
    let error = answer.text();
    assert!(error.contains("[service \\\"nobody\\\"]"), "{error}");
}

#[test]
fn paths_hosts_permissions_and_public_stay_inside_the_grant() {
    let furt = world();
    let upstream = Upstream::start("any");
    let url = upstream.url();
    let check = |route: Value, field: &str| {
        refused(&furt, &one("sagjan", &url, route), 403, "PERMISSION_NOT_GRANTED", &format!("routes[0].{field}"));
    };
    for path in ["/api/other", "/api/*", "/*", "/api/*/x", "/api/comments/", "/", "/API/comments/a", "/api/commentsx/a"] {
        check(comments("GET", path), "path");
    }
    for permission in ["books:read", "comments", "commentsx:read", "Comments:read"] {
        check(json!({"method": "GET", "path": "/api/comments/a", "permission": permission}), "permission");
    }
    for host in ["example.org", "a.example.com", "*.org", "xexample.org"] {
        check(json!({"method": "GET", "path": "/api/comments/a", "permission": "comments:read", "host": host}), "host");
    }
    check(json!({"method": "GET", "path": "/api/comments/a", "public": true}), "public");
    for path in ["/api/comments", "/api/comments/*", "/api/comments/*/reply", "/api/comments/a/"] {
        furt.post(&one("sagjan", &url, comments("GET", path))).status(200);
    }
    // Without `hosts`, routes name none.
    let hosted = json!({"method": "GET", "path": "/x", "permission": "books:read", "host": "a.example.org"});
    refused(&furt, &one("obr", &url, hosted), 403, "PERMISSION_NOT_GRANTED", "routes[0].host");
}

#[test]
fn every_fault_is_told_at_once_and_the_gravest_class_gives_the_code() {
    let furt = world();
    let upstream = Upstream::start("any");
    let body = json!({
        "service": "sagjan", "url": "ftp://127.0.0.1:1", "weight": 0, "health_endpoint": "health",
        "routes": [
            {"method": "get", "path": "/api/comments/a", "permission": "comments:read"},
            {"method": "GET", "path": "api", "permission": "comments:*"},
            {"method": "GET", "path": "/elsewhere", "permission": "books:read"},
            {"method": "CONNECT", "path": "/api/comments/b", "permission": "comments:read"},
        ],
    });
    let answer = refused(&furt, &body, 400, "VALIDATION_ERROR", "routes[3].method");
    let details = answer.details();
    for field in ["url", "weight", "health_endpoint", "routes[0].method", "routes[1].path", "routes[1].permission"] {
        assert!(details.contains(&(field.into(), "VALIDATION_ERROR".into())), "{field} is not among {details:?}");
    }
    // What can be judged of the rest is told too.
    let body = registration("sagjan", &upstream.url(), &["GET /elsewhere books:read", "get /api/comments/a comments:read"]);
    let answer = refused(&furt, &body, 400, "VALIDATION_ERROR", "routes[1].method");
    for field in ["routes[0].path", "routes[0].permission"] {
        assert!(answer.details().contains(&(field.into(), "PERMISSION_NOT_GRANTED".into())), "{:?}", answer.details());
    }
    // 403 before 409.
    let body = registration("obr", &upstream.url(), &["POST /v1/mail/send books:read", "GET /a mail:send"]);
    let answer = refused(&furt, &body, 403, "PERMISSION_NOT_GRANTED", "routes[1].permission");
    assert!(answer.details().contains(&("routes[0].path".into(), "ROUTE_CONFLICT".into())), "{:?}", answer.details());

    let status = furt
        .grpc(async |mut client| client.register(grpc_registration("sagjan", "ftp://a", &["get /elsewhere books:read"])).await)
        .expect_err("refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let bytes = String::from_utf8_lossy(status.details()).into_owned();
    assert!(
        bytes.contains("google.rpc.BadRequest") && bytes.contains("routes[0].method") && bytes.contains("VALIDATION_ERROR"),
        "{bytes:?}"
    );
}

#[test]
fn static_routes_and_furts_own_paths_cannot_be_taken() {
    let furt = world();
    let upstream = Upstream::start("any");
    let url = upstream.url();
    let check = |method: &str, path: &str| {
        let route = json!({"method": method, "path": path, "permission": "books:read"});
        refused(&furt, &one("obr", &url, route), 409, "ROUTE_CONFLICT", "routes[0].path");
    };
    for path in ["/v1/mail/send", "/v1/mail/*", "/v1/mail/*/x", "/v1/mail/a/b/"] {
        check("POST", path);
    }
    for method in ["GET", "POST", "*", "PURGE"] {
        check(method, "/site/page");
    }
    for path in ["/health", "/health/", "/health/x", "/health/*", "/auth", "/auth/status", "/internal", "/internal/x/*"] {
        check("GET", path);
    }
    // Only what a static route covers whole is its own; the rest stays free and the static route wins.
    let free = |route: Value| furt.post(&one("obr", &url, route)).status(200).json();
    free(json!({"method": "GET", "path": "/v1/mail/send", "permission": "books:read"}));
    let answer = free(json!({"method": "POST", "path": "/v1/*", "permission": "books:read"}));
    let warnings = answer["data"]["warnings"].as_array().expect("a list").clone();
    assert!(warnings.iter().any(|warning| warning["code"] == "ROUTES_OVERLAP" && warning["with"].as_str().is_some_and(|with| with.contains("legacy-mail"))), "{warnings:?}");
}

#[test]
fn another_services_route_cannot_be_taken() {
    let furt = world();
    let upstream = Upstream::start("any");
    let url = upstream.url();
    furt.register("sagjan", &url, &["GET /api/comments/* comments:read"]);
    furt.register("wide", &url, &["* /both a:b"]);
    let check = |service: &str, routes: &[&str]| {
        let answer = refused(&furt, &registration(service, &url, routes), 409, "ROUTE_CONFLICT", "routes[0].path");
        answer.text()
    };
    let text = check("obr", &["GET /api/comments/* books:read"]);
    assert!(text.contains("sagjan"), "the holder is named: {text}");
    check("obr", &["* /api/comments/* books:read"]);
    check("obr", &["GET /both books:read"]);
    check("obr", &["* /both books:read"]);
    // Wholly inside another's pattern, and no `paths` for it.
    check("obr", &["GET /api/comments/mine books:read"]);
    check("obr", &["GET /api/comments/*/deep books:read"]);
    // Another method is another route.
    furt.register("obr", &url, &["PATCH /api/comments/* books:read"]);
    // The holder keeps it.
    assert_eq!(furt.get("/api/comments/a").status, 200);

    // By gRPC the same.
    let request = grpc_registration("obr", &url, &["GET /api/comments/* books:read"]);
    let status = furt.grpc(async |mut client| client.register(request).await).expect_err("refused");
    assert_eq!(status.code(), tonic::Code::AlreadyExists);
}

#[test]
fn a_grant_that_names_the_path_may_lie_inside_anothers_pattern_and_overlap_is_told() {
    let furt = world();
    let (wide, sagjan) = (Upstream::start("wide"), Upstream::start("sagjan"));
    furt.register("wide", &wide.url(), &["GET /api/* a:b"]);
    let data = furt.register("sagjan", &sagjan.url(), &["GET /api/comments/* comments:read"]);
    let warnings = data["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let warning = warnings[0].as_object().expect("an object");
    assert_eq!(warning.keys().map(String::as_str).collect::<Vec<_>>(), ["code", "route", "with", "message"]);
    assert_eq!(warning["code"], "ROUTES_OVERLAP");
    assert_eq!(warning["route"], "GET /api/comments/*");
    assert!(warning["with"].as_str().is_some_and(|with| with.contains("wide") && with.contains("/api/*")), "{warning:?}");
    assert_eq!(furt.get("/api/comments/a").field("x-upstream"), Some("sagjan"));
    assert!(wide.requests().is_empty());
}

#[test]
fn an_address_outside_upstreams_cannot_be_registered() {
    let furt = Conf::new()
        .grants("[service \"own\"]\npermissions = *\n[service \"net\"]\npermissions = *\nupstreams = 127.0.0.0/8, 10.1.0.0/16, 169.254.0.0/16, 224.0.0.0/4, 0.0.0.0/8\n")
        .gateway("registration_rate = 100000/s")
        .start();
    let check = |service: &str, url: &str| {
        refused(&furt, &registration(service, url, &["GET /x a:b"]), 403, "PERMISSION_NOT_GRANTED", "url");
    };
    let never = |url: &str| {
        refused(&furt, &registration("net", url, &["GET /x a:b"]), 400, "VALIDATION_ERROR", "url");
    };
    // By default only the registering peer's own address: this machine, by whatever loopback address.
    for url in ["http://10.1.0.1:7000", "http://[2001:db8::1]:7000", "http://192.0.2.1"] {
        check("own", url);
    }
    check("net", "http://10.2.0.1:7000");
    // Never, whatever the grant says: link-local, multicast, unspecified, furt's own listeners.
    for url in ["http://169.254.169.254", "http://224.0.0.1:80", "http://0.0.0.0:7000", "http://[::ffff:169.254.169.254]"] {
        never(url);
    }
    for port in [furt.public.port(), furt.internal.port()] {
        for host in ["127.0.0.1", "127.0.0.2", "[::ffff:127.0.0.1]"] {
            never(&format!("http://{host}:{port}"));
        }
    }
    furt.post(&registration("net", "http://127.0.0.2:7000", &["GET /x a:b"])).status(200);
}

#[test]
fn urls_and_names_that_are_none_are_refused() {
    let furt = World::start();
    let upstream = Upstream::start("any");
    let url = upstream.url();
    for bad in [
        "",
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "http://",
        "http://u:p@127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1/?q=1",
        "http://127.0.0.1/#f",
        "http://127.0.0.1/../x",
        "http://127.0.0.1/%2e%2e/x",
        "http://127.0.0.1\r\nX: y",
        "http://127.0.0.1 ",
        "unix:/tmp/x",
    ] {
        refused(&furt, &registration("sagjan", bad, &["GET /x a:b"]), 400, "VALIDATION_ERROR", "url");
    }
    for bad in ["", "Sagjan", "-a", "a_b", "a.b", "a b", "ä", &"a".repeat(64), "../x", "a\n"] {
        refused(&furt, &registration(bad, &url, &["GET /x a:b"]), 400, "VALIDATION_ERROR", "service");
        let mut body = registration("sagjan", &url, &["GET /x a:b"]);
        body["instance"] = bad.into();
        if !bad.is_empty() {
            refused(&furt, &body, 400, "VALIDATION_ERROR", "instance");
        }
    }
    for bad in ["health", "http://127.0.0.1/health", "/../x", "/a//b", "/%2e%2e", "/a b", "/a#b", "//x", &format!("/{}", "a".repeat(1024))]
    {
        let mut body = registration("sagjan", &url, &["GET /x a:b"]);
        body["health_endpoint"] = bad.into();
        refused(&furt, &body, 400, "VALIDATION_ERROR", "health_endpoint");
    }
    for (field, bad) in [("weight", json!(0)), ("weight", json!(1001)), ("protocol", json!("http3")), ("protocol", json!("HTTP1"))] {
        let mut body = registration("sagjan", &url, &["GET /x a:b"]);
        body[field] = bad;
        refused(&furt, &body, 400, "VALIDATION_ERROR", field);
    }
}

#[test]
fn methods_patterns_and_permissions_that_are_none_are_refused() {
    let furt = Conf::new().gateway("registration_rate = 100000/s").start();
    let upstream = Upstream::start("any");
    let url = upstream.url();
    let check = |route: Value, field: &str| {
        refused(&furt, &one("sagjan", &url, route), 400, "VALIDATION_ERROR", &format!("routes[0].{field}"));
    };
    for bad in ["", "get", "G ET", "CONNECT", "GET\r\n", "GET,POST", "**", &"A".repeat(33)] {
        check(json!({"method": bad, "path": "/x", "permission": "a:b"}), "method");
    }
    let (long, deep) = (format!("/{}", "a".repeat(1024)), "/a".repeat(33));
    let stars = "/*".repeat(9);
    for bad in [
        "",
        "x",
        "//",
        "/a//b",
        "/a/../b",
        "/a/%2e%2e/b",
        "/./a",
        "/a/..;x/b",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a#b",
        "/a?b",
        "/a%zz",
        "/a%00",
        "/a*",
        "/*a/b",
        "/a/**",
        "/ä",
        "/a b",
        "/%C0%AE",
        &long,
        &deep,
        &stars,
    ] {
        check(json!({"method": "GET", "path": bad, "permission": "a:b"}), "path");
    }
    for bad in ["*", "a:*", "*:b", "a b:c", "a:b\n", &"a".repeat(129)] {
        check(json!({"method": "GET", "path": "/x", "permission": bad}), "permission");
    }
    for bad in ["a b", "a/b", "a:80", "*", "*.", "a.*.b", "http://a"] {
        check(json!({"method": "GET", "path": "/x", "permission": "a:b", "host": bad}), "host");
    }
    for bad in ["soon", "-1", "0"] {
        check(json!({"method": "GET", "path": "/x", "permission": "a:b", "timeout": bad}), "timeout");
    }
    // No method and pattern twice, in any spelling.
    let twice = registration("sagjan", &url, &["GET /a a:b", "GET /%61 a:c"]);
    let answer = furt.post(&twice);
    answer.refused(400, "VALIDATION_ERROR");
    assert!(answer.details().iter().any(|(field, _)| field.starts_with("routes[1]")), "{answer:?}");
    let none = json!({"service": "sagjan", "url": url, "routes": []});
    refused(&furt, &none, 400, "VALIDATION_ERROR", "routes");
    let many: Vec<_> = (0..1_001).map(|number| comments("GET", &format!("/x/{number}"))).collect();
    refused(&furt, &json!({"service": "sagjan", "url": url, "routes": many}), 400, "VALIDATION_ERROR", "routes");
    let most: Vec<_> = (0..1_000).map(|number| comments("GET", &format!("/x/{number}"))).collect();
    furt.post(&json!({"service": "sagjan", "url": url, "routes": most})).status(200);
}

#[test]
fn instances_are_counted_against_the_grant() {
    let furt = world();
    let upstream = Upstream::start("any");
    let routes = &["GET /api/comments/* comments:read"];
    furt.register_instance("sagjan", "one", &upstream.url(), routes);
    furt.register_instance("sagjan", "two", &upstream.url(), routes);
    let mut third = registration("sagjan", &upstream.url(), routes);
    third["instance"] = "three".into();
    let answer = furt.post(&third);
    answer.refused(403, "PERMISSION_NOT_GRANTED");
    // Renewing is no new one.
    furt.register_instance("sagjan", "one", &upstream.url(), routes);
    Request::new("DELETE", "/internal/services/sagjan/instances/two").send(furt.internal).status(200);
    furt.post(&third).status(200);
}

#[test]
fn a_request_that_came_through_a_proxy_cannot_register() {
    let furt = World::start();
    let upstream = Upstream::start("any");
    let before = furt.registry();
    let body = registration("sagjan", &upstream.url(), &["GET /x a:b"]).to_string();
    for (name, value) in
        [("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1"), ("X-Real-IP", "127.0.0.1"), ("x-forwarded-for", "")]
    {
        Request::post("/internal/register-service", &body).field(name, value).send(furt.internal).refused(403, "REGISTRATION_REFUSED");
        Request::get("/internal/services").field(name, value).send(furt.internal).status(403);
        Request::get("/health").field(name, value).send(furt.internal).status(403);
    }
    let request = grpc_registration("sagjan", &upstream.url(), &["GET /x a:b"]);
    let status = furt.grpc(async |mut client| {
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("x-forwarded-for", "127.0.0.1".parse().expect("a value"));
        client.register(request).await
    });
    assert_eq!(status.expect_err("refused").code(), tonic::Code::PermissionDenied);
    assert_eq!(furt.registry(), before);
}

#[test]
fn a_peer_outside_the_allow_list_gets_nothing_from_the_internal_listener() {
    let furt = Conf::new().gateway("allow_registration_from = 10.0.0.0/8").start();
    let body = registration("sagjan", "http://127.0.0.1:7812", &["GET /x a:b"]).to_string();
    Request::post("/internal/register-service", body).send(furt.internal).refused(403, "REGISTRATION_REFUSED");
    for path in ["/health", "/metrics", "/internal/services", "/", "/nowhere"] {
        Request::get(path).send(furt.internal).status(403);
    }
    let request = grpc_registration("sagjan", "http://127.0.0.1:7812", &["GET /x a:b"]);
    let status = furt.grpc(async |mut client| client.register(request).await).expect_err("refused");
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    furt.get("/x").refused(404, "NOT_FOUND");
}

#[test]
fn a_grant_may_narrow_the_peers_and_ask_for_a_token() {
    let digest = sha256("token-of-sagjan");
    let grants =
        format!("[service \"far\"]\npermissions = *\nfrom = 10.0.0.0/8\n[service \"sagjan\"]\npermissions = *\ntoken_sha256 = {digest}\n");
    let furt = Conf::new().grants(&grants).start();
    let upstream = Upstream::start("any");
    let before = furt.registry();
    furt.post(&registration("far", &upstream.url(), &["GET /x a:b"])).refused(403, "REGISTRATION_REFUSED");
    let body = registration("sagjan", &upstream.url(), &["GET /x a:b"]).to_string();
    let request = Request::post("/internal/register-service", &body);
    // A loopback peer is operator, but being one does not replace the grant's token.
    request.send(furt.internal).refused(403, "REGISTRATION_REFUSED");
    request.clone().field("Authorization", "Bearer wrong").send(furt.internal).refused(403, "REGISTRATION_REFUSED");
    request.clone().field("Authorization", "token-of-sagjan").send(furt.internal).refused(403, "REGISTRATION_REFUSED");
    assert_eq!(furt.registry(), before);
    request.field("Authorization", "Bearer token-of-sagjan").send(furt.internal).status(200);
    assert!(furt.log().iter().all(|line| !line.contains("token-of-sagjan")), "a token in the log");
}

#[test]
fn loopback_without_its_privilege_needs_a_token_for_everything_but_registering() {
    let tokens = format!(
        "[token \"ops\"]\nrole = operator\nsha256 = {}\n[token \"eyes\"]\nrole = reader\nsha256 = {}\n",
        sha256("operators-secret"),
        sha256("readers-secret")
    );
    let furt = Conf::new().gateway("loopback_is_operator = false").more(&tokens).start();
    let upstream = Upstream::start("any");
    let list = Request::get("/internal/services");
    let drop = Request::new("DELETE", "/internal/services/sagjan");
    furt.post(&registration("sagjan", &upstream.url(), &["GET /x comments:read"])).status(200);
    list.send(furt.internal).refused(401, "UNAUTHORIZED");
    list.clone().field("Authorization", "Bearer nonsense").send(furt.internal).refused(401, "UNAUTHORIZED");
    list.clone().field("Authorization", "Bearer readers-secret").send(furt.internal).status(200);
    list.field("Authorization", "Bearer operators-secret").send(furt.internal).status(200);
    drop.send(furt.internal).refused(401, "UNAUTHORIZED");
    drop.clone().field("Authorization", "Bearer readers-secret").send(furt.internal).refused(403, "FORBIDDEN");
    furt.get("/x").status(200);
    drop.field("Authorization", "Bearer operators-secret").send(furt.internal).status(200);
    furt.get("/x").refused(404, "NOT_FOUND");
}

#[test]
fn browsers_are_kept_out() {
    let furt = World::start();
    let upstream = Upstream::start("any");
    let before = furt.registry();
    let body = registration("sagjan", &upstream.url(), &["GET /x a:b"]).to_string();
    let request = Request::post("/internal/register-service", &body);
    // A name that an attacker lets point here (DNS rebinding), and requests from another site's page.
    request.clone().host("evil.example").send(furt.internal).status(403);
    request.clone().field("Origin", "https://evil.example").send(furt.internal).status(403);
    request.clone().field("Sec-Fetch-Site", "cross-site").send(furt.internal).status(403);
    assert_eq!(furt.registry(), before);
    request.host(&format!("localhost:{}", furt.internal.port())).send(furt.internal).status(200);
}

#[test]
fn registering_too_often_is_told_when_to_come_back() {
    let furt = Conf::new().gateway("registration_rate = 3/min").start();
    let upstream = Upstream::start("any");
    let body = registration("sagjan", &upstream.url(), &["GET /x comments:read"]);
    for _ in 0..3 {
        furt.post(&body).status(200);
    }
    let answer = furt.post(&body);
    answer.refused(429, "RATE_LIMIT_EXCEEDED");
    let seconds: u32 = answer.field("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
    // Per service name: another one is not held up, and the routes stay.
    furt.post(&registration("obr", &upstream.url(), &["GET /y comments:read"])).status(200);
    furt.get("/x").status(200);
    let request = grpc_registration("sagjan", &upstream.url(), &["GET /x comments:read"]);
    let status = furt.grpc(async |mut client| client.register(request).await).expect_err("refused");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    eventually("it is counted", || {
        Request::get("/metrics").send(furt.internal).text().lines().any(|line| line.starts_with("furt_registrations_total{")).then_some(())
    });
}

#[test]
fn the_public_listener_knows_no_internal_path() {
    let furt = World::start();
    let upstream = Upstream::start("any");
    furt.register("wide", &upstream.url(), &["* /* comments:read"]);
    let body = registration("sagjan", &upstream.url(), &["GET /x a:b"]).to_string();
    for path in ["/internal/register-service", "/internal/services", "/internal/", "/internal", "/internal/%72egister-service"] {
        Request::post(path, &body).key(WEBSITE_KEY).send(furt.public).refused(404, "NOT_FOUND");
    }
    assert!(upstream.requests().is_empty(), "not even for a service that has every path");
    assert_eq!(furt.registry()["services"].as_array().map(Vec::len), Some(1));
    eventually("the log says where it lives", || furt.logged(&[&furt.internal.to_string(), "internal"]).then_some(()));
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
