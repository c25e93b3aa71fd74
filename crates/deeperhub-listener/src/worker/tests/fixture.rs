//! A worker whose connections are streams in memory.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use deeperhub_metrics::Cells;
use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::{CloseCode, CloseReason};
use tokio::runtime::Runtime;

use crate::admission::Admission;
use crate::config::Config;
use crate::connection::Connection;
use crate::connections::Connections;
use crate::control::Control;
use crate::handshake::{ClientSource, Handshake};
use crate::metrics::{Metrics, WorkerMetrics};
use crate::session::{
    Accepted, Application, Closed, ConnectionKey, Context, Message, Peer, Session, WorkerState,
};
use crate::transport::{Scripted, Transport};
use crate::worker::{Next, PhaseContext, RoundEnd, Worker, WorkerCore, runtime};

/// Request head of an upgrade.
pub(super) const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// State that a worker borrows.
pub(super) struct Fixture<A: Application> {
    application: A,
    core: WorkerCore<A::Session>,
    pub(super) control: Control,
    cells: WorkerMetrics,
    pub(super) metrics: Metrics,
    pub(super) admission: Arc<Admission>,
    runtime: Runtime,
}

impl<A: Application> Fixture<A> {
    pub(super) fn new(application: A, mut config: Config) -> Self {
        // Turns must not end earlier on a busy machine.
        config.limits.round_time = Duration::from_secs(3600);
        let metrics = Metrics::new(&Cells::new(1));
        let limits = Arc::new(ArcSwap::from_pointee(config.limits.clone()));
        let config = Arc::new(Config { workers: 1, ..config });
        Self {
            application,
            core: WorkerCore::new(config, limits, metrics.clone(), Instant::now()),
            control: Control::new(1),
            cells: metrics.worker(0).unwrap(),
            metrics,
            admission: Arc::new(Admission::new(1000, Some(1000), None, 1)),
            runtime: runtime().unwrap(),
        }
    }

    /// Returns a new worker at the start of its first round.
    pub(super) fn worker(&mut self) -> TestWorker<'_, A> {
        let _guard = self.runtime.enter();
        let Self { application, core, control, cells, admission, .. } = self;
        let mut worker = Worker::new(&*application, 0, core, control, cells);
        let now = worker.ctx.round.clock.now();
        worker.ctx.begin_round(now);
        TestWorker { worker, admission: Arc::clone(admission), now }
    }
}

/// A worker on a clock that the test sets.
pub(super) struct TestWorker<'a, A: Application> {
    pub(super) worker: Worker<'a, A>,
    admission: Arc<Admission>,
    now: Instant,
}

impl<A: Application> TestWorker<'_, A> {
    /// Adds a connection over `stream`, in its handshake. Returns its key.
    pub(super) fn connect(&mut self, stream: &Scripted, client_source: ClientSource) -> u32 {
        let peer = SocketAddr::from(([192, 0, 2, 1], 1000));
        let address = (client_source == ClientSource::Peer).then(|| peer.ip());
        let mut permit = self.admission.try_admit(address).unwrap();
        permit.assign(0);
        let handshake = Handshake::new(peer, client_source, None, self.now);
        self.worker.add(Transport::Scripted(stream.clone()), permit, handshake);
        *self.worker.ctx.round.lists.arrived.last().unwrap()
    }

    /// Adds a connection over `stream` and performs its handshake. Returns its key.
    pub(super) fn open(&mut self, stream: &Scripted) -> u32 {
        let key = self.connect(stream, ClientSource::Peer);
        stream.send(UPGRADE.as_bytes());
        self.round();
        assert!(stream.output().starts_with(b"HTTP/1.1 101 "));
        stream.receive(usize::MAX);
        key
    }

    /// Runs one round.
    pub(super) fn round(&mut self) -> RoundEnd {
        let mut cx = task::Context::from_waker(task::Waker::noop());
        self.worker.run_round(self.now, &mut cx)
    }

    /// Sets the clock forward. The next round begins then.
    pub(super) fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Returns the time at which the next round begins.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Calls a phase for a connection.
    pub(super) fn phase<R>(
        &mut self,
        key: u32,
        phase: impl FnOnce(&mut Connection<A::Session>, &mut PhaseContext<'_, A>) -> R,
    ) -> R {
        let connection = self.worker.table.slab.get_mut(key as usize).expect("the connection exists");
        phase(connection, &mut self.worker.ctx)
    }

    pub(super) fn connection(&mut self, key: u32) -> Option<&mut Connection<A::Session>> {
        self.worker.table.get_mut(key)
    }

    /// Returns the operations of a worker state. What they queue is written in the next round.
    pub(super) fn connections(&mut self) -> Connections<'_, A::Session> {
        let Worker { table, ctx, .. } = &mut self.worker;
        Connections { shared: &*ctx.shared, round: &mut *ctx.round, table: &mut **table }
    }

    pub(super) fn apply(&mut self, key: u32, next: Next) {
        self.worker.apply(key, next);
    }
}

/// Returns a client's frame, masked with zeros.
pub(super) fn client_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first_byte];
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend_from_slice(payload);
    out
}

/// Returns a client's text message.
pub(super) fn client_text(text: &str) -> Vec<u8> {
    client_frame(0x81, text.as_bytes())
}

/// Returns a server's text message.
pub(super) fn server_text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_text(&mut out, text);
    out
}

/// Application whose sessions do what their messages say.
#[derive(Default)]
pub(super) struct Obedient {
    /// Number of `on_close` calls.
    pub(super) closed: Arc<AtomicUsize>,
}

/// Worker state that records which queues have drained.
#[derive(Default)]
pub(super) struct ObedientWorkerState {
    pub(super) drained: Vec<ConnectionKey>,
}

impl WorkerState<ObedientSession> for ObedientWorkerState {
    fn poll(
        &mut self,
        _cx: &mut task::Context<'_>,
        _connections: &mut Connections<'_, ObedientSession>,
    ) -> task::Poll<()> {
        task::Poll::Pending
    }

    fn on_drained(&mut self, key: ConnectionKey) {
        self.drained.push(key);
    }
}

/// Session that echoes texts, except for those that tell it to do something else.
pub(super) struct ObedientSession(Arc<AtomicUsize>);

impl Application for Obedient {
    type WorkerState = ObedientWorkerState;
    type Session = ObedientSession;

    fn worker_state(&self, _worker: usize) -> ObedientWorkerState {
        ObedientWorkerState::default()
    }

    fn accept(
        &self,
        request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<ObedientSession>, Refusal>> + 'static {
        let session = ObedientSession(Arc::clone(&self.closed));
        let is_pending = request.header("x-pending").is_some();
        async move {
            if is_pending {
                std::future::pending::<()>().await;
            }
            Ok(Accepted { session, subprotocol: None })
        }
    }
}

impl Session for ObedientSession {
    type WorkerState = ObedientWorkerState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ObedientWorkerState>) {
        match message {
            Message::Text("pause") => cx.pause_reading(),
            Message::Text("park") => cx.park(),
            Message::Text("close") => cx.close(CloseReason::new(CloseCode::Disconnected, "as asked")),
            Message::Text("panic") => std::panic::resume_unwind(Box::new("injected by a test")),
            _ => cx.reply_message(message),
        }
    }

    fn held_bytes(&self, _key: ConnectionKey, _worker: &ObedientWorkerState) -> usize {
        5000
    }

    fn on_close(&mut self, _key: ConnectionKey, _closed: &Closed, _worker: &mut ObedientWorkerState) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
