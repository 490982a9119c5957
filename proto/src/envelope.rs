//! The envelope of everything furt says itself in JSON (DESIGN §9, Errors).

use serde_json::{Map, Value, json};

/// One fault of a request, named by the field it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// The field, such as `routes[2].permission`; empty when it is none.
    pub field: String,
    /// The code of this fault.
    pub code: &'static str,
    /// The sentence for people.
    pub message: String,
}

/// `{"success": false, "error", "code", "request_id"}`, with `details` when there are any.
pub fn error(code: &str, message: &str, request_id: &str, details: &[Detail]) -> String {
    let mut body = Map::new();
    body.insert("success".into(), Value::Bool(false));
    body.insert("error".into(), message.into());
    body.insert("code".into(), code.into());
    body.insert("request_id".into(), request_id.into());
    if !details.is_empty() {
        let detail = |detail: &Detail| json!({"field": detail.field, "code": detail.code, "message": detail.message});
        body.insert("details".into(), details.iter().map(detail).collect());
    }
    Value::Object(body).to_string()
}

/// `{"success": true, "message", "request_id", "data"}`; no message when it is empty.
pub fn success(message: &str, request_id: &str, data: Value) -> String {
    let mut body = Map::new();
    body.insert("success".into(), Value::Bool(true));
    if !message.is_empty() {
        body.insert("message".into(), message.into());
    }
    body.insert("request_id".into(), request_id.into());
    body.insert("data".into(), data);
    Value::Object(body).to_string()
}
