//! The thread that expires messages and forgets unused streams.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crate::hub::Hub;

/// Interval between sweeps. Ages of messages are counted in seconds.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The running thread. Dropping this value ends it.
#[derive(Debug)]
pub(crate) struct StreamSweeper {
    is_stopped: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl StreamSweeper {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the system starts no thread.
    pub(crate) fn start(hub: Arc<Hub>) -> io::Result<Self> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let handle = std::thread::Builder::new().name("dh-history".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // A panic ends this sweep only. The panic hook has logged it, and locks that it leaves
                // poisoned are taken anyway.
                let _ = catch_unwind(AssertUnwindSafe(|| sweep(&hub)));
                std::thread::park_timeout(SWEEP_INTERVAL);
            }
        })?;
        Ok(Self { is_stopped, handle: Some(handle) })
    }
}

impl Drop for StreamSweeper {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(handle) = self.handle.take() {
            Thread::unpark(handle.thread());
            // The thread does not panic.
            let _ = handle.join();
        }
    }
}

/// Sweeps all stripes once.
fn sweep(hub: &Hub) {
    let Hub { streams, router, .. } = hub;
    streams.clock.synchronize();
    if let Some(disk) = &streams.disk {
        disk.maintain(streams.clock.unix_ms(streams.clock.now()), streams.longest_ttl());
    }
    if streams.features() == deeperhub_protocol::message::Features::NONE {
        return;
    }
    if let Some(memory) = &hub.config.listener.memory {
        streams.yield_memory(router, memory, hub.limits.load().history.budget.bytes);
    }
    let now = streams.clock.seconds(streams.clock.now());
    streams.trim(router);
    for stripe in router.stripes() {
        // Each step releases the lock, so publishes wait for one step at most.
        while streams.sweep(router, stripe, now) {}
    }
}
