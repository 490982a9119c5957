//! The access log: one line per request, written by a thread of its own.
//!
//! A worker formats into its own buffer and hands it over a few times a second; a reader too slow to
//! keep up costs lines (counted), never a request. Never a key in it: callers are named.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use furt_proto::time::rfc3339_ms;

/// Buffers that may wait for the writer.
const WAITING: usize = 64;
/// A buffer is handed over when it has grown to this many bytes.
const FULL: usize = 32 * 1024;

/// What one line says. Text fields come from requests and are escaped.
#[derive(Debug)]
pub struct Line<'a> {
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// The request's id.
    pub request_id: &'a str,
    /// The client's address.
    pub client: std::net::IpAddr,
    /// The caller's name; empty: none.
    pub caller: &'a str,
    /// The method.
    pub method: &'a str,
    /// The canonical path, or the path as sent when it was refused.
    pub path: &'a str,
    /// The pattern of the route; empty: none.
    pub route: &'a str,
    /// The service; empty: none.
    pub service: &'a str,
    /// The instance; empty: none.
    pub instance: &'a str,
    /// The status of the answer.
    pub status: u16,
    /// From the head of the request to the end of the answer.
    pub duration: Duration,
    /// From sending the request to the head of the service's answer.
    pub upstream: Option<Duration>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Why, when furt answered itself or the answer broke off; empty: the service answered.
    pub reason: &'a str,
}

/// The hand-over to the writer.
#[derive(Debug, Clone)]
pub struct Log {
    sender: SyncSender<Vec<u8>>,
}

/// Starts the writer thread, which ends when every [`Log`] is gone.
pub fn start() -> std::io::Result<Log> {
    let (sender, receiver) = sync_channel(WAITING);
    thread::Builder::new().name("furt-access-log".into()).spawn(move || write(&receiver))?;
    Ok(Log { sender })
}

fn write(receiver: &Receiver<Vec<u8>>) {
    while let Ok(buffer) = receiver.recv() {
        // A log that cannot be written has nowhere to be told.
        let _ = std::io::stderr().lock().write_all(&buffer);
    }
}

/// A worker's own end of the log.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    buffer: String,
    lines: u64,
}

impl Writer {
    /// With nothing to write yet.
    pub fn new(log: Log) -> Self {
        Self { log, buffer: String::new(), lines: 0 }
    }

    /// Adds a line, as JSON or as text. Returns how many lines had to be dropped.
    pub fn line(&mut self, line: &Line<'_>, as_json: bool) -> u64 {
        if as_json {
            json(&mut self.buffer, line)
        } else {
            text(&mut self.buffer, line)
        }
        self.lines += 1;
        if self.buffer.len() >= FULL { self.flush() } else { 0 }
    }

    /// Hands over what there is. Returns how many lines had to be dropped.
    pub fn flush(&mut self) -> u64 {
        if self.buffer.is_empty() {
            return 0;
        }
        let lines = std::mem::take(&mut self.lines);
        match self.log.sender.try_send(std::mem::take(&mut self.buffer).into_bytes()) {
            Ok(()) => 0,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => lines,
        }
    }
}

fn ms(duration: Duration) -> String {
    let us = duration.as_micros();
    format!("{}.{:03}", us / 1000, us % 1000)
}

/// `key=value` as tracing's text format writes it; quoted when it has anything but visible ASCII.
fn text(out: &mut String, line: &Line<'_>) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{}  INFO request request_id={} client={}", rfc3339_ms(line.unix_ms), line.request_id, line.client);
    for (name, value) in texts(line) {
        let plain = value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        let _ = match (value.is_empty(), plain) {
            (true, _) => Ok(()),
            (_, true) => write!(out, " {name}={value}"),
            _ => write!(out, " {name}={value:?}"),
        };
    }
    let _ = write!(out, " status={} duration_ms={}", line.status, ms(line.duration));
    if let Some(upstream) = line.upstream {
        let _ = write!(out, " upstream_ms={}", ms(upstream));
    }
    let _ = writeln!(out, " bytes={}", line.bytes);
}

fn json(out: &mut String, line: &Line<'_>) {
    let mut body = serde_json::Map::new();
    let text = |value: &str| serde_json::Value::from(value);
    body.insert("timestamp".into(), text(&rfc3339_ms(line.unix_ms)));
    body.insert("level".into(), text("INFO"));
    body.insert("message".into(), text("request"));
    body.insert("request_id".into(), text(line.request_id));
    body.insert("client".into(), text(&line.client.to_string()));
    for (name, value) in texts(line).into_iter().filter(|(_, value)| !value.is_empty()) {
        body.insert(name.into(), text(value));
    }
    body.insert("status".into(), line.status.into());
    body.insert("duration_ms".into(), (line.duration.as_secs_f64() * 1e3).into());
    if let Some(upstream) = line.upstream {
        body.insert("upstream_ms".into(), (upstream.as_secs_f64() * 1e3).into());
    }
    body.insert("bytes".into(), line.bytes.into());
    let _ = writeln!(out, "{}", serde_json::Value::Object(body));
}

fn texts<'a>(line: &Line<'a>) -> [(&'static str, &'a str); 7] {
    [
        ("caller", line.caller),
        ("method", line.method),
        ("path", line.path),
        ("route", line.route),
        ("service", line.service),
        ("instance", line.instance),
        ("reason", line.reason),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line<'static> {
        Line {
            unix_ms: 1_763_152_200_000,
            request_id: "01J",
            client: [127, 0, 0, 1].into(),
            caller: "Web site",
            method: "GET",
            path: "/api/comments/\u{1b}x",
            route: "/api/comments/*",
            service: "sagjan",
            instance: "default",
            status: 200,
            duration: Duration::from_micros(5_100),
            upstream: Some(Duration::from_micros(4_900)),
            bytes: 100,
            reason: "",
        }
    }

    #[test]
    fn a_text_line_names_its_fields_and_escapes_what_came_from_outside() {
        let mut out = String::new();
        text(&mut out, &line());
        assert_eq!(
            out,
            "2025-11-14T20:30:00.000Z  INFO request request_id=01J client=127.0.0.1 caller=\"Web site\" method=GET path=\"/api/comments/\\u{1b}x\" \
             route=/api/comments/* service=sagjan instance=default status=200 duration_ms=5.100 upstream_ms=4.900 bytes=100\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object() {
        let mut out = String::new();
        json(&mut out, &line());
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((value["status"].as_u64(), value["caller"].as_str(), value.get("reason")), (Some(200), Some("Web site"), None));
    }

    #[test]
    fn a_reader_too_slow_costs_lines_and_never_waits() {
        let (sender, _receiver) = sync_channel(1);
        let mut writer = Writer::new(Log { sender });
        writer.line(&line(), false);
        assert_eq!(writer.flush(), 0);
        writer.line(&line(), false);
        writer.line(&line(), false);
        assert_eq!(writer.flush(), 2);
    }
}
