//! Why a request would go where it goes, by the functions of the real path (DESIGN §4).
//!
//! Here: the steps of the gateway in its order, and the words for each. Not here: any decision of
//! its own.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use furt_proto::{
    path::{PathFault, canonical},
    v1,
};
use http::{HeaderValue, Method, uri::PathAndQuery};
use v1::explain_response::{Candidate, InstanceVerdict, KeyVerdict, Outcome, RateState, SnapshotId, Winner};

use crate::{
    auth::{self, Denied, Keys, Presented},
    balance::{self, Tier, WHOLE},
    clock::nanos,
    framing::{check_host, check_length, check_method, host_name},
    local::{Local, local},
    respond::ProxyError,
    table::{Access, Lookup, Route},
    view::{Instance, Service, View},
};

/// Most candidates that are told.
const MAX_CANDIDATES: usize = 100;

/// Thinks a request through without sending it; nothing counts as a request. `now`: nanoseconds of the data plane's
/// clock, as for `balance::tier`; `now_unix`: seconds since 1970.
///
/// A key that is bound to addresses is taken to come from one of them; the words say so.
pub fn explain(view: &View, request: &v1::ExplainRequest, now: u64, now_unix: i64) -> v1::ExplainResponse {
    let mut answer =
        v1::ExplainResponse { snapshot: Some(SnapshotId { epoch: view.epoch.to_string(), version: view.version }), ..Default::default() };
    let now = Now { mono: now, unix: now_unix };
    answer.outcome = Some(decide(view, request, now, &mut answer));
    answer
}

/// The two clocks.
#[derive(Clone, Copy)]
struct Now {
    /// Nanoseconds of the data plane's clock.
    mono: u64,
    /// Seconds since 1970.
    unix: i64,
}

fn outcome(status: u32, code: &str) -> Outcome {
    Outcome { status, code: code.into() }
}

/// What the gateway would answer, by its own table.
fn refused(error: &ProxyError) -> Outcome {
    outcome(error.status().as_u16().into(), error.code())
}

/// The steps of a request, in the gateway's order; what each says goes into `answer`.
fn decide(view: &View, request: &v1::ExplainRequest, now: Now, answer: &mut v1::ExplainResponse) -> Outcome {
    let (host, path) = match head(request, view) {
        Ok(head) => head,
        Err(error) => return refused(&error),
    };
    answer.canonical_path = path.to_string();
    if let Some(local) = local(&path) {
        return own(view, local, request, now, answer);
    }
    let host = host_name(&host);
    let found = view.table.find(&host, &request.method, &path);
    answer.candidates = candidates(view, request, &host, &path, &found);
    let route = match found {
        Lookup::Found(route) => route,
        // Before the first snapshot nothing can be said of any path.
        _ if !view.is_ready() => return refused(&ProxyError::Unavailable(Duration::ZERO)),
        Lookup::MethodNotAllowed(methods) => return refused(&ProxyError::MethodNotAllowed(methods.join(", "))),
        Lookup::NotFound => return refused(&ProxyError::NotFound),
    };
    answer.route = Some(winner(route));
    // They are told whatever the key may do: who asks may be after them alone.
    answer.instances =
        view.service(route.slot).map(|service| instances(service, route, now.mono, view.config.slow_start)).unwrap_or_default();
    if let Err(error) = key(&route.access, view, request, now, answer) {
        return refused(&error);
    }
    match answer.instances.iter().any(|instance| instance.eligible) {
        true => outcome(0, "FORWARD"),
        false => refused(&ProxyError::Unavailable(Duration::ZERO)),
    }
}

/// Host and canonical path of a request that a client can send and furt takes.
fn head<'r>(request: &'r v1::ExplainRequest, view: &View) -> Result<(HeaderValue, Cow<'r, str>), ProxyError> {
    // What does not parse at all has no length that could be too much.
    let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| ProxyError::Malformed("the method is malformed"))?;
    PathAndQuery::try_from(&*request.path).map_err(|_| ProxyError::Malformed("the request target is malformed"))?;
    if request.path.contains('#') {
        return Err(ProxyError::Path(PathFault::Fragment));
    }
    check_length(&request.path, view.config.max_uri_length)?;
    // Without a host the request is one for any host.
    let host = HeaderValue::from_str(&request.host).map_err(|_| ProxyError::Malformed("the Host is malformed"))?;
    if !host.is_empty() {
        check_host(host.as_bytes())?;
    }
    check_method(&method)?;
    let path = request.path.split_once('?').map_or(&*request.path, |(path, _)| path);
    let path = canonical(path).map_err(ProxyError::Path)?;
    Ok((host, path))
}

