//! Upgrades that do not come about: what was not asked for, what is not forwarded, and what a client sends too early.

use super::*;
use crate::upstream::Reply;

const HANDSHAKE: &str =
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\n";

/// A furt before a service that answers every request so, save for those whose path begins with `/plain`.
fn world(reply: impl AsRef<[u8]>) -> (World, Upstream) {
    let reply = reply.as_ref().to_vec();
    let service = Upstream::with(move |seen| {
        if seen.target.starts_with("/plain") {
            return Reply::Bytes(answer(200, &[], &seen.target));
        }
        Reply::Bytes(reply.clone())
    });
    let furt = World::start();
    furt.register("sockets", &service.url(), &["GET /ws comments:read", "POST /ws comments:write", "GET /plain/* comments:read"]);
    furt.register("secrets", &service.url(), &["GET /secret admin:all"]);
    (furt, service)
}

fn request(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n{fields}\r\n")
}

#[test]
fn a_refusal_of_the_service_leaves_the_connection_to_the_next_request() {
    for (status, body) in [(403, "not you"), (200, "what?"), (426, ""), (404, "gone")] {
        let (furt, service) = world(answer(status, &[("Upgrade", "websocket"), ("X-Was", "here")], body));
        let mut client = Client::new(furt.public);
        for _ in 0..2 {
            client.write(request("GET", "/ws", HANDSHAKE)).expect("sent");
            let told = client.read("GET").expect("an answer");
            assert_eq!((told.status, told.text().as_str(), told.field("x-was")), (status, body, Some("here")), "{told:?}");
            client.write(request("GET", "/plain/after", "")).expect("sent");
            assert_eq!(client.read("GET").expect("an answer").text(), "/plain/after");
        }
        let seen = service.requests();
        assert_eq!((seen[0].field("upgrade"), seen[1].field("upgrade")), (Some("websocket"), None));
        assert_eq!((seen.len(), service.faults()), (4, Vec::new()));
    }
}

#[test]
fn a_101_that_was_not_asked_for_is_a_bad_gateway() {
    let switch = |fields: &str| format!("{SWITCHING}{fields}\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen");
    let to_websocket = switch("Upgrade: websocket\r\nConnection: Upgrade\r\n");
    let upload = format!("{HANDSHAKE}Content-Length: 4\r\n");
    let cases = [
        // Asked for nothing; asked by half a handshake; with a body; for something else.
        (request("GET", "/ws", ""), to_websocket.clone()),
        (request("GET", "/ws", "Upgrade: websocket\r\n"), to_websocket.clone()),
        (request("GET", "/ws", "Connection: Upgrade\r\n"), to_websocket.clone()),
        (request("POST", "/ws", &upload) + "body", to_websocket.clone()),
        (request("GET", "/ws", &HANDSHAKE.replace("Upgrade: websocket", "Upgrade: h2c")), to_websocket.clone()),
        (request("GET", "/ws", HANDSHAKE), switch("Upgrade: h2c\r\nConnection: Upgrade\r\n")),
        (request("GET", "/ws", HANDSHAKE), switch("Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n")),
        (request("GET", "/ws", HANDSHAKE), switch("Upgrade: websocket\r\nUpgrade: chat\r\nConnection: Upgrade\r\n")),
        (request("GET", "/ws", HANDSHAKE), switch("")),
    ];
    for (asked, replied) in cases {
        let (furt, service) = world(&replied);
        let mut client = Client::new(furt.public);
        client.write(&asked).expect("sent");
        client.read("GET").expect("an answer").refused(502, "BAD_GATEWAY");
        // Neither side took it for switched: the client's next request is one, on another connection of the service's.
        client.write(request("GET", "/plain/after", "")).expect("sent");
        let after = client.read("GET").expect("an answer");
        assert_eq!((after.status, after.text().as_str()), (200, "/plain/after"), "{asked} {replied}");
        let seen = service.requests();
        assert_eq!((seen.len(), service.faults()), (2, Vec::new()), "{asked} {replied}");
        assert_ne!(seen[0].connection, seen[1].connection, "{asked} {replied}");
    }
}

