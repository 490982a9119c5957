use furt_proto::names::RouteHost;
use proptest::prelude::*;

use super::*;
use crate::table::{Access, Declared};

fn route(set: &[(&'static str, &'static str)]) -> Route {
    Route {
        service: "sagjan".into(),
        slot: 0,
        host: RouteHost::Any,
        method: "GET".parse().unwrap(),
        pattern: "/*".parse().unwrap(),
        access: Access::AnyKey,
        timeout: None,
        deadline: None,
        instances: Declared::All,
        is_static: false,
        set_headers: set.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect(),
    }
}

fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

struct With {
    trusted: bool,
    version: Version,
    set: &'static [(&'static str, &'static str)],
    via: Via,
}

impl Default for With {
    fn default() -> Self {
        Self { trusted: false, version: Version::HTTP_11, set: &[], via: Via::new() }
    }
}

impl With {
    fn forward(&self, client: HeaderMap) -> HeaderMap {
        let with = Forwarding {
            route: &route(self.set),
            caller: Some(&HeaderValue::from_static("Website")),
            request_id: &HeaderValue::from_static("01J"),
            host: &HeaderValue::from_static("example.org"),
            peer: &HeaderValue::from_static("192.0.2.1"),
            trusted: self.trusted,
            version: self.version,
            via: &self.via,
            secure: false,
        };
        forward(&client, &with)
    }
}

fn all(map: &HeaderMap, name: &str) -> Vec<String> {
    map.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn furt_s_own_fields_replace_the_client_s_in_every_spelling() {
    let out = With::default().forward(fields(&[
        ("host", "evil"),
        ("x-api-key", "secret"),
        ("x-api-key-name", "root"),
        ("x_api_key_name", "root"),
        ("x.api.key.name", "root"),
        ("x-api_key-name", "root"),
        ("x!api~key|name", "root"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-port", "1"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-request-id", "mine"),
        ("transfer_encoding", "chunked"),
        ("content.length", "7"),
        ("accept", "a"),
        ("accept", "b"),
        ("x_other", "kept"),
    ]));
    let mut names: Vec<_> = out.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "host",
            "traceparent",
            "via",
            "x-api-key-name",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-request-id",
            "x_other"
        ]
    );
    assert_eq!(all(&out, "x-api-key-name"), ["Website"]);
    assert_eq!(all(&out, "x-forwarded-for"), ["192.0.2.1"]);
    assert_eq!(all(&out, "accept"), ["a", "b"]);
    assert_eq!(all(&out, "host"), ["example.org"]);
}

#[test]
fn what_connection_names_ends_here_and_cannot_take_furt_s_own_along() {
    let out = With::default().forward(fields(&[
        ("connection", "close, X-Secret, x-api-key-name, content-length"),
        ("x-secret", "1"),
        ("content-length", "3"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("te", "gzip, trailers"),
        ("trailer", "X-Sum, Content-Length, X_Api_Key"),
    ]));
    assert!(
        !out.contains_key("x-secret")
            && !out.contains_key("upgrade")
            && !out.contains_key("http2-settings")
            && !out.contains_key("keep-alive")
    );
    assert_eq!(all(&out, "x-api-key-name"), ["Website"]);
    assert_eq!(all(&out, "content-length"), ["3"]);
    assert_eq!((all(&out, "te"), all(&out, "connection")), (vec!["trailers".into()], vec![]));
    assert_eq!(all(&out, "trailer"), ["X-Sum"]);
}

#[test]
fn a_trusted_proxy_is_believed_and_added_to() {
    let with = With { trusted: true, ..With::default() };
    let out = with.forward(fields(&[
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "www.example.org"),
        ("via", "1.1 nginx"),
        ("x_forwarded_for", "9.9.9.9"),
    ]));
    assert_eq!(all(&out, "x-forwarded-for"), ["203.0.113.7, 10.0.0.1, 192.0.2.1"]);
    assert_eq!((all(&out, "x-forwarded-proto"), all(&out, "x-forwarded-host")), (vec!["https".into()], vec!["www.example.org".into()]));
    let via = &all(&out, "via")[0];
    assert!(via.starts_with("1.1 nginx, 1.1 furt ("), "{via}");
    assert!(!out.contains_key("x_forwarded_for"));
    let out = with.forward(fields(&[("x-forwarded-proto", "gopher")]));
    assert_eq!(all(&out, "x-forwarded-proto"), ["http"]);
}

