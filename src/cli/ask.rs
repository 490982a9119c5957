//! `furt register`, `services`, `routes`, `explain`: questions to the internal listener of a running furt.

use std::io::Read;

use bytes::Bytes;
use furt::config;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::{
    Arguments, Command, Failure,
    client::{Answer, encoded, send},
    process::say,
    table::{shown, table},
};

/// The variable with the bearer token for a listener that asks for one.
const TOKEN: &str = "FURT_TOKEN";

/// Asks, and prints the answer for people or, with `--json`, as it came.
pub async fn ask(arguments: &Arguments, command: &Command) -> Result<(), Failure> {
    let (method, target, body) = question(command)?;
    let address = gateway(arguments)?;
    let answer = send(&address, method, &target, headers()?, body).await.map_err(|error| Failure::new(format!("furt: {error}")))?;
    let json = answer.json();
    let success = answer.status.is_success() && json.get("success") == Some(&Value::Bool(true));
    if arguments.json {
        say(String::from_utf8_lossy(&answer.body).trim_end())?;
        return if success { Ok(()) } else { Err(Failure::told()) };
    }
    if !success {
        return Err(refused(&answer, &json, &address));
    }
    say(told(command, &json))?;
    Ok(())
}

fn question(command: &Command) -> Result<(Method, String, Bytes), Failure> {
    let get = |target: String| Ok((Method::GET, target, Bytes::new()));
    match command {
        Command::Register { file, dry_run } => {
            let target = if *dry_run { "/internal/register-service?dry_run=true" } else { "/internal/register-service" };
            let body = if file.as_os_str() == "-" {
                let mut body = Vec::new();
                std::io::stdin().read_to_end(&mut body).map(|_| body)
            } else {
                std::fs::read(file)
            };
            let body = body.map_err(|error| Failure::new(format!("furt: cannot read {}: {error}", file.display())))?;
            Ok((Method::POST, target.into(), body.into()))
        }
        Command::Services { name: Some(name) } => get(format!("/internal/services/{}", encoded(name))),
        Command::Services { name: None } => get("/internal/services".into()),
        Command::Explain { method, path, host, key_name } => {
            let mut target = format!("/internal/explain?method={}&path={}", encoded(method), encoded(path));
            for (name, value) in [("host", host), ("key_name", key_name)] {
                if let Some(value) = value {
                    target.push_str(&format!("&{name}={}", encoded(value)));
                }
            }
            get(target)
        }
        _ => get("/internal/routes".into()),
    }
}

/// Where to ask: `--gateway`, else what furt.conf says.
fn gateway(arguments: &Arguments) -> Result<String, Failure> {
    let Some(given) = &arguments.gateway else { return Ok(config::gateway_address(arguments.config.as_deref()).to_string()) };
    let address = given.trim_start_matches("http://").trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    // Of an IPv6 address without brackets nobody can tell where the port begins.
    let bracketed = host.starts_with('[') == host.contains(':');
    if host.is_empty() || !bracketed || port.parse::<u16>().is_err() {
        return Err(Failure::new(format!("furt: --gateway: expected HOST:PORT such as {}, got {given:?}", config::DEFAULT_GATEWAY)));
    }
    Ok(address.to_owned())
}

