//! The mirror of a topic, beside the topic's stream in the table of its stripe.

use std::time::Instant;

use deeperhub_cluster::StorePosition;
use deeperhub_history::{Cursor, Mirror, ReadRequest, Stream};
use deeperhub_protocol::Epoch;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::EncodedDelivery;

use crate::metrics::GaugeUnit;
use crate::planted::planted;

/// The mirror of a topic.
#[derive(Debug)]
pub(crate) struct TopicMirror {
    pub(super) mirror: Mirror<KeptFrame>,
    /// Set if the stream was whole since somebody follows the topic.
    pub(super) warm: Option<GaugeUnit>,
    /// `true` if the topic had subscribers before its stream was whole. Their messages had no order,
    /// so they are told where they stand when it is.
    pub(super) has_early_subscribers: bool,
    /// Place at which rules have ended the topic's stream before this one, until this one is whole.
    /// No early subscriber was told a later position.
    pub(super) end: Option<Cursor>,
    /// Subscribers in this process. They follow the topic, too.
    pub(super) watchers: u32,
    /// Newest offset at the last check of the store's top.
    pub(super) checked: Option<u64>,
    /// Time at which subscribers were last told their position, while there were no messages.
    pub(super) told_at: Option<Instant>,
    /// `true` if the stream has moved on without a message, and its subscribers were not told.
    pub(super) is_untold: bool,
}

/// State of a topic for a client that subscribes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// The store must be read first: by this read, if there is one.
    Waits(Option<ReadRequest>),
}

/// Effect of a live message on the mirror.
#[derive(Debug)]
pub(crate) enum LiveEffect {
    /// The stream is not whole yet. Subscribers of patterns get the message now.
    Unordered(Option<ReadRequest>),
    /// Nobody gets the message now.
    Nothing(Option<ReadRequest>),
    /// The store has given an offset again that this node knows. This is the latest known position.
    Rewritten(StorePosition),
    /// The step is to be applied.
    Step(deeperhub_history::MirrorStep<KeptFrame>),
}

/// A mirror that the store's top is compared with.
#[derive(Debug)]
pub(crate) enum TopCheck {
    InSync,
    /// Another look must tell whether something is under way or lost.
    Differs,
    /// A read decides. `is_hole` says that the mirror lacks messages.
    Read {
        read: ReadRequest,
        is_hole: bool,
    },
    /// The store has lost messages that this node knows.
    Behind(StorePosition),
}

impl Default for TopicMirror {
    fn default() -> Self {
        // Late answers of an earlier mirror of the topic have other numbers.
        Self {
            mirror: Mirror::new(fastrand::u32(..)),
            warm: None,
            has_early_subscribers: false,
            end: None,
            watchers: 0,
            checked: None,
            told_at: None,
            is_untold: false,
        }
    }
}

impl TopicMirror {
    /// Creates the mirror of a stream that is opened now. `end` is where rules have ended the one
    /// before it.
    pub(in crate::streams) fn opened(has_subscribers: bool, end: Option<Cursor>) -> Self {
        let has_early_subscribers = has_subscribers && !planted!(EarlySubscribersForgotten);
        Self { has_early_subscribers, end, ..Self::default() }
    }

    /// Returns the place at which subscribers of the topic stand if rules end the stream at `end`.
    pub(in crate::streams) fn end(&self, end: Cursor) -> Option<Cursor> {
        if self.is_warm() { Some(end) } else { self.end }
    }

    /// Returns the place at which rules have ended the stream before this one, until this one is whole.
    pub(in crate::streams) const fn end_before(&self) -> Option<Cursor> {
        self.end
    }

    pub(super) const fn is_warm(&self) -> bool {
        self.warm.is_some()
    }

    pub(super) fn known(&self) -> Option<StorePosition> {
        self.mirror.known().map(|known| StorePosition { epoch: known.epoch, offset: known.offset })
    }

    /// Returns `true` if subscribers can be sent messages of the stream. If not, they get live messages
    /// without order until it is whole.
    pub(in crate::streams) fn is_readable(&mut self) -> bool {
        self.has_early_subscribers |= !self.is_warm();
        self.is_warm()
    }

    /// Returns `true` if the stream answers a client that wants to continue after `position`.
    pub(super) fn answers(&self, stream: &Stream<KeptFrame>, position: Option<(Epoch, u64)>) -> bool {
        let own = (stream.epoch(), stream.newest());
        self.is_warm() && (self.mirror.is_settled() || position.is_none_or(|position| position <= own))
    }

    /// Notes that the topic has subscribers, or none.
    pub(in crate::streams) fn on_followed(&mut self, is_followed: bool) {
        if !is_followed && self.watchers == 0 {
            self.mirror.on_lost_interest();
            self.warm = None;
        }
    }
}

/// Returns `true` if two frames are of different messages. The offset before a message does not
/// count, because a store need not tell it in each answer.
pub(super) fn is_other(one: &KeptFrame, other: &KeptFrame) -> bool {
    fn content(frame: &KeptFrame) -> Option<&str> {
        let data = EncodedDelivery::parse(frame.as_bytes())?.data().as_str();
        // The position comes last.
        data.rfind(r#","epoch":""#).and_then(|end| data.get(..end))
    }
    content(one) != content(other)
}
