use super::*;
use crate::policy::{Acknowledge, Delivery};
use proptest::prelude::*;
use std::error::Error;
use std::time::Duration;

fn parse(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn every_key_is_parsed_and_written() {
    let text = "chat.>: history=1000 history_bytes=64KiB ttl=90s delivery=drop_oldest keep=20 ack=disk share=3 \
                max_streams=500";
    let rule = parse(text);
    assert_eq!(rule.pattern().as_str(), "chat.>");
    let policy = rule.policy();
    assert_eq!((policy.history(), policy.history_bytes()), (1000, 65_536));
    assert_eq!(policy.ttl(), Duration::from_secs(90));
    assert_eq!(policy.delivery(), Delivery::DropOldest { keep: 20 });
    assert_eq!(policy.acknowledge(), Acknowledge::Disk);
    assert_eq!((policy.share(), policy.max_streams()), (3, Some(500)));
    assert_eq!(rule.to_string(), text);
    let retention = policy.retention();
    assert_eq!((retention.messages, retention.bytes, retention.ttl_seconds), (1000, 65_536, 90));
}

#[test]
fn what_is_left_out_gets_its_default() {
    for (text, shown) in [
        ("a:", "a: history=0"),
        ("  a.*:\t history=0  ", "a.*: history=0"),
        ("a: history=5", "a: history=5"),
        ("a: history=5 delivery=lossless ack=memory share=1 ttl=10m history_bytes=4MiB", "a: history=5"),
        ("a: history=5 delivery=close", "a: history=5 delivery=close"),
        ("a: history=5 delivery=drop_oldest", "a: history=5 delivery=drop_oldest"),
        ("a: history=5 delivery=drop_oldest keep=4", "a: history=5 delivery=drop_oldest keep=4"),
        ("a: history=50 delivery=drop_oldest keep=16", "a: history=50 delivery=drop_oldest"),
        ("a: history=1 delivery=sample every=500ms", "a: history=1 delivery=sample"),
        ("a: history=1 delivery=sample every=2000ms", "a: history=1 delivery=sample every=2s"),
        // `keep` and `every` count only with their delivery.
        ("a: history=1 keep=16 every=1s", "a: history=1"),
        ("a:b:c: history=1 ttl=168h", "a:b:c: history=1 ttl=168h"),
        (
            ">: history=1000000 history_bytes=1GiB ttl=1500ms",
            ">: history=1000000 history_bytes=1GiB ttl=1500ms",
        ),
    ] {
        let rule = parse(text);
        assert_eq!(rule.to_string(), shown, "{text}");
        assert_eq!(parse(shown), rule);
    }
    assert_eq!(
        parse("a: history=5 delivery=drop_oldest").policy().delivery(),
        Delivery::DropOldest { keep: 5 }
    );
    assert_eq!(*parse("a:").policy(), Policy::default());
    // Ages are counted in seconds, so that a message is kept for 1.5 seconds at least.
    assert_eq!(parse("a: history=1 ttl=1500ms").policy().retention().ttl_seconds, 2);
}

#[test]
fn errors_name_the_key_and_the_value() {
    let long = format!("a: history={}", "9".repeat(300));
    let shown = format!("`history` is `{}…`; expected a whole number from 0 to 1000000", "9".repeat(64));
    for (text, error) in [
        ("", "`` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`"),
        ("a history=1", "`a` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`"),
        (
            "a:history=1",
            "`a:history=1` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`",
        ),
        (":", "`` is not a topic or pattern"),
        ("a..b: history=1", "`a..b` is not a topic or pattern"),
        ("$sys.a: history=1", "`$sys.a` is not a topic or pattern"),
        ("a\u{7}: history=1", "`a\\u{7}` is not a topic or pattern"),
        ("a: history", "`history` is not a setting; write it as `key=value`, without spaces"),
        ("a: history = 1", "`history` is not a setting; write it as `key=value`, without spaces"),
        (
            "a: histroy=1",
            "unknown key `histroy`; a rule has the keys history, history_bytes, ttl, delivery, keep, every, ack, \
             share, max_streams",
        ),
        ("a: history=1 history=2", "`history` stands twice; remove one of them"),
        ("a: history=-1", "`history` is `-1`; expected a whole number from 0 to 1000000"),
        ("a: history=", "`history` is ``; expected a whole number from 0 to 1000000"),
        (&long, &shown),
        (
            "a: history_bytes=4MB",
            "`history_bytes` is `4MB`; expected a size from 1 to 1GiB, such as 64KiB or 4MiB",
        ),
        ("a: ttl=8d", "`ttl` is `8d`; expected a duration from 1s to 168h, such as 10m"),
        ("a: ttl=169h", "`ttl` is `169h`; expected a duration from 1s to 168h, such as 10m"),
        ("a: delivery=all", "`delivery` is `all`; expected lossless, drop_oldest, latest, sample or close"),
        ("a: keep=0", "`keep` is `0`; expected a whole number from 1 to 1000000"),
        ("a: every=1ms", "`every` is `1ms`; expected a duration from 10ms to 1h, such as 500ms"),
        ("a: ack=no", "`ack` is `no`; expected memory or disk"),
        ("a: share=0", "`share` is `0`; expected a whole number from 1 to 1000"),
        ("a: max_streams=0", "`max_streams` is `0`; expected a whole number from 1 to 100000000"),
        ("a: ttl=10m", "`ttl` has no effect without `history`; add `history=100`, for example"),
        ("a: delivery=latest", "`delivery` has no effect without `history`; add `history=100`, for example"),
        (
            "a: history=0 delivery=latest",
            "`delivery` is `latest`; expected close, because `history` is 0; set `history` to 1 or more for others",
        ),
        ("a: history=5 delivery=drop_oldest keep=6", "`keep` is `6`; expected at most `history`, which is 5"),
    ] {
        assert_eq!(text.parse::<Rule>().unwrap_err().to_string(), error, "{text}");
    }
    let error = "a..b: history=1".parse::<Rule>().unwrap_err();
    assert!(error.source().is_some_and(|source| source.to_string().contains("empty level")));
}

#[test]
fn settings_of_a_program_have_the_same_bounds() {
    let settings = || PolicySettings::default().history(5);
    for (settings, key) in [
        (settings().history(1_000_001), "history"),
        (settings().history_bytes(0), "history_bytes"),
        (settings().ttl(Duration::ZERO), "ttl"),
        (settings().ttl(Duration::from_micros(1_000_001)), "ttl"),
        (settings().ttl(Duration::MAX), "ttl"),
        (settings().delivery(Delivery::DropOldest { keep: 0 }), "keep"),
        (settings().delivery(Delivery::DropOldest { keep: 6 }), "keep"),
        (settings().delivery(Delivery::Sample { every: Duration::from_nanos(1) }), "every"),
        (settings().share(0), "share"),
        (settings().max_streams(0), "max_streams"),
    ] {
        let error = settings.resolve().unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{key}` is ")), "{error}");
    }
    let policy = settings().delivery(Delivery::Latest).acknowledge(Acknowledge::Disk).resolve().unwrap();
    assert_eq!(policy.to_string(), "history=5 delivery=latest ack=disk");
}

#[test]
fn there_are_at_most_64_rules() {
    let rules = |count: usize| Rules::new((0..count).map(|number| parse(&format!("a{number}: history=1"))));
    assert_eq!(rules(64).map(|rules| rules.len()), Ok(64));
    let error = rules(65).unwrap_err().to_string();
    assert_eq!(error, "there are 65 rules; keep at most 64");
    assert!(rules(0).is_ok_and(|rules| rules.is_empty() && !rules.keep_history()));
    assert!(!Rules::new([parse("a:")]).unwrap().keep_history());
    assert!(Rules::new([parse("a:"), parse("b: history=1")]).unwrap().keep_history());
}

#[test]
fn reserved_topics_match_no_rule() {
    let rules = Rules::new([parse(">: history=1")]).unwrap();
    assert_eq!(rules.find(&Topic::reserved("p.a")), None);
    assert!(rules.find(&Topic::parse("p.a").unwrap()).is_some());
}

fn names(levels: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(levels), 1..4).prop_map(|levels| levels.join("."))
}

fn duration(units: &'static [&'static str]) -> impl Strategy<Value = String> {
    (1..2000_u32, proptest::sample::select(units)).prop_map(|(number, unit)| format!("{number}{unit}"))
}

/// Words of a rule, most of them valid.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..2000_u32).prop_map(|number| format!("history={number}")),
        (1..5000_u32, proptest::sample::select(&["", "KiB", "MiB"][..]))
            .prop_map(|(number, unit)| format!("history_bytes={number}{unit}")),
        duration(&["s", "m", "h", "ms"]).prop_map(|time| format!("ttl={time}")),
        proptest::sample::select(&["lossless", "drop_oldest", "latest", "sample", "close"][..])
            .prop_map(|name| format!("delivery={name}")),
        (0..30_u32).prop_map(|number| format!("keep={number}")),
        duration(&["s", "ms"]).prop_map(|time| format!("every={time}")),
        proptest::sample::select(&["memory", "disk"][..]).prop_map(|name| format!("ack={name}")),
        (1..5_u32).prop_map(|number| format!("share={number}")),
        (1..5_u32).prop_map(|number| format!("max_streams={number}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_first_matching_rule_counts(
        patterns in proptest::collection::vec(names(&["a", "b", "c", "*"]), 0..20),
        has_tail in proptest::collection::vec(any::<bool>(), 20),
        topic in names(&["a", "b", "c", "d"]),
    ) {
        let patterns: Vec<_> = patterns
            .into_iter()
            .zip(has_tail)
            .map(|(pattern, has_tail)| if has_tail { format!("{pattern}.>") } else { pattern })
            .collect();
        let all = patterns.iter().map(|pattern| parse(&format!("{pattern}: history=1")));
        let rules = Rules::new(all).unwrap();
        let topic = Topic::parse(topic).unwrap();
        let matches = |pattern: &String| Subscription::parse(&**pattern).unwrap().matches(&topic);
        let first = patterns.iter().position(matches);
        prop_assert_eq!(rules.find(&topic).map(RuleId::index), first);
    }

    #[test]
    fn the_text_of_a_rule_parses_to_the_same_rule(words in proptest::collection::vec(word(), 0..6)) {
        if let Ok(rule) = format!("a.*: {}", words.join(" ")).parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }

    #[test]
    fn any_text_is_a_rule_or_an_error_of_one_line(text in any::<String>(), rest in "[a-z_=0-9 ]{0,40}") {
        for text in [text.clone(), format!("a: {text}"), format!("a: {rest}"), format!("{text}: {rest}")] {
            match text.parse::<Rule>() {
                Ok(rule) => prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule)),
                Err(error) => {
                    let error = error.to_string();
                    prop_assert!(error.len() < 1500 && !error.contains(char::is_control), "{}", error);
                }
            }
        }
    }
}
