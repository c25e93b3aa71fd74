//! Names of streams and subjects.

/// Maximum length of the readable part of a rule's token.
const MAX_READABLE: usize = 32;

/// Names of the stream of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamNames {
    prefix: String,
    /// Name of the rule: its pattern with other letters, and a hash of the pattern.
    pub(crate) token: String,
    /// Start of the subjects of messages.
    pub(crate) message_start: String,
}

impl StreamNames {
    pub(crate) fn new(prefix: &str, pattern: &str) -> Self {
        let token = token(pattern);
        Self { prefix: prefix.to_owned(), message_start: format!("{prefix}.h.{token}.m."), token }
    }

    /// Returns the name of the stream of an epoch.
    pub(crate) fn stream(&self, epoch: u64) -> String {
        format!("{}_h_{}_{epoch}", self.prefix, self.token)
    }

    /// Returns the epoch of a stream of this rule. `None` for other streams.
    pub(crate) fn epoch(&self, stream: &str) -> Option<u64> {
        let (token, epoch) = parse_stream(&self.prefix, stream)?;
        (token == self.token).then_some(epoch)
    }

    /// Returns the subjects of the stream.
    pub(crate) fn all(&self) -> String {
        format!("{}.h.{}.>", self.prefix, self.token)
    }

    /// Returns the subjects of all messages.
    pub(crate) fn messages(&self) -> String {
        self.message(">")
    }

    /// Returns the subject of the messages of a topic.
    pub(crate) fn message(&self, topic: &str) -> String {
        [&self.message_start, topic].concat()
    }

    /// Returns the subject of the mark of a cleared topic.
    pub(crate) fn mark(&self, topic: &str) -> String {
        format!("{}.h.{}.c.{topic}", self.prefix, self.token)
    }

    /// Returns the subjects of all marks.
    pub(crate) fn marks(&self) -> String {
        self.mark(">")
    }

    /// Returns the topic of a subject of this stream, and `true` if it is that of a mark.
    pub(crate) fn topic<'s>(&self, subject: &'s str) -> Option<(&'s str, bool)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".h.")?.strip_prefix(&self.token)?;
        match rest.strip_prefix(".c.") {
            Some(topic) => Some((topic, true)),
            None => Some((rest.strip_prefix(".m.")?, false)),
        }
    }

    /// Returns the subjects that republished messages get.
    pub(crate) fn republished(&self) -> String {
        format!("{}.t.>", self.prefix)
    }
}

/// Returns the token of the rule and the epoch of a stream's name.
pub(crate) fn parse_stream<'s>(prefix: &str, stream: &'s str) -> Option<(&'s str, u64)> {
    let (token, epoch) = stream.strip_prefix(prefix)?.strip_prefix("_h_")?.rsplit_once('_')?;
    // Zeros at the start or a sign would give one epoch two names.
    let is_plain = !epoch.starts_with(['0', '+']);
    let epoch = epoch.parse().ok().filter(|epoch| is_plain && *epoch <= crate::store::MAX_EPOCH)?;
    Some((token, epoch))
}

/// Returns the token of a pattern: letters that streams and subjects can have.
fn token(pattern: &str) -> String {
    let readable = pattern.chars().take(MAX_READABLE).map(|character| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' => character,
        _ => '-',
    });
    format!("{}-{:016x}", readable.collect::<String>(), hash(pattern.as_bytes()))
}

/// The hash FNV-1a of 64 bits. All nodes must agree on it, and rules are not chosen by clients.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str) -> StreamNames {
        StreamNames::new("my_hub", pattern)
    }

    #[test]
    fn names_lead_back_to_rule_epoch_and_topic() {
        let (one, other) = (names("chat.>"), names("chat.*"));
        assert!(one.token.starts_with("chat---") && one.token != other.token);
        assert!(one.token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        let stream = one.stream(1_796_000_000_123);
        assert_eq!((one.epoch(&stream), other.epoch(&stream)), (Some(1_796_000_000_123), None));
        for wrong in
            ["", "other", "my_hub_h_", "my_hub_h_x", "my_hub_h_x_07", "my_hub_h_x_999999999999999999"]
        {
            assert_eq!(parse_stream("my_hub", wrong), None, "{wrong}");
        }
        assert_eq!(one.topic(&one.message("chat.é.1")), Some(("chat.é.1", false)));
        assert_eq!(one.topic(&one.mark("chat.m.c")), Some(("chat.m.c", true)));
        assert_eq!(one.topic(&other.message("chat.1")), None);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn names_of_long_patterns_are_short() {
        let pattern = format!("{}.>", "é".repeat(100));
        assert!(names(&pattern).stream(1).len() < 100);
    }
}
