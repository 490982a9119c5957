//! curl, nghttp and h2load over every version of HTTP that they and furt speak, with and without TLS.

use std::{
    ffi::OsStr,
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::has;
use crate::{
    tls::party::{Files, Pair},
    upstream::{Reply, Seen, Upstream, answer},
    wire,
    world::{Conf, WEBSITE_KEY, World},
};

/// A text of 1,024 bytes, compressed as a service would: by gzip -9.
const COMPRESSED: [u8; 45] = [
    31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 75, 84, 200, 201, 207, 75, 87, 72, 206, 207, 205, 77, 205, 43, 209, 81, 72, 28, 229, 143, 242, 71,
    249, 35, 134, 15, 0, 181, 153, 247, 121, 0, 4, 0, 0,
];

fn text() -> String {
    "a long comment, ".repeat(64)
}

/// A furt that speaks plain HTTP and one that speaks TLS, before one service.
struct Fronts {
    plain: World,
    secure: World,
    upstream: Upstream,
    files: Files,
}

impl Fronts {
    fn start() -> Self {
        let upstream = Upstream::with(reply);
        let (files, (authority, own)) = (Files::new(), Pair::below_an_authority(&["a.test"]));
        files.put("a", &own);
        files.write("authority.pem", &authority.pem);
        let conf = Conf::new().server("max_body_size = 64 MiB").server("log_requests = false");
        let [certificates, keys] = files.lines(&["a"]);
        let (plain, secure) = (conf.clone().start(), conf.server(&certificates).server(&keys).start());
        for furt in [&plain, &secure] {
            furt.register("comments", &upstream.url(), &["* /api/* comments:read"]);
        }
        Self { plain, secure, upstream, files }
    }

    /// The url of a path, for clients that look up no certificate.
    fn url(&self, secure: bool, path: &str) -> String {
        let (scheme, furt) = if secure { ("https", &self.secure) } else { ("http", &self.plain) };
        format!("{scheme}://{}{path}", furt.public)
    }
}

/// What the service makes of a path.
fn reply(seen: &Seen) -> Reply {
    match seen.target.as_str() {
        "/api/compressed" if seen.field("accept-encoding").is_some_and(|accepted| accepted.contains("gzip")) => {
            Reply::Bytes(answer(200, &[("Content-Encoding", "gzip")], COMPRESSED))
        }
        "/api/compressed" => Reply::Bytes(answer(200, &[], text())),
        "/api/range" => match seen.field("range") {
            Some("bytes=16-31") => Reply::Bytes(answer(206, &[("Content-Range", "bytes 16-31/1024")], &text()[16..32])),
            other => Reply::Bytes(answer(416, &[("Content-Range", "bytes */1024")], format!("{other:?}"))),
        },
        "/api/trailers" => Reply::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n".to_vec(),
        ),
        "/api/empty" => Reply::Bytes(b"HTTP/1.1 204 No Content\r\nX-Was: here\r\n\r\n".to_vec()),
        _ if seen.method == "HEAD" => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nX-Was: here\r\n\r\n".to_vec()),
        "/api/echo" => Reply::Bytes(answer(200, &[], &seen.body)),
        _ => Reply::Bytes(answer(200, &[("X-Was", "here")], text())),
    }
}

/// A way for curl to reach furt, and the version of HTTP that it then has to have spoken.
#[derive(Debug, Clone, Copy)]
struct Way {
    flag: &'static str,
    secure: bool,
    version: &'static str,
}

const WAYS: [Way; 5] = [
    Way { flag: "--http1.0", secure: false, version: "1" },
    Way { flag: "--http1.1", secure: false, version: "1.1" },
    Way { flag: "--http2-prior-knowledge", secure: false, version: "2" },
    Way { flag: "--http1.1", secure: true, version: "1.1" },
    Way { flag: "--http2", secure: true, version: "2" },
];

