//! The JSON body of a registration: read once, every fault of its shape told at once.
//!
//! Here: text → tree → `v1::RegisterRequest`, with wrong types, unknown, missing and repeated fields named by path.
//! Not here: what the values may be (`registration`), who may register (`admission`), the JSON of answers (`answers`).

use std::collections::HashMap;
use std::fmt;

use furt_proto::names::{distance, quoted};
use furt_proto::v1;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::refusal::{Code, Fault};
use crate::registration::MAX_ROUTES;

/// Faults that one answer tells in full; the rest are counted.
pub const MAX_FAULTS: usize = 100;
/// A longer unknown name gets no hint: it is no slip of the fingers.
const MAX_HINTED: usize = 40;

/// Reads the body of `POST /internal/register-service`.
///
/// The request holds what could be read; a field with a fault is at its default. Errors: one fault of the
/// whole body, when it is not a JSON object at all. Never panics, whatever the bytes; time and memory grow
/// with the length of the body.
pub fn decode(body: &[u8]) -> Result<(v1::RegisterRequest, Vec<Fault>), Fault> {
    let fields = match parse(body)? {
        Node::Map(fields) => fields,
        other => return Err(whole(Code::Validation, format!("the body must be a JSON object, got {}", other.kind()))),
    };
    let mut faults = Faults::default();
    let request = register_request(fields, &mut faults);
    Ok((request, faults.told()))
}

fn parse(body: &[u8]) -> Result<Node, Fault> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let (line, column) = position(body, error.valid_up_to());
        whole(Code::Malformed, format!("the body is not UTF-8 at line {line} column {column}"))
    })?;
    // A byte order mark is allowed to be ignored (RFC 8259 §8.1), and some editors write one.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(whole(Code::Malformed, "the body is empty; expected a JSON object".to_owned()));
    }
    serde_json::from_str(text).map_err(|error| whole(Code::Malformed, format!("the body is not JSON: {error}")))
}

/// Line and column of a byte, both from 1, as serde_json counts them.
fn position(body: &[u8], at: usize) -> (usize, usize) {
    let before = body.get(..at).unwrap_or(body);
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (1 + before.iter().filter(|byte| **byte == b'\n').count(), 1 + at - line_start)
}

fn whole(code: Code, message: String) -> Fault {
    Fault { field: String::new(), code, message }
}

/// JSON with every member of an object kept, repeated ones too.
enum Node {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Map(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Node::Null, Node::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Node::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(member) = members.next_entry()? {
            map.push(member);
        }
        Ok(Node::Map(map))
    }
}

/// The faults found so far: the first [`MAX_FAULTS`] in full, the others counted.
#[derive(Default)]
struct Faults {
    list: Vec<Fault>,
    more: usize,
}

impl Faults {
    fn add(&mut self, field: impl FnOnce() -> String, message: impl FnOnce() -> String) {
        if self.list.len() < MAX_FAULTS {
            self.list.push(Fault { field: field(), code: Code::Validation, message: message() });
        } else {
            self.more += 1;
        }
    }

    fn told(mut self) -> Vec<Fault> {
        if self.more > 0 {
            let s = if self.more == 1 { "" } else { "s" };
            self.list.push(whole(Code::Validation, format!("and {} more fault{s}", self.more)));
        }
        self.list
    }
}

/// The fields of one object of the schema, each with whether it must be there.
pub type Schema = &'static [(&'static str, bool)];

/// The objects of a body, by the names of the messages they are: for the description of the API.
pub const SCHEMAS: &[(&str, Schema)] = &[("RegisterRequest", REQUEST), ("Route", ROUTE)];

const REQUEST: Schema = &[
    ("service", true),
    ("url", true),
    ("health_endpoint", false),
    ("routes", true),
    ("instance", false),
    ("version", false),
    ("weight", false),
    ("metadata", false),
    ("protocol", false),
    ("dry_run", false),
];
const ROUTE: Schema =
    &[("method", true), ("path", true), ("permission", false), ("host", false), ("public", false), ("timeout", false), ("deadline", false)];

