//! State of the whole process: memory, open files, signals, tasks.

pub(crate) mod allocator;
pub(crate) mod memory;
pub(crate) mod nofile;
pub(crate) mod signals;
pub(crate) mod supervise;
