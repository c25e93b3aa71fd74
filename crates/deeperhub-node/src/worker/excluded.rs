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

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use deeperhub_router::DeliveryFlow;

    use super::*;
    use crate::mirrors::test_hub::{EPOCH, TestHub};

    /// Returns the text of the frame in the place of a live message.
    fn frame_of(offset: u64, previous: u64) -> Option<String> {
        let mut node = TestHub::new();
        let read = node.follow(1);
        let first = node.stored(1, previous, 0, 0);
        node.read(read, TestHub::range(previous, &[first], None));
        let message = node.stored(2, offset, previous, 7);
        node.live(&message);
        let mut frames = Vec::new();
        let _ = node.shard.poll_deliver(&mut Context::from_waker(Waker::noop()), |_, delivery| {
            frames.push(position_frame(delivery));
            DeliveryFlow::Continue
        });
        assert_eq!(frames.len(), 1, "the subscriber gets the message");
        let frame = frames.pop().flatten()?;
        let text = String::from_utf8_lossy(frame.as_bytes()).into_owned();
        text.find(r#"{"type""#).map(|start| text[start..].to_owned())
    }

    #[test]
    fn a_position_replaces_a_message_after_offsets_of_no_message() {
        let epoch = deeperhub_protocol::Epoch::from_bits(EPOCH);
        let (time, topic) = (EPOCH + 7, crate::mirrors::test_hub::TOPIC);
        let position = format!(
            r#"{{"type":"position","data":{{"topic":"{topic}","time":{time},"epoch":"{epoch}","offset":9}}}}"#
        );
        assert_eq!(frame_of(9, 5), Some(position));
        assert_eq!(frame_of(6, 5), None, "`published` fills the hole");
    }
}
