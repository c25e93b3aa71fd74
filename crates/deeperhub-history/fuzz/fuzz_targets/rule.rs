//! Parses arbitrary text as rules: nothing panics, a rule writes a text that parses to the same rule
//! and is within its bounds, and an error is one short line.

#![no_main]

use deeperhub_history::{Delivery, Policy, Rule, Rules, Topic};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    check(text);
    check(&format!("a.>: {text}"));
    let rules: Vec<Rule> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let Ok(rules) = Rules::new(rules.into_iter().take(Rules::MAX)) else { unreachable!("few rules") };
    for topic in text.split_whitespace().filter_map(|word| Topic::parse(word).ok()) {
        let first = rules.iter().find(|(_, rule)| rule.pattern().matches(&topic)).map(|(id, _)| id);
        assert_eq!(rules.find(&topic), first);
    }
});

fn check(text: &str) {
    match text.parse::<Rule>() {
        Ok(rule) => {
            assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
            let policy = rule.policy();
            assert!(policy.history() <= Policy::MAX_HISTORY);
            assert!((1..=Policy::MAX_HISTORY_BYTES).contains(&policy.history_bytes()));
            assert!((Policy::MIN_TTL..=Policy::MAX_TTL).contains(&policy.ttl()));
            assert!(policy.keeps_history() || policy.delivery() == Delivery::Close);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.len() < 1500 && !error.contains(char::is_control), "{error}");
        }
    }
}
