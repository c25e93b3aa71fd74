//! Batched socket writes: many connections per system call (io_uring). Batched reads are in
//! `worker/batch_read.rs`.

use std::io;

use deeperhub_uring::{Batcher, MAX_BATCH, SendOp};

use crate::config::Config;
use crate::connection::{Connection, State};
use crate::outbox::write::GATHER_LIMIT;
use crate::round::{Buffers, Round};
use crate::table::{ConnectionTable, take_if_dirty};
#[cfg(feature = "tls")]
use crate::transport::TLS_OVERHEAD;
use crate::transport::Transport;

/// Minimum connections for which a batch is used. For fewer, one system call each costs no more.
pub(crate) const MIN_BATCH: usize = 3;

/// Maximum bytes staged for one batch. More bytes would leave the cache before they are sent.
const MAX_STAGED_BYTES: usize = 128 * 1024;

/// Ring and buffers of a worker that reads and writes in batches.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) batcher: Batcher,
    sends: Vec<PlannedSend>,
    /// The *staged* bytes of a batch: copied queues of plain connections, and encrypted records of
    /// TLS connections.
    staged: Vec<u8>,
}

/// Planned send of one connection in a batch.
#[derive(Debug, Clone, Copy)]
struct PlannedSend {
    key: u32,
    source: Source,
}

/// Location of the bytes of a send. The bytes are a connection's whole queue.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The queue is contiguous in memory and is sent from there.
    Outbox,
    /// The queue was copied into the staged bytes.
    Gathered(StagedRange),
    /// The queue was encrypted into the staged bytes.
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

/// Way in which a dirty connection is written.
enum Plan {
    /// The connection is written in this batch.
    Batch(Source),
    /// The connection is written individually. It has nothing queued or too much for a batch, its
    /// socket is full, or its encryption failed; the individual write reports that error.
    Individual,
    /// The staged bytes are full, and the connection is written in the next batch.
    NextBatch,
}

impl Batch {
    /// Creates the ring. Must be called on the thread that uses it.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel does not offer io_uring, or denies it to this process.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { batcher: Batcher::new()?, sends: Vec::new(), staged: Vec::new() })
    }
}

impl Round {
    /// Enables batched reads and writes, if they are configured and possible. Must be called on the
    /// worker's thread.
    pub(crate) fn enable_batching(&mut self, config: &Config, worker: usize) {
        if !config.io_uring {
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

    /// Does the work of [`begin_writing`](Self::begin_writing) with a batch.
    pub(crate) fn write_batch<S>(
        &mut self,
        table: &mut ConnectionTable<S>,
        dirty: &[u32],
        individually: &mut Vec<u32>,
    ) -> usize {
        let Some(batch) = &mut self.batch else { return 0 };
        let Batch { batcher, sends, staged } = batch;
        let Buffers { arena, gather, sent: sent_bytes, .. } = &mut self.buffers;
        let (connections, arena) = (&mut table.slab, arena.bytes());
        sends.clear();
        staged.clear();
        let mut handled = 0;
        for &key in dirty {
            if sends.len() == MAX_BATCH {
                break;
            }
            if let Some(connection) = take_if_dirty(connections, key) {
                match connection.plan(arena, staged, gather) {
                    Plan::Batch(source) => sends.push(PlannedSend { key, source }),
                    Plan::Individual => individually.push(key),
                    Plan::NextBatch => {
                        connection.flags.dirty = true;
                        break;
                    }
                }
            }
            handled += 1;
        }

        let ops = sends.iter().filter_map(|send| {
            let connection = connections.get(send.key as usize)?;
            let bytes = match send.source {
                Source::Outbox => connection.outbox.contiguous(arena)?,
                Source::Gathered(range) => range.slice(staged),
                #[cfg(feature = "tls")]
                Source::Encrypted(range) => range.slice(staged),
            };
            Some(SendOp { to: connection.transport.descriptor(), bytes })
        });
        let results = batcher.send(ops);
        // Every planned send became an operation, since no connection changed in between.
        debug_assert_eq!(results.len(), sends.len());
        for (send, result) in sends.iter().zip(results) {
            let Some(connection) = connections.get_mut(send.key as usize) else { continue };
            // After an error, the connection is written individually, which reports the error
            // again.
            let sent = result.unwrap_or(0);
            match send.source {
                Source::Outbox | Source::Gathered(_) => {
                    *sent_bytes += sent as u64;
                    connection.outbox.advance(sent);
                }
                // The transport keeps encrypted bytes that the socket did not take, so the whole
                // queue counts as sent.
                #[cfg(feature = "tls")]
                Source::Encrypted(range) => {
                    let len = connection.outbox.len();
                    *sent_bytes += len as u64;
                    connection.outbox.advance(len);
                    if let Transport::Tls(tls) = &mut connection.transport {
                        tls.keep_unsent(range.slice(staged), sent);
                    }
                }
            }
            let flags = &connection.flags;
            if !connection.is_written() || !matches!(connection.state, State::Open(_)) || flags.wants_drain {
                individually.push(send.key);
            }
        }
        self.disable_broken_batching();
        handled
    }

    /// Disables batched reads and writes if the ring has stopped working.
    pub(crate) fn disable_broken_batching(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| !batch.batcher.is_working()) {
            tracing::warn!("io_uring failed; using one system call per connection");
            self.batch = None;
        }
    }
}

impl<S> Connection<S> {
    /// Decides how the connection is written. For a batch, copies or encrypts the queue into
    /// `staged` if needed.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    fn plan(&mut self, arena: &[u8], staged: &mut Vec<u8>, gather: &mut Vec<u8>) -> Plan {
        if self.flags.write_blocked || !self.transport.is_flushed() {
            return Plan::Individual;
        }
        let (start, len) = (staged.len(), self.outbox.len());
        match &mut self.transport {
            Transport::Tcp(_) if self.outbox.contiguous(arena).is_some() => Plan::Batch(Source::Outbox),
            #[cfg(test)]
            Transport::Scripted(_) => Plan::Individual,
            _ if len == 0 || len > GATHER_LIMIT => Plan::Individual,
            Transport::Tcp(_) if start + len > MAX_STAGED_BYTES => Plan::NextBatch,
            Transport::Tcp(_) => {
                self.outbox.gather(arena, staged);
                Plan::Batch(Source::Gathered(staged_since(start, staged)))
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

/// Returns the range of the staged bytes from `start` to their end.
fn staged_since(start: usize, staged: &[u8]) -> StagedRange {
    StagedRange { start: start as u32, end: staged.len() as u32 }
}
