//! A mirror beside a model of a store, with a broker that loses and repeats messages, reads that
//! are answered late or not at all, and crashes. A seed determines all of it.
//!
//! An oracle checks each step: in an epoch, each offset is applied at most once and in order, and
//! each message of the store is applied or told as missing. When the faults end, the mirror has
//! what the store has. Planted bugs check the oracle.
//!
//! `DEEPERHUB_MIRROR_SEEDS` sets the number of seeds, and `DEEPERHUB_MIRROR_SEED` runs one.

mod oracle;
pub(crate) mod plants;
mod runs;
mod store;

use super::{
    CheckResult, LiveResult, Mirror, MirrorStep, ReadRequest, StorePosition, StoredMessage, StreamRead,
    SubscribeCheck,
};
use crate::{Epoch, Evicted, Retention, Seconds, Stream};
use oracle::Oracle;
use std::collections::VecDeque;
use store::{Random, Store};

type Outcome = Result<(), String>;

/// A read that the mirror has asked for.
#[derive(Debug)]
struct UnderWay {
    request: ReadRequest,
    answer: Option<StreamRead<u64>>,
    /// `true` if a late replica has answered.
    lags: bool,
    /// `true` if the mirror has given it up.
    is_late: bool,
}

/// A subscriber that waits for the mirror.
#[derive(Debug)]
struct Waiter {
    position: StorePosition,
    is_second: bool,
    disruptions: u64,
}

