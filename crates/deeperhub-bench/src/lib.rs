//! Drives a running server and measures it: `deeperhub-ws bench`.
//!
//! A run is a [`Plan`], carried out by one [`Worker`] for each thread. A worker is a loop
//! over its connections: no task, no queue and no timer of their own, one buffer to read into and one to write from,
//! so that the generator is not what is measured. Every message carries a [`Stamp`](stamp::Stamp), from which its
//! receiver tells latency, loss, duplicates and order.

mod args;
mod connection;
mod counters;
mod disconnect_reason;
mod frame;
mod handshake;
mod message_encoder;
mod plan;
mod progress;
mod report;
mod scenario;
mod schedule;
mod sequence_tracker;
mod server_process;
mod server_url;
mod shared_state;
mod stamp;
mod thread_state;
mod timer;
mod tls;
mod transport;
mod usage;
mod worker;

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use tungstenite::handshake::client::generate_key;

pub use args::Bench;
use counters::Counters;
use handshake::Handshake;
use plan::Plan;
use progress::Progress;
use report::{Measurements, Report};
use shared_state::SharedState;
use thread_state::ThreadState;
use usage::UsageSampler;
use worker::{Endpoint, Worker};

/// The run could not be carried out, or lost messages.
const FAILED: u8 = 1;
/// Flags that do not go together.
const BAD_CONFIGURATION: u8 = 2;

/// Between two looks at a run that goes on.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Open files of the process besides connections.
const OTHER_OPEN_FILES: u64 = 64;

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
        let address = plan.url.address.resolve();
        address.map_err(|error| format!("cannot find {}: {error}", plan.url.address))
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
    let (counters, measurements) = match run_workers(&plan, &Endpoint { address, tls }) {
        Ok(done) => done,
        Err(error) => return refuse(FAILED, &format!("the system refuses what the bench needs: {error}")),
    };
    if let Some(sentence) = missing_connections(&plan, &counters) {
        return refuse(FAILED, &sentence);
    }
    let report = Report::new(&plan, &counters, measurements);
    let printed = if plan.json {
        match report.json() {
            Ok(json) => print(&format_args!("{json}\n")),
            Err(error) => return refuse(FAILED, &format!("the figures cannot be written as JSON: {error}")),
        }
    } else {
        print(&report)
    };
    if plan.fail_on_loss && report.has_faults() { ExitCode::from(FAILED) } else { printed }
}

type Tls = Option<(std::sync::Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>)>;

fn tls(plan: &Plan) -> Result<Tls, String> {
    if !plan.url.tls {
        return Ok(None);
    }
    Ok(Some((tls::client_config(&plan.trust)?, tls::server_name(&plan.url.address.host)?)))
}

/// Raises this process's limit of open files as far as the connections need it.
fn raise_open_files(plan: &Plan) -> Result<(), String> {
    let connections = plan.clients + plan.publishers;
    let needed = connections as u64 + 4 * plan.threads as u64 + OTHER_OPEN_FILES;
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
fn run_workers(plan: &Plan, endpoint: &Endpoint) -> io::Result<(Counters, Measurements)> {
    let shared = SharedState::new(plan);
    // All connections may have one key: it is there to tell a server that answers from one that repeats.
    let handshake = Handshake::new(plan, &generate_key());
    let run = RandomState::new().hash_one(std::process::id()) as u32;
    let workers: Vec<_> = (0..plan.threads)
        .map(|index| Worker::new(ThreadState::new(plan, &shared, &handshake, index, run), endpoint.clone()))
        .collect::<io::Result<_>>()?;
    let mut sampler = UsageSampler::new(plan);
    let mut counters = Counters::default();
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
            thread::sleep(PROGRESS_INTERVAL);
            progress.update(&shared);
            sampler.sample(plan, &shared);
            if has_failed(plan, &shared) {
                shared.stop();
            }
        }
        sampler.sample(plan, &shared);
        for thread in running.drain(..) {
            match thread.join() {
                Ok(result) => counters.add(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
    .map(|()| (counters, sampler.measurements(plan, &shared)))
}

/// Whether a run cannot become what was asked for, as connections are missing.
fn has_failed(plan: &Plan, shared: &SharedState) -> bool {
    use std::sync::atomic::Ordering::Relaxed;

    plan.scenario.has_messages() && shared.failed.load(Relaxed) > 0
}

/// Why a run says nothing about what was asked for.
fn missing_connections(plan: &Plan, counters: &Counters) -> Option<String> {
    let missing = if plan.scenario.has_messages() { counters.failed > 0 } else { counters.opened == 0 };
    if !missing {
        return None;
    }
    let kinds: Vec<_> = counters.errors.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    let advice = match counters.errors.keys().next().map(String::as_str) {
        Some("connect_refused") => "; is a server running there?",
        Some("http_401") => "; the server needs a --token that it takes",
        Some("http_503") => "; the server's --max-connections may be lower",
        Some("error_unauthorized" | "error_forbidden") => "; give a --token that grants `bench.>`",
        Some("connect_no_free_port") => "; give more local addresses with --source",
        _ => "",
    };
    Some(format!(
        "cannot open {} of {} connections to {}: {}{advice}",
        counters.failed,
        plan.clients + plan.publishers,
        plan.url,
        kinds.join(", ")
    ))
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
