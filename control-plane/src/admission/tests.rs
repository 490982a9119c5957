//! The rules of DESIGN §4, one by one.

use furt_proto::v1;

use super::*;
use crate::{
    config::Digest,
    registration::Registration,
    registry::tests::{config, grant, local, request, static_route},
    services::{Admitted, Moment, Services},
};

struct Here;

impl Machine for Here {
    fn listens_on(&self, port: u16) -> bool {
        port == 7810 || port == 7811
    }
    fn owns(&self, address: IpAddr) -> bool {
        address == IpAddr::from([10, 0, 0, 1])
    }
}

fn peer(address: &str) -> Peer {
    Peer { address: Some(address.parse().unwrap()), bearer: None }
}

/// The faults of a request by field and code, from a peer, under one grant.
fn faults(grant: Grant, peer: &Peer, request: v1::RegisterRequest) -> Vec<(String, Code)> {
    told(grant, peer, request).into_iter().map(|fault| (fault.field, fault.code)).collect()
}

fn told(grant: Grant, peer: &Peer, request: v1::RegisterRequest) -> Vec<Fault> {
    let admission = Admission::new(Arc::new(Config { grants: [grant].into(), ..config() }));
    let draft = Draft::read(&request);
    assert_eq!(draft.faults, []);
    let resolved = draft.url.as_ref().and_then(UpstreamUrl::address).map(|address| Ok(vec![address]));
    admission.granted(&Who::Asks(peer), peer.address.unwrap(), &draft, resolved.as_ref(), &Here)
}

fn one(field: &str, code: Code) -> Vec<(String, Code)> {
    vec![(field.to_owned(), code)]
}

#[test]
fn no_grant_shows_the_lines_that_would_allow_it() {
    let mut asked = request("sagjan", 7812, &["GET /api/comments/*", "POST /api/comments/*"]);
    asked.routes[1].permission = "comments:write".into();
    asked.url = "http://10.0.0.9:7812".into();
    asked.routes.push(v1::Route { method: "GET".into(), path: "/open".into(), public: true, host: "a.org".into(), ..Default::default() });
    let told = told(grant(Some("obr")), &local(), asked.clone());
    assert_eq!((told[0].field.as_str(), told[0].code, told.len()), ("service", Code::PermissionNotGranted, 1));
    let lines = "[service \"sagjan\"]\npermissions = a:b, comments:write\npaths = /api/comments/*, /open\nhosts = a.org\nupstreams = 10.0.0.9\nallow_public = true";
    assert!(told[0].message.ends_with(lines), "{}", told[0].message);
    // What it says is true.
    let said = Grant {
        permissions: vec!["a:b".parse().unwrap(), "comments:write".parse().unwrap()],
        paths: Some(vec!["/api/comments/*".parse().unwrap(), "/open".parse().unwrap()]),
        hosts: vec!["a.org".parse().unwrap()],
        upstreams: Some("10.0.0.9".parse().unwrap()),
        allow_public: true,
        ..grant(Some("sagjan"))
    };
    assert_eq!(faults(said, &local(), asked), []);
}

#[test]
fn the_grant_limits_paths_hosts_permissions_and_public() {
    use Code::PermissionNotGranted as Refused;
    let asked = || request("sagjan", 7812, &["GET /api/comments/*"]);
    let narrow = |paths: &str| Grant { paths: Some(vec![paths.parse().unwrap()]), ..grant(None) };
    assert_eq!(faults(narrow("/api/comments/*"), &local(), asked()), []);
    assert_eq!(faults(narrow("/api/*"), &local(), asked()), []);
    assert_eq!(faults(narrow("/api/comments/*/reply"), &local(), asked()), one("routes[0].path", Refused));
    let permissions = |text: &str| Grant { permissions: vec![text.parse().unwrap()], ..grant(None) };
    assert_eq!(faults(permissions("a:*"), &local(), asked()), []);
    assert_eq!(faults(permissions("a:c"), &local(), asked()), one("routes[0].permission", Refused));
    let mut hosted = asked();
    hosted.routes[0].host = "www.example.org".into();
    let hosts = |text: &str| Grant { hosts: vec![text.parse().unwrap()], ..grant(None) };
    assert_eq!(faults(hosts("*.example.org"), &local(), hosted.clone()), []);
    assert_eq!(faults(hosts("example.org"), &local(), hosted.clone()), one("routes[0].host", Refused));
    assert_eq!(faults(grant(None), &local(), hosted), one("routes[0].host", Refused));
    let mut open = asked();
    (open.routes[0].public, open.routes[0].permission) = (true, String::new());
    assert_eq!(faults(grant(None), &local(), open.clone()), one("routes[0].public", Refused));
    assert_eq!(faults(Grant { allow_public: true, ..grant(None) }, &local(), open), []);
    let mut any_key = asked();
    any_key.routes[0].permission = String::new();
    assert_eq!(faults(permissions("x:y"), &local(), any_key), [], "any valid key will do");
}

