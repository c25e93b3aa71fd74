//! Batched socket writes: many connections per system call (io_uring). Reads are in
//! `worker/batch_read.rs`.

use std::io;

use deeperhub_uring::{Batcher, MAX_BATCH, SendOp};

use crate::connections::{Connection, State, WorkerCore, take_if_dirty};
use crate::outbox::GATHER_LIMIT;
#[cfg(feature = "tls")]
use crate::transport::TLS_OVERHEAD;
use crate::transport::Transport;

/// Minimum connections in a batch. For two, a `send` each costs no more.
pub(crate) const MIN_BATCH: usize = 3;

/// Maximum bytes staged for one batch. More would leave the cache before they are sent.
const MAX_STAGED_BYTES: usize = 128 * 1024;

/// Ring and buffers of a worker that writes in batches.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) batcher: Batcher,
    sends: Vec<PlannedSend>,
    /// ClusterAnswer pieces of plain connections and encrypted records of TLS connections.
    staged: Vec<u8>,
}

/// Planned send of one connection in a batch.
#[derive(Debug, Clone, Copy)]
struct PlannedSend {
    key: u32,
    source: Source,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    /// The whole outbox, contiguous in memory.
    Outbox,
    /// The whole outbox, gathered into the staged bytes.
    ClusterAnswer(StagedRange),
    /// The whole outbox, encrypted into the staged bytes.
    #[cfg(feature = "tls")]
    Encrypted(StagedRange),
}

/// Range of the staged bytes.
#[derive(Debug, Clone, Copy)]
struct StagedRange {
    start: u32,
    end: u32,
}

impl StagedRange {
    fn slice(self, staged: &[u8]) -> &[u8] {
        &staged[self.start as usize..self.end as usize]
    }
}

/// How a dirty connection is written.
enum Plan {
    Batch(Source),
    /// Written individually: it has too many bytes for a batch, waits for its socket, or has an error
    /// that the write will report.
    Individual,
    /// The staged bytes are full; it goes into the next batch.
    NextBatch,
}

impl Batch {
    /// Creates the ring. Must be called on the thread that writes.
    ///
    /// # Errors
    ///
    /// The kernel does not offer io_uring, or denies it to this process.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { batcher: Batcher::new()?, sends: Vec::new(), staged: Vec::new() })
    }
}

impl<S> WorkerCore<S> {
    /// Enables batched writes, if configured and possible. Must be called on the worker's thread.
    pub(crate) fn enable_batching(&mut self, worker: usize) {
        if !self.config.io_uring {
            return;
        }
        match Batch::new() {
            Ok(batch) => self.batch = Some(batch),
            Err(error) => tracing::info!(
                %error,
                worker,
                "io_uring unavailable; using one system call per connection"
            ),
        }
    }

    /// Writes the first batch of `dirty`. See [`begin_writing`](Self::begin_writing).
    pub(crate) fn write_batch(&mut self, dirty: &[u32], individually: &mut Vec<u32>) -> usize {
        let Some(batch) = &mut self.batch else { return 0 };
        let Batch { batcher, sends, staged } = batch;
        let (connections, arena) = (&mut self.connections, self.arena.bytes());
        sends.clear();
        staged.clear();
        let mut processed = 0;
        for &key in dirty {
            if sends.len() == MAX_BATCH {
                break;
            }
            if let Some(connection) = take_if_dirty(connections, key) {
                match connection.plan(arena, staged, &mut self.gather) {
                    Plan::Batch(source) => sends.push(PlannedSend { key, source }),
                    Plan::Individual => individually.push(key),
                    Plan::NextBatch => {
                        connection.flags.dirty = true;
                        break;
                    }
                }
            }
            processed += 1;
        }

        let ops = sends.iter().filter_map(|send| {
            let connection = connections.get(send.key as usize)?;
            let bytes = match send.source {
                Source::Outbox => connection.outbox.contiguous(arena)?,
                Source::ClusterAnswer(part) => part.slice(staged),
                #[cfg(feature = "tls")]
                Source::Encrypted(part) => part.slice(staged),
            };
            Some(SendOp { to: connection.transport.descriptor(), bytes })
        });
        let outcomes = batcher.send(ops);
        // One outcome per send: no connection changed since it was planned.
        debug_assert_eq!(outcomes.len(), sends.len());
        for (send, outcome) in sends.iter().zip(outcomes) {
            let Some(connection) = connections.get_mut(send.key as usize) else { continue };
            // An error shows again when the connection is written individually.
            let taken = outcome.unwrap_or(0);
            match send.source {
                Source::Outbox | Source::ClusterAnswer(_) => {
                    self.sent += taken as u64;
                    connection.outbox.advance(taken);
                }
                // Encrypted bytes that the socket did not take are kept by the connection.
                #[cfg(feature = "tls")]
                Source::Encrypted(part) => {
                    let len = connection.outbox.len();
                    self.sent += len as u64;
                    connection.outbox.advance(len);
                    if let Transport::Tls(tls) = &mut connection.transport {
                        tls.staged_sent(part.slice(staged), taken);
                    }
                }
            }
            if !connection.is_written() || !matches!(connection.state, State::Open(_)) {
                individually.push(send.key);
            }
        }
        self.disable_broken_batching();
        processed
    }

    /// Disables batches if the ring has stopped working.
    pub(crate) fn disable_broken_batching(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| !batch.batcher.is_working()) {
            tracing::warn!("io_uring failed; using one system call per connection");
            self.batch = None;
        }
    }
}

impl<S> Connection<S> {
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    fn plan(&mut self, arena: &[u8], staged: &mut Vec<u8>, gather: &mut Vec<u8>) -> Plan {
        if self.flags.write_blocked || !self.transport.is_flushed() {
            return Plan::Individual;
        }
        let (start, len) = (staged.len(), self.outbox.len());
        match &mut self.transport {
            Transport::Tcp(_) if self.outbox.contiguous(arena).is_some() => Plan::Batch(Source::Outbox),
            _ if len == 0 || len > GATHER_LIMIT => Plan::Individual,
            Transport::Tcp(_) if start + len > MAX_STAGED_BYTES => Plan::NextBatch,
            Transport::Tcp(_) => {
                self.outbox.gather(arena, staged);
                Plan::Batch(Source::ClusterAnswer(staged_since(start, staged)))
            }
            #[cfg(feature = "tls")]
            Transport::Tls(_) if start + len + TLS_OVERHEAD > MAX_STAGED_BYTES => Plan::NextBatch,
            #[cfg(feature = "tls")]
            Transport::Tls(tls) => {
                let bytes = match self.outbox.contiguous(arena) {
                    Some(bytes) => bytes,
                    None => {
                        gather.clear();
                        self.outbox.gather(arena, gather);
                        gather
                    }
                };
                match tls.stage(bytes, staged) {
                    Ok(()) => Plan::Batch(Source::Encrypted(staged_since(start, staged))),
                    Err(_) => Plan::Individual,
                }
            }
        }
    }
}

fn staged_since(start: usize, staged: &[u8]) -> StagedRange {
    StagedRange { start: start as u32, end: staged.len() as u32 }
}
