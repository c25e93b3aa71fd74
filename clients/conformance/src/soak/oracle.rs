//! A journal of what was published and seen, which finds where the two differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::OWN_TOPIC;

/// One topic. The messages of a topic are numbered in the order of their publishes.
#[derive(Debug, Default)]
struct Journal {
    /// Numbers that were answered with success.
    acknowledged: BTreeSet<u64>,
    /// Numbers that the application was handed.
    seen: BTreeSet<u64>,
    /// Number that was handed over last.
    last: u64,
    /// `true` if a gap was told after the message that was handed over last.
    has_gap: bool,
    /// Numbers between which a gap was told.
    gaps: Vec<(u64, u64)>,
    is_live: bool,
}

/// Compares what a client hands over with what was published.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    topics: BTreeMap<String, Journal>,
    /// The client's own publishes that it must not be handed.
    excluded: BTreeSet<u64>,
    /// The client's own publishes without a result.
    unanswered: BTreeSet<u64>,
    /// The client's own publishes without a result at a restart of the hub. It forgets `once`, so
    /// they may be stored twice, and the client does not learn the position of the first.
    may_repeat: BTreeSet<u64>,
    violations: Vec<String>,
    messages: u64,
    gaps: u64,
    connections: u64,
    failed_publishes: u64,
    repeats: u64,
}

impl Oracle {
    /// Notes a publish of the backend that the hub has answered.
    pub(super) fn published(&mut self, topic: &str, n: u64) {
        self.topics.entry(topic.to_owned()).or_default().acknowledged.insert(n);
    }

    /// Notes a publish that is given to the client.
    pub(super) fn own_publish(&mut self, n: u64, excludes_self: bool) {
        self.unanswered.insert(n);
        if excludes_self {
            self.excluded.insert(n);
        }
    }

    /// Notes that the hub ends or has started.
    pub(super) fn hub_restarts(&mut self) {
        self.may_repeat.extend(&self.unanswered);
    }

    /// Returns the number of topics that were live once.
    pub(super) fn live_topics(&self) -> usize {
        self.topics.values().filter(|journal| journal.is_live).count()
    }

    /// Takes an event of the driver.
    pub(super) fn observe(&mut self, event: &Value) {
        let name = event["as"].as_str().unwrap_or_default();
        match event["event"].as_str().unwrap_or_default() {
            "state" if event["state"] == "open" => self.connections += 1,
            "state" if event["state"] == "closed" => {
                self.violations.push(format!("the client gave up: {event}"))
            }
            "subscription" if event["state"] == "live" => {
                self.topics.entry(name.to_owned()).or_default().is_live = true;
            }
            "subscription" if event["state"] == "ended" => {
                self.violations.push(format!("a subscription ended: {event}"));
            }
            "gap" => {
                self.gaps += 1;
                self.topics.entry(name.to_owned()).or_default().has_gap = true;
            }
            "message" => self.receive(name, event),
            "result" => self.answer(name, event),
            "error" if matches!(event["code"].as_str(), Some("hole" | "handler_failed" | "internal")) => {
                self.violations.push(format!("an error that must not be: {event}"));
            }
            "" => self.violations.push(format!("a line that is no event: {event}")),
            _ => {}
        }
    }

    fn receive(&mut self, topic: &str, event: &Value) {
        self.messages += 1;
        let Some(n) = event["message"]["n"].as_u64() else {
            return self.violations.push(format!("a message that nobody published: {event}"));
        };
        if topic == OWN_TOPIC && self.may_repeat.contains(&n) {
            self.repeats += 1;
        } else if topic == OWN_TOPIC && self.excluded.contains(&n) {
            self.violations.push(format!("the client was handed its own {n}, which excludes it"));
        }
        let journal = self.topics.entry(topic.to_owned()).or_default();
        if n <= journal.last && !(topic == OWN_TOPIC && self.may_repeat.contains(&n)) {
            self.violations.push(format!("{topic}: {n} after {}", journal.last));
        }
        if std::mem::take(&mut journal.has_gap) {
            journal.gaps.push((journal.last, n));
        }
        journal.seen.insert(n);
        journal.last = journal.last.max(n);
    }

    fn answer(&mut self, name: &str, event: &Value) {
        let Some(n) = name.parse().ok().filter(|n| self.unanswered.remove(n)) else {
            return self.violations.push(format!("a result that nobody waits for: {event}"));
        };
        if event["value"].is_object() {
            if !self.excluded.contains(&n) {
                self.published(OWN_TOPIC, n);
            }
        } else {
            self.failed_publishes += 1;
        }
    }

