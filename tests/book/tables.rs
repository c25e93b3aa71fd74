//! Tables of the book against the code that they describe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use deeperhub_events::EventKind;
use deeperhub_node::history::{PolicySettings, Rule};
use deeperhub_protocol::{CloseCode, ErrorCode};
use serde_json::Value;

use crate::support::{ROOT, run};

use super::Page;
use super::generated::{metric_families, settings};
use super::markdown::{code_spans, table};

/// Returns the first text in backticks of a cell.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or(cell)
}

fn openapi() -> Value {
    let printed = run(&["schema", "openapi"], &[]);
    serde_json::from_str(&printed.stdout).expect("the description is JSON")
}

#[test]
fn error_codes_match_the_protocol() {
    let rows = table(&Page::read("docs/protocol.md").text, "## Error codes");
    let codes: Vec<_> = rows.iter().map(|row| code(&row[0])).collect();
    let expected: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes, expected);
}

#[test]
fn close_codes_match_the_protocol_and_its_reconnect_advice() {
    let rows = table(&Page::read("docs/reconnecting.md").text, "## Close codes");
    let codes: Vec<_> = rows.iter().map(|row| (row[0].as_str(), row[2].starts_with("yes"))).collect();
    let numbers: Vec<_> =
        CloseCode::ALL.iter().map(|code| (code.to_string(), code.allows_reconnect())).collect();
    let expected: Vec<_> = numbers.iter().map(|(code, reconnect)| (code.as_str(), *reconnect)).collect();
    assert_eq!(codes, expected);
}

#[test]
fn message_types_match_the_protocol() {
    let schema = run(&["schema", "messages"], &[]).stdout;
    let page = Page::read("docs/protocol.md");
    for heading in ["## Client messages", "## Server messages"] {
        for row in table(&page.text, heading).iter().filter(|row| row[0].starts_with('`')) {
            let constant = format!("\"{}\"", code(&row[0]));
            assert!(schema.contains(&constant), "no schema has a message of type {constant}");
        }
    }
    let clients: Vec<_> =
        table(&page.text, "## Client messages").iter().map(|row| code(&row[0]).to_owned()).collect();
    let mut sorted = clients.clone();
    sorted.sort();
    assert_eq!(sorted, ["authenticate", "echo", "history", "ping", "publish", "subscribe", "unsubscribe"]);
}

#[test]
fn events_match_the_event_bus() {
    let expected: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
    for (page, heading, column) in [
        ("docs/events.md", "# Events", 0),
        ("docs/from-elixir.md", "## Events", 1),
        ("docs/vindo-do-elixir.md", "## Eventos", 1),
    ] {
        let rows = table(&Page::read(page).text, heading);
        let names: Vec<_> = rows.iter().map(|row| code(&row[column])).collect();
        assert_eq!(names, expected, "{page}");
    }
}

#[test]
fn server_api_calls_match_the_openapi_description() {
    let rows = table(&Page::read("docs/server-api.md").text, "## Calls");
    let calls = rows.iter().flat_map(|row| row[0].split('`').skip(1).step_by(2));
    let documented: BTreeSet<_> =
        calls.map(|call| call.split('?').next().unwrap_or_default().to_owned()).collect();
    let openapi = openapi();
    let paths = openapi["paths"].as_object().expect("there are paths");
    let described = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("a path has methods").keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(documented, described.collect());
}

