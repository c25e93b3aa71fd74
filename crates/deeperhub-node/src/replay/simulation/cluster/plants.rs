//! Bugs of the model broker, which the oracle must find.

use std::cell::Cell;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A bug of the broker, or of what connects it to the nodes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum ModelBug { $($(#[doc = $doc])* $name,)* }

        impl ModelBug {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

bugs! {
    /// A repeated message is appended again.
    ResendAppended,
    /// A repeated publish with `once` is appended again.
    OnceIgnored,
    /// A message names the wrong one before it.
    PrevWrong,
    /// A read lacks the newest message.
    ReadLacksLast,
    /// A new epoch has the number of the one before.
    EpochReused,
    /// The offset of an append is told wrong.
    OutcomeWrong,
    /// Two outcomes of a batch are exchanged.
    OutcomesSwapped,
    /// A batch whose connection was lost is not sent again.
    BatchForgotten,
    /// JetStream: the newest known message is not compared on a new connection.
    TimesNotCompared,
    /// JetStream: a look at the newest sequence does not tell which message that is.
    LookNotIdentified,
    /// JetStream: the newest message that the node has appended is not compared.
    AppendNotIdentified,
    /// JetStream: a known message that the limits have removed proves nothing.
    RemovedNotCompared,
    /// JetStream: live messages count before the stream was compared.
    LiveHidesLoss,
    /// JetStream: an append gets a sequence that the node knows, and stays.
    SequenceTakenAgain,
    /// JetStream: an append of an old stream gets into a new one.
    ExpectedStreamIgnored,
    /// JetStream: the marks of cleared topics are not read.
    MarksUnread,
    /// JetStream: a read vouches for what the limits have removed.
    WholeTooEarly,
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
