//! Checks of a mirror against the top of the store, and against what subscribers know.

use super::values::{CheckResult, MirrorStep, StorePosition, SubscribeCheck};
use super::{Mirror, State};
use crate::planted::planted;
use crate::stream::Stream;
use deeperhub_types::Epoch;

impl<M> Mirror<M> {
    /// Compares the mirror with the store's newest position, so that the loss of a live message
    /// shows although no other follows it.
    ///
    /// A message can be under way while the store answers. The mirror therefore reads what it lacks
    /// if it still lacks it at the next check. In the same way, a store is behind if it has less
    /// than the mirror in two checks, and nothing came between them. After the store was away
    /// ([`Self::is_unchecked`]), and for a new epoch, the first check decides.
    pub fn on_top(&mut self, stream: &Stream<M>, epoch: u64, top: u64) -> CheckResult {
        let answer = StorePosition { epoch, offset: top };
        if self.state == State::Cold {
            return CheckResult::InSync;
        }
        self.compare_epochs(stream);
        if self.state != State::Warm {
            self.hear(answer);
            return CheckResult::Read(self.request(stream.newest()));
        }
        if answer < self.highest && !planted!(BehindIgnored) {
            let is_certain = self.behind.is_some() || self.is_unchecked;
            self.behind = Some(answer);
            return if is_certain { CheckResult::Behind } else { CheckResult::Differs };
        }
        self.behind = None;
        let own = StorePosition { epoch: self.epoch, offset: stream.newest() };
        if answer <= own {
            (self.ahead, self.is_unchecked) = (0, false);
            return CheckResult::InSync;
        }
        let is_certain = self.is_unchecked || epoch > self.epoch || self.ahead > own.offset;
        self.hear(answer);
        self.ahead = top;
        if !is_certain || planted!(AheadIgnored) {
            return CheckResult::Differs;
        }
        self.state = State::Healing;
        CheckResult::Read(self.request(own.offset))
    }

    /// Notes that the topic has no message after the stream's newest one up to an offset of its epoch,
    /// as a check has found. Offsets of a store with holes move on without messages of the topic.
    /// Returns the step that moves the stream, and with it the position of new subscribers.
    pub fn on_vouched(&mut self, stream: &Stream<M>, epoch: u64, offset: u64) -> Option<MirrorStep<M>> {
        self.compare_epochs(stream);
        let vouched = StorePosition { epoch, offset };
        let is_whole = self.state == State::Warm && self.pending.is_none() && !self.is_unchecked;
        if !is_whole || epoch != self.epoch || vouched < self.highest || offset <= stream.newest() {
            return None;
        }
        self.hear(vouched);
        Some(MirrorStep::Duplicate { offset })
    }

    /// Decides whether the stream can answer a subscriber now. `position` is where the subscriber
    /// wants to continue, if it does.
    ///
    /// A subscriber of another node may have seen messages that this mirror lacks, so it waits for
    /// a read. The caller asks again when the mirror is settled, because that read can be older
    /// than the subscriber. After a second wait it answers in any case: if the mirror still lacks
    /// the messages, the position is not good.
    pub fn on_subscribe(&mut self, stream: &Stream<M>, position: Option<(Epoch, u64)>) -> SubscribeCheck {
        self.compare_epochs(stream);
        let own = (stream.epoch(), stream.newest());
        match self.state {
            State::Cold => return SubscribeCheck::Follow,
            State::Reading => {}
            State::Healing if self.epoch == 0 => {}
            // Epochs are ordered like their numbers.
            State::Warm | State::Healing if position.is_none_or(|position| position <= own) => {
                return SubscribeCheck::Ready;
            }
            State::Warm | State::Healing if planted!(AheadSubscriberAnswered) => {
                return SubscribeCheck::Ready;
            }
            State::Warm | State::Healing => self.state = State::Healing,
        }
        SubscribeCheck::Wait(self.request(own.1))
    }
}
