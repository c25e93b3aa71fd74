//! Wildcard matching of a pattern's text against a topic's.

/// Bytes that are compared at a time.
const CHUNK: usize = 16;

/// Returns `true` if `pattern` matches `topic`. Both must be valid; `pattern` may also be a topic.
///
/// A `*` matches exactly one level, so matching never backtracks. Its time is linear in the length
/// of both texts, whatever the wildcards are.
pub(crate) fn is_match(pattern: &str, topic: &str) -> bool {
    let (pattern, mut topic) = (pattern.as_bytes(), topic.as_bytes());
    // A `>` is never part of a name, so as the last byte it is a whole level.
    let (pattern, has_tail) = match pattern.split_last() {
        Some((b'>', head)) => (head, true),
        _ => (pattern, false),
    };
    let mut position = 0;
    loop {
        let rest = pattern.get(position..).unwrap_or_default();
        let agreeing = count_agreeing_bytes(rest, topic);
        position += agreeing;
        topic = topic.get(agreeing..).unwrap_or_default();
        let follows_star = position > 0 && pattern.get(position - 1) == Some(&b'*');
        let next_dot = || topic.iter().position(|byte| *byte == b'.');
        match pattern.get(position) {
            // The head of `a.>` ends with its dot, so remaining bytes are one level or more.
            None if has_tail => return !topic.is_empty(),
            None if follows_star => return next_dot().is_none(),
            None => return topic.is_empty(),
            // The `*` agreed with the first byte of a longer level. Skip the rest of the level.
            Some(b'.') if follows_star => match next_dot() {
                Some(dot) if dot > 0 => topic = topic.get(dot..).unwrap_or_default(),
                _ => return false,
            },
            Some(_) => return false,
        }
    }
}

/// Returns the number of leading bytes that agree: they are equal, or the pattern's byte is `*`.
///
/// As long as all bytes before it agree, a `*` is compared with the first byte of a level of the
/// topic. This byte is never a dot, because topics have no empty levels.
fn count_agreeing_bytes(pattern: &[u8], topic: &[u8]) -> usize {
    let agrees = |(pattern, topic): (&u8, &u8)| pattern == topic || *pattern == b'*';
    let mut start = 0;
    while let Some((pattern, topic)) = pattern.get(start..start + CHUNK).zip(topic.get(start..start + CHUNK))
    {
        // No early exit, so that the compiler compares all bytes with one instruction.
        if !pattern.iter().zip(topic).fold(true, |all, bytes| all & agrees(bytes)) {
            break;
        }
        start += CHUNK;
    }
    let (pattern, topic) = (pattern.get(start..).unwrap_or_default(), topic.get(start..).unwrap_or_default());
    start + pattern.iter().zip(topic).take_while(|bytes| agrees(*bytes)).count()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use deeperhub_types::{Subscription, Topic};
    use proptest::prelude::*;

    #[test]
    fn wildcards_match_whole_levels_of_any_length() {
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
