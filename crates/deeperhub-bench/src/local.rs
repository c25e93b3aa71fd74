//! What the connections of one thread have in common: buffers, accounts, counts.

use deeperhub_protocol::deflate::Inflater;

use super::handshake::Handshake;
use super::ledger::{Arrival, Ledger};
use super::outgoing::Outgoing;
use super::plan::{Plan, Role, Scenario};
use super::shared::Shared;
use super::stamp::{Finder, Stamp};
use super::tally::Tally;
use super::wire::Keys;

/// The time that is measured, in nanoseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Window {
    #[inline]
    pub(super) fn contains(self, time: u64) -> bool {
        (self.from..self.to).contains(&time)
    }
}

/// What a thread's connections share.
#[derive(Debug)]
pub(super) struct Local<'r> {
    pub(super) plan: &'r Plan,
    pub(super) shared: &'r Shared,
    pub(super) handshake: &'r Handshake,
    pub(super) thread: usize,
    /// What sockets are read into.
    pub(super) input: Vec<u8>,
    /// What is written at once.
    pub(super) output: Vec<u8>,
    /// What reads compressed messages.
    pub(super) inflater: Inflater,
    pub(super) keys: Keys,
    pub(super) finder: Finder,
    pub(super) outgoing: Outgoing,
    pub(super) tally: Tally,
    pub(super) window: Window,
    /// From here on nothing is sent.
    pub(super) send_until: u64,
    /// One for each stream of each receiver's topic.
    ledgers: Vec<Ledger>,
    /// The next number of each stream that this thread sends.
    sequences: Vec<u64>,
    /// Deliveries of this round, by publisher, and the publishers that have any.
    arrived: Vec<u32>,
    touched: Vec<u32>,
    round: Round,
}

/// What has not been told to the other threads yet.
#[derive(Debug, Default)]
struct Round {
    sent: u64,
    expected: u64,
    delivered: u64,
}

/// What is read at a time at most: as much as a socket's buffer usually holds.
pub(super) const READ_SIZE: usize = 256 * 1024;

impl<'r> Local<'r> {
    pub(super) fn new(
        plan: &'r Plan,
        shared: &'r Shared,
        handshake: &'r Handshake,
        thread: usize,
        run: u32,
    ) -> Self {
        let mut keys = Keys::new(u64::from(run) << 16 ^ thread as u64 ^ 0x5851_F42D_4C95_7F2D);
        let outgoing = Outgoing::new(plan, run, &mut keys);
        Self {
            plan,
            shared,
            handshake,
            thread,
            input: vec![0; READ_SIZE],
            output: Vec::new(),
            inflater: Inflater::new(),
            keys,
            finder: Finder::new(),
            outgoing,
            tally: Tally::default(),
            window: Window { from: u64::MAX, to: u64::MAX },
            send_until: 0,
            ledgers: Vec::new(),
            sequences: if plan.scenario.has_messages() { vec![0; plan.streams()] } else { Vec::new() },
            arrived: vec![0; plan.publishers],
            touched: Vec::new(),
            round: Round::default(),
        }
    }

    /// Makes room for the accounts of one receiver and returns where they are.
    pub(super) fn open_accounts(&mut self) -> usize {
        let at = self.ledgers.len();
        self.ledgers.resize_with(at + self.plan.streams_of_topic(), Ledger::default);
        at
    }

    /// The accounts of a receiver of `topic` that were opened at `at`, with their streams.
    pub(super) fn accounts(&self, at: usize, topic: u32) -> impl Iterator<Item = (u32, &Ledger)> {
        let plan = self.plan;
        let streams = match plan.scenario {
            // A receiver of echoes has its own stream.
            Scenario::Echo => topic..topic + 1,
            _ => 0..plan.streams() as u32,
        };
        let step = if plan.scenario == Scenario::Echo { 1 } else { plan.topics };
        let first = if plan.scenario == Scenario::Echo { 0 } else { topic as usize };
        let ledgers = self.ledgers.get(at..).unwrap_or_default();
        streams.skip(first).step_by(step).zip(ledgers).take(plan.streams_of_topic())
    }

    /// Appends a message to the output.
    #[inline]
    pub(super) fn write_message(&mut self, stream: u32, topic: u32, time: u64, now: u64, deliveries: u64) {
        let Some(next) = self.sequences.get_mut(stream as usize) else { return };
        let stamp = Stamp { stream, sequence: *next, time };
        *next += 1;
        self.outgoing.write(&mut self.output, topic, stamp);
        self.round.sent += 1;
        self.round.expected += deliveries;
        self.tally.sent += 1;
        self.tally.sent_measured += u64::from(self.window.contains(now));
    }

