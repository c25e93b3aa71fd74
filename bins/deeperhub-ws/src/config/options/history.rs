//! Rules for topics that keep messages, and the limits of all these topics together.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Size, Time, whole};
use deeperhub_node::history::Rule;

use super::MAX_COUNT;
use crate::config::values::{HistorySync, StoreKind, forget_time, history_sync, topic_rule};

/// Options under the heading "Topics with history".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Topics with history")]
pub(crate) struct HistoryOptions {
    /// Keep messages of the topics that match a pattern; may be repeated
    ///
    /// A rule is `PATTERN: key=value …`, such as `chat.>: history=1000 ttl=10m`. The keys are
    /// history, history_bytes, ttl, delivery, keep, every, ack, share and max_streams. The first
    /// rule that matches a topic counts: rules of flags come first, then those of the variable,
    /// then those of the file. They add up, to at most {MAX_RULES}. The variable separates rules by
    /// commas; a pattern with a comma needs a flag or the file. The file can also have rules as
    /// `[[topics]]` tables at its end. `config check --for TOPIC` says which rule a topic gets.
    #[arg(long, value_name = "RULE", value_parser = topic_rule)]
    pub(crate) topic: Option<Vec<Rule>>,

    /// Keep at most this many bytes of messages, of all topics together
    ///
    /// A size such as `64MiB`, or a number of bytes. Over the limit, the oldest messages of rules
    /// that use more than their share are dropped.
    #[arg(long, value_name = "SIZE")]
    pub(crate) history_bytes: Option<Size>,

    /// Keep messages of at most this many topics
    ///
    /// Another topic takes the place of the one that has been idle the longest without subscribers.
    /// If all have subscribers, a publish to another topic gets `too_many_topics`.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, MAX_COUNT))]
    pub(crate) max_streams: Option<u64>,

    /// Forget a topic that has had neither messages nor subscribers for this time
    ///
    /// Clients cannot continue at a position of a topic that is forgotten. Whole seconds.
    #[arg(long, value_name = "TIME", value_parser = forget_time)]
    pub(crate) history_forget: Option<Time>,

    /// Keep the history in memory only, or on a disk or in the cluster's broker too
    ///
    /// With `disk`, topics keep their messages over a restart, and messages that do not fit into
    /// the memory can still be read. It needs --history-dir. With `cluster`, all nodes share the
    /// histories. It needs --cluster, and is then the default; other values have no effect.
    #[arg(long, value_name = "STORE", value_enum)]
    pub(crate) history_store: Option<StoreKind>,

    /// Keep the history on disk in this folder
    ///
    /// The folder is created if needed, and belongs to one process at a time.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) history_dir: Option<PathBuf>,

    /// Write messages to the disk for good within this time
    ///
    /// A time from 10ms, or `always` for as soon as possible. A crash loses the messages of this
    /// time. A message whose rule has `ack=disk` is written at once.
    #[arg(long, value_name = "TIME", value_parser = history_sync)]
    pub(crate) history_sync: Option<HistorySync>,

    /// Keep at most this many bytes of messages on the disk
    ///
    /// A size such as `10GiB`, at least 1MiB. Over the limit, the oldest file is dropped, but never
    /// the newest. Without it, the rules' limits alone bound what is kept.
    #[arg(long, value_name = "SIZE")]
    pub(crate) history_disk_bytes: Option<Size>,
}
