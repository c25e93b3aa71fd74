//! Send progress of a TCP connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Send progress of a TCP socket, as its kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendProgress {
    /// Bytes that the peer's kernel has acknowledged since the connection was made. The number only
    /// grows. A peer that does not read stops acknowledging once its receive buffer is full.
    pub acknowledged: u64,
    /// Whether bytes wait in the kernel: not sent yet, or sent and not acknowledged.
    pub is_outstanding: bool,
}

/// Bytes of `struct tcp_info` up to the last field read here (Linux 4.6).
const INFO_BYTES: usize = 148;

/// Returns the send progress of a connected TCP socket (`TCP_INFO`), with one system call.
///
/// # Errors
///
/// `ENOTSOCK`, `EOPNOTSUPP`: not a TCP socket. [`Unsupported`](io::ErrorKind::Unsupported): the
/// kernel is older than Linux 4.6, or the system is not Linux.
pub fn send_progress(socket: BorrowedFd<'_>) -> io::Result<SendProgress> {
    // Whole words, so that the memory is aligned as the kernel's structure is.
    let mut info = [0_u64; INFO_BYTES.div_ceil(size_of::<u64>())];
    let mut len = size_of_val(&info) as libc::socklen_t;
    #[expect(unsafe_code, reason = "the kernel writes to the address that it is given")]
    // SAFETY: `info` has the `len` bytes that the kernel may write, lives beyond the call, and any bytes are a valid
    // value of it. The descriptor is open for as long as it is borrowed.
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
    let word = |at: usize| info.get(at / 8).copied().unwrap_or_default();
    let half = |at: usize| {
        let bytes = word(at).to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        u32::from_ne_bytes(if at.is_multiple_of(8) { [a, b, c, d] } else { [e, f, g, h] })
    };
    // Offsets in `struct tcp_info`: tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes.
    Ok(SendProgress { acknowledged: word(120), is_outstanding: half(24) > 0 || half(144) > 0 })
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
        send_progress(socket.as_fd()).expect("the kernel knows")
    }

    /// Waits until the progress is as expected; acknowledgements take time.
    fn until(socket: &TcpStream, is_as_expected: impl Fn(SendProgress) -> bool) -> SendProgress {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let progress = progress(socket);
            if is_as_expected(progress) {
                return progress;
            }
            assert!(Instant::now() < deadline, "{progress:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_the_peer_has_taken_is_acknowledged() {
        let (mut server, _client) = pair();
        let before = progress(&server);
        assert!(!before.is_outstanding, "{before:?}");
        server.write_all(&[7; 1000]).expect("it takes them");
        until(&server, |now| now.acknowledged == before.acknowledged + 1000 && !now.is_outstanding);
    }

    #[test]
    fn a_peer_that_does_not_read_makes_no_progress_until_it_does() {
        let (mut server, mut client) = pair();
        server.set_nonblocking(true).expect("it can be set");
        let mut written = 0;
        let mut quiet = 0;
        // Write until both kernels' buffers are full.
        while quiet < 20 {
            match server.write(&[7; 64 * 1024]) {
                Ok(taken) => (written, quiet) = (written + taken, 0),
                Err(_) => quiet += 1,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let stuck = progress(&server);
        assert!(stuck.is_outstanding, "{stuck:?} after {written} bytes");
        let mut buffer = vec![0; written];
        client.read_exact(&mut buffer).expect("all of it comes");
        until(&server, |now| now.acknowledged > stuck.acknowledged && !now.is_outstanding);
    }

    #[test]
    fn what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").expect("it is there");
        assert!(send_progress(file.as_fd()).is_err());
    }
}
