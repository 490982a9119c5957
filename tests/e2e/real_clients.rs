//! What people really use, through furt: curl, nghttp and h2load in `versions`, a browser's EventSource here; grpcio and
//! websockets have modules of their own (`grpc_proxy`, `websocket`).
//!
//! A program that is not here is said aloud; CI has all of them.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::{Mutex, mpsc},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::Request,
    upstream::{Reply, Upstream, answer, ok},
    world::{Conf, WEBSITE_KEY, World},
};

mod versions;

/// Whether a program runs; says aloud when it does not.
fn has(program: &str, arguments: &[&str]) -> bool {
    let found = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let runs = found.is_ok_and(|status| status.success());
    if !runs {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {program} {} does not run here", arguments.join(" "));
    }
    runs
}

fn world(upstream: &Upstream) -> World {
    let furt = Conf::new().start();
    furt.register("peers", &upstream.url(), &["* /t/* comments:read"]);
    furt
}

#[test]
fn a_browser_s_event_source_gets_each_event_as_it_happens_and_comes_back_for_more() {
    if !has("chromium", &["--version"]) {
        return;
    }
    let (acknowledge, acknowledged) = mpsc::channel::<String>();
    let (acknowledge, acknowledged) = (Mutex::new(acknowledge), std::sync::Arc::new(Mutex::new(acknowledged)));
    let done = std::sync::Arc::new(Mutex::new(Vec::new()));
    let all = done.clone();
    let upstream = Upstream::with(move |seen| match &*seen.target {
        "/app/page" => Reply::Bytes(answer(200, &[("Content-Type", "text/html")], PAGE)),
        "/app/events" => {
            let first = seen.field("last-event-id").map_or(1, |last| last.parse::<u32>().expect("a number") + 1);
            let (send, pieces) = mpsc::channel();
            let acknowledged = acknowledged.clone();
            std::thread::spawn(move || {
                let acknowledged = acknowledged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let _ = send.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
                let chunk = |text: String| format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
                let _ = send.send(chunk("retry: 50\n\n".into()));
                // The next event is sent only once the browser has shown that it has the one before.
                for number in first..first + 3 {
                    let _ = send.send(chunk(format!("id: {number}\ndata: {number}\n\n")));
                    if acknowledged.recv_timeout(Duration::from_secs(20)).is_err() {
                        return;
                    }
                }
                let _ = send.send(b"0\r\n\r\n".to_vec());
            });
            Reply::Pieces(pieces)
        }
        other => {
            all.lock().unwrap().push(other.to_owned());
            let _ = acknowledge.lock().unwrap().send(other.to_owned());
            Reply::Bytes(ok(""))
        }
    });
    let furt = Conf::new().start();
    let routes = [json!({"method": "*", "path": "/app/*", "public": true})];
    furt.post(&json!({"service": "app", "url": upstream.url(), "routes": routes})).status(200);
    Request::get("/app/page").send(furt.public).status(200);
    let profile = std::env::temp_dir().join(format!("furt-e2e-chromium-{}", std::process::id()));
    let mut browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://{}/app/page", furt.public))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let began = Instant::now();
    while done.lock().unwrap().len() < 5 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    browser.kill().expect("it runs");
    browser.wait().expect("it ends");
    let _ = std::fs::remove_dir_all(profile);
    let told = done.lock().unwrap().clone();
    // Three on the first connection, and the next with the last id that was heard.
    assert_eq!(told.get(..5).unwrap_or(&told), ["/app/ack-1", "/app/ack-2", "/app/ack-3", "/app/ack-4", "/app/ack-5"]);
}

const PAGE: &str = "<!doctype html><title>events</title><link rel=icon href=data:,><script>
new EventSource('/app/events').onmessage = event => fetch('/app/ack-' + event.data);
</script>";

#[test]
fn curl_shows_events_as_they_happen() {
    if !has("curl", &["--version"]) {
        return;
    }
    let (send, pieces) = mpsc::channel();
    let pieces = Mutex::new(Some(pieces));
    let upstream = Upstream::with(move |_| Reply::Pieces(pieces.lock().unwrap().take().expect("one request")));
    let furt = world(&upstream);
    let mut curl = Command::new("curl")
        .args(["-sSN", "--max-time", "20", "-H", &format!("X-API-Key: {WEBSITE_KEY}"), &format!("http://{}/t/events", furt.public)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl starts");
    let mut shown = curl.stdout.take().expect("a pipe");
    send.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 30\r\n\r\n".to_vec()).unwrap();
    for number in 1..=3 {
        send.send(format!("data: {number}\n\n\n").into_bytes()).unwrap();
        let mut event = [0; 10];
        shown.read_exact(&mut event).expect("it comes before the next is sent");
        assert_eq!(event, format!("data: {number}\n\n\n").as_bytes()[..]);
    }
    assert!(curl.wait().expect("it ends").success());
}
