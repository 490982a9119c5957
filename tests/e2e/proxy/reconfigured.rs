//! Another furt.conf while requests are under way: each sees one configuration to its end, and connections live on.

use std::sync::{Mutex, mpsc};

use crate::{
    client::{Client, Request},
    upstream::{Reply, Upstream, ok},
    world::{Conf, READER_KEY, WEBSITE_KEY, World, eventually},
};

const ROUTES: &[&str] = &["GET /api/* comments:read", "POST /api/* comments:write"];

/// Another furt.conf is in force when this returns.
#[track_caller]
fn reload(furt: &mut World, conf: Conf) {
    furt.rewrite(conf);
    furt.reload().status(200);
}

fn get(path: &str) -> Request {
    Request::get(path).key(WEBSITE_KEY)
}

#[test]
fn a_request_under_way_keeps_its_configuration_and_the_next_on_its_connection_has_the_new_one() {
    let mut furt = Conf::new().server("add_headers = X-Before: 1").start();
    let (pieces, hold) = mpsc::channel();
    let hold = Mutex::new(Some(hold));
    let slow = Upstream::with(move |_| match hold.lock().expect("nobody panics with it").take() {
        Some(pieces) => Reply::Pieces(pieces),
        None => Reply::Bytes(ok("quick")),
    });
    furt.register("sagjan", &slow.url(), ROUTES);
    let mut client = Client::new(furt.public);
    client.write(get("/api/a").to_bytes(furt.public)).expect("sent");
    eventually("the request is with the service", || (slow.requests().len() == 1).then_some(()));
    reload(&mut furt, Conf::new().server("add_headers = X-After: 1"));
    pieces.send(ok("slow")).expect("the upstream waits");
    drop(pieces);
    let answer = client.read("GET").expect("an answer");
    assert_eq!((answer.status, answer.field("x-before"), answer.field("x-after")), (200, Some("1"), None));
    let answer = client.ask(&get("/api/a"));
    assert_eq!((answer.status, answer.field("x-before"), answer.field("x-after")), (200, None, Some("1")));
}

#[test]
fn a_connection_is_trusted_as_furt_conf_says_at_each_of_its_requests() {
    let mut furt = Conf::new().start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    let mut client = Client::new(furt.public);
    let mut told = || {
        client.ask(&get("/api/a").field("X-Forwarded-For", "192.0.2.7").field("X-Request-ID", "mine")).status(200);
        let seen = sagjan.last();
        (seen.field("x-forwarded-for").map(str::to_owned), seen.field("x-request-id") == Some("mine"))
    };
    assert_eq!(told(), (Some("192.0.2.7, 127.0.0.1".into()), true));
    reload(&mut furt, Conf::new().server("trusted_proxies = 10.0.0.1"));
    assert_eq!(told(), (Some("127.0.0.1".into()), false));
    reload(&mut furt, Conf::new().server("trusted_proxies = 127.0.0.1"));
    assert_eq!(told(), (Some("192.0.2.7, 127.0.0.1".into()), true));
}

#[test]
fn the_rate_of_an_address_starts_anew_only_when_it_changes() {
    let limited = |rate: &str| Conf::new().server(&format!("ip_rate_limit = {rate}"));
    let mut furt = limited("3/h").start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    let mut client = Client::new(furt.public);
    let mut ask = || client.ask(&get("/api/a")).status;
    assert_eq!([(); 4].map(|()| ask()), [200, 200, 200, 429]);
    reload(&mut furt, limited("3/h").server("add_headers = X-Other: 1"));
    assert_eq!(ask(), 429, "what was used stays used");
    reload(&mut furt, limited("2/h"));
    assert_eq!([(); 3].map(|()| ask()), [200, 200, 429]);
    reload(&mut furt, Conf::new());
    assert_eq!([(); 5].map(|()| ask()), [200; 5]);
}

#[test]
fn the_rate_of_a_key_starts_anew_only_when_it_changes() {
    let key = "a-key-with-at-least-32-characters-limited";
    let limited =
        |rate: &str| Conf::new().more(&format!("[api_key \"{key}\"]\nname = Limited\npermissions = comments:*\nrate_limit = {rate}\n"));
    let mut furt = limited("2/h").start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    let mut client = Client::new(furt.public);
    let mut ask = || client.ask(&Request::get("/api/a").key(key)).status;
    assert_eq!([(); 3].map(|()| ask()), [200, 200, 429]);
    reload(&mut furt, limited("2/h").server("add_headers = X-Other: 1"));
    assert_eq!(ask(), 429, "what was used stays used");
    reload(&mut furt, limited("1/h"));
    assert_eq!([(); 2].map(|()| ask()), [200, 429]);
}

#[test]
fn fewer_connections_and_less_time_hold_for_those_that_live() {
    let mut furt = Conf::new().start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    let mut clients = [(); 3].map(|()| Client::new(furt.public));
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(&get("/api/a")).status, 200));
    reload(&mut furt, Conf::new().server("max_connections = 2").server("client_timeout = 1"));
    let mut refused = Client::new(furt.public);
    assert!(refused.rest().is_empty(), "one more is closed at once");
    // Those that are there stay, and a head has the new time to arrive.
    let [first, second, third] = &mut clients;
    assert_eq!(first.ask(&get("/api/a")).status, 200);
    second.write("GET /api/a HTTP/1.1\r\n").expect("sent");
    assert!(String::from_utf8_lossy(&second.rest()).contains("HTTP/1.1 408 "));
    assert_eq!(third.ask(&get("/api/a")).status, 200);
    reload(&mut furt, Conf::new());
    assert_eq!(Client::new(furt.public).ask(&Request::get("/api/a").key(READER_KEY)).status, 200);
}
