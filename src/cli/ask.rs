//! The commands that ask a running furt: from the command line to the question, from the answer to the screen.
//!
//! Not here: how answers read (`told`), refusals (`refused`), the one that does not end (`events`).

use std::{
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    Failure,
    arguments::{Asked, Place},
    client::{Answer, Question, encoded},
    events,
    fields::{list, plain},
    gateway::Gateway,
    process::say,
    refused::refused,
    screen::Screen,
    told::told,
};

/// Asks, and prints the answer for people or, with `--json`, as it came.
pub async fn ask(config: Option<&Path>, asked: &Asked) -> Result<(), Failure> {
    let talk = asked.talk();
    let furt = Gateway::find(config, talk.gateway.as_deref())?;
    if let Asked::Events { choice, .. } = asked {
        return events::events(&furt, asked, choice).await;
    }
    let answer = furt.send(question(asked)?).await?;
    let json = answer.json();
    let success = answer.status.is_success() && json.get("success") == Some(&Value::Bool(true));
    // What is not furt's at all is no answer, and no JSON as a machine expects it.
    if talk.json && json.get("success").is_some() {
        say(String::from_utf8_lossy(&answer.body).trim_end())?;
        return if success { Ok(()) } else { Err(Failure::told()) };
    }
    if !success {
        return Err(explain_refusal(&furt, asked, &answer).await);
    }
    if matches!(asked, Asked::Services { .. } | Asked::Routes { .. }) {
        lacks(&furt).await;
    }
    say(told(asked, &json, &Screen::stdout()))
}

/// Says on standard error what furt lacks, such as a store that takes no registrations: whoever looks at a list wants to know.
async fn lacks(furt: &Gateway) {
    // Without it the answer is as true, only less helpful.
    let Ok(health) = furt.send(Question::new(Method::GET, "/health")).await else { return };
    for issue in list(&health.json(), "issues") {
        let _ = writeln!(io::stderr(), "warning: {}", plain(issue));
    }
}

/// A refusal in words; for a name that is not known the known ones are asked for.
pub async fn explain_refusal(furt: &Gateway, asked: &Asked, answer: &Answer) -> Failure {
    let mut services = Value::Null;
    if answer.status == StatusCode::NOT_FOUND && asked.named().is_some() {
        // Without them the refusal is as true, only less helpful.
        let known = furt.send(Question::new(Method::GET, "/internal/services")).await;
        services = known.map(|known| known.json()).unwrap_or_default();
    }
    refused(asked, answer, &furt.address, &services)
}

fn question(asked: &Asked) -> Result<Question, Failure> {
    let get = |target: &str| Question::new(Method::GET, target);
    Ok(match asked {
        Asked::Register { file, dry_run, .. } => {
            let target = if *dry_run { "/internal/register-service?dry_run=true" } else { "/internal/register-service" };
            Question::new(Method::POST, target).body(registration(file)?)
        }
        Asked::Deregister { place, registration_id, .. } => {
            Question::new(Method::DELETE, target(place, "", &[("registration_id", registration_id.as_deref())]))
        }
        Asked::Drain { place, seconds, .. } => {
            let given = seconds.map(|seconds| seconds.to_string());
            let target = target(place, "/drain", &[("seconds", given.as_deref())]);
            // The default is furt's to choose, up to the most there is.
            Question::new(Method::POST, target).patient(seconds.unwrap_or(300))
        }
        Asked::Undrain { place, .. } => Question::new(Method::POST, target(place, "/undrain", &[])),
        Asked::Probe { place, .. } => Question::new(Method::POST, target(place, "/probe", &[])),
        Asked::Services { name: Some(name), .. } => get(&format!("/internal/services/{}", encoded(name))),
        Asked::Services { name: None, .. } => get("/internal/services"),
        Asked::Routes { .. } => get("/internal/routes"),
        Asked::Explain { method, path, host, key_name, .. } => {
            let parts =
                [("method", Some(method.as_str())), ("path", Some(path)), ("host", host.as_deref()), ("key_name", key_name.as_deref())];
            get(&with_query("/internal/explain", &parts))
        }
        Asked::Events { choice, .. } => events::question(choice, None),
        Asked::Reload { .. } => Question::new(Method::POST, "/internal/reload"),
    })
}

fn registration(file: &Path) -> Result<Bytes, Failure> {
    let body = if file.as_os_str() == "-" {
        let mut body = Vec::new();
        io::stdin().read_to_end(&mut body).map(|_| body)
    } else {
        std::fs::read(file)
    };
    body.map(Bytes::from).map_err(|error| Failure::new(format!("furt: cannot read {}: {error}", file.display())))
}

/// `/internal/services/…` of a service or one of its instances.
fn target(place: &Place, verb: &str, query: &[(&str, Option<&str>)]) -> String {
    let instance = place.instance.as_deref().map(|instance| format!("/instances/{}", encoded(instance))).unwrap_or_default();
    with_query(&format!("/internal/services/{}{instance}{verb}", encoded(&place.service)), query)
}

/// A path with those parameters that are given.
pub fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", encoded(value))));
    let query = given.collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::{Arguments, Command};

    #[test]
    fn each_command_asks_its_path() {
        let check = |line: &str, expected: &str| {
            let Command::Ask(asked) = Arguments::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line} asks nobody") };
            let question = question(&asked).unwrap();
            assert_eq!(format!("{} {}", question.method, question.target), expected, "{line}");
        };
        check("furt register /dev/null --dry-run", "POST /internal/register-service?dry_run=true");
        check("furt deregister sagjan", "DELETE /internal/services/sagjan");
        check("furt deregister sagjan a/b --registration-id 01J", "DELETE /internal/services/sagjan/instances/a%2Fb?registration_id=01J");
        check("furt drain sagjan", "POST /internal/services/sagjan/drain");
        check("furt drain sagjan blue --seconds 5", "POST /internal/services/sagjan/instances/blue/drain?seconds=5");
        check("furt undrain sagjan blue", "POST /internal/services/sagjan/instances/blue/undrain");
        check("furt probe sagjan", "POST /internal/services/sagjan/probe");
        check("furt services", "GET /internal/services");
        check("furt services a?b", "GET /internal/services/a%3Fb");
        check("furt routes", "GET /internal/routes");
        check("furt explain GET /a --key-name me", "GET /internal/explain?method=GET&path=%2Fa&key_name=me");
        check("furt reload", "POST /internal/reload");
    }
}
