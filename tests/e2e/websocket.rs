//! WebSocket and what else follows a 101: between a client and a service of Python's websockets here; byte by byte,
//! between two sockets of the test's own, in [`switched`].
//!
//! `python3` has to have the package websockets; without it those tests say that they were skipped.

use serde_json::{Value, json};

use crate::{
    client::{Client, Request},
    peer::Peer,
    tls::party::{Files, Pair},
    upstream::{Upstream, answer},
    world::{Conf, WEBSITE_KEY, World, eventually},
};

mod refused;
mod switched;

const ROUTES: &[&str] = &["GET /ws/* comments:read", "GET /admin/* admin:all"];

/// A furt, a service behind it, and a client before it.
struct Sockets {
    furt: World,
    service: Peer,
    client: Peer,
    files: Option<Files>,
}

impl Sockets {
    /// None when Python cannot be here, which is said aloud.
    fn start(conf: Conf, files: Option<Files>) -> Option<Self> {
        let service = Peer::start("websocket_server.py", "websockets", [""; 0])?;
        let client = Peer::start("websocket_client.py", "websockets", [""; 0])?;
        let furt = conf.start();
        furt.register("sockets", &format!("http://127.0.0.1:{}", service.tells("port")), ROUTES);
        Some(Self { furt, service, client, files })
    }

    fn plain() -> Option<Self> {
        Self::start(Conf::new(), None)
    }

    fn secure() -> Option<Self> {
        let (files, (authority, own)) = (Files::new(), Pair::below_an_authority(&["a.test"]));
        files.put("a", &own);
        files.write("authority.pem", &authority.pem);
        let [certificates, keys] = files.lines(&["a"]);
        Self::start(Conf::new().server(&certificates).server(&keys), Some(files))
    }

    /// Opens a connection as the website, with what else is said about it.
    #[track_caller]
    fn open(&mut self, path: &str, more: Value) -> Value {
        let scheme = if self.files.is_some() { "wss" } else { "ws" };
        let mut order = json!({"do": "open", "url": format!("{scheme}://{}{path}", self.furt.public), "key": WEBSITE_KEY});
        if let Some(files) = &self.files {
            order["authority"] = files.path("authority.pem").display().to_string().into();
            order["name"] = "a.test".into();
        }
        more.as_object().expect("an object").iter().for_each(|(name, value)| order[name] = value.clone());
        self.client.ask(&order)
    }

    /// Opens a connection that has to stand.
    #[track_caller]
    fn opened(&mut self, path: &str) {
        let answer = self.open(path, json!({}));
        assert_eq!((&answer["status"], &answer["gateway"]), (&json!(101), &json!("furt")), "{answer}");
        self.sees("opened");
    }

    /// Has the client do something on its connection.
    #[track_caller]
    fn client(&mut self, what: &str, more: Value) -> Value {
        let mut order = more;
        order["do"] = what.into();
        self.client.ask(&order)
    }

    /// What the service sees next of this kind.
    #[track_caller]
    fn sees(&self, event: &str) -> Value {
        std::iter::repeat_with(|| self.service.says()).find(|seen| seen["event"] == event).expect("it waits for one")
    }

    /// Sends a message and takes it back, unchanged.
    #[track_caller]
    fn echoed(&mut self, message: Value) -> Value {
        let sent = self.client("send", message.clone());
        let received = self.client("receive", json!({}));
        assert!(sent["sha256"].is_string() && sent["sha256"] == received["sha256"], "{message}: {sent} {received}");
        received
    }
}