#[test]
fn server_api_errors_match_the_openapi_description() {
    let page = Page::read("docs/server-api.md").text;
    let rows = table(&page, "## Errors");
    let documented: BTreeMap<_, _> = rows
        .iter()
        .flat_map(|row| row[0].split(", ").map(|status| (status.to_owned(), row[1].clone())))
        .collect();
    let openapi = openapi();
    let calls = openapi["paths"].as_object().expect("there are paths").values();
    let responses = calls.flat_map(|path| path.as_object().expect("a path has methods").values());
    let mut checked = 0;
    for responses in responses.filter_map(|call| call["responses"].as_object()) {
        for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
            // The format of a description: `code`: its meaning. `other_code`: …
            let sentences = response["description"].as_str().unwrap_or_default().split(". ");
            let codes = sentences.filter_map(|sentence| sentence.split_once(':'));
            for code in codes.flat_map(|(codes, _)| codes.split('`').skip(1).step_by(2)) {
                let listed = documented.get(status).is_some_and(|codes| codes.contains(&format!("`{code}`")));
                assert!(listed, "{status} `{code}` is not in the table of errors");
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} errors are described");
}

#[test]
fn keys_of_rules_match_the_parser() {
    let page = Page::read("docs/configuration.md").text;
    let rows = table(&page, "### Keys of a rule");
    let keys: Vec<_> = rows.iter().map(|row| code(&row[0])).collect();
    let expected: Vec<_> = std::iter::once("match").chain(PolicySettings::keys()).collect();
    assert_eq!(keys, expected);
    for row in rows.iter().filter(|row| row[2].starts_with('`') || row[2].starts_with(char::is_numeric)) {
        let default = row[2].split([',', ';']).next().unwrap_or_default().trim_matches('`');
        let (key, delivery) = (code(&row[0]), if row[0] == "`every`" { "sample" } else { "drop_oldest" });
        // A value that is the default is left out of a rule's text.
        let base = match key {
            "history" => String::new(),
            "keep" | "every" => format!(" history=50 delivery={delivery}"),
            _ => " history=50".to_owned(),
        };
        let rule = |settings: &str| settings.parse::<Rule>().unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(rule(&format!("a:{base} {key}={default}")), rule(&format!("a:{base}")), "{row:?}");
    }
}

#[test]
fn limits_name_every_limit_flag_and_existing_counters() {
    let page = Page::read("docs/limits.md").text;
    let settings = settings();
    for setting in settings.iter().filter(|setting| setting.heading == "Limits") {
        let flag = setting.flag();
        let is_named = ["`", " "].iter().any(|end| page.contains(&format!("`{flag}{end}")));
        assert!(is_named, "{flag} is not in docs/limits.md");
    }
    let families = metric_families();
    for row in table(&page, "## The limits") {
        for counter in row[2].split('`').skip(1).step_by(2) {
            let (name, label) =
                counter.split_once('{').map_or((counter, None), |(name, label)| (name, Some(label)));
            let family = families.iter().find(|family| family.name == format!("deeperhub_{name}"));
            let family = family.unwrap_or_else(|| panic!("no metric deeperhub_{name}"));
            if let Some((key, value)) = label.and_then(|label| label.trim_end_matches('}').split_once('=')) {
                let values = family.labels.get(key).unwrap_or_else(|| panic!("{name} has no label {key}"));
                assert!(values.contains(&value.trim_matches('"').to_owned()), "{counter} does not exist");
            }
        }
    }
}

#[test]
fn metrics_and_settings_named_on_pages_exist() {
    let families = metric_families();
    let settings = settings();
    let flags: BTreeSet<_> = settings.iter().map(super::generated::Setting::flag).collect();
    let helps = [
        &["bench", "fanout", "--help"][..],
        &["bench", "slow", "--help"],
        &["bench", "topics", "--help"],
        &["bench", "idle", "--help"],
        &["token", "--help"],
    ];
    let others: String = helps.iter().map(|arguments| run(arguments, &[]).stdout).collect();
    let mut unknown = Vec::new();
    for page in Page::all().into_iter().chain([Page::read("SECURITY.md"), Page::read("ARCHITECTURE.md")]) {
        for span in code_spans(&page.text) {
            let word = span.split([' ', '{', '=']).next().unwrap_or_default();
            let exists = if word.starts_with("deeperhub_") && !word.contains('…') {
                // Names of Rust crates have the same prefix.
                let crate_name = word.split("::").next().unwrap_or_default().replace('_', "-");
                let is_crate = Path::new(ROOT).join("crates").join(crate_name).exists();
                is_crate || families.iter().any(|family| family.name == word)
            } else if word.starts_with("--") {
                let in_help = others.contains(&format!("{word} ")) || others.contains(&format!("{word}\n"));
                ["--config", "--help"].contains(&word) || flags.contains(word) || in_help
            } else {
                true
            };
            if !exists {
                unknown.push(format!("{}: {span}", page.path));
            }
        }
    }
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn the_elixir_module_is_the_same_in_both_translations_and_calls_the_api() {
    let english = Page::read("docs/from-elixir.md");
    let portuguese = Page::read("docs/vindo-do-elixir.md");
    let code = |page: &Page| -> Vec<String> {
        let blocks = page.blocks().into_iter().filter(|block| block.language == "elixir");
        let lines = blocks.flat_map(|block| block.code.lines());
        // Only text for people is translated: documentation and the message text.
        let code = lines.filter(|line| !line.contains("doc \"") && !line.contains("%{message: \""));
        code.map(str::to_owned).collect()
    };
    assert_eq!(code(&english), code(&portuguese));
    let openapi = openapi();
    let module = code(&english).join("\n");
    for (call, path) in [
        (
            "/v1/clients/#{URI.encode(client_id, &URI.char_unreserved?/1)}/messages",
            "/v1/clients/{client_id}/messages",
        ),
        ("\"/v1/broadcast\"", "/v1/broadcast"),
    ] {
        assert!(module.contains(call), "{module}");
        assert!(openapi["paths"][path]["post"].is_object(), "{path}");
    }
    assert_eq!(module.matches("/v1/").count(), 2, "a call is not looked at here");
}
