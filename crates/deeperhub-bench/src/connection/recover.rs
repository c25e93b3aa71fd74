//! Connections of clients that are cut and return.

use socket2::SockRef;

use super::{Connection, Return, Stage};
use crate::disconnect_reason::DisconnectReason;
use crate::recovery::{SubscribedList, ToldGap, WithData};
use crate::stamp::Stamp;
use crate::thread_state::ThreadState;

impl Connection {
    /// Returns `true` if the client was cut and is returning.
    pub(crate) fn is_returning(&self) -> bool {
        self.returning.is_some()
    }

    /// Returns `true` if the client has returned and its replay is not complete.
    pub(crate) fn awaits_replay(&self) -> bool {
        self.returning.is_some_and(|returning| !returning.is_live)
    }

    /// Cuts the connection without a close frame. The server's system gets a reset.
    pub(crate) fn cut(&mut self) {
        if let Some(transport) = &mut self.transport {
            // Without the reset, the connection ends with a FIN, which is a cut as well.
            let _ = SockRef::from(&*transport.socket()).set_linger(Some(std::time::Duration::ZERO));
        }
        self.release();
    }

    /// Returns the return of a client that was cut, which is due at `due`.
    pub(crate) fn return_at(&self, due: u64) -> Return {
        Return { due, first_tracker: self.first_tracker(), replay_left: 0, is_live: false }
    }

    /// Appends a `subscribe` to all topics of the client, with its positions.
    pub(super) fn write_recover(&self, key: [u8; 4], state: &mut ThreadState<'_>) {
        let topics = state.plan.topics_from(self.topic());
        let positions: Vec<_> =
            state.topic_recoveries(self.first_tracker()).iter().map(|topic| topic.position).collect();
        state.encoder.write_subscribe_list(&mut state.output, topics.zip(positions), key);
    }

    /// Processes the answer to `subscribe`.
    pub(super) fn on_subscribed_list(
        &mut self,
        message: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        let Ok(WithData { data: SubscribedList { topics } }) = serde_json::from_slice(message) else {
            return Err(DisconnectReason::Rejected("subscribed_not_understood".to_owned()));
        };
        let mut replay = 0;
        for (at, entry) in topics.iter().enumerate() {
            if let Some(error) = &entry.error {
                return Err(DisconnectReason::Rejected(error.code.clone()));
            }
            if !entry.has_history() {
                return Err(DisconnectReason::NoHistory);
            }
            if self.is_returning() {
                state.counters.recovery.count_answer(entry);
            }
            if let Some(topic) = state.topic_recoveries(self.first_tracker()).get_mut(at) {
                replay += topic.start(entry);
            }
        }
        self.stage = Stage::Open;
        match &mut self.returning {
            None => state.counters.connect.record(now.saturating_sub(self.connect_started)),
            Some(returning) => returning.replay_left = replay,
        }
        self.check_live(now, state);
        Ok(())
    }

    /// Processes a message of a topic.
    #[inline]
    pub(super) fn on_recoverable(
        &mut self,
        stamp: Stamp,
        message: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) {
        let is_replayed = state.record_recoverable(self.receiver, stamp, message);
        if is_replayed && let Some(returning) = &mut self.returning {
            returning.replay_left = returning.replay_left.saturating_sub(1);
            self.check_live(now, state);
        }
    }

    /// Processes a `gap` or a `position`.
    pub(super) fn on_gap(&mut self, message: &[u8], state: &mut ThreadState<'_>) {
        let Ok(WithData { data: gap }) = serde_json::from_slice::<WithData<ToldGap>>(message) else {
            state.counters.count_error("gap_not_understood");
            return;
        };
        let topic = state.encoder.topic_number(&gap.topic);
        let at = state.plan.topics_from(self.topic()).position(|own| Some(own) == topic);
        let Some(topic) = at.and_then(|at| state.topic_recoveries(self.first_tracker()).get_mut(at)) else {
            state.counters.misdelivered += 1;
            return;
        };
        let skipped = topic.on_gap(&gap);
        state.counters.recovery.gaps += u64::from(gap.reason.is_some());
        state.skip(skipped);
    }

    /// Counts a client that has all messages that were kept when it subscribed again.
    fn check_live(&mut self, now: u64, state: &mut ThreadState<'_>) {
        use std::sync::atomic::Ordering::Relaxed;

        let Some(returning) = self.returning.as_mut().filter(|returning| returning.replay_left == 0) else {
            return;
        };
        if !std::mem::replace(&mut returning.is_live, true) {
            state.counters.recovery.live += 1;
            state.counters.recovery.live_times.record(now.saturating_sub(returning.due));
            state.shared.live.fetch_add(1, Relaxed);
        }
    }
}
