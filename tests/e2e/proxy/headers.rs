//! Which headers go to the service and which come back.

use crate::{
    client::{Answer, Client, Request},
    upstream::{Reply, Seen, Upstream, answer},
    world::{Conf, WEBSITE_KEY, World},
};

const ROUTES: &[&str] = &["* /h comments:read", "* /h/* comments:read"];

fn world(conf: Conf, upstream: &Upstream) -> World {
    let furt = conf.start();
    furt.register("headers", &upstream.url(), ROUTES);
    furt
}

/// Sends `fields` and gives what the service saw.
fn seen(furt: &World, upstream: &Upstream, fields: &[(&str, &str)]) -> Seen {
    let request = fields.iter().fold(Request::get("/h").key(WEBSITE_KEY), |request, (name, value)| request.field(name, value));
    let answer = furt.send(&request);
    assert_eq!(answer.status, 200, "{answer:?}");
    upstream.last()
}

#[test]
fn the_service_is_told_who_asked_and_on_which_way() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new().server("trusted_proxies = 192.0.2.1"), &upstream);
    let request =
        Request::get("/h").key(WEBSITE_KEY).host("shop.example.org").field("X-Custom", "a").field("x-custom", "b").field("Cookie", "c=d");
    let answer = furt.send(&request);
    let seen = upstream.request();
    assert_eq!(seen.field("host"), Some("shop.example.org"), "as the client sent it");
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some("shop.example.org"));
    assert!(seen.field("via").is_some_and(|via| via.starts_with("1.1 ")), "{seen:?}");
    assert_eq!(seen.values("x-custom"), ["a", "b"]);
    assert_eq!(seen.field("cookie"), Some("c=d"));
    assert_eq!(seen.field("x-api-key-name"), Some("Website"));
    let id = seen.field("x-request-id").expect("an id");
    assert_eq!(answer.field("x-request-id"), Some(id), "the same id to both");
    let trace = seen.field("traceparent").expect("a trace");
    let lengths: Vec<_> = trace.split('-').map(str::len).collect();
    assert_eq!(lengths, [2, 32, 16, 2], "{trace}");
}

#[test]
fn forwarding_headers_are_believed_only_from_a_trusted_proxy() {
    let upstream = Upstream::start("headers");
    let claims = [
        ("X-Forwarded-For", "192.0.2.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outer.example"),
        ("X-Request-ID", "id-of-the-proxy"),
    ];
    // By default 127.0.0.1 is one.
    let furt = world(Conf::new(), &upstream);
    let believed = seen(&furt, &upstream, &claims);
    assert_eq!(believed.field("x-forwarded-for"), Some("192.0.2.9, 127.0.0.1"));
    assert_eq!(believed.field("x-forwarded-proto"), Some("https"));
    assert_eq!(believed.field("x-forwarded-host"), Some("outer.example"));
    assert_eq!(believed.field("x-request-id"), Some("id-of-the-proxy"));
    drop(furt);

    let furt = world(Conf::new().server("trusted_proxies = 192.0.2.1"), &upstream);
    let replaced = seen(&furt, &upstream, &[&claims[..], &[("Forwarded", "for=192.0.2.9"), ("X-Real-IP", "192.0.2.9")]].concat());
    assert_eq!(replaced.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(replaced.field("x-forwarded-proto"), Some("http"));
    assert_eq!(replaced.field("x-forwarded-host"), Some(furt.public.to_string().as_str()));
    assert!(replaced.field("x-request-id").is_some_and(|id| id != "id-of-the-proxy"), "{replaced:?}");
}

#[test]
fn a_request_id_that_could_break_a_log_is_replaced() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new(), &upstream);
    let long = "a".repeat(4_000);
    for bad in ["", "a b\"c", &long] {
        let seen = seen(&furt, &upstream, &[("X-Request-ID", bad)]);
        assert!(seen.field("x-request-id").is_some_and(|id| !id.is_empty() && id != bad && id.len() <= 200), "{seen:?}");
    }
    let seen = seen(&furt, &upstream, &[("X-Request-ID", "one"), ("X-Request-ID", "two")]);
    assert_eq!(seen.values("x-request-id").len(), 1);
}

