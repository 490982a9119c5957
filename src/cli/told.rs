//! The answers of a running furt for people.

use serde_json::Value;

use super::{
    arguments::Asked,
    explain::explained,
    fields::{list, plain, text},
    screen::{Screen, Tone},
    services::{one, overview, routes},
};

/// The answer to what was asked; `json` is the whole envelope.
pub fn told(asked: &Asked, json: &Value, screen: &Screen) -> String {
    let data = json.get("data").unwrap_or(&Value::Null);
    match asked {
        Asked::Register { .. } => registered(json, data, screen),
        Asked::Services { name: None, .. } => overview(data, screen),
        Asked::Services { name: Some(_), .. } => one(data, screen),
        Asked::Routes { .. } => routes(list(data, "routes"), screen),
        Asked::Explain { path, .. } => explained(data, path, screen),
        Asked::Reload { .. } => reloaded(json, data, screen),
        Asked::Drain { place, .. } => {
            let instance = place.instance.as_deref().map(|instance| format!(" {instance}")).unwrap_or_default();
            let kept = data.get("deregistered") == Some(&Value::Bool(false));
            let back = if kept { format!("\n  `furt undrain {}{instance}` takes it back", place.service) } else { String::new() };
            format!("{}\n{}{back}", text(json, "message"), instances(data))
        }
        Asked::Probe { place, .. } => {
            format!("{}\n{}\n  `furt services {}` shows the outcome", text(json, "message"), instances(data), place.service)
        }
        Asked::Deregister { place, .. } => {
            let again = format!("a service that renews is back with its next renewal; `furt drain {}` then keeps it out", place.service);
            format!("{}\n{}\n  {again}", text(json, "message"), instances(data))
        }
        Asked::Undrain { .. } => format!("{}\n{}", text(json, "message"), instances(data)),
        // It prints its own lines.
        Asked::Events { .. } => String::new(),
    }
}

fn instances(data: &Value) -> String {
    let ids: Vec<String> = list(data, "instances").iter().map(plain).collect();
    format!("  instances: {}", if ids.is_empty() { "none".into() } else { ids.join(", ") })
}

fn registered(json: &Value, data: &Value, screen: &Screen) -> String {
    let mut lines = vec![text(json, "message")];
    for (name, key) in [("instance", "instance"), ("registration", "registration_id"), ("status", "status")] {
        // A dry run has no registration to name.
        if !text(data, key).is_empty() {
            lines.push(format!("  {name}: {}", text(data, key)));
        }
    }
    lines.push(format!("  repeat it every {} s", text(data, "renew_after_seconds")));
    lines.extend(warnings(data, screen));
    lines.join("\n")
}

/// The difference that a reload made.
fn reloaded(json: &Value, data: &Value, screen: &Screen) -> String {
    let changes = list(data, "changes");
    let message = Some(text(json, "message")).filter(|message| !message.is_empty());
    let mut lines = vec![message.unwrap_or_else(|| "furt.conf reloaded".into())];
    lines.extend(changes.iter().map(|change| format!("  {}", sentence(change))));
    if changes.is_empty() {
        lines.push("  nothing has changed".into());
    }
    lines.extend(warnings(data, screen));
    lines.join("\n")
}

fn warnings(data: &Value, screen: &Screen) -> Vec<String> {
    list(data, "warnings").iter().map(|warning| format!("  {}: {}", screen.paint("warning", Tone::Odd), sentence(warning))).collect()
}

/// What a thing says: itself, or its message.
fn sentence(thing: &Value) -> String {
    if thing.is_object() { text(thing, "message") } else { plain(thing) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::arguments::{Arguments, Command};

    fn said(line: &str, message: &str, data: Value) -> String {
        let Command::Ask(asked) = Arguments::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line} asks nobody") };
        told(&asked, &json!({"success": true, "message": message, "data": data}), &Screen::PLAIN)
    }

    #[test]
    fn a_registration_names_what_to_remember() {
        let data = json!({"service": "sagjan", "instance": "default", "registration_id": "01J", "status": "UNKNOWN", "routes": 4,
            "warnings": [{"code": "ROUTES_OVERLAP", "route": "GET /a/*", "with": "obr", "message": "GET /a/* meets obr's"}],
            "epoch": "3f9c", "version": 17, "renew_after_seconds": 60});
        let expected = "sagjan registered: 4 routes\n  instance: default\n  registration: 01J\n  status: UNKNOWN\n  repeat it every 60 s\n  \
                        warning: GET /a/* meets obr's";
        assert_eq!(said("furt register f", "sagjan registered: 4 routes", data), expected);
    }

    #[test]
    fn a_drain_tells_how_to_take_it_back() {
        let drained = |deregistered: bool| json!({"service": "sagjan", "instances": ["a", "b"], "version": 3, "in_flight": 3, "deregistered": deregistered});
        let message = "sagjan drained: 2 instances; 3 requests still in flight";
        let kept = format!("{message}\n  instances: a, b\n  `furt undrain sagjan` takes it back");
        assert_eq!(said("furt drain sagjan --seconds 5", message, drained(false)), kept);
        assert_eq!(said("furt drain sagjan a", message, drained(true)), format!("{message}\n  instances: a, b"));
    }

    #[test]
    fn a_reload_tells_the_difference() {
        let data = json!({"changes": ["added [api_key \"website\"]"], "warnings": ["furt.conf:3: port: odd", {"message": "odd too"}], "version": 9});
        let expected = "furt.conf reloaded: 1 change\n  added [api_key \"website\"]\n  warning: furt.conf:3: port: odd\n  warning: odd too";
        assert_eq!(said("furt reload", "furt.conf reloaded: 1 change", data), expected);
        assert_eq!(said("furt reload", "", json!({"changes": [], "warnings": []})), "furt.conf reloaded\n  nothing has changed");
    }

    #[test]
    fn the_others_tell_which_instances() {
        let data = json!({"service": "sagjan", "instances": ["default"], "version": 3});
        assert_eq!(
            said("furt deregister sagjan", "sagjan deregistered: 1 instance", data.clone()),
            "sagjan deregistered: 1 instance\n  instances: default\n  \
             a service that renews is back with its next renewal; `furt drain sagjan` then keeps it out"
        );
        assert!(said("furt probe sagjan", "m", data).ends_with("`furt services sagjan` shows the outcome"));
        assert_eq!(said("furt routes", "", json!({"routes": []})), "no routes");
    }
}
