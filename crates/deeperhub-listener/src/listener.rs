//! A running listener and its threads.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use deeperhub_metrics::{CellError, Cells};
use mio::net::TcpListener;
use tokio::sync::mpsc;

use crate::acceptor::{Acceptor, ListenOn, listen_on};
use crate::admission::Admission;
use crate::config::{Config, Limits};
use crate::control::Control;
use crate::drain::{DrainPlan, ReconnectTo};
use crate::metrics::Metrics;
use crate::session::Application;
use crate::worker::{self, WorkerCore};

/// Maximum time that [`Listener::stop`] waits for the threads. A thread that hangs thus does not
/// keep the program from ending.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time of a drain: a year. It keeps the deadline within the clock's range.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A running WebSocket listener: listening sockets, an acceptor thread and worker threads.
///
/// Dropping a listener ends all connections at once, without close frames. Call
/// [`drain`](Self::drain) first.
#[derive(Debug)]
pub struct Listener {
    /// Bound addresses, at least one.
    addresses: Vec<SocketAddr>,
    admission: Arc<Admission>,
    config: Arc<Config>,
    limits: Arc<ArcSwap<Limits>>,
    control: Arc<Control>,
    /// The threads, until [`stop`](Self::stop) or [`wait`](Self::wait) waits for them.
    threads: Mutex<Option<Threads>>,
    /// Waker that interrupts the acceptor's polling.
    stop_accepting: Arc<mio::Waker>,
}

/// Acceptor and worker threads of a listener.
#[derive(Debug)]
struct Threads {
    handles: Vec<thread::JoinHandle<()>>,
    /// Channel that closes when the last thread ends.
    last_ended: mpsc::Receiver<Infallible>,
}

impl Threads {
    /// Starts a thread that holds a sender of the channel `last_ended`.
    fn spawn(
        &mut self,
        name: String,
        running: &mpsc::Sender<Infallible>,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let running = running.clone();
        let run = move || {
            // The sender is dropped when the thread ends, even after a panic.
            let _running = running;
            run();
        };
        self.handles.push(thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)?);
        Ok(())
    }

    /// Waits for the threads, at most for `time`. Logs the threads that have not ended by then, and
    /// leaves them running.
    async fn join(mut self, time: Duration) {
        if tokio::time::timeout(time, self.last_ended.recv()).await.is_ok() {
            for thread in self.handles {
                // The thread catches and counts its panics, so there is no result to check.
                let _ = thread.join();
            }
            return;
        }
        for thread in self.handles.iter().filter(|thread| !thread.is_finished()) {
            let thread = thread.thread().name().unwrap_or_default();
            tracing::warn!(thread, ?time, "Thread did not stop in time");
        }
    }
}