#[test]
fn a_valid_trace_is_continued_and_an_invalid_one_replaced() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new(), &upstream);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let continued = seen(&furt, &upstream, &[("traceparent", trace), ("tracestate", "vendor=value")]);
    let parent = continued.field("traceparent").expect("a trace");
    assert_eq!((&parent[..36], &parent[52..]), (&trace[..36], &trace[52..]), "the same trace and flags: {parent}");
    assert_eq!(continued.field("tracestate"), Some("vendor=value"));
    for bad in [
        "nonsense",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        let replaced = seen(&furt, &upstream, &[("traceparent", bad)]);
        let parent = replaced.field("traceparent").expect("a trace");
        assert_ne!(parent, bad);
        assert_eq!(parent.len(), 55, "{parent}");
    }
    let two = seen(&furt, &upstream, &[("traceparent", trace), ("traceparent", "nonsense")]);
    assert_eq!(two.values("traceparent").len(), 1);
}

#[test]
fn hop_by_hop_headers_and_those_named_by_connection_are_not_forwarded() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new(), &upstream);
    let seen = seen(
        &furt,
        &upstream,
        &[
            ("Connection", "keep-alive, X-Drop, x-api-key-name, x-request-id, host, via, authorization"),
            ("X-Drop", "me"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eA=="),
            ("TE", "trailers, deflate"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
            ("Trailer", "X-Later"),
            ("X-Keep", "me"),
        ],
    );
    for gone in ["x-drop", "keep-alive", "proxy-connection", "upgrade", "http2-settings"] {
        assert_eq!(seen.values(gone), [""; 0], "{gone}: {seen:?}");
    }
    assert!(seen.values("te").iter().all(|te| *te == "trailers"), "{seen:?}");
    assert!(seen.values("connection").iter().all(|value| ["keep-alive", "te"].contains(&value.to_lowercase().as_str())), "{seen:?}");
    // Naming furt's own headers there does not remove them.
    assert_eq!(seen.field("x-api-key-name"), Some("Website"));
    assert!(seen.field("x-request-id").is_some() && seen.field("via").is_some() && seen.field("host").is_some(), "{seen:?}");
    assert_eq!(seen.field("x-keep"), Some("me"));
}

#[test]
fn no_spelling_of_an_identity_header_gets_through() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new().server("trusted_proxies = 192.0.2.1"), &upstream);
    let spellings = [
        "X-API-Key-Name",
        "x-api-key-name",
        "X_API_Key_Name",
        "X.Api.Key.Name",
        "X-API_KEY-NAME",
        "x_api-key.name",
        "X-API-KEY",
        "X_API_Key",
        "X.API.Key",
        "X_Request_ID",
        "X.Request.Id",
        "X_Forwarded_For",
        "X.Forwarded.For",
        "X-Forwarded_Proto",
        "X_Forwarded_Host",
        "trace_parent",
    ];
    for name in spellings {
        if name.eq_ignore_ascii_case("x-api-key") {
            continue;
        }
        let seen = seen(&furt, &upstream, &[(name, "forged-by-the-client")]);
        let forged: Vec<_> = seen.fields.iter().filter(|(_, value)| value.contains("forged-by-the-client")).collect();
        if name == "trace_parent" {
            // No header that furt sets is spelled so by folding: it is the client's own.
            assert_eq!(forged.len(), 1);
            continue;
        }
        assert!(forged.is_empty(), "{name}: {forged:?}");
        assert_eq!(seen.values("x-api-key-name"), ["Website"]);
    }
    // In trailers neither.
    let mut client = Client::new(furt.public);
    let trailers: String = spellings.iter().map(|name| format!("{name}: forged-by-the-client\r\n")).collect();
    client
        .write(format!(
            "POST /h HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\n{trailers}X-Sum: 3\r\n\r\n"
        ))
        .expect("sent");
    let answer = client.read("POST").expect("an answer");
    if answer.status == 200 {
        let seen = upstream.last();
        assert_eq!(seen.body, b"abc");
        let forged: Vec<_> = seen.trailers.iter().filter(|(name, value)| value.contains("forged") && name != "trace_parent").collect();
        assert!(forged.is_empty(), "{forged:?}");
    } else {
        answer.status(400);
    }
    assert!(!String::from_utf8_lossy(&upstream.raw()).contains(WEBSITE_KEY));
    assert_eq!(upstream.faults(), [""; 0]);
}

