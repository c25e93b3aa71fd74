//! Runs a client for a long time against the real hub, behind a proxy that breaks connections, and
//! compares what its application saw with what was published.

mod arguments;
mod client;
mod hub;
mod memory;
mod oracle;
mod proxy;
mod publisher;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;

use self::arguments::Arguments;
use self::client::Client;
use self::memory::MemoryLog;
use self::oracle::Oracle;

/// An error that ends the run, for people.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Topics that the backend publishes to.
const TOPICS: usize = 20;

/// Topic that the client itself publishes to.
const OWN_TOPIC: &str = "soak.own";

/// Time that the client has to start, and to catch up after the last fault.
const CATCH_UP: Duration = Duration::from_secs(60);

fn topic(index: usize) -> String {
    format!("soak.{index}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a soak as the command line says.
pub(crate) async fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let arguments = match Arguments::parse(arguments) {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    match soak(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns `true` if nothing was wrong.
async fn soak(arguments: &Arguments) -> Result<bool> {
    println!("seed {}, {:?}", arguments.seed, arguments.duration);
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let (faults, has_faults) = watch::channel(true);
    let oracle = Arc::new(Mutex::new(Oracle::default()));
    let restarts = Arc::clone(&oracle);
    let on_restart = move || lock(&restarts).hub_restarts();
    let (addresses, hub) =
        hub::keep_running(arguments, has_faults.clone(), random.fork(), on_restart).await?;
    let proxy = proxy::start(addresses.clone(), has_faults, random.fork()).await?;

    let mut client = Client::start(&arguments.driver)?;
    let options = json!({"min_delay_ms": 50, "max_delay_ms": 2000, "connect_timeout_ms": 4000, "pong_timeout_ms": 3000});
    client.send(&json!({"do": "connect", "url": format!("ws://{proxy}/"), "options": options})).await?;
    for topic in (0..TOPICS).map(topic).chain([OWN_TOPIC.to_owned()]) {
        client.send(&json!({"do": "subscribe", "as": topic, "topic": topic})).await?;
    }
    let deadline = Instant::now() + CATCH_UP;
    while lock(&oracle).live_topics() <= TOPICS {
        if Instant::now() > deadline {
            return Err("the client's subscriptions were not live after a minute".into());
        }
        client.observe(Duration::from_millis(100), |event| lock(&oracle).observe(event)).await?;
    }

    let publisher = tokio::spawn(publisher::run(addresses, Arc::clone(&oracle), random.fork()));
    let start = Instant::now();
    let mut memory = MemoryLog::new(client.process_id());
    let mut own = 0_u64;
    while start.elapsed() < arguments.duration {
        own += 1;
        let excludes_self = random.u8(..) < 64;
        lock(&oracle).own_publish(own, excludes_self);
        client
            .send(&json!({"do": "publish", "as": own.to_string(), "topic": OWN_TOPIC,
                "message": {"n": own}, "exclude_self": excludes_self}))
            .await?;
        let pause = Duration::from_millis(random.u64(50..500));
        client.observe(pause, |event| lock(&oracle).observe(event)).await?;
        memory.sample(start.elapsed());
    }

    publisher.abort();
    faults.send_replace(false);
    let deadline = Instant::now() + CATCH_UP;
    while Instant::now() < deadline && !lock(&oracle).is_complete() {
        client.observe(Duration::from_millis(200), |event| lock(&oracle).observe(event)).await?;
    }
    client.stop().await;
    hub.abort();

    let mut oracle = lock(&oracle);
    let violations = oracle.finish();
    println!("{oracle}");
    println!("{memory}");
    for violation in &violations {
        println!("FAILED {violation}");
    }
    Ok(violations.is_empty() && memory.is_flat())
}
