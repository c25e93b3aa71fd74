//! Bugs that a simulation must find.
//!
//! The code has a place for each of them, which only tests compile.

use std::cell::Cell;

macro_rules! bugs {
    (
        node { $($(#[doc = $doc:literal])* $name:ident,)* }
        cluster { $($(#[doc = $cluster_doc:literal])* $cluster_name:ident,)* }
    ) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug { $($(#[doc = $doc])* $name,)* $($(#[doc = $cluster_doc])* $cluster_name,)* }

        impl Bug {
            /// Bugs of a node.
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];

            /// Bugs of a node in a cluster that keeps streams.
            pub(super) const OF_CLUSTER: &[Self] = &[$(Self::$cluster_name,)*];
        }
    };
}

bugs! {
    node {
        /// A replay ends one message before the newest one.
        ReplayEndsEarly,
        /// A subscription is live before its replay has ended.
        LiveBeforeReplayEnds,
        /// A pattern delivers messages while a replay sends them.
        OverlapForgotten,
        /// A pattern delivers queued messages again after a replay.
        ResumedTwice,
        /// A later delivery overtakes a refused one.
        RefusalOvertaken,
        /// A refused delivery counts as received.
        CursorTooFar,
        /// Trimmed messages are skipped without a gap.
        GapNotTold,
        /// A new epoch is not told in a replay.
        EpochNotTold,
        /// A new epoch is not told to live subscribers.
        ClearNotTold,
        /// Messages are lost without a gap when their topic loses its history.
        LostNotTold,
        /// A sample does not tell what it skips.
        PrevNotBridged,
        /// A changed rule does not end sampling.
        SamplingNotEnded,
        /// A publisher gets its own excluded message in its replay.
        OwnReplayed,
        /// A replay goes on after its subscription has ended.
        UnsubscribeLeavesReplay,
        /// A replay waits for a notice that it did not ask for.
        DrainNotRequested,
        /// The notice of a drained queue is ignored.
        DrainIgnored,
        /// A repeated publish is recognized in another epoch.
        OnceInWrongEpoch,
        /// A repeated publish is appended again.
        OnceForgotten,
        /// The router keeps the topics of removed streams.
        StreamNotForgotten,
        /// A second subscribe is answered with the newest position.
        SecondSubscribeAtNewest,
        /// The position before a replay is one too high.
        JudgedTooHigh,
    }
    cluster {
        /// An excluded publisher is not told the position of its message.
        OwnPositionNotTold,
        /// A read of the cluster's store shows no message that was replaced.
        RewriteUnread,
        /// A topic with subscribers that gets a rule has no stream until another client comes.
        LateRuleIgnored,
        /// Messages without order tell their positions to subscribers.
        EarlyPositionTold,
        /// Subscribers do not get the messages of a read.
        HealedNotTold,
        /// A stream answers before it was read.
        ColdAnswered,
        /// Subscribers are not told of a new epoch of the store.
        ResetNotTold,
        /// Messages that the store does not have are not told.
        MissingNotTold,
        /// A message does not name the one before it.
        PrevNotSealed,
        /// Quiet topics are not looked up.
        TailUnchecked,
        /// Of the clients that wait for a topic, one is answered.
        ParkedForgotten,
        /// The outcome of an append does not reach its publisher.
        AppendUnanswered,
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
