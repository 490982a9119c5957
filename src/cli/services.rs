//! Services and routes for people: the list, and one service with all that furt knows of it.

use serde_json::Value;

use super::{
    fields::{list, number, plain, text, yes},
    screen::{Screen, Tone},
    table::{Cell, Table},
};

/// Every instance of every service; `data` is a `ListServicesResponse`.
pub fn overview(data: &Value, screen: &Screen) -> String {
    let services = list(data, "services");
    if services.is_empty() {
        return "no service is registered".into();
    }
    let rows = services.iter().flat_map(|service| {
        list(service, "instances").iter().map(move |instance| {
            let mut row = vec![text(service, "service").into()];
            row.extend(health(instance));
            row
        })
    });
    Table::of(std::iter::once("SERVICE").chain(HEALTH), rows).shown(screen)
}

/// One service: its instances, how they registered, its routes, uptime and timeline; `data` is a `GetServiceResponse`.
pub fn one(data: &Value, screen: &Screen) -> String {
    let service = data.get("service").unwrap_or(&Value::Null);
    let instances = list(service, "instances");
    let status = text(service, "status");
    let title = format!("{}  {}", text(service, "service"), screen.paint(&status, tone(&status)));
    let details =
        ["INSTANCE", "VERSION", "WEIGHT", "PROTOCOL", "HEALTH CHECK", "REGISTERED", "REGISTRATION", "BY", "ADDRESSES", "METADATA"];
    let mut parts = vec![
        title,
        Table::of(HEALTH, instances.iter().map(health)).shown(screen),
        Table::of(details, instances.iter().map(detail)).shown(screen),
        routes(list(service, "routes"), screen),
    ];
    parts.extend(uptime(instances, screen));
    parts.extend(timeline(instances, screen));
    parts.join("\n\n")
}

/// Routes of any service.
pub fn routes(routes: &[Value], screen: &Screen) -> String {
    if routes.is_empty() {
        return "no routes".into();
    }
    let rows = routes.iter().map(|route| {
        let permission = match text(route, "permission") {
            _ if yes(route, "public") => "(public)".into(),
            permission if permission.is_empty() => "(any key)".into(),
            permission => permission,
        };
        let state = if yes(route, "active") { Cell::new("active", Tone::Good) } else { Cell::new("withdrawn", Tone::Bad) };
        let kind = if yes(route, "static") { "static" } else { "registered" };
        let place = |key: &str| Cell::from(text(route, key));
        vec![place("service"), place("method"), place("host"), place("path"), permission.into(), kind.into(), state]
    });
    Table::of(["SERVICE", "METHOD", "HOST", "PATH", "PERMISSION", "KIND", "STATE"], rows).shown(screen)
}

const HEALTH: [&str; 7] = ["STATUS", "INSTANCE", "URL", "LAST PING", "MS", "FAILURES", "NOTE"];

/// What is said beside a state, in the order of importance.
const MARKS: [&str; 4] = ["parked", "drained", "suspect", "restored"];

fn health(instance: &Value) -> Vec<Cell> {
    let state = text(instance, "status");
    let withdrawn = text(instance, "withdrawn");
    let mut marks: Vec<&str> = MARKS.into_iter().filter(|mark| yes(instance, mark)).collect();
    if !withdrawn.is_empty() {
        marks.insert(0, "withdrawn");
    }
    let status = if marks.is_empty() { state.clone() } else { format!("{state} ({})", marks.join(", ")) };
    // A restored one only waits for its first renewal.
    let all_is_well = marks.iter().all(|mark| *mark == "restored");
    let tone = match tone(&state) {
        Tone::Good if !all_is_well => Tone::Odd,
        tone => tone,
    };
    let notes = [withdrawn, text(instance, "last_error")];
    let note = notes.into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join("; ");
    let place = |key: &str| Cell::from(text(instance, key));
    vec![
        Cell::new(status, tone),
        place("id"),
        place("url"),
        place("last_ping"),
        place("response_time_ms"),
        place("consecutive_failures"),
        note.into(),
    ]
}

fn detail(instance: &Value) -> Vec<Cell> {
    let place = |key: &str| Cell::from(text(instance, key));
    let by = if yes(instance, "session") { "session" } else { "request" };
    let addresses: Vec<String> = list(instance, "addresses").iter().map(plain).collect();
    let metadata = instance.get("metadata").and_then(Value::as_object).into_iter().flatten();
    let metadata: Vec<String> = metadata.map(|(name, value)| format!("{name}={}", plain(value))).collect();
    vec![
        place("id"),
        place("version"),
        place("weight"),
        place("protocol"),
        place("health_endpoint"),
        place("registered_at"),
        place("registration_id"),
        by.into(),
        addresses.join(", ").into(),
        metadata.join(", ").into(),
    ]
}

