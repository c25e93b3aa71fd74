//! Healthy clients beside attackers. They check that each message is answered in order with its own
//! bytes, and measure latency.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::attack::{ConnectOptions, close_reason, ends};
use crate::wire::{RSV1, TEXT, Wire};

/// Interval between two messages of a client; within the default rate limit.
const SEND_INTERVAL: Duration = Duration::from_millis(15);

/// Longest wait for a reply or a delivery.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);

/// Latency in microseconds. A long wait counts for every message that would have been sent
/// meanwhile (no coordinated omission).
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) echoes: Histogram<u64>,
    /// Latency from a publish to its delivery.
    pub(crate) deliveries: Histogram<u64>,
}

impl Report {
    fn new() -> Self {
        let histogram = || Histogram::new(3).expect("three digits can be kept");
        Self { echoes: histogram(), deliveries: histogram() }
    }

    fn add(&mut self, other: &Self) {
        self.echoes += &other.echoes;
        self.deliveries += &other.deliveries;
    }

    /// Returns p99 of echoes or of deliveries, whichever is longer.
    pub(crate) fn p99(&self) -> Duration {
        let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99);
        Duration::from_micros(p99(&self.echoes).max(p99(&self.deliveries)))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, histogram) in [("echo", &self.echoes), ("delivery", &self.deliveries)] {
            if !histogram.is_empty() {
                let separator = if name == "echo" { "" } else { ", " };
                write!(
                    f,
                    "{separator}{name} p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, n={}",
                    histogram.value_at_quantile(0.5) as f64 / 1000.0,
                    histogram.value_at_quantile(0.99) as f64 / 1000.0,
                    histogram.max() as f64 / 1000.0,
                    histogram.len(),
                )?;
            }
        }
        Ok(())
    }
}

/// Healthy clients on a thread of their own, so that attackers in this process delay them little.
#[derive(Debug)]
pub(crate) struct HealthyClients {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Report, String>>,
}

impl HealthyClients {
    /// Connects echo clients and pairs of publisher and subscriber, which take `options` in turn.
    ///
    /// # Errors
    ///
    /// The refusal, if the server refuses one of them.
    pub(crate) fn start(options: &[ConnectOptions], echoes: usize, pairs: usize) -> Result<Self, String> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let options = options.to_vec();
        let (is_ready, ready) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(async {
                let mut tasks = JoinSet::new();
                for (n, options) in options.iter().cycle().take(echoes).enumerate() {
                    tasks.spawn(EchoClient::connect(options, n).await?.run(Arc::clone(&stopped)));
                }
                for (n, options) in options.iter().cycle().take(pairs).enumerate() {
                    tasks.spawn(Pair::connect(options, n).await?.run(Arc::clone(&stopped)));
                }
                // The receiver is gone only if the test has failed.
                let _ = is_ready.send(());
                let mut all = Report::new();
                while let Some(done) = tasks.join_next().await {
                    let report = done.map_err(|error| format!("a healthy client failed: {error}"))?;
                    all.add(&report?);
                }
                Ok(all)
            })
        });
        match ready.recv() {
            Ok(()) => Ok(Self { stop, thread }),
            Err(_) => match thread.join() {
                Ok(result) => Err(result.err().unwrap_or_default()),
                Err(_) => Err("a healthy client failed while it connected".to_owned()),
            },
        }
    }

    /// Returns `true` if a client has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops all clients after their current message.
    ///
    /// # Errors
    ///
    /// A description of what the first failed client saw.
    pub(crate) fn stop(self) -> Result<Report, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the thread of the healthy clients failed".to_owned())?
    }
}

struct EchoClient {
    name: String,
    wire: Wire,
    compresses: bool,
}