struct Simulation {
    random: Random,
    store: Store,
    mirror: Mirror<u64>,
    stream: Stream<u64>,
    oracle: Oracle,
    bounds: Retention,
    max_pending: usize,
    now: u32,
    /// Live messages on their way.
    channel: VecDeque<(u64, StoredMessage<u64>)>,
    reads: Vec<UnderWay>,
    waiters: Vec<Waiter>,
    is_connected: bool,
    /// `true` if the mirror was not compared with the store since a disconnect.
    is_unchecked: bool,
    /// `true` if a late replica has answered the last read.
    has_lagged: bool,
    has_faults: bool,
    /// Number of appends that do not happen.
    quiet: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let history = 4 + random.below(30) as usize;
        let messages = 1 + random.below(40) as u32;
        Self {
            store: Store::new(history, random.one_in(2)),
            mirror: Mirror::new(0),
            stream: Stream::new(Epoch::from_bits(1 << 40)),
            oracle: Oracle::default(),
            bounds: Retention { messages, bytes: 1000, ttl_seconds: 20 },
            max_pending: random.below(1500) as usize,
            now: 0,
            channel: VecDeque::new(),
            reads: Vec::new(),
            waiters: Vec::new(),
            is_connected: true,
            is_unchecked: false,
            has_lagged: false,
            has_faults: true,
            quiet: 0,
            random,
        }
    }

    /// Runs some random events, then ends the faults and checks that the mirror becomes whole.
    fn run(&mut self, events: u32) -> Outcome {
        for _ in 0..events {
            self.event()?;
            self.check_bounds()?;
        }
        self.has_faults = false;
        self.converge()
    }

    fn event(&mut self) -> Outcome {
        match self.random.below(100) {
            0..28 => self.append(),
            28..56 => return self.deliver(),
            56..66 => self.execute_read(),
            66..76 => return self.answer_read(),
            76..78 => self.fail_read(),
            78..81 => return self.retry(),
            81..87 => return self.check(),
            87..91 => return self.subscribe(),
            91 => (0..self.random.below(4)).for_each(|_| self.store.evict()),
            92 => self.now += self.random.below(8) as u32,
            93 => self.disconnect(),
            94 | 95 => return self.connect(),
            96 | 97 => self.rare_event(),
            98 => self.lose_interest(),
            _ => self.stream.expire(self.bounds.ttl_seconds, self.time(), &mut Evicted::new()),
        }
        Ok(())
    }

    fn rare_event(&mut self) {
        let kind = self.random.below(9);
        if kind < 4 {
            // For a while, no publisher tells the store what it has lost.
            self.quiet = self.random.below(30);
        }
        match kind {
            0..3 => {
                self.disconnect();
                self.store.crash(self.random.below(6));
            }
            3 => {
                self.disconnect();
                self.store.wipe();
            }
            // Somebody has removed all messages.
            4..7 => {
                self.store.disruptions += 1;
                self.store.start_epoch();
            }
            // The stream was emptied here alone.
            _ => {
                self.stream.clear(self.random.below(1 << 40) | 1 << 41, &mut Evicted::new());
                (self.oracle.epoch, self.store.disruptions) = (0, self.store.disruptions + 1);
            }
        }
    }

    const fn time(&self) -> Seconds {
        Seconds::new(self.now)
    }

    /// Returns `true` if the broker brings the topic's messages.
    const fn is_followed(&self) -> bool {
        self.is_connected && !self.mirror.is_cold()
    }

    fn append(&mut self) {
        if self.quiet > 0 {
            self.quiet -= 1;
            return;
        }
        let live = self.store.append(self.mirror.known(), Seconds::new(self.now), &mut self.random);
        let own = self.random.one_in(3);
        // Other nodes' messages come live only.
        if own && self.is_connected {
            self.mirror.on_appended(self.store.position());
        }
        if self.is_followed() {
            self.channel.extend(live);
        }
    }

    fn deliver(&mut self) -> Outcome {
        let Some((epoch, message)) = self.channel.pop_front() else { return Ok(()) };
        if self.has_faults && self.random.one_in(6) {
            return Ok(());
        }
        if self.has_faults && self.random.one_in(8) {
            self.channel.push_back((epoch, message.clone()));
        }
        match self.mirror.on_live(&self.stream, epoch, message, self.max_pending) {
            LiveResult::Ignored | LiveResult::Duplicate(_) => Ok(()),
            LiveResult::Apply(_) if self.is_unchecked => {
                Err("a live message was applied before the check".to_owned())
            }
            LiveResult::Apply(step) => self.apply(step),
            LiveResult::Waits(read) => self.ask(read),
        }
    }

    fn apply(&mut self, step: MirrorStep<u64>) -> Outcome {
        self.oracle.check(&step, &self.store)?;
        let now = self.time();
        self.stream.apply(&self.bounds, now, &mut Evicted::new(), step);
        self.oracle.check_stream(&self.stream)
    }

    fn ask(&mut self, request: Option<ReadRequest>) -> Outcome {
        let Some(request) = request else { return Ok(()) };
        if self.reads.iter().any(|read| !read.is_late) {
            return Err("two reads at a time".to_owned());
        }
        self.reads.push(UnderWay { request, answer: None, lags: false, is_late: false });
        Ok(())
    }

    /// Lets the store answer a read. The mirror gets the answer later.
    fn execute_read(&mut self) {
        let Some(index) = self.reads.iter().position(|read| read.answer.is_none()) else { return };
        let (limit, now) = (1 + self.random.below(8) as usize, self.time());
        // Two answers of a late replica in a row cannot be told from a store that is behind.
        let lags = self.has_faults && !self.has_lagged && self.random.one_in(3);
        let lag = if lags { 1 + self.random.below(3) as usize } else { 0 };
        // Subscribers that wait may be answered too early.
        self.store.disruptions += u64::from(lags);
        let request = &self.reads[index].request;
        let answer = self.store.read(request, (limit, lag), now, &mut self.random);
        (self.reads[index].answer, self.reads[index].lags) = (Some(answer), lags);
    }

    fn answer_read(&mut self) -> Outcome {
        let Some(index) = self.reads.iter().position(|read| read.answer.is_some()) else { return Ok(()) };
        let UnderWay { request, answer, lags, is_late } = self.reads.remove(index);
        self.has_lagged = if is_late { self.has_lagged } else { lags };
        let Some(answer) = answer else { return Ok(()) };
        self.oracle.counts.late += u64::from(is_late);
        let result = self.mirror.on_read(&self.stream, request.number, answer);
        if is_late && !result.steps.is_empty() {
            return Err("an answer was taken that was given up".to_owned());
        }
        for step in result.steps {
            self.apply(step)?;
        }
        if result.is_behind {
            self.compare();
        }
        self.is_unchecked &= !self.mirror.is_settled();
        self.ask(result.next)?;
        self.answer_waiters()
    }

    /// Lets the store compare itself with what the mirror knows.
    fn compare(&mut self) {
        self.oracle.counts.behind += 1;
        if self.has_faults && self.random.one_in(2) {
            return;
        }
        self.store.compare(self.mirror.known());
    }

    fn fail_read(&mut self) {
        if let Some(index) = self.reads.iter().position(|read| !read.is_late) {
            self.mirror.on_read_failed(self.reads.remove(index).request.number);
        }
    }

    fn retry(&mut self) -> Outcome {
        if !self.is_connected {
            return Ok(());
        }
        let read = self.mirror.retry(&self.stream);
        self.ask(read)
    }

    fn check(&mut self) -> Outcome {
        if !self.is_connected {
            return Ok(());
        }
        let StorePosition { epoch, offset } = self.store.position();
        match self.mirror.on_top(&self.stream, epoch, offset) {
            CheckResult::InSync => {
                self.is_unchecked = false;
                Ok(())
            }
            CheckResult::Differs if self.is_unchecked => Err("the first check did not decide".to_owned()),
            CheckResult::Differs => Ok(()),
            CheckResult::Read(read) => self.ask(read),
            CheckResult::Behind => {
                self.compare();
                Ok(())
            }
        }
    }

    fn disconnect(&mut self) {
        self.is_connected = false;
        self.mirror.on_disconnected();
        self.is_unchecked = !self.mirror.is_cold();
        self.channel.clear();
        self.reads.iter_mut().for_each(|read| read.is_late = true);
        self.waiters.clear();
    }

    fn connect(&mut self) -> Outcome {
        if self.is_connected {
            return Ok(());
        }
        self.is_connected = true;
        if self.mirror.is_cold() {
            return Ok(());
        }
        let read = self.mirror.on_followed(&self.stream);
        self.ask(read)
    }

    fn lose_interest(&mut self) {
        if self.random.one_in(2) {
            self.mirror.on_lost_interest();
            self.is_unchecked = false;
            self.channel.clear();
            self.waiters.clear();
            self.reads.iter_mut().for_each(|read| read.is_late = true);
        }
    }

    fn check_bounds(&self) -> Outcome {
        let bytes = self.mirror.pending_bytes();
        if bytes > self.max_pending {
            return Err(format!("{bytes} bytes wait, more than {}", self.max_pending));
        }
        Ok(())
    }
}
