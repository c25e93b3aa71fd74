//! A client that follows the contract: it keeps positions and gives them back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::Epoch;
use deeperhub_protocol::message::Recover;

use super::operation::Wish;
use super::socket::{Content, Place, Sent};
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
    /// Received texts that a real client has yet to read; `None` without a real client.
    pub(super) inbox: Option<VecDeque<Arc<str>>>,
}

impl Client {
    /// Takes a received frame: its position, or its text for a real client.
    pub(super) fn receive(&mut self, sent: Sent) {
        if let Some(inbox) = &mut self.inbox {
            inbox.push_back(sent.text);
            return;
        }
        let Sent { topic, content, .. } = sent;
        match content {
            Content::Message { place: Some(place), .. }
            | Content::Gap { place, .. }
            | Content::Position { place }
            | Content::Subscribed { place: Some(place) } => {
                self.known.insert(topic, place);
            }
            Content::Message { .. } | Content::Subscribed { .. } | Content::Unsubscribed | Content::Other => {
            }
        }
    }

    /// Notes that the connection has ended. What was not read is lost.
    pub(super) fn on_end(&mut self) {
        self.connection = None;
        self.inbox.iter_mut().for_each(VecDeque::clear);
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
