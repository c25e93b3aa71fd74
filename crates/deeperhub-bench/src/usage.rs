//! CPU time and memory of the generator and the server.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::plan::Plan;
use crate::report::{Measurements, ServerMeasurements};
use crate::scenario::StopCondition;
use crate::server_process::{ProcessUsage, ServerProcess};
use crate::shared_state::SharedState;

/// Looks at the measurements at the start and the end of the measured time, as near as the looks are.
#[derive(Debug, Default)]
pub(crate) struct UsageSampler {
    from: Option<UsageSample>,
    to: Option<UsageSample>,
    over: bool,
    /// What the server had before anything was asked of it.
    before: Option<ProcessUsage>,
}

#[derive(Debug, Clone, Copy, Default)]
struct UsageSample {
    at: u64,
    cpu: u64,
    server: Option<ProcessUsage>,
}

impl UsageSampler {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { before: usage(plan.server), ..Self::default() }
    }

    pub(crate) fn sample(&mut self, plan: &Plan, shared: &SharedState) {
        let Some(start) = shared.start() else { return };
        let at = shared.now();
        let (from, to) = measured(plan, start);
        if at < from || self.over {
            return;
        }
        let sample = UsageSample { at, cpu: cpu(), server: usage(plan.server) };
        self.from.get_or_insert(sample);
        self.to = Some(sample);
        self.over = at >= to || (plan.scenario.has_messages() && !shared.is_sending());
    }

    pub(crate) fn measurements(&self, plan: &Plan, shared: &SharedState) -> Measurements {
        let start = shared.start().unwrap_or_default();
        let (first, last) = (self.from.unwrap_or_default(), self.to.unwrap_or_default());
        let (from, to) = measured(plan, start);
        let server = match (self.before, first.server, last.server) {
            (Some(before), Some(from), Some(to)) => Some(ServerMeasurements {
                cpu: to.cpu.saturating_sub(from.cpu),
                resident_before: before.resident,
                resident: to.resident,
            }),
            _ => None,
        };
        Measurements {
            start,
            measured: to.min(last.at).saturating_sub(from),
            cpu: last.cpu.saturating_sub(first.cpu),
            cpu_interval: last.at.saturating_sub(first.at),
            server,
        }
    }
}

/// What the server uses; a process that has ended is told by its connections.
pub(crate) fn usage(server: Option<ServerProcess>) -> Option<ProcessUsage> {
    server.and_then(|server| server.usage().ok())
}

/// From when to when is measured, in nanoseconds since the epoch.
fn measured(plan: &Plan, start: u64) -> (u64, u64) {
    match plan.stop {
        StopCondition::Messages(_) => (start, u64::MAX),
        StopCondition::Time { warmup, measured } => {
            let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let from = start.saturating_add(nanoseconds(warmup));
            (from, from.saturating_add(nanoseconds(measured)))
        }
    }
}

/// The time for which the process had a processor, in nanoseconds.
fn cpu() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
