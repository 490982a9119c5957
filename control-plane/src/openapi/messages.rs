//! The messages of `proto/furt/v1` as JSON schemas: names, types and comments from the descriptors that are compiled in.
//!
//! Here: reading the descriptors, the schema of a message, and what a field may be beyond its type. Not here: which
//! messages a path takes and answers, the shapes that are no message.

use std::collections::{BTreeMap, BTreeSet};

use furt_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

use super::reference;
use crate::events;
use crate::json::SCHEMAS;
use crate::registration::{MAX_HEALTH_ENDPOINT, MAX_ROUTES};

const PACKAGE: &str = "furt.v1";
/// Places in a file descriptor's source locations (`descriptor.proto`, SourceCodeInfo): the fields of a message, its
/// nested messages, the messages of a file.
const OF_FILE: i32 = 4;
const FIELD: i32 = 2;
const NESTED: i32 = 3;

/// A name: of a service and of an instance alike.
pub(super) fn name() -> Value {
    json!({"type": "string", "pattern": NAME})
}

const NAME: &str = "^[a-z0-9][a-z0-9-]{0,62}$";
const METHOD: &str = r"^(\*|[A-Z0-9!#$%&'+.^_`|~-]{1,32})$";
const STATES: &[&str] = &["UP", "UNKNOWN", "DOWN"];
const STEPS: &[&str] = &["UP", "UNKNOWN", "DOWN", "PARKED"];

/// What a field may be beyond its type.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// One of these.
    Words(&'static [&'static str]),
    /// One of these, or empty.
    WordsOrNone(&'static [&'static str]),
    /// A kind of event.
    EventKind,
    /// Text like this.
    Pattern(&'static str),
    /// From, to.
    Between(u64, u64),
    /// So many elements at least, at most.
    Items(usize, usize),
    /// So many characters at most.
    Length(usize),
    /// RFC 3339, never empty.
    Time,
    /// A number will do as well as text.
    OrNumber,
}

/// Message, field, and what it may be. That each is there, and that the `.proto` says the same, is tested.
const RULES: &[(&str, &str, Rule)] = &[
    ("RegisterRequest", "service", Rule::Pattern(NAME)),
    ("RegisterRequest", "url", Rule::Length(2048)),
    ("RegisterRequest", "health_endpoint", Rule::Length(MAX_HEALTH_ENDPOINT)),
    ("RegisterRequest", "routes", Rule::Items(1, MAX_ROUTES)),
    ("RegisterRequest", "instance", Rule::Pattern(NAME)),
    ("RegisterRequest", "weight", Rule::Between(1, 1000)),
    ("RegisterRequest", "protocol", Rule::Words(&["http1", "h2"])),
    ("Route", "method", Rule::Pattern(METHOD)),
    ("Route", "path", Rule::Length(1024)),
    ("Route", "permission", Rule::Length(128)),
    ("Route", "timeout", Rule::OrNumber),
    ("Route", "deadline", Rule::OrNumber),
    ("RegisterResponse", "status", Rule::Words(STATES)),
    ("Warning", "code", Rule::Words(&["ROUTES_OVERLAP"])),
    ("Service", "status", Rule::Words(STATES)),
    ("Instance", "status", Rule::Words(STATES)),
    ("Instance", "registered_at", Rule::Time),
    ("Instance", "weight", Rule::Between(1, 1000)),
    ("Instance", "protocol", Rule::Words(&["http1", "h2"])),
    ("Uptime", "window", Rule::Words(&["1h", "24h", "30d"])),
    ("Transition", "time", Rule::Time),
    ("Transition", "from", Rule::Words(STEPS)),
    ("Transition", "to", Rule::Words(STEPS)),
    ("ExplainResponse.InstanceVerdict", "status", Rule::Words(STATES)),
    ("Event", "time", Rule::Time),
    ("Event", "kind", Rule::EventKind),
    ("Event", "from", Rule::WordsOrNone(STEPS)),
    ("Event", "to", Rule::WordsOrNone(STEPS)),
];

impl Rule {
    fn tighten(self, schema: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Value| schema.insert(key.into(), value);
        match self {
            Self::Words(words) => set("enum", words.into()),
            Self::WordsOrNone(words) => set("enum", std::iter::once("").chain(words.iter().copied()).collect()),
            Self::EventKind => set("enum", events::Kind::ALL.into_iter().map(events::Kind::name).collect()),
            Self::Pattern(pattern) => set("pattern", pattern.into()),
            Self::Length(most) => set("maxLength", most.into()),
            Self::Time => set("format", "date-time".into()),
            Self::OrNumber => set("type", json!(["string", "number"])),
            Self::Between(least, most) => {
                set("minimum", least.into());
                set("maximum", most.into())
            }
            Self::Items(least, most) => {
                set("minItems", least.into());
                set("maxItems", most.into())
            }
        };
    }
}

/// The messages of the package, by name; a nested one as `Outer.Inner`.
pub(super) struct Messages(BTreeMap<String, Message>);

pub(super) struct Message {
    about: String,
    pub fields: Vec<Field>,
}

