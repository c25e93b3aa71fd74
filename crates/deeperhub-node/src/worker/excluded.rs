//! Messages that exclude their publisher.

use deeperhub_listener::Multicast;
use deeperhub_protocol::Position;
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::{EncodedDelivery, ServerMessage};

use crate::delivery::{Delivery, Sequenced};
use crate::planted::planted;

/// Returns the `position` that an excluded publisher gets in the place of its message; `None` if it
/// needs none.
///
/// A client fills the place with the position in `published` if the offset before is its own. The
/// offsets of a store can have holes, and then a client cannot tell whether it missed a message in
/// between. The worker can: the publisher got all that came before the delivery.
pub(super) fn position_frame(delivery: &Delivery) -> Option<Frame> {
    let sequenced = delivery.sequenced.as_ref().filter(|sequenced| sequenced.is_mirrored)?;
    let position = position_after_hole(&delivery.frame, sequenced)?;
    if planted!(OwnPositionNotTold) {
        return None;
    }
    Some(ServerMessage::Position { topic: &sequenced.topic, position }.to_frame())
}

/// Returns the position of a message if offsets before it belong to no message.
fn position_after_hole(frame: &Multicast, sequenced: &Sequenced) -> Option<Position> {
    let position = EncodedDelivery::parse(frame.frame().as_bytes())?.position()?;
    let (epoch, before) = (sequenced.before.epoch(), sequenced.before.offset());
    (epoch == position.epoch && before + 1 < position.offset).then_some(position)
}