/// What curl had to tell.
#[derive(Debug)]
struct Got {
    /// Heads and trailers, interim ones too, in lower case.
    heads: String,
    body: Vec<u8>,
    /// What curl knows of the exchange.
    info: Value,
}

/// Requests `path`; curl has to think that all went well.
fn curl(fronts: &Fronts, way: Way, path: &str, more: &[&str], input: Stdio) -> Got {
    let furt = if way.secure { &fronts.secure } else { &fronts.plain };
    let heads = furt.dir.join("heads");
    let port = furt.public.port();
    let (heads_path, authority) = (heads.display().to_string(), fronts.files.path("authority.pem").display().to_string());
    let (key, resolve) = (format!("X-API-Key: {WEBSITE_KEY}"), format!("a.test:{port}:127.0.0.1"));
    let url = format!("{}://a.test:{port}{path}", if way.secure { "https" } else { "http" });
    let mut arguments =
        vec!["--silent", "--show-error", "--max-time", "50", "--noproxy", "*", "--cacert", &authority, "--resolve", &resolve];
    arguments.extend(["--dump-header", &heads_path, "--write-out", "%{stderr}\n%{json}", "--header", &key, way.flag]);
    arguments.extend(more);
    arguments.push(&url);
    let output = run("curl", arguments, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{way:?} {path} {more:?}: {said}");
    let info: Value = said.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(info["http_version"], way.version, "{way:?} {path}");
    let heads = fs::read_to_string(heads).expect("curl wrote it").to_lowercase();
    Got { heads, body: output.stdout, info }
}

fn curl_is_here() -> bool {
    has("curl", &["--version"])
}

/// Runs a program to its end, which comes within a minute.
fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: Stdio) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "60", program]).args(arguments).stdin(input);
    command.output().expect("timeout is part of coreutils")
}

/// A mebibyte that shows when pieces are lost, doubled or swapped, three times.
fn large() -> Vec<u8> {
    (0..3 * (1u32 << 18)).flat_map(u32::to_be_bytes).collect()
}

#[test]
fn curl_gets_posts_and_asks_for_heads_over_every_version() {
    if !curl_is_here() {
        return;
    }
    let fronts = Fronts::start();
    for way in WAYS {
        let got = curl(&fronts, way, "/api/a?b=c", &[], Stdio::null());
        assert_eq!((got.info["http_code"].as_u64(), got.body), (Some(200), text().into_bytes()), "{way:?}");
        assert!(got.heads.contains("\r\nx-gateway: furt\r\n"), "{way:?}: {}", got.heads);
        let seen = fronts.upstream.last();
        assert_eq!((seen.target.as_str(), seen.field("x-api-key-name")), ("/api/a?b=c", Some("Website")), "{way:?}");
        assert_eq!(seen.field("x-forwarded-proto"), Some(if way.secure { "https" } else { "http" }), "{way:?}");

        let got = curl(&fronts, way, "/api/echo", &["--data-binary", "first, naturally"], Stdio::null());
        assert_eq!(got.body, b"first, naturally", "{way:?}");

        let got = curl(&fronts, way, "/api/a", &["--head"], Stdio::null());
        assert!(got.heads.contains("\r\ncontent-length: 1024\r\n") && got.heads.contains("\r\nx-was: here\r\n"), "{way:?}: {}", got.heads);
        assert_eq!(fronts.upstream.last().method, "HEAD");

        let got = curl(&fronts, way, "/api/empty", &[], Stdio::null());
        assert_eq!((got.info["http_code"].as_u64(), got.body.len()), (Some(204), 0), "{way:?}");
        assert!(!got.heads.contains("content-length"), "{way:?}: {}", got.heads);
    }
    assert_eq!(fronts.upstream.faults(), [""; 0]);
}