pub(super) struct Field {
    pub name: String,
    pub about: String,
    kind: Kind,
    /// Whether it can be told from its default that it was not set; then its JSON is null.
    optional: bool,
    repeated: bool,
}

enum Kind {
    Text,
    Truth,
    Whole(u64),
    Signed,
    Number,
    /// Text to text.
    Map,
    Message(String),
}

impl Messages {
    /// Those that are compiled in.
    pub fn compiled_in() -> Result<Self, prost::DecodeError> {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?;
        let mut messages = BTreeMap::new();
        for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
            let comments = comments(file);
            for (place, message) in (0..).zip(&file.message_type) {
                collect(message, "", &[OF_FILE, place], &comments, &mut messages);
            }
        }
        Ok(Self(messages))
    }

    #[cfg(test)]
    pub fn get(&self, name: &str) -> Option<&Message> {
        self.0.get(name)
    }

    /// The schemas of these messages and of all they hold. Names that are no message are passed over.
    pub fn schemas(&self, roots: &BTreeSet<&str>) -> Vec<(String, Value)> {
        let mut wanted: Vec<&str> = roots.iter().copied().collect();
        let mut seen = BTreeSet::new();
        let mut schemas = Vec::new();
        while let Some(name) = wanted.pop() {
            let Some(message) = self.0.get(name).filter(|_| seen.insert(name)) else { continue };
            schemas.push((name.to_owned(), schema(name, message)));
            wanted.extend(message.fields.iter().filter_map(|field| match &field.kind {
                Kind::Message(name) => Some(name.as_str()),
                _ => None,
            }));
        }
        schemas
    }
}

/// Comments by the place they stand in front of.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let text = |comment: &str| comment.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned();
    locations.map(|location| (location.path.clone(), text(location.leading_comments()))).collect()
}

fn collect(
    message: &DescriptorProto,
    outer: &str,
    place: &[i32],
    comments: &BTreeMap<Vec<i32>, String>,
    into: &mut BTreeMap<String, Message>,
) {
    let about = |place: Vec<i32>| comments.get(&place).cloned().unwrap_or_default();
    let name = if outer.is_empty() { message.name().to_owned() } else { format!("{outer}.{}", message.name()) };
    for (inner, nested) in (0..).zip(&message.nested_type) {
        collect(nested, &name, &[place, &[NESTED, inner]].concat(), comments, into);
    }
    let is_map = |field: &FieldDescriptorProto| {
        let entry = message.nested_type.iter().find(|nested| field.type_name().ends_with(&format!(".{name}.{}", nested.name())));
        entry.is_some_and(|entry| entry.options.as_ref().is_some_and(|options| options.map_entry()))
    };
    let fields = (0..).zip(&message.field).map(|(inner, field)| {
        let map = is_map(field);
        Field {
            name: field.name().to_owned(),
            about: about([place, &[FIELD, inner]].concat()),
            kind: if map { Kind::Map } else { kind(field) },
            optional: field.proto3_optional() || field.r#type() == Type::Message,
            repeated: !map && field.label() == Label::Repeated,
        }
    });
    into.insert(name.clone(), Message { about: about(place.to_vec()), fields: fields.collect() });
}

fn kind(field: &FieldDescriptorProto) -> Kind {
    match field.r#type() {
        Type::Bool => Kind::Truth,
        Type::Uint32 | Type::Fixed32 => Kind::Whole(u64::from(u32::MAX)),
        Type::Uint64 | Type::Fixed64 => Kind::Whole(u64::MAX),
        Type::Int32 | Type::Int64 | Type::Sint32 | Type::Sint64 | Type::Sfixed32 | Type::Sfixed64 | Type::Enum => Kind::Signed,
        Type::Double | Type::Float => Kind::Number,
        Type::Message | Type::Group => Kind::Message(field.type_name().trim_start_matches(&format!(".{PACKAGE}.")).to_owned()),
        Type::String | Type::Bytes => Kind::Text,
    }
}

/// Of a message that is taken: what `json` demands, and nothing else. Of one that is answered: every field is there.
fn schema(name: &str, message: &Message) -> Value {
    let taken = SCHEMAS.iter().find(|(known, _)| *known == name).map(|(_, fields)| *fields);
    let is_required = |field: &Field| taken.is_none_or(|fields| fields.iter().any(|(known, required)| *required && *known == field.name));
    let required: Vec<&str> = message.fields.iter().filter(|field| is_required(field)).map(|field| field.name.as_str()).collect();
    let properties = message.fields.iter().map(|field| (field.name.clone(), property(name, field, taken.is_none())));
    let mut schema = json!({
        "type": "object",
        "description": message.about,
        "required": required,
        "properties": properties.collect::<Map<_, _>>(),
    });
    if taken.is_some() {
        schema["additionalProperties"] = false.into();
    }
    schema
}

