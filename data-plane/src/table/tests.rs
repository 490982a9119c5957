//! The table against a naive reference: every route looked at, by the vocabulary's own rules.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;

fn route(service: &str, host: &str, method: &str, pattern: &str, is_static: bool) -> Arc<Route> {
    Arc::new(Route {
        service: service.into(),
        slot: 0,
        host: host.parse().unwrap(),
        method: method.parse().unwrap(),
        pattern: pattern.parse().unwrap(),
        access: Access::AnyKey,
        timeout: None,
        deadline: None,
        instances: Declared::All,
        is_static,
        set_headers: Vec::new(),
    })
}

fn table<'a>(routes: impl IntoIterator<Item = &'a Arc<Route>>) -> Table {
    let mut table = Table::default();
    for route in routes {
        table.insert(route.clone());
    }
    table
}

/// What a lookup says, to compare: the route, or the methods, or nothing.
fn said(lookup: Lookup<'_>) -> (Option<Arc<Route>>, Vec<String>) {
    match lookup {
        Lookup::Found(route) => (Some(route.clone()), Vec::new()),
        Lookup::MethodNotAllowed(methods) => (None, methods.into_iter().map(str::to_owned).collect()),
        Lookup::NotFound => (None, Vec::new()),
    }
}

/// DESIGN §8 read aloud.
fn naive(routes: &[Arc<Route>], host: &str, method: &str, path: &str) -> (Option<Arc<Route>>, Vec<String>) {
    let rank = |route: &Route| match route.method.as_str() {
        own if own == method => Some(0),
        "GET" if method == "HEAD" => Some(1),
        "*" => Some(2),
        _ => None,
    };
    let known: Vec<_> = routes.iter().filter(|route| route.pattern.matches(path) && route.host.fits(host)).collect();
    let best = known.iter().filter(|route| rank(route).is_some()).min_by(|one, two| {
        let place = |route: &Route| (Reverse(route.host.closeness()), rank(route));
        (!one.is_static).cmp(&!two.is_static).then(one.pattern.specificity(&two.pattern)).then(place(one).cmp(&place(two)))
    });
    let mut methods: Vec<String> = known.iter().map(|route| route.method.to_string()).collect();
    if methods.iter().any(|method| method == "GET") {
        methods.push("HEAD".into());
    }
    methods.sort();
    methods.dedup();
    match best {
        Some(best) => (Some((**best).clone()), Vec::new()),
        None => (None, methods),
    }
}

const HOSTS: [&str; 7] = ["", "x.org", "a.x.org", "b.a.x.org", "x.net", ".org", "axorg"];
const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "PUT"];

fn any_route() -> impl Strategy<Value = Arc<Route>> {
    let host = prop_oneof![4 => Just(""), 1 => Just("x.org"), 1 => Just("*.org"), 1 => Just("*.x.org"), 1 => Just("a.x.org")];
    let method = prop_oneof![3 => Just("GET"), 2 => Just("POST"), 2 => Just("*"), 1 => Just("HEAD")];
    let pattern = prop_oneof![20 => "(/(a|b|\\*)){1,4}/?", 1 => Just("/".to_owned())];
    (0..4u8, host, method, pattern, prop::bool::weighted(0.15))
        .prop_map(|(service, host, method, pattern, is_static)| route(&format!("s{service}"), host, method, &pattern, is_static))
}

/// Routes as the registry and furt.conf admit them: of one host, method and pattern one route, and
/// of one host and pattern `*` beside other methods only within a service.
fn any_routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    prop::collection::vec(any_route(), 0..30).prop_map(|routes| {
        let mut admitted: Vec<Arc<Route>> = Vec::new();
        for route in routes {
            let meets = |own: &Arc<Route>| {
                own.is_static == route.is_static
                    && own.host == route.host
                    && own.pattern == route.pattern
                    && own.method.meets(&route.method)
            };
            let blocked = admitted.iter().any(|own| meets(own) && (own.service != route.service || own.method == route.method));
            if !blocked {
                admitted.push(route);
            }
        }
        admitted
    })
}

/// A path that a few of the patterns of [`any_route`] match.
fn any_path() -> impl Strategy<Value = String> {
    prop_oneof![20 => "(/(a|b|c)){1,6}/?", 1 => Just("/".to_owned())]
}

