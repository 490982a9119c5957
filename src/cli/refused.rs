//! What furt refused, every fault of it, and what to do about it.

use furt::config::{self, hint};
use http::{StatusCode, header};
use serde_json::Value;

use super::{
    Failure,
    arguments::Asked,
    client::Answer,
    fields::{counted, list, paragraph, text},
    gateway::TOKEN,
    table::shown,
};

/// An answer that is no success. `services` is what `GET /internal/services` shows, for the nearest name;
/// null when it was not asked.
pub fn refused(asked: &Asked, answer: &Answer, address: &str, services: &Value) -> Failure {
    let json = answer.json();
    let Some(error) = json.get("error").and_then(Value::as_str) else {
        let status = answer.status;
        return Failure::new(format!("furt: {address} answered {status}, but not as furt does; --gateway names another address"));
    };
    let mut lines = faults(asked, answer, &json, error);
    lines.extend(next_step(asked, answer, error, address, services));
    Failure::new(lines.join("\n"))
}

/// The sentence, and a line for each fault when there are several.
fn faults(asked: &Asked, answer: &Answer, json: &Value, error: &str) -> Vec<String> {
    let reload = matches!(asked, Asked::Reload { .. });
    let code = text(json, "code");
    // A single fault is the sentence already; of several the sentence has only the first.
    let details = Some(list(json, "details")).filter(|details| details.len() > 1 || reload).unwrap_or_default();
    let sentence = match details {
        [] => paragraph(error, ""),
        _ if reload => format!("{} in furt.conf; all is as it was", counted(details.len(), "fault")),
        _ => counted(details.len(), "fault"),
    };
    let word = if answer.status == StatusCode::NOT_FOUND { "not found" } else { "refused" };
    let mut lines = vec![format!("{word} ({} {code}): {sentence}", answer.status.as_u16())];
    for detail in details {
        let field = text(detail, "field");
        let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let message = detail.get("message").and_then(Value::as_str).unwrap_or_default();
        // Which class a fault is of matters where they are of several.
        let class = Some(text(detail, "code")).filter(|class| !class.is_empty() && *class != code);
        let class = class.map(|class| format!(" ({class})")).unwrap_or_default();
        lines.push(format!("  {place}{}{class}", paragraph(message, "    ")));
    }
    lines
}

fn next_step(asked: &Asked, answer: &Answer, error: &str, address: &str, services: &Value) -> Option<String> {
    Some(match answer.status {
        // Only the public listener gives a reason in this header.
        StatusCode::NOT_FOUND if answer.headers.contains_key("x-furt-reason") => format!(
            "{address} is furt's public listener; --gateway names the internal one, [gateway] listen in furt.conf ({} by default)",
            config::DEFAULT_GATEWAY
        ),
        StatusCode::NOT_FOUND => match asked.named() {
            Some((service, instance)) => nearest(service, instance, services),
            None => format!("the furt at {address} does not know this command; is it older than this one ({})?", env!("CARGO_PKG_VERSION")),
        },
        // The unit's ExecReload has no token.
        StatusCode::UNAUTHORIZED if matches!(asked, Asked::Reload { .. }) => {
            format!("set {TOKEN} to an operator's token, or send furt a SIGHUP: that needs none, and the log tells what came of it")
        }
        StatusCode::UNAUTHORIZED => format!("set {TOKEN} to a token that furt.conf knows ([token \"name\"])"),
        // A grant with a token of its own.
        StatusCode::FORBIDDEN if error.contains("Bearer") => format!("set {TOKEN} to that token"),
        StatusCode::CONFLICT if text(&answer.json(), "code") == "STALE_REGISTRATION" => {
            let service = asked.named().map(|(service, _)| shown(service)).unwrap_or_default();
            format!("`furt services {service}` shows the registrations there are")
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or("a few");
            format!("try again in {} s", shown(seconds))
        }
        StatusCode::BAD_REQUEST if matches!(asked, Asked::Reload { .. }) => {
            let json = answer.json();
            // furt.conf is valid then, and `furt check` would only say so.
            let restart = list(&json, "details").iter().all(|detail| text(detail, "message").contains("needs a restart"));
            let next = if restart && !list(&json, "details").is_empty() {
                "restart furt, and it takes all of furt.conf; or put back what it runs with, and reload"
            } else {
                "`furt check` tells whether they are gone"
            };
            next.into()
        }
        _ => return None,
    })
}

