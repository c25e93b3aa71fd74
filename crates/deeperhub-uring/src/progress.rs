//! Send progress of a TCP connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The send progress of a TCP connection, as reported by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendProgress {
    /// Number of bytes that the peer's kernel has acknowledged since the start of the connection.
    /// If the peer's program does not read, its kernel stops acknowledging when its receive buffer
    /// is full.
    pub acknowledged: u64,
    /// `true` if the local kernel holds bytes that it has not sent, or that the peer has not
    /// acknowledged.
    pub is_outstanding: bool,
}

/// Length of `struct tcp_info` in bytes, up to the last field that this module reads. Linux has had
/// this field since 4.6.
const INFO_BYTES: usize = 148;

/// Returns the send progress of a connected TCP socket (`TCP_INFO`), with one system call.
///
/// # Errors
///
/// - `ENOTSOCK`, `EOPNOTSUPP`: `socket` is not a TCP socket.
/// - [`Unsupported`](io::ErrorKind::Unsupported): the kernel is older than Linux 4.6, or the system
///   is not Linux.
pub fn send_progress(socket: BorrowedFd<'_>) -> io::Result<SendProgress> {
    // An array of `u64` has the alignment of the kernel's structure.
    let mut info = [0_u64; INFO_BYTES.div_ceil(size_of::<u64>())];
    let mut len = size_of_val(&info) as libc::socklen_t;
    #[expect(unsafe_code, reason = "getsockopt writes through a raw pointer")]
    // SAFETY: The kernel writes at most `len` bytes, which `info` has. `info` outlives the call,
    // and any bytes are a valid value for it. The descriptor stays open while it is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < INFO_BYTES {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let read_u64 = |offset: usize| info.get(offset / 8).copied().unwrap_or_default();
    let read_u32 = |offset: usize| {
        let [a, b, c, d, e, f, g, h] = read_u64(offset).to_ne_bytes();
        u32::from_ne_bytes(if offset.is_multiple_of(8) { [a, b, c, d] } else { [e, f, g, h] })
    };
    // Offsets in `struct tcp_info`.
    let (unacked, bytes_acked, notsent_bytes) = (read_u32(24), read_u64(120), read_u32(144));
    Ok(SendProgress { acknowledged: bytes_acked, is_outstanding: unacked > 0 || notsent_bytes > 0 })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        (listener.accept().expect("a connection").0, client)
    }

    fn progress(socket: &TcpStream) -> SendProgress {
        send_progress(socket.as_fd()).expect("TCP_INFO is available")
    }

    /// Waits until the progress meets `condition`, because acknowledgements take time.
    fn wait_until(socket: &TcpStream, condition: impl Fn(SendProgress) -> bool) -> SendProgress {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let progress = progress(socket);
            if condition(progress) {
                return progress;
            }
            assert!(Instant::now() < deadline, "{progress:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn received_bytes_are_acknowledged() {
        let (mut server, _client) = pair();
        let start = progress(&server);
        assert!(!start.is_outstanding, "{start:?}");
        server.write_all(&[7; 1000]).expect("the send buffer has space");
        wait_until(&server, |now| now.acknowledged == start.acknowledged + 1000 && !now.is_outstanding);
    }

    #[test]
    fn bytes_stay_outstanding_until_the_peer_reads() {
        let (mut server, mut client) = pair();
        server.set_nonblocking(true).expect("the socket is open");
        let mut written = 0;
        let mut full_count = 0;
        // Write until both kernels' buffers stay full.
        while full_count < 20 {
            match server.write(&[7; 64 * 1024]) {
                Ok(accepted) => (written, full_count) = (written + accepted, 0),
                Err(_) => full_count += 1,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let blocked = progress(&server);
        assert!(blocked.is_outstanding, "{blocked:?} after {written} bytes");
        let mut buffer = vec![0; written];
        client.read_exact(&mut buffer).expect("all bytes arrive");
        wait_until(&server, |now| now.acknowledged > blocked.acknowledged && !now.is_outstanding);
    }

    #[test]
    fn a_descriptor_that_is_not_a_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null exists");
        assert!(send_progress(file.as_fd()).is_err());
    }
}