fn headers() -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Ok(token) = std::env::var(TOKEN) {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut value = value.map_err(|_| Failure::new(format!("furt: {TOKEN} must be visible ASCII")))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// What furt refused, every fault of it, and what to do about it.
fn refused(answer: &Answer, json: &Value, address: &str) -> Failure {
    let Some(error) = json.get("error").and_then(Value::as_str) else {
        let status = answer.status;
        return Failure::new(format!("furt: {address} answered {status}, but not as furt does; --gateway names another address"));
    };
    // A single fault is the sentence already; of several the sentence has only the first.
    let details = Some(list(json, "details")).filter(|details| details.len() > 1).unwrap_or_default();
    let sentence = if details.is_empty() { paragraph(error, "") } else { format!("{} faults", details.len()) };
    let word = if answer.status == StatusCode::NOT_FOUND { "not found" } else { "refused" };
    let mut lines = vec![format!("{word} ({} {}): {sentence}", answer.status.as_u16(), text(json, "code"))];
    for detail in details {
        let field = text(detail, "field");
        let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let message = detail.get("message").and_then(Value::as_str).unwrap_or_default();
        lines.push(format!("  {place}{} ({})", paragraph(message, "    "), text(detail, "code")));
    }
    match answer.status {
        // Only the public listener gives a reason in this header.
        StatusCode::NOT_FOUND if answer.headers.contains_key("x-furt-reason") => lines.push(format!(
            "{address} is furt's public listener; --gateway names the internal one, [gateway] listen in furt.conf ({} by default)",
            config::DEFAULT_GATEWAY
        )),
        StatusCode::NOT_FOUND => lines.push("`furt services` shows what is registered".into()),
        StatusCode::UNAUTHORIZED => lines.push(format!("set {TOKEN} to a token that furt.conf knows ([token \"name\"])")),
        // A grant with a token of its own.
        StatusCode::FORBIDDEN if error.contains("Bearer") => lines.push(format!("set {TOKEN} to that token")),
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or("a few");
            lines.push(format!("try again in {} s", shown(seconds)));
        }
        _ => {}
    }
    Failure::new(lines.join("\n"))
}

/// Text of several lines, such as the lines to add to furt.conf.
fn paragraph(text: &str, indent: &str) -> String {
    text.lines().map(shown).collect::<Vec<_>>().join(&format!("\n{indent}"))
}

fn told(command: &Command, json: &Value) -> String {
    let data = json.get("data").unwrap_or(&Value::Null);
    match command {
        Command::Register { .. } => registered(json, data),
        Command::Services { name: None } => match list(data, "services") {
            [] => "no service is registered".into(),
            services => instances(services),
        },
        Command::Services { .. } => {
            let service = data.get("service").unwrap_or(&Value::Null);
            format!("{}\n\n{}", instances(std::slice::from_ref(service)), routes(list(service, "routes")))
        }
        Command::Explain { path, .. } => explained(data, path),
        _ => match list(data, "routes") {
            [] => "no routes".into(),
            found => routes(found),
        },
    }
}

fn registered(json: &Value, data: &Value) -> String {
    let mut lines = vec![text(json, "message")];
    for (name, key) in [("instance", "instance"), ("registration", "registration_id"), ("status", "status")] {
        // A dry run has no registration to name.
        if !text(data, key).is_empty() {
            lines.push(format!("  {name}: {}", text(data, key)));
        }
    }
    lines.push(format!("  repeat it every {} s", text(data, "renew_after_seconds")));
    for warning in list(data, "warnings") {
        lines.push(format!("  warning: {}", text(warning, "message")));
    }
    lines.join("\n")
}

fn instances(services: &[Value]) -> String {
    let rows = services.iter().flat_map(|service| {
        list(service, "instances").iter().map(move |instance| {
            let is = |name: &str| instance.get(name) == Some(&Value::Bool(true));
            let mark = if is("parked") {
                " (parked)"
            } else if is("suspect") {
                " (suspect)"
            } else {
                ""
            };
            vec![
                text(service, "service"),
                format!("{}{mark}", text(instance, "status")),
                text(instance, "id"),
                text(instance, "url"),
                text(instance, "last_ping"),
                text(instance, "response_time_ms"),
                text(instance, "consecutive_failures"),
                text(instance, "last_error"),
            ]
        })
    });
    table(&["SERVICE", "STATUS", "INSTANCE", "URL", "LAST PING", "MS", "FAILURES", "LAST ERROR"], &rows.collect::<Vec<_>>())
}

