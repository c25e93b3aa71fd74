//! Mirrors of the streams that the cluster's store keeps: what the store sends, reads and checks.

mod apply;
mod checks;
mod page;
mod probe;
mod push;
mod reader;
mod reads;
#[cfg(test)]
mod simulated;
#[cfg(test)]
pub(crate) mod test_hub;
mod vouch;
mod watch;

pub(crate) use checks::clear;
pub(crate) use page::topic_history;
pub(crate) use reader::StoreReader;
#[cfg(test)]
pub(crate) use simulated::SimulatedReader;
pub(crate) use watch::WatchGuard;
