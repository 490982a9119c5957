//! The schemas of what is no message of `proto/furt/v1`: the envelope, `/health`, a reload.
//!
//! Here: those, by hand. That the answers look so is tested against the running program. Not here: messages.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::reference;

/// Every one of them, by its name. `codes`: those that a refusal may have.
pub(super) fn schemas(codes: &BTreeSet<&str>) -> [(String, Value); 6] {
    [
        ("Error".into(), error(codes)),
        ("Health".into(), health()),
        ("ServiceHealth".into(), service_health()),
        ("InstanceHealth".into(), instance_health()),
        ("ReloadDone".into(), reloaded()),
        ("OpenApi".into(), openapi()),
    ]
}

/// What names a request and a registration: 128 bits in Crockford's base 32.
pub(super) fn ulid() -> Value {
    json!({"type": "string", "pattern": "^[0-9A-HJKMNP-TV-Z]{26}$"})
}

/// The envelope of what went well.
pub(super) fn envelope(data: Value) -> Value {
    json!({
        "type": "object",
        "required": ["success", "request_id", "data"],
        "properties": {
            "success": {"const": true},
            "message": {"type": "string", "description": "What was done, for people. Left out where something is only shown."},
            "request_id": ulid(),
            "data": data,
        },
    })
}

fn error(codes: &BTreeSet<&str>) -> Value {
    let detail = json!({
        "type": "object",
        "required": ["field", "code", "message"],
        "properties": {
            "field": {"type": "string", "description": "The field, such as routes[3].method. Empty: no one field's."},
            "code": {"type": "string", "enum": codes, "description": "The code of this fault."},
            "message": {"type": "string", "description": "The sentence for people."},
        },
    });
    json!({
        "type": "object",
        "description": "No, with every reason at once. With several faults 400 goes before 403 before 409.",
        "required": ["success", "error", "code", "request_id"],
        "properties": {
            "success": {"const": false},
            "error": {"type": "string", "minLength": 1, "description": "The sentence for people."},
            "code": {"type": "string", "enum": codes, "description": "What kind of refusal; stable."},
            "request_id": ulid(),
            "details": {"type": "array", "minItems": 1, "items": detail, "description": "Every fault, when they are those of fields."},
        },
    })
}

fn health() -> Value {
    json!({
        "type": "object",
        "description": "How furt and every service are.",
        "required": ["status", "service", "version", "services", "snapshot_version"],
        "properties": {
            "status": {"type": "string", "enum": ["healthy", "degraded"], "description": "degraded: furt itself lacks something; a service that is DOWN leaves it healthy."},
            "service": {"const": "furt"},
            "version": {"type": "string", "description": "furt's own."},
            "services": {"type": "object", "additionalProperties": reference("schemas", "ServiceHealth"), "description": "By name."},
            "snapshot_version": {"type": "integer", "minimum": 0, "description": "The snapshot that serves."},
            "snapshot_age": {"type": "integer", "minimum": 0, "description": "Seconds since the control plane was last heard. Left out: not yet."},
            "issues": {"type": "array", "minItems": 1, "items": {"type": "string"}, "description": "What furt lacks. Left out: nothing."},
        },
    })
}

/// What is known of a service's best instance, and of an instance.
fn of_an_instance() -> Value {
    json!({
        "status": {"type": "string", "enum": ["UP", "UNKNOWN", "DOWN"]},
        "url": {"type": "string", "description": "As registered, byte for byte."},
        "last_ping": {"type": ["string", "null"], "format": "date-time", "description": "Null: not yet pinged."},
        "response_time_ms": {"type": "integer", "minimum": 0, "description": "Left out: the last ping was not answered."},
        "consecutive_failures": {"type": "integer", "minimum": 1, "description": "Misses in a row. Left out: none."},
        "parked": {"const": true, "description": "Pings have stopped. Left out: they have not."},
        "suspect": {"const": true, "description": "Something other than a probe speaks against it. Left out: nothing does."},
        "drained": {"const": true, "description": "It takes no new requests. Left out: it does."},
        "withdrawn": {"const": true, "description": "furt.conf no longer allows it. Left out: it does."},
    })
}

fn service_health() -> Value {
    let mut properties = of_an_instance();
    properties["instances"] = json!({"type": "array", "minItems": 2, "items": reference("schemas", "InstanceHealth"), "description": "Left out: there is but one."});
    json!({
        "type": "object",
        "description": "A service: the best of its instances.",
        "required": ["status", "url", "last_ping"],
        "properties": properties,
    })
}

fn instance_health() -> Value {
    let mut properties = of_an_instance();
    properties["id"] = json!({"type": "string"});
    json!({
        "type": "object",
        "description": "One running copy of a service.",
        "required": ["id", "status", "url", "last_ping"],
        "properties": properties,
    })
}

fn reloaded() -> Value {
    let sentences = |about: &str| json!({"type": "array", "items": {"type": "string"}, "description": about});
    json!({
        "type": "object",
        "description": "What reading furt.conf anew has done.",
        "required": ["changes", "warnings", "version"],
        "properties": {
            "changes": sentences("What is different now."),
            "warnings": sentences("What in furt.conf is worth a look."),
            "version": {"type": "integer", "minimum": 0, "description": "The snapshot that carries it."},
        },
    })
}

fn openapi() -> Value {
    json!({
        "type": "object",
        "description": "This description.",
        "required": ["openapi", "info", "paths", "components"],
        "properties": {"openapi": {"const": "3.1.0"}, "info": {"type": "object"}, "servers": {"type": "array"}, "paths": {"type": "object"}, "components": {"type": "object"}},
    })
}