fn register_request(fields: Vec<(String, Node)>, faults: &mut Faults) -> v1::RegisterRequest {
    let mut request = v1::RegisterRequest::default();
    each_field(&String::new, REQUEST, fields, faults, |name, node, faults| {
        let at = || name.to_owned();
        match name {
            "service" => text(at, node, faults, &mut request.service),
            "url" => text(at, node, faults, &mut request.url),
            "health_endpoint" => text(at, node, faults, &mut request.health_endpoint),
            "routes" => request.routes = routes(node, faults),
            "instance" => text(at, node, faults, &mut request.instance),
            "version" => text(at, node, faults, &mut request.version),
            "weight" => request.weight = weight(node, faults),
            "metadata" => request.metadata = metadata(node, faults),
            "protocol" => text(at, node, faults, &mut request.protocol),
            _ => truth(at, node, faults, &mut request.dry_run),
        }
    });
    request
}

fn routes(node: Node, faults: &mut Faults) -> Vec<v1::Route> {
    let Node::List(mut nodes) = node else {
        wrong(|| "routes".to_owned(), "an array of routes", &node, faults);
        return Vec::new();
    };
    let count = nodes.len();
    if count > MAX_ROUTES {
        faults.add(|| "routes".to_owned(), || format!("an instance has 1 to {MAX_ROUTES} routes, got {count}"));
        nodes.truncate(MAX_ROUTES);
    }
    nodes.into_iter().enumerate().map(|(index, node)| route(index, node, faults)).collect()
}

fn route(index: usize, node: Node, faults: &mut Faults) -> v1::Route {
    let mut route = v1::Route::default();
    let prefix = || format!("routes[{index}]");
    let Node::Map(fields) = node else {
        wrong(prefix, "an object with method and path", &node, faults);
        return route;
    };
    each_field(&prefix, ROUTE, fields, faults, |name, node, faults| {
        let at = || format!("routes[{index}].{name}");
        match name {
            "method" => text(at, node, faults, &mut route.method),
            "path" => text(at, node, faults, &mut route.path),
            "permission" => text(at, node, faults, &mut route.permission),
            "host" => text(at, node, faults, &mut route.host),
            "public" => truth(at, node, faults, &mut route.public),
            "timeout" => timeout(at, node, faults, &mut route.timeout),
            _ => timeout(at, node, faults, &mut route.deadline),
        }
    });
    route
}

/// Hands each known field to `take` once, in the order of the body, and tells of unknown, repeated and missing ones.
fn each_field(
    prefix: &dyn Fn() -> String,
    schema: Schema,
    fields: Vec<(String, Node)>,
    faults: &mut Faults,
    mut take: impl FnMut(&'static str, Node, &mut Faults),
) {
    let path = |name: &str| match prefix() {
        prefix if prefix.is_empty() => field_name(name),
        prefix => format!("{prefix}.{}", field_name(name)),
    };
    let mut seen = [false; 16];
    for (name, node) in fields {
        let Some((seen, (known, _))) = seen.iter_mut().zip(schema).find(|(_, (known, _))| *known == name) else {
            faults.add(|| path(&name), || unknown(&name, schema));
            continue;
        };
        if *seen {
            faults.add(|| path(known), || "is given more than once".to_owned());
            continue;
        }
        *seen = true;
        take(known, node, faults);
    }
    for (seen, (name, required)) in seen.iter().zip(schema) {
        if *required && !seen {
            faults.add(|| path(name), || "is missing".to_owned());
        }
    }
}

/// A name from outside as part of a path: as it is when it is plain, else quoted and cut.
fn field_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if matches!(name.len(), 1..=64) && name.bytes().all(plain) { name.to_owned() } else { quoted(name) }
}

fn unknown(name: &str, schema: Schema) -> String {
    match nearest(name, schema) {
        Some(known) => format!("unknown field; did you mean {known}?"),
        None => {
            let known: Vec<&str> = schema.iter().map(|(known, _)| *known).collect();
            format!("unknown field; known are {}", known.join(", "))
        }
    }
}

