//! Checks of what one subscription is told.

use deeperhub_history::Delivery;
use deeperhub_protocol::GapReason;

use super::log::{Look, TopicLog};

/// An epoch's number and an offset.
pub(super) type Position = (usize, u64);

/// The place of a connection's subscription to a topic, as it was told.
#[derive(Debug)]
pub(super) struct SubscriptionView {
    /// Where the client stands; `None` if the topic had no history.
    pub(super) position: Option<Position>,
    /// Step in which the position last moved.
    pub(super) moved_at: usize,
    /// `true` if the stream of the position was removed by new rules.
    pub(super) is_detached: bool,
    /// Epoch with which new rules have given the topic its history back. A gap must tell it.
    pub(super) gap_before: Option<usize>,
    /// `true` if a pattern matched the topic when the subscription was made.
    pub(super) is_overlapping: bool,
    pub(super) replay: Option<ReplayView>,
}

/// A replay that `subscribed` has announced.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplayView {
    pub(super) announced: u64,
    pub(super) sent: u64,
    /// Number of the connection's own excluded messages.
    pub(super) own: u64,
    pub(super) until: Position,
    pub(super) began_at: usize,
}

impl SubscriptionView {
    pub(super) fn on_message(
        &mut self,
        position: Position,
        prev: Option<u64>,
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        let (epoch, offset) = position;
        let epoch_log = &log.epochs[epoch];
        let is_earlier = log.look.is_none_or(|look| look.epoch != epoch_log.epoch);
        match self.position {
            Some((own_epoch, own)) if own_epoch == epoch => {
                let before = prev.unwrap_or(offset - 1);
                let stands = epoch_log.after_own(own, serial);
                if before >= offset || epoch_log.after_own(before, serial) != stands {
                    return Err(format!("{position:?} with the previous {before} is sent at {own}"));
                }
                let is_skip = epoch_log.after_own(before, serial) + 1 < offset;
                if is_skip && log.sampled_at < self.moved_at {
                    return Err(format!("{position:?} skips messages after {before}"));
                }
            }
            Some(own) if !self.is_detached || self.gap_before == Some(epoch) => {
                return Err(format!("the new epoch of {position:?} is not told at {own:?}"));
            }
            Some(_) => {
                self.check_end(log, serial)?;
                self.is_detached = is_earlier;
            }
            None => self.is_detached = is_earlier,
        }
        if let Some(replay) = &mut self.replay
            && position <= replay.until
        {
            replay.sent += 1;
        }
        self.move_to(position, log, (serial, step))
    }

    pub(super) fn on_gap(
        &mut self,
        (epoch, to): Position,
        (from, reason): (Option<u64>, GapReason),
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        let epoch_log = &log.epochs[epoch];
        let Some((own_epoch, own)) = self.position else {
            // The topic had no history when the client subscribed.
            return match reason {
                GapReason::Lost => Ok(()),
                _ => self.move_to((epoch, to), log, (serial, step)),
            };
        };
        let look = log.look;
        let Some(from) = from else {
            let is_told_late = to == epoch_log.start;
            // After a removed stream, nothing comes.
            let skips_nothing = look.map_or(to == epoch_log.newest(), |look| match look.delivery {
                Delivery::Lossless | Delivery::Close => to < look.oldest,
                _ => to <= look.newest,
            });
            if reason != GapReason::Epoch || epoch <= own_epoch || !(is_told_late || skips_nothing) {
                return Err(format!("a gap to {:?} for {reason} at {:?}", (epoch, to), self.position));
            }
            self.is_detached = look.is_none_or(|look| look.epoch != epoch_log.epoch);
            self.gap_before = None;
            return self.move_to((epoch, to), log, (serial, step));
        };
        if self.is_detached && epoch > own_epoch {
            self.check_end(log, serial)?;
            self.is_detached = false;
            self.move_to((epoch, to), log, (serial, step))?;
            if reason == GapReason::Lost {
                self.position = None;
            }
            return Ok(());
        }
        let fits = epoch == own_epoch
            && from <= to
            && from > 0
            && epoch_log.after_own(from - 1, serial) == epoch_log.after_own(own, serial);
        let is_true = match (reason, look) {
            (GapReason::Lost, None) => to == epoch_log.newest(),
            (GapReason::Trimmed, Some(look)) => to < look.oldest,
            (GapReason::Dropped, Some(Look { delivery: Delivery::DropOldest { keep }, newest, .. })) => {
                to + u64::from(keep) == newest
            }
            (GapReason::Conflated, Some(Look { delivery: Delivery::Latest, newest, .. })) => {
                to < newest && epoch_log.after_own(to + 1, serial) == newest
            }
            _ => false,
        };
        if !fits || !is_true {
            return Err(format!("a gap from {from} to {to} for {reason} at {:?} of {look:?}", self.position));
        }
        self.move_to((epoch, to), log, (serial, step))?;
        if reason == GapReason::Lost {
            self.position = None;
        }
        Ok(())
    }

    /// Checks a position that was told without a message: nothing but the client's own messages came
    /// up to there.
    pub(super) fn on_position(
        &mut self,
        position: Position,
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        let (epoch, offset) = position;
        let skips_own = self.position.is_some_and(|(own_epoch, own)| {
            own_epoch == epoch && own < offset && offset <= log.epochs[epoch].after_own(own, serial)
        });
        if !skips_own {
            return Err(format!("the position {position:?} is told at {:?}", self.position));
        }
        self.move_to(position, log, (serial, step))
    }

    fn move_to(
        &mut self,
        position: Position,
        log: &TopicLog,
        (serial, step): (u64, usize),
    ) -> Result<(), String> {
        (self.position, self.moved_at) = (Some(position), step);
        let stands = log.epochs[position.0].after_own(position.1, serial);
        if let Some(replay) = self.replay
            && (position.0, stands) >= replay.until
        {
            self.replay = None;
            // Operations meanwhile can have changed the number.
            let skips = log.look.is_none_or(|look| !matches!(look.delivery, Delivery::Lossless));
            let has_changed =
                log.changed_at >= replay.began_at || (skips && log.published_at >= replay.began_at);
            // Own excluded messages are announced, and `prev` bridges them.
            let fits = (replay.sent..=replay.sent + replay.own).contains(&replay.announced);
            if !has_changed && !fits {
                return Err(format!("a replay of {} sent {} messages", replay.announced, replay.sent));
            }
        }
        Ok(())
    }

    /// Checks that everything of a removed stream was told.
    pub(super) fn check_end(&self, log: &TopicLog, serial: u64) -> Result<(), String> {
        let Some((epoch, offset)) = self.position else { return Ok(()) };
        let epoch_log = &log.epochs[epoch];
        // A subscriber by sample does not get each message anyway.
        if epoch_log.after_own(offset, serial) == epoch_log.newest() || log.sampled_at >= self.moved_at {
            return Ok(());
        }
        Err(format!("the end of epoch {epoch} is not told after {offset} of {}", epoch_log.newest()))
    }
}
