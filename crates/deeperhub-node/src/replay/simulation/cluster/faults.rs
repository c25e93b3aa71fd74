//! Faults of nodes and of the store, and their end.

use std::time::Duration;

use super::super::real_clients::{CLIENTS, RealClients as _, Surroundings as _};
use super::Simulation;
use super::client::Line;
use super::node::Node;
use super::operation::TOPICS;

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

    /// Fails over, and then lets a node that has just started publish before the others are back, or
    /// before they have compared the streams.
    pub(super) fn publish_after_loss(
        &mut self,
        node: usize,
        lag: usize,
        topics: impl Iterator<Item = usize>,
        are_connected: bool,
    ) -> Result<(), String> {
        self.crash(node, 0);
        self.start(node);
        self.fail_over(lag, 0);
        self.connect_link(node);
        if are_connected {
            (0..self.nodes.len()).for_each(|node| self.connect_link(node));
        }
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
        self.lose_at_end()?;
        // From here on, every topic has a message that all must get.
        for topic in TOPICS {
            self.publish(0, topic, 10);
        }
        self.converge(|simulation| simulation.check_converged(true))
    }
}
