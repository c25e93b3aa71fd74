//! Three worker threads with a thousand subscribers each, and two publishers. No thread waits for
//! another.
//!
//! Run it with `cargo run -p deeperhub-router --example threads`.

use deeperhub_router::{Config, DeliveryFlow, Router, Shard, ShardId, Subscription, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};

const WORKERS: u16 = 3;
const CLIENTS: u32 = 1000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let router = Router::new(WORKERS, Config::default());
    let stop = AtomicBool::new(false);
    let everything = Subscription::parse("scores.>")?;
    let football = Topic::parse("scores.football")?;
    let tennis = Topic::parse("scores.tennis")?;

    let mut shards: Vec<_> = (0..WORKERS).map(|worker| router.attach(ShardId(worker))).collect();
    for shard in &mut shards {
        for client in 0..CLIENTS {
            shard.subscribe(client, &everything);
        }
    }
    thread::scope(|scope| {
        let workers: Vec<_> = shards.into_iter().map(|shard| scope.spawn(|| work(shard, &stop))).collect();
        let publishers: Vec<_> = [(&football, 1), (&tennis, 2)]
            .into_iter()
            .map(|(topic, source)| {
                let router = router.clone();
                scope.spawn(move || {
                    for message in 0..500_u32 {
                        if router.publish(topic, Some(source), 4, || message).congested {
                            // A server would stop reading from this publisher until congestion
                            // ends.
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for publisher in publishers {
            let _ = publisher.join();
        }
        stop.store(true, Ordering::Release);
        for (number, worker) in workers.into_iter().enumerate() {
            worker.thread().unpark();
            println!("worker {number} delivered {} messages", worker.join().unwrap_or_default());
        }
    });
    Ok(())
}

fn work(mut shard: Shard<u32>, stop: &AtomicBool) -> u64 {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut delivered = 0;
    loop {
        // Load it first: everything published before it was set is then delivered below.
        let is_last = stop.load(Ordering::Acquire);
        let poll = shard.poll_deliver(&mut cx, |_client, _message| {
            delivered += 1;
            DeliveryFlow::Continue
        });
        if poll.is_pending() {
            if is_last {
                return delivered;
            }
            thread::park();
        }
    }
}
