//! The ways of real clients to the nodes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use deeperhub_client::core::Input;
use deeperhub_listener::ConnectionKey;

use super::super::real_clients::{Acknowledged, CoreClient, Log as _, Surroundings};
use super::Simulation;
use super::log::TopicLog;
use super::settings::is_lossless;

/// The way of a client to the nodes.
#[derive(Debug)]
pub(super) struct Line {
    /// Node, worker and key of the open connection.
    pub(super) connection: Option<(usize, usize, ConnectionKey)>,
    /// Texts on their way to the client.
    pub(super) inbox: VecDeque<Arc<str>>,
    /// Node and worker of the next connection.
    pub(super) node: usize,
    worker: usize,
}

impl Line {
    pub(super) fn new(client: u8) -> Self {
        let (node, worker) = (client.into(), client.into());
        Self { connection: None, inbox: VecDeque::new(), node, worker }
    }

    /// Notes that the connection has ended. Texts on their way are lost.
    pub(super) fn on_end(&mut self) {
        self.connection = None;
        self.inbox.clear();
    }
}

impl Surroundings for Simulation {
    type Log = TopicLog;

    const MAX_HANDLES: usize = 5;

    const LAST_SECONDS: usize = 120;

    fn time(&self) -> Duration {
        self.times.now
    }

    fn parts(&mut self) -> (&mut [CoreClient], &mut [TopicLog]) {
        (&mut self.clients, &mut self.logs)
    }

    fn is_lossless(topic: usize) -> bool {
        is_lossless(topic)
    }

    fn new_message(&mut self, bytes: usize) -> (u64, String) {
        self.number += 1;
        (self.number, format!(r#"{{"n":{},"x":"{:bytes$}"}}"#, self.number, ""))
    }

    fn open(&mut self, client: u8) -> Result<(), Input<'static>> {
        let now = self.now();
        let view = &mut self.clients[usize::from(client)];
        let line = &mut self.lines[usize::from(client)];
        let index = line.node % self.nodes.len();
        let Some(node) = self.nodes[index].as_mut().filter(|_| view.failures == 0) else {
            view.failures = view.failures.saturating_sub(1);
            // Another node takes its place.
            line.node += 1;
            return Err(Input::Failed("the node is down".to_owned()));
        };
        self.serial += 1;
        let worker = line.worker % node.workers.len();
        let key = node.open(client, (worker, view.speed, self.serial), now);
        line.connection = Some((index, worker, key));
        Ok(())
    }

    fn cut(&mut self, client: u8) {
        let line = &mut self.lines[usize::from(client)];
        if let Some((node, worker, key)) = line.connection {
            if let Some(node) = &mut self.nodes[node] {
                node.close(worker, key);
            }
            line.on_end();
        }
    }

    fn is_open(&self, client: u8) -> bool {
        self.lines[usize::from(client)].connection.is_some()
    }

    fn next_text(&mut self, client: u8) -> Option<Arc<str>> {
        self.lines[usize::from(client)].inbox.pop_front()
    }

    fn execute_next(&mut self, client: u8) -> Result<bool, String> {
        self.execute_text(client)
    }

    fn check_acknowledged(&mut self, acknowledged: &Acknowledged) -> Result<(), String> {
        let Acknowledged { topic, number, position } = acknowledged;
        // A topic can be without history for a while.
        let Some(position) = position else { return Ok(()) };
        let log = &mut self.logs[*topic];
        let place = log.place(position)?;
        log.note_told(place);
        if log.has(place, *number) {
            return Ok(());
        }
        Err(format!("message {number} is acknowledged at {place:?}, where it never was"))
    }

    fn work(&mut self) -> Result<bool, String> {
        let mut is_busy = false;
        for node in 0..self.nodes.len() {
            is_busy |= self.pump(node)?;
            (0..usize::from(self.settings.workers)).for_each(|worker| self.round(node, worker, 1000));
        }
        Ok(is_busy)
    }

    fn pass_second(&mut self) -> Result<(), String> {
        self.advance(Duration::from_secs(1), true)
    }
}
