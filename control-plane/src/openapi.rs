//! The description of the JSON paths, OpenAPI 3.1: made from what serves them, so that it says nothing else.
//!
//! Here: paths, parameters, answers and refusals, from the table of endpoints and the table of codes. In `messages` the
//! schemas of what travels, from the descriptors of `proto/furt/v1`; in `shapes` those that are no message.
//! Not here: serving it (`http`).

mod messages;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::http::endpoints::{Answers, ENDPOINTS, Endpoint};
use crate::http::query::{Kind, Parameter, Place};
use crate::refusal::Code;
use messages::Messages;

const ABOUT: &str = "What services and operators say to furt's control plane, as JSON. Field names are those of the gRPC API \
    (package furt.v1), which is served on the same port.\n\n\
    Who may ask: a peer of this machine is an operator, unless `[gateway] loopback_is_operator = false`; others send the token of \
    furt.conf. A peer outside `allow_registration_from`, a request that came through a proxy, an unknown Host and a page of another \
    site are refused before any path is looked at.\n\n\
    A path that is not here is answered 404, a method that is not here 405 with `Allow`; a head that cannot be parsed 400 without a \
    body.";

/// The registration of a service, as people would write it.
const EXAMPLE: &str = r#"{"service": "sagjan", "url": "http://127.0.0.1:7812", "health_endpoint": "/health", "routes": [
    {"method": "GET", "path": "/api/comments/*", "permission": "comments:read"},
    {"method": "POST", "path": "/api/comments/*", "permission": "comments:write"}]}"#;

/// The whole description.
///
/// Errors: the descriptors that were compiled in cannot be read.
pub fn document() -> Result<Value, prost::DecodeError> {
    let messages = Messages::compiled_in()?;
    let mut paths: Map<String, Value> = Map::new();
    let mut refusals = BTreeMap::new();
    let mut schemas = BTreeSet::new();
    for endpoint in ENDPOINTS {
        let described = operation(endpoint, &mut refusals);
        schemas.extend(endpoint.takes);
        schemas.extend(endpoint.answers.schema());
        if let Some(path) = paths.entry(endpoint.path).or_insert_with(|| json!({})).as_object_mut() {
            path.insert(endpoint.verb.name().into(), described);
        }
    }
    let mut all = messages.schemas(&schemas);
    all.extend(shapes::schemas(&all_codes()));
    Ok(json!({
        "openapi": "3.1.0",
        "info": {"title": "furt", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of furt.conf: [token \"name\"]"}},
            "responses": refusals,
            "schemas": all.into_iter().collect::<BTreeMap<_, _>>(),
        },
    }))
}

/// Every code there is on any path, and those of no path.
fn all_codes() -> BTreeSet<&'static str> {
    let everywhere = [Code::NotFound, Code::MethodNotAllowed];
    ENDPOINTS.iter().flat_map(Endpoint::codes).chain(everywhere).map(Code::slug).collect()
}

impl Answers {
    /// The name of the schema it is made of.
    fn schema(self) -> Option<&'static str> {
        match self {
            Self::Data(name) | Self::Json(name) | Self::Events(name) => Some(name),
            Self::Word(..) | Self::Metrics => None,
        }
    }
}

fn operation(endpoint: &Endpoint, refusals: &mut BTreeMap<String, Value>) -> Value {
    let (summary, rest) = endpoint.summary.split_once(". ").unwrap_or((endpoint.summary.trim_end_matches('.'), ""));
    let who = endpoint.needs.map_or("For everyone who may talk to furt.".to_owned(), |action| format!("For {}.", action.who()));
    let mut operation = json!({
        "operationId": endpoint.name,
        "summary": summary,
        "description": if rest.is_empty() { who } else { format!("{rest} {who}") },
        // Without a token: who is an operator by being on this machine.
        "security": if endpoint.needs.is_some() { json!([{"token": []}, {}]) } else { json!([]) },
        "responses": responses(endpoint, refusals),
    });
    let names = endpoint.names().map(|name| {
        let (about, example) = if name == "service" { ("The service's name.", "sagjan") } else { ("The instance's id.", "default") };
        json!({"name": name, "in": "path", "required": true, "description": about, "schema": messages::name(), "example": example})
    });
    let parameters: Vec<Value> = names.chain(endpoint.parameters.into_iter().flatten().map(parameter)).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(message) = endpoint.takes {
        let example: Value = serde_json::from_str(EXAMPLE).unwrap_or_default();
        let content = json!({"schema": reference("schemas", message), "example": example});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": content}});
    }
    operation
}

