//! Fields of furt's JSON, for people: whatever is missing is nothing.

use serde_json::Value;

use super::table::shown;

/// A field that is a list.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A field as text that is safe for a terminal; null is nothing.
pub fn text(value: &Value, key: &str) -> String {
    value.get(key).map(plain).unwrap_or_default()
}

/// Whether a field is true.
pub fn yes(value: &Value, key: &str) -> bool {
    value.get(key) == Some(&Value::Bool(true))
}

/// A number, or 0.
pub fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// A value as text that is safe for a terminal; null is nothing.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

/// Text of several lines, such as the lines to add to furt.conf.
pub fn paragraph(text: &str, indent: &str) -> String {
    text.lines().map(shown).collect::<Vec<_>>().join(&format!("\n{indent}"))
}

/// `1 route`, `2 routes`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
