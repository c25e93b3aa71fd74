//! Faults of nodes and of the store, and their end.

use std::time::Duration;

use super::super::real_clients::{CLIENTS, RealClients as _, Surroundings as _};
use super::Simulation;
use super::client::Line;
use super::node::Node;
use super::operation::TOPICS;

/// Time within which nodes look at quiet topics: the second check after the last message.
const LOOK_TIME: Duration = Duration::from_secs(9);

/// More messages than a topic of the shared stream has at the end.
const MORE_THAN_LIMIT: usize = 13;

impl Simulation {
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].is_none() {
            self.incarnation += 1;
            self.nodes[node] = Some(Node::new(node, self.incarnation, &self.settings, self.times));
        }
    }

    pub(super) fn crash(&mut self, node: usize, late: usize) {
        self.drop_link(node, late);
        self.nodes[node] = None;
        let lines = self.lines.iter_mut();
        lines.filter(|line| line.connection.is_some_and(|(of, ..)| of == node)).for_each(Line::on_end);
    }

    /// Cuts the clients of a node, which connect to another one.
    pub(super) fn move_clients(&mut self, node: usize, to: usize) {
        for client in 0..CLIENTS {
            let line = &mut self.lines[usize::from(client)];
            if line.connection.is_some_and(|(of, ..)| of == node) {
                line.node = to;
                self.cut(client);
            }
        }
    }

    /// Fails over, and then lets a node that has just started publish before the others are back.
    pub(super) fn publish_after_loss(
        &mut self,
        node: usize,
        lag: usize,
        topics: impl Iterator<Item = usize>,
    ) -> Result<(), String> {
        self.crash(node, 0);
        self.start(node);
        self.fail_over(lag, 0);
        self.connect_link(node);
        topics.for_each(|topic| self.publish(node, topic, 10));
        self.send(node);
        self.execute(node, usize::MAX)?;
        Ok(())
    }

    /// Ends all faults, and lets all arrive.
    pub(super) fn end_faults(&mut self) -> Result<(), String> {
        self.paused_until = Duration::ZERO;
        for node in 0..self.nodes.len() {
            self.start(node);
            self.connect_link(node);
            if let Some(node) = &self.nodes[node] {
                node.set_rules(&self.settings, 0);
            }
        }
        for client in 0..CLIENTS {
            self.set_speed(client, 1 << 20);
            self.clients[usize::from(client)].failures = 0;
        }
        self.converge(|simulation| simulation.check_converged(false))?;
        if self.settings.seed.is_multiple_of(2) {
            self.rewrite()?;
        } else {
            self.lose_newest()?;
        }
        // From here on, every topic has a message that all must get.
        for topic in TOPICS {
            self.publish(0, topic, 10);
        }
        self.converge(|simulation| simulation.check_converged(true))
    }

    /// Loses a message on its way to the nodes. No later message and no new connection tells of it.
    fn lose_newest(&mut self) -> Result<(), String> {
        let topic = TOPICS[(self.settings.seed / 2) as usize % TOPICS.len()];
        self.publish(0, topic, 10);
        self.send(0);
        self.execute(0, usize::MAX)?;
        (0..self.nodes.len()).for_each(|node| self.lose(node, usize::MAX));
        self.converge(|simulation| simulation.check_converged(false))
    }

    /// Loses messages that all nodes have. A node that has just started appends others in their places
    /// before the others are back.
    fn rewrite(&mut self) -> Result<(), String> {
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
        // In some runs, all that the nodes know of the lost messages is that one has appended them. In
        // others, no such node is left, and the others have looked at the stream, which the topic shares
        // with theirs.
        let knowledge = if self.settings.is_sparse { self.settings.seed / 14 % 3 } else { 0 };
        let is_followed =
            self.clients.iter().flat_map(|client| &client.handles).any(|view| view.topic == lost);
        let is_publisher_lost = knowledge == 1 && !is_followed;
        let publisher = if is_publisher_lost { last } else { 0 };
        self.replicas.clear();
        (0..2).for_each(|_| self.publish(publisher, lost, 10));
        if knowledge == 2 {
            self.send(publisher);
            self.execute(publisher, usize::MAX)?;
            self.confirm(publisher)?;
            (0..self.nodes.len()).for_each(|node| self.lose(node, usize::MAX));
        } else {
            self.exchange()?;
        }
        if is_publisher_lost {
            self.advance(LOOK_TIME, true)?;
        }
        self.publish_after_loss(last, 1, taken.into_iter())?;
        // All nodes compare the stream when they connect. Later, the messages that have taken the places
        // of the lost ones can have reached their age.
        self.pass_second()?;
        self.exchange()?;
        self.check_streams()?;
        self.converge(|simulation| simulation.check_converged(false))
    }
}
