//! The registry as gRPC and JSON see it, without either.

use std::{sync::atomic::AtomicU64, sync::atomic::Ordering};

use furt_proto::rate::Rate;

use super::*;
use crate::{
    config::{Grant, Published, StaticRoute},
    health::Policy,
    resolve::tests::FakeLookup,
};

/// Loopback and 10/8 may register; one default grant allows everything.
pub(crate) fn config() -> Config {
    Config {
        listen: "127.0.0.1:7810".parse().unwrap(),
        public: Some("127.0.0.1:7811".parse().unwrap()),
        hosts: Vec::new(),
        probing: Policy::default(),
        allow_registration_from: "127.0.0.1, ::1, 10.0.0.0/8".parse().unwrap(),
        registration_rate: "100000/s".parse().unwrap(),
        loopback_is_operator: true,
        grants: [grant(None)].into(),
        tokens: Vec::new(),
        published: Published::default(),
        upstream_tls: Arc::new(furt_proto::tls::UpstreamTls::new(rustls::RootCertStore::empty())),
    }
}

/// A grant that allows all permissions anywhere.
pub(crate) fn grant(service: Option<&str>) -> Grant {
    Grant {
        service: service.map(|service| service.parse().unwrap()),
        permissions: vec!["*".parse().unwrap()],
        paths: None,
        hosts: Vec::new(),
        from: None,
        upstreams: None,
        tokens: Vec::new(),
        max_instances: 16,
        allow_public: false,
        max_in_flight: 0,
        keep_alive: true,
    }
}

pub(crate) fn static_route(name: &str, method: &str, pattern: &str, url: &str) -> StaticRoute {
    StaticRoute {
        name: name.into(),
        host: Default::default(),
        methods: vec![method.parse().unwrap()],
        pattern: pattern.parse().unwrap(),
        permission: Some("a:b".parse().unwrap()),
        public: false,
        url: url.parse().unwrap(),
        protocol: Default::default(),
        set_headers: Vec::new(),
        timeout: None,
        deadline: None,
        max_in_flight: 0,
        keep_alive: true,
    }
}

pub(crate) fn local() -> Peer {
    Peer { address: Some("127.0.0.1".parse().unwrap()), bearer: None }
}

/// A registration of routes written as `GET /path`, with permission `a:b`.
pub(crate) fn request(service: &str, port: u16, routes: &[&str]) -> v1::RegisterRequest {
    let route = |text: &&str| {
        let (method, path) = text.split_once(' ').unwrap();
        v1::Route { method: method.into(), path: path.into(), permission: "a:b".into(), ..Default::default() }
    };
    v1::RegisterRequest {
        service: service.into(),
        url: format!("http://127.0.0.1:{port}"),
        routes: routes.iter().map(route).collect(),
        ..Default::default()
    }
}