#[test]
fn what_is_no_upgrade_is_forwarded_without_it() {
    let cases = [
        ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n", None),
        ("Upgrade: H2C\r\nConnection: upgrade\r\n", None),
        ("Upgrade: TLS/1.0, HTTP/2.0\r\nConnection: upgrade\r\n", Some("TLS/1.0")),
        ("Upgrade: h2c, websocket\r\nConnection: upgrade\r\n", Some("websocket")),
        ("Upgrade: websocket\r\n", None),
        ("Upgrade: websocket\r\nUpgrade: chat\r\nConnection: upgrade\r\n", None),
        ("Connection: upgrade\r\n", None),
        ("Upgrade: web socket\r\nConnection: upgrade\r\n", None),
    ];
    for (fields, forwarded) in cases {
        let (furt, service) = world(answer(200, &[], "plain"));
        let mut client = Client::new(furt.public);
        client.write(request("GET", "/ws", fields)).expect("sent");
        assert_eq!(client.read("GET").expect("an answer").text(), "plain", "{fields}");
        let seen = service.request();
        assert_eq!((seen.field("upgrade"), seen.field("http2-settings")), (forwarded, None), "{fields}");
        let options = seen.field("connection").map(str::to_lowercase);
        assert_eq!(options.as_deref(), forwarded.map(|_| "upgrade"), "{fields}");
    }
    // HTTP/1.0 knows no upgrade (RFC 9110 §7.8).
    let (furt, service) = world(answer(200, &[], "plain"));
    let mut client = Client::new(furt.public);
    client.write(request("GET", "/ws", HANDSHAKE).replace("HTTP/1.1", "HTTP/1.0")).expect("sent");
    assert_eq!(client.read("GET").expect("an answer").text(), "plain");
    assert_eq!((service.request().field("upgrade"), service.request().field("connection")), (None, None));
}

#[test]
fn an_upgrade_with_a_body_is_a_request_with_a_body_and_nothing_else() {
    for framing in ["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"] {
        let (furt, service) = world(answer(200, &[], "plain"));
        let body = if framing.starts_with('C') { "body" } else { "4\r\nbody\r\n0\r\n\r\n" };
        let mut client = Client::new(furt.public);
        // What follows the body is the next request.
        let next = request("GET", "/plain/after", "");
        client.write(request("POST", "/ws", &format!("{HANDSHAKE}{framing}")) + body + &next).expect("sent");
        assert_eq!(client.read("POST").expect("an answer").text(), "plain");
        assert_eq!(client.read("GET").expect("an answer").text(), "/plain/after");
        let seen = service.requests();
        assert_eq!((seen[0].body.as_slice(), seen[0].field("upgrade")), (&b"body"[..], None), "{framing}");
        assert_eq!((seen.len(), service.faults()), (2, Vec::new()));
    }
}

#[test]
fn what_a_client_sends_before_it_is_refused_is_judged_as_its_next_requests() {
    let (furt, service) = world(answer(403, &[], "not you"));
    let mut client = Client::new(furt.public);
    let secret = request("GET", "/secret", "");
    let nobody = "GET /plain/stolen HTTP/1.1\r\nHost: h\r\n\r\n";
    let pretended = request("GET", "/plain/a", "X-API-Key-Name: Admin\r\n");
    client.write(request("GET", "/ws", HANDSHAKE) + &secret + nobody + &pretended).expect("sent");
    assert_eq!(client.read("GET").expect("an answer").status, 403);
    client.read("GET").expect("an answer").refused(403, "FORBIDDEN");
    client.read("GET").expect("an answer").refused(401, "UNAUTHORIZED");
    assert_eq!(client.read("GET").expect("an answer").text(), "/plain/a");
    let seen = service.requests();
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!((targets.as_slice(), seen[1].field("x-api-key-name")), (&["/ws", "/plain/a"][..], Some("Website")));
    // Nothing of it came by another way.
    let raw = String::from_utf8_lossy(&service.raw_requests()).into_owned();
    assert!(!raw.contains("stolen") && !raw.contains("secret"), "{raw}");

    // Frames instead of requests: they reach nobody.
    let mut client = Client::new(furt.public);
    let frame = b"\x81\x85\x01\x02\x03\x04ignored\r\n\r\n";
    client.write([request("GET", "/ws", HANDSHAKE).as_bytes(), frame].concat()).expect("sent");
    assert_eq!(client.read("GET").expect("an answer").status, 403);
    client.read("GET").expect("an answer").refused(400, "MALFORMED_REQUEST");
    assert!(client.closes(), "in order");
    assert!(!String::from_utf8_lossy(&service.raw_requests()).contains("ignored"));
    assert_eq!(service.faults(), [""; 0]);
}
