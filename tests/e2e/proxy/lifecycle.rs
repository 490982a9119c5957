//! Starting, stopping, and running without a registry.

use std::{
    fs,
    process::Command,
    sync::{Mutex, mpsc},
};

use serde_json::json;

use crate::{
    client::{Client, Request},
    upstream::{Reply, Upstream},
    world::{Conf, WEBSITE_KEY, eventually},
};

#[test]
fn sigterm_lets_requests_in_flight_finish_and_exits_with_0() {
    let (sender, receiver) = mpsc::channel();
    let receiver = Mutex::new(Some(receiver));
    let upstream = Upstream::with(move |_| Reply::Pieces(receiver.lock().expect("once").take().expect("one request")));
    let mut furt = Conf::new().start();
    furt.register("slow", &upstream.url(), &["GET /slow comments:read"]);
    let mut idle = Client::new(furt.public);
    idle.ask(&Request::get("/health")).status(200);
    let mut client = Client::new(furt.public);
    client.write(Request::get("/slow").key(WEBSITE_KEY).to_bytes(furt.public)).expect("sent");
    eventually("it is in flight", || (upstream.requests().len() == 1).then_some(()));

    furt.terminate();
    // Idle connections close; that also shows that the signal has been heard.
    assert!(idle.closes());
    assert!(furt.runs(), "it waits for the request in flight");
    sender.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate".to_vec()).expect("the service waits");
    let answer = client.read("GET").expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"late"[..]));
    assert_eq!(furt.ended().code(), Some(0));
}

#[test]
fn sigterm_with_nothing_in_flight_ends_at_once() {
    let mut furt = Conf::new().start();
    let upstream = Upstream::start("any");
    furt.register("any", &upstream.url(), &["GET /x comments:read"]);
    furt.get("/x").status(200);
    // A service's open gRPC connection and a client's idle one hold nothing up.
    let mut idle = Client::new(furt.public);
    idle.ask(&Request::get("/x").key(WEBSITE_KEY)).status(200);
    furt.terminate();
    assert_eq!(furt.ended().code(), Some(0));
}

#[test]
fn connections_beyond_max_connections_are_closed() {
    let furt = Conf::new().server("max_connections = 2").start();
    let mut held: Vec<_> = (0..2).map(|_| Client::new(furt.public)).collect();
    for client in &mut held {
        client.ask(&Request::get("/health")).status(200);
    }
    assert!(Request::get("/health").try_send(furt.public).is_err(), "the third is one too many");
    held.pop();
    eventually("there is room again", || Request::get("/health").try_send(furt.public).ok());
    held[0].ask(&Request::get("/health")).status(200);
}

#[test]
fn without_the_gateway_there_are_static_routes_only() {
    let mail = Upstream::start("mail");
    let route = format!("[route \"mail\"]\nmethods = POST\npath = /v1/mail/send\nurl = {}\npermission = comments:write\n", mail.url());
    let furt = Conf::new().disabled().more(&route).start();
    let answer = furt.send(&Request::post("/v1/mail/send", "x").key(WEBSITE_KEY));
    assert_eq!((answer.status, answer.field("x-upstream")), (200, Some("mail")));
    furt.send(&Request::post("/v1/mail/send", "x")).refused(401, "UNAUTHORIZED");
    furt.get("/x").refused(404, "NOT_FOUND");
    furt.send(&Request::post("/internal/register-service", "{}")).refused(404, "NOT_FOUND");
    let health = furt.send(&Request::get("/health")).json();
    assert_eq!((&health["status"], &health["services"]), (&"healthy".into(), &json!({})));
    assert_eq!(furt.internal.port(), 0, "no internal listener was named");
}

#[test]
fn a_furt_conf_with_faults_does_not_start_and_tells_all_of_them() {
    let dir = std::env::temp_dir().join(format!("furt-e2e-conf-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for the test");
    let conf = dir.join("furt.conf");
    let text = "[server]\nport = many\n[gateway]\nhealth_check_interval = 1\nhealth_check_timeout = 5\n[service \"sagjan\"]\npermisions = comments:*\n";
    fs::write(&conf, text).expect("written");
    for command in ["run", "check"] {
        let output = Command::new(env!("CARGO_BIN_EXE_furt")).args([command, "--config"]).arg(&conf).output().expect("furt runs");
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{told}");
        for words in ["furt.conf:2", "port", "health_check_timeout", "furt.conf:7", "permisions", "permissions"] {
            assert!(told.contains(words), "{command} does not tell {words:?}:\n{told}");
        }
    }
    let _ = fs::remove_dir_all(&dir);
}

#[test]
fn a_taken_port_is_told_by_its_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    let dir = std::env::temp_dir().join(format!("furt-e2e-taken-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for the test");
    let conf = dir.join("furt.conf");
    fs::write(&conf, format!("[server]\nport = 0\nstate_dir = {}\n[gateway]\nlisten = {address}\n", dir.display())).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_furt")).args(["run", "--config"]).arg(&conf).output().expect("furt runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&address.to_string()), "{told}");
    let _ = fs::remove_dir_all(&dir);
}