/// What furt answers itself.
fn own(view: &View, local: Local, request: &v1::ExplainRequest, now: Now, answer: &mut v1::ExplainResponse) -> Outcome {
    match local {
        Local::Internal | Local::Reserved => refused(&ProxyError::NotFound),
        _ if !matches!(&*request.method, "GET" | "HEAD") => refused(&ProxyError::MethodNotAllowed("GET, HEAD".into())),
        Local::Ready if !view.is_ready() => outcome(503, "LOCAL"),
        Local::Health | Local::Live | Local::Ready => outcome(200, "LOCAL"),
        Local::AuthStatus => match key(&Access::AnyKey, view, request, now, answer) {
            Ok(()) => outcome(200, "LOCAL"),
            Err(error) => refused(&error),
        },
    }
}

/// The verdict on the key, and on its rate.
fn key(access: &Access, view: &View, request: &v1::ExplainRequest, now: Now, answer: &mut v1::ExplainResponse) -> Result<(), ProxyError> {
    let presented = if request.key_name.is_empty() { Presented::Nothing } else { Presented::Named(&request.key_name) };
    let verdict = auth::admit(access, &view.keys, presented, welcome_address(&view.keys, &request.key_name), now.unix);
    let networks = view.keys.by_name(&request.key_name).map(|caller| caller.allowed_ips.to_string()).filter(|text| !text.is_empty());
    let from = networks.map(|networks| format!(", from {networks} only")).unwrap_or_default();
    let reason = match (&verdict, access) {
        (Ok(None), _) if request.key_name.is_empty() => "the route is public, no key is needed".into(),
        (Ok(None), _) => "the route is public, the key is not valid and ignored".into(),
        (Ok(Some(_)), Access::Public) => format!("the route is public, the key is named to the service{from}"),
        (Ok(Some(_)), Access::Permission(permission)) => format!("the key has {permission}{from}"),
        (Ok(Some(_)), _) => format!("any valid key will do{from}"),
        (Err(Denied::NoKey), _) => "a key is needed and none is sent".into(),
        (Err(Denied::UnknownKey), _) => "no key has this name".into(),
        (Err(Denied::Expired), _) => "the key has expired".into(),
        (Err(Denied::IpNotAllowed), _) => "the key may not be used from there".into(),
        (Err(Denied::Forbidden), Access::Permission(permission)) => format!("the key lacks {permission}"),
        (Err(Denied::Forbidden), _) => "the key lacks the permission".into(),
        (Err(Denied::Unusable), Access::Unusable(reason)) => format!("the route is not understood: {reason}"),
        (Err(Denied::Unusable), _) => "the key is not understood".into(),
    };
    let limiter = verdict.as_ref().ok().and_then(|caller| caller.as_ref()?.limiter.as_ref());
    let rate = limiter.map(|limiter| (limiter.rate().to_string(), limiter.peek(now.mono)));
    let state = rate.as_ref().map(|(limit, verdict)| RateState {
        limit: limit.clone(),
        remaining: verdict.remaining,
        retry_after_seconds: u32::try_from(verdict.retry_after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
    });
    let exhausted = rate.map(|(_, verdict)| verdict).filter(|verdict| !verdict.allowed);
    let reason = if exhausted.is_some() { format!("{reason}; its rate is used up") } else { reason };
    let allowed = verdict.is_ok() && exhausted.is_none();
    answer.key = Some(KeyVerdict { name: request.key_name.clone(), allowed, reason, rate: state });
    verdict.map_err(ProxyError::Denied)?;
    exhausted.map_or(Ok(()), |verdict| Err(ProxyError::RateLimited(verdict.retry_after)))
}

/// An address that the key may be used from.
fn welcome_address(keys: &Keys, name: &str) -> Option<IpAddr> {
    keys.by_name(name)?.allowed_ips.iter().next().map(|network| network.addr())
}

/// Every route whose pattern matches: those that fit in the order in which they would win, then the others.
fn candidates(view: &View, request: &v1::ExplainRequest, host: &str, path: &str, found: &Lookup<'_>) -> Vec<Candidate> {
    let winner = match found {
        Lookup::Found(route) => Some(*route),
        _ => None,
    };
    let mut all: Vec<(Fit, &Arc<Route>)> =
        view.table.candidates(path).into_iter().map(|route| (fit(route, host, &request.method), route)).collect();
    // `candidates` has static before registered and specific before wide already; a stable sort keeps that.
    all.sort_by(|(one_fit, one), (two_fit, two)| {
        let place = |route: &Route| (!route.is_static, route.host.closeness());
        (one_fit.is_no(), place(one).0)
            .cmp(&(two_fit.is_no(), place(two).0))
            .then(one.pattern.specificity(&two.pattern))
            .then(place(two).1.cmp(&place(one).1))
            .then(one_fit.cmp(two_fit))
    });
    all.truncate(MAX_CANDIDATES);
    all.into_iter().map(|(fit, route)| candidate(route, fit, winner)).collect()
}

/// How a route fits host and method, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Method,
    GetForHead,
    AnyMethod,
    OtherMethod,
    OtherHost,
}

