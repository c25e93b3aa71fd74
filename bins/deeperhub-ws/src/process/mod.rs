//! Resources of the process: allocator, memory, open files, signals, and restarts of tasks.

pub(crate) mod allocator;
pub(crate) mod memory;
pub(crate) mod nofile;
pub(crate) mod signals;
pub(crate) mod supervise;
