//! Configuration of topics with history.

use deeperhub_history::{BudgetLimits, OnceLimits, Rules};

/// Rules and limits of topics with history. All of them can change while the node runs
/// ([`NodeHandle::set_limits`](crate::NodeHandle::set_limits)). A stream takes the new rule when it
/// is next used.
///
/// ```
/// use deeperhub_node::{Config, history::Rules};
///
/// let rules = Rules::new(["chat.>: history=1000 ttl=10m".parse()?])?;
/// let config = Config::default().with_history_rules(rules);
/// assert!(config.history.rules.keep_history());
/// # Ok::<(), deeperhub_node::history::RuleError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryLimits {
    /// Rules: which topics keep messages. The first rule that matches a topic counts. Default: no
    /// rules, so no topic keeps any.
    pub rules: Rules,
    /// Limits for all streams together. [`BudgetLimits::message_overhead`] is set by the node.
    pub budget: BudgetLimits,
    /// Limits for publishes with `once` that are remembered.
    pub once: OnceLimits,
    /// Subscribers in this process ([`NodeHandle::subscribe`](crate::NodeHandle::subscribe)).
    /// Default 1,000.
    pub max_local_subscribers: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            budget: BudgetLimits::default(),
            once: OnceLimits::default(),
            max_local_subscribers: 1000,
        }
    }
}
