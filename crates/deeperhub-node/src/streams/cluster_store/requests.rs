//! Requests to the thread that reads the cluster's store.

use std::fmt;
use std::sync::Arc;

use deeperhub_cluster::StorePosition;
use deeperhub_history::ReadRequest;
use deeperhub_protocol::Topic;
use deeperhub_protocol::message::{HistoryOrder, HistoryRequest, HistoryStart};
use tokio::sync::oneshot;

use crate::streams::stored::{HistoryPage, ReadFailed};

/// Function that gets a page on the reader's thread.
pub(crate) type PageDone = Box<dyn FnOnce(Result<HistoryPage, ReadFailed>) + Send>;

/// A request to the reader.
pub(crate) enum ReaderRequest {
    /// Tells `waiter` when the stream of a topic is whole, or the store could not be read.
    Wait { topic: Arc<str>, read: Option<ReadRequest>, waiter: Waiter },
    /// Reads what a mirror asks for.
    Read { topic: Arc<str>, read: ReadRequest },
    /// The store has given an offset again that this node knows.
    Rewritten { topic: Arc<str>, known: StorePosition },
    /// Reads a page of a topic whose mirror could not answer.
    Page { page: PageRequest, done: PageDone },
    /// Probes the store, instead of an earlier probe that was not answered.
    Probe { number: u64 },
}

/// Waiter for a read.
#[derive(Debug)]
pub(crate) enum Waiter {
    Worker(u16),
    Handle(oneshot::Sender<()>),
}

/// A page that is read from the cluster's store.
#[derive(Debug, Clone)]
pub(crate) struct PageRequest {
    pub(crate) topic: Topic<'static>,
    pub(crate) from: Option<HistoryStart>,
    pub(crate) limit: u64,
    pub(crate) order: HistoryOrder,
    /// Maximum bytes of all frames. The first message is read whatever its length.
    pub(crate) max_bytes: usize,
}

impl PageRequest {
    pub(in crate::streams) fn new(request: &HistoryRequest<'_>, max_bytes: usize) -> Self {
        let HistoryRequest { topic, from, limit, order } = request;
        let topic = topic.clone().into_owned();
        Self { topic, from: *from, limit: u64::from(*limit), order: *order, max_bytes }
    }

    /// Returns the client's request.
    pub(crate) fn as_history_request(&self) -> HistoryRequest<'_> {
        let limit = self.limit.try_into().unwrap_or(HistoryRequest::MAX_LIMIT);
        HistoryRequest { topic: self.topic.borrow(), from: self.from, limit, order: self.order }
    }
}

impl fmt::Debug for ReaderRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Wait { .. } => "Wait",
            Self::Read { .. } => "Read",
            Self::Rewritten { .. } => "Rewritten",
            Self::Page { .. } => "Page",
            Self::Probe { .. } => "Probe",
        };
        formatter.write_str(name)
    }
}
