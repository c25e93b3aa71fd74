//! The mirror of a topic, beside the topic's stream in the table of its stripe.

use std::time::Instant;

use deeperhub_cluster::StorePosition;
use deeperhub_history::{Mirror, ReadRequest, Stream};
use deeperhub_protocol::Epoch;
use deeperhub_protocol::frame::KeptFrame;

/// The mirror of a topic.
#[derive(Debug)]
pub(crate) struct TopicMirror {
    pub(super) mirror: Mirror<KeptFrame>,
    /// `true` if the stream was whole since somebody follows the topic.
    pub(super) is_warm: bool,
    /// Subscribers in this process. They follow the topic, too.
    pub(super) watchers: u32,
    /// Newest offset at the last check of the store's top.
    pub(super) checked: Option<u64>,
    /// Time at which subscribers were last told their position, while there were no messages.
    pub(super) told_at: Option<Instant>,
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
    Read(ReadRequest),
    /// The store has lost messages that this node knows.
    Behind(StorePosition),
}

impl Default for TopicMirror {
    fn default() -> Self {
        // Late answers of an earlier mirror of the topic have other numbers.
        Self {
            mirror: Mirror::new(fastrand::u32(..)),
            is_warm: false,
            watchers: 0,
            checked: None,
            told_at: None,
        }
    }
}

impl TopicMirror {
    pub(super) fn known(&self) -> Option<StorePosition> {
        self.mirror.known().map(|known| StorePosition { epoch: known.epoch, offset: known.offset })
    }

    /// Returns `true` if the stream answers a client that wants to continue after `position`.
    pub(super) fn answers(&self, stream: &Stream<KeptFrame>, position: Option<(Epoch, u64)>) -> bool {
        let own = (stream.epoch(), stream.newest());
        self.is_warm && (self.mirror.is_settled() || position.is_none_or(|position| position <= own))
    }

    /// Notes that the topic has subscribers, or none.
    pub(in crate::streams) fn on_followed(&mut self, is_followed: bool) {
        if !is_followed && self.watchers == 0 {
            self.mirror.on_lost_interest();
            self.is_warm = false;
        }
    }
}