impl EchoClient {
    async fn connect(options: &ConnectOptions, n: usize) -> Result<Self, String> {
        let name = format!("healthy echo client {n}");
        let wire = options.connect().await.map_err(|refusal| format!("{name} was refused: {refusal}"))?;
        Ok(Self { name, wire, compresses: options.offer.is_some() })
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<Report, String> {
        let mut report = Report::new();
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let pad = "h".repeat(n * 131 % 2000);
            let text = format!(r#"{{"type":"echo","id":{n},"data":"{} {pad}"}}"#, self.name);
            let began = Instant::now();
            send(&mut self.wire, &text, self.compresses).await;
            let got = receive(&mut self.wire, &self.name).await?;
            if got != text {
                return Err(format!("{} sent {:?} and got {:?}", self.name, ends(&text), ends(&got)));
            }
            record(&mut report.echoes, began);
            n += 1;
            tokio::time::sleep(SEND_INTERVAL).await;
        }
        Ok(report)
    }
}

/// A publisher and a subscriber of its topic.
struct Pair {
    name: String,
    topic: String,
    publisher: Wire,
    subscriber: Wire,
    compresses: bool,
}

impl Pair {
    async fn connect(options: &ConnectOptions, n: usize) -> Result<Self, String> {
        let name = format!("healthy pair {n}");
        let refused = |refusal| format!("{name} was refused: {refusal}");
        let publisher = options.connect().await.map_err(refused)?;
        let mut subscriber = options.connect().await.map_err(refused)?;
        let subscription =
            if n.is_multiple_of(2) { format!("healthy.{n}.x") } else { format!("healthy.{n}.*") };
        let subscribe = format!(r#"{{"type":"subscribe","data":{{"topic":"{subscription}"}}}}"#);
        send(&mut subscriber, &subscribe, false).await;
        let reply = receive(&mut subscriber, &name).await?;
        if !reply.starts_with(r#"{"type":"subscribed""#) {
            return Err(format!("{name} could not subscribe: {reply}"));
        }
        let topic = format!("healthy.{n}.x");
        Ok(Self { name, topic, publisher, subscriber, compresses: options.offer.is_some() })
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<Report, String> {
        let mut report = Report::new();
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let message = format!(r#""{} {n} {}""#, self.name, "d".repeat(n * 97 % 1000));
            let topic = &self.topic;
            let publish =
                format!(r#"{{"type":"publish","id":{n},"data":{{"topic":"{topic}","message":{message}}}}}"#);
            let began = Instant::now();
            send(&mut self.publisher, &publish, self.compresses).await;
            let delivery = receive(&mut self.subscriber, &self.name).await?;
            record(&mut report.deliveries, began);
            let expected = format!(r#"{{"type":"message","data":{{"topic":"{topic}","message":{message}"#);
            if !delivery.starts_with(&expected) {
                return Err(format!(
                    "{} published {:?}, and the delivery was {:?}",
                    self.name,
                    ends(&publish),
                    ends(&delivery)
                ));
            }
            let published = receive(&mut self.publisher, &self.name).await?;
            let expected =
                format!(r#"{{"type":"published","id":{n},"data":{{"topic":"{topic}","subscribers":1"#);
            if !published.starts_with(&expected) {
                return Err(format!("{} published {n} and got {:?}", self.name, ends(&published)));
            }
            n += 1;
            tokio::time::sleep(SEND_INTERVAL).await;
        }
        Ok(report)
    }
}

async fn send(wire: &mut Wire, text: &str, compresses: bool) {
    if compresses {
        wire.send_compressed(text).await;
    } else {
        wire.send(TEXT, text.as_bytes()).await;
    }
}

/// Receives the next text message; anything else is an error.
async fn receive(wire: &mut Wire, name: &str) -> Result<String, String> {
    let frame = tokio::time::timeout(ANSWER_TIMEOUT, wire.receive()).await;
    match frame.map_err(|_| format!("{name} waited {ANSWER_TIMEOUT:?} for a response in vain"))? {
        None => Err(format!("{name} lost its connection without a close frame")),
        Some(frame) if frame.first & !RSV1 == TEXT => {
            let text = frame.text();
            if text.starts_with(r#"{"type":"goodbye""#) {
                Err(format!("{name} received {text}"))
            } else {
                Ok(text)
            }
        }
        Some(frame) => Err(format!("{name} was {}", close_reason(&frame))),
    }
}

fn record(histogram: &mut Histogram<u64>, began: Instant) {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    // The histogram resizes itself.
    let _ = histogram.record_correct(micros(began.elapsed()), micros(SEND_INTERVAL));
}
