//! Measures appends to streams on a Redis server of its own: messages a second, and CPU time of the
//! driver's thread and of Redis for each. Needs `redis-server` and Linux (`/proc`).
//!
//! `cargo bench -p deeperhub-cluster --features redis --bench store [-- MESSAGES]`

// A measurement that cannot start has no other report than a panic.
#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Append, AppendError, AppendNumber, Appended, Broker, BrokerUrl, Config, EnqueueError, Envelope,
    InterestChange, JoinOutcome, Message, MessageHandler, PendingAnswer, RawJson, StreamLimits, StreamRead,
    Topic, TraceContext, connect,
};

/// Messages of a measurement, unless an argument says otherwise.
const MESSAGES: u64 = 200_000;

/// Length of each payload.
const PAYLOAD_BYTES: usize = 200;

const LIMITS: StreamLimits =
    StreamLimits { messages: 100, ttl: Duration::from_secs(600), forget: Duration::from_secs(3600) };

/// Counts what the driver reports.
#[derive(Default)]
struct Counts {
    appended: AtomicU64,
    failed: AtomicU64,
    received: AtomicU64,
}

struct Counter(Arc<Counts>);

impl MessageHandler for Counter {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        if let Message::Stored { .. } = envelope.message {
            self.0.received.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    fn on_appended(&self, _number: AppendNumber, outcome: Result<Appended, AppendError>) {
        let count = if outcome.is_ok() { &self.0.appended } else { &self.0.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn connections(&self) -> u64 {
        0
    }
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap().port();
        let child = Command::new("redis-server")
            .args(["--save", "", "--bind", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, url: format!("redis://127.0.0.1:{port}") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the CPU time of a process or thread in seconds, from its `stat` file.
fn cpu_seconds(stat: &str) -> f64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    // The kernel reports hundredths of a second on all common platforms.
    (ticks(11) + ticks(12)) / 100.0
}

/// Returns the `stat` file of the driver's thread.
fn driver_stat() -> String {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux has /proc");
    threads
        .filter_map(|thread| Some(thread.ok()?.path()))
        .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "cluster"))
        .map(|path| path.join("stat").display().to_string())
        .expect("the driver runs")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Append,
    /// The node follows the topics, so it also receives each message.
    AppendAndReceive,
}

fn measure(kind: Kind, topics: usize, messages: u64) {
    let server = Server::start();
    let (broker, driver) =
        connect(Config::new(BrokerUrl::parse(&server.url).unwrap()), "bench", "1").unwrap();
    let counts = Arc::<Counts>::default();
    let driver = driver.spawn(Counter(Arc::clone(&counts))).unwrap();
    assert_eq!(driver.wait_for_join(Duration::from_secs(30)), Some(JoinOutcome::Joined));
    let topics: Vec<_> = (0..topics).map(|number| Topic::parse(format!("bench.{number}")).unwrap()).collect();
    if kind == Kind::AppendAndReceive {
        broker.change_interest(&Arc::from("bench.>"), InterestChange::Gained);
        std::thread::sleep(Duration::from_millis(500));
    }
    let payload = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES - 2));
    let payload = RawJson::parse(&payload).unwrap();
    let redis_stat = format!("/proc/{}/stat", server.child.id());
    let driver_stat = driver_stat();
    let cpu = [&driver_stat, &redis_stat].map(|stat| cpu_seconds(stat));
    let began = Instant::now();
    for number in 0..messages {
        let topic = &topics[number as usize % topics.len()];
        while send(&broker, kind, topic, payload, number) == Err(EnqueueError::Full) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    // The outcome of an append says that all messages before it are confirmed.
    let mut appends = if kind == Kind::Plain { 0 } else { messages };
    appends += 1;
    while send(&broker, Kind::Append, &topics[0], payload, messages) == Err(EnqueueError::Full) {
        std::thread::sleep(Duration::from_micros(200));
    }
    let received = if kind == Kind::AppendAndReceive { messages } else { 0 };
    while counts.appended.load(Ordering::Relaxed) + counts.failed.load(Ordering::Relaxed) < appends
        || counts.received.load(Ordering::Relaxed) < received
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0);
    let seconds = began.elapsed().as_secs_f64();
    let driver_cpu = cpu_seconds(&driver_stat) - cpu[0];
    let redis_cpu = cpu_seconds(&redis_stat) - cpu[1];
    let micros = |cpu: f64| cpu * 1e6 / messages as f64;
    println!(
        "{kind:?}, {} topics: {:.0} a second; CPU each: driver {:.2} µs, Redis {:.2} µs",
        topics.len(),
        messages as f64 / seconds,
        micros(driver_cpu),
        micros(redis_cpu),
    );
    // The next measurement finds its own driver's thread.
    broker.stop(Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(driver.wait_for_end());
}

/// Measures reads of 100 messages each, 64 in a call.
fn measure_reads(reads: usize) {
    let server = Server::start();
    let (broker, driver) =
        connect(Config::new(BrokerUrl::parse(&server.url).unwrap()), "bench", "1").unwrap();
    let counts = Arc::<Counts>::default();
    let driver = driver.spawn(Counter(Arc::clone(&counts))).unwrap();
    assert_eq!(driver.wait_for_join(Duration::from_secs(30)), Some(JoinOutcome::Joined));
    let topics: Vec<_> = (0..64).map(|number| Topic::parse(format!("bench.{number}")).unwrap()).collect();
    let payload = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES - 2));
    let payload = RawJson::parse(&payload).unwrap();
    for number in 0..6400 {
        send(&broker, Kind::Append, &topics[number as usize % 64], payload, number).unwrap();
    }
    while counts.appended.load(Ordering::Relaxed) < 6400 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let redis_stat = format!("/proc/{}/stat", server.child.id());
    let driver_stat = driver_stat();
    let cpu = [&driver_stat, &redis_stat].map(|stat| cpu_seconds(stat));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let began = Instant::now();
    for _ in 0..reads / 64 {
        let read = |topic: &Topic<'static>| StreamRead {
            topic: topic.clone(),
            after: None,
            messages: 100,
            limits: LIMITS,
            creates: false,
            follows: false,
        };
        let reply = broker.read_streams(topics.iter().map(read).collect()).unwrap();
        let ranges = runtime.block_on(reply).unwrap();
        assert!(ranges.iter().all(|range| range.as_ref().is_ok_and(|range| range.messages.len() == 100)));
    }
    let each = |seconds: f64| seconds * 1e6 / (reads / 64 * 64) as f64;
    println!(
        "Read of 100 messages: {:.0} a second; CPU each: driver {:.1} µs, Redis {:.1} µs",
        1e6 / each(began.elapsed().as_secs_f64()),
        each(cpu_seconds(&driver_stat) - cpu[0]),
        each(cpu_seconds(&redis_stat) - cpu[1]),
    );
    broker.stop(Instant::now());
    runtime.block_on(driver.wait_for_end());
}

fn send(
    broker: &Broker,
    kind: Kind,
    topic: &Topic<'static>,
    payload: RawJson<'_>,
    number: u64,
) -> Result<(), EnqueueError> {
    let (topic, trace) = (topic.borrow(), TraceContext::default());
    if kind == Kind::Plain {
        return broker.publish(Message::Publish { topic, from: None, trace, payload });
    }
    let append = Append {
        topic,
        limits: LIMITS,
        known: None,
        from: None,
        excludes_publisher: false,
        trace,
        payload,
        once: None,
    };
    broker.append(append, AppendNumber(number))
}

fn main() {
    let messages = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(MESSAGES);
    for (kind, topics) in
        [(Kind::Plain, 1000), (Kind::Append, 1), (Kind::Append, 1000), (Kind::AppendAndReceive, 1000)]
    {
        measure(kind, topics, messages);
    }
    measure_reads(messages as usize / 10);
}