#[test]
fn curl_uploads_what_is_large_and_what_has_no_length() {
    if !curl_is_here() {
        return;
    }
    let fronts = Fronts::start();
    let body = large();
    let file = fronts.plain.dir.join("large");
    fs::write(&file, &body).expect("written");
    let upload = format!("@{}", file.display());
    for way in WAYS {
        // Of more than a mebibyte curl asks first whether it may come (HTTP/1.1 only).
        let got = curl(&fronts, way, "/api/echo", &["--data-binary", &upload], Stdio::null());
        assert!(got.body == body, "{way:?}: {} bytes came back", got.body.len());
        let seen = fronts.upstream.last();
        assert!(seen.body == body, "{way:?}: {} bytes arrived", seen.body.len());
        assert_eq!(seen.field("content-length"), Some(body.len().to_string().as_str()), "{way:?}");
        if way.flag == "--http1.1" {
            assert!(got.heads.starts_with("http/1.1 100 "), "{way:?}: {}", got.heads);
        }
        if way.flag == "--http1.0" {
            // Has no body without a length.
            continue;
        }
        let input = fs::File::open(&file).expect("just written");
        let got = curl(&fronts, way, "/api/echo", &["--upload-file", "-"], input.into());
        assert!(got.body == body, "{way:?}: {} bytes came back", got.body.len());
        let seen = fronts.upstream.last();
        assert_eq!((seen.method.as_str(), seen.field("transfer-encoding"), seen.field("content-length")), ("PUT", Some("chunked"), None));
    }
    assert_eq!(fronts.upstream.faults(), [""; 0]);
}

#[test]
fn curl_gets_what_is_compressed_a_part_and_trailers_as_the_service_sent_them() {
    if !curl_is_here() {
        return;
    }
    let fronts = Fronts::start();
    for way in WAYS {
        let got = curl(&fronts, way, "/api/compressed", &["--compressed"], Stdio::null());
        assert_eq!(got.body, text().into_bytes(), "{way:?}");
        assert!(got.heads.contains("\r\ncontent-encoding: gzip\r\n"), "{way:?}: {}", got.heads);
        assert!(got.heads.contains(&format!("\r\ncontent-length: {}\r\n", COMPRESSED.len())), "{way:?}: {}", got.heads);
        let got = curl(&fronts, way, "/api/compressed", &[], Stdio::null());
        assert_eq!(got.body, text().into_bytes(), "{way:?}");
        assert!(!got.heads.contains("content-encoding"), "{way:?}: {}", got.heads);

        let got = curl(&fronts, way, "/api/range", &["--range", "16-31"], Stdio::null());
        assert_eq!((got.info["http_code"].as_u64(), got.body.as_slice()), (Some(206), &b"a long comment, "[..]), "{way:?}");
        assert!(got.heads.contains("\r\ncontent-range: bytes 16-31/1024\r\n"), "{way:?}: {}", got.heads);
        let got = curl(&fronts, way, "/api/range", &["--range", "5000-"], Stdio::null());
        assert_eq!(got.info["http_code"], 416, "{way:?}");

        let got = curl(&fronts, way, "/api/trailers", &["--header", "TE: trailers"], Stdio::null());
        assert_eq!(got.body, b"hello", "{way:?}");
        let told = got.heads.contains("x-sum: 42\r\n");
        // An answer of HTTP/1.0 has no place for them: it ends with its connection, and is no chunks.
        assert_eq!(told, way.flag != "--http1.0", "{way:?}: {}", got.heads);
        assert!(way.flag != "--http1.0" || !got.heads.contains("chunked"), "{}", got.heads);
    }
    assert_eq!(fronts.upstream.faults(), [""; 0]);
}

