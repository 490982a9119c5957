//! Which route a request meets: wildcards, specificity, hosts, methods.

use serde_json::json;

use crate::{
    client::Request,
    upstream::Upstream,
    world::{ADMIN_KEY, Conf, READER_KEY, World},
};

/// Grants that name every path, so that narrower routes may lie inside wider ones.
const GRANTS: &str = "[service \"*\"]\npermissions = *\npaths = /, /*\nhosts = *.example.org, *.org\nallow_public = true\n";

/// A furt whose services all answer with their own name; each is registered with its routes.
struct Services {
    furt: World,
    upstreams: Vec<Upstream>,
}

impl Services {
    fn start(services: &[(&'static str, &[&str])]) -> Self {
        let furt = Conf::new().grants(GRANTS).start();
        let upstreams = services.iter().map(|(name, routes)| {
            let upstream = Upstream::start(name);
            furt.register(name, &upstream.url(), routes);
            upstream
        });
        let upstreams = upstreams.collect();
        Self { furt, upstreams }
    }

    /// Asserts which service answers, or the status of furt's own refusal.
    #[track_caller]
    fn check(&self, method: &str, path: &str, expected: Result<&str, u16>) {
        let answer = self.furt.send(&Request::new(method, path).key(ADMIN_KEY));
        let got = answer.field("x-upstream").ok_or(answer.status);
        assert_eq!(got, expected, "{method} {path}");
    }

    fn received(&self) -> usize {
        self.upstreams.iter().map(|upstream| upstream.requests().len()).sum()
    }
}

#[test]
fn wildcards_match_as_the_seed_says() {
    let services = Services::start(&[("comments", &["GET /api/comments/* a:b"]), ("reply", &["GET /api/notes/*/reply a:b"])]);
    for path in ["/api/comments/test-post", "/api/comments/a/", "/api/comments/a/b", "/api/comments/a/b/c/d", "/api/comments/*"] {
        services.check("GET", path, Ok("comments"));
    }
    for path in ["/api/comments", "/api/comments/", "/api/commentsx", "/api/comment/x", "/api", "/", "/API/comments/x", "/api/Comments/x"] {
        services.check("GET", path, Err(404));
    }
    services.check("GET", "/api/notes/abc123/reply", Ok("reply"));
    for path in ["/api/notes/reply", "/api/notes/a/b/reply", "/api/notes/abc123/reply/", "/api/notes/abc123/replyx"] {
        services.check("GET", path, Err(404));
    }
    services.check("GET", "/api/notes//reply", Err(400));
    assert_eq!(services.received(), 6, "nothing but what matched was forwarded");
}

#[test]
fn the_most_specific_pattern_wins_and_a_literal_prefix_hides_no_wildcard() {
    let services = Services::start(&[
        ("rest", &["GET /* a:b"]),
        ("api", &["GET /api/* a:b"]),
        ("one", &["GET /api/*/edit a:b"]),
        ("literal", &["GET /api/users a:b", "GET /api/users/me a:b"]),
        ("deep", &["GET /api/users/*/posts/* a:b"]),
    ]);
    services.check("GET", "/x", Ok("rest"));
    services.check("GET", "/api", Ok("rest"));
    services.check("GET", "/api/x", Ok("api"));
    services.check("GET", "/api/users", Ok("literal"));
    services.check("GET", "/api/users/me", Ok("literal"));
    services.check("GET", "/api/x/edit", Ok("one"));
    services.check("GET", "/api/users/1/posts/2", Ok("deep"));
    // The literal `users` leads nowhere for these: the search goes back to the wildcards.
    services.check("GET", "/api/users/edit", Ok("one"));
    services.check("GET", "/api/users/me/edit", Ok("api"));
    services.check("GET", "/api/users/1/posts", Ok("api"));
    services.check("GET", "/api/users/", Ok("api"));
}

#[test]
fn a_trailing_slash_is_significant_and_the_root_is_a_pattern() {
    let services = Services::start(&[("plain", &["GET /a a:b"]), ("slash", &["GET /a/ a:b"]), ("root", &["GET / a:b"])]);
    services.check("GET", "/a", Ok("plain"));
    services.check("GET", "/a/", Ok("slash"));
    services.check("GET", "/", Ok("root"));
    services.check("GET", "/b", Err(404));
    services.check("GET", "/?q=/a", Ok("root"));
}

#[test]
fn the_canonical_path_is_matched_and_forwarded() {
    let services = Services::start(&[("comments", &["GET /api/comments/* a:b"])]);
    let check = |sent: &str, forwarded: &str| {
        services.check("GET", sent, Ok("comments"));
        assert_eq!(services.upstreams[0].last().target, forwarded);
    };
    check("/%61pi/comment%73/x", "/api/comments/x");
    check("/api/comments/a%2eb%7e%5f%2D", "/api/comments/a.b~_-");
    check("/api/comments/%c3%a4%20%3f", "/api/comments/%C3%A4%20%3F");
    check("/api/comments/a;v=1,2:3@4!$&'()*+", "/api/comments/a;v=1,2:3@4!$&'()*+");
    // The query goes through unchanged, whatever is in it.
    check("/api/comments/x?a=%2e%2e/../%2F//&b=%zz;'?", "/api/comments/x?a=%2e%2e/../%2F//&b=%zz;'?");
    check("/api/comments/x?", "/api/comments/x?");
}

#[test]
fn routes_with_a_host_answer_for_it_only_and_the_closer_host_wins() {
    let furt = Conf::new().grants(GRANTS).start();
    let names = ["any", "below", "exact"];
    let upstreams = names.map(Upstream::start);
    for ((name, upstream), host) in names.iter().zip(&upstreams).zip(["", "*.example.org", "a.example.org"]) {
        let body =
            json!({"service": name, "url": upstream.url(), "routes": [{"method": "GET", "path": "/h", "host": host, "permission": "a:b"}]});
        furt.post(&body).status(200);
    }
    let check = |host: &str, expected: &str| {
        let answer = furt.send(&Request::get("/h").host(host).key(ADMIN_KEY));
        assert_eq!(answer.field("x-upstream"), Some(expected), "{host}");
    };
    check("a.example.org", "exact");
    check("A.Example.ORG:8080", "exact");
    check("b.example.org", "below");
    check("b.c.example.org", "below");
    check("example.org", "any");
    check("xexample.org", "any");
    check("127.0.0.1", "any");
    assert_eq!(upstreams[2].last().field("host"), Some("A.Example.ORG:8080"), "as the client sent it");
}

#[test]
fn methods_choose_among_the_routes_of_a_path() {
    let services =
        Services::start(&[("get", &["GET /m a:b"]), ("post", &["POST /m a:b"]), ("any", &["* /any a:b"]), ("purge", &["PURGE /p a:b"])]);
    services.check("GET", "/m", Ok("get"));
    services.check("HEAD", "/m", Ok("get"));
    services.check("POST", "/m", Ok("post"));
    for method in ["GET", "DELETE", "PATCH", "OPTIONS", "QUERY"] {
        services.check(method, "/any", Ok("any"));
    }
    services.check("PURGE", "/p", Ok("purge"));
    let head = services.furt.send(&Request::new("HEAD", "/m").key(ADMIN_KEY));
    assert!(head.status == 200 && head.body.is_empty() && head.field("content-length").is_some(), "{head:?}");
    assert_eq!(services.upstreams[0].last().method, "HEAD");
}

#[test]
fn a_path_known_under_other_methods_only_is_405_and_tells_them() {
    let services = Services::start(&[("some", &["GET /m a:b", "PUT /m a:b"])]);
    let answer = services.furt.send(&Request::new("DELETE", "/m").key(ADMIN_KEY));
    answer.refused(405, "METHOD_NOT_ALLOWED");
    let mut allowed: Vec<_> = answer.field("allow").expect("Allow").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "PUT"]);
    // The key is asked for only where there is something to protect.
    services.furt.send(&Request::new("DELETE", "/m")).refused(405, "METHOD_NOT_ALLOWED");
    services.furt.send(&Request::get("/nowhere")).refused(404, "NOT_FOUND");
    assert_eq!(services.received(), 0);
}