#[test]
fn a_named_grant_comes_before_the_default_one() {
    let admission =
        Admission::new(Arc::new(Config { grants: [grant(None), Grant { max_instances: 1, ..grant(Some("sagjan")) }].into(), ..config() }));
    assert_eq!(admission.grant(&"sagjan".parse().unwrap()).unwrap().max_instances, 1);
    assert_eq!(admission.grant(&"obr".parse().unwrap()).unwrap().max_instances, 16);
}

#[test]
fn from_and_token_are_the_registrars() {
    use Code::RegistrationRefused as Refused;
    let asked = || v1::RegisterRequest { url: "http://10.0.0.9:7812".into(), ..request("sagjan", 7812, &["GET /a"]) };
    let from = || Grant { from: Some("10.0.0.9".parse().unwrap()), upstreams: Some("10.0.0.9".parse().unwrap()), ..grant(None) };
    assert_eq!(faults(from(), &peer("10.0.0.9"), asked()), []);
    assert_eq!(faults(from(), &peer("10.0.0.8"), asked()), one("", Refused));
    let digest: Digest = [7; 32];
    let token = || Grant { tokens: vec![digest], upstreams: Some("10.0.0.9".parse().unwrap()), ..grant(None) };
    let bearer = |byte: u8| Peer { bearer: Some([byte; 32]), ..peer("10.0.0.9") };
    assert_eq!(faults(token(), &bearer(7), asked()), []);
    assert_eq!(faults(token(), &bearer(8), asked()), one("", Refused));
    assert_eq!(faults(token(), &local(), asked()), one("", Refused), "being on this machine is no token");
}

#[test]
fn a_url_points_to_granted_addresses_and_never_at_furt() {
    let check = |upstreams: Option<&str>, peer_address: &str, url: &str, expected: Option<Code>| {
        let grant = Grant { upstreams: upstreams.map(|text| text.parse().unwrap()), ..grant(None) };
        let asked = v1::RegisterRequest { url: url.into(), ..request("sagjan", 1, &["GET /a"]) };
        let found = faults(grant, &peer(peer_address), asked);
        assert_eq!(found, expected.map(|code| one("url", code)).unwrap_or_default(), "{url} from {peer_address} with {upstreams:?}");
    };
    use Code::{PermissionNotGranted as Outside, Validation as Never};
    check(None, "127.0.0.1", "http://127.0.0.1:7812", None);
    check(None, "127.0.0.1", "http://127.0.0.9:7812", None);
    check(None, "::1", "http://127.0.0.1:7812", None);
    check(None, "127.0.0.1", "http://10.0.0.9:7812", Some(Outside));
    check(None, "10.0.0.9", "http://10.0.0.9:7812", None);
    check(None, "10.0.0.9", "http://127.0.0.1:7812", Some(Outside));
    check(Some("10.0.0.0/8"), "127.0.0.1", "http://10.0.0.9:7812", None);
    check(Some("10.0.0.0/8"), "127.0.0.1", "http://127.0.0.1:7812", Some(Outside));
    check(Some("0.0.0.0/0, ::/0"), "127.0.0.1", "http://127.0.0.1:7812", None);
    for never in
        ["169.254.169.254", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "[::]", "[fe80::1]", "[ff02::1]", "[::ffff:169.254.1.1]"]
    {
        check(Some("0.0.0.0/0, ::/0"), "127.0.0.1", &format!("http://{never}:7812"), Some(Never));
    }
    for itself in ["127.0.0.1:7810", "127.0.0.9:7811", "[::1]:7811", "[::ffff:127.0.0.1]:7811", "10.0.0.1:7811"] {
        check(Some("0.0.0.0/0, ::/0"), "127.0.0.1", &format!("http://{itself}"), Some(Never));
    }
    check(Some("0.0.0.0/0"), "127.0.0.1", "http://10.0.0.2:7811", None);
}

#[test]
fn what_is_spoken_makes_no_difference() {
    for (scheme, protocol) in [("http", "h2"), ("https", "http1"), ("https", "h2")] {
        let mut asked = request("sagjan", 7812, &["GET /a"]);
        asked.url = format!("{scheme}://127.0.0.1:7812");
        asked.protocol = protocol.into();
        assert_eq!(told(grant(None), &local(), asked), [], "{scheme} {protocol}");
    }
}

/// Registered services, and an admission to ask about them.
struct World {
    admission: Admission,
    services: Services,
    at: Moment,
}

impl World {
    fn new(grants: Vec<Grant>) -> Self {
        let mut config = Config { grants: grants.into_iter().collect(), ..config() };
        config.published.static_routes = vec![static_route("mail", "POST", "/v1/mail/*", "http://127.0.0.1:7825")];
        let at = Moment { now: tokio::time::Instant::now(), unix_ms: 0 };
        Self { admission: Admission::new(Arc::new(config)), services: Services::new(Default::default()), at }
    }

    fn ask(&self, request: &v1::RegisterRequest) -> (Vec<Fault>, Vec<v1::Warning>) {
        self.admission.unclaimed(&Draft::read(request), &self.services)
    }