fn property(message: &str, field: &Field, answered: bool) -> Value {
    let mut schema = match &field.kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Truth => json!({"type": "boolean"}),
        Kind::Whole(most) => json!({"type": "integer", "minimum": 0, "maximum": most}),
        Kind::Signed => json!({"type": "integer"}),
        Kind::Number => json!({"type": "number"}),
        Kind::Map => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::Message(name) => reference("schemas", name),
    };
    if field.repeated {
        schema = json!({"type": "array", "items": schema});
    } else if field.optional && answered && !matches!(field.kind, Kind::Map) {
        schema = match &field.kind {
            Kind::Message(_) => json!({"anyOf": [schema, {"type": "null"}]}),
            _ => {
                schema["type"] = json!([schema["type"], "null"]);
                schema
            }
        };
    }
    if let Some(schema) = schema.as_object_mut() {
        for (_, _, rule) in RULES.iter().filter(|(known, name, _)| *known == message && *name == field.name) {
            rule.tighten(schema);
        }
        schema.insert("description".into(), field.about.clone().into());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words a comment names: in capitals, or in quotes.
    fn words(comment: &str) -> BTreeSet<String> {
        let separator = |char: char| !(char.is_ascii_alphanumeric() || matches!(char, '_' | '"'));
        let word = |word: &str| {
            let bare = word.trim_matches('"');
            let capital = |char: char| char.is_ascii_uppercase() || char == '_';
            let named = (bare.len() > 1 && bare.chars().all(capital)) || bare.len() + 2 == word.len();
            (named && !matches!(bare, "UTC" | "RFC" | "TRANSITION")).then(|| bare.to_owned())
        };
        comment.split(separator).filter_map(word).collect()
    }

    #[test]
    fn every_rule_is_of_a_field_and_says_what_the_proto_says() {
        let messages = Messages::compiled_in().unwrap();
        for (message, field, rule) in RULES {
            let found = messages.get(message).and_then(|message| message.fields.iter().find(|known| known.name == *field));
            let Some(found) = found else { panic!("there is no {message}.{field}") };
            // The states after an event are those before it, and named there.
            if (*message, *field) == ("Event", "to") {
                continue;
            }
            let expected: BTreeSet<String> = match rule {
                Rule::Words(words) | Rule::WordsOrNone(words) => words.iter().map(|word| word.to_string()).collect(),
                Rule::EventKind => {
                    let kinds = events::Kind::ALL.into_iter().filter(|kind| *kind != events::Kind::Transition);
                    kinds.map(|kind| kind.name().to_owned()).collect()
                }
                _ => continue,
            };
            assert_eq!(words(&found.about), expected, "{message}.{field}: {:?}", found.about);
        }
    }

    #[test]
    fn what_the_decoder_of_bodies_knows_is_what_the_messages_have() {
        let messages = Messages::compiled_in().unwrap();
        for (name, fields) in SCHEMAS {
            let known: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            let found: Vec<&str> = messages.get(name).unwrap().fields.iter().map(|field| field.name.as_str()).collect();
            assert_eq!(known, found, "{name}");
        }
    }

    #[test]
    fn a_field_has_its_type_its_comment_and_its_rule() {
        let messages = Messages::compiled_in().unwrap();
        let schemas: BTreeMap<_, _> = messages.schemas(&["GetServiceResponse", "RegisterRequest"].into()).into_iter().collect();
        let names: Vec<&str> = schemas.keys().map(String::as_str).collect();
        let expected = ["GetServiceResponse", "Instance", "RegisterRequest", "Route", "Service", "ServiceRoute", "Transition", "Uptime"];
        assert_eq!(names, expected);
        let instance = &schemas["Instance"]["properties"];
        assert_eq!(instance["metadata"]["additionalProperties"], json!({"type": "string"}));
        assert_eq!(instance["response_time_ms"]["type"], json!(["integer", "null"]));
        assert_eq!(instance["response_time_ms"]["description"], "What the last answered ping took. Unset: it was not answered.");
        assert_eq!(instance["status"]["enum"], json!(["UP", "UNKNOWN", "DOWN"]));
        assert_eq!(instance["timeline"]["items"], reference("schemas", "Transition"));
        assert_eq!(schemas["Uptime"]["properties"]["ratio"]["type"], json!(["number", "null"]));
        assert_eq!(schemas["GetServiceResponse"]["properties"]["service"]["anyOf"][0], reference("schemas", "Service"));
        let request = &schemas["RegisterRequest"];
        assert_eq!((&request["required"], &request["additionalProperties"]), (&json!(["service", "url", "routes"]), &json!(false)));
        assert_eq!(request["properties"]["weight"]["type"], "integer", "{}", request["properties"]["weight"]);
        assert_eq!((&request["properties"]["routes"]["minItems"], &request["properties"]["routes"]["type"]), (&json!(1), &json!("array")));
        let all = [schemas["Instance"]["required"].as_array().unwrap().len(), instance.as_object().unwrap().len()];
        assert_eq!(all[0], all[1]);
        for (name, schema) in &schemas {
            let described = |schema: &Value| schema["description"].as_str().is_some_and(|about| about.ends_with('.'));
            let fields = schema["properties"].as_object().unwrap();
            assert!(described(schema) && fields.values().all(described), "{name}");
        }
    }
}