fn answered(reply: &'static [(&'static str, &'static str)]) -> Answer {
    let upstream = Upstream::with(move |_| Reply::Bytes(answer(201, reply, "made")));
    let furt = world(Conf::new().server("add_headers = X-Frame-Options: DENY"), &upstream);
    furt.get("/h")
}

#[test]
fn the_services_answer_comes_back_with_what_furt_adds() {
    let answer = answered(&[("X-Own", "a"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Server", "sagjan/1")]);
    assert_eq!((answer.status, answer.body.as_slice()), (201, &b"made"[..]));
    assert_eq!(answer.field("x-own"), Some("a"));
    assert_eq!(answer.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).count(), 2);
    assert_eq!(answer.field("server"), Some("sagjan/1"));
    assert_eq!(answer.field("x-gateway"), Some("furt"));
    assert_eq!(answer.field("x-frame-options"), Some("DENY"));
    assert!(answer.field("x-request-id").is_some());
    assert!(answer.field("x-furt-reason").is_none(), "only furt's own errors have one");
    let timing = answer.field("server-timing").expect("timing");
    let duration = |name: &str| {
        let part = timing.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(";dur="));
        part.and_then(|duration| duration.parse::<f64>().ok())
    };
    assert!(duration("gateway").is_some_and(|ms| ms >= 0.0) && duration("upstream").is_some_and(|ms| ms > 0.0), "{timing}");
}

#[test]
fn hop_by_hop_headers_of_the_answer_stay_behind_and_furts_own_cannot_be_claimed() {
    let answer = answered(&[
        ("Connection", "keep-alive, X-Secret"),
        ("X-Secret", "hop"),
        ("Keep-Alive", "timeout=5"),
        ("X-Gateway", "somebody"),
        ("X-Request-ID", "of-the-service"),
        ("X-Furt-Reason", "forged"),
    ]);
    for gone in ["x-secret", "keep-alive", "x-furt-reason"] {
        assert_eq!(answer.field(gone), None, "{gone}: {answer:?}");
    }
    assert_eq!(answer.field("x-gateway"), Some("furt"));
    assert!(answer.field("x-request-id").is_some_and(|id| id != "of-the-service"), "{answer:?}");
}

#[test]
fn furts_own_errors_have_the_envelope_and_a_reason() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new(), &upstream);
    for (request, status, code) in [
        (Request::get("/nowhere"), 404, "NOT_FOUND"),
        (Request::get("/h"), 401, "UNAUTHORIZED"),
        (Request::get("/h/%2e%2e/x").key(WEBSITE_KEY), 400, "MALFORMED_REQUEST"),
    ] {
        let answer = furt.send(&request);
        answer.refused(status, code);
        assert_eq!(answer.field("x-gateway"), Some("furt"));
        assert!(answer.field("x-furt-reason").is_some_and(|reason| !reason.is_empty()), "{answer:?}");
        assert_eq!(answer.field("x-request-id"), answer.json()["request_id"].as_str());
    }
}

#[test]
fn a_request_that_has_passed_here_is_a_loop() {
    let upstream = Upstream::start("headers");
    let furt = world(Conf::new(), &upstream);
    furt.get("/h").status(200);
    let own = upstream.request().field("via").expect("Via").to_owned();
    let other = seen(&furt, &upstream, &[("Via", "1.0 somebody, 1.1 else")]);
    let vias = other.values("via").join(", ");
    assert!(vias.starts_with("1.0 somebody, 1.1 else, 1.1 "), "{vias}");
    let before = upstream.requests().len();
    furt.send(&Request::get("/h").key(WEBSITE_KEY).field("Via", &own)).refused(508, "LOOP_DETECTED");
    furt.send(&Request::get("/h").key(WEBSITE_KEY).field("Via", &format!("1.0 somebody, {own}"))).refused(508, "LOOP_DETECTED");
    assert_eq!(upstream.requests().len(), before);
}