impl Registry {
    pub(crate) async fn try_it(&self, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, Refusal> {
        self.register(&local(), request, Vec::new()).await
    }

    pub(crate) fn status(&self, service: &str) -> (String, bool, u32) {
        let service = self.get_service(service).unwrap();
        let instance = &service.instances[0];
        (instance.status.clone(), instance.parked, instance.consecutive_failures)
    }
}

#[tokio::test]
async fn the_same_again_is_a_renewal_and_a_changed_url_is_a_new_start() {
    let registry = Registry::new(config());
    let first = registry.try_it(request("sagjan", 7812, &["GET /api/*", "POST /api/*"])).await.unwrap();
    assert_eq!((first.status.as_str(), first.routes, first.renew_after_seconds), ("UNKNOWN", 2, 60));
    assert_eq!((first.instance.as_str(), first.epoch.as_str()), ("default", registry.epoch()));
    assert_eq!(first.registration_id.len(), 26);

    let again = registry.try_it(request("sagjan", 7812, &["GET /api/*", "POST /api/*"])).await.unwrap();
    assert_eq!(again, first, "to the letter");

    let routes = registry.try_it(request("sagjan", 7812, &["GET /api/*", "PUT /new"])).await.unwrap();
    assert_eq!(routes.registration_id, first.registration_id);
    assert_eq!(routes.version, first.version + 1, "one step");
    let listed: Vec<_> = registry.list_routes(&v1::ListRoutesRequest::default()).routes.into_iter().map(|route| route.path).collect();
    assert_eq!(listed, ["/api/*", "/new"]);

    let moved = registry.try_it(request("sagjan", 7813, &["GET /api/*", "PUT /new"])).await.unwrap();
    assert_ne!(moved.registration_id, first.registration_id);
    assert_eq!(moved.version, routes.version + 1);
    assert_eq!(registry.get_service("sagjan").unwrap().instances[0].url, "http://127.0.0.1:7813");
}

#[tokio::test]
async fn a_dry_run_decides_by_the_same_rules_and_changes_nothing() {
    let registry = Registry::new(config());
    let dry = |mut request: v1::RegisterRequest| {
        request.dry_run = true;
        request
    };
    let before = registry.list_services();
    let answer = registry.try_it(dry(request("sagjan", 7812, &["GET /api/*"]))).await.unwrap();
    assert_eq!((answer.registration_id.as_str(), answer.status.as_str(), answer.routes), ("", "UNKNOWN", 1));
    assert_eq!(registry.list_services(), before);
    let real = registry.try_it(request("sagjan", 7812, &["GET /api/*"])).await.unwrap();
    let answer = registry.try_it(dry(request("sagjan", 7812, &["GET /api/*"]))).await.unwrap();
    assert_eq!(answer.registration_id, real.registration_id);
    let elsewhere = registry.try_it(dry(request("sagjan", 7814, &["GET /api/*"]))).await.unwrap();
    assert_eq!((elsewhere.registration_id.as_str(), elsewhere.status.as_str()), ("", "UNKNOWN"), "a new start, of an id to come");
    let refusal = registry.try_it(dry(request("obr", 7813, &["GET /api/*"]))).await.unwrap_err();
    assert_eq!(refusal.code(), Code::RouteConflict);
}

#[tokio::test]
async fn every_fault_of_every_rule_is_told_at_once_and_nothing_changes() {
    let mut config = config();
    config.grants = [Grant { permissions: vec!["comments:*".parse().unwrap()], ..grant(Some("sagjan")) }, grant(Some("obr"))].into();
    config.published.static_routes = vec![static_route("mail", "POST", "/v1/mail/*", "http://127.0.0.1:7825")];
    let registry = Registry::new(config);
    registry.try_it(request("obr", 7900, &["GET /held"])).await.unwrap();
    let before = registry.list_services();

    let mut bad = request("sagjan", 7812, &["GET /held", "POST /v1/mail/send", "GET /health/x", "get /a", "GET /b"]);
    bad.url = "http://169.254.169.254".into();
    bad.routes[4].public = true;
    bad.routes[4].permission = String::new();
    let found = vec![Fault::new("colour", Code::Validation, "unknown field")];
    let refusal = registry.register(&local(), bad, found).await.unwrap_err();
    let told: Vec<_> = refusal.faults.iter().map(|fault| (fault.field.as_str(), fault.code)).collect();
    use Code::{PermissionNotGranted as Ungranted, RouteConflict as Conflict, Validation};
    let expected = [
        ("colour", Validation),
        ("routes[3].method", Validation),
        ("routes[0].permission", Ungranted),
        ("routes[1].permission", Ungranted),
        ("routes[2].permission", Ungranted),
        ("routes[3].permission", Ungranted),
        ("routes[4].public", Ungranted),
        ("url", Validation),
        ("routes[0].path", Conflict),
        ("routes[1].path", Conflict),
        ("routes[2].path", Conflict),
    ];
    assert_eq!(told, expected);
    assert_eq!(refusal.code(), Validation);
    assert_eq!(registry.list_services(), before);
}

#[tokio::test]
async fn too_many_registrations_are_refused_with_when_to_come_back() {
    let registry = Registry::new(Config { registration_rate: "2/min".parse::<Rate>().unwrap(), ..config() });
    for _ in 0..2 {
        registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    }
    let refusal = registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.retry_after_seconds()), (Code::RateLimited, Some(30)));
    registry.try_it(request("obr", 7813, &["GET /b"])).await.unwrap();
    let dry = v1::RegisterRequest { dry_run: true, ..request("sagjan", 7812, &["GET /a"]) };
    registry.try_it(dry).await.unwrap();
}

#[tokio::test]
async fn a_peer_outside_the_allow_list_is_refused_before_anything_else() {
    let registry = Registry::new(config());
    for address in [None, Some("192.0.2.1".parse().unwrap())] {
        let peer = Peer { address, bearer: None };
        let refusal = registry.register(&peer, v1::RegisterRequest::default(), Vec::new()).await.unwrap_err();
        assert_eq!((refusal.code(), refusal.faults.len()), (Code::RegistrationRefused, 1));
    }
}

