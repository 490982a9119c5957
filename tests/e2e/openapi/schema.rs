//! A description of an API, and values against its schemas: strictly, as far as furt's own description goes.
//!
//! A keyword that is not known here fails the test, so that none goes unchecked; so does a member of an object that is not
//! described, although clients may meet later ones.

use serde_json::{Map, Value};

pub struct Document(Value);

/// Keywords that say nothing about a value.
const TOLD: &[&str] = &["description", "default", "example"];

impl Document {
    pub fn new(document: Value) -> Self {
        Self(document)
    }

    /// Path, method and description of every operation.
    pub fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        let paths = self.0["paths"].as_object().into_iter().flatten();
        paths.flat_map(|(path, methods)| {
            methods.as_object().into_iter().flatten().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
    }

    fn operation(&self, name: &str) -> &Value {
        let found = self.operations().find(|(.., operation)| operation["operationId"] == name);
        found.unwrap_or_else(|| panic!("there is no {name}")).2
    }

    /// What an operation answers with a status.
    #[track_caller]
    pub fn response(&self, operation: &str, status: u16) -> Value {
        let Some(response) = self.operation(operation)["responses"].get(status.to_string()) else {
            panic!("{operation} is not described to answer {status}")
        };
        self.resolved(response).clone()
    }

    /// Whether an operation is described to refuse with a code.
    pub fn knows(&self, operation: &str, code: &str) -> bool {
        let responses = self.operation(operation)["responses"].as_object().into_iter().flatten();
        responses.into_iter().any(|(_, response)| {
            let codes = &self.resolved(response)["content"]["application/json"]["schema"]["allOf"][1]["properties"]["code"]["enum"];
            codes.as_array().into_iter().flatten().any(|known| known == code)
        })
    }

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            None => value,
            Some(reference) => self.0.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("there is no {reference}")),
        }
    }

    /// What a value has that its schema does not allow.
    pub fn faults(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        self.compare(schema, value, "$", &mut faults);
        faults
    }

    fn compare(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
        let Some(schema) = self.resolved(schema).as_object() else { panic!("{at}: {schema} is no schema") };
        for (keyword, rule) in schema {
            let good = match keyword.as_str() {
                "type" => one_or_more(rule).any(|kind| is(kind, value)),
                "enum" => rule.as_array().is_some_and(|words| words.contains(value)),
                "const" => rule == value,
                "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap_or(f64::INFINITY)),
                "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap_or(f64::NEG_INFINITY)),
                "minLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap_or(u64::MAX)),
                "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= rule.as_u64().unwrap_or(u64::MAX)),
                "pattern" => value.as_str().is_none_or(|text| matches(rule, text)),
                "format" => value.as_str().is_none_or(|text| rule == "date-time" && is_time(text)),
                "anyOf" => rule.as_array().into_iter().flatten().any(|schema| self.faults(schema, value).is_empty()),
                "allOf" => {
                    rule.as_array().into_iter().flatten().for_each(|schema| self.compare(schema, value, at, faults));
                    true
                }
                "required" => {
                    let missing = |name: &&Value| name.as_str().is_none_or(|name| value.get(name).is_none());
                    let missing: Vec<_> = rule.as_array().into_iter().flatten().filter(missing).collect();
                    faults.extend(missing.iter().map(|name| format!("{at}: {name} is missing")));
                    true
                }
                "properties" => {
                    self.members(schema, value, at, faults);
                    true
                }
                "additionalProperties" => true, // With the properties.
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.compare(rule, item, &format!("{at}[{index}]"), faults);
                    }
                    true
                }
                told if TOLD.contains(&told) => true,
                other => panic!("{at}: the keyword {other} is not known here"),
            };
            if !good {
                faults.push(format!("{at}: {value} is against {keyword} {rule}"));
            }
        }
        if !schema.contains_key("properties") && schema.contains_key("additionalProperties") {
            self.members(schema, value, at, faults);
        }
    }

    fn members(&self, schema: &Map<String, Value>, value: &Value, at: &str, faults: &mut Vec<String>) {
        // A part that is not of the whole object's shape says nothing about its other members.
        let closed = schema.contains_key("type");
        for (name, member) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            match schema.get("properties").and_then(|known| known.get(name)).or(schema.get("additionalProperties")) {
                Some(Value::Bool(false)) => faults.push(format!("{at} must not be there")),
                Some(schema) => self.compare(schema, member, &at, faults),
                // `type: object` and no more: whatever it holds.
                None if closed && schema.contains_key("properties") => faults.push(format!("{at} is not described")),
                None => {}
            }
        }
    }
}

fn one_or_more(rule: &Value) -> impl Iterator<Item = &str> {
    rule.as_str().into_iter().chain(rule.as_array().into_iter().flatten().filter_map(Value::as_str))
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known here"),
    }
}

/// The one pattern that answers have.
fn matches(pattern: &Value, text: &str) -> bool {
    assert_eq!(pattern, "^[0-9A-HJKMNP-TV-Z]{26}$", "the pattern is not known here");
    let letter = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'H' | b'J' | b'K' | b'M' | b'N' | b'P'..=b'T' | b'V'..=b'Z');
    text.len() == 26 && text.bytes().all(letter)
}

/// RFC 3339 in UTC, with or without a fraction.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|char| if char.is_ascii_digit() { '9' } else { char }).collect();
    matches!(shape.as_str(), "9999-99-99T99:99:99Z" | "9999-99-99T99:99:99.999Z")
}
