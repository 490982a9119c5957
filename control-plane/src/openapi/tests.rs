use std::collections::HashSet;

use super::*;

/// Every object of the document that has a `$ref`.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn what_is_referred_to_is_there_and_nothing_else_is() {
    let document = document().unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    let referred: HashSet<String> = found.into_iter().collect();
    for pointer in &referred {
        assert!(document.pointer(pointer.strip_prefix('#').unwrap()).is_some(), "{pointer}");
    }
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(referred.contains(&format!("#/components/{kind}/{name}")), "nothing refers to {name}");
        }
    }
}

#[test]
fn every_endpoint_is_described_once_with_every_code_under_its_status() {
    let document = document().unwrap();
    let mut names = HashSet::new();
    for endpoint in ENDPOINTS {
        let operation = &document["paths"][endpoint.path][endpoint.verb.name()];
        assert_eq!(operation["operationId"], endpoint.name);
        assert!(names.insert(endpoint.name), "{} is named twice", endpoint.name);
        for code in endpoint.codes() {
            let name = operation["responses"][code.status().as_str()]["$ref"].as_str().unwrap_or_default();
            assert!(name.rsplit('/').next().unwrap().split('.').any(|slug| slug == code.slug()), "{}: {code}", endpoint.name);
        }
        let named = endpoint.names().count() + endpoint.parameters.map_or(0, <[_]>::len);
        assert_eq!(operation["parameters"].as_array().map_or(0, Vec::len), named, "{}", endpoint.name);
    }
    let described: usize = document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(described, ENDPOINTS.len());
}

#[test]
fn a_path_says_who_may_ask_and_how() {
    let document = document().unwrap();
    let drain = &document["paths"]["/internal/services/{service}/instances/{instance}/drain"]["post"];
    assert!(drain["description"].as_str().unwrap().ends_with("For the service's registrar or an operator."), "{drain}");
    assert_eq!(drain["summary"], "Sends an instance no new requests, and waits for those in flight");
    assert_eq!(drain["security"], json!([{"token": []}, {}]));
    let seconds = drain["parameters"].as_array().unwrap().iter().find(|parameter| parameter["name"] == "seconds").unwrap();
    assert_eq!(seconds["schema"], json!({"type": "integer", "minimum": 0, "maximum": 300, "default": 30}));
    let health = &document["paths"]["/health"]["get"];
    assert_eq!((&health["security"], &health["responses"]["401"]), (&json!([]), &Value::Null));
    let register = &document["paths"]["/internal/register-service"]["post"];
    assert_eq!(register["responses"]["401"], Value::Null, "whoever registers is told REGISTRATION_REFUSED");
    let example = &register["requestBody"]["content"]["application/json"]["example"];
    let (_, faults) = crate::json::decode(example.to_string().as_bytes()).unwrap();
    assert_eq!(faults, []);
}
