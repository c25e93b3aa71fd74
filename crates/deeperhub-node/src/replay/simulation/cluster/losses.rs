//! Losses at the end of a run, each of which one rule of the nodes has to notice.

use std::time::Duration;

use super::super::real_clients::{CLIENTS, ClientOperation, RealClients as _, Surroundings as _};
use super::Simulation;
use super::operation::TOPICS;

/// Time within which nodes look at quiet topics: the second check after the last message.
const LOOK_TIME: Duration = Duration::from_secs(9);

/// More messages than a topic of the shared stream has at the end.
const MORE_THAN_LIMIT: usize = 13;

/// How nodes know of messages that the store loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Followers got them.
    Live,
    /// Followers got them, and are connected again when others take their places.
    LiveAgain,
    /// One node has appended them, and nobody got them.
    Appended,
    /// The node that has appended them has ended. The others have looked at the stream, which the
    /// topic shares with theirs.
    Looked,
}

impl Simulation {
    /// Loses messages in a way that the seed chooses.
    pub(super) fn lose_at_end(&mut self) -> Result<(), String> {
        let seed = self.settings.seed;
        if !seed.is_multiple_of(2) {
            return self.lose_newest();
        }
        match seed / 14 % 5 {
            0..3 if !self.settings.is_sparse => self.rewrite(Knowledge::Live),
            _ if !self.settings.is_sparse => self.hide_rewritten(),
            0 => self.rewrite(Knowledge::Live),
            1 => self.rewrite(Knowledge::LiveAgain),
            2 => self.rewrite(Knowledge::Appended),
            3 => self.rewrite(Knowledge::Looked),
            _ if seed.is_multiple_of(4) => self.lose_before_comparison(),
            _ => self.replace_before_append(),
        }
    }

    /// Loses a message on its way to the nodes. No later message and no new connection tells of it.
    fn lose_newest(&mut self) -> Result<(), String> {
        let topic = TOPICS[(self.settings.seed / 2) as usize % TOPICS.len()];
        self.append_unseen(0, topic, 1)?;
        self.converge(|simulation| simulation.check_converged(false))
    }

    /// Loses messages that nodes know. A node that has just started appends others in their places
    /// before the others are back.
    fn rewrite(&mut self, knowledge: Knowledge) -> Result<(), String> {
        let last = self.nodes.len() - 1;
        let [first, second, .., third] = TOPICS;
        // Topics that share a stream can take each other's positions.
        let (lost, taken) = match self.settings.seed / 2 % 7 {
            _ if !self.settings.is_sparse => (first, vec![first; 3]),
            0 => (first, vec![first; 3]),
            1 => (first, vec![second, first, third]),
            2 => (first, vec![second; 3]),
            3 => (second, vec![first, third, second]),
            4 => (third, vec![first, second, second]),
            5 => (second, vec![third, second, first]),
            // The limit removes the message that takes the last lost position.
            _ => (second, [vec![first], vec![third; MORE_THAN_LIMIT]].concat()),
        };
        self.replicas.clear();
        match knowledge {
            Knowledge::Live | Knowledge::LiveAgain => {
                (0..2).for_each(|_| self.publish(0, lost, 10));
                self.exchange()?;
            }
            Knowledge::Appended => {
                self.append_unseen(0, lost, 2)?;
                self.confirm(0)?;
            }
            Knowledge::Looked => {
                self.append_unseen(last, lost, 2)?;
                // Followers of the topic read it meanwhile.
                self.advance(LOOK_TIME, true)?;
            }
        }
        self.publish_after_loss(last, 1, taken.into_iter(), knowledge == Knowledge::LiveAgain)?;
        if knowledge == Knowledge::LiveAgain {
            for node in 0..last {
                self.pass(node, usize::MAX)?;
            }
        }
        self.check_replaced()
    }

    /// Loses a message, and gives its position to another one. Whoever had the lost one gets the message
    /// after it live, before anything was compared.
    fn hide_rewritten(&mut self) -> Result<(), String> {
        let (topic, last) = (TOPICS[0], self.nodes.len() - 1);
        self.replicas.clear();
        for _ in 0..2 {
            self.publish(0, topic, 10);
            self.exchange()?;
        }
        self.publish_after_loss(last, 0, [topic].into_iter(), false)?;
        self.confirm(last)?;
        (0..last).for_each(|node| self.connect_link(node));
        self.publish(last, topic, 10);
        self.send(last);
        self.execute(last, usize::MAX)?;
        for node in 0..last {
            self.pass(node, usize::MAX)?;
        }
        self.check_replaced()
    }

    /// Loses messages that a node got before it compared the stream. Nobody follows their topic there
    /// any more when the node appends others.
    fn lose_before_comparison(&mut self) -> Result<(), String> {
        let (topic, last) = (TOPICS[0], self.nodes.len() - 1);
        self.cut_link(0, 0);
        self.connect_link(0);
        self.replicas.clear();
        (0..2).for_each(|_| self.publish(last, topic, 10));
        self.send(last);
        self.execute(last, usize::MAX)?;
        self.pass(0, usize::MAX)?;
        self.move_clients(0, last);
        self.crash(last, 0);
        self.start(last);
        self.fail_over(1, 0);
        self.connect_link(0);
        (0..3).for_each(|_| self.publish(0, topic, 10));
        self.check_replaced()
    }

    /// Replaces a stream that has lost messages while an append of a lost connection is on its way.
    fn replace_before_append(&mut self) -> Result<(), String> {
        let (topic, last) = (TOPICS[0], self.nodes.len() - 1);
        let is_at_first =
            |client: &u8| self.lines[usize::from(*client)].connection.is_some_and(|(node, ..)| node == 0);
        let Some(client) = (0..CLIENTS).find(is_at_first) else { return Ok(()) };
        self.replicas.clear();
        self.append_unseen(last, topic, 2)?;
        self.confirm(last)?;
        self.fail_over(1, 0);
        self.connect_link(0);
        self.apply_to_client(ClientOperation::Publish {
            client,
            topic,
            bytes: 10,
            is_excluded: false,
            count: 1,
        })?;
        while self.execute_next(client)? {}
        self.send(0);
        // The node finds the stream, and the server executes nothing yet.
        self.execute(0, 0)?;
        self.cut_link(0, usize::MAX);
        self.connect_link(last);
        self.pump(last)?;
        self.execute_late(0, usize::MAX)?;
        self.check_replaced()
    }

    /// Appends messages that no node gets.
    fn append_unseen(&mut self, node: usize, topic: usize, count: usize) -> Result<(), String> {
        (0..count).for_each(|_| self.publish(node, topic, 10));
        self.send(node);
        self.execute(node, usize::MAX)?;
        (0..self.nodes.len()).for_each(|node| self.lose(node, usize::MAX));
        Ok(())
    }

    /// Checks that nodes have noticed what the store has lost, and lets all arrive.
    fn check_replaced(&mut self) -> Result<(), String> {
        // All nodes compare the streams when they connect. Later, the messages that have taken the
        // places of the lost ones can have reached their age.
        self.pass_second()?;
        self.exchange()?;
        self.check_streams()?;
        self.converge(|simulation| simulation.check_converged(false))
    }
}