#[track_caller]
fn messages(mut sockets: Sockets) {
    let answer = sockets.open("/ws/echo?room=7", json!({"subprotocols": ["chat.v9", "chat.v1"], "compression": "deflate"}));
    assert_eq!((&answer["status"], &answer["subprotocol"]), (&json!(101), &json!("chat.v1")), "{answer}");
    assert!(answer["extensions"].as_str().is_some_and(|extensions| extensions.starts_with("permessage-deflate")), "{answer}");
    let asked = sockets.sees("asked");
    let fields = &asked["fields"];
    assert_eq!((&asked["path"], &fields["upgrade"]), (&json!("/ws/echo?room=7"), &json!("websocket")), "{asked}");
    assert!(fields["connection"].as_str().is_some_and(|value| value.eq_ignore_ascii_case("upgrade")), "{asked}");
    assert_eq!((&fields["x-api-key-name"], &fields["x-api-key"]), (&json!("Website"), &Value::Null), "{asked}");
    let scheme = if sockets.files.is_some() { "https" } else { "http" };
    assert_eq!(fields["x-forwarded-proto"], scheme, "{asked}");
    sockets.echoed(json!({"text": "compressed, compressed, compressed"}));

    sockets.opened("/ws/echo");
    assert_eq!(sockets.echoed(json!({"text": "grüße"}))["kind"], "text");
    assert_eq!(sockets.echoed(json!({"text": ""}))["length"], 0);
    // Around the sizes where a frame's length takes another form (RFC 6455 §5.2), and far beyond.
    for size in [0, 1, 125, 126, 65_535, 65_536, 100_000, 3 << 20] {
        let received = sockets.echoed(json!({"size": size}));
        assert_eq!((&received["kind"], &received["length"]), (&json!("binary"), &json!(size)));
    }
    assert_eq!(sockets.echoed(json!({"fragments": [10, 0, 70_000, 3]}))["length"], 70_013);
    assert_eq!(sockets.client("ping", json!({}))["ponged"], true);

    sockets.opened("/ws/ping");
    sockets.client("send", json!({"text": "ping me"}));
    // The client answers a ping while it waits for a message.
    assert_eq!(sockets.client("receive", json!({}))["text"], "ponged");
    sockets.sees("ponged");
}

#[test]
fn messages_arrive_as_they_were_sent_both_ways() {
    let Some(sockets) = Sockets::plain() else { return };
    messages(sockets);
}

#[test]
fn messages_arrive_as_they_were_sent_both_ways_over_tls() {
    let Some(sockets) = Sockets::secure() else { return };
    messages(sockets);
}

#[test]
fn whoever_closes_the_other_is_told_why() {
    let Some(mut sockets) = Sockets::plain() else { return };
    for (code, reason) in [(1000, ""), (1001, "going away"), (4001, "as we like")] {
        sockets.opened("/ws/echo");
        let closed = sockets.client("close", json!({"code": code, "reason": reason}));
        assert_eq!(closed, json!({"code": code, "reason": reason}), "the service's answer");
        let seen = sockets.sees("closed");
        assert_eq!((&seen["code"], &seen["reason"]), (&json!(code), &json!(reason)), "{seen}");
    }
    for code in [1000, 1011, 4002] {
        sockets.opened(&format!("/ws/close/{code}"));
        sockets.client("send", json!({"text": "close me"}));
        assert_eq!(sockets.client("closed", json!({})), json!({"code": code, "reason": "as you say"}));
    }
    let logged = |furt: &World| furt.log().iter().filter(|line| line.contains("INFO request ") && line.contains("status=101")).count();
    eventually("each has its line in the access log", || (logged(&sockets.furt) == 6).then_some(()));
}

#[test]
fn without_the_permission_no_service_hears_of_it() {
    let Some(mut sockets) = Sockets::plain() else { return };
    let refused = |answer: Value, status: u16, reason: &str| {
        assert_eq!((&answer["status"], &answer["reason"]), (&json!(status), &json!(reason)), "{answer}");
    };
    refused(sockets.open("/ws/echo", json!({"key": "nobodys-key-0123456789-0123456789"})), 401, "unknown-key");
    refused(sockets.open("/admin/echo", json!({})), 403, "permission");
    refused(sockets.open("/other", json!({})), 404, "no-route");
    let url = format!("ws://{}/ws/echo", sockets.furt.public);
    refused(sockets.client.ask(&json!({"do": "open", "url": url})), 401, "no-key");
    sockets.open("/ws/echo", json!({}));
    assert_eq!(sockets.service.says()["event"], "asked", "the first that it heard of");
    assert_eq!(sockets.service.says()["event"], "opened", "it is the one that stands");
}

#[test]
fn a_service_that_will_not_is_heard_as_any_other() {
    let Some(mut sockets) = Sockets::plain() else { return };
    let answer = sockets.open("/ws/plain", json!({}));
    assert_eq!(answer, json!({"status": 200, "body": "not here", "reason": null}));
    let answer = sockets.open("/ws/forbidden", json!({}));
    assert_eq!(answer, json!({"status": 403, "body": "not you", "reason": null}));
}

#[test]
fn a_service_that_dies_ends_the_connection() {
    let Some(mut sockets) = Sockets::plain() else { return };
    sockets.opened("/ws/echo");
    sockets.echoed(json!({"text": "alive"}));
    sockets.service.kill();
    assert_eq!(sockets.client("closed", json!({}))["code"], 1006, "without a word");
}
