//! Subscribers that wait, the end of a simulation, and the tests.

use super::oracle::Counts;
use super::plants::{Bug, plant};
use super::{Outcome, Simulation, StorePosition, SubscribeCheck, Waiter};
use crate::Epoch;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Rounds after which a mirror without faults is whole, far more than it needs.
const MAX_ROUNDS: u32 = 2000;

impl Simulation {
    /// Lets a subscriber come that may know more than the mirror.
    pub(super) fn subscribe(&mut self) -> Outcome {
        let StorePosition { epoch, offset } = self.store.position();
        let offset = offset.saturating_sub(self.random.below(4));
        let position = StorePosition { epoch, offset };
        let waiter = Waiter { position, is_second: false, disruptions: self.store.disruptions };
        self.decide(waiter)
    }

    fn decide(&mut self, waiter: Waiter) -> Outcome {
        let Waiter { position, is_second, disruptions } = waiter;
        let wire = (Epoch::from_bits(position.epoch), position.offset);
        let wanted = (position.epoch > 0).then_some(wire);
        match self.mirror.on_subscribe(&self.stream, wanted) {
            SubscribeCheck::Ready => self.check_answer(&waiter),
            SubscribeCheck::Follow => {
                if self.is_connected {
                    let read = self.mirror.on_followed(&self.stream);
                    self.ask(read)?;
                    self.waiters.push(Waiter { position, is_second, disruptions });
                }
                Ok(())
            }
            SubscribeCheck::Wait(read) => {
                self.oracle.counts.waits += 1;
                self.ask(read)?;
                self.waiters.push(Waiter { position, is_second, disruptions });
                Ok(())
            }
        }
    }

    /// Decides again on the subscribers that wait, if the mirror is settled.
    pub(super) fn answer_waiters(&mut self) -> Outcome {
        if !self.mirror.is_settled() {
            return Ok(());
        }
        for mut waiter in std::mem::take(&mut self.waiters) {
            if waiter.is_second {
                self.check_answer(&waiter)?;
            } else {
                waiter.is_second = true;
                self.decide(waiter)?;
            }
        }
        Ok(())
    }

    /// Checks that the stream has what a subscriber knows, unless the store has lost it.
    fn check_answer(&self, waiter: &Waiter) -> Outcome {
        let own = StorePosition { epoch: self.oracle.epoch, offset: self.oracle.newest };
        if own < waiter.position && waiter.disruptions == self.store.disruptions {
            return Err(format!("a subscriber at {:?} was answered at {own:?}", waiter.position));
        }
        Ok(())
    }

    /// Checks that a mirror without faults gets all that the store has.
    pub(super) fn converge(&mut self) -> Outcome {
        self.connect()?;
        if self.mirror.is_cold() {
            let read = self.mirror.on_followed(&self.stream);
            self.ask(read)?;
        }
        let mut rounds_in_sync = 0;
        for _ in 0..MAX_ROUNDS {
            self.retry()?;
            self.deliver()?;
            self.execute_read();
            self.answer_read()?;
            self.check()?;
            self.check_bounds()?;
            let own = StorePosition { epoch: self.oracle.epoch, offset: self.oracle.newest };
            let is_whole = self.mirror.is_settled()
                && own == self.store.position()
                && self.channel.is_empty()
                && self.reads.is_empty();
            rounds_in_sync = if is_whole { rounds_in_sync + 1 } else { 0 };
            if rounds_in_sync == 5 {
                let is_idle = self.mirror.pending_bytes() == 0
                    && self.mirror.known() == Some(own)
                    && !self.mirror.is_unchecked()
                    && self.waiters.is_empty();
                return if is_idle { Ok(()) } else { Err(format!("not idle: {:?}", self.mirror)) };
            }
        }
        Err(format!("the store is at {:?}: {:?} {:?}", self.store.position(), self.mirror, self.oracle))
    }
}

/// Runs a simulation. Returns how often each kind of step came.
fn run(seed: u64) -> Result<Counts, String> {
    let events = 20 + (seed % 17) as u32 * 30;
    catch_unwind(AssertUnwindSafe(|| {
        let mut simulation = Simulation::new(seed);
        simulation.run(events).map(|()| simulation.oracle.counts)
    }))
    .unwrap_or_else(|_| Err("panic".to_owned()))
}

#[test]
fn a_mirror_has_what_its_store_has() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("DEEPERHUB_MIRROR_SEED") {
        return run(seed).map(drop).unwrap();
    }
    let mut total = Counts::default();
    for seed in 0..number("DEEPERHUB_MIRROR_SEEDS").unwrap_or(3000) {
        let counts = run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        total.messages += counts.messages;
        total.epochs += counts.epochs;
        total.trimmed += counts.trimmed;
        total.lost += counts.lost;
        total.duplicates += counts.duplicates;
        total.behind += counts.behind;
        total.waits += counts.waits;
        total.late += counts.late;
    }
    let Counts { messages, epochs, trimmed, lost, duplicates, behind, waits, late } = total;
    let all = [messages, epochs, trimmed, lost, duplicates, behind, waits, late];
    assert!(all.iter().all(|count| *count >= 100), "something hardly happens: {total:?}");
}

#[test]
fn the_simulation_finds_each_planted_bug() {
    let hook = std::panic::take_hook();
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        plant(Some(*bug));
        if !(0..500).any(|seed| run(seed).is_err()) {
            missed.push(*bug);
        }
    }
    plant(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}
