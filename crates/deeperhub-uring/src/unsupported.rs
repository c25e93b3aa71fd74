//! Where there is no `io_uring`.

use std::io;

use crate::{RecvOp, SendOp};

/// It cannot be made.
#[derive(Debug)]
pub(crate) enum Ring {}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_working(&self) -> bool {
        match *self {}
    }

    pub(crate) fn send<'a>(&mut self, _sends: impl IntoIterator<Item = SendOp<'a>>) -> &[i32] {
        match *self {}
    }

    pub(crate) fn recv<'a>(&mut self, _receives: impl IntoIterator<Item = RecvOp<'a>>) -> &[i32] {
        match *self {}
    }
}
