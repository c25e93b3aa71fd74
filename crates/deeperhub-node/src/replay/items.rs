//! Messages and gaps on the way from a stream to a connection.

use deeperhub_history::{Cursor, Gap};
use deeperhub_protocol::frame::KeptFrame;

/// Messages and gaps of a step. They are collected under the lock and sent after it.
#[derive(Debug, Default)]
pub(super) struct StepItems {
    pub(super) items: Vec<Item>,
    /// Encoded frames.
    pub(super) buffer: Vec<u8>,
}

impl StepItems {
    pub(super) fn push(&mut self, item: Item) {
        self.items.push(item);
    }
}

#[derive(Debug)]
pub(super) enum Item {
    Message {
        frame: KeptFrame,
        prev: Option<u64>,
    },
    Gap(Gap),
    /// The position that a subscriber has reached without a message.
    Position(Cursor),
}
