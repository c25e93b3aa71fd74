//! Answers of reads.

use super::values::{MirrorStep, ReadResult, StorePosition, StoredMessage, StreamRead};
use super::{Mirror, Pending, State, step};
use crate::planted::planted;
use crate::stream::Stream;
use deeperhub_types::GapReason;

impl<M> Mirror<M> {
    /// Handles the answer of a read. An answer of a read that was given up is ignored.
    pub fn on_read(&mut self, stream: &Stream<M>, number: u32, mut answer: StreamRead<M>) -> ReadResult<M> {
        let mut result = ReadResult { steps: Vec::new(), next: None, is_behind: false };
        let is_expected = |number_asked| number_asked == number || planted!(LateAnswerTaken);
        let Some(reading) = self.reading.take_if(|reading| is_expected(reading.number)) else {
            return result;
        };
        self.compare_epochs(stream);
        answer.messages.retain(|message| (1..=StorePosition::MAX_OFFSET).contains(&message.offset));
        let last = answer.messages.last().map_or(0, |message| message.offset);
        let offset = answer.top.clamp(last, StorePosition::MAX_OFFSET);
        let top = StorePosition { epoch: answer.epoch, offset };
        // If the mirror has heard of more since it asked, another read tells.
        let is_behind = top < reading.known && self.highest == reading.known;
        result.is_behind = is_behind && !planted!(BehindIgnored);
        self.hear(top);
        if self.highest.epoch == 0 {
            // The store has no stream and has not started one.
            result.is_behind = true;
            self.is_paused = true;
            return result;
        }
        let mut steps = Steps { steps: Vec::new(), newest: stream.newest(), told: stream.live_offset() };
        // The answer is of no use if the mirror has heard of a newer epoch meanwhile, or if the
        // stream no longer has what comes before the answer.
        let is_stale = answer.epoch < self.highest.epoch && !planted!(StaleAnswerTaken);
        let is_partial = self.epoch == 0 && reading.after.epoch == answer.epoch;
        let is_current = !is_stale && !is_partial;
        if is_current {
            // An answer without news says that there are none up to the top.
            let has_news = StorePosition { offset: last, ..top } > reading.after;
            let end = match answer.whole_to {
                0 if has_news => last,
                0 => top.offset,
                whole_to => whole_to.clamp(last, top.offset),
            };
            self.take_answer(answer, end, &mut steps);
        }
        let newest = steps.newest;
        let has_more = is_current && newest < top.offset && !planted!(ReadEndsEarly);
        // A replica of the store can be behind for a moment.
        let is_certain = self.behind == Some(top) || planted!(BehindAtOnce);
        if result.is_behind && !has_more && is_certain {
            self.take_pending(&mut steps);
            self.state = State::Warm;
        } else if is_current && !self.lacks(newest) {
            self.state = State::Warm;
            (self.ahead, self.is_unchecked, self.behind) = (0, false, None);
        } else {
            if !has_more {
                self.behind = result.is_behind.then_some(top);
            }
            result.next = self.request(newest);
        }
        result.steps = steps.steps;
        result
    }

    /// Returns `true` if the mirror has heard of messages after `newest`.
    fn lacks(&self, newest: u64) -> bool {
        let has_pending = self.pending.as_ref().is_some_and(|pending| pending.front().is_some());
        has_pending || self.highest.offset > newest && !planted!(ReadEndsEarly)
    }

