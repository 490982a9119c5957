//! Random callers, routes and requests over so few words that they meet each other all the time.

use std::fmt::Write as _;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::client::Request;

/// What permissions and keys are made of.
const PERMISSIONS: [&str; 5] = ["a:read", "a:write", "b:read", "a:b:read", "c:c"];
const GRANTED: [&str; 8] = ["a:read", "a:write", "a:*", "b:read", "b:*", "a:b:*", "c:c", "*"];
const HOSTS: [&str; 4] = ["", "x.org", "*.x.org", "y.x.org"];
const METHODS: [&str; 7] = ["GET", "GET", "POST", "*", "*", "HEAD", "PURGE"];

/// A key of furt.conf.
pub struct Caller {
    pub name: String,
    pub secret: String,
    /// An address that it may be used from, when not every one will do.
    pub address: Option<&'static str>,
    section: String,
}

/// One of a few, by the generator.
fn one<'a, T: ?Sized>(rng: &mut Rng, of: &[&'a T]) -> &'a T {
    of[rng.usize(..of.len())]
}

/// Keys with few and many permissions, expired, bound to addresses, soon used up.
pub fn callers(rng: &mut Rng) -> Vec<Caller> {
    let bound = [("", None), ("127.0.0.1", None), ("10.0.0.0/8", Some("10.1.2.3")), ("192.0.2.7, 2001:db8::/32", Some("192.0.2.7"))];
    let caller = |number: usize| {
        let name = format!("k{number}");
        let secret = format!("a-key-with-at-least-32-characters-{number}");
        let mut granted: Vec<_> = (0..rng.usize(1..4)).map(|_| one(rng, &GRANTED)).collect();
        // The first few are of every kind.
        let more = match if number < 4 { number } else { rng.usize(..8) } {
            0 => "rate_limit = 3/h\n",
            1 => "expires = 2020-01-31T00:00:00Z\n",
            2 => "expires = 2999-01-31T00:00:00Z\n",
            3 => "rate_limit = 100000/h\n",
            _ => "",
        };
        if number == 0 {
            granted.push("*");
        }
        let mut section = format!("[api_key \"{secret}\"]\nname = {name}\npermissions = {}\n", granted.join(", "));
        let (networks, address) = bound[if rng.u8(..3) == 0 { rng.usize(1..bound.len()) } else { 0 }];
        if !networks.is_empty() {
            writeln!(section, "allowed_ips = {networks}").expect("a string takes it");
        }
        section.push_str(more);
        Caller { name, secret, address, section }
    };
    (0..8).map(caller).collect()
}

/// The sections of furt.conf for these callers.
pub fn sections(callers: &[Caller]) -> String {
    callers.iter().map(|caller| format!("{}\n", caller.section)).collect()
}

/// A pattern of up to four segments.
fn pattern(rng: &mut Rng) -> String {
    let segments = ["a", "b", "c", "*", "*", "a%2Cb", "healthy"];
    let mut path = String::new();
    for _ in 0..rng.usize(1..5) {
        path.push('/');
        path.push_str(one(rng, &segments));
    }
    if rng.u8(..8) == 0 && !path.ends_with('*') {
        path.push('/');
    }
    if rng.u8(..30) == 0 { "/".into() } else { path }
}

/// The routes of one instance, no two of one host, method and pattern.
pub fn routes(rng: &mut Rng) -> Vec<Value> {
    let mut routes: Vec<Value> = Vec::new();
    for _ in 0..rng.usize(1..6) {
        let mut route = json!({"method": one(rng, &METHODS), "path": pattern(rng)});
        match rng.u8(..6) {
            0 => {}
            1 => route["public"] = true.into(),
            _ => route["permission"] = one(rng, &PERMISSIONS).into(),
        }
        if rng.u8(..3) == 0 {
            route["host"] = one(rng, &HOSTS[1..]).into();
        }
        let place = |route: &Value| (route["method"].clone(), route["path"].clone(), route["host"].clone());
        if routes.iter().all(|known| place(known) != place(&route)) {
            routes.push(route);
        }
    }
    routes
}