impl Fit {
    fn is_no(self) -> bool {
        matches!(self, Self::OtherMethod | Self::OtherHost)
    }
}

fn fit(route: &Route, host: &str, method: &str) -> Fit {
    match route.method.as_str() {
        _ if !route.host.fits(host) => Fit::OtherHost,
        own if own == method => Fit::Method,
        "GET" if method == "HEAD" => Fit::GetForHead,
        "*" => Fit::AnyMethod,
        _ => Fit::OtherMethod,
    }
}

fn candidate(route: &Arc<Route>, fit: Fit, winner: Option<&Arc<Route>>) -> Candidate {
    let won = winner.is_some_and(|winner| Arc::ptr_eq(winner, route));
    let reason = match (fit, winner) {
        (Fit::OtherHost, _) => "other host".into(),
        (Fit::OtherMethod, _) => "other method".into(),
        (_, Some(winner)) if won => won_by(winner, fit).into(),
        (_, Some(winner)) if winner.is_static && !route.is_static => "a static route wins".into(),
        (_, Some(winner)) if winner.pattern.specificity(&route.pattern).is_lt() => format!("{} is more specific", winner.pattern),
        (_, Some(winner)) if winner.host.closeness() > route.host.closeness() => "a route with a closer host wins".into(),
        (_, Some(winner)) if winner.method != route.method => format!("the method {} is closer", winner.method),
        _ => "another route of the same host, method and pattern wins".into(),
    };
    Candidate {
        service: route.service.to_string(),
        host: route.host.to_string(),
        method: route.method.to_string(),
        pattern: route.pattern.to_string(),
        permission: permission(route),
        r#static: route.is_static,
        won,
        reason,
    }
}

fn won_by(route: &Route, fit: Fit) -> &'static str {
    match (route.is_static, fit) {
        (true, _) => "the best static route that fits",
        (_, Fit::GetForHead) => "the best that fits; GET answers HEAD",
        _ => "the best that fits host, method and path",
    }
}

fn permission(route: &Route) -> String {
    match &route.access {
        Access::Permission(permission) => permission.to_string(),
        _ => String::new(),
    }
}

fn winner(route: &Route) -> Winner {
    Winner {
        service: route.service.to_string(),
        host: route.host.to_string(),
        method: route.method.to_string(),
        pattern: route.pattern.to_string(),
        permission: permission(route),
        r#static: route.is_static,
    }
}

