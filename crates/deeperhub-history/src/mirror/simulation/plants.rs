//! Bugs that the simulation must find. The code has a place for each of them, which only tests
//! compile.

use std::cell::Cell;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug { $($(#[doc = $doc])* $name,)* }

        impl Bug {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

bugs! {
    /// A live message that the mirror has is applied again.
    LiveDuplicateApplied,
    /// A live message is applied although those before it are not there.
    HoleIgnored,
    /// A live message of an older epoch is taken.
    OldEpochTaken,
    /// A live message of a newer epoch is applied to the present stream.
    LiveEpochIgnored,
    /// The messages that wait are forgotten when a read is answered.
    PendingForgotten,
    /// The messages that wait are not bounded.
    PendingUnbounded,
    /// A second read is asked for while one is under way.
    TwoReads,
    /// An answer of a read that was given up is taken.
    LateAnswerTaken,
    /// An answer of an older epoch than that of a live message is taken.
    StaleAnswerTaken,
    /// The mirror does not read on.
    ReadEndsEarly,
    /// A read starts one message too late.
    ReadTooFar,
    /// Missing messages are skipped without a step.
    MissingNotTold,
    /// Lost messages are told as trimmed.
    ReasonsSwapped,
    /// A new epoch is not told.
    EpochNotTold,
    /// A message that the store has twice is applied twice.
    StoreDuplicateApplied,
    /// `prev` of a message is the offset of a duplicate.
    DuplicateTold,
    /// A store that has lost its newest messages is not noticed.
    BehindIgnored,
    /// One late replica is enough to give up what the store has.
    BehindAtOnce,
    /// The loss of the last live message is not noticed.
    AheadIgnored,
    /// A read that the disconnect ended is waited for.
    DisconnectLeavesRead,
    /// The first check after a disconnect decides nothing.
    DisconnectForgotten,
    /// A live message after a disconnect is applied before the check.
    UncheckedLiveApplied,
    /// A failed read is not tried again.
    RetryForgotten,
    /// A position that the mirror does not have is judged.
    AheadSubscriberAnswered,
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