fn routes(routes: &[Value]) -> String {
    let rows = routes.iter().map(|route| {
        let yes = |key: &str| route.get(key) == Some(&Value::Bool(true));
        let permission = match text(route, "permission") {
            _ if yes("public") => "(public)".into(),
            permission if permission.is_empty() => "(any key)".into(),
            permission => permission,
        };
        let state = if yes("active") { "active" } else { "withdrawn" };
        let kind = if yes("static") { "static" } else { "registered" };
        vec![text(route, "service"), text(route, "method"), text(route, "host"), text(route, "path"), permission, kind.into(), state.into()]
    });
    table(&["SERVICE", "METHOD", "HOST", "PATH", "PERMISSION", "KIND", "STATE"], &rows.collect::<Vec<_>>())
}

fn explained(data: &Value, path: &str) -> String {
    let part = |key: &str| data.get(key).filter(|value| !value.is_null());
    let mut lines = Vec::new();
    if !text(data, "canonical_path").is_empty() {
        lines.push(format!("canonical path  {}", text(data, "canonical_path")));
    }
    if let Some(outcome) = part("outcome") {
        let status = match outcome.get("status").and_then(Value::as_u64) {
            Some(0) | None => "forwarded".to_owned(),
            Some(status) => format!("{status} {}{}", text(outcome, "code"), why(status, path)),
        };
        lines.push(format!("outcome         {status}"));
    }
    if let Some(key) = part("key") {
        let verdict = if key.get("allowed") == Some(&Value::Bool(true)) { "allowed" } else { "not allowed" };
        let name = text(key, "name");
        lines.push(format!("key             {}: {verdict}, {}", if name.is_empty() { "none" } else { &name }, text(key, "reason")));
    }
    let candidates = list(data, "candidates").iter().map(|candidate| {
        let won = if candidate.get("won") == Some(&Value::Bool(true)) { "won" } else { "lost" };
        let place = |key: &str| text(candidate, key);
        vec![won.into(), place("service"), place("method"), place("host"), place("pattern"), place("permission"), place("reason")]
    });
    let candidates: Vec<_> = candidates.collect();
    if !candidates.is_empty() {
        lines.push(String::new());
        lines.push(table(&["ROUTE", "SERVICE", "METHOD", "HOST", "PATTERN", "PERMISSION", "WHY"], &candidates));
    }
    let instances = list(data, "instances").iter().map(|instance| {
        let eligible = if instance.get("eligible") == Some(&Value::Bool(true)) { "yes" } else { "no" };
        vec![text(instance, "id"), text(instance, "status"), eligible.into(), text(instance, "url"), text(instance, "reason")]
    });
    let instances: Vec<_> = instances.collect();
    if !instances.is_empty() {
        lines.push(String::new());
        lines.push(table(&["INSTANCE", "STATUS", "ELIGIBLE", "URL", "WHY"], &instances));
    }
    lines.join("\n")
}

/// The reason of an outcome that no route or key explains.
fn why(status: u64, path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    match (status, furt_proto::path::canonical(path)) {
        (400, Err(fault)) => format!(": {fault}"),
        (404, _) => ": no route fits this host and path; `furt routes` shows them all, a \"*\" at the end is one segment or more".into(),
        _ => String::new(),
    }
}

