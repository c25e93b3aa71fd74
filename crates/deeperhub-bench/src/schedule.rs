//! Due times of the messages of an open loop.

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The due times of one sender. Several senders share a rate, and each of them sends every
/// `senders`-th message.
///
/// Due times do not depend on the server. Late messages are sent as soon as possible and carry
/// their due time, so that latency includes the delay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Messages per second of all senders together.
    rate: u64,
    senders: u64,
    sender: u64,
}

impl Schedule {
    /// Creates the schedule of `sender`, which is one of `0..senders`.
    pub(crate) fn new(rate: u64, sender: u64, senders: u64) -> Self {
        Self { rate: rate.max(1), senders: senders.max(1), sender }
    }

    /// Returns the due time of this sender's message `number`, which counts from 0, in nanoseconds
    /// after the start.
    pub(crate) fn due(&self, number: u64) -> u64 {
        let before = (u128::from(number) * u128::from(self.senders)).saturating_add(u128::from(self.sender));
        u64::try_from(before.saturating_mul(NANOS_PER_SECOND) / u128::from(self.rate)).unwrap_or(u64::MAX)
    }

    /// Returns the number of this sender's messages that are due before `time`, in nanoseconds
    /// after the start.
    pub(crate) fn due_before(&self, time: u64) -> u64 {
        // Message `n` is due before `time` if `n * senders + sender` is less than `all`.
        let all = (u128::from(time) * u128::from(self.rate)).div_ceil(NANOS_PER_SECOND);
        let own = all.saturating_sub(u128::from(self.sender)).div_ceil(u128::from(self.senders));
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn senders_take_turns() {
        let due = |sender| {
            let schedule = Schedule::new(10, sender, 3);
            [0, 1, 2].map(|number| schedule.due(number) / 1_000_000)
        };
        assert_eq!(due(0), [0, 300, 600]);
        assert_eq!(due(1), [100, 400, 700]);
        assert_eq!(due(2), [200, 500, 800]);
    }

    #[test]
    fn due_times_saturate() {
        assert_eq!(Schedule::new(1, 0, u64::MAX).due(u64::MAX), u64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn all_senders_together_keep_the_rate(rate in 1..100_000_u64, senders in 1..20_u64, seconds in 1..4_u64) {
            let within = seconds * 1_000_000_000;
            let sent: u64 =
                (0..senders).map(|sender| Schedule::new(rate, sender, senders).due_before(within)).sum();
            prop_assert_eq!(sent, rate * seconds);
        }

        #[test]
        fn due_before_agrees_with_due(
            rate in 1..10_000_u64,
            senders in 1..20_u64,
            sender in 0..20_u64,
            time in 0..2_000_000_000_u64,
        ) {
            let schedule = Schedule::new(rate, sender % senders, senders);
            let before = schedule.due_before(time);
            prop_assert!(schedule.due(before) >= time);
            prop_assert!(before == 0 || schedule.due(before - 1) < time);
        }
    }
}
