//! The link from a worker to the store on disk.

use std::collections::VecDeque;
use std::time::Instant;

use deeperhub_protocol::Position;
use tokio::sync::mpsc;

use crate::connection_id::ConnectionId;
use crate::streams::{Disk, DiskNotice, Ticket};

/// A `published` that waits until its message is on the disk.
#[derive(Debug)]
pub(crate) struct StoredReply {
    pub(crate) ticket: Ticket,
    pub(crate) connection: ConnectionId,
    /// ID of the client's message, as JSON.
    pub(crate) id: Box<str>,
    pub(crate) topic: Box<str>,
    pub(crate) subscribers: u64,
    pub(crate) position: Option<Position>,
    pub(crate) since: Instant,
}

/// A worker's side of the store.
#[derive(Debug)]
pub(crate) struct StoreLink {
    pub(super) notices: mpsc::UnboundedReceiver<DiskNotice>,
    /// In the order of the publishes.
    pub(super) replies: VecDeque<StoredReply>,
}

impl StoreLink {
    pub(super) fn new(disk: &Disk, worker: u16) -> Self {
        Self { notices: disk.attach(worker), replies: VecDeque::new() }
    }
}
