//! Settings of streams.

use serde_json::{Map, Value, json};

use super::names::StreamNames;
use crate::config::{Config, StreamStorage};
use crate::store::StreamLimits;

/// Time for which the server recognizes messages that are sent again.
const DUPLICATE_WINDOW_MS: u64 = 120_000;

/// Least age that JetStream accepts.
const MIN_AGE_MS: u64 = 100;

/// Settings that a server does not change in a stream.
const FIXED: [&str; 2] = ["storage", "retention"];

/// Returns the settings of a rule's stream.
pub(super) fn wanted(names: &StreamNames, limits: &StreamLimits, config: &Config, pattern: &str) -> Value {
    let age_ms = limits.ttl_ms().max(MIN_AGE_MS);
    let storage = match config.stream_storage {
        StreamStorage::Memory => "memory",
        StreamStorage::File => "file",
    };
    json!({
        "subjects": [names.all()],
        "retention": "limits",
        "discard": "old",
        "storage": storage,
        "num_replicas": config.stream_replicas.max(1),
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": limits.messages.max(1),
        "max_age": age_ms * 1_000_000,
        "duplicate_window": age_ms.min(DUPLICATE_WINDOW_MS) * 1_000_000,
        "allow_direct": true,
        "allow_msg_ttl": true,
        "allow_rollup_hdrs": true,
        "deny_purge": false,
        "republish": { "src": names.messages(), "dest": names.republished() },
        "metadata": { "deeperhub_rule": pattern },
    })
}

/// Key of the metadata with the sequence after which the stream has had its present limits, or larger
/// ones.
const WHOLE_AFTER: &str = "deeperhub_whole_after";

/// Limits below which a stream removes messages.
const LIMITS: [&str; 2] = ["max_msgs_per_subject", "max_age"];

/// Returns `true` if an update raises a limit, so that the stream may lack messages which the new
/// limits would have kept.
pub(super) fn raises_limits(present: &Value, updated: &Value) -> bool {
    // Without a positive number, there is no limit.
    let limit = |settings: &Value, key| settings.get(key).and_then(Value::as_u64).filter(|limit| *limit > 0);
    LIMITS.iter().any(|key| {
        limit(present, key).is_some_and(|before| limit(updated, key).is_none_or(|after| before < after))
    })
}

/// Returns the sequence up to which a stream may lack messages that its limits would have kept.
pub(super) fn whole_after(settings: &Value) -> u64 {
    let text = settings.pointer("/metadata").and_then(|metadata| metadata.get(WHOLE_AFTER)?.as_str());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Notes in the settings of a stream that it may lack messages up to a sequence.
pub(super) fn set_whole_after(settings: &mut Value, sequence: u64) {
    if let Some(metadata) = settings.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(WHOLE_AFTER.to_owned(), json!(sequence.to_string()));
    }
}

/// Returns the names of the settings that differ, and the settings that the stream should be
/// updated to, if that is possible.
pub(super) fn compare(wanted: &Value, present: &Value) -> (Vec<String>, Option<Value>) {
    let (Some(wanted), Some(present)) = (wanted.as_object(), present.as_object()) else {
        return (Vec::new(), None);
    };
    let mut updated = present.clone();
    let mut differing = Vec::new();
    let mut is_updatable = false;
    for (key, value) in wanted {
        let has = present.get(key);
        let is_equal = match key.as_str() {
            // The server adds values of its own, and others may add some.
            "metadata" => contains(has, value),
            "republish" => contains(has, value),
            _ => has == Some(value) || (has.is_none() && *value == json!(false)),
        };
        if is_equal {
            continue;
        }
        differing.push(format!("{key}: {} instead of {value}", has.unwrap_or(&Value::Null)));
        if !FIXED.contains(&key.as_str()) {
            is_updatable = true;
            let merged = match (key.as_str(), has.and_then(Value::as_object), value.as_object()) {
                ("metadata", Some(has), Some(value)) => merge(has, value),
                _ => value.clone(),
            };
            updated.insert(key.clone(), merged);
        }
    }
    (differing, is_updatable.then_some(Value::Object(updated)))
}

fn contains(has: Option<&Value>, wanted: &Value) -> bool {
    let (Some(has), Some(wanted)) = (has.and_then(Value::as_object), wanted.as_object()) else {
        return false;
    };
    wanted.iter().all(|(key, value)| has.get(key) == Some(value))
}

fn merge(has: &Map<String, Value>, wanted: &Map<String, Value>) -> Value {
    let mut merged = has.clone();
    merged.extend(wanted.iter().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::BrokerUrl;

    fn settings(ttl: Duration) -> Value {
        let limits = StreamLimits { messages: 7, ttl, forget: Duration::ZERO };
        let config = Config::new(BrokerUrl::parse("nats://h").unwrap());
        wanted(&StreamNames::new("hub", "a.>"), &limits, &config, "a.>")
    }

    #[test]
    fn duplicates_are_remembered_no_longer_than_messages() {
        for (ttl, age, window) in [(Duration::from_secs(600), 600, 120), (Duration::from_secs(5), 5, 5)] {
            let settings = settings(ttl);
            assert_eq!(settings["max_age"], age * 1_000_000_000_u64);
            assert_eq!(settings["duplicate_window"], window * 1_000_000_000_u64);
        }
        assert_eq!(settings(Duration::ZERO)["max_age"], 100_000_000);
    }

    #[test]
    fn raised_limits_are_noted() {
        let (small, large) = (settings(Duration::from_secs(5)), settings(Duration::from_secs(600)));
        assert!(raises_limits(&small, &large) && !raises_limits(&large, &small));
        assert!(!raises_limits(&large, &large));
        let more = |messages: i64| {
            let mut settings = large.clone();
            settings["max_msgs_per_subject"] = json!(messages);
            settings
        };
        assert!(raises_limits(&large, &more(8)) && !raises_limits(&large, &more(6)));
        // An operator's stream without limits.
        assert!(raises_limits(&large, &more(-1)) && !raises_limits(&more(-1), &large));
        let mut noted = large.clone();
        assert_eq!(whole_after(&noted), 0);
        set_whole_after(&mut noted, 17);
        assert_eq!(whole_after(&noted), 17);
        // It stays when settings change.
        noted["max_age"] = json!(1);
        let (_, updated) = compare(&large, &noted);
        assert_eq!(updated.map(|updated| whole_after(&updated)), Some(17));
    }

    #[test]
    fn settings_that_differ_are_named_and_mended() {
        let wanted = settings(Duration::from_secs(600));
        let mut present = wanted.clone();
        present["metadata"]["_nats.ver"] = json!("2.15.1");
        present["consumer_limits"] = json!({});
        assert_eq!(compare(&wanted, &present), (Vec::new(), None));
        present["max_bytes"] = json!(1000);
        present["metadata"]["deeperhub_rule"] = json!("b");
        let (differing, updated) = compare(&wanted, &present);
        assert_eq!(differing.len(), 2);
        assert!(differing[0].starts_with("max_bytes: 1000 instead of -1"), "{differing:?}");
        let updated = updated.unwrap();
        assert_eq!((&updated["max_bytes"], &updated["consumer_limits"]), (&json!(-1), &json!({})));
        assert_eq!(updated["metadata"]["_nats.ver"], "2.15.1");
        assert_eq!(updated["metadata"]["deeperhub_rule"], "a.>");
        // A stream cannot move.
        let mut present = wanted.clone();
        present["storage"] = json!("memory");
        let (differing, updated) = compare(&wanted, &present);
        assert_eq!((differing.len(), updated), (1, None));
    }
}