/// The explanation that `explain` prints, for other commands.
pub fn explanation(answer: &Answer, path: &str) -> String {
    explained(answer.json().get("data").unwrap_or(&Value::Null), path)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A field for people: text as it is, null as nothing.
fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => shown(text),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_tells_every_fault_and_the_next_step() {
        let body = json!({"success": false, "error": "2 faults", "code": "VALIDATION_ERROR", "request_id": "1", "details": [
            {"field": "url", "code": "VALIDATION_ERROR", "message": "is missing"},
            {"field": "", "code": "ROUTE_CONFLICT", "message": "taken"},
        ]});
        let answer = Answer { status: StatusCode::UNAUTHORIZED, headers: HeaderMap::new(), body: body.to_string().into() };
        let said = format!("{:?}", refused(&answer, &answer.json(), "a:1"));
        for part in ["refused (401 VALIDATION_ERROR): 2 faults", "url: is missing (VALIDATION_ERROR)", "  taken (ROUTE_CONFLICT)", TOKEN] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn of_several_faults_each_is_told_once() {
        let body = json!({"success": false, "error": "a: one (and 1 more fault, see details)", "code": "VALIDATION_ERROR", "details": [
            {"field": "a", "code": "VALIDATION_ERROR", "message": "one"}, {"field": "b", "code": "VALIDATION_ERROR", "message": "two"},
        ]});
        let answer = Answer { status: StatusCode::BAD_REQUEST, headers: HeaderMap::new(), body: body.to_string().into() };
        let expected = "refused (400 VALIDATION_ERROR): 2 faults\n  a: one (VALIDATION_ERROR)\n  b: two (VALIDATION_ERROR)";
        assert_eq!(refused(&answer, &answer.json(), "a:1").to_string(), expected);
    }

    #[test]
    fn what_is_not_found_says_where_to_look() {
        let body = json!({"success": false, "error": "no route matches this path", "code": "NOT_FOUND"});
        let mut answer = Answer { status: StatusCode::NOT_FOUND, headers: HeaderMap::new(), body: body.to_string().into() };
        let said = refused(&answer, &answer.json(), "a:1").to_string();
        assert_eq!(said, "not found (404 NOT_FOUND): no route matches this path\n`furt services` shows what is registered");
        answer.headers.insert("x-furt-reason", HeaderValue::from_static("no-route"));
        let said = refused(&answer, &answer.json(), "a:1").to_string();
        assert!(said.contains("a:1 is furt's public listener; --gateway names the internal one"), "{said}");
    }

    #[test]
    fn a_gateway_is_a_host_and_a_port() {
        let named = |address: &str| {
            use clap::Parser;
            gateway(&Arguments::try_parse_from(["furt", "routes", "--gateway", address]).unwrap()).map_err(|failure| failure.to_string())
        };
        assert_eq!(named("http://furt.internal:7810/"), Ok("furt.internal:7810".into()));
        assert_eq!(named("[::1]:7810"), Ok("[::1]:7810".into()));
        for wrong in ["127.0.0.1", "::1", "::1:7810", ":7810", "https://furt", "furt:port"] {
            let expected = format!("furt: --gateway: expected HOST:PORT such as 127.0.0.1:7810, got {wrong:?}");
            assert_eq!(named(wrong), Err(expected));
        }
    }

    #[test]
    fn an_explanation_says_why_there_is_no_route() {
        let outcome = |status: u16, code: &str| json!({"canonical_path": "", "outcome": {"status": status, "code": code}});
        let said = explained(&outcome(400, "MALFORMED_REQUEST"), "/a//b?c//d");
        assert_eq!(said, "outcome         400 MALFORMED_REQUEST: a path must not have empty segments (\"//\")");
        assert!(explained(&outcome(404, "NOT_FOUND"), "/a").contains("404 NOT_FOUND: no route fits"));
        assert!(explained(&outcome(401, "UNAUTHORIZED"), "/a").ends_with("401 UNAUTHORIZED"));
    }

    #[test]
    fn services_and_routes_are_tables() {
        let service = json!({"service": "sagjan", "status": "DOWN", "instances": [{"id": "default", "url": "http://h", "status": "DOWN",
            "parked": true, "consecutive_failures": 10, "last_ping": "2025-11-14T20:30:00Z", "response_time_ms": null, "last_error": "x"}],
            "routes": [{"service": "sagjan", "method": "GET", "host": "", "path": "/a/*", "permission": "a:b", "active": false}]});
        let shown = told(&Command::Services { name: Some("sagjan".into()) }, &json!({"data": {"service": service}}));
        let suspect = json!({"services": [{"service": "obr", "instances": [{"id": "default", "status": "UP", "suspect": true}]}]});
        assert!(told(&Command::Services { name: None }, &json!({"data": suspect})).contains("UP (suspect)"));
        assert!(shown.contains("DOWN (parked)  default   http://h  2025-11-14T20:30:00Z      10        x"), "{shown}");
        assert!(shown.contains("sagjan   GET           /a/*  a:b         registered  withdrawn"), "{shown}");
        assert_eq!(told(&Command::Services { name: None }, &json!({"data": {"services": []}})), "no service is registered");
    }
}
