//! Tests of rules as tables of the file.

use std::path::Path;

use super::*;
use crate::config::file;
use crate::config::options::{Options, RULE_KEY};

/// Returns the rules of a file with the names of their origins, and its errors.
fn parse(text: &str) -> (Vec<String>, Vec<String>) {
    let mut errors = Vec::new();
    let layer = file::parse(text, Path::new("hub.toml"), &Options::keys(), &mut errors);
    let rules = layer.iter().filter(|(key, _)| *key == RULE_KEY);
    let rules = rules.map(|(key, rule)| format!("{}: {:?}", rule.origin.label(key), rule.texts[0]));
    (rules.collect(), errors.iter().map(ToString::to_string).collect())
}

/// Checks that a file has exactly these errors, of which the starts are given.
fn check_errors(text: &str, expected: &[&str]) {
    let (rules, errors) = parse(text);
    assert_eq!(rules, [""; 0], "{text}");
    assert_eq!(errors.len(), expected.len(), "{text}: {errors:?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn tables_are_rules_in_the_order_of_the_file() {
    let text = "port = 1
        [[topics]]
        match = 'chat.staff'
        [[topics]]
        history = 0x64
        match = \"chat.>\"
        history_bytes = 65536
        ttl = '10m'
        delivery = 'drop_oldest'
        keep = 16
        share = '2'
        max_streams = 1_000 # ours

        [[topics]]
        match = 'a,b'
        history = 1
        history_bytes = '8MiB'
        delivery = 'sample'
        every = '1s'
        ack = 'memory'";
    let expected = [
        r#"hub.toml:2: "chat.staff: history=0""#,
        r#"hub.toml:4: "chat.>: history=100 history_bytes=64KiB delivery=drop_oldest share=2 max_streams=1000""#,
        r#"hub.toml:14: "a,b: history=1 history_bytes=8MiB delivery=sample every=1s""#,
    ];
    assert_eq!(parse(text), (expected.map(str::to_owned).into(), Vec::new()));
    let inline = "topics = [{ match = 'a', history = 1 },\n{ match = 'b', history = 2 }]";
    let expected = [r#"hub.toml:1: "a: history=1""#, r#"hub.toml:2: "b: history=2""#];
    assert_eq!(parse(inline), (expected.map(str::to_owned).into(), Vec::new()));
    assert_eq!(parse("topics = []"), (Vec::new(), Vec::new()));
}

#[test]
fn texts_and_tables_of_a_file_keep_their_order() {
    let text = "topic = [\n 'a: history=1',\n 'b: history=2']\n[[topics]]\nmatch = 'c'\nhistory = 3";
    let expected =
        [r#"hub.toml:2: "a: history=1""#, r#"hub.toml:3: "b: history=2""#, r#"hub.toml:4: "c: history=3""#];
    assert_eq!(parse(text), (expected.map(str::to_owned).into(), Vec::new()));
    let expected = vec![r#"hub.toml:1: "a: history=1""#.to_owned()];
    assert_eq!(parse("topic = 'a: history=1'"), (expected, Vec::new()));
}

#[test]
fn a_value_of_the_wrong_kind_is_named_for_every_key() {
    let kinds = [
        ("-1", "-1"),
        ("1.5", "1.5"),
        ("true", "true"),
        ("nan", "nan"),
        ("''", ""),
        ("'many'", "many"),
        ("'1 '", "1 "),
        ("99999999999999999999", "99999999999999999999"),
        ("2026-11-29", "2026-11-29"),
        ("[1]", "[1]"),
        ("[\n1,\n2]", "[ 1, 2]"),
        ("{ a = 1 }", "{ a = 1 }"),
    ];
    for key in PolicySettings::keys() {
        for (toml, shown) in kinds {
            let text = format!("[[topics]]\nmatch = 'chat.>'\n{key} = {toml}");
            check_errors(
                &text,
                &[&format!("hub.toml:3: [[topics]] 1 (chat.>): `{key}` is `{shown}`; expected ")],
            );
        }
    }
}

#[test]
fn a_value_out_of_bounds_is_named_with_the_bounds() {
    for (setting, expected) in [
        ("history = 1000001", "`history` is `1000001`; expected a whole number from 0 to 1000000"),
        ("history_bytes = 0", "`history_bytes` is `0`; expected a size from 1 to 1GiB"),
        ("history_bytes = '2GiB'", "`history_bytes` is `2GiB`; expected a size from 1 to 1GiB"),
        ("ttl = 600", "`ttl` is `600`; expected a duration from 1s to 168h"),
        ("ttl = '0s'", "`ttl` is `0s`; expected a duration from 1s to 168h"),
        ("ttl = '169h'", "`ttl` is `169h`; expected a duration from 1s to 168h"),
        ("delivery = 'newest'", "`delivery` is `newest`; expected lossless, drop_oldest, latest, sample or"),
        ("keep = 0", "`keep` is `0`; expected a whole number from 1 to 1000000"),
        ("every = '1ms'", "`every` is `1ms`; expected a duration from 10ms to 1h"),
        ("every = 0", "`every` is `0`; expected a duration from 10ms to 1h"),
        ("ack = 'never'", "`ack` is `never`; expected memory or disk"),
        ("share = 1001", "`share` is `1001`; expected a whole number from 1 to 1000"),
        ("max_streams = 0", "`max_streams` is `0`; expected a whole number from 1 to 100000000"),
    ] {
        let text = format!("[[topics]]\nmatch = 'a'\n{setting}");
        check_errors(&text, &[&format!("hub.toml:3: [[topics]] 1 (a): {expected}")]);
    }
}

#[test]
fn settings_that_contradict_each_other_are_reported_at_the_line_of_the_key() {
    for (settings, expected) in [
        ("ttl = '1m'", "hub.toml:3: [[topics]] 1 (a): `ttl` has no effect without `history`; add "),
        (
            "history = 0\ndelivery = 'latest'",
            "hub.toml:4: [[topics]] 1 (a): `delivery` is `latest`; expected close",
        ),
        (
            "keep = 9\nhistory = 5\ndelivery = 'drop_oldest'",
            "hub.toml:3: [[topics]] 1 (a): `keep` is `9`; expected at most `history`, which is 5",
        ),
    ] {
        check_errors(&format!("[[topics]]\nmatch = 'a'\n{settings}"), &[expected]);
    }
}

#[test]
fn a_rule_needs_a_valid_pattern() {
    let missing =
        "hub.toml:1: [[topics]] 1: `match` is missing; add a topic or pattern, such as match = \"chat.>\"";
    check_errors("[[topics]]", &[missing]);
    check_errors("[[topics]]\nhistory = 5", &[missing]);
    for (toml, expected) in [
        ("''", "`match`: `` is not a topic or pattern: topic is empty; "),
        ("'a..b'", "`match`: `a..b` is not a topic or pattern: topic has an empty level; "),
        ("'a.>.b'", "`match`: `a.>.b` is not a topic or pattern: `>` is allowed only as the last level"),
        (
            "'chat.>: history=5'",
            "`match`: `chat.>: history=5` is not a topic or pattern: topic contains white space",
        ),
        ("'$sys'", "`match`: `$sys` is not a topic or pattern: topics that start with `$` are reserved"),
        ("\"a\\u001b\"", "`match`: `a\\u{1b}` is not a topic or pattern: topic contains a control"),
        ("5", "`match` is `5`; expected a topic or pattern in quotes, such as \"chat.>\""),
        ("['a', 'b']", "`match` is `['a', 'b']`; expected a topic or pattern in quotes"),
    ] {
        let text = format!("[[topics]]\nmatch = {toml}\nhistory = 5");
        check_errors(&text, &[&format!("hub.toml:2: [[topics]] 1: {expected}")]);
    }
    let long = format!("[[topics]]\nmatch = [{}]", "'a',".repeat(50));
    let (_, errors) = parse(&long);
    assert!(errors[0].contains("…`; expected a topic") && errors[0].len() < 200, "{errors:?}");
}

#[test]
fn unknown_keys_are_reported_with_the_keys_that_a_rule_has() {
    let rule = "port = 1\n[[topics]]\nmatch = 'a'\n";
    for (setting, expected) in [
        ("delivry = 'latest'", "hub.toml:4: unknown key 'delivry'; did you mean 'delivery'?"),
        ("history-bytes = 1", "hub.toml:4: unknown key 'history-bytes'; did you mean 'history_bytes'?"),
        (
            "presence = 'counts'",
            "hub.toml:4: unknown key 'presence'; a rule has the keys match, history, history_bytes, ttl, \
             delivery, keep, every, ack, share, max_streams",
        ),
        (
            "log_level = 'warn'",
            "hub.toml:4: unknown key 'log_level'; it is not part of a rule; move it above the first",
        ),
        ("topic = ['b: history=1']", "hub.toml:4: unknown key 'topic'; it is not part of a rule; move"),
    ] {
        check_errors(&format!("{rule}{setting}"), &[expected]);
    }
    check_errors(&format!("{rule}history = 1\nhistory = 2"), &["hub.toml:5: not TOML: duplicate key"]);
}

#[test]
fn other_values_than_tables_are_refused_with_advice() {
    for (text, expected) in [
        (
            "topics = 'a: history=1'",
            "invalid value ''a: history=1'' for topics in hub.toml:1: expected tables, written [[topics]]; texts",
        ),
        (
            "topics = [\n'a: history=1']",
            "invalid value ''a: history=1'' for topics in hub.toml:2: expected tables",
        ),
        ("topics = 5", "invalid value '5' for topics in hub.toml:1: expected tables"),
        (
            "[topics]\nmatch = 'a'",
            "invalid value '[topics]' for topics in hub.toml:1: expected two brackets, [[topics]]",
        ),
        (
            "[[topic]]\nmatch = 'a'",
            "invalid value '[[topic]]' for topic in hub.toml:1: expected texts such as \"chat.>: history=1000\"; tables are written [[topics]]",
        ),
        ("[[topcis]]\nmatch = 'a'", "hub.toml:1: unknown key 'topcis'; did you mean 'topics'?"),
    ] {
        check_errors(text, &[expected]);
    }
}

#[test]
fn all_errors_of_all_rules_are_reported() {
    let text = "[[topics]]\nhistory = -1\ncolour = 1\n[[topics]]\nmatch = 'b'\nttl = 1\nshare = 0";
    check_errors(
        text,
        &[
            "hub.toml:1: [[topics]] 1: `match` is missing",
            "hub.toml:2: [[topics]] 1: `history` is `-1`",
            "hub.toml:3: unknown key 'colour'",
            "hub.toml:6: [[topics]] 2 (b): `ttl` is `1`",
            "hub.toml:7: [[topics]] 2 (b): `share` is `0`",
        ],
    );
}
