//! Bugs that a simulation must find.
//!
//! The code has a place for each of them, which only tests compile. Each has a seed that finds it.

use std::cell::Cell;

macro_rules! bugs {
    (
        node { $($(#[doc = $doc:literal])* $name:ident = $seed:literal,)* }
        cluster { $($(#[doc = $cluster_doc:literal])* $cluster_name:ident = $cluster_seed:literal,)* }
    ) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug { $($(#[doc = $doc])* $name,)* $($(#[doc = $cluster_doc])* $cluster_name,)* }

        impl Bug {
            /// Bugs of a node, each with a seed that finds it.
            pub(super) const ALL: &[(Self, u64)] = &[$((Self::$name, $seed),)*];

            /// Bugs of a node in a cluster that keeps streams, each with a seed that finds it.
            pub(super) const OF_CLUSTER: &[(Self, u64)] = &[$((Self::$cluster_name, $cluster_seed),)*];
        }
    };
}

bugs! {
    node {
        /// A replay ends one message before the newest one.
        ReplayEndsEarly = 18,
        /// A subscription is live before its replay has ended.
        LiveBeforeReplayEnds = 0,
        /// A pattern delivers messages while a replay sends them.
        OverlapForgotten = 16,
        /// A pattern delivers queued messages again after a replay.
        ResumedTwice = 63,
        /// A later delivery overtakes a refused one.
        RefusalOvertaken = 21,
        /// A refused delivery counts as received.
        CursorTooFar = 3,
        /// Trimmed messages are skipped without a gap.
        GapNotTold = 0,
        /// A new epoch is not told in a replay.
        EpochNotTold = 6,
        /// A new epoch is not told to live subscribers.
        ClearNotTold = 0,
        /// Messages are lost without a gap when their topic loses its history.
        LostNotTold = 0,
        /// The new epoch of a topic that gets its history back is not told.
        RegainedRuleNotTold = 13,
        /// A sample does not tell what it skips.
        PrevNotBridged = 3,
        /// A changed rule does not end sampling.
        SamplingNotEnded = 0,
        /// A publisher gets its own excluded message in its replay.
        OwnReplayed = 4,
        /// A replay goes on after its subscription has ended.
        UnsubscribeLeavesReplay = 3,
        /// A replay waits for a notice that it did not ask for.
        DrainNotRequested = 0,
        /// The notice of a drained queue is ignored.
        DrainIgnored = 0,
        /// A repeated publish is recognized in another epoch.
        OnceInWrongEpoch = 1,
        /// A repeated publish is appended again.
        OnceForgotten = 0,
        /// The router keeps the topics of removed streams.
        StreamNotForgotten = 0,
        /// A second subscribe is answered with the newest position.
        SecondSubscribeAtNewest = 0,
        /// The position before a replay is one too high.
        JudgedTooHigh = 0,
    }
    cluster {
        /// An excluded publisher is not told the position of its message.
        OwnPositionNotTold = 0,
        /// Live messages of a new connection come before the node compares what it has.
        OutageLearntLate = 42,
        /// A read of the cluster's store shows no message that was replaced.
        RewriteUnread = 4,
        /// A topic with subscribers that gets a rule has no stream until another client comes.
        LateRuleIgnored = 314,
        /// Subscribers from before a stream are not told where they stand in it.
        EarlySubscribersForgotten = 1666,
        /// Messages without order tell their positions to subscribers.
        EarlyPositionTold = 157,
        /// Subscribers do not get the messages of a read.
        HealedNotTold = 0,
        /// A stream answers before it was read.
        ColdAnswered = 117,
        /// Subscribers are not told of a new epoch of the store.
        ResetNotTold = 0,
        /// Messages that the store does not have are not told.
        MissingNotTold = 133,
        /// A page of a history overtakes a gap.
        HistoryOvertakes = 15133,
        /// A message does not name the one before it.
        PrevNotSealed = 0,
        /// Quiet topics are not looked up.
        TailUnchecked = 1,
        /// Of the clients that wait for a topic, one is answered.
        ParkedForgotten = 1,
        /// The outcome of an append does not reach its publisher.
        AppendUnanswered = 0,
    }
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Returns `true` if this thread has planted a bug.
pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a bug for the simulations of this thread, or removes it.
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
