//! Bugs between a node and the applications, which the applications must find.

use std::cell::Cell;

/// A bug of what connects a node, its clients and their applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum GlueBug {
    /// A delivery does not reach the client.
    DeliveryLost,
    /// A message is handed over twice.
    EventRepeated,
    /// Two events change their places.
    EventsSwapped,
    /// A gap is not handed over.
    GapHidden,
    /// The node is not told that a publish is repeated.
    OnceForgotten,
    /// A publish is answered, and not made.
    PublishNotMade,
}

thread_local! {
    static PLANTED: Cell<Option<GlueBug>> = const { Cell::new(None) };
}

/// Returns `true` if this thread has planted a bug.
pub(in super::super) fn is_loose(bug: GlueBug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a bug for the simulations of this thread, or removes it.
pub(in super::super) fn plant_glue(bug: Option<GlueBug>) {
    PLANTED.set(bug);
}
