//! Appends of nodes, which the broker executes and confirms.

use deeperhub_cluster::simulation::QueuedAppend;
use deeperhub_cluster::{AppendError, Appended, Envelope, Message, StorePosition};

use super::super::socket::Payload;
use super::Simulation;
use super::broker::index;
use super::link::Late;
use super::log::Stored;
use super::plants::{ModelBug, is_broken};
use super::store::Store;

impl Simulation {
    /// Sends a node's next batch.
    pub(super) fn send(&mut self, node: usize) {
        let time = self.node_ms(node);
        let link = &mut self.links[node];
        let Some(running) = self.nodes[node].as_ref().filter(|_| link.is_up && link.batch.is_empty()) else {
            return;
        };
        link.is_resent = !link.unconfirmed.is_empty();
        link.batch = if link.unconfirmed.is_empty() {
            running.driver.take_appends(time)
        } else {
            link.unconfirmed.drain(..).collect()
        };
        (link.executed, link.sent_at) = (0, self.times.now);
    }

    /// Executes appends of a node. Returns `false` if there are none.
    pub(super) fn execute(&mut self, node: usize, count: usize) -> Result<bool, String> {
        if self.is_paused() {
            return Ok(false);
        }
        if matches!(self.store, Store::JetStream(_)) {
            return self.execute_attempt(node, count);
        }
        let mut is_busy = false;
        for _ in 0..count {
            let link = &mut self.links[node];
            let Some(append) = link.batch.get(link.executed).cloned() else { break };
            link.executed += 1;
            is_busy = true;
            let is_resent = link.is_resent;
            let number = append.number;
            let outcome = self.append(&append, is_resent)?;
            let refused = || AppendError::Refused("late".to_owned());
            self.links[node].outcomes.push((number, outcome.ok_or_else(refused)));
        }
        Ok(is_busy)
    }

    /// Executes appends of a node at JetStream.
    fn execute_attempt(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let link = &mut self.links[node];
        let attempt = link.attempt.take();
        if link.batch.is_empty() {
            return Ok(false);
        }
        let batch = link.batch.clone();
        let mut is_busy = false;
        let mut attempt = match attempt {
            Some(attempt) => attempt,
            None => self.at_jetstream(node, |session| session.prepare(&batch))?,
        };
        for _ in 0..count {
            if attempt.is_executed() {
                break;
            }
            is_busy = true;
            self.keep_replica();
            self.at_jetstream(node, |session| session.execute(&mut attempt))?;
        }
        self.links[node].attempt = Some(attempt);
        Ok(is_busy)
    }

    /// Executes appends of lost connections.
    pub(super) fn execute_late(&mut self, node: usize, count: usize) -> Result<(), String> {
        for _ in 0..count {
            match self.links[node].late.pop_front() {
                Some(Late::Redis { append, is_resent }) => drop(self.append(&append, is_resent)?),
                Some(Late::JetStream(late)) => {
                    self.keep_replica();
                    self.at_jetstream(node, |session| session.execute_late(late))?;
                }
                None => break,
            }
        }
        Ok(())
    }

    fn append(&mut self, append: &QueuedAppend, is_resent: bool) -> Result<Option<Appended>, String> {
        let now = self.broker_ms();
        self.keep_replica();
        // JetStream was not sent this.
        let Store::Redis(server) = &mut self.store else { return Ok(None) };
        let result = server.append(append, is_resent, now, &mut self.given);
        if let Some(entry) = &result.entry {
            self.on_stored(&append.topic, entry.position, number(&entry.bytes)?)?;
            self.push(&append.topic, &entry.bytes);
        }
        Ok(result.outcome)
    }

    /// Notes a new message of the store.
    pub(super) fn on_stored(
        &mut self,
        name: &str,
        position: StorePosition,
        number: u64,
    ) -> Result<(), String> {
        let topic = index(name).ok_or("an unknown topic")?;
        let StorePosition { epoch, offset } = position;
        let is_known = self
            .nodes
            .iter()
            .flatten()
            .any(|node| super::checks::node_newest(node, name) >= Some((epoch, offset)));
        let time = self.broker_ms();
        let stored = Stored { number, time };
        let store = &self.store;
        let forgets = |before| store.forgets(name, before, time);
        let noted = self.logs[topic].append(position, stored, is_known, forgets);
        noted.map_err(|text| format!("{name}: {text}"))
    }

    /// Takes the answers of JetStream to the appends of a batch. Returns `false` if some are missing,
    /// or if some appends need another attempt.
    fn receive_acks(&mut self, node: usize) -> Result<bool, String> {
        let link = &mut self.links[node];
        let Some(attempt) = link.attempt.take_if(|attempt| attempt.is_executed() && link.is_up) else {
            return Ok(false);
        };
        let mut outcomes = std::mem::take(&mut link.outcomes);
        let next = self.at_jetstream(node, |session| session.receive(attempt, &mut outcomes))?;
        let link = &mut self.links[node];
        (link.attempt, link.outcomes) = (next, outcomes);
        Ok(link.attempt.is_none())
    }

    /// Confirms a node's batch if all of it was executed.
    pub(super) fn confirm(&mut self, node: usize) -> Result<bool, String> {
        let is_executed = match self.store {
            Store::Redis(_) => {
                let link = &self.links[node];
                !link.batch.is_empty() && link.executed == link.batch.len() && link.is_up
            }
            Store::JetStream(_) => !self.is_paused() && self.receive_acks(node)?,
        };
        if !is_executed {
            return Ok(false);
        }
        let link = &mut self.links[node];
        link.batch.clear();
        link.executed = 0;
        let mut outcomes = std::mem::take(&mut link.outcomes);
        if is_broken(ModelBug::OutcomesSwapped)
            && let [(_, first), (_, second), ..] = &mut outcomes[..]
        {
            std::mem::swap(first, second);
        }
        if let Some(running) = &self.nodes[node] {
            for (number, outcome) in outcomes {
                running.on_appended(number, outcome);
            }
        }
        Ok(true)
    }
}

/// Returns the number of a stored message.
pub(super) fn number(envelope: &[u8]) -> Result<u64, String> {
    let envelope = Envelope::parse(envelope).map_err(|error| error.to_string())?;
    let Message::Stored { payload, .. } = envelope.message else {
        return Err("no stored message".to_owned());
    };
    let Payload { n } = serde_json::from_str(payload.as_str()).map_err(|error| error.to_string())?;
    Ok(n)
}
