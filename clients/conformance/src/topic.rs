//! Topics as scenes speak of them.

use serde_json::{Value, json};

/// A topic with history, in one epoch.
#[derive(Clone)]
pub(crate) struct Topic {
    pub(crate) name: &'static str,
    pub(crate) epoch: &'static str,
}

impl Topic {
    pub(crate) const fn new(name: &'static str, epoch: &'static str) -> Self {
        Self { name, epoch }
    }

    /// Returns the same topic after counting has started anew.
    pub(crate) const fn in_epoch(&self, epoch: &'static str) -> Self {
        Self { name: self.name, epoch }
    }

    /// Returns the time of a message, which follows from its offset.
    pub(crate) fn time(offset: u64) -> u64 {
        1_796_000_000_000 + offset
    }

    /// Returns a position: the three keys that stand together.
    pub(crate) fn position(&self, offset: u64) -> Value {
        json!({"epoch": self.epoch, "offset": offset, "time": Self::time(offset)})
    }

    /// Returns `data` of a server message with a position and more keys.
    pub(crate) fn at(&self, offset: u64, more: Value) -> Value {
        merge(merge(json!({"topic": self.name}), self.position(offset)), more)
    }

    /// Returns the payload of the message with this offset.
    pub(crate) fn payload(offset: u64) -> Value {
        json!({"n": offset})
    }

    /// Returns `data` of a delivery.
    pub(crate) fn delivery(&self, offset: u64) -> Value {
        self.at(offset, json!({"message": Self::payload(offset), "from": "n1.0-1-2"}))
    }
}

/// Adds the keys of the second object to the first.
pub(crate) fn merge(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}