#[test]
fn a_static_route_wins_over_registered_ones_and_is_forwarded_like_them() {
    let mail = Upstream::start("mail");
    let route = format!(
        "[route \"legacy-mail\"]\nmethods = POST\npath = /v1/mail/send\nurl = {}\npermission = mail:send\nset_headers = X-Relay: secret-of-the-relay\n",
        mail.url()
    );
    let furt = Conf::new().grants(GRANTS).more(&route).start();
    let all = Upstream::start("all");
    furt.register("all", &all.url(), &["* /* a:b"]);
    let request = Request::post("/v1/mail/send", "hello").key(ADMIN_KEY).field("X-Relay", "of-the-client");
    assert_eq!(furt.send(&request).field("x-upstream"), Some("mail"));
    let seen = mail.request();
    assert_eq!(seen.values("x-relay"), ["secret-of-the-relay"], "set, replacing the client's own");
    assert_eq!((seen.field("x-api-key-name"), seen.body.as_slice()), (Some("Admin"), &b"hello"[..]));
    furt.send(&Request::post("/v1/mail/send", "").key(READER_KEY)).refused(403, "FORBIDDEN");
    assert_eq!(furt.send(&Request::get("/v1/mail/send").key(ADMIN_KEY)).field("x-upstream"), Some("all"), "it is static for POST only");
    assert!(!furt.log().join("\n").contains("secret-of-the-relay"), "set_headers may hold secrets");
}
