//! The ways of real clients to the node.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use deeperhub_client::Position;
use deeperhub_client::core::Input;
use deeperhub_protocol::Epoch;

use super::super::log::TopicLog;
use super::super::real_clients::{Acknowledged, CoreClient, Log, Place, RealClients as _, Surroundings};
use super::super::topics::TOPICS;
use super::Simulation;

/// The next attempts of a client to connect.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    pub(super) worker: u8,
    /// The server refuses attempts that fail.
    pub(super) is_refused: bool,
}

impl Surroundings for Simulation {
    type Log = TopicLog;

    const MAX_HANDLES: usize = 6;

    const LAST_SECONDS: usize = 90;

    fn time(&self) -> Duration {
        self.world.now
    }

    fn parts(&mut self) -> (&mut [CoreClient], &mut [TopicLog]) {
        (&mut self.clients, &mut self.world.oracle.topics)
    }

    fn is_lossless(topic: usize) -> bool {
        ["loss.", "shut."].iter().any(|prefix| TOPICS[topic].starts_with(prefix))
    }

    fn new_message(&mut self, bytes: usize) -> (u64, String) {
        self.world.new_message(bytes)
    }

    fn open(&mut self, client: u8) -> Result<(), Input<'static>> {
        let Attempts { worker, is_refused } = self.attempts[usize::from(client)];
        let view = &mut self.clients[usize::from(client)];
        if view.failures > 0 {
            view.failures -= 1;
            let (retry_after, reason) = (Some(Duration::from_secs(1)), String::new());
            return Err(match is_refused {
                true => Input::Refused { status: 503, retry_after, reason },
                false => Input::Failed("the network is down".to_owned()),
            });
        }
        let speed = view.speed;
        self.world.connect(client, worker.into(), (speed, false));
        self.world.welcome(client);
        Ok(())
    }

    fn cut(&mut self, client: u8) {
        if let Some((worker, key)) = self.world.clients[usize::from(client)].connection {
            self.world.end(worker, key);
        }
    }

    fn is_open(&self, client: u8) -> bool {
        self.world.clients[usize::from(client)].connection.is_some()
    }

    fn next_text(&mut self, client: u8) -> Option<Arc<str>> {
        self.world.clients[usize::from(client)].inbox.as_mut().and_then(VecDeque::pop_front)
    }

    fn execute_next(&mut self, client: u8) -> Result<bool, String> {
        self.execute_text(client)
    }

    fn check_acknowledged(&mut self, acknowledged: &Acknowledged) -> Result<(), String> {
        let Acknowledged { topic, number, position } = acknowledged;
        let log = &self.world.oracle.topics[*topic];
        let Some(position) = position else {
            let has_history = log.look.is_some();
            return if has_history { Err(format!("message {number} has no position")) } else { Ok(()) };
        };
        let epoch = Epoch::parse(&position.epoch).ok_or("a position has no epoch")?;
        let is_noted = self.publishes.is_stored(*number, (epoch, position.offset));
        if is_noted && log.has(log.place(position)?, *number) {
            return Ok(());
        }
        Err(format!("message {number} is acknowledged at {position:?}, where it is not"))
    }

    fn work(&mut self) -> Result<bool, String> {
        for worker in 0..self.world.workers.len() {
            self.world.round(worker, 1000, None)?;
        }
        Ok(false)
    }

    fn pass_second(&mut self) -> Result<(), String> {
        self.world.oracle.step += 1;
        self.world.advance(Duration::from_secs(1));
        self.notice()
    }
}

impl Log for TopicLog {
    fn place(&self, position: &Position) -> Result<Place, String> {
        let epoch = Epoch::parse(&position.epoch).and_then(|epoch| self.number(epoch));
        let epoch = epoch.ok_or_else(|| format!("the epoch of {position:?} is unknown"))?;
        Ok((epoch as u64, position.offset))
    }

    fn has(&self, (epoch, offset): Place, number: u64) -> bool {
        self.epochs[epoch as usize].message(offset).is_some_and(|message| message.number == number)
    }

    fn is_repeated(&self, _epoch: u64, _number: u64) -> bool {
        // The node remembers a publish for two minutes, and its places are checked when it is stored.
        true
    }

    fn last_of_gap(&self, epoch: u64) -> Option<u64> {
        Some(self.epochs[epoch as usize].newest())
    }

    fn first_between(&self, (epoch, after): Place, until: u64, own: &BTreeSet<u64>) -> Option<u64> {
        let log = &self.epochs[epoch as usize];
        let is_own = |offset: &u64| log.message(*offset).is_some_and(|message| own.contains(&message.number));
        (after + 1..until.min(log.newest() + 1)).find(|offset| !is_own(offset))
    }

    fn count_between(&self, (_, after): Place, until: u64) -> usize {
        (until - 1).saturating_sub(after) as usize
    }

    fn may_lack_positions(&self) -> bool {
        self.look.is_none()
    }

    fn keeps_order_without_history(&self) -> bool {
        true
    }

    fn tells_newest_position(&self) -> bool {
        true
    }
}