/// Error of starting a listener.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is in use, not local or not allowed, or the system lacks resources to listen on
    /// it.
    #[error("cannot listen on {address}")]
    Listen {
        /// Requested address.
        address: SocketAddr,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started, or a worker's async runtime could not be created.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The metrics have cells for fewer workers, or another listener uses them.
    #[error("metrics do not fit the workers")]
    Metrics(#[from] CellError),
}

impl Listener {
    /// Binds the sockets and starts the threads. See [`Builder::bind`](crate::Builder::bind).
    pub(crate) fn start<A: Application>(
        on: ListenOn,
        config: Config,
        application: A,
        cells: &Cells,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let sockets = listen_on(on, config.backlog)
            .map_err(|(address, source)| StartError::Listen { address, source })?;
        let requested_address = match on {
            ListenOn::Address(address) => address,
            ListenOn::Loopback { port } => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        };
        let listen_error = |source| StartError::Listen { address: requested_address, source };
        let addresses =
            sockets.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(listen_error)?;
        let worker_count = config.workers.clamp(1, cells.workers());
        let admission = Admission::new(
            config.limits.max_connections,
            config.limits.max_connections_per_ip,
            config.connection_rate_per_ip,
            worker_count,
        );
        let admission = Arc::new(admission.with_loopback_limited(config.limits_loopback));
        let limits = Arc::new(ArcSwap::from_pointee(config.limits.clone()));
        let config = Arc::new(Config { workers: worker_count, ..config });
        let application = Arc::new(application);

        let control = Arc::new(Control::new(worker_count));
        let acceptor =
            Acceptor::new(sockets, Arc::clone(&control), Arc::clone(&admission), &config, metrics.clone())
                .map_err(listen_error)?;
        let stop_accepting = acceptor.stopper();
        let (running, last_ended) = mpsc::channel(1);
        let mut threads = Threads { handles: Vec::with_capacity(worker_count + 1), last_ended };
        // If a thread cannot be started, `listener` is dropped, which ends the other threads.
        let listener = Self {
            addresses,
            admission,
            config: Arc::clone(&config),
            limits: Arc::clone(&limits),
            control: Arc::clone(&control),
            threads: Mutex::new(None),
            stop_accepting,
        };
        for index in 0..worker_count {
            let cells = metrics.worker(index)?;
            let runtime = worker::runtime().map_err(StartError::Thread)?;
            let application = Arc::clone(&application);
            let (config, limits) = (Arc::clone(&config), Arc::clone(&limits));
            let (metrics, control) = (metrics.clone(), Arc::clone(&control));
            threads.spawn(format!("hub-worker-{index}"), &running, move || {
                // The core is created on the worker's thread, since sessions never leave it.
                let core = WorkerCore::new(config, limits, metrics, Instant::now());
                worker::run(&*application, index, &runtime, &control, core, cells);
            })?;
        }
        threads.spawn("hub-acceptor".to_owned(), &running, move || acceptor.run())?;
        *listener.lock_threads() = Some(threads);
        Ok(listener)
    }

    fn lock_threads(&self) -> std::sync::MutexGuard<'_, Option<Threads>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first of [`local_addrs`](Self::local_addrs).
    pub fn local_addr(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns all bound addresses, at least one.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the number of connections, including those in their handshake and closing ones.
    pub fn connections(&self) -> usize {
        self.admission.open()
    }

    /// Returns the current limits.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// Replaces the limits. Workers use the new ones within a second. Open connections stay; their
    /// next messages and frames must keep to the new limits.
    pub fn set_limits(&self, limits: Limits) {
        self.admission.set_limits(limits.max_connections, limits.max_connections_per_ip);
        self.limits.store(Arc::new(limits));
    }

    /// Refuses new connections with 503 `draining`, and closes the open ones with 1001, spread over
    /// `time`. Refusals and closes tell clients when to reconnect, according to `reconnect_to`.
    ///
    /// Returns when no connection is left or `time` has passed, even if a worker hangs. The
    /// listener refuses new connections until it is dropped.
    pub async fn drain(&self, time: Duration, reconnect_to: ReconnectTo) {
        let time = time.min(MAX_DRAIN_TIME);
        let open = self.admission.open();
        let plan = DrainPlan::new(Instant::now(), time, open, reconnect_to, &self.config);
        self.control.drain(Arc::new(plan));
        let _ = tokio::time::timeout(time, self.admission.wait_empty()).await;
    }

    /// Stops the acceptor and the workers, and waits at most five seconds for their threads. Open
    /// connections are dropped. A thread that hangs is logged and left running.
    pub async fn stop(&self) {
        self.end_threads();
        let threads = self.lock_threads().take();
        if let Some(threads) = threads {
            threads.join(STOP_TIMEOUT).await;
        }
    }

    /// Blocks the calling thread until the threads of the listener end, for example because another
    /// thread calls [`stop`](Self::stop). Only the first call of `wait` or `stop` waits for the
    /// threads; later calls return at once.
    pub fn wait(&self) {
        let threads = self.lock_threads().take();
        for thread in threads.into_iter().flat_map(|threads| threads.handles) {
            // The thread catches and counts its panics, so there is no result to check.
            let _ = thread.join();
        }
    }

    /// Tells all threads to end.
    fn end_threads(&self) {
        self.control.stop();
        let _ = self.stop_accepting.wake();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end_threads();
    }
}
