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
