//! Discarding of input after the last response of a connection.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::admission::{Command, ConnectionPermit};
use crate::stream::Stream;

/// Maximum number of bytes in one read.
pub(super) const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Limits on discarding input after the last response: total time, longest pause, and bytes. They
/// leave room for clients that send a whole body before they read. 64 MiB take half a second on a
/// fast network.
const MAX_LINGER_TIME: Duration = Duration::from_secs(10);
const MAX_LINGER_PAUSE: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: u64 = 64 << 20;

/// Shuts down the sending side, and discards input until the peer does the same or a limit is
/// reached.
pub(super) async fn linger(stream: &mut Stream, permit: &ConnectionPermit) {
    let discard = async {
        if std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut discarded = 0;
        while discarded < MAX_LINGER_BYTES {
            let read = std::future::poll_fn(|cx| {
                // The buffer is not part of the future, because the future's memory lives as long
                // as the connection.
                let mut space = [const { MaybeUninit::uninit() }; READ_BUFFER_BYTES];
                let mut read = ReadBuf::uninit(&mut space);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
                Poll::Ready(io::Result::Ok(read.filled().len()))
            });
            match tokio::time::timeout(MAX_LINGER_PAUSE, read).await {
                Ok(Ok(bytes @ 1..)) => discarded += bytes as u64,
                _ => return,
            }
        }
    };
    let closed_by_command = std::future::poll_fn(|cx| match permit.poll_command(cx) {
        Command::Kill => Poll::Ready(()),
        _ => Poll::Pending,
    });
    tokio::select! {
        () = discard => {}
        () = tokio::time::sleep(MAX_LINGER_TIME) => {}
        () = closed_by_command => {}
    }
}