    /// Merges an answer of the highest epoch with the messages that came live meanwhile. The answer
    /// has all messages of the store up to `end`.
    fn take_answer(&mut self, answer: StreamRead<M>, end: u64, steps: &mut Steps<M>) {
        let StreamRead { epoch, floor, whole_to, messages, .. } = answer;
        let has_holes = whole_to > 0;
        let mut pending = self.pending.take().map_or_else(Pending::new, |pending| *pending);
        if epoch != self.epoch {
            let first = messages.first().map(|first| first.prev.max(floor.min(first.offset - 1)));
            let first_live = pending.front().map(|front| front.prev);
            let start = if has_holes { floor } else { first_live.unwrap_or(end) };
            steps.start(epoch, first.unwrap_or_else(|| start.min(end)));
            self.set_epoch(epoch);
        }
        let mut messages = messages.into_iter().peekable();
        loop {
            pending.drop_to(steps.newest);
            let next_read = messages.peek().map_or(u64::MAX, |message| message.offset);
            if let Some(front) = pending.front()
                && front.offset < next_read
            {
                if front.prev > steps.newest.max(end) {
                    break;
                }
                let (prev, message) = (front.prev, pending.pop());
                if planted!(PendingForgotten) {
                    steps.newest = message.map_or(0, |message| message.offset);
                    continue;
                }
                steps.extend(prev, floor, message);
            } else if let Some(message) = messages.next() {
                if message.offset > steps.newest {
                    steps.extend(message.prev.max(floor.min(message.offset - 1)), floor, Some(message));
                }
            } else {
                break;
            }
        }
        if has_holes {
            steps.pass(end, floor);
        } else {
            steps.extend(end, floor, None);
        }
        self.pending = pending.front().is_some().then(|| Box::new(pending));
    }

    /// Takes all messages that wait, because the store has lost those before them.
    fn take_pending(&mut self, steps: &mut Steps<M>) {
        let mut pending = self.pending.take();
        if self.epoch != self.highest.epoch {
            let first_live = pending.as_ref().and_then(|pending| pending.front()).map(|front| front.prev);
            steps.start(self.highest.epoch, first_live.unwrap_or(self.highest.offset));
            self.set_epoch(self.highest.epoch);
        }
        while let Some(message) = pending.as_mut().and_then(|pending| pending.pop()) {
            steps.extend(message.prev, 0, Some(message));
        }
    }
}

/// Steps that were decided and not applied yet.
#[derive(Debug)]
struct Steps<M> {
    steps: Vec<MirrorStep<M>>,
    /// Newest offset after the steps.
    newest: u64,
    /// Offset at which subscribers stand after the steps.
    told: u64,
}

impl<M> Steps<M> {
    /// Starts an epoch.
    fn start(&mut self, epoch: u64, after: u64) {
        (self.newest, self.told) = (after, after);
        if !planted!(EpochNotTold) {
            self.steps.push(MirrorStep::NewEpoch { epoch, after });
        }
    }

    /// Adds a message, after all up to `prev` that subscribers do not have yet is missing.
    fn extend(&mut self, prev: u64, floor: u64, message: Option<StoredMessage<M>>) {
        let prev = message.as_ref().map_or(prev, |message| prev.min(message.offset - 1));
        if !planted!(MissingNotTold) {
            self.add_missing(prev.min(floor), GapReason::Trimmed);
            self.add_missing(prev, GapReason::Lost);
        }
        let Some(message) = message else { return };
        if message.offset <= self.newest {
            return;
        }
        self.newest = message.offset;
        let prev = self.told;
        let step = step(message, prev);
        if matches!(step, MirrorStep::Message { .. }) || planted!(DuplicateTold) {
            self.told = self.newest;
        }
        self.steps.push(step);
    }

    /// Notes that there are no messages up to an offset. Those up to `floor` may be missing.
    fn pass(&mut self, end: u64, floor: u64) {
        self.add_missing(end.min(floor), GapReason::Trimmed);
        if end > self.newest {
            self.newest = end;
            self.steps.push(MirrorStep::Duplicate { offset: end });
        }
    }

    fn add_missing(&mut self, to: u64, reason: GapReason) {
        if to > self.newest {
            let reason = if planted!(ReasonsSwapped) { GapReason::Trimmed } else { reason };
            self.steps.push(MirrorStep::Missing { from: self.told + 1, to, reason });
            (self.newest, self.told) = (to, to);
        }
    }
}