fn parameter(parameter: &Parameter) -> Value {
    let schema = match parameter.kind {
        Kind::Text if parameter.required => json!({"type": "string", "minLength": 1}),
        Kind::Text => json!({"type": "string"}),
        Kind::Truth => json!({"type": "boolean", "default": false}),
        Kind::Whole { least, most, otherwise } => json!({"type": "integer", "minimum": least, "maximum": most, "default": otherwise}),
    };
    let place = match parameter.place {
        Place::Query => "query",
        Place::Header => "header",
    };
    json!({"name": parameter.name, "in": place, "required": parameter.required, "description": parameter.about, "schema": schema})
}

/// Every answer by its status; the refusals of one status share a component with those of other paths.
fn responses(endpoint: &Endpoint, refusals: &mut BTreeMap<String, Value>) -> Value {
    let mut responses = answers(endpoint.answers);
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in endpoint.codes() {
        by_status.entry(code.status().as_u16()).or_default().push(code);
    }
    for (status, mut codes) in by_status {
        codes.sort_unstable_by_key(|code| code.slug());
        let slugs: Vec<&str> = codes.iter().map(|code| code.slug()).collect();
        let name = slugs.join(".");
        responses.insert(status.to_string(), reference("responses", &name));
        refusals.entry(name).or_insert_with(|| refused(&codes, &slugs));
    }
    responses.insert("431".into(), reference("responses", "HeadTooLarge"));
    refusals.entry("HeadTooLarge".into()).or_insert_with(|| json!({"description": "The head is larger than 64 KiB. There is no body."}));
    responses.sort_keys();
    responses.into()
}

fn answers(answers: Answers) -> Map<String, Value> {
    let word = |word: &str| {
        let schema = json!({"type": "object", "required": ["status"], "properties": {"status": {"const": word}}});
        response(word, "application/json", schema, &[])
    };
    let ok = match answers {
        Answers::Data(name) => response("Done.", "application/json", shapes::envelope(reference("schemas", name)), &[]),
        Answers::Json(name) => response("As it is.", "application/json", reference("schemas", name), &[]),
        Answers::Events(name) => {
            let mut events = response("The events, until the connection ends.", "text/event-stream", json!({"type": "string"}), &[]);
            events["content"]["text/event-stream"]["x-data"] = reference("schemas", name);
            events
        }
        Answers::Metrics => response("Prometheus text format 0.0.4.", "text/plain", json!({"type": "string"}), &[]),
        Answers::Word(yes, no) => return Map::from_iter([("200".to_owned(), word(yes)), ("503".to_owned(), word(no))]),
    };
    Map::from_iter([("200".to_owned(), ok)])
}

fn refused(codes: &[Code], slugs: &[&str]) -> Value {
    let sentences: Vec<String> = codes.iter().map(|code| format!("{code}: {}", means(*code))).collect();
    let schema = json!({"allOf": [reference("schemas", "Error"), {"properties": {"code": {"enum": slugs}}}]});
    let mut headers = Vec::new();
    match codes.first().map(|code| code.status().as_u16()) {
        Some(401) => headers.push(("WWW-Authenticate", json!({"const": "Bearer"}))),
        Some(429 | 503) => headers.push(("Retry-After", json!({"type": "integer", "minimum": 1}))),
        _ => {}
    }
    response(&sentences.join(" "), "application/json", schema, &headers)
}

/// An answer with these headers, besides the one that all have.
fn response(about: &str, content_type: &str, schema: Value, headers: &[(&str, Value)]) -> Value {
    let request_id = [("X-Request-ID", shapes::ulid())];
    let headers = headers.iter().chain(&request_id).map(|(name, schema)| (*name, json!({"required": true, "schema": schema})));
    json!({"description": about, "headers": headers.collect::<BTreeMap<_, _>>(), "content": {content_type: {"schema": schema}}})
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

/// What a code says, for people.
fn means(code: Code) -> &'static str {
    match code {
        Code::Validation => "a field or parameter is missing, unknown, repeated, or not what it may be; details name each.",
        Code::Malformed => "the body, the path or the head cannot be read.",
        Code::Unauthorized => "a token is needed, and none that is known was sent.",
        Code::Forbidden => "the token does not reach this far, the Host is unknown, or the request comes from another site's page.",
        Code::RegistrationRefused => "the peer, its token or a forwarding header speaks against it.",
        Code::PermissionNotGranted => "the grant, or its lack, speaks against it; details name what.",
        Code::RouteConflict => "another service holds a route; details name which and whose.",
        Code::StaleRegistration => "the registration_id is no longer the current one.",
        Code::NotFound => "there is no such thing.",
        Code::MethodNotAllowed => "there is such a path, under another method.",
        Code::RequestTimeout => "the body did not arrive in time.",
        Code::PayloadTooLarge => "the body is larger than 1 MiB.",
        Code::RateLimited => "too many registrations from this peer.",
        Code::Unavailable => "for now it cannot be done: furt is busy or shuts down.",
        Code::StoreUnavailable => "for now the store cannot be read or written; nothing was changed.",
        Code::Internal => "a fault of furt's own.",
    }
}

#[cfg(test)]
mod tests;