/// Every instance of the service: only those of the best tier with room get the request.
fn instances(service: &Service, route: &Route, now: u64, slow_start: Duration) -> Vec<InstanceVerdict> {
    let tiers: Vec<_> = service.instances.iter().map(|instance| balance::ready(instance, route, now)).collect();
    let best = tiers.iter().flatten().min().copied();
    let verdict = |(instance, tier): (&Arc<Instance>, &Result<Tier, Cow<'static, str>>)| {
        let eligible = tier.as_ref().is_ok_and(|tier| Some(*tier) == best);
        let mut reason = match tier {
            Err(reason) => reason.clone(),
            Ok(_) if !eligible => "only when no better instance can serve".into(),
            Ok(Tier::Up) if service.is_static => "a static route is not probed".into(),
            Ok(Tier::Up) => "up".into(),
            Ok(Tier::Doubtful) if instance.suspect => "suspect, but no better instance can serve".into(),
            Ok(Tier::Doubtful) => "not known to be up, but no instance is".into(),
            Ok(Tier::Aside) => "a connect failed lately, but no better instance can serve".into(),
        };
        let share = instance.state.share(now, nanos(slow_start));
        if eligible && share < WHOLE {
            reason = format!("{reason}, with {} % of its share so soon after it was down", share * 100 / WHOLE).into();
        }
        InstanceVerdict {
            id: instance.id.to_string(),
            url: instance.url.to_string(),
            status: instance.status.as_str().into(),
            eligible,
            reason: reason.into_owned(),
        }
    };
    service.instances.iter().zip(&tiers).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{
        balance::Entered,
        config::Config,
        view::{
            apply,
            model::{Model, config, empty, fixed, instance, route},
        },
    };

    fn key(name: &str, permissions: &str) -> v1::Key {
        let permissions = vec![permissions.to_owned()];
        v1::Key { name: name.into(), sha256: vec![Sha256::digest(name).to_vec()], permissions, ..Default::default() }
    }

    /// sagjan is up, obr is down, forum is open to all, mail is written in furt.conf.
    fn view() -> View {
        let mut model = Model::new("e");
        let comments = ["POST /api/comments/* permission=comments:write", "GET /api/comments/* permission=comments:read"];
        model.service("sagjan", &[comments[0], comments[1], "GET /api/comments/*/reply"]);
        model.routes("obr", vec![route("* /obr/* by=0,1"), route("GET /odd permission=*")]);
        model.instances("obr", vec![instance(0, "DOWN"), v1::SnapshotInstance { parked: true, ..instance(1, "DOWN") }]);
        model.routes("forum", vec![route("GET /* public by=0,1"), route("GET /forum host=f.org public by=1")]);
        model.instances("forum", vec![instance(0, "UP"), instance(1, "UNKNOWN")]);
        model.fixed(vec![fixed("mail", "POST /v1/mail permission=mail:send")]);
        let bound = v1::Key { allowed_ips: vec!["10.0.0.0/8".into()], ..key("bound", "*") };
        let old = v1::Key { expires_unix: 1, ..key("old", "*") };
        model.keys(vec![key("site", "comments:*"), key("reader", "comments:read"), bound, old]);
        apply(&empty(), model.whole()).unwrap()
    }

    fn ask(view: &View, method: &str, path: &str, host: &str, key: &str) -> v1::ExplainResponse {
        let request = v1::ExplainRequest { method: method.into(), path: path.into(), host: host.into(), key_name: key.into() };
        explain(view, &request, 0, 1_700_000_000)
    }

    fn said(answer: &v1::ExplainResponse) -> String {
        let outcome = answer.outcome.as_ref().unwrap();
        format!("{} {}", outcome.status, outcome.code)
    }

    #[test]
    fn the_outcome_is_what_the_gateway_would_answer() {
        let view = view();
        let check = |method: &str, path: &str, key: &str, expected: &str| {
            assert_eq!(said(&ask(&view, method, path, "", key)), expected, "{method} {path} {key}");
        };
        check("GET", "/api/comments/a?x=%2F", "site", "0 FORWARD");
        check("HEAD", "/api/comments/a", "site", "0 FORWARD");
        check("GET", "/api/../a", "site", "400 MALFORMED_REQUEST");
        check("GET", "api", "site", "400 MALFORMED_REQUEST");
        check("GET", "/api/comments/a?x#y", "site", "400 MALFORMED_REQUEST");
        check("GET", "/api/comments/a?x y", "site", "400 MALFORMED_REQUEST");
        check("CONNECT", "/api/comments/a", "site", "400 MALFORMED_REQUEST");
        check("GE T", "/api/comments/a", "site", "400 MALFORMED_REQUEST");
        let long = format!("/{}", "a".repeat(8 * 1024));
        check("GET", &long, "site", "414 URI_TOO_LONG");
        check("GET", &format!("{long}? "), "site", "400 MALFORMED_REQUEST");
        check("PUT", "/api/comments/a", "site", "405 METHOD_NOT_ALLOWED");
        check("PUT", "/v2", "site", "405 METHOD_NOT_ALLOWED");
        check("GET", "/", "site", "404 NOT_FOUND");
        check("GET", "/api/comments/a", "", "401 UNAUTHORIZED");
        check("GET", "/api/comments/a", "nobody", "401 UNAUTHORIZED");
        check("GET", "/api/comments/a", "old", "401 UNAUTHORIZED");
        check("POST", "/api/comments/a", "reader", "403 FORBIDDEN");
        check("POST", "/api/comments/a", "bound", "0 FORWARD");
        check("GET", "/obr/a", "site", "503 SERVICE_UNAVAILABLE");
        check("GET", "/odd", "site", "503 SERVICE_UNAVAILABLE");
        check("GET", "/anything", "", "0 FORWARD");
        check("POST", "/v1/mail", "bound", "0 FORWARD");
        check("GET", "/health", "", "200 LOCAL");
        check("GET", "/health/ready", "", "200 LOCAL");
        check("GET", "/auth/status", "", "401 UNAUTHORIZED");
        check("GET", "/auth/status", "reader", "200 LOCAL");
        check("GET", "/internal/services", "site", "404 NOT_FOUND");
        check("GET", "/auth", "site", "404 NOT_FOUND");
        check("POST", "/health", "site", "405 METHOD_NOT_ALLOWED");
        assert_eq!(said(&ask(&view, "GET", "/anything", "a/b", "")), "400 MALFORMED_REQUEST");
        let early = empty();
        assert_eq!(said(&ask(&early, "GET", "/a", "", "")), "503 SERVICE_UNAVAILABLE");
        assert_eq!(said(&ask(&early, "GET", "/health/ready", "", "")), "503 LOCAL");
    }

    #[test]
    fn a_rate_that_is_used_up_is_told_and_asking_uses_none_of_it() {
        let mut model = Model::new("e");
        model.service("a", &["GET /a", "GET /open public"]);
        model.keys(vec![v1::Key { rate_limit: "2/min".into(), ..key("site", "*") }]);
        let view = apply(&empty(), model.whole()).unwrap();
        let asked = |path: &str| {
            let answer = ask(&view, "GET", path, "", "site");
            let rate = answer.key.clone().unwrap().rate.unwrap();
            (said(&answer), rate.remaining, rate.retry_after_seconds)
        };
        for _ in 0..3 {
            assert_eq!(asked("/a"), ("0 FORWARD".into(), 2, 0));
        }
        let limiter = view.keys.by_name("site").unwrap().limiter.clone().unwrap();
        assert!(limiter.check(0).allowed && limiter.check(0).allowed);
        assert_eq!(asked("/a"), ("429 RATE_LIMIT_EXCEEDED".into(), 0, 30));
        assert_eq!(asked("/open"), ("429 RATE_LIMIT_EXCEEDED".into(), 0, 30));
        let told = ask(&view, "GET", "/a", "", "site").key.unwrap();
        assert_eq!((told.allowed, &*told.reason), (false, "any valid key will do; its rate is used up"));
    }

    #[test]
    fn candidates_say_why_they_won_or_lost() {
        let answer = ask(&view(), "GET", "/api/comments/%61/reply", "", "site");
        assert_eq!(answer.canonical_path, "/api/comments/a/reply");
        assert_eq!(answer.snapshot, Some(SnapshotId { epoch: "e".into(), version: 0 }));
        let told: Vec<_> =
            answer.candidates.iter().map(|one| format!("{} {} {}: {}", one.method, one.pattern, one.won, one.reason)).collect();
        assert_eq!(
            told,
            [
                "GET /api/comments/*/reply true: the best that fits host, method and path",
                "GET /api/comments/* false: /api/comments/*/reply is more specific",
                "GET /* false: /api/comments/*/reply is more specific",
                "POST /api/comments/* false: other method",
            ]
        );
        let route = answer.route.unwrap();
        assert_eq!((&*route.service, &*route.pattern, route.r#static), ("sagjan", "/api/comments/*/reply", false));
        let host = ask(&view(), "GET", "/forum", "F.org.:7811", "");
        let told: Vec<_> = host.candidates.iter().map(|one| (&*one.host, &*one.reason)).collect();
        assert_eq!(told, [("f.org", "the best that fits host, method and path"), ("", "/forum is more specific")]);
        let other = ask(&view(), "GET", "/forum", "g.org", "");
        assert_eq!((other.candidates[1].won, &*other.candidates[1].reason), (false, "other host"));
        assert_eq!(&*ask(&view(), "POST", "/v1/mail", "", "bound").candidates[0].reason, "the best static route that fits");
    }

    #[test]
    fn keys_and_instances_have_their_verdict() {
        let key = |method: &str, path: &str, key: &str| ask(&view(), method, path, "", key).key.map(|key| (key.allowed, key.reason));
        assert_eq!(key("POST", "/api/comments/a", "reader"), Some((false, "the key lacks comments:write".into())));
        assert_eq!(key("POST", "/api/comments/a", "bound"), Some((true, "the key has comments:write, from 10.0.0.0/8 only".into())));
        assert_eq!(key("GET", "/anything", ""), Some((true, "the route is public, no key is needed".into())));
        assert_eq!(key("GET", "/anything", "old"), Some((true, "the route is public, the key is not valid and ignored".into())));
        assert_eq!(key("PUT", "/nowhere", "site"), None);
        let instances = |path: &str, host: &str| {
            let told = ask(&view(), "GET", path, host, "site").instances.into_iter();
            told.map(|one| format!("{} {} {}", one.id, one.eligible, one.reason)).collect::<Vec<_>>()
        };
        assert_eq!(instances("/obr/a", ""), ["i0 false down", "i1 false down, pings have stopped"]);
        let without_a_key = ask(&view(), "GET", "/obr/a", "", "");
        assert_eq!((said(&without_a_key), without_a_key.instances.len()), ("401 UNAUTHORIZED".into(), 2));
        assert_eq!(instances("/any", ""), ["i0 true up", "i1 false only when no better instance can serve"]);
        assert_eq!(instances("/forum", "f.org"), ["i0 false did not declare this route", "i1 true not known to be up, but no instance is"]);
    }

    #[test]
    fn a_full_instance_and_one_that_comes_back_are_told_with_their_numbers() {
        let mut model = Model::new("e");
        model.routes("a", vec![route("GET /a public by=0,1")]);
        let capped = |number, status| v1::SnapshotInstance { max_in_flight: 2, ..instance(number, status) };
        model.instances("a", vec![capped(0, "UP"), capped(1, "DOWN")]);
        let config = Config { slow_start: Duration::from_secs(10), ..config() };
        let before = apply(&View::empty(config), model.whole()).unwrap();
        model.instances("a", vec![capped(0, "UP"), capped(1, "UP")]);
        let view = apply(&before, model.delta()).unwrap();
        let asked = |second: u64| {
            let request = v1::ExplainRequest { method: "GET".into(), path: "/a".into(), ..Default::default() };
            let answer = explain(&view, &request, second * 1_000_000_000, 0);
            let instances = answer.instances.iter().map(|one| format!("{} {}", one.eligible, one.reason)).collect::<Vec<_>>();
            (said(&answer), instances)
        };
        let forward = || "0 FORWARD".to_owned();
        let tenth = "true up, with 10 % of its share so soon after it was down".to_owned();
        assert_eq!(asked(60), (forward(), vec!["true up".into(), tenth.clone()]));
        assert_eq!(asked(90), (forward(), vec!["true up".into(), tenth]), "asking is no request: its time has not begun");
        let service = view.services()[0];
        let Lookup::Found(route) = view.table.find("", "GET", "/a") else { panic!("there it is") };
        balance::choose(&service.instances, route, 90 * 1_000_000_000, &[], nanos(view.config.slow_start)).unwrap();
        assert_eq!(asked(95).1[1], "true up, with 55 % of its share so soon after it was down");
        assert_eq!(asked(100).1[1], "true up");
        let fill = |number: usize| (0..2).for_each(|_| assert_eq!(service.instances[number].state.enter(2), Entered::Yes));
        fill(0);
        assert_eq!(asked(100), (forward(), vec!["false full (2 in flight)".into(), "true up".into()]));
        fill(1);
        assert_eq!(asked(100), ("503 SERVICE_UNAVAILABLE".into(), ["false full (2 in flight)"; 2].map(str::to_owned).to_vec()));
    }
}
