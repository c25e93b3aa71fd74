//! A running listener and what owns its threads.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use deeperhub_metrics::{CellError, Cells};
use tokio::sync::mpsc;

use crate::accept::{Acceptor, listen};
use crate::config::Config;
use crate::connections::Core;
use crate::drain::DrainPlan;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::session::Application;
use crate::worker::{self, ToWorker, WorkerCells};

/// New connections that may wait for one worker; the acceptor waits when there are more.
const ARRIVALS: usize = 256;

/// A listening socket, the thread of its acceptor and those of its workers.
///
/// When it is dropped, everything ends at once and without a word to the clients: call [`drain`](Self::drain) before.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    places: Arc<Places>,
    config: Arc<Live<Config>>,
    draining: Arc<AtomicBool>,
    workers: Vec<mpsc::Sender<ToWorker>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    stop_accepting: Arc<mio::Waker>,
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address could not be listened on: taken, not this machine's, or not allowed.
    #[error("{address} cannot be listened on")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A worker thread could not be started.
    #[error("worker thread cannot be started")]
    Thread(#[source] io::Error),
    /// The metrics were made for fewer workers, or are in use by another listener.
    #[error("metrics do not fit the workers")]
    Metrics(#[from] CellError),
}

impl Listener {
    /// Listens on `address` (port 0: any free one) and serves `application`.
    ///
    /// It needs no runtime of the caller's: everything runs on threads of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`]; then nothing runs.
    pub fn start<A: Application>(
        address: SocketAddr,
        config: Config,
        application: A,
        cells: &Cells,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let refused = |source| StartError::Listen { address, source };
        let socket = listen(address, config.backlog).map_err(refused)?;
        let bound = socket.local_addr().map_err(refused)?;
        let worker_count = config.workers.clamp(1, cells.workers());
        let places = Arc::new(Places::new(
            config.max_connections,
            config.max_connections_per_ip,
            config.connection_rate_per_ip,
            worker_count,
        ));
        let config = Arc::new(Live::new(Config { workers: worker_count, ..config }));
        let application = Arc::new(application);

        let mut workers = Vec::with_capacity(worker_count);
        let mut threads = Vec::with_capacity(worker_count);
        for index in 0..worker_count {
            let (sender, inbound) = mpsc::channel(ARRIVALS);
            let cells = WorkerCells {
                received: metrics.received_bytes.cell(index)?,
                sent: metrics.sent_bytes.cell(index)?,
                queue: metrics.queue_bytes.cell(index)?,
                io_uring: metrics.io_uring_workers.cell(index)?,
                coders: metrics.coders(index)?,
                round: metrics.round_seconds.cell(index)?,
            };
            let application = Arc::clone(&application);
            let (config, metrics) = (Arc::clone(&config), metrics.clone());
            let thread = thread::Builder::new().name(format!("hub-worker-{index}")).spawn(move || {
                // Made here: sessions never leave their thread.
                let core = Core::new(config, metrics, Instant::now());
                if let Err(error) = worker::run(&application, index, core, inbound, cells) {
                    tracing::error!(%error, worker = index, "A worker could not be started.");
                }
            });
            threads.push(thread.map_err(StartError::Thread)?);
            workers.push(sender);
        }

        let draining = Arc::new(AtomicBool::new(false));
        let acceptor = Acceptor::new(
            socket,
            workers.clone(),
            Arc::clone(&places),
            Arc::clone(&draining),
            &config.current(),
            metrics,
        )
        .map_err(refused)?;
        let stop_accepting = acceptor.stopper();
        let thread = thread::Builder::new().name("hub-acceptor".to_owned()).spawn(move || acceptor.run());
        threads.push(thread.map_err(StartError::Thread)?);
        let threads = Mutex::new(threads);
        Ok(Self { address: bound, places, config, draining, workers, threads, stop_accepting })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections that have a place, handshakes and closing ones included.
    pub fn connections(&self) -> usize {
        self.places.open()
    }

    /// Takes other limits from `config`: connections (all, and by address), bytes of a message and of a queue. The rest
    /// stays as it was at the start. Connections that are there stay too; workers follow within a second, and what is
    /// over a limit then is seen when something comes to it.
    pub fn reconfigure(&self, config: &Config) {
        let current = self.config.current();
        self.places.limit(config.max_connections, config.max_connections_per_ip);
        self.config.replace(Config {
            max_connections: config.max_connections,
            max_connections_per_ip: config.max_connections_per_ip,
            max_head_bytes: config.max_head_bytes,
            max_head_lines: config.max_head_lines,
            max_message_bytes: config.max_message_bytes,
            max_fragments: config.max_fragments,
            max_queue_bytes: config.max_queue_bytes,
            ..(*current).clone()
        });
    }

    /// Refuses new connections with 503 `draining`, closes the others with 1001, spread over `time`, and returns
    /// when all are gone or the time is over. The listener goes on to refuse until it is dropped.
    pub async fn drain(&self, time: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let until = start + time;
        let plan = Arc::new(DrainPlan::new(start, time, self.places.open(), &self.config.current()));
        for worker in &self.workers {
            // A worker that takes nothing has its own fault; the time below bounds the wait for it.
            let _ = tokio::time::timeout(time, worker.send(ToWorker::Drain(Arc::clone(&plan)))).await;
        }
        let _ = tokio::time::timeout_at(until.into(), self.places.wait_empty()).await;
    }

    /// Ends the acceptor and the threads, and waits for them. Connections that are still there are dropped.
    pub async fn stop(&self) {
        let _ = self.stop_accepting.wake();
        for worker in &self.workers {
            let _ = worker.send(ToWorker::Stop).await;
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic there was caught and counted already.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop_accepting.wake();
        for worker in &self.workers {
            let _ = worker.try_send(ToWorker::Stop);
        }
    }
}