fn agrees(table: &Table, routes: &[Arc<Route>], paths: &[String]) -> Result<(), TestCaseError> {
    prop_assert_eq!(table.len(), routes.len());
    for path in paths {
        for host in HOSTS {
            for method in METHODS {
                let (found, expected) = (said(table.find(host, method, path)), naive(routes, host, method, path));
                prop_assert_eq!(found, expected, "{} {} {}", host, method, path);
            }
            let known = routes.iter().any(|route| route.pattern.matches(path) && route.host.fits(host));
            prop_assert_eq!(table.knows(host, path), known, "{} {}", host, path);
        }
        let candidates = table.candidates(path);
        prop_assert_eq!(candidates.len(), routes.iter().filter(|route| route.pattern.matches(path)).count());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn find_agrees_with_looking_at_every_route(
        routes in any_routes(),
        paths in prop::collection::vec(any_path(), 1..6),
        goes in 0..4u8,
    ) {
        let mut changed = table(&routes);
        agrees(&changed, &routes, &paths)?;
        // A service leaves: the rest answers, and the clone from before answers as it did.
        let before = changed.clone();
        let name = format!("s{goes}");
        let (gone, left): (Vec<_>, Vec<_>) = routes.iter().cloned().partition(|route| *route.service == *name);
        for route in &gone {
            changed.remove(route);
        }
        agrees(&changed, &left, &paths)?;
        agrees(&before, &routes, &paths)?;
        // Nothing is left of routes that are gone.
        for route in &left {
            changed.remove(route);
        }
        prop_assert!(changed.is_empty() && changed.fixed.is_empty() && changed.registered.is_empty());
    }

    #[test]
    fn the_order_of_registration_does_not_matter(routes in any_routes(), paths in prop::collection::vec(any_path(), 1..4)) {
        let backwards = table(routes.iter().rev());
        agrees(&backwards, &routes, &paths)?;
    }
}

fn check(routes: &[(&str, &str, &str, &str)], request: (&str, &str, &str), expected: &str) {
    let routes: Vec<_> = routes
        .iter()
        .map(|(service, host, method, pattern)| route(service.trim_start_matches('!'), host, method, pattern, service.starts_with('!')))
        .collect();
    let table = table(&routes);
    let (host, method, path) = request;
    let said = match table.find(host, method, path) {
        Lookup::Found(route) => format!("{} {}", route.method, route.pattern),
        Lookup::MethodNotAllowed(methods) => format!("405 {}", methods.join(", ")),
        Lookup::NotFound => "404".into(),
    };
    assert_eq!(said, expected, "{routes:?} {request:?}");
}

#[test]
fn the_seeds_wildcards_match() {
    let sagjan = [("sagjan", "", "GET", "/api/comments/*"), ("sagjan", "", "GET", "/api/comments/*/reply")];
    check(&sagjan, ("", "GET", "/api/comments/test-post"), "GET /api/comments/*");
    check(&sagjan, ("", "GET", "/api/comments/abc123/reply"), "GET /api/comments/*/reply");
    check(&sagjan, ("", "GET", "/api/comments/abc123/other"), "GET /api/comments/*");
    check(&sagjan, ("", "GET", "/api/comments"), "404");
    check(&sagjan, ("", "GET", "/api/comments/"), "404");
    check(&sagjan, ("", "HEAD", "/api/comments/a"), "GET /api/comments/*");
    check(&sagjan, ("", "POST", "/api/comments/a"), "405 GET, HEAD");
}

#[test]
fn a_literal_prefix_never_hides_a_matching_wildcard() {
    let routes = [("a", "", "GET", "/a/b/c"), ("b", "", "GET", "/a/*/d"), ("c", "", "GET", "/*")];
    check(&routes, ("", "GET", "/a/b/d"), "GET /a/*/d");
    check(&routes, ("", "GET", "/a/b/e"), "GET /*");
    // Nor does a more specific pattern of another method or host.
    let routes = [("a", "", "POST", "/a/b"), ("b", "other.org", "GET", "/a/b"), ("c", "", "GET", "/a/*")];
    check(&routes, ("x.org", "GET", "/a/b"), "GET /a/*");
    check(&routes, ("x.org", "PUT", "/a/b"), "405 GET, HEAD, POST");
}

#[test]
fn static_before_registered_then_pattern_then_host_then_method() {
    check(&[("!s", "", "*", "/*"), ("a", "", "GET", "/a/b")], ("", "GET", "/a/b"), "* /*");
    check(&[("!s", "", "POST", "/*"), ("a", "", "GET", "/a/b")], ("", "GET", "/a/b"), "GET /a/b");
    check(&[("a", "x.org", "GET", "/*"), ("b", "", "*", "/a")], ("x.org", "GET", "/a"), "* /a");
    check(&[("a", "x.org", "*", "/a"), ("b", "", "GET", "/a")], ("x.org", "GET", "/a"), "* /a");
    check(&[("a", "*.org", "*", "/a"), ("b", "*.x.org", "GET", "/a")], ("a.x.org", "GET", "/a"), "GET /a");
    check(&[("a", "", "*", "/a"), ("a", "", "GET", "/a")], ("", "HEAD", "/a"), "GET /a");
    check(&[("a", "", "*", "/a"), ("a", "", "HEAD", "/a")], ("", "HEAD", "/a"), "HEAD /a");
}

#[test]
fn other_hosts_are_not_told() {
    check(&[("a", "x.org", "POST", "/a"), ("b", "*.net", "PUT", "/a")], ("y.org", "GET", "/a"), "404");
    check(&[("a", "x.org", "POST", "/a"), ("b", "*.org", "PUT", "/a")], ("x.org", "GET", "/a"), "405 POST, PUT");
    check(&[("a", "x.org", "POST", "/a")], ("", "GET", "/a"), "404");
}

#[test]
fn odd_input_finds_nothing() {
    for path in ["", "*", "a", "//", "/ä", "/a/b/c/d/e/f/g"] {
        check(&[("a", "", "GET", "/a/b")], ("", "GET", path), "404");
    }
    let deep = "/a".repeat(100_000);
    check(&[("a", "", "GET", "/*")], ("", "GET", &deep), "GET /*");
}

#[test]
fn segments_and_methods_of_any_length_are_told_apart() {
    for length in [1, 7, 8, 9, 21, 22, 23, 24, 32] {
        let (own, other) = ("X".repeat(length), "X".repeat(length - 1) + "Y");
        let routes = [("a", "", &*own, &*format!("/{own}/{own}"))];
        check(&routes, ("", &own, &format!("/{own}/{own}")), &format!("{own} /{own}/{own}"));
        check(&routes, ("", &own, &format!("/{own}/{other}")), "404");
        check(&routes, ("", &other, &format!("/{own}/{own}")), &format!("405 {own}"));
        check(&routes, ("", &format!("{own}X"), &format!("/{own}/{own}")), &format!("405 {own}"));
        check(&routes, ("", &own, &format!("/{own}X/{own}")), "404");
    }
}

#[test]
fn a_route_is_removed_by_itself_and_not_by_its_like() {
    let (own, like) = (route("a", "", "GET", "/a/*", false), route("a", "", "GET", "/a/*", false));
    let mut table = table([&own]);
    table.remove(&like);
    assert!(table.knows("", "/a/b"));
    table.remove(&own);
    table.remove(&own);
    assert!(!table.knows("", "/a/b") && table.is_empty());
}

/// The figures are for people (`--nocapture`, release); what is asserted has room for slow machines.
#[test]
fn a_hundred_thousand_routes_cost_little_more_than_ten() {
    let pattern = |service: usize, route: usize| match route % 3 {
        0 => format!("/s{service}/items/r{route}"),
        1 => format!("/s{service}/items/*/r{route}"),
        _ => format!("/s{service}/r{route}/*"),
    };
    let of = |service: usize| (0..10).map(|at| route(&format!("s{service}"), "", "GET", &pattern(service, at), false)).collect::<Vec<_>>();
    let services: Vec<_> = (0..10_000).map(of).collect();
    let mut table = table(services.iter().flatten());
    assert_eq!(table.len(), 100_000);
    let mut took = Vec::new();
    for round in 0..1000 {
        let started = tokio::time::Instant::now();
        let old = table.clone();
        for route in &services[round % services.len()] {
            table.remove(route);
        }
        for route in &services[round % services.len()] {
            table.insert(route.clone());
        }
        drop(old);
        took.push(started.elapsed());
    }
    // Half of the rounds took no longer: one in which the machine did something else does not count.
    took.sort();
    let replace = took[took.len() / 2];
    let paths: Vec<_> = (0..100_000).map(|at| format!("/s{}/items/x/r1", at * 7919 % 10_000)).collect();
    let started = tokio::time::Instant::now();
    let found = paths.iter().filter(|path| matches!(table.find("", "GET", path), Lookup::Found(_))).count();
    let find = started.elapsed() / 100_000;
    println!("replace one service of 10 routes: {replace:?}; find: {find:?}");
    assert_eq!(found, paths.len());
    assert!(replace < std::time::Duration::from_millis(5), "{replace:?}");
}
