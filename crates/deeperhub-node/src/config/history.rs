//! Configuration of topics with history.

#[cfg(feature = "disk")]
use std::path::PathBuf;
#[cfg(feature = "disk")]
use std::time::Duration;

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

/// Place where the history is kept beside the memory. Fixed at the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HistoryStore {
    /// Nowhere: the history ends with the process.
    #[default]
    Memory,
    /// A folder on a disk.
    #[cfg(feature = "disk")]
    Disk(DiskConfig),
}

/// A folder that keeps the history over a restart.
#[cfg(feature = "disk")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskConfig {
    /// The folder, which belongs to one process at a time. It is created if needed.
    pub folder: PathBuf,
    /// Time after which a message is on the disk for good. A crash loses what was published since.
    /// With `None`, messages are written as soon as possible. Default 100 ms.
    pub sync_interval: Option<Duration>,
    /// Maximum bytes of messages in the folder. Over it, the oldest file is dropped whole, but never
    /// the newest. `None`, the default, is no limit.
    pub max_bytes: Option<u64>,
}

#[cfg(feature = "disk")]
impl DiskConfig {
    /// Creates a configuration with the defaults.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), sync_interval: Some(Duration::from_millis(100)), max_bytes: None }
    }

    /// Returns the settings of the store. `max_message_bytes` is the length of the longest message.
    pub(crate) fn options(&self, max_message_bytes: usize) -> deeperhub_store::Options {
        let mut options = deeperhub_store::Options::default();
        // Some of the longest messages must fit into the queue.
        options.queue_bytes = options.queue_bytes.max(max_message_bytes.saturating_mul(4));
        options.sync = match self.sync_interval {
            Some(interval) => deeperhub_store::SyncPolicy::Interval(interval),
            None => deeperhub_store::SyncPolicy::Always,
        };
        options.max_disk_bytes = self.max_bytes;
        options
    }
}
