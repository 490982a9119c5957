//! What people really use, through furt: curl, nghttp, h2load, grpcio, websockets, a browser's EventSource.
//!
//! A program that is not here is said aloud; CI has all of them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, mpsc},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::Request,
    port::Port,
    upstream::{Reply, Upstream, answer, ok},
    world::{Conf, WEBSITE_KEY, World, eventually},
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

/// What a program says, once it has ended well.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn world(upstream: &Upstream) -> World {
    let furt = Conf::new().start();
    furt.register("peers", &upstream.url(), &["* /t/* comments:read"]);
    furt
}

#[test]
fn curl_speaks_http_1_0_http_1_1_and_http_2() {
    if !has("curl", &["--version"]) {
        return;
    }
    let upstream = Upstream::with(|seen| match &*seen.method {
        "HEAD" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec()),
        "POST" => Reply::Bytes(ok(seen.body.len().to_string())),
        _ => match seen.field("range") {
            Some(_) => Reply::Bytes(answer(206, &[("Content-Range", "bytes 1-2/5")], "el")),
            None => Reply::Bytes(ok("hello")),
        },
    });
    let furt = world(&upstream);
    let url = format!("http://{}/t/x", furt.public);
    let key = format!("X-API-Key: {WEBSITE_KEY}");
    let curl = |arguments: &[&str]| {
        let common = ["-sS", "--max-time", "20", "-w", " %{http_code} %{http_version}", "-H", &key];
        said("curl", &[&common, arguments, &[&url]].concat())
    };
    assert_eq!(curl(&["-0"]), "hello 200 1");
    assert_eq!(curl(&[]), "hello 200 1.1");
    assert_eq!(curl(&["--http2-prior-knowledge"]), "hello 200 2");
    // It offers HTTP/2 by an upgrade, which is not taken.
    assert_eq!(curl(&["--http2"]), "hello 200 1.1");
    assert!(curl(&["-I"]).to_lowercase().contains("content-length: 5"));
    assert_eq!(curl(&["-r", "1-2"]), "el 206 1.1");
    let large = std::env::temp_dir().join(format!("furt-e2e-curl-{}", std::process::id()));
    std::fs::write(&large, vec![b'x'; 3 << 20]).unwrap();
    let data = format!("@{}", large.display());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        // Of a body this large curl asks first whether it is wanted (Expect: 100-continue).
        let told = curl(&[version, "--data-binary", &data]);
        assert!(told.starts_with("3145728 200"), "{told}");
        let told = curl(&[version, "-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", &data[1..]]);
        assert!(told.starts_with("3145728 200"), "{told}");
    }
    std::fs::remove_file(large).unwrap();
    assert!(upstream.requests().iter().all(|seen| seen.values("upgrade").is_empty() && seen.values("http2-settings").is_empty()));
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn nghttp_and_h2load_lose_nothing_over_many_streams() {
    if !has("nghttp", &["--version"]) || !has("h2load", &["--version"]) {
        return;
    }
    let upstream = Upstream::with(|_| Reply::Bytes(ok("x".repeat(20_000))));
    let furt = world(&upstream);
    let (url, key) = (format!("http://{}/t/x", furt.public), format!("x-api-key: {WEBSITE_KEY}"));
    let told = said("nghttp", &["-nv", "-m", "20", "-H", &key, &url]);
    assert_eq!(told.matches(":status: 200").count(), 20, "{told}");
    let told = said("h2load", &["-n", "2000", "-c", "4", "-m", "50", "-H", &key, &url]);
    assert!(told.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{told}");
    let told = said("h2load", &["--h1", "-n", "500", "-c", "4", "-H", &key, &url]);
    assert!(told.contains("500 succeeded, 0 failed, 0 errored, 0 timeout"), "{told}");
}

/// A script of `tests/peers`, ended with the test.
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(script: &str, arguments: &[&str]) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(script);
        let mut child =
            Command::new("python3").arg(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { input: child.stdin.take(), output, child }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it says something");
        line.trim().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn grpcio_makes_all_kinds_of_calls_and_hears_of_refusals_in_its_own_words() {
    if !has("python3", &["-c", "import grpc"]) {
        return;
    }
    let mut server = Peer::start("grpc_calls.py", &["serve"]);
    let url = format!("http://127.0.0.1:{}", server.line());
    let nobody = Port::take();
    let furt = Conf::new().start();
    let route = |path: &str, permission: &str| json!({"method": "POST", "path": path, "permission": permission});
    let service = |name: &str, url: &str, route| json!({"service": name, "url": url, "protocol": "h2", "routes": [route]});
    furt.post(&service("calls", &url, route("/calls.Api/*", "comments:write"))).status(200);
    furt.post(&service("admin", &url, route("/admin.Api/*", "admin:all"))).status(200);
    furt.post(&service("down", &nobody.url(), route("/down.Api/*", "comments:write"))).status(200);
    let mut client = Peer::start("grpc_calls.py", &["call", &furt.public.to_string()]);
    assert_eq!(client.line(), "ok");
}

#[test]
fn a_websocket_lives_through_registrations_reloads_and_silence() {
    if !has("python3", &["-c", "import websockets"]) {
        return;
    }
    let mut server = Peer::start("websocket_calls.py", &["serve"]);
    let url = format!("http://127.0.0.1:{}", server.line());
    let furt = Conf::new().server("body_idle_timeout = 1s").gateway("registration_rate = 1000/s").start();
    furt.register("echo", &url, &["GET /ws/* comments:read"]);
    let mut client = Peer::start("websocket_calls.py", &["call", &furt.public.to_string()]);
    assert_eq!(client.line(), "open");
    let since = Instant::now();
    for number in 0..100 {
        furt.register(&format!("other-{number}"), "http://127.0.0.1:9", &[&format!("GET /other-{number} comments:read")]);
        if number % 10 == 0 {
            furt.reload().status(200);
        }
    }
    eventually("it was silent for longer than a body may be", || (since.elapsed() > Duration::from_millis(2_500)).then_some(()));
    writeln!(client.input.as_mut().expect("a pipe"), "go on").unwrap();
    assert_eq!(client.line(), "ok");
    eventually("the log tells of it", || furt.logged(&["status=101", "service=echo", "path=/ws/echo"]).then_some(()));
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