/// The share of UP for each instance and window, with the time DOWN where there was some.
fn uptime(instances: &[Value], screen: &Screen) -> Option<String> {
    let windows: Vec<String> = instances
        .iter()
        .map(|instance| list(instance, "uptime"))
        .max_by_key(|known| known.len())?
        .iter()
        .map(|window| text(window, "window"))
        .collect();
    if windows.is_empty() {
        return None;
    }
    let rows = instances.iter().map(|instance| {
        let share = |window: &String| {
            let known = list(instance, "uptime").iter().find(|known| text(known, "window") == *window).unwrap_or(&Value::Null);
            let down = number(known, "down_seconds");
            let Some(ratio) = known.get("ratio").and_then(Value::as_f64) else { return Cell::from("not known") };
            let after = if down == 0 { String::new() } else { format!(", down {}", duration(down)) };
            Cell::from(format!("{}{after}", percent(ratio)))
        };
        std::iter::once(text(instance, "id").into()).chain(windows.iter().map(share)).collect()
    });
    let head = std::iter::once("INSTANCE".to_owned()).chain(windows.iter().map(|window| format!("UP IN {window}")));
    Some(Table::of(head, rows).shown(screen))
}

/// The changes of state of all instances, oldest first.
fn timeline(instances: &[Value], screen: &Screen) -> Option<String> {
    let mut changes: Vec<(&Value, &Value)> =
        instances.iter().flat_map(|instance| list(instance, "timeline").iter().map(move |change| (instance, change))).collect();
    if changes.is_empty() {
        return None;
    }
    // All times are in UTC and of one length.
    changes.sort_by_key(|(_, change)| text(change, "time"));
    let rows = changes.into_iter().map(|(instance, change)| {
        let to = text(change, "to");
        let tone = tone(&to);
        vec![
            text(change, "time").into(),
            text(instance, "id").into(),
            text(change, "from").into(),
            Cell::new(to, tone),
            text(change, "cause").into(),
        ]
    });
    Some(Table::of(["TIME", "INSTANCE", "FROM", "TO", "CAUSE"], rows).shown(screen))
}

/// How a state is meant.
pub fn tone(state: &str) -> Tone {
    match state {
        "UP" => Tone::Good,
        "DOWN" | "PARKED" => Tone::Bad,
        "UNKNOWN" => Tone::Odd,
        _ => Tone::Plain,
    }
}

/// Rounded down: what was not always UP is never shown as 100 %.
fn percent(ratio: f64) -> String {
    format!("{:.2} %", (ratio * 10_000.0).floor() / 100.0)
}

