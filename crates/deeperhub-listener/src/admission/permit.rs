//! The permit of one connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{AddressKey, Admission, AdmissionError};

/// Permit for one connection. The connection counts against the limits until its permit is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    pub(super) admission: Arc<Admission>,
    /// Address that the connection counts for.
    pub(super) address: Option<AddressKey>,
    /// Worker that the connection counts for.
    pub(super) worker: Option<u16>,
}

impl ConnectionPermit {
    /// Counts the connection for an address that was unknown when the permit was taken.
    pub(crate) fn charge_address(&mut self, address: IpAddr) -> Result<(), AdmissionError> {
        if self.address.is_none() {
            self.address = self.admission.count_address(address)?;
        }
        Ok(())
    }

    /// Counts the connection for a worker, and no longer for its last worker.
    pub(crate) fn assign(&mut self, worker: usize) {
        self.unassign();
        if let (Some(load), Ok(worker)) = (self.admission.loads.get(worker), u16::try_from(worker)) {
            load.fetch_add(1, Ordering::Relaxed);
            self.worker = Some(worker);
        }
    }

    /// Stops counting the connection for its worker.
    pub(crate) fn unassign(&mut self) {
        if let Some(load) =
            self.worker.take().and_then(|worker| self.admission.loads.get(usize::from(worker)))
        {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of connections of a worker.
    pub(crate) fn connections_of(&self, worker: usize) -> usize {
        self.admission.loads.get(worker).map_or(0, |load| load.load(Ordering::Relaxed))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.unassign();
        if let Some(key) = self.address {
            let mut addresses = self.admission.lock();
            if let Some(count) = addresses.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    addresses.remove(&key);
                    if addresses.capacity() > 64 && addresses.len() < addresses.capacity() / 4 {
                        addresses.shrink_to_fit();
                    }
                }
            }
        }
        if self.admission.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.admission.all_closed.notify_waiters();
        }
    }
}