/// The known name that is at most two edits away, or the same but for case, `_` and `-`.
fn nearest(name: &str, schema: Schema) -> Option<&'static str> {
    if name.len() > MAX_HINTED {
        return None;
    }
    let fold = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let name = fold(name);
    let near = schema.iter().map(|(known, _)| (distance(&name, &fold(known)), *known)).min()?;
    (near.0 <= 2.min(near.1.len() / 2)).then_some(near.1)
}

fn wrong(at: impl FnOnce() -> String, expected: &str, got: &Node, faults: &mut Faults) {
    let hint = if matches!(got, Node::Null) { "; leave the field out instead" } else { "" };
    faults.add(at, || format!("must be {expected}, got {}{hint}", got.kind()));
}

fn text(at: impl FnOnce() -> String, node: Node, faults: &mut Faults, into: &mut String) {
    match node {
        Node::Text(text) => *into = text,
        other => wrong(at, "a string", &other, faults),
    }
}

fn truth(at: impl FnOnce() -> String, node: Node, faults: &mut Faults, into: &mut bool) {
    match node {
        Node::Bool(value) => *into = value,
        other => wrong(at, "true or false", &other, faults),
    }
}

/// Seconds may be written as a number, as furt.conf has them; `500ms` needs a string.
fn timeout(at: impl FnOnce() -> String, node: Node, faults: &mut Faults, into: &mut String) {
    match node {
        Node::Text(text) => *into = text,
        Node::Number(seconds) => *into = seconds.to_string(),
        other => wrong(at, "seconds or a string such as \"500ms\"", &other, faults),
    }
}

fn weight(node: Node, faults: &mut Faults) -> Option<u32> {
    let at = || "weight".to_owned();
    let Node::Number(number) = &node else {
        wrong(at, "an integer from 1 to 1000", &node, faults);
        return None;
    };
    let weight = number.as_u64().and_then(|number| u32::try_from(number).ok());
    if weight.is_none() {
        faults.add(at, || format!("must be an integer from 1 to 1000, got {number}"));
    }
    weight
}