/// The two greatest units of a duration.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(more: Value) -> Value {
        let mut instance = json!({
            "id": "default", "url": "http://h:1", "health_endpoint": "/health", "status": "UP", "parked": false,
            "consecutive_failures": 0, "last_ping": "2027-01-31T20:30:00Z", "response_time_ms": 4, "last_error": "",
            "registration_id": "01J", "registered_at": "2027-01-31T20:00:00Z", "version": "1.2", "weight": 100,
            "protocol": "http1", "metadata": {"zone": "a", "rack": "7"}, "addresses": ["192.0.2.1:1"], "suspect": false,
            "drained": false, "withdrawn": "", "restored": false, "session": true, "uptime": [], "timeline": [],
        });
        let more = more.as_object().cloned().unwrap_or_default();
        instance.as_object_mut().unwrap().extend(more);
        instance
    }

    fn said(more: Value) -> String {
        let data = json!({"services": [{"service": "sagjan", "status": "UP", "instances": [instance(more)], "routes": []}]});
        overview(&data, &Screen::PLAIN).lines().nth(1).unwrap().to_owned()
    }

    #[test]
    fn a_state_has_its_marks_and_its_reasons() {
        assert_eq!(said(json!({})), "sagjan   UP      default   http://h:1  2027-01-31T20:30:00Z  4   0");
        let down =
            said(json!({"status": "DOWN", "parked": true, "response_time_ms": null, "consecutive_failures": 10, "last_error": "refused"}));
        assert_eq!(down, "sagjan   DOWN (parked)  default   http://h:1  2027-01-31T20:30:00Z      10        refused");
        for (more, expected) in [
            (json!({"suspect": true}), "UP (suspect)"),
            (json!({"drained": true, "restored": true}), "UP (drained, restored)"),
            (json!({"status": "UNKNOWN", "restored": true}), "UNKNOWN (restored)"),
        ] {
            assert!(said(more).contains(expected), "{expected}");
        }
        let withdrawn = said(json!({"withdrawn": "no grant for sagjan any more", "last_error": "refused"}));
        assert!(withdrawn.contains("UP (withdrawn)") && withdrawn.ends_with("no grant for sagjan any more; refused"), "{withdrawn}");
        assert_eq!(overview(&json!({"services": []}), &Screen::PLAIN), "no service is registered");
    }

    #[test]
    fn states_are_green_yellow_and_red() {
        let check = |more: Value, code: &str| {
            let data = json!({"services": [{"service": "sagjan", "instances": [instance(more.clone())]}]});
            let said = overview(&data, &Screen::terminal(200));
            assert!(said.contains(&format!("\x1b[{code}m")) && said.matches('\x1b').count() == 2, "{more}: {said}");
        };
        check(json!({}), "32");
        check(json!({"restored": true}), "32");
        check(json!({"suspect": true}), "33");
        check(json!({"withdrawn": "why"}), "33");
        check(json!({"status": "UNKNOWN"}), "33");
        check(json!({"status": "DOWN", "parked": true}), "31");
    }

    #[test]
    fn one_service_is_shown_whole() {
        let window = |window: &str, up: u64, down: u64, ratio: Value| json!({"window": window, "up_seconds": up, "down_seconds": down, "ratio": ratio});
        let first = instance(json!({
            "uptime": [window("1h", 3600, 0, json!(1.0)), window("24h", 82_799, 3_601, json!(0.95832)), window("30d", 0, 0, Value::Null)],
            "timeline": [
                {"time": "2027-01-31T20:00:01.000Z", "from": "UNKNOWN", "to": "UP", "cause": "answered"},
                {"time": "2027-01-31T20:00:09.000Z", "from": "UP", "to": "DOWN", "cause": "3 misses: refused"},
            ],
        }));
        let second = instance(json!({"id": "b", "session": false, "metadata": {}, "timeline": [
            {"time": "2027-01-31T20:00:05.000Z", "from": "UNKNOWN", "to": "UP", "cause": "answered"}]}));
        let routes = json!([{"service": "sagjan", "method": "GET", "host": "", "path": "/a/*", "permission": "a:b", "active": false}]);
        let data = json!({"service": {"service": "sagjan", "status": "UP", "instances": [first, second], "routes": routes}});
        let expected = "\
sagjan  UP

STATUS  INSTANCE  URL         LAST PING             MS  FAILURES  NOTE
UP      default   http://h:1  2027-01-31T20:30:00Z  4   0
UP      b         http://h:1  2027-01-31T20:30:00Z  4   0

INSTANCE  VERSION  WEIGHT  PROTOCOL  HEALTH CHECK  REGISTERED            REGISTRATION  BY       ADDRESSES    METADATA
default   1.2      100     http1     /health       2027-01-31T20:00:00Z  01J           session  192.0.2.1:1  zone=a, rack=7
b         1.2      100     http1     /health       2027-01-31T20:00:00Z  01J           request  192.0.2.1:1

SERVICE  METHOD  HOST  PATH  PERMISSION  KIND        STATE
sagjan   GET           /a/*  a:b         registered  withdrawn

INSTANCE  UP IN 1h   UP IN 24h           UP IN 30d
default   100.00 %   95.83 %, down 1h0m  not known
b         not known  not known           not known

TIME                      INSTANCE  FROM     TO    CAUSE
2027-01-31T20:00:01.000Z  default   UNKNOWN  UP    answered
2027-01-31T20:00:05.000Z  b         UNKNOWN  UP    answered
2027-01-31T20:00:09.000Z  default   UP       DOWN  3 misses: refused";
        assert_eq!(one(&data, &Screen::PLAIN), expected);
    }

    #[test]
    fn never_quite_all_is_not_all() {
        assert_eq!(percent(1.0), "100.00 %");
        assert_eq!(percent(0.999_99), "99.99 %");
        assert_eq!(percent(0.0), "0.00 %");
        assert_eq!([59, 60, 3_599, 86_399, 90_000].map(duration), ["59s", "1m0s", "59m59s", "23h59m", "1d1h"]);
    }
}