#[test]
fn curl_is_refused_in_the_same_words_over_every_version() {
    if !curl_is_here() {
        return;
    }
    let fronts = Fronts::start();
    // Twice the same field: the second one makes it two keys.
    let cases: [(&str, &[&str], u64, &str); 4] = [
        ("/api/a", &["--header", "X-API-Key;"], 400, "MALFORMED_REQUEST"),
        ("/nowhere", &[], 404, "NOT_FOUND"),
        ("/api/%2e%2e/b", &["--path-as-is"], 400, "MALFORMED_REQUEST"),
        ("/internal/services", &[], 404, "NOT_FOUND"),
    ];
    for way in WAYS {
        for (path, more, status, code) in cases {
            let got = curl(&fronts, way, path, more, Stdio::null());
            let body: Value = serde_json::from_slice(&got.body).unwrap_or_else(|error| panic!("{error}: {got:?}"));
            assert_eq!((got.info["http_code"].as_u64(), &body["code"]), (Some(status), &Value::from(code)), "{way:?} {path} {more:?}");
        }
    }
    assert!(fronts.upstream.requests().is_empty());
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn nghttp_asks_uploads_and_sends_trailers() {
    if !has("nghttp", &["--version"]) {
        return;
    }
    let fronts = Fronts::start();
    let body = large();
    let file = fronts.plain.dir.join("large");
    fs::write(&file, &body).expect("written");
    let (upload, key) = (file.display().to_string(), format!("x-api-key: {WEBSITE_KEY}"));
    for secure in [false, true] {
        let nghttp = |path: &str, more: &[&str]| {
            let url = fronts.url(secure, path);
            let arguments = ["--timeout=50", "-H", &key].into_iter().chain(more.iter().copied()).chain([url.as_str()]);
            let output = run("nghttp", arguments, Stdio::null());
            assert!(output.status.success(), "{path} {more:?}: {}", words(&output));
            output
        };
        assert_eq!(nghttp("/api/a", &[]).stdout, text().into_bytes());
        let before = fronts.upstream.requests().len();
        let output = words(&nghttp("/api/a", &["--verbose", "--null-out", "--multiply=50"]));
        assert_eq!(output.matches(":status: 200").count(), 50, "{output}");
        assert_eq!(fronts.upstream.requests().len() - before, 50);

        let echoed = nghttp("/api/echo", &["--data", &upload, "--no-content-length", "--trailer=x-check: 7"]).stdout;
        assert!(echoed == body, "{} bytes came back", echoed.len());
        let seen = fronts.upstream.last();
        assert_eq!((seen.body.len(), wire::value(&seen.trailers, "x-check")), (body.len(), Some("7")));
        // Over HTTP/2 furt says no 100; whoever asks for one does not wait for it for ever (RFC 9110 §10.1.1).
        let echoed = nghttp("/api/echo", &["--data", &upload, "--expect-continue"]).stdout;
        assert!(echoed == body, "{} bytes came back", echoed.len());
        let output = words(&nghttp("/api/trailers", &["--verbose", "--null-out"]));
        assert!(output.contains("x-sum: 42"), "{output}");
    }
    assert_eq!(fronts.upstream.faults(), [""; 0]);
}

#[test]
fn h2load_loses_no_request_of_many_streams() {
    if !has("h2load", &["--version"]) {
        return;
    }
    let fronts = Fronts::start();
    let key = format!("x-api-key: {WEBSITE_KEY}");
    let ways: [(bool, &[&str]); 4] = [(false, &[]), (true, &[]), (false, &["--h1"]), (true, &["--h1"])];
    for (secure, more) in ways {
        let url = fronts.url(secure, "/api/a");
        let streams = if more.is_empty() { "-m32" } else { "-m1" };
        let arguments = ["-n2000", "-c8", streams, "-H", &key].into_iter().chain(more.iter().copied()).chain([url.as_str()]);
        let output = run("h2load", arguments, Stdio::null());
        let said = words(&output);
        assert!(output.status.success(), "{said}");
        let all = "requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all) && said.contains("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{secure} {more:?}: {said}");
        let spoken = if more.is_empty() { "Application protocol: h2" } else { "Application protocol: http/1.1" };
        assert!(said.contains(spoken), "{secure} {more:?}: {said}");
    }
    assert_eq!((fronts.upstream.requests().len(), fronts.upstream.faults()), (8000, Vec::new()));
}
