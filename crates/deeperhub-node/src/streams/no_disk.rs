//! The disk store of a node without the feature `disk`: there is none.

use std::sync::Arc;
use std::time::Duration;

use deeperhub_metrics::{RegisterError, Registry};
use deeperhub_protocol::Epoch;
use tokio::sync::mpsc;

use super::stored::{
    DiskStream, ReadPurpose, ReadRequest, ReadResult, StoreNotice, StoreRefused, StoreState, Ticket,
};

/// A message as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredMessage<'a> {
    pub(crate) excludes_publisher: bool,
    pub(crate) from: Option<&'a str>,
    pub(crate) payload: &'a str,
}

/// The store.
#[derive(Debug)]
pub(crate) enum Disk {}

/// Implements methods that are never called.
macro_rules! never {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $output:ty)?;)*) => {
        impl Disk {
            $(pub(crate) fn $name(&self, $($argument: $type),*) $(-> $output)? {
                $(let _ = $argument;)*
                match *self {}
            })*
        }
    };
}

never! {
    fn create(topic: &str, epoch: Epoch) -> Result<DiskStream, StoreRefused>;
    fn append(stream: DiskStream, place: (u64, u64), message: &StoredMessage<'_>) -> Result<Ticket, StoreRefused>;
    fn skip_to(stream: DiskStream, offset: u64) -> Result<Ticket, StoreRefused>;
    fn clear(stream: DiskStream, topic: &str, epoch: Epoch) -> Result<DiskStream, StoreRefused>;
    fn remove(stream: DiskStream);
    fn queued() -> Ticket;
    fn request_sync();
    fn state(ticket: Ticket) -> StoreState;
    fn record_stored(time: Duration);
    fn fault() -> Option<Arc<str>>;
    fn attach(worker: u16) -> mpsc::UnboundedReceiver<StoreNotice>;
    fn notify(worker: u16, notice: StoreNotice);
    fn notify_of_progress(worker: u16);
    fn read(request: ReadRequest, purpose: ReadPurpose, done: impl FnOnce(ReadResult) + Send + 'static);
    fn complete_since_ms() -> u64;
    fn maintain(now_ms: u64, longest_ttl: Duration);
    fn close();
    fn register(registry: &mut Registry) -> Result<(), RegisterError>;
}

impl Disk {
    pub(crate) async fn wait(&self, ticket: Ticket, timeout: Duration) -> bool {
        let _ = (ticket, timeout);
        match *self {}
    }
}
