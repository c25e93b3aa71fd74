//! Drives a running server and measures it: `deeperhub-ws bench`.
//!
//! A run is a [`Plan`], carried out by one [`Worker`] for each thread. A worker is a loop
//! over its connections: no task, no queue and no timer of their own, one buffer to read into and one to write from,
//! so that the generator is not what is measured. Every message carries a [`Stamp`](stamp::Stamp), from which its
//! receiver tells latency, loss, duplicates and order.

mod args;
mod connection;
mod end;
mod handshake;
mod ledger;
mod local;
mod outgoing;
mod plan;
mod progress;
mod report;
mod schedule;
mod server_process;
mod shared;
mod stamp;
mod tally;
mod target;
mod timer;
mod tls;
mod transport;
mod wire;
mod worker;

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tungstenite::handshake::client::generate_key;

pub use args::Bench;
use handshake::Handshake;
use local::Local;
use plan::{Extent, Plan};
use progress::Progress;
use report::{Clocks, Report, ServerClocks};
use server_process::{ServerProcess, Usage};
use shared::Shared;
use tally::Tally;
use worker::{Remote, Worker};

/// The run could not be carried out, or lost messages.
const FAILED: u8 = 1;
/// Flags that do not go together.
const BAD_CONFIGURATION: u8 = 2;

/// Between two looks at a run that goes on.
const LOOK: Duration = Duration::from_millis(50);
/// Open files of the process besides connections.
const OTHER_FILES: u64 = 64;

/// Carries out a run and prints what it showed.
///
/// Exit codes: 0 when the run was carried out, whatever it showed; 1 when it could not be, or when messages were lost
/// and `--fail-on-loss` is given; 2 for flags that do not go together.
pub fn run(bench: Bench) -> ExitCode {
    let refuse = |code: u8, sentence: &str| {
        let _ = writeln!(io::stderr(), "error: {sentence}");
        ExitCode::from(code)
    };
    let plan = match Plan::new(bench) {
        Ok(plan) => plan,
        Err(sentence) => return refuse(BAD_CONFIGURATION, &sentence),
    };
    let tls = match tls(&plan) {
        Ok(tls) => tls,
        Err(sentence) => return refuse(BAD_CONFIGURATION, &sentence),
    };
    let prepared = raise_open_files(&plan).and_then(|()| {
        let address = plan.target.address.resolve();
        address.map_err(|error| format!("cannot find {}: {error}", plan.target.address))
    });
    let address = match prepared {
        Ok(address) => address,
        Err(sentence) => return refuse(FAILED, &sentence),
    };
    if let Some(source) = plan.sources.iter().find(|source| source.is_ipv4() != address.is_ipv4()) {
        let family = if address.is_ipv4() { "an IPv4" } else { "an IPv6" };
        let sentence = format!(
            "invalid value '{source}' for --source: the server is {}; expected {family} address of this machine",
            address.ip()
        );
        return refuse(BAD_CONFIGURATION, &sentence);
    }
    if let Some(server) = plan.server
        && let Err(error) = server.usage()
    {
        let sentence = format!(
            "invalid value '{}' for --server-pid: it cannot be looked at ({error}); expected the server's process id \
             on this machine",
            server.0
        );
        return refuse(BAD_CONFIGURATION, &sentence);
    }
    let (tally, clocks) = match carry_out(&plan, &Remote { address, tls }) {
        Ok(done) => done,
        Err(error) => return refuse(FAILED, &format!("the system refuses what the bench needs: {error}")),
    };
    if let Some(sentence) = not_carried_out(&plan, &tally) {
        return refuse(FAILED, &sentence);
    }
    let report = Report::new(&plan, &tally, clocks);
    let printed = if plan.json {
        match report.json() {
            Ok(json) => print(&format_args!("{json}\n")),
            Err(error) => return refuse(FAILED, &format!("the figures cannot be written as JSON: {error}")),
        }
    } else {
        print(&report)
    };
    if plan.fail_on_loss && report.has_loss() { ExitCode::from(FAILED) } else { printed }
}

type Tls = Option<(std::sync::Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>)>;

fn tls(plan: &Plan) -> Result<Tls, String> {
    if !plan.target.tls {
        return Ok(None);
    }
    Ok(Some((tls::config(&plan.trust)?, tls::server_name(&plan.target.address.host)?)))
}

/// Raises this process's limit of open files as far as the connections need it.
fn raise_open_files(plan: &Plan) -> Result<(), String> {
    let connections = plan.clients + plan.publishers;
    let needed = connections as u64 + 4 * plan.threads as u64 + OTHER_FILES;
    let (soft, hard) = rlimit::Resource::NOFILE
        .get()
        .map_err(|error| format!("cannot read the limit of open files (RLIMIT_NOFILE): {error}"))?;
    if soft >= needed || rlimit::increase_nofile_limit(needed).unwrap_or(soft) >= needed {
        return Ok(());
    }
    Err(format!(
        "the limit of open files (RLIMIT_NOFILE) is {hard} for this user, but {connections} connections need {needed}: \
         raise it (`ulimit -n {needed}`), or give fewer connections"
    ))
}

