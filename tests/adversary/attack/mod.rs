//! Attacks that stay within every limit: for each limit, one attack at exactly that limit.
//!
//! The worst-case table of `benches/` runs the same attacks, so nothing here depends on how tests
//! start a server.

mod attackers;
mod connecting;
mod messages;
mod options;
mod pace;
mod reading;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub(crate) use attackers::{AttackCounters, Attackers};
use connecting::{open_half, send_burst_and_leave, send_head_in_crumbs, shake_hands};
pub(crate) use options::{COMPRESSED, ConnectOptions, Limits, Tls};
use reading::read_slowly;
pub(crate) use reading::{close_reason, ends};

/// Delay before an attacker reconnects.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// An attack that exhausts one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Echoes of the maximum size; each reply is compared with its request.
    FullEchoes,
    /// Echoes of the maximum size from clients that never read.
    UnreadEchoes,
    /// Publishes to one topic that all attackers subscribe to.
    FanOut,
    /// The same as `FanOut` with messages of the maximum size, from clients that never read.
    UnreadFanOut,
    /// Publishes of the maximum size without a subscriber: pure decoding.
    UnwantedPublishes,
    /// Overlapping patterns of 128 levels, and publishes that match all levels except the last.
    DeepPatterns,
    /// The most subscriptions per client, each with the longest name.
    LongNames,
    /// Patterns that are subscribed to and unsubscribed from at once.
    PatternChurn,
    /// Hundreds of empty final DEFLATE blocks in front of a short message.
    EmptyBlocks,
    /// Messages in the most fragments.
    Fragments,
    /// Messages of the maximum size and nesting depth.
    DeepJson,
    /// The shortest messages.
    ShortMessages,
    /// Messages that are not JSON.
    Garbage,
    /// Binary messages of the maximum size.
    Binary,
    /// WebSocket pings.
    Pings,
    /// Tokens with an invalid signature.
    WrongTokens,
    /// Connections that are closed right after the `welcome`.
    Handshakes,
    /// Request heads in small pieces that never end (slowloris).
    SlowHeads,
    /// Connections that stop in the middle of the handshake.
    HalfOpen,
    /// Connections that send a full burst, close and reconnect.
    Reconnects,
    /// Clients that read echoes of the maximum size at 20 KB/s.
    SlowReaders,
    /// Publishes of the maximum size to topics with history.
    FullHistories,
    /// Publishes to a new topic with history each.
    NewHistories,
    /// Subscribes that replay a history, over and over.
    Replays,
    /// The same as `Replays` from clients that never read.
    UnreadReplays,
    /// Reads of as many kept messages as one message may ask for.
    HistoryReads,
}

impl Attack {
    /// All attacks, in the order of the table of limits.
    pub(crate) const ALL: [Self; 26] = [
        Self::Handshakes,
        Self::Reconnects,
        Self::SlowHeads,
        Self::HalfOpen,
        Self::FullEchoes,
        Self::UnwantedPublishes,
        Self::Binary,
        Self::EmptyBlocks,
        Self::Fragments,
        Self::DeepJson,
        Self::ShortMessages,
        Self::Garbage,
        Self::FanOut,
        Self::WrongTokens,
        Self::Pings,
        Self::DeepPatterns,
        Self::LongNames,
        Self::PatternChurn,
        Self::UnreadEchoes,
        Self::UnreadFanOut,
        Self::SlowReaders,
        Self::FullHistories,
        Self::NewHistories,
        Self::Replays,
        Self::UnreadReplays,
        Self::HistoryReads,
    ];

    /// Flags of a server whose histories the attacks fill and read. They end soon, so that nothing
    /// remains after an attack.
    pub(crate) const HISTORY_FLAGS: [&str; 4] =
        ["--topic", "attack.kept.>: history=1000 ttl=2s", "--history-forget", "1s"];

