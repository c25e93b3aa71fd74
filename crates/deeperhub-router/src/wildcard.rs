//! Wildcard matching of a pattern's text against a topic's.

/// Bytes compared at a time.
const CHUNK: usize = 16;

/// Returns `true` if a valid pattern, or topic, matches a valid topic.
///
/// Reads each byte of both a fixed number of times, whatever the wildcards are. A `*` matches
/// exactly one level, so matching never backtracks.
pub(crate) fn is_match(pattern: &str, topic: &str) -> bool {
    let (pattern, mut topic) = (pattern.as_bytes(), topic.as_bytes());
    // A `>` is never part of a name, so as the last byte it is a whole level.
    let (pattern, has_tail) = match pattern.split_last() {
        Some((b'>', head)) => (head, true),
        _ => (pattern, false),
    };
    let mut at = 0;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        let same = agreeing_bytes(rest, topic);
        at += same;
        topic = topic.get(same..).unwrap_or_default();
        let is_behind_star = at > 0 && pattern.get(at - 1) == Some(&b'*');
        let rest_of_level = || topic.iter().position(|byte| *byte == b'.');
        match pattern.get(at) {
            // The head of `a.>` ends with its dot: remaining bytes are one level or more.
            None if has_tail => return !topic.is_empty(),
            None if is_behind_star => return rest_of_level().is_none(),
            None => return topic.is_empty(),
            // The `*` agreed with the first byte of a longer level.
            Some(b'.') if is_behind_star => match rest_of_level() {
                Some(rest) if rest > 0 => topic = topic.get(rest..).unwrap_or_default(),
                _ => return false,
            },
            Some(_) => return false,
        }
    }
}

/// Returns the number of leading bytes that are equal, or a `*` in the pattern.
///
/// While both agree, a `*` stands at the start of a level of the topic. It never meets a dot, since
/// topics have no empty levels.
fn agreeing_bytes(pattern: &[u8], topic: &[u8]) -> usize {
    let agrees = |(pattern, topic): (&u8, &u8)| pattern == topic || *pattern == b'*';
    let mut at = 0;
    while let Some((pattern, topic)) = pattern.get(at..at + CHUNK).zip(topic.get(at..at + CHUNK)) {
        // No early exit, so that the compiler compares all bytes with one instruction.
        if !pattern.iter().zip(topic).fold(true, |all, bytes| all & agrees(bytes)) {
            break;
        }
        at += CHUNK;
    }
    let (pattern, topic) = (pattern.get(at..).unwrap_or_default(), topic.get(at..).unwrap_or_default());
    at + pattern.iter().zip(topic).take_while(|bytes| agrees(*bytes)).count()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use deeperhub_types::{Subscription, Topic};
    use proptest::prelude::*;

    #[test]
    fn wildcards_stand_for_whole_levels_of_any_length() {
        for (pattern, topic, expected) in [
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.bb.c", true),
            ("a.*.c", "a.b.cc", false),
            ("a.*.cc", "a.bb.c", false),
            ("*", "abc", true),
            ("*", "a.b", false),
            ("*.b", "a", false),
            ("*.b", "aa.b", true),
            ("*.>", "aa", false),
            ("*.>", "aa.b.c", true),
            (">", "a", true),
            ("a.>", "a", false),
            ("a.>", "ab.c", false),
            ("a.*", "a.", false),
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
        ] {
            assert_eq!(is_match(pattern, topic), expected, "{pattern} and {topic}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn matching_agrees_with_the_definition(
            pattern in "((a|aa|bb|é|\\*)\\.){0,12}(a|bb|\\*|>)",
            topic in "((a|aa|bb|é)\\.){0,12}(a|aa|bb)",
        ) {
            let expected = Subscription::parse(pattern.as_str()).unwrap().matches(&Topic::parse(topic.as_str()).unwrap());
            prop_assert_eq!(is_match(&pattern, &topic), expected);
        }

        #[test]
        fn matching_accepts_derived_patterns(levels in proptest::collection::vec(("(a|bb|ccc|é)", 0..3_u8), 1..60), tail in any::<bool>()) {
            let topic = levels.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".");
            let mut pattern: Vec<_> =
                levels.iter().map(|(name, star)| if *star == 0 { "*" } else { name }).collect();
            if tail {
                *pattern.last_mut().unwrap() = ">";
            }
            prop_assert!(is_match(&pattern.join("."), &topic));
        }
    }
}
