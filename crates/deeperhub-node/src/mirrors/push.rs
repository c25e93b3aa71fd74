//! Messages, gaps and positions on the way from a mirror to the subscribers of this node.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_listener::Multicast;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_router::{Outgoing, Reach};

use crate::connection_id::ConnectionId;
use crate::delivery::{Delivery, Sequenced};
use crate::trace::ActiveSpan;
use crate::trace::fan_out::PublishStamp;

/// A message or gap for the subscribers of this node.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) frame: KeptFrame,
    pub(super) excluded: Option<ConnectionId>,
    pub(super) sequenced: Option<Sequenced>,
    /// The topic, if sent messages are observed.
    pub(super) observed: Option<Arc<str>>,
    pub(super) at: Instant,
    pub(super) reach: Reach,
    /// Span of the publish, if this node records it.
    pub(super) span: Option<Box<ActiveSpan>>,
}

impl Push {
    pub(super) fn into_outgoing(self) -> Outgoing<impl FnMut() -> Delivery> {
        let Self { frame: content, excluded, sequenced, observed, at, reach, span } = self;
        let bytes = content.len();
        // Each worker has its own reference count, so that workers do not contend for one cache line.
        let make = move || Delivery {
            frame: Multicast::new(content.to_frame()),
            excluded,
            topic: observed.clone(),
            stamp: PublishStamp::new(at, span.as_deref()),
            sequenced: sequenced.clone(),
        };
        Outgoing { bytes, make, reach }
    }
}