    /// Returns a short description.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FullEchoes => "echoes of the maximum size",
            Self::UnreadEchoes => "echoes of the maximum size, never read",
            Self::FanOut => "publishes to each other, 1 KiB",
            Self::UnreadFanOut => "publishes of the maximum size to each other, never read",
            Self::UnwantedPublishes => "publishes of the maximum size without subscribers",
            Self::DeepPatterns => "overlapping patterns of 128 levels",
            Self::LongNames => "subscriptions to names of 255 bytes",
            Self::PatternChurn => "pattern subscribe/unsubscribe churn",
            Self::EmptyBlocks => "empty final DEFLATE blocks",
            Self::Fragments => "messages in the most fragments",
            Self::DeepJson => "JSON of the maximum size and depth",
            Self::ShortMessages => "the shortest messages",
            Self::Garbage => "messages that are not JSON",
            Self::Binary => "binary messages of the maximum size",
            Self::Pings => "WebSocket pings",
            Self::WrongTokens => "tokens with an invalid signature",
            Self::Handshakes => "handshakes",
            Self::SlowHeads => "request heads in small pieces",
            Self::HalfOpen => "unfinished handshakes",
            Self::Reconnects => "full bursts of reconnecting clients",
            Self::SlowReaders => "slow readers, 20 KB/s",
            Self::FullHistories => "publishes of the maximum size to topics with history",
            Self::NewHistories => "publishes to new topics with history",
            Self::Replays => "replays of a history",
            Self::UnreadReplays => "replays of a history, never read",
            Self::HistoryReads => "reads of 1,000 kept messages",
        }
    }

    /// Returns the limit that the attack stays at.
    pub(crate) const fn limit(self) -> &'static str {
        match self {
            Self::FullEchoes | Self::UnwantedPublishes | Self::Binary => "--max-message-bytes",
            Self::UnreadEchoes | Self::UnreadFanOut | Self::SlowReaders => "--max-queue-bytes",
            Self::FanOut | Self::ShortMessages | Self::Garbage | Self::EmptyBlocks => "--rate-limit",
            Self::DeepPatterns | Self::LongNames | Self::PatternChurn => "--max-subscriptions",
            Self::Fragments => "--max-fragments",
            Self::DeepJson => "--max-json-depth",
            Self::Pings => "--control-rate-limit",
            Self::WrongTokens => "--token-rate-limit",
            Self::Handshakes => "--max-connections",
            Self::SlowHeads => "--max-handshake-bytes",
            Self::HalfOpen => "--handshake-timeout",
            Self::Reconnects => "--burst-rate-per-ip",
            Self::FullHistories => "--history-bytes",
            Self::NewHistories => "--max-streams",
            Self::Replays | Self::HistoryReads => "--rate-limit",
            Self::UnreadReplays => "--max-queue-bytes",
        }
    }

    /// Returns the rate that each attacker is allowed.
    pub(crate) const fn allowance(self) -> &'static str {
        match self {
            Self::Pings => "50/s",
            Self::WrongTokens => "5/s",
            Self::HistoryReads => "9/s",
            Self::Handshakes | Self::Reconnects => "no limit by default",
            Self::SlowHeads | Self::HalfOpen => "one at a time",
            Self::SlowReaders | Self::LongNames => "held",
            _ => "100/s",
        }
    }

    /// Returns `true` if the attack needs compression.
    pub(crate) const fn is_compressed_only(self) -> bool {
        matches!(self, Self::EmptyBlocks)
    }

    /// Attacks and reconnects until the future is dropped. Returns only if the server sent wrong
    /// bytes, with a description of them.
    pub(crate) async fn run(
        self,
        options: &ConnectOptions,
        client: usize,
        counters: &AttackCounters,
    ) -> String {
        loop {
            match self.attack_once(options, client, counters).await {
                AttackEnd::Closed(how) => counters.ended(how),
                AttackEnd::WrongBytes(what) => return what,
            }
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }

    async fn attack_once(
        self,
        options: &ConnectOptions,
        client: usize,
        counters: &AttackCounters,
    ) -> AttackEnd {
        let attack: BoxFuture<'_, AttackResult> = match self {
            Self::Handshakes => Box::pin(shake_hands(options, counters)),
            Self::SlowHeads => Box::pin(send_head_in_crumbs(options, counters)),
            Self::HalfOpen => Box::pin(open_half(options, counters)),
            Self::Reconnects => Box::pin(send_burst_and_leave(options, counters)),
            Self::SlowReaders => Box::pin(read_slowly(options, counters)),
            _ => Box::pin(self.send_at_rate(options, client, counters)),
        };
        attack.await.unwrap_or_else(|fault| fault)
    }
}

/// Reason that an attacker's connection ended.
#[derive(Debug)]
enum AttackEnd {
    /// The server refused or closed it, which may be how the limit is enforced.
    Closed(String),
    /// The server sent bytes that it must not send.
    WrongBytes(String),
}

/// Result of one connection. An attack runs until its connection ends, so both variants are an end.
type AttackResult = Result<AttackEnd, AttackEnd>;
