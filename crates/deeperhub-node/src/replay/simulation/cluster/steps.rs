//! Steps of nodes, workers and clocks, as operations say.

use std::sync::Arc;
use std::time::Duration;

use deeperhub_protocol::RawJson;

use super::super::real_clients::{RealClients as _, Surroundings as _};
use super::super::topics::TOPICS;
use super::node::{Node, Worker};
use super::operation::Operation;
use super::{Simulation, broker};

/// Steps in which time passes: the interval of the readers' ticks.
const TIME_STEP: Duration = Duration::from_millis(500);

/// Time for which a connection waits for the store at most.
const MAX_PARKED: Duration = Duration::from_millis(4100);

/// Bytes by which the histories of a node can be above their limit.
const BUDGET_SLACK: u64 = 4000;

impl Simulation {
    pub(super) fn apply_one(&mut self, operation: Operation) -> Result<(), String> {
        let nodes = self.nodes.len();
        match operation {
            Operation::Publish { node, topic, bytes, count } => {
                for _ in 0..count {
                    self.publish(node % nodes, topic, bytes);
                }
            }
            Operation::Client(operation) => self.apply_to_client(operation)?,
            Operation::Attempts { client, node, speed, failures } => {
                let index = usize::from(client);
                self.lines[index].node = node;
                (self.clients[index].speed, self.clients[index].failures) = (speed, failures);
            }
            Operation::Speed { client, speed } => self.set_speed(client, speed),
            Operation::Round { node, worker, budget } => {
                self.round(node % nodes, worker % usize::from(self.settings.workers), budget);
            }
            Operation::Pump { node } => drop(self.pump(node % nodes)?),
            Operation::Follow { node } => self.follow(node % nodes),
            Operation::Send { node, count } => {
                self.send(node % nodes);
                self.execute(node % nodes, count.into())?;
            }
            Operation::Confirm { node } => drop(self.confirm(node % nodes)?),
            Operation::Answer { node, count } => drop(self.answer(node % nodes, count.into())?),
            Operation::Pass { node, count } => drop(self.pass(node % nodes, count.into())?),
            Operation::Read { node } => self.nodes[node % nodes].iter_mut().for_each(Node::run),
            Operation::Lose { node, count } => self.lose(node % nodes, count.into()),
            Operation::Repeat { node } => self.repeat(node % nodes),
            Operation::CutLink { node, late } => self.cut_link(node % nodes, late),
            Operation::Connect { node } => self.connect_link(node % nodes),
            Operation::Late { node, count } => self.execute_late(node % nodes, count.into())?,
            Operation::Pause { milliseconds } => {
                self.paused_until = self.times.now + Duration::from_millis(milliseconds);
            }
            Operation::FailOver { lag, skew_ms } => self.fail_over(lag, skew_ms),
            Operation::Rewrite { lag, node, topic, count } => {
                let topics = std::iter::repeat_n(topic, count.into());
                self.publish_after_loss(node % nodes, lag, topics, false)?;
            }
            Operation::Wipe => self.wipe(),
            Operation::Evict { topic, what } => self.evict(topic, what),
            Operation::Crash { node, late } => self.crash(node % nodes, late),
            Operation::Start { node } => self.start(node % nodes),
            Operation::Move { node, to } => self.move_clients(node % nodes, to % nodes),
            Operation::Rules { node, set } => {
                if let Some(node) = &self.nodes[node % nodes] {
                    node.set_rules(&self.settings, set);
                }
            }
            Operation::Clear { node, topic } => {
                if let Some(node) = &mut self.nodes[node % nodes] {
                    node.clear(TOPICS[topic]);
                }
            }
            Operation::Sweep { node } => self.sweep(node % nodes)?,
            Operation::Advance { milliseconds, pumps } => {
                self.advance(Duration::from_millis(milliseconds), pumps)?;
            }
        }
        self.notice()
    }

    /// Publishes a message by a server.
    pub(super) fn publish(&mut self, node: usize, topic: usize, bytes: usize) {
        let (_, json) = self.new_message(bytes);
        let now = self.now();
        if let (Some(node), Ok(message)) = (&self.nodes[node], RawJson::parse(&json)) {
            // The node can be cut off.
            let _ = node.hub.publish(&broker::topic(topic), message, None, now, None);
        }
    }

    pub(super) fn set_speed(&mut self, client: u8, speed: usize) {
        let view = &mut self.clients[usize::from(client)];
        view.speed = speed;
        if let Some((node, worker, key)) = self.lines[usize::from(client)].connection
            && let Some(node) = &mut self.nodes[node]
            && let Some(socket) = node.workers[worker].sockets.open.get_mut(&key)
        {
            socket.speed = speed;
        }
    }

    /// Runs a round of a worker.
    pub(super) fn round(&mut self, index: usize, worker: usize, budget: usize) {
        let now = self.now();
        let Some(node) = &mut self.nodes[index] else { return };
        let hub = Arc::clone(&node.hub);
        node.workers[worker].handle_notices(&hub, now);
        node.workers[worker].deliver(&hub, budget, now);
        for key in node.workers[worker].sockets.ending() {
            if let Some(client) = node.close(worker, key) {
                self.lines[usize::from(client)].on_end();
            }
        }
        let Worker { replays, sockets, .. } = &mut node.workers[worker];
        for key in sockets.write() {
            replays.on_drained(key);
        }
        for socket in sockets.open.values_mut() {
            let inbox = &mut self.lines[usize::from(socket.client)].inbox;
            inbox.extend(socket.received.drain(..).map(|sent| sent.text));
        }
    }

    /// Sweeps all stripes of a node, and checks its budget.
    fn sweep(&mut self, node: usize) -> Result<(), String> {
        let Some(node) = &self.nodes[node] else { return Ok(()) };
        let (streams, router) = (&node.hub.streams, &node.hub.router);
        let now = streams.clock.seconds(self.now());
        for stripe in router.stripes() {
            while streams.sweep(router, stripe, now) {}
        }
        let Some((budget, _)) = streams.rule(&broker::topic(0)) else { return Ok(()) };
        if budget.bytes() > budget.limit_bytes() + BUDGET_SLACK {
            return Err(format!("{} bytes are kept within {}", budget.bytes(), budget.limit_bytes()));
        }
        Ok(())
    }

    /// Lets time pass. The links work meanwhile if `pumps`.
    pub(super) fn advance(&mut self, time: Duration, pumps: bool) -> Result<(), String> {
        let until = self.times.now + time;
        while self.times.now < until {
            self.times.now = until.min(self.times.now + TIME_STEP);
            let now = self.now();
            self.nodes.iter().flatten().for_each(|node| node.set_time(now));
            self.time_out();
            for node in 0..self.nodes.len() {
                if pumps {
                    self.connect_link(node);
                    self.pump(node)?;
                }
                if let Some(node) = &mut self.nodes[node] {
                    node.reader.tick();
                    node.run();
                }
                self.handle_notices(node)?;
            }
            self.notice()?;
        }
        Ok(())
    }

    fn handle_notices(&mut self, node: usize) -> Result<(), String> {
        let now = self.now();
        let Some(node) = &mut self.nodes[node] else { return Ok(()) };
        let hub = Arc::clone(&node.hub);
        for worker in &mut node.workers {
            worker.handle_notices(&hub, now);
            let is_late = |since: &Duration| self.times.now.saturating_sub(*since) > MAX_PARKED;
            if worker.parked_since.values().any(is_late) {
                return Err("a client is not answered in time".to_owned());
            }
        }
        Ok(())
    }
}