#[tokio::test]
async fn a_farewell_takes_out_what_it_names_and_no_successor() {
    let registry = Registry::new(config());
    let old = registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    registry.try_it(request("sagjan", 7813, &["GET /a"])).await.unwrap();
    let farewell = |instance: &str, id: &str| v1::DeregisterRequest {
        service: "sagjan".into(),
        instance: instance.into(),
        registration_id: id.into(),
    };
    let refusal = registry.deregister(&local(), farewell("default", &old.registration_id)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::StaleRegistration);
    assert_eq!(registry.deregister(&local(), farewell("other", "")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(registry.deregister(&local(), farewell("", &old.registration_id)).await.unwrap_err().code(), Code::Validation);
    let answer = registry.deregister(&local(), farewell("default", "")).await.unwrap();
    assert_eq!(answer.instances, ["default"]);
    assert_eq!(registry.get_service("sagjan").unwrap_err().code(), Code::NotFound);
    registry.try_it(request("obr", 7813, &["GET /a"])).await.unwrap();
    registry.deregister(&local(), v1::DeregisterRequest { service: "obr".into(), ..Default::default() }).await.unwrap();
    let refusal = registry.deregister(&local(), v1::DeregisterRequest { service: "Obr".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Validation);
}

#[tokio::test(start_paused = true)]
async fn names_are_looked_up_checked_and_the_last_good_answer_kept() {
    let lookup = FakeLookup::default();
    lookup.set("sagjan.internal", &["10.0.0.7"]);
    lookup.set("evil.internal", &["10.0.0.7", "127.0.0.1"]);
    let mut config = config();
    config.grants = [Grant { upstreams: Some("10.0.0.0/24".parse().unwrap()), ..grant(None) }].into();
    config.published.static_routes = vec![static_route("mail", "POST", "/mail", "http://mail.internal:25")];
    let registry = Registry::with_lookup(config, Arc::new(lookup.clone()), Box::new(Memory));
    let named = |service: &str, host: &str, route: &str| v1::RegisterRequest {
        url: format!("http://{host}:7812"),
        ..request(service, 1, &[route])
    };
    registry.try_it(named("sagjan", "sagjan.internal", "GET /a")).await.unwrap();
    let addresses = || registry.get_service("sagjan").unwrap().instances[0].addresses.clone();
    assert_eq!(addresses(), ["10.0.0.7:7812"]);
    let refusal = registry.try_it(named("evil", "evil.internal", "GET /b")).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.faults[0].field.as_str()), (Code::PermissionNotGranted, "url"));
    assert_eq!(registry.try_it(named("gone", "gone.internal", "GET /b")).await.unwrap_err().code(), Code::Validation);

    let shutdown = CancellationToken::new();
    let refresher = tokio::spawn(crate::resolve::Refresher::new(registry.clone()).run(shutdown.clone()));
    let mut changed = registry.follow();
    lookup.set("mail.internal", &["192.0.2.25"]);
    lookup.set("sagjan.internal", &["10.0.0.8"]);
    while addresses() != ["10.0.0.8:7812"] {
        changed.changed().await.unwrap();
    }
    assert_eq!(registry.lock().statics, [vec!["192.0.2.25:25".parse().unwrap()]]);
    // It now points where it may not, and then at nothing: what was checked stays.
    lookup.set("sagjan.internal", &["127.0.0.1"]);
    tokio::time::sleep(crate::resolve::FRESH * 2).await;
    assert_eq!(addresses(), ["10.0.0.8:7812"]);
    lookup.forget("sagjan.internal");
    tokio::time::sleep(crate::resolve::FRESH * 2).await;
    assert_eq!(addresses(), ["10.0.0.8:7812"]);
    shutdown.cancel();
    refresher.await.unwrap();
}

#[tokio::test]
async fn what_was_counted_can_be_scraped() {
    let registry = Registry::new(config());
    registry.try_it(request("sagjan", 7812, &["GET /a"])).await.unwrap();
    let _ = registry.try_it(request("Sagjan", 7812, &["GET /a"])).await;
    let mut text = String::new();
    registry.metrics(&mut text);
    for line in [
        "furt_registrations_total{result=\"registered\"} 1",
        "furt_registrations_total{result=\"refused\"} 1",
        "furt_service_up{service=\"sagjan\",instance=\"default\"} 0",
        "furt_snapshot_version ",
        "# TYPE furt_probe_duration_seconds histogram",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

/// Work in the trie, not time: what one registration costs with few services and with many.
#[tokio::test]
async fn ten_thousand_services_with_ten_routes_each_cost_linear_work() {
    let registry = Registry::new(config());
    let work = |registry: &Registry| registry.lock().services.work();
    let mut first_thousand = 0;
    let mut last_thousand = 0;
    let largest = AtomicU64::new(0);
    for index in 0..10_000u16 {
        let routes: Vec<_> = (0..10).map(|route| format!("GET /svc{index}/{route}/*")).collect();
        let routes: Vec<_> = routes.iter().map(String::as_str).collect();
        let before = work(&registry);
        let version = registry.stamp().version;
        let answer = registry.try_it(request(&format!("s{index}"), 20_000 + index, &routes)).await.unwrap();
        let told: usize = registry.lock().services.publication().since(Some(version)).parts.len();
        assert_eq!((answer.version, told), (version + 1, 2), "one version, the two parts of one service");
        let cost = work(&registry) - before;
        largest.fetch_max(cost, Ordering::Relaxed);
        match index {
            0..1_000 => first_thousand += cost,
            9_000.. => last_thousand += cost,
            _ => {}
        }
    }
    assert_eq!(registry.list_routes(&v1::ListRoutesRequest::default()).routes.len(), 100_000);
    assert!(last_thousand <= first_thousand * 11 / 10, "{first_thousand} then {last_thousand}, at most {largest:?}");
}
