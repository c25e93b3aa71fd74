//! The kinds of runs and of connections.

use std::time::Duration;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Echo,
    Fanout,
    Topics,
    Idle,
    Churn,
    Slow,
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Fanout => "fanout",
            Self::Topics => "topics",
            Self::Idle => "idle",
            Self::Churn => "churn",
            Self::Slow => "slow",
        }
    }

    /// Whether messages are sent.
    pub(crate) fn has_messages(self) -> bool {
        !matches!(self, Self::Idle | Self::Churn)
    }
}

/// When the next message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadModel {
    /// When fewer than this many of the sender's are under way.
    ClosedLoop(u32),
    /// So many a second of all senders together.
    OpenLoop(u64),
}

/// When the sending ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCondition {
    /// After so many messages of all senders together.
    Messages(u64),
    /// After a time.
    Time {
        /// Under the same load, before anything is measured.
        warmup: Duration,
        /// What is measured.
        measured: Duration,
    },
}

/// What a connection is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Gets its own messages back.
    Echo,
    /// Subscribes and reads.
    Subscriber,
    /// Subscribes and does not read.
    SlowReader,
    /// Publishes.
    Publisher,
    /// Subscribes and closes.
    Churner,
}

impl Role {
    /// Whether it subscribes once it is welcome.
    pub(crate) fn subscribes(self) -> bool {
        matches!(self, Self::Subscriber | Self::SlowReader | Self::Churner)
    }
}

/// One connection of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionSpec {
    pub(crate) role: Role,
    /// Its number among the clients or among the publishers.
    pub(crate) number: u32,
}
