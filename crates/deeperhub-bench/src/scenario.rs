//! Kinds of runs and of connections.

use std::time::Duration;

/// The kind of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Echo,
    Fanout,
    Topics,
    Idle,
    Churn,
    Slow,
    Recover,
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
            Self::Recover => "recover",
        }
    }

    /// Returns `true` if the run sends messages.
    pub(crate) fn has_messages(self) -> bool {
        !matches!(self, Self::Idle | Self::Churn)
    }
}

/// The rule for when a sender sends its next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadModel {
    /// The sender sends when it has fewer than this many messages in flight.
    ClosedLoop(u32),
    /// The sender sends at a fixed rate: this many messages per second of all senders together.
    OpenLoop(u64),
}

/// The point at which sending ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCondition {
    /// After this many messages of all senders together.
    Messages(u64),
    /// After a time.
    Time {
        /// Time under the same load before the measurement.
        warmup: Duration,
        /// Measured time.
        measured: Duration,
    },
    /// When all clients of `recover` have returned, which is also the measured time.
    AllReturned {
        /// Time under load before the clients are cut.
        warmup: Duration,
    },
}

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends messages and gets them back.
    Echo,
    /// Subscribes and reads.
    Subscriber,
    /// Subscribes and does not read.
    SlowReader,
    /// Publishes.
    Publisher,
    /// Subscribes and closes.
    Churner,
    /// Subscribes and reads, is cut, and returns with its positions.
    Returner,
}

impl Role {
    /// Returns `true` if the connection subscribes after the server's `welcome`.
    pub(crate) fn subscribes(self) -> bool {
        matches!(self, Self::Subscriber | Self::SlowReader | Self::Churner | Self::Returner)
    }
}

/// One connection of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionSpec {
    pub(crate) role: Role,
    /// Index among the publishers, or among the other connections.
    pub(crate) number: u32,
}
