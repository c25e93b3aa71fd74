//! A client that follows the contract: it keeps positions and gives them back.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::Epoch;
use deeperhub_protocol::message::Recover;

use super::operation::Wish;
use super::socket::{Content, Place};
use super::world::recover;

/// A client across its connections.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// Worker and key of the open connection.
    pub(super) connection: Option<(usize, ConnectionKey)>,
    /// Topics to which the client subscribes again.
    pub(super) topics: BTreeSet<usize>,
    /// Last position of each topic.
    known: BTreeMap<usize, Place>,
}

impl Client {
    /// Takes the position of a received frame.
    pub(super) fn receive(&mut self, topic: usize, content: &Content) {
        match *content {
            Content::Message { place: Some(place), .. }
            | Content::Gap { place, .. }
            | Content::Subscribed { place: Some(place) } => {
                self.known.insert(topic, place);
            }
            Content::Message { .. } | Content::Subscribed { .. } | Content::Unsubscribed => {}
        }
    }

    /// Returns `history` and `recover` of a subscribe.
    pub(super) fn request(&self, topic: usize, wish: Wish) -> (u64, Option<Recover>) {
        let known = self.known.get(&topic);
        match wish {
            Wish::Live => (0, None),
            Wish::History(count) => (count, None),
            Wish::Known { is_partial, history } => {
                (history, known.map(|&(epoch, offset)| recover(epoch, offset, is_partial)))
            }
            Wish::Earlier { back, is_partial } => {
                (0, known.map(|&(epoch, offset)| recover(epoch, offset.saturating_sub(back), is_partial)))
            }
            Wish::Ahead => (0, known.map(|&(epoch, offset)| recover(epoch, offset + 1000, false))),
            Wish::WrongEpoch { is_partial, history } => {
                (history, Some(recover(Epoch::from_bits(1), 3, is_partial)))
            }
        }
    }
}
