//! TLS on the public listener: handshakes, which certificate for whom, certificates of clients, certificates that are
//! renewed while furt serves, and what is no handshake at all. In [`services`]: TLS towards services.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::tls::UpstreamTls;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{pki_types::CertificateDer, version::TLS12};
use tokio::time::Instant;

use crate::{
    client::{Client as PlainClient, Request},
    upstream::Upstream,
    world::{Conf, WEBSITE_KEY, World, block_on, eventually},
};

pub mod party;
mod services;

use party::{Client, Files, Hello, Pair, roots};

const ROUTES: &[&str] = &["GET /api/* comments:read"];

fn conf(files: &Files, names: &[&str]) -> Conf {
    let [certificates, keys] = files.lines(names);
    Conf::new().server(&certificates).server(&keys)
}

/// A furt with a certificate for a.test, and a service behind it.
fn world() -> (World, Upstream, Files, Pair) {
    let (files, own) = (Files::new(), Pair::new(&["a.test"]));
    files.put("a", &own);
    let furt = conf(&files, &["a"]).start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    (furt, sagjan, files, own)
}

fn get() -> Request {
    Request::get("/api/a").key(WEBSITE_KEY)
}

fn shown(furt: &World, name: Option<&str>) -> CertificateDer<'static> {
    Client::connect(furt.public, Hello { name, ..Hello::default() }).expect("a handshake").shown()
}

/// The status of one request with a handshake of its own; `None`: it was not served.
fn status(furt: &World, hello: Hello<'_>) -> Option<u16> {
    let mut client = Client::connect(furt.public, hello).ok()?;
    client.ask(&get()).ok().map(|(status, _)| status)
}

#[test]
fn https_is_served_by_both_versions_and_the_service_is_told() {
    let (furt, sagjan, _files, own) = world();
    for version in [&rustls::version::TLS13, &TLS12] {
        let mut client = Client::connect(furt.public, Hello { version, ..Hello::default() }).expect("a handshake");
        assert_eq!(client.shown(), own.certificate);
        assert_eq!(client.protocol().as_deref(), Some("http/1.1"));
        for _ in 0..3 {
            assert_eq!(client.ask(&get()).expect("an answer"), (200, "sagjan GET /api/a".to_owned()));
            assert_eq!(sagjan.last().field("x-forwarded-proto"), Some("https"));
        }
    }
    assert_eq!(sagjan.faults(), Vec::<String>::new());
}

#[test]
fn http2_is_chosen_by_alpn_and_preferred() {
    let (furt, sagjan, _files, own) = world();
    let both = Hello { protocols: &["http/1.1", "h2"], ..Hello::default() };
    assert_eq!(Client::connect(furt.public, both).expect("a handshake").protocol().as_deref(), Some("h2"));
    let (status, body) = block_on(async {
        let tcp = tokio::net::TcpStream::connect(furt.public).await.expect("furt listens");
        let stream = UpstreamTls::new(roots(&[&own])).connect("a.test", true, tcp).await.expect("a handshake");
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        let driven = tokio::spawn(connection);
        let request = http::Request::get("https://a.test/api/a").header("x-api-key", WEBSITE_KEY);
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await.expect("an answer");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        driven.abort();
        (head.status, body)
    });
    assert_eq!((status.as_u16(), &*body), (200, &b"sagjan GET /api/a"[..]));
    let seen = sagjan.request();
    assert_eq!((seen.field("x-forwarded-proto"), seen.field("host")), (Some("https"), Some("a.test")));
}

#[test]
fn each_host_is_shown_its_certificate_and_everyone_else_the_first() {
    let files = Files::new();
    let [first, second] = [Pair::new(&["a.test"]), Pair::new(&["b.test", "*.b.test"])];
    files.put("first", &first);
    files.put("second", &second);
    let furt = conf(&files, &["first", "second"]).start();
    let expected = [
        (Some("a.test"), &first),
        (Some("b.test"), &second),
        (Some("x.b.test"), &second),
        (Some("X.B.Test"), &second),
        (Some("y.x.b.test"), &first),
        (Some("c.test"), &first),
        (None, &first),
    ];
    for (name, pair) in expected {
        assert!(shown(&furt, name) == pair.certificate, "{name:?}");
    }
}

/// Asks again and again, each time with a new handshake, and keeps every status with the certificate that was shown.
fn ask_until(furt: &World, stop: &AtomicBool) -> Vec<(Option<u16>, Option<CertificateDer<'static>>)> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let client = Client::connect(furt.public, Hello::default());
        seen.push(match client {
            Ok(mut client) => (client.ask(&get()).ok().map(|(status, _)| status), Some(client.shown())),
            Err(_) => (None, None),
        });
    }
    seen
}

