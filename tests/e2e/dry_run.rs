//! Dry run against reality: what a dry run answers is what registering answers.
//!
//! Registrations are generated, good and bad in every way there is, and sent to one furt in order: first as a dry run,
//! then for good, so that each meets what those before it left. `FURT_DRY_RUNS` is their number, `FURT_SEED` another
//! choice of them.

use std::collections::HashMap;

use fastrand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    client::{Answer, Client, Request},
    port::Port,
    upstream::Upstream,
    world::{Conf, World, from_environment},
};

const GRANTS: &str = "\
[service \"alpha\"]
permissions = a:*
paths = /alpha, /alpha/*, /shared/*
max_instances = 2

[service \"beta\"]
permissions = *
hosts = x.org, *.x.org
allow_public = true

[service \"gamma\"]
permissions = a:read, b:*
paths = /shared/*, /gamma/*, /fixed
upstreams = 127.0.0.0/8, 10.0.0.0/8

[service \"far\"]
permissions = *
from = 10.0.0.0/8

[service \"secret\"]
permissions = *
token_sha256 = DIGEST
";
const TOKEN: &str = "the token of secret";
const FIXED: &str = "[route \"fixed\"]\nmethods = GET, POST\npath = /fixed\nurl = http://127.0.0.1:9\npublic = true\n";

struct Registrations {
    rng: Rng,
    /// The first two are good.
    urls: Vec<String>,
    /// Where one of them leads.
    _nobody: Port,
    /// Whether the one that is being made may have what cannot be read.
    faulty: bool,
    /// Whether its routes keep to what its service may have.
    fitting: bool,
}

impl Registrations {
    fn any(&mut self, of: &[Value]) -> Value {
        of[self.rng.usize(..of.len())].clone()
    }

    fn one(&mut self, of: &[&str]) -> String {
        of[self.rng.usize(..of.len())].to_owned()
    }

    /// Whether to put a fault here.
    fn errs(&mut self) -> bool {
        self.faulty && self.rng.u8(..8) == 0
    }

    fn path(&mut self, service: &str) -> String {
        if self.errs() {
            return self.one(&[
                "",
                "a",
                "/a//b",
                "/../a",
                "/a/%2F",
                "/**",
                "/a*",
                "/health",
                "/internal/x",
                "/auth/*",
                "/a?b",
                "/%zz",
                "/ä",
            ]);
        }
        let roots: &[&str] = match service {
            "alpha" if self.fitting => &["/alpha", "/shared/x", "/shared/*"],
            "gamma" if self.fitting => &["/shared/x", "/shared/y", "/gamma/*"],
            _ if self.fitting => &["/beta", "/shared/x", "/b/*"],
            _ => &["/alpha", "/shared/x", "/gamma/x", "/beta", "/fixed", "/*"],
        };
        let root = self.one(roots);
        match self.rng.u8(..4) {
            0 => root,
            1 => format!("{}/*", root.trim_end_matches("/*")),
            _ => format!("{root}/{}/{}", self.one(&["a", "b", "*"]), self.one(&["c", "d", "e", "f"])),
        }
    }

    fn route(&mut self, service: &str) -> Value {
        let mut route = json!({"method": self.one(&["GET", "GET", "POST", "HEAD", "*"]), "path": self.path(service)});
        if self.errs() {
            route["method"] = self.any(&[json!("get"), json!("CONNECT"), json!(""), json!(7), Value::Null]);
        }
        if self.errs() {
            route["permission"] = self.one(&["a:*", "*", "a", "a b:c", "a:b:c:d", &"a".repeat(200)]).into();
        } else if self.errs() {
            (route["public"], route["permission"]) = (true.into(), "a:read".into());
        } else {
            match self.rng.u8(..8) {
                0 => {}
                1 if !self.fitting || service == "beta" => route["public"] = true.into(),
                2 if !self.fitting => route["permission"] = "c:read".into(),
                _ => route["permission"] = self.one(&["a:read", "a:read", if service == "gamma" { "b:read" } else { "a:write" }]).into(),
            }
        }
        if self.rng.u8(..8) == 0 && (!self.fitting || service == "beta") {
            route["host"] = self.one(&["x.org", "y.x.org", "*.x.org"]).into();
        }
        if self.errs() {
            route["host"] = self.one(&["other.org", "*.org", "a b", "x.org:80"]).into();
        }
        if self.rng.u8(..10) == 0 {
            route["timeout"] = self.any(&[json!("30"), json!("500ms"), json!(5)]);
        }
        if self.errs() {
            route["timeout"] = self.any(&[json!("soon"), json!(-1), json!({})]);
        }
        if self.errs() {
            route[self.one(&["methods", "Path", "x"])] = "y".into();
        }
        route
    }

    fn body(&mut self) -> Value {
        (self.faulty, self.fitting) = (self.rng.u8(..3) == 0, self.rng.u8(..3) > 0);
        let service =
            if self.fitting { self.one(&["alpha", "beta", "gamma"]) } else { self.one(&["alpha", "gamma", "far", "secret", "nobody"]) };
        let count = match self.rng.u8(..50) {
            0 => 0,
            1 => 1_001,
            _ => self.rng.usize(1..4),
        };
        let url = if self.errs() || !self.fitting { self.rng.usize(..self.urls.len()) } else { self.rng.usize(..2) };
        let routes: Vec<_> = (0..count).map(|_| self.route(&service)).collect();
        let mut body = json!({"service": service, "url": self.urls[url], "routes": routes});
        let fields: [(&str, &[Value], &[Value]); 6] = [
            ("instance", &[json!("one"), json!("two"), json!("three")], &[json!("Not a name"), json!(1)]),
            ("health_endpoint", &[json!("/health"), json!("/up?deep=1")], &[json!("health"), json!("/a/../b"), json!("/a#b"), json!(null)]),
            ("version", &[json!("1.2")], &[json!(2)]),
            ("weight", &[json!(1), json!(1000)], &[json!(0), json!(1001), json!(-1), json!(1.5), json!("7")]),
            ("metadata", &[json!({"a": "b"})], &[json!({"a": 1}), json!([])]),
            ("protocol", &[json!("http1")], &[json!("h3")]),
        ];
        for (field, good, bad) in fields {
            if self.errs() {
                body[field] = self.any(bad);
            } else if self.rng.u8(..6) == 0 {
                body[field] = self.any(good);
            }
        }
        if self.errs() {
            body[self.one(&["servce", "Service", "routes "])] = "x".into();
        }
        let field = self.one(&["service", "url", "routes"]);
        if self.errs() {
            body[field.as_str()] = self.any(&[json!(null), json!(7), json!({}), json!("")]);
        } else if self.errs() {
            body.as_object_mut().expect("an object").remove(&field);
        }
        body
    }

    /// A registration and the token it comes with, if any.
    fn next(&mut self) -> (String, Option<&'static str>) {
        let mut text = self.body().to_string();
        match self.rng.u8(..60) {
            0 => text = self.one(&["", "{", "[]", "null", "7", "{}", "\u{feff}{}"]),
            1 => text.insert_str(1, "\"service\":\"alpha\","),
            2 => text.truncate(text.len() / 2),
            _ => {}
        }
        let token = [None, None, None, Some(TOKEN), Some("some other token")][self.rng.usize(..5)];
        (text, token)
    }
}

/// What is registered, without what changes by itself.
fn held(internal: &mut Client) -> Vec<String> {
    let answer = internal.ask(&Request::get("/internal/services"));
    answer.status(200);
    let data = &answer.json()["data"];
    let mut held = Vec::new();
    for service in data["services"].as_array().expect("services") {
        let routes = service["routes"]
            .as_array()
            .expect("routes")
            .iter()
            .map(|route| format!("{} {} {}", route["method"], route["path"], route["permission"]));
        held.push(format!("{} {}", service["service"], routes.collect::<Vec<_>>().join(", ")));
        for one in service["instances"].as_array().expect("instances") {
            held.push(format!("{} {} {} {}", one["id"], one["url"], one["registration_id"], one["weight"]));
        }
    }
    held
}

/// What an answer says, but for what only a real registration has, and for the state of an instance, which changes by itself.
fn verdict(answer: &Answer) -> Value {
    let body = answer.json();
    let mut data = body["data"].clone();
    if let Some(data) = data.as_object_mut() {
        for own in ["registration_id", "version", "status"] {
            data.remove(own);
        }
    }
    let retry_after = answer.field("retry-after").is_some();
    json!({"status": answer.status, "error": body["error"], "code": body["code"], "details": body["details"], "data": data, "retry": retry_after})
}

fn start(seed: u64) -> (World, Upstream, Registrations) {
    let (upstream, nobody) = (Upstream::start("any"), Port::take());
    let digest: String = Sha256::digest(TOKEN).iter().map(|byte| format!("{byte:02x}")).collect();
    let furt = Conf::new().grants(&GRANTS.replace("DIGEST", &digest)).gateway("registration_rate = 1000000/s").more(FIXED).start();
    let urls = vec![
        upstream.url(),
        format!("http://localhost:{}/base", upstream.address.port()),
        nobody.url(),
        format!("http://{}", furt.internal),
        format!("http://{}", furt.public),
        "http://10.0.0.1:80".into(),
        "http://169.254.1.1".into(),
        "http://0.0.0.0:8080".into(),
        "http://[::1]:0".into(),
        "http://user@127.0.0.1".into(),
        "ftp://127.0.0.1".into(),
        "http://127.0.0.1/a/../b".into(),
        "http://127.0.0.1?x".into(),
        format!("http://127.0.0.1/{}", "a".repeat(3_000)),
    ];
    let rng = Rng::with_seed(seed);
    (furt, upstream, Registrations { rng, urls, _nobody: nobody, faulty: false, fitting: false })
}

#[test]
fn a_dry_run_says_of_generated_registrations_what_registering_them_says() {
    let seed = from_environment("FURT_SEED", 1) as u64;
    let (furt, upstream, mut registrations) = start(seed);
    let mut internal = Client::new(furt.internal);
    let mut said = HashMap::<String, usize>::new();
    let mut before = held(&mut internal);
    let runs = from_environment("FURT_DRY_RUNS", 1_000);
    for run in 0..runs {
        let (body, token) = registrations.next();
        let ask = |internal: &mut Client, path: &str| {
            let request = Request::post(path, &body);
            internal.ask(&token.iter().fold(request, |request, token| request.field("Authorization", &format!("Bearer {token}"))))
        };
        let dry = ask(&mut internal, "/internal/register-service?dry_run=true");
        let what = format!("seed {seed}, registration {run}, token {token:?}: {}", body.chars().take(2_000).collect::<String>());
        assert_eq!(held(&mut internal), before, "a dry run changes nothing: {what}");
        let real = ask(&mut internal, "/internal/register-service");
        assert_eq!(verdict(&dry), verdict(&real), "{what}");
        if real.status == 200 {
            before = held(&mut internal);
            let warnings = real.json()["data"]["warnings"].as_array().map_or(0, Vec::len);
            *said.entry(if warnings > 0 { "warned" } else { "registered" }.into()).or_default() += 1;
        } else {
            let details = real.json()["details"].as_array().map_or(0, Vec::len);
            *said.entry(if details > 1 { "several" } else { "one" }.into()).or_default() += 1;
            *said.entry(real.code()).or_default() += 1;
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    if runs >= 1_000 {
        for kind in [
            "registered",
            "warned",
            "one",
            "several",
            "VALIDATION_ERROR",
            "MALFORMED_REQUEST",
            "PERMISSION_NOT_GRANTED",
            "REGISTRATION_REFUSED",
            "ROUTE_CONFLICT",
        ] {
            assert!(said.get(kind).is_some_and(|count| *count > 1), "no {kind}: {said:?}");
        }
        assert!(said["registered"] * 10 > runs, "{said:?}");
    }
}
