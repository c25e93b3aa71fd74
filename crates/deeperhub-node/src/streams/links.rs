//! The way from the threads of a store to the workers.

#[cfg(feature = "disk")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use super::stored::StoreNotice;

/// One link for each worker.
#[derive(Debug)]
pub(in crate::streams) struct Links(Box<[Link]>);

#[derive(Debug, Default)]
struct Link {
    /// Queue of the worker that runs now. A worker that is replaced takes its queue with it, as it
    /// does with its connections.
    sender: Mutex<Option<mpsc::UnboundedSender<StoreNotice>>>,
    /// `true` if the worker waits for progress of the disk.
    #[cfg(feature = "disk")]
    waits: AtomicBool,
}

impl Links {
    pub(in crate::streams) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Link::default()).collect())
    }

    /// Creates the queue of a worker that starts. Its length is bounded by what the worker has asked
    /// for.
    pub(in crate::streams) fn attach(&self, worker: u16) -> mpsc::UnboundedReceiver<StoreNotice> {
        let (sender, receiver) = mpsc::unbounded_channel();
        if let Some(link) = self.0.get(usize::from(worker)) {
            *link.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        }
        receiver
    }

    pub(in crate::streams) fn send(&self, worker: u16, notice: StoreNotice) {
        if let Some(link) = self.0.get(usize::from(worker))
            && let Some(sender) = &*link.sender.lock().unwrap_or_else(PoisonError::into_inner)
        {
            // A worker that has ended needs no answer.
            let _ = sender.send(notice);
        }
    }

    /// Tells a worker the next progress of the disk. The caller looks at the progress once more after
    /// this call.
    #[cfg(feature = "disk")]
    pub(in crate::streams) fn wait(&self, worker: u16) {
        if let Some(link) = self.0.get(usize::from(worker)) {
            link.waits.store(true, Ordering::SeqCst);
        }
    }

    /// Tells the workers that wait to look at the progress.
    #[cfg(feature = "disk")]
    pub(in crate::streams) fn wake(&self) {
        for (worker, link) in (0..).zip(&self.0) {
            if link.waits.swap(false, Ordering::SeqCst) {
                self.send(worker, StoreNotice::Progress);
            }
        }
    }
}