#[test]
fn a_renewed_certificate_is_taken_by_a_reload_and_no_request_notices() {
    let (furt, _sagjan, files, old) = world();
    let new = Pair::new(&["a.test"]);
    let mut lives_on = Client::connect(furt.public, Hello::default()).expect("a handshake");
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let askers = [(); 2].map(|()| scope.spawn(|| ask_until(&furt, &stop)));
        assert_eq!(lives_on.ask(&get()).expect("an answer").0, 200);
        files.put("a", &new);
        let answer = furt.reload();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["data"]["changes"], serde_json::json!(["[server] tls_cert is read again, for a.test"]));
        // The very next handshake has it, and who has shaken hands is not disturbed.
        assert!(shown(&furt, Some("a.test")) == new.certificate);
        assert_eq!(lives_on.ask(&get()).expect("an answer").0, 200);
        assert!(lives_on.shown() == old.certificate);
        stop.store(true, Ordering::Relaxed);
        askers.map(|asker| asker.join().expect("it only asks")).into_iter().flatten().collect::<Vec<_>>()
    });
    assert!(!seen.is_empty());
    for (status, shown) in seen {
        assert_eq!(status, Some(200));
        assert!(shown.is_some_and(|shown| shown == old.certificate || shown == new.certificate));
    }
    // The same again is no change.
    assert_eq!(furt.reload().json()["data"]["changes"], serde_json::json!([]));
}

#[test]
fn a_bad_file_leaves_the_old_certificate_in_force_and_is_told() {
    let (mut furt, _sagjan, files, old) = world();
    let other = Pair::new(&["a.test"]);
    let refused = |furt: &World, words: &str| {
        let answer = furt.reload();
        assert_ne!(answer.status, 200, "{answer:?}");
        assert!(answer.text().contains(words), "{answer:?}");
        assert!(shown(furt, Some("a.test")) == old.certificate);
        assert_eq!(status(furt, Hello::default()), Some(200));
        assert!(furt.logged(&[words]));
    };
    files.write("a.pem", "nothing\n");
    refused(&furt, "expected a certificate in PEM");
    // Renewed halfway: the certificate is there, its key is not yet.
    files.write("a.pem", &other.pem);
    refused(&furt, "it is that of another");
    fs::remove_file(files.path("a.key")).expect("it is there");
    refused(&furt, "expected a readable file at");
    files.put("a", &other);
    // Nothing of a furt.conf holds whose certificates are wrong.
    furt.rewrite(conf(&files, &["a", "b"]).server("add_headers = X-New: 1"));
    refused(&furt, "expected a readable file at");
    furt.rewrite(Conf::new());
    refused(&furt, "a change of this needs a restart of furt");
    furt.rewrite(conf(&files, &["a"]));
    furt.reload().status(200);
    assert!(shown(&furt, Some("a.test")) == other.certificate);
}

#[test]
fn certificates_of_clients_are_required_or_optional() {
    let (files, own) = (Files::new(), Pair::new(&["a.test"]));
    files.put("a", &own);
    let (authority, known) = Pair::below_an_authority(&["client.test"]);
    let (_, stranger) = Pair::below_an_authority(&["client.test"]);
    files.write("clients.pem", &authority.pem);
    let line = format!("tls_client_ca = {}", files.path("clients.pem").display());
    let mut furt = conf(&files, &["a"]).server(&line).start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    let ask = |furt: &World, own: Option<&Pair>| {
        let both = [&rustls::version::TLS13, &TLS12].map(|version| status(furt, Hello { own, version, ..Hello::default() }));
        assert_eq!(both[0], both[1], "both versions say the same");
        both[0]
    };
    assert_eq!((ask(&furt, None), ask(&furt, Some(&stranger)), ask(&furt, Some(&known))), (None, None, Some(200)));
    assert_eq!(sagjan.requests().len(), 2, "no request of the others went on");
    furt.rewrite(conf(&files, &["a"]).server(&line).server("tls_client_auth = optional"));
    furt.reload().status(200);
    assert_eq!((ask(&furt, None), ask(&furt, Some(&stranger)), ask(&furt, Some(&known))), (Some(200), None, Some(200)));
    furt.rewrite(conf(&files, &["a"]));
    furt.reload().status(200);
    assert_eq!(ask(&furt, None), Some(200));
}

#[test]
fn plain_http_is_told_that_this_port_speaks_tls() {
    let (furt, sagjan, _files, _own) = world();
    let answer = furt.send(&get());
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text().contains("this port speaks TLS: use https"), "{answer:?}");
    // And so is HTTP/2 without TLS, in the one way that every client shows.
    let mut client = PlainClient::new(furt.public);
    client.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
    assert!(String::from_utf8_lossy(&client.rest()).starts_with("HTTP/1.1 400 "));
    assert!(sagjan.requests().is_empty());
}