    /// Enters a message that came.
    #[inline]
    pub(super) fn enter(&mut self, receiver: Receiver, stamp: Stamp, now: u64) {
        let publishers = self.plan.publishers as u32;
        let publisher = match receiver.role {
            Role::Echo => None,
            _ => stamp.stream.checked_rem(publishers),
        };
        let Some(slot) = self.slot(receiver, stamp.stream) else {
            self.tally.misdelivered += 1;
            return;
        };
        let Some(ledger) = self.ledgers.get_mut(receiver.accounts + slot) else { return };
        if ledger.enter(stamp.sequence) == Arrival::Duplicate {
            return;
        }
        if receiver.role == Role::SlowReader {
            self.tally.slow_received += 1;
            return;
        }
        self.round.delivered += 1;
        if self.window.contains(stamp.time) {
            self.tally.latency.record(now.saturating_sub(stamp.time));
        }
        if let Some(publisher) = publisher
            && let Some(arrived) = self.arrived.get_mut(publisher as usize)
        {
            if *arrived == 0 {
                self.touched.push(publisher);
            }
            *arrived += 1;
        }
    }

    /// Which of a receiver's accounts a stream has; `None` for one that is not sent to it.
    #[inline]
    fn slot(&self, receiver: Receiver, stream: u32) -> Option<usize> {
        if receiver.role == Role::Echo {
            return (stream == receiver.topic).then_some(0);
        }
        let topics = self.plan.topics as u32;
        let (slot, topic) = if topics == 1 { (stream, 0) } else { (stream / topics, stream % topics) };
        (topic == receiver.topic && (stream as usize) < self.plan.streams()).then_some(slot as usize)
    }

    /// Counts what came in one read.
    #[inline]
    pub(super) fn end_read(&mut self, bytes: usize, delivered_before: u64, now: u64) {
        let delivered = self.round.delivered - delivered_before;
        if delivered == 0 {
            return;
        }
        self.tally.delivered += delivered;
        self.tally.last_delivered = now;
        if self.window.contains(now) {
            self.tally.delivered_measured += delivered;
            self.tally.bytes_measured += bytes as u64;
        }
    }

    /// Deliveries of this round so far.
    #[inline]
    pub(super) fn delivered_in_round(&self) -> u64 {
        self.round.delivered
    }

    /// A message that was refused gives none of the deliveries that were expected of it.
    pub(super) fn expect_less(&mut self, deliveries: u64) {
        // They were expected in an earlier round.
        self.shared.delivered.fetch_add(deliveries, std::sync::atomic::Ordering::AcqRel);
    }

    /// Tells the other threads what this round brought.
    pub(super) fn end_round(&mut self) {
        use std::sync::atomic::Ordering::AcqRel;

        let Round { sent, expected, delivered } = std::mem::take(&mut self.round);
        if sent > 0 {
            self.shared.sent.fetch_add(sent, AcqRel);
            self.shared.expected.fetch_add(expected, AcqRel);
        }
        if delivered > 0 {
            self.shared.delivered.fetch_add(delivered, AcqRel);
        }
        while let Some(publisher) = self.touched.pop() {
            if let Some(arrived) = self.arrived.get_mut(publisher as usize) {
                let deliveries = u64::from(std::mem::take(arrived));
                self.shared.add_done(publisher as usize, deliveries, self.thread);
            }
        }
    }

    /// The counts, with what this thread sent.
    pub(super) fn into_tally(mut self) -> Tally {
        self.tally.sequences = std::mem::take(&mut self.sequences);
        self.tally
    }
}

/// Who a message came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Receiver {
    pub(super) role: Role,
    /// Its topic; in `echo` its stream.
    pub(super) topic: u32,
    /// Where its accounts are.
    pub(super) accounts: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    /// Streams that a receiver of a topic has accounts of, in their order.
    fn streams(flags: &str, topic: u32) -> Vec<u32> {
        let plan = plan(flags);
        let (shared, handshake) = (Shared::new(&plan), Handshake::new(&plan, ""));
        let mut local = Local::new(&plan, &shared, &handshake, 0, 1);
        local.open_accounts();
        let at = local.open_accounts();
        let streams: Vec<_> = local.accounts(at, topic).map(|(stream, _)| stream).collect();
        let receiver = |topic| Receiver {
            role: if plan.scenario == Scenario::Echo { Role::Echo } else { Role::Subscriber },
            topic,
            accounts: at,
        };
        for (slot, stream) in streams.iter().enumerate() {
            assert_eq!(local.slot(receiver(topic), *stream), Some(slot));
            assert_eq!(local.slot(receiver(topic + 1), *stream), None);
        }
        assert_eq!(local.slot(receiver(topic), plan.streams() as u32 + topic), None);
        streams
    }

    #[test]
    fn a_receiver_has_an_account_of_each_stream_of_its_topic() {
        assert_eq!(streams("fanout --publishers 3", 0), [0, 1, 2]);
        assert_eq!(streams("topics --topics 10 --publishers 3", 7), [7]);
        assert_eq!(streams("topics --topics 2 --publishers 5", 0), [0, 2, 4]);
        assert_eq!(streams("topics --topics 2 --publishers 5", 1), [1, 3]);
        assert_eq!(streams("echo --connections 9", 4), [4]);
    }
}
