//! Mirrors of the streams that the cluster's store keeps: what the store sends, reads and checks.

mod apply;
mod checks;
mod page;
mod probe;
mod reader;
mod watch;

pub(crate) use checks::clear;
pub(crate) use page::topic_history;
pub(crate) use reader::StoreReader;
pub(crate) use watch::WatchGuard;