    /// Returns `true` if all that was acknowledged has been handed over or told, and all publishes
    /// have a result.
    pub(super) fn is_complete(&self) -> bool {
        self.unanswered.is_empty()
            && self.topics.values().all(|journal| {
                journal.has_gap || journal.acknowledged.last().is_none_or(|last| *last <= journal.last)
            })
    }

    /// Returns all that was wrong.
    pub(super) fn finish(&mut self) -> Vec<String> {
        let mut violations = std::mem::take(&mut self.violations);
        for (topic, journal) in &mut self.topics {
            if journal.has_gap {
                journal.gaps.push((journal.last, u64::MAX));
            }
            let told = |n: u64| journal.gaps.iter().any(|(after, before)| *after < n && n < *before);
            for n in journal.acknowledged.difference(&journal.seen).filter(|n| !told(**n)) {
                violations.push(format!(
                    "{topic}: {n} was acknowledged, but neither handed over nor told as a gap"
                ));
            }
        }
        if let Some(n) = self.unanswered.first() {
            violations
                .push(format!("{} publishes have no result, the first of them {n}", self.unanswered.len()));
        }
        violations
    }
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acknowledged: usize = self.topics.values().map(|journal| journal.acknowledged.len()).sum();
        write!(
            f,
            "{} connections, {acknowledged} messages acknowledged, {} handed over, {} gaps told, {} publishes failed, \
             {} handed over whose `once` a restart forgot",
            self.connections, self.messages, self.gaps, self.failed_publishes, self.repeats
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(topic: &str, n: u64) -> Value {
        json!({"event": "message", "as": topic, "topic": topic, "message": {"n": n}})
    }

    fn oracle(acknowledged: &[u64], events: &[Value]) -> Oracle {
        let mut oracle = Oracle::default();
        acknowledged.iter().for_each(|n| oracle.published("t", *n));
        events.iter().for_each(|event| oracle.observe(event));
        oracle
    }

    #[test]
    fn a_run_without_faults_is_complete() {
        let mut oracle =
            oracle(&[1, 2, 4], &[message("t", 1), message("t", 2), message("t", 3), message("t", 4)]);
        assert!(oracle.is_complete());
        assert_eq!(oracle.finish(), [""; 0]);
    }

    #[test]
    fn each_fault_is_found() {
        let gap = json!({"event": "gap", "as": "t", "reason": "epoch"});
        let lost = || vec![message("t", 1), message("t", 3)];
        assert_eq!(oracle(&[1, 2, 3], &lost()).finish().len(), 1);
        assert_eq!(
            oracle(&[1, 2, 3], &[lost()[0].clone(), gap.clone(), lost()[1].clone()]).finish(),
            [""; 0]
        );
        // The gap stands elsewhere.
        assert_eq!(oracle(&[1, 2, 3], &[lost(), vec![gap.clone()]].concat()).finish().len(), 1);
        assert_eq!(oracle(&[], &[message("t", 1), message("t", 1)]).finish().len(), 1);
        assert_eq!(oracle(&[], &[message("t", 2), message("t", 1)]).finish().len(), 1);
        let oracle = oracle(&[1], &[]);
        assert!(!oracle.is_complete());
        assert_eq!({ oracle }.finish().len(), 1);
    }

    #[test]
    fn own_publishes_are_answered_once_and_excluded_ones_not_handed_over() {
        let mut oracle = Oracle::default();
        oracle.own_publish(1, true);
        oracle.own_publish(2, false);
        let result = |n: u64| json!({"event": "result", "as": n.to_string(), "value": {"offset": n}});
        oracle.observe(&result(1));
        assert!(!oracle.is_complete());
        oracle.observe(&result(2));
        assert!(!oracle.is_complete());
        oracle.observe(&message(OWN_TOPIC, 2));
        assert!(oracle.is_complete());
        oracle.observe(&result(2));
        oracle.observe(&message(OWN_TOPIC, 1));
        assert_eq!(oracle.finish().len(), 3);
    }

    #[test]
    fn a_publish_without_answer_may_be_repeated_over_a_restart() {
        let mut oracle = Oracle::default();
        oracle.own_publish(1, false);
        oracle.own_publish(2, true);
        oracle.hub_restarts();
        oracle.own_publish(3, false);
        for n in [1, 1, 2] {
            oracle.observe(&message(OWN_TOPIC, n));
        }
        for n in 1..=3 {
            oracle.observe(&json!({"event": "result", "as": n.to_string(), "value": {"offset": n}}));
        }
        oracle.observe(&message(OWN_TOPIC, 3));
        assert_eq!(oracle.finish(), [""; 0]);
        oracle.observe(&message(OWN_TOPIC, 3));
        assert_eq!(oracle.finish().len(), 1);
    }
}