#[test]
fn furt_knows_its_own_words_again_and_lets_another_furt_pass() {
    let via = Via::new();
    let out = With { via: Via::new(), ..With::default() }.forward(HeaderMap::new());
    assert!(!via.is_in(&out), "another furt's");
    let with = With::default();
    let own = with.forward(HeaderMap::new());
    assert!(with.via.is_in(&own));
    assert!(via.is_in(&fields(&[("via", "1.0 fred, 1.1 furt")])));
    assert!(!via.is_in(&fields(&[("via", "1.1 furtive, 1.1 nginx (furt)")])));
}

#[test]
fn a_valid_traceparent_is_continued_and_any_other_replaced() {
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let out = With::default().forward(fields(&[("traceparent", valid), ("tracestate", "a=b")]));
    assert_eq!((all(&out, "traceparent"), all(&out, "tracestate")), (vec![valid.to_owned()], vec!["a=b".to_owned()]));
    let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    let upper = valid.to_uppercase();
    let longer = format!("{valid}-x");
    for bad in ["", "x", zeros, &upper, &longer, "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
        let out = With::default().forward(fields(&[("traceparent", bad), ("tracestate", "a=b")]));
        let fresh = &all(&out, "traceparent")[0];
        assert!(fresh != bad && valid_traceparent(fresh.as_bytes()), "{bad} became {fresh}");
        assert!(!out.contains_key("tracestate"));
    }
    let twice = With::default().forward(fields(&[("traceparent", valid), ("traceparent", valid)]));
    assert!(all(&twice, "traceparent") != [valid, valid] && all(&twice, "traceparent").len() == 1);
}

#[test]
fn a_route_s_own_fields_win_and_cookies_of_http2_are_one() {
    let with = With { set: &[("x-api-key", "mail-secret"), ("x-tenant", "a")], version: Version::HTTP_2, ..With::default() };
    let out = with.forward(fields(&[("x-api-key", "client"), ("X_Tenant", "b"), ("x-tenant", "b"), ("cookie", "a=1"), ("cookie", "b=2")]));
    assert_eq!((all(&out, "x-api-key"), all(&out, "x-tenant")), (vec!["mail-secret".into()], vec!["a".into()]));
    assert!(!out.contains_key("x_tenant"));
    assert_eq!(all(&out, "cookie"), ["a=1; b=2"]);
}

#[test]
fn the_client_is_the_rightmost_address_that_is_not_a_trusted_proxy() {
    let trusted: Networks = "127.0.0.1, 10.0.0.0/8".parse().unwrap();
    let check = |peer: &str, forwarded: &[&str], expected: &str| {
        let pairs: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
        assert_eq!(client_address(&fields(&pairs), peer.parse().unwrap(), &trusted), expected.parse::<IpAddr>().unwrap(), "{forwarded:?}");
    };
    check("192.0.2.1", &["203.0.113.7"], "192.0.2.1");
    check("127.0.0.1", &[], "127.0.0.1");
    check("127.0.0.1", &["203.0.113.7"], "203.0.113.7");
    check("127.0.0.1", &["1.1.1.1, 203.0.113.7, 10.0.0.1"], "203.0.113.7");
    check("127.0.0.1", &["1.1.1.1", "203.0.113.7"], "203.0.113.7");
    check("127.0.0.1", &["203.0.113.7:4711"], "203.0.113.7");
    check("127.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1");
    check("127.0.0.1", &["203.0.113.7, nonsense"], "0.0.0.0");
    check("127.0.0.1", &["unknown"], "0.0.0.0");
    check("127.0.0.1", &["10.0.0.1"], "10.0.0.1");
}

#[test]
fn an_answer_loses_what_belongs_to_its_connection() {
    let mut answer = fields(&[
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x-sum"),
        ("etag", "1"),
    ]);
    strip_answer(&mut answer).unwrap();
    let mut names: Vec<_> = answer.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["etag", "trailer"]);
    for bad in [&["gzip, chunked"][..], &["identity"], &["chunked", "chunked"], &["gzip"]] {
        let pairs: Vec<_> = bad.iter().map(|value| ("transfer-encoding", *value)).collect();
        assert!(strip_answer(&mut fields(&pairs)).is_err(), "{bad:?}");
    }
}

