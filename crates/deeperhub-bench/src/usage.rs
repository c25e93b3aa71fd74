//! CPU time and memory of the generator and of the server.

use rustix::time::{ClockId, clock_gettime};

use crate::plan::{MeasurementWindow, Plan};
use crate::report::{Measurements, ServerMeasurements};
use crate::server_process::{ProcessUsage, ServerProcess};
use crate::shared_state::SharedState;

/// Samples usage at the start and at the end of the measured time, as close as the sampling
/// interval allows.
#[derive(Debug, Default)]
pub(crate) struct UsageSampler {
    first: Option<UsageSample>,
    last: Option<UsageSample>,
    is_done: bool,
    /// Usage of the server before the first connection.
    before: Option<ProcessUsage>,
}

#[derive(Debug, Clone, Copy, Default)]
struct UsageSample {
    /// Time of the sample, in nanoseconds since the epoch of the run.
    time: u64,
    /// CPU time of this process so far, in nanoseconds.
    cpu: u64,
    server: Option<ProcessUsage>,
}

impl UsageSampler {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { before: usage(plan.server), ..Self::default() }
    }

    /// Takes a sample if the measured time has started. The first sample after the end of sending
    /// or of the measured time is the last one.
    pub(crate) fn sample(&mut self, plan: &Plan, shared: &SharedState) {
        let Some(window) = shared.measurement_window(plan) else { return };
        let time = shared.now();
        if time < window.from || self.is_done {
            return;
        }
        let sample = UsageSample { time, cpu: own_cpu_time(), server: usage(plan.server) };
        self.first.get_or_insert(sample);
        self.last = Some(sample);
        self.is_done = time >= window.to || (plan.scenario.has_messages() && !shared.is_sending());
    }

    /// Returns the usage between the first and the last sample.
    pub(crate) fn measurements(&self, plan: &Plan, shared: &SharedState) -> Measurements {
        let window = shared.measurement_window(plan).unwrap_or(MeasurementWindow { from: 0, to: 0 });
        let (first, last) = (self.first.unwrap_or_default(), self.last.unwrap_or_default());
        let server = match (self.before, first.server, last.server) {
            (Some(before), Some(first), Some(last)) => Some(ServerMeasurements {
                cpu: last.cpu.saturating_sub(first.cpu),
                resident_before: before.resident,
                resident: last.resident,
            }),
            _ => None,
        };
        Measurements {
            start: window.from,
            measured: window.to.min(last.time).saturating_sub(window.from),
            cpu: last.cpu.saturating_sub(first.cpu),
            cpu_interval: last.time.saturating_sub(first.time),
            server,
        }
    }
}

/// Returns the usage of the server's process. Returns `None` without `--server-pid`, or if the
/// process has ended. In the latter case, the report counts its connections as dropped.
fn usage(server: Option<ServerProcess>) -> Option<ProcessUsage> {
    server.and_then(|server| server.usage().ok())
}

/// Returns the CPU time of this process, in nanoseconds.
fn own_cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
