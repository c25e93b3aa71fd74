//! A digest of the rules for history, by which nodes notice that theirs differ.

use deeperhub_history::Rules;

/// Returns a digest of the settings that all nodes must share; 0 if no rule keeps messages. Nodes of
/// later versions must return the same digest for the same rules.
pub(crate) fn rules_digest(rules: &Rules) -> u32 {
    // The 32-bit hash FNV-1a.
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    if !rules.keep_history() {
        return 0;
    }
    let mut digest = OFFSET;
    for (_, rule) in rules.iter() {
        let policy = rule.policy();
        let (history, bytes) = (policy.history(), policy.history_bytes());
        let (ttl, delivery) = (policy.ttl().as_millis(), policy.delivery().as_str());
        for byte in format!("{} {history} {bytes} {ttl} {delivery}\n", rule.pattern()).bytes() {
            digest = (digest ^ u32::from(byte)).wrapping_mul(PRIME);
        }
    }
    digest.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rules: &[&str]) -> u32 {
        rules_digest(&Rules::new(rules.iter().map(|rule| rule.parse().unwrap())).unwrap())
    }

    #[test]
    fn a_digest_depends_on_what_nodes_share() {
        let chat = digest(&["chat.>: history=1000"]);
        assert_eq!(digest(&["chat.>: history=1000 ttl=10m share=7 max_streams=5"]), chat);
        assert_eq!(digest(&["chat.>: history=0", "news:"]), 0);
        let others = [
            &["chat.>: history=1001"][..],
            &["chat.*: history=1000"],
            &["chat.>: history=1000 ttl=11m"],
            &["chat.>: history=1000 history_bytes=1MiB"],
            &["chat.>: history=1000 delivery=latest"],
            &["chat.a: history=0", "chat.>: history=1000"],
            &["chat.>: history=1000", "chat.a: history=0"],
        ];
        let mut digests: Vec<_> = others.iter().map(|rules| digest(rules)).chain([0, chat]).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), others.len() + 2);
    }

    #[test]
    fn a_digest_is_the_same_in_all_versions() {
        assert_eq!(digest(&["chat.>: history=1000"]), 0x4319_6e4f);
    }
}
