//! Bugs of the model broker, which the oracle must find. Each has a seed that finds it.

use std::cell::Cell;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident = $seed:literal,)*) => {
        /// A bug of the broker, or of what connects it to the nodes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum ModelBug { $($(#[doc = $doc])* $name,)* }

        impl ModelBug {
            /// All bugs, each with a seed that finds it.
            pub(super) const ALL: &[(Self, u64)] = &[$((Self::$name, $seed),)*];
        }
    };
}

bugs! {
    /// A repeated message is appended again.
    ResendAppended = 0,
    /// A repeated publish with `once` is appended again.
    OnceIgnored = 42,
    /// A message names the wrong one before it.
    PrevWrong = 7,
    /// A read lacks the newest message.
    ReadLacksLast = 0,
    /// A new epoch has the number of the one before.
    EpochReused = 4,
    /// The offset of an append is told wrong.
    OutcomeWrong = 3,
    /// Two outcomes of a batch are exchanged.
    OutcomesSwapped = 0,
    /// A batch whose connection was lost is not sent again.
    BatchForgotten = 52,
    /// JetStream: the newest known message is not compared on a new connection.
    TimesNotCompared = 6,
    /// JetStream: a look at the newest sequence does not tell which message that is.
    LookNotIdentified = 112,
    /// JetStream: the newest message that the node has appended is not compared.
    AppendNotIdentified = 34,
    /// JetStream: a known message that the limits have removed proves nothing.
    RemovedNotCompared = 12,
    /// JetStream: live messages count before the stream was compared.
    LiveHidesLoss = 20,
    /// JetStream: an append gets a sequence that the node knows, and stays.
    SequenceTakenAgain = 56,
    /// JetStream: an append of an old stream gets into a new one.
    ExpectedStreamIgnored = 138,
    /// JetStream: the marks of cleared topics are not read.
    MarksUnread = 48,
    /// JetStream: a mark that the node knows is not compared on a new connection.
    MarksNotCompared = 13130,
    /// JetStream: messages that smaller limits have removed count as kept by larger ones.
    RaisedLimitsForgotten = 1477,
    /// JetStream: a read vouches for what the limits have removed.
    WholeTooEarly = 105,
}

thread_local! {
    static BROKEN: Cell<Option<ModelBug>> = const { Cell::new(None) };
}

/// Returns `true` if this thread has planted a bug.
pub(super) fn is_broken(bug: ModelBug) -> bool {
    BROKEN.get() == Some(bug)
}

/// Plants a bug for the simulations of this thread, or removes it.
pub(super) fn break_model(bug: Option<ModelBug>) {
    BROKEN.set(bug);
}
