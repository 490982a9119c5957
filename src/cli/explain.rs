//! An explanation for people: the outcome first, then every route and instance with its reason.

use serde_json::Value;

use super::{
    client::Answer,
    fields::{list, text, yes},
    screen::{Screen, Tone},
    table::{Cell, Table},
};

/// What `explain` prints for this answer to a question about `path`.
pub fn explanation(answer: &Answer, path: &str) -> String {
    explained(answer.json().get("data").unwrap_or(&Value::Null), path, &Screen::PLAIN)
}

/// The `data` of an explanation of `path`, an `ExplainResponse`.
pub fn explained(data: &Value, path: &str, screen: &Screen) -> String {
    let part = |key: &str| data.get(key).filter(|value| !value.is_null());
    let mut lines = Vec::new();
    if !text(data, "canonical_path").is_empty() {
        lines.push(format!("canonical path  {}", text(data, "canonical_path")));
    }
    if let Some(outcome) = part("outcome") {
        let status = match outcome.get("status").and_then(Value::as_u64) {
            Some(0) | None => screen.paint("forwarded", Tone::Good),
            Some(status) => {
                format!("{}{}", screen.paint(&format!("{status} {}", text(outcome, "code")), Tone::Bad), why(status, path, data))
            }
        };
        lines.push(format!("outcome         {status}"));
    }
    if let Some(key) = part("key") {
        let verdict = if yes(key, "allowed") { "allowed" } else { "not allowed" };
        let name = text(key, "name");
        lines.push(format!("key             {}: {verdict}, {}", if name.is_empty() { "none" } else { &name }, text(key, "reason")));
        if let Some(rate) = key.get("rate").filter(|rate| !rate.is_null()) {
            lines.push(format!("rate            {} of {} left", text(rate, "remaining"), text(rate, "limit")));
        }
    }
    if let Some(snapshot) = part("snapshot") {
        lines.push(format!("snapshot        {} of {}", text(snapshot, "version"), text(snapshot, "epoch")));
    }
    lines.extend(candidates(list(data, "candidates"), screen).map(|table| format!("\n{table}")));
    lines.extend(instances(list(data, "instances"), screen).map(|table| format!("\n{table}")));
    lines.join("\n")
}

fn candidates(candidates: &[Value], screen: &Screen) -> Option<String> {
    let rows = candidates.iter().map(|candidate| {
        let won = if yes(candidate, "won") { Cell::new("won", Tone::Good) } else { "lost".into() };
        let place = |key: &str| Cell::from(text(candidate, key));
        vec![won, place("service"), place("method"), place("host"), place("pattern"), place("permission"), place("reason")]
    });
    let table = Table::of(["ROUTE", "SERVICE", "METHOD", "HOST", "PATTERN", "PERMISSION", "WHY"], rows);
    (!candidates.is_empty()).then(|| table.shown(screen))
}

fn instances(instances: &[Value], screen: &Screen) -> Option<String> {
    let rows = instances.iter().map(|instance| {
        let status = text(instance, "status");
        let tone = super::services::tone(&status);
        let eligible = if yes(instance, "eligible") { "yes" } else { "no" };
        let place = |key: &str| Cell::from(text(instance, key));
        vec![place("id"), Cell::new(status, tone), eligible.into(), place("url"), place("reason")]
    });
    let table = Table::of(["INSTANCE", "STATUS", "ELIGIBLE", "URL", "WHY"], rows);
    (!instances.is_empty()).then(|| table.shown(screen))
}

/// The reason of an outcome that no route or key explains.
fn why(status: u64, path: &str, data: &Value) -> String {
    let path = path.split('?').next().unwrap_or_default();
    match (status, furt_proto::path::canonical(path)) {
        (400, Err(fault)) => format!(": {fault}"),
        (404, _) => ": no route fits this host and path; `furt routes` shows them all, a \"*\" at the end is one segment or more".into(),
        // The data plane knows the states, the control plane their causes.
        (503, _) => match data.get("route").map(|route| text(route, "service")).filter(|service| !service.is_empty()) {
            Some(service) if !list(data, "instances").is_empty() => format!(": `furt services {service}` shows what is wrong with each"),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_explanation_says_why_there_is_no_route() {
        let outcome = |status: u16, code: &str| json!({"canonical_path": "", "outcome": {"status": status, "code": code}});
        let said = explained(&outcome(400, "MALFORMED_REQUEST"), "/a//b?c//d", &Screen::PLAIN);
        assert_eq!(said, "outcome         400 MALFORMED_REQUEST: a path must not have empty segments (\"//\")");
        assert!(explained(&outcome(404, "NOT_FOUND"), "/a", &Screen::PLAIN).contains("404 NOT_FOUND: no route fits"));
        assert!(explained(&outcome(401, "UNAUTHORIZED"), "/a", &Screen::PLAIN).ends_with("401 UNAUTHORIZED"));
        let mut nobody = outcome(503, "SERVICE_UNAVAILABLE");
        nobody["route"] = json!({"service": "x"});
        nobody["instances"] = json!([{"id": "a", "status": "DOWN", "reason": "down"}]);
        let said = explained(&nobody, "/a", &Screen::PLAIN);
        assert!(said.contains("503 SERVICE_UNAVAILABLE: `furt services x` shows what is wrong with each\n"), "{said}");
    }

    #[test]
    fn an_explanation_shows_every_candidate_and_instance() {
        let data = json!({
            "canonical_path": "/a/b", "outcome": {"status": 0, "code": "FORWARD"}, "route": {"service": "x"},
            "key": {
                "name": "Website", "allowed": true, "reason": "has a:read",
                "rate": {"limit": "600/min", "remaining": 598, "retry_after_seconds": 0},
            },
            "candidates": [
                {"service": "x", "method": "GET", "host": "", "pattern": "/a/*", "permission": "a:read", "static": false, "won": true, "reason": "closest"},
                {"service": "y", "method": "*", "host": "", "pattern": "/*", "permission": "", "static": false, "won": false, "reason": "wider"},
            ],
            "instances": [{"id": "default", "url": "http://h", "status": "UP", "eligible": true, "reason": "UP"}],
            "snapshot": {"epoch": "3f9c", "version": 17},
        });
        let expected = "\
canonical path  /a/b
outcome         forwarded
key             Website: allowed, has a:read
rate            598 of 600/min left
snapshot        17 of 3f9c

ROUTE  SERVICE  METHOD  HOST  PATTERN  PERMISSION  WHY
won    x        GET           /a/*     a:read      closest
lost   y        *             /*                   wider

INSTANCE  STATUS  ELIGIBLE  URL       WHY
default   UP      yes       http://h  UP";
        assert_eq!(explained(&data, "/a/b", &Screen::PLAIN), expected);
    }
}