fn metadata(node: Node, faults: &mut Faults) -> HashMap<String, String> {
    let mut metadata = HashMap::new();
    let Node::Map(fields) = node else {
        wrong(|| "metadata".to_owned(), "an object of strings", &node, faults);
        return metadata;
    };
    for (name, node) in fields {
        let at = || format!("metadata.{}", field_name(&name));
        if metadata.contains_key(&name) {
            faults.add(at, || "is given more than once".to_owned());
            continue;
        }
        let mut value = String::new();
        text(at, node, faults, &mut value);
        metadata.insert(name, value);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body of the seed.
    const SEED: &str = r#"{
      "service": "sagjan",
      "url": "http://127.0.0.1:7812",
      "health_endpoint": "/health",
      "routes": [
        {"method": "POST", "path": "/api/comments/*", "permission": "comments:write"},
        {"method": "GET", "path": "/api/comments/*", "permission": "comments:read"},
        {"method": "PUT", "path": "/api/comments/*", "permission": "comments:moderate"},
        {"method": "DELETE", "path": "/api/comments/*", "permission": "comments:delete"}
      ]
    }"#;

    /// Each fault as `field: message`.
    fn faults(body: &str) -> Vec<String> {
        let (_, faults) = decode(body.as_bytes()).expect("an object");
        faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
    }

    fn refused(body: &[u8]) -> (Code, String) {
        let fault = decode(body).expect_err("refused as a whole");
        assert_eq!(fault.field, "");
        (fault.code, fault.message)
    }

    #[test]
    fn the_seeds_body_is_read_as_written() {
        let (request, faults) = decode(SEED.as_bytes()).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(request.service, "sagjan");
        assert_eq!(request.url, "http://127.0.0.1:7812");
        assert_eq!(request.health_endpoint, "/health");
        let routes: Vec<_> = request.routes.iter().map(|route| (&*route.method, &*route.path, &*route.permission)).collect();
        let expected = [("POST", "write"), ("GET", "read"), ("PUT", "moderate"), ("DELETE", "delete")];
        for (route, (method, permission)) in routes.iter().zip(expected) {
            assert_eq!(*route, (method, "/api/comments/*", &*format!("comments:{permission}")));
        }
        assert_eq!(routes.len(), 4);
    }

    #[test]
    fn every_optional_field_is_read() {
        let body = r#"{"service": "a", "url": "http://127.0.0.1:1", "instance": "b", "version": "1.2", "weight": 7, "protocol": "h2",
            "metadata": {"zone": "eu", "": "x"}, "dry_run": true,
            "routes": [{"method": "GET", "path": "/a", "host": "a.example.org", "public": true, "timeout": "500ms", "deadline": 60},
                       {"method": "PUT", "path": "/a", "timeout": 30}, {"method": "DELETE", "path": "/a", "timeout": 0.5}]}"#;
        let (request, faults) = decode(body.as_bytes()).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        let metadata = HashMap::from([("zone".into(), "eu".into()), (String::new(), "x".into())]);
        assert_eq!((&*request.instance, &*request.version, request.weight, &*request.protocol), ("b", "1.2", Some(7), "h2"));
        assert_eq!((request.metadata, request.dry_run), (metadata, true));
        let timeouts: Vec<_> = request.routes.iter().map(|route| &*route.timeout).collect();
        assert_eq!((timeouts, &*request.routes[0].deadline), (vec!["500ms", "30", "0.5"], "60"));
        assert!(request.routes[0].public && request.routes[0].host == "a.example.org");
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_path() {
        let body = r#"{"servce": "sagjan", "url": 5, "url": "http://a", "routes": [
            {"method": "GET", "path": "/a"}, 7, {"methd": "GET", "path": null, "public": "yes", "timeout": [], "deadline": []}],
            "healthEndpoint": "/", "weight": 1.5, "metadata": {"a": 1, "b": "x", "b": "y"}, "favourite colour": 1, "version": null}"#;
        assert_eq!(
            faults(body),
            [
                "servce: unknown field; did you mean service?",
                "url: must be a string, got a number",
                "url: is given more than once",
                "routes[1]: must be an object with method and path, got a number",
                "routes[2].methd: unknown field; did you mean method?",
                "routes[2].path: must be a string, got null; leave the field out instead",
                "routes[2].public: must be true or false, got a string",
                "routes[2].timeout: must be seconds or a string such as \"500ms\", got an array",
                "routes[2].deadline: must be seconds or a string such as \"500ms\", got an array",
                "routes[2].method: is missing",
                "healthEndpoint: unknown field; did you mean health_endpoint?",
                "weight: must be an integer from 1 to 1000, got 1.5",
                "metadata.a: must be a string, got a number",
                "metadata.b: is given more than once",
                "\"favourite colour\": unknown field; known are service, url, health_endpoint, routes, instance, version, weight, \
                 metadata, protocol, dry_run",
                "version: must be a string, got null; leave the field out instead",
                "service: is missing",
            ]
        );
        assert_eq!(faults("{}"), ["service: is missing", "url: is missing", "routes: is missing"]);
        for (weight, got) in [("-1", "-1"), ("4294967296", "4294967296"), ("1e2", "100.0")] {
            let body = format!(r#"{{"service": "a", "url": "u", "routes": [], "weight": {weight}}}"#);
            assert_eq!(faults(&body), [format!("weight: must be an integer from 1 to 1000, got {got}")]);
        }
    }

    #[test]
    fn what_is_no_object_is_one_fault_with_its_place() {
        let malformed = |body: &[u8], words: &str| {
            let (code, message) = refused(body);
            assert_eq!(code, Code::Malformed, "{message}");
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        };
        malformed(b"", "empty");
        malformed(b" \n", "empty");
        malformed(b"{", "line 1 column 1");
        malformed(b"{\n \"service\": \xff}", "not UTF-8 at line 2 column 13");
        malformed(b"{} x", "trailing characters at line 1 column 4");
        malformed(b"{\"service\": \"a\" \"url\"}", "line 1 column 17");
        malformed(b"{\"a\": 1e999}", "line 1");
        malformed(b"{\"a\": \"\\ud800\"}", "line 1");
        malformed("[".repeat(100_000).as_bytes(), "recursion limit");
        malformed("{\"a\":".repeat(100_000).as_bytes(), "recursion limit");
        malformed(b"service=sagjan&url=http", "line 1 column 1");
        for (body, kind) in [("[]", "an array"), ("null", "null"), ("\"a\"", "a string"), ("1", "a number"), ("true", "true or false")] {
            assert_eq!(refused(body.as_bytes()), (Code::Validation, format!("the body must be a JSON object, got {kind}")));
        }
        assert!(decode("\u{feff}{}".as_bytes()).is_ok());
    }

    #[test]
    fn a_mebibyte_of_faults_is_told_in_a_hundred_and_one() {
        let wide = |entry: &str, count: usize| {
            let entries = vec![entry; count].join(",");
            format!(r#"{{"service": "a", "url": "u", "routes": [{entries}]}}"#)
        };
        let (request, found) = decode(wide("{}", 100_000).as_bytes()).unwrap();
        assert_eq!(request.routes.len(), MAX_ROUTES);
        assert_eq!(found.len(), MAX_FAULTS + 1);
        assert_eq!((&*found[0].field, &*found[0].message), ("routes", "an instance has 1 to 1000 routes, got 100000"));
        assert_eq!(found[MAX_FAULTS].message, "and 1901 more faults");

        let members: Vec<String> = (0..100_000).map(|index| format!("\"x{index}\":0")).collect();
        let (_, found) = decode(format!("{{{}}}", members.join(",")).as_bytes()).unwrap();
        assert_eq!(found.len(), MAX_FAULTS + 1);
        let (_, found) = decode(format!("{{{}}}", vec!["\"url\":\"u\""; 100_000].join(",")).as_bytes()).unwrap();
        assert_eq!(found.len(), MAX_FAULTS + 1);
        let (request, found) = decode(format!("{{\"metadata\": {{{}}}}}", members.join(",")).as_bytes()).unwrap();
        assert_eq!((request.metadata.len(), found.len()), (100_000, MAX_FAULTS + 1));
        let (_, found) = decode(format!("{{\"{}\": 1}}", "y".repeat(1 << 20)).as_bytes()).unwrap();
        assert!(found[0].field.len() < 400 && found[0].message.len() < 400);
    }

    /// JSON of the right names and any shape, as text.
    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            any::<i64>().prop_map(|value| value.to_string()),
            any::<f64>().prop_map(|value| value.to_string()),
            ".{0,12}".prop_map(|value| serde_json::Value::from(value).to_string()),
        ];
        let name = proptest::sample::select(
            REQUEST.iter().chain(ROUTE).map(|(name, _)| (*name).to_owned()).chain(["x".into(), String::new()]).collect::<Vec<_>>(),
        );
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(|list| format!("[{}]", list.join(","))),
                proptest::collection::vec((name.clone(), inner), 0..8).prop_map(|fields| {
                    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&body);
        }

        #[test]
        fn any_json_decodes_or_is_refused_and_a_clean_one_has_its_fields(body in any_json()) {
            if let Ok((request, faults)) = decode(body.as_bytes()) {
                prop_assert!(faults.len() <= MAX_FAULTS + 1);
                let value: serde_json::Value = serde_json::from_str(&body).unwrap();
                if faults.is_empty() {
                    prop_assert_eq!(value["service"].as_str(), Some(&*request.service));
                    prop_assert_eq!(value["routes"].as_array().map(Vec::len), Some(request.routes.len()));
                }
            }
        }
    }
}