/// The name that was probably meant.
fn nearest(service: &str, instance: Option<&str>, services: &Value) -> String {
    let services = list(services.get("data").unwrap_or(&Value::Null), "services");
    if let Some(found) = services.iter().find(|found| text(found, "service") == service) {
        let ids: Vec<String> = list(found, "instances").iter().map(|instance| text(instance, "id")).collect();
        let near = hint(instance.unwrap_or_default(), ids.iter().map(String::as_str));
        return format!("instances of {}: {}{near}", shown(service), ids.join(", "));
    }
    let names: Vec<String> = services.iter().map(|found| text(found, "service")).collect();
    match hint(service, names.iter().map(String::as_str)) {
        near if near.is_empty() => "`furt services` shows what is registered".into(),
        near => near.trim().trim_matches(['(', ')']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use http::{HeaderMap, HeaderValue};
    use serde_json::json;

    use super::*;
    use crate::cli::arguments::{Arguments, Command};

    fn asked(line: &str) -> Asked {
        let Command::Ask(asked) = Arguments::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line} asks nobody") };
        asked
    }

    fn answer(status: StatusCode, body: &Value) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: body.to_string().into() }
    }

    fn said(line: &str, status: u16, body: Value) -> String {
        refused(&asked(line), &answer(StatusCode::from_u16(status).unwrap(), &body), "a:1", &Value::Null).to_string()
    }

    #[test]
    fn every_fault_is_told_once_and_its_class_where_it_is_another() {
        let details = json!([
            {"field": "url", "code": "VALIDATION_ERROR", "message": "is missing"},
            {"field": "", "code": "ROUTE_CONFLICT", "message": "taken"},
        ]);
        let body = json!({"success": false, "error": "url: is missing (and 1 more fault, see details)", "code": "VALIDATION_ERROR", "details": details});
        let expected = "refused (400 VALIDATION_ERROR): 2 faults\n  url: is missing\n  taken (ROUTE_CONFLICT)";
        assert_eq!(said("furt register f", 400, body), expected);
        let one = json!({"error": "service: there is no grant\nadd", "code": "PERMISSION_NOT_GRANTED", "details": [
            {"field": "service", "code": "PERMISSION_NOT_GRANTED", "message": "there is no grant\nadd"}]});
        assert_eq!(said("furt register f", 403, one), "refused (403 PERMISSION_NOT_GRANTED): service: there is no grant\nadd");
    }

    #[test]
    fn each_status_has_its_next_step() {
        let error = |code: &str, error: &str| json!({"success": false, "error": error, "code": code});
        let check = |line: &str, status: u16, body: Value, step: &str| {
            let said = said(line, status, body);
            assert!(said.contains(step), "{step:?} is not in {said}");
        };
        check("furt services", 401, error("UNAUTHORIZED", "no token"), TOKEN);
        check("furt register f", 403, error("REGISTRATION_REFUSED", "needs Authorization: Bearer"), TOKEN);
        check("furt services nobody", 404, error("NOT_FOUND", "nobody is not registered"), "`furt services` shows what is registered");
        check("furt reload", 401, error("UNAUTHORIZED", "reloading furt.conf needs the token of an operator"), "or send furt a SIGHUP");
        check("furt reload", 404, error("NOT_FOUND", "nothing answers"), "is it older than this one");
        check("furt deregister s i --registration-id x", 409, error("STALE_REGISTRATION", "anew"), "`furt services s` shows");
        check("furt register f", 429, error("RATE_LIMIT_EXCEEDED", "slow down"), "try again in a few s");
        assert_eq!(
            said("furt services", 502, json!("<html>")),
            "furt: a:1 answered 502 Bad Gateway, but not as furt does; --gateway names another address"
        );
    }

    #[test]
    fn the_public_listener_is_known_by_its_answer() {
        let mut answer = answer(StatusCode::NOT_FOUND, &json!({"error": "no route matches this path", "code": "NOT_FOUND"}));
        answer.headers.insert("x-furt-reason", HeaderValue::from_static("no-route"));
        let said = refused(&asked("furt services"), &answer, "a:1", &Value::Null).to_string();
        assert!(said.contains("a:1 is furt's public listener; --gateway names the internal one"), "{said}");
    }

    #[test]
    fn the_nearest_service_or_the_instances_are_named() {
        let services = json!({"data": {"services": [
            {"service": "sagjan", "instances": [{"id": "default"}, {"id": "blue"}]}, {"service": "obr", "instances": []}]}});
        assert_eq!(nearest("sagian", None, &services), "did you mean \"sagjan\"?");
        assert_eq!(nearest("kollektiv", None, &services), "`furt services` shows what is registered");
        assert_eq!(nearest("sagjan", Some("bleu"), &services), "instances of sagjan: default, blue (did you mean \"blue\"?)");
        assert_eq!(nearest("sagjan", None, &Value::Null), "`furt services` shows what is registered");
    }

    #[test]
    fn what_only_a_restart_takes_is_not_sent_to_furt_check() {
        let fault = |message: &str| json!({"field": "furt.conf: [gateway] listen", "code": "VALIDATION_ERROR", "message": message});
        let body = |faults: Vec<Value>| json!({"error": "furt.conf", "code": "VALIDATION_ERROR", "details": faults});
        let restart = "a change of this needs a restart of furt";
        let expected = "refused (400 VALIDATION_ERROR): 1 fault in furt.conf; all is as it was\n  \
                        furt.conf: [gateway] listen: a change of this needs a restart of furt\n\
                        restart furt, and it takes all of furt.conf; or put back what it runs with, and reload";
        assert_eq!(said("furt reload", 400, body(vec![fault(restart)])), expected);
        assert!(
            said("furt reload", 400, body(vec![fault(restart), fault("expected a port")]))
                .ends_with("`furt check` tells whether they are gone")
        );
    }

    #[test]
    fn a_refused_reload_tells_file_line_and_key() {
        let body = json!({"error": "furt.conf:2: port: expected a number", "code": "VALIDATION_ERROR", "details": [
            {"field": "/etc/furt/furt.conf:2: port", "code": "VALIDATION_ERROR", "message": "expected a number"},
            {"field": "furt.conf:7: [service \"a\"]", "code": "VALIDATION_ERROR", "message": "twice"},
            {"field": "furt.conf", "code": "VALIDATION_ERROR", "message": "cannot be read"},
        ]});
        let expected = "refused (400 VALIDATION_ERROR): 3 faults in furt.conf; all is as it was\n  \
                        /etc/furt/furt.conf:2: port: expected a number\n  furt.conf:7: [service \"a\"]: twice\n  \
                        furt.conf: cannot be read\n`furt check` tells whether they are gone";
        assert_eq!(said("furt reload", 400, body), expected);
    }
}
