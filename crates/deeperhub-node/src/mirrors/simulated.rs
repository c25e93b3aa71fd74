//! The reader without its thread, for simulations.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use deeperhub_cluster::ClusterState;
use futures_util::stream::Stream;
use tokio::sync::{mpsc, watch};

use super::reader::Reader;
use crate::hub::Hub;
use crate::streams::{ClusterStore, ReaderRequest};

/// The reader of a simulated node. A simulation says when it does something.
pub(crate) struct SimulatedReader {
    reader: Reader,
    requests: mpsc::UnboundedReceiver<ReaderRequest>,
    states: watch::Receiver<ClusterState>,
    rules: watch::Receiver<()>,
}

impl SimulatedReader {
    pub(crate) fn new(hub: &Arc<Hub>, store: &Arc<ClusterStore>) -> Self {
        let requests = store.take_receiver().expect("the node has one reader");
        let (states, rules) = (store.broker.watch(), store.rule_changes.subscribe());
        Self { reader: Reader::new(hub, store), requests, states, rules }
    }

    /// Does all that can be done now, like [`Reader::run`].
    pub(crate) fn run(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut is_busy = false;
            while let Ok(request) = self.requests.try_recv() {
                self.reader.handle(request);
                is_busy = true;
            }
            self.reader.start_batches();
            while let Poll::Ready(Some((topics, result))) =
                Pin::new(&mut self.reader.batches).poll_next(&mut cx)
            {
                self.reader.finish_batch(topics, result);
                is_busy = true;
            }
            while let Poll::Ready(Some(())) = Pin::new(&mut self.reader.tasks).poll_next(&mut cx) {
                is_busy = true;
            }
            for task in [&mut self.reader.reconnect, &mut self.reader.check] {
                if task.as_mut().is_some_and(|task| task.as_mut().poll(&mut cx).is_ready()) {
                    *task = None;
                    is_busy = true;
                }
            }
            if self.rules.has_changed().unwrap_or(false) {
                self.rules.mark_unchanged();
                self.reader.on_rules_changed();
                is_busy = true;
            }
            if self.states.has_changed().unwrap_or(false) {
                let is_up = *self.states.borrow_and_update() == ClusterState::Up;
                self.reader.on_broker_changed(is_up);
                is_busy = true;
            }
            if !is_busy {
                return;
            }
        }
    }

    /// Does what is done at each tick.
    pub(crate) fn tick(&mut self) {
        self.reader.on_tick();
        self.run();
    }
}