/// A ClientHello (RFC 5246 §7.4.1.2) of version 3.`version`; 3.3 is TLS 1.2.
fn client_hello(version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]); // random
    hello.push(0); // session id
    hello.extend([0, 4, 0xC0, 0x09, 0xC0, 0x2B]); // ECDHE-ECDSA with AES, one suite from before TLS 1.2 and one of it
    hello.extend([1, 0]); // no compression
    hello.extend([0, 16]); // extensions: P-256, and ECDSA on it with SHA-256
    hello.extend([0, 10, 0, 4, 0, 2, 0, 23]);
    hello.extend([0, 13, 0, 4, 0, 2, 4, 3]);
    let mut handshake = vec![1, 0, 0, hello.len() as u8];
    handshake.extend(hello);
    let mut record = vec![22, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}

#[test]
fn older_versions_are_refused_by_the_alert_for_it() {
    let (furt, _sagjan, _files, _own) = world();
    for version in [0, 1, 2] {
        let mut client = PlainClient::new(furt.public);
        client.write(client_hello(version)).expect("sent");
        let answer = client.rest();
        // Alert, fatal, protocol_version (RFC 8446 §6).
        assert!(answer.starts_with(&[21, 3]) && answer.ends_with(&[0, 2, 2, 70]), "3.{version}: {answer:?}");
    }
    let mut client = PlainClient::new(furt.public);
    client.write(client_hello(3)).expect("sent");
    assert_eq!(client.exactly(1).expect("an answer"), [22], "the same in TLS 1.2 is a handshake");
}

#[test]
fn a_handshake_that_is_not_done_in_client_timeout_ends() {
    let (mut furt, _sagjan, files, _own) = world();
    furt.rewrite(conf(&files, &["a"]).server("client_timeout = 1"));
    furt.reload().status(200);
    let hello = client_hello(3);
    // Nothing, a first byte, a whole record that wants more, and one that comes byte by byte.
    let starts = [&[][..], &hello[..1], &[22, 3, 1, 1, 0], &hello[..20]];
    let began = Instant::now();
    let mut clients = starts.map(|start| {
        let mut client = PlainClient::new(furt.public);
        client.write(start).expect("sent");
        client
    });
    let mut trickle = TcpStream::connect(furt.public).expect("furt listens");
    let trickled = hello.iter().take_while(|byte| {
        let sent = trickle.write_all(&[**byte]).is_ok();
        std::thread::sleep(Duration::from_millis(100));
        sent
    });
    let trickled = trickled.count();
    assert!(trickled < hello.len(), "a client that trickles is cut off");
    for client in &mut clients {
        assert!(client.rest().is_empty(), "no word comes of it");
    }
    assert!(began.elapsed() >= Duration::from_millis(900), "not before its time");
    // One that has shaken hands has as long again for its first request, and no longer.
    let mut silent = Client::connect(furt.public, Hello::default()).expect("a handshake");
    assert!(silent.silence().is_ok_and(|bytes| bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408 ")));
    assert_eq!(status(&furt, Hello::default()), Some(200));
}

/// Descriptors of furt's process.
fn descriptors(furt: &World) -> usize {
    fs::read_dir(format!("/proc/{}/fd", furt.id())).expect("furt runs").count()
}

fn metric(furt: &World, name: &str) -> u64 {
    let text = Request::get("/metrics").send(furt.internal).text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn garbage_for_handshakes_leaves_nothing_behind() {
    let (mut furt, _sagjan, files, _own) = world();
    // A connection to the service lives for less than the test, and so does what a client may take its time for.
    furt.rewrite(conf(&files, &["a"]).server("client_timeout = 2").gateway("upstream_idle_timeout = 500ms"));
    furt.reload().status(200);
    let none = || (metric(&furt, "furt_connections") == 0).then_some(());
    eventually("no connection is there", none);
    let (before, log) = (descriptors(&furt), furt.log().len());
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |count: usize| -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(count).collect()
    };
    let mut held = Vec::new();
    for round in 0..400_usize {
        let mut bytes = match round % 4 {
            // A handshake cut off anywhere, one with a fault in it, noise in a record, noise.
            0 => client_hello(3)[..round % 60].to_vec(),
            1 => client_hello(3),
            2 => [&[22, 3, 1, 0, 200][..], &random(200)].concat(),
            _ => random(300),
        };
        if round % 4 == 1 {
            bytes[5 + round % 40] ^= 0x55;
        }
        let mut stream = TcpStream::connect(furt.public).expect("furt listens");
        // It may have been refused by then.
        let _ = stream.write_all(&bytes);
        held.push(stream);
        if round % 50 == 0 {
            assert_eq!(status(&furt, Hello::default()), Some(200), "others are served meanwhile");
        }
    }
    // Half of them wait for furt to end it, half just go.
    for mut stream in held.into_iter().step_by(2) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        let ended = stream.read_to_end(&mut Vec::new());
        let timed_out = |error: &std::io::Error| matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!ended.as_ref().is_err_and(timed_out), "{ended:?}");
    }
    eventually("no connection is left", none);
    eventually("no descriptor is left", || (descriptors(&furt) <= before).then_some(()));
    let odd: Vec<_> = furt.log().split_off(log).into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert_eq!(odd, Vec::<String>::new());
    assert_eq!(status(&furt, Hello::default()), Some(200));
}
