//! The machine-readable descriptions that the program prints.

use serde_json::Value;

use crate::cli::check_snapshot;
use crate::support::run;

fn described(what: &str) -> String {
    let finished = run(&["schema", what], &[]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn the_message_schema_matches_the_snapshot() {
    check_snapshot("messages.json", &described("messages"));
}

#[test]
fn the_asyncapi_description_matches_the_snapshot() {
    check_snapshot("asyncapi.json", &described("asyncapi"));
}

#[test]
fn the_printed_openapi_description_matches_the_served_one() {
    let printed: Value = serde_json::from_str(&described("openapi")).unwrap();
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/deeperhub-api/openapi.json");
    let committed = std::fs::read_to_string(committed).unwrap();
    assert_eq!(printed, serde_json::from_str::<Value>(&committed).unwrap());
}

/// Checks that every reference of a document has a target in it.
fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if let ("$ref", Value::String(target)) = (key.as_str(), value) {
                    let pointer = target
                        .strip_prefix('#')
                        .unwrap_or_else(|| panic!("{target} is not in this document"));
                    assert!(document.pointer(pointer).is_some(), "{target} does not exist");
                }
                check_references(document, value);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(document, item)),
        _ => {}
    }
}

#[test]
fn references_have_targets() {
    for what in ["messages", "asyncapi", "openapi"] {
        let document: Value = serde_json::from_str(&described(what)).unwrap();
        check_references(&document, &document);
    }
}