#[test]
fn server_timing_has_tenths_of_milliseconds() {
    assert_eq!(server_timing(120_000, Some(4_860_000)), "gateway;dur=0.1, upstream;dur=4.9");
    assert_eq!(server_timing(0, None), "gateway;dur=0.0");
    assert_eq!(server_timing(u64::MAX, Some(123_456_000_000)), "gateway;dur=18446744073709.5, upstream;dur=123456.0");
}

#[test]
fn trailers_neither_frame_nor_route_nor_identify() {
    let out = clean_trailers(fields(&[
        ("x-sum", "1"),
        ("x-sum", "2"),
        ("grpc-status", "0"),
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("host", "evil"),
        ("x-api-key-name", "root"),
        ("X_API_KEY_NAME", "root"),
        ("authorization", "x"),
        ("connection", "close"),
    ]));
    assert_eq!(out, fields(&[("x-sum", "1"), ("x-sum", "2"), ("grpc-status", "0")]));
}

#[test]
fn connection_does_not_hide_who_a_trusted_proxy_says_it_is() {
    let proxied = |trusted| {
        let with = With { trusted, ..With::default() };
        with.forward(fields(&[
            ("connection", "X-Forwarded-For, x-forwarded-proto, Forwarded, X-Real-IP, Via, X-Secret"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
            ("via", "1.1 nginx"),
            ("x-secret", "1"),
        ]))
    };
    let out = proxied(true);
    assert_eq!(all(&out, "x-forwarded-for"), ["203.0.113.7, 192.0.2.1"]);
    assert_eq!(all(&out, "x-forwarded-proto"), ["https"]);
    assert_eq!((all(&out, "forwarded"), all(&out, "x-real-ip")), (vec!["for=203.0.113.7".into()], vec!["203.0.113.7".into()]));
    assert!(all(&out, "via")[0].starts_with("1.1 nginx, ") && !out.contains_key("x-secret"));
    let out = proxied(false);
    assert_eq!(all(&out, "x-forwarded-for"), ["192.0.2.1"]);
    assert!(!out.contains_key("forwarded") && !out.contains_key("x-real-ip"));
}

#[test]
fn an_answer_has_one_length_or_is_chunked() {
    let check = |given: &[(&str, &str)], expected: Option<&[&str]>| {
        let mut answer = fields(given);
        let stripped = strip_answer(&mut answer);
        let lengths = stripped.map(|()| all(&answer, "content-length"));
        assert_eq!(
            lengths.as_deref().ok(),
            expected.map(|lengths| lengths.iter().map(ToString::to_string).collect::<Vec<_>>()).as_deref(),
            "{given:?}"
        );
    };
    check(&[("content-length", "3")], Some(&["3"]));
    check(&[("content-length", "3, 3")], Some(&["3"]));
    check(&[("content-length", "3"), ("content-length", "3,3")], Some(&["3"]));
    for odd in ["3, 5", "+3", "3;", "a", ","] {
        check(&[("content-length", odd)], None);
    }
    check(&[("content-length", "3"), ("content-length", "5")], None);
    check(&[("content-length", "3"), ("transfer-encoding", "chunked")], Some(&[]));
}

/// Names as an application behind furt might read them.
fn folded(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_spelling_lets_a_client_s_own_identity_through(
        separators in proptest::collection::vec("[-_.!|~^$%&'*+`#]", 3),
        upper in any::<u16>(),
        connection in "(close|keep-alive|X-API-Key-Name|x-request-id|[a-z]{1,3})(, ?(te|x-api-key-name|host|via))?",
    ) {
        let parts = ["x", "api", "key", "name"];
        let mut name = parts[0].to_owned();
        for (separator, part) in separators.iter().zip(&parts[1..]) {
            name.push_str(separator);
            name.push_str(part);
        }
        let name: String = name.char_indices().map(|(at, c)| if upper >> (at % 16) & 1 == 1 { c.to_ascii_uppercase() } else { c }).collect();
        for trusted in [false, true] {
            let with = With { trusted, ..With::default() };
            let out = with.forward(fields(&[(&name, "root"), ("connection", &connection), (&name, "root")]));
            let seen: Vec<_> = out.iter().filter(|(name, _)| folded(name.as_str()) == "X_API_KEY_NAME").map(|(_, value)| value.to_str().unwrap()).collect();
            prop_assert_eq!(seen, ["Website"]);
            prop_assert!(out.contains_key("via") && out.contains_key("x-request-id") && out.contains_key("host"));
        }
    }
}