/// Runs the workers, and measures what they cost.
fn carry_out(plan: &Plan, remote: &Remote) -> io::Result<(Tally, Clocks)> {
    let shared = Shared::new(plan);
    // All connections may have one key: it is there to tell a server that answers from one that repeats.
    let handshake = Handshake::new(plan, &generate_key());
    let run = RandomState::new().hash_one(std::process::id()) as u32;
    let workers: Vec<_> = (0..plan.threads)
        .map(|index| Worker::new(Local::new(plan, &shared, &handshake, index, run), remote.clone()))
        .collect::<io::Result<_>>()?;
    let mut meter = Meter::new(plan);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .enumerate()
            .map(|(index, worker)| {
                thread::Builder::new().name(format!("bench {index}")).spawn_scoped(scope, || {
                    let result = worker.run();
                    if result.is_err() {
                        // The others would wait for this one.
                        shared.stop();
                    }
                    result
                })
            })
            .collect();
        let mut progress = Progress::new(plan);
        let mut running: Vec<_> =
            threads.into_iter().filter_map(|thread| thread.inspect_err(|_| shared.stop()).ok()).collect();
        if running.len() < plan.threads {
            shared.stop();
        }
        while running.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(LOOK);
            progress.update(&shared);
            meter.look(plan, &shared);
            if is_in_vain(plan, &shared) {
                shared.stop();
            }
        }
        meter.look(plan, &shared);
        for thread in running.drain(..) {
            match thread.join() {
                Ok(result) => tally.add(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
    .map(|()| (tally, meter.clocks(plan, &shared)))
}

/// Whether a run cannot become what was asked for, as connections are missing.
fn is_in_vain(plan: &Plan, shared: &Shared) -> bool {
    use std::sync::atomic::Ordering::Relaxed;

    plan.scenario.has_messages() && shared.failed.load(Relaxed) > 0
}

/// Why a run says nothing about what was asked for.
fn not_carried_out(plan: &Plan, tally: &Tally) -> Option<String> {
    let missing = if plan.scenario.has_messages() { tally.failed > 0 } else { tally.opened == 0 };
    if !missing {
        return None;
    }
    let kinds: Vec<_> = tally.errors.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    let advice = match tally.errors.keys().next().map(String::as_str) {
        Some("connect_refused") => "; is a server running there?",
        Some("http_401") => "; the server needs a --token that it takes",
        Some("http_503") => "; the server's --max-connections may be lower",
        Some("error_unauthorized" | "error_forbidden") => "; give a --token that grants `bench.>`",
        Some("connect_no_free_port") => "; give more local addresses with --source",
        _ => "",
    };
    Some(format!(
        "cannot open {} of {} connections to {}: {}{advice}",
        tally.failed,
        plan.clients + plan.publishers,
        plan.target,
        kinds.join(", ")
    ))
}

/// Looks at the clocks at the start and the end of the measured time, as near as the looks are.
#[derive(Debug, Default)]
struct Meter {
    from: Option<Look>,
    to: Option<Look>,
    over: bool,
    /// What the server had before anything was asked of it.
    before: Option<Usage>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Look {
    at: u64,
    cpu: u64,
    server: Option<Usage>,
}

impl Meter {
    fn new(plan: &Plan) -> Self {
        Self { before: usage(plan.server), ..Self::default() }
    }

    fn look(&mut self, plan: &Plan, shared: &Shared) {
        let Some(start) = shared.start() else { return };
        let at = shared.now();
        let (from, to) = measured(plan, start);
        if at < from || self.over {
            return;
        }
        let look = Look { at, cpu: cpu(), server: usage(plan.server) };
        self.from.get_or_insert(look);
        self.to = Some(look);
        self.over = at >= to || (plan.scenario.has_messages() && !shared.is_sending());
    }

    fn clocks(&self, plan: &Plan, shared: &Shared) -> Clocks {
        let start = shared.start().unwrap_or_default();
        let (seen_from, seen_to) = (self.from.unwrap_or_default(), self.to.unwrap_or_default());
        let (from, to) = measured(plan, start);
        let server = match (self.before, seen_from.server, seen_to.server) {
            (Some(before), Some(from), Some(to)) => Some(ServerClocks {
                cpu: to.cpu.saturating_sub(from.cpu),
                resident_before: before.resident,
                resident: to.resident,
            }),
            _ => None,
        };
        Clocks {
            start,
            measured: to.min(seen_to.at).saturating_sub(from),
            cpu: seen_to.cpu.saturating_sub(seen_from.cpu),
            cpu_of: seen_to.at.saturating_sub(seen_from.at),
            server,
        }
    }
}

/// What the server uses; a process that has ended is told by its connections.
fn usage(server: Option<ServerProcess>) -> Option<Usage> {
    server.and_then(|server| server.usage().ok())
}

/// From when to when is measured, in nanoseconds since the epoch.
fn measured(plan: &Plan, start: u64) -> (u64, u64) {
    match plan.extent {
        Extent::Messages(_) => (start, u64::MAX),
        Extent::Time { warmup, measured } => {
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

/// Prints to standard output. A closed pipe is no error, as with `| head`.
fn print(text: &dyn Display) -> ExitCode {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: cannot write to standard output: {error}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}