/// Static routes to `url`, as sections of furt.conf; each has a label of its own.
pub fn static_routes(rng: &mut Rng, url: &str) -> String {
    let mut text = String::new();
    for number in 0..rng.usize(..4) {
        let access = if rng.bool() { "public = true".into() } else { format!("permission = {}", one(rng, &PERMISSIONS)) };
        // A host and pattern of its own, since two static routes must not be the same.
        let (host, path) = (one(rng, &HOSTS), format!("{}/{number}", pattern(rng).trim_end_matches('/')));
        let host = if host.is_empty() { String::new() } else { format!("host = {host}\n") };
        let methods = one(rng, &["GET", "GET, POST", "*"]);
        writeln!(text, "[route \"static-{number}\"]\nmethods = {methods}\npath = {path}\nurl = {url}\n{access}\n{host}").expect("a string");
    }
    text
}

/// A question to explain, and the same as a request.
pub struct Question {
    pub method: &'static str,
    pub path: String,
    pub host: &'static str,
    /// Empty: no key is sent.
    pub key_name: String,
    pub request: Request,
}

impl Question {
    /// As the query of `/internal/explain`.
    pub fn query(&self) -> String {
        let [method, path, host, key] = [self.method, &self.path, self.host, &self.key_name].map(encoded);
        format!("/internal/explain?method={method}&path={path}&host={host}&key_name={key}")
    }
}

/// Percent-encoded for a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A path that may meet a pattern, or not be one at all.
fn path(rng: &mut Rng) -> String {
    let segments = ["a", "b", "c", "a", "b", "c", "d", "0", "1", "2", "%61", "a%2cb", "a%2Cb", "healthy"];
    let odd = ["..", ".", "", "%2F", "%zz", "a%5Cb", "x;..", "%00", "#", "a b", "ä", "%c0%af", "*"];
    let mut path = String::new();
    for _ in 0..rng.usize(1..5) {
        path.push('/');
        path.push_str(if rng.u8(..60) == 0 { one(rng, &odd) } else { one(rng, &segments) });
    }
    if rng.u8(..8) == 0 {
        path.push('/');
    }
    match rng.u8(..60) {
        0 => path = "/".into(),
        1 => {
            path =
                one(rng, &["/health", "/health/live", "/health/ready", "/health/x", "/auth/status", "/auth", "/internal/services"]).into()
        }
        2 => path = format!("/{}", "a".repeat(9_000)),
        _ => {}
    }
    match rng.u8(..6) {
        0 => path.push_str("?x=%2F..//&y"),
        1 if rng.u8(..10) == 0 => path.push_str(one(rng, &["?#", "?x#y", "? x"])),
        _ => {}
    }
    path
}

/// A request that any of `callers` may make, or nobody, or somebody unknown.
pub fn question(rng: &mut Rng, callers: &[Caller]) -> Question {
    let method = one(rng, &["GET", "GET", "GET", "GET", "GET", "POST", "HEAD", "PURGE", "OPTIONS", "DELETE", "get"]);
    let path = path(rng);
    let host = match rng.u8(..40) {
        0 => one(rng, &["a/b", "x.org:port", "x,y", "[::1"]),
        _ => one(rng, &["", "", "x.org", "X.org:8080", "y.x.org", "z.y.x.org.", "xx.org", "[::1]:80", "10.0.0.1"]),
    };
    let mut request = Request::new(method, &path);
    if !host.is_empty() {
        request = request.host(host);
    }
    let key_name = match rng.usize(..callers.len() + 2) {
        0 => String::new(),
        1 => {
            request = request.key("a-key-that-nobody-has-ever-been-given");
            "nobody".into()
        }
        number => {
            let caller = &callers[number - 2];
            request = request.key(&caller.secret);
            // explain takes a key that is bound to addresses to come from one of them.
            if let Some(address) = caller.address {
                request = request.field("X-Forwarded-For", address);
            }
            caller.name.clone()
        }
    };
    Question { method, path, host, key_name, request }
}