    fn register(&mut self, request: v1::RegisterRequest) {
        assert_eq!(self.ask(&request).0, []);
        let registration = Arc::new(Registration::parse(&request).unwrap());
        let admitted = Admitted {
            registration,
            addresses: Vec::new(),
            peer: [127, 0, 0, 1].into(),
            by_operator: false,
            registration_id: "r".into(),
            order: 1,
        };
        self.services.register(admitted, self.at);
    }

    fn conflicts(&self, service: &str, route: &str) -> bool {
        let faults = self.ask(&request(service, 1, &[route])).0;
        assert!(faults.iter().all(|fault| fault.code == Code::RouteConflict && fault.field == "routes[0].path"), "{faults:?}");
        !faults.is_empty()
    }
}

#[test]
fn nobody_takes_a_static_reserved_or_held_route() {
    let mut world = World::new(vec![grant(None), Grant { paths: Some(vec!["/api/*".parse().unwrap()]), ..grant(Some("named")) }]);
    world.register(request("sagjan", 1, &["GET /api/*", "* /all/*/x"]));
    let check = |service: &str, route: &str, expected: bool| assert_eq!(world.conflicts(service, route), expected, "{service} {route}");
    // furt.conf's.
    check("obr", "POST /v1/mail/send", true);
    check("obr", "POST /v1/mail/*", true);
    check("obr", "POST /v1/*", false);
    check("obr", "GET /v1/mail/send", false);
    check("obr", "* /v1/mail/send", false);
    // furt's own.
    for reserved in ["GET /health", "GET /health/x", "GET /auth/*", "GET /internal", "GET /internal/register-service"] {
        check("obr", reserved, true);
    }
    check("obr", "GET /healthy", false);
    check("obr", "GET /*", false);
    // The same.
    check("obr", "GET /api/*", true);
    check("obr", "* /api/*", true);
    check("obr", "HEAD /api/*", true);
    check("obr", "POST /api/*", false);
    check("obr", "GET /all/*/x", true);
    check("sagjan", "GET /api/*", false);
    // Inside another's, unless a grant names paths for it.
    check("obr", "GET /api/x", true);
    check("obr", "* /api/x", true);
    check("obr", "GET /api/*/y", true);
    check("obr", "POST /api/x", false);
    check("named", "GET /api/x", false);
    check("named", "GET /api/*", true);
}

#[test]
fn the_holder_keeps_its_route_when_a_wider_one_is_allowed_around_it() {
    let mut world = World::new(vec![grant(None)]);
    world.register(request("sagjan", 1, &["GET /api/x"]));
    world.register(request("obr", 2, &["GET /api/*"]));
    assert!(!world.conflicts("sagjan", "GET /api/x"));
    assert!(world.conflicts("sagjan", "GET /api/y"));
}

#[test]
fn a_conflict_names_the_holder_and_how_to_free_a_parked_one() {
    let mut world = World::new(vec![grant(None)]);
    world.register(request("sagjan", 1, &["GET /api/*"]));
    let message = |world: &World| world.ask(&request("obr", 2, &["GET /api/*"])).0[0].message.clone();
    assert_eq!(message(&world), "GET /api/* is the same as GET /api/*, held by sagjan");
    world.services.park_all(world.at);
    let parked = message(&world);
    assert!(parked.contains("DELETE /internal/services/sagjan"), "{parked}");
}

#[test]
fn instances_are_counted_without_parked_ones() {
    let mut world = World::new(vec![Grant { max_instances: 1, ..grant(None) }]);
    world.register(request("sagjan", 1, &["GET /a"]));
    let second = v1::RegisterRequest { instance: "b".into(), ..request("sagjan", 2, &["GET /a"]) };
    let faults = world.ask(&second).0;
    assert_eq!((faults.len(), faults[0].field.as_str(), faults[0].code), (1, "instance", Code::PermissionNotGranted));
    assert_eq!(world.ask(&request("sagjan", 3, &["GET /a"])).0, [], "the same instance is none more");
    world.services.park_all(world.at);
    world.register(second);
    let woken = world.ask(&request("sagjan", 1, &["GET /a"])).0;
    assert_eq!(woken.len(), 1, "the parked one cannot come back beside it");
}

#[test]
fn other_overlap_is_allowed_and_warned_of_up_to_twenty() {
    let mut world = World::new(vec![grant(None)]);
    for index in 0..30 {
        world.register(request(&format!("s{index}"), 1, &[&format!("GET /api/{index}")]));
    }
    let (faults, warnings) = world.ask(&request("wide", 1, &["GET /api/*", "POST /v1/*"]));
    assert_eq!((faults, warnings.len()), (vec![], 20));
    assert_eq!((warnings[0].code.as_str(), warnings[0].route.as_str()), ("ROUTES_OVERLAP", "GET /api/*"));
    let (_, warnings) = world.ask(&request("wide", 1, &["POST /v1/*"]));
    assert_eq!(warnings[0].with, "POST /v1/mail/* of furt.conf (\"mail\")");
}
