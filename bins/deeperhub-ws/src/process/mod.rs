//! State of the whole process: allocator, memory, open files, signals and tasks.

pub(crate) mod allocator;
pub(crate) mod memory;
pub(crate) mod nofile;
pub(crate) mod signals;
pub(crate) mod supervise;
