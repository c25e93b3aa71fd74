//! The ring, with the `unsafe` code that submits operations to the kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use crate::{MAX_BATCH, RecvOp, SendOp};

/// Flags of every operation: the operation does not wait for its socket, and a closed connection
/// causes an error instead of a signal.
const MESSAGE_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Result of an operation that the kernel did not execute.
const NOT_EXECUTED: i32 = -libc::EAGAIN;

/// Maximum number of retries if the kernel lacks memory for a batch. Limits the time of one call;
/// after the last retry, the ring fails.
const MAX_RETRIES: u32 = 16;

pub(crate) struct Ring {
    /// The ring; `None` after it failed.
    uring: Option<IoUring>,
    /// The operations of the current batch. Their `user_data` is their index.
    entries: Vec<squeue::Entry>,
    /// For each operation of the last batch, its number of bytes, or a negative error number.
    results: Vec<i32>,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        // `setup_submit_all` (Linux 5.18) submits the whole batch even if an operation fails at
        // once. All other features used here are older. Task work is not deferred: sends complete
        // within `io_uring_enter` anyway, and measurements showed that deferring costs more than it
        // saves.
        let uring = IoUring::builder().dontfork().setup_submit_all().build(MAX_BATCH as u32)?;
        let mut ring = Self { uring: Some(uring), entries: Vec::new(), results: Vec::new() };
        // A system call filter can allow a program to create a ring but not to use it, so try it.
        ring.entries.push(opcode::Nop::new().build().user_data(0));
        match ring.execute()? {
            [0] => Ok(ring),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        self.uring.is_some()
    }

    pub(crate) fn send<'a>(&mut self, sends: impl IntoIterator<Item = SendOp<'a>>) -> &[i32] {
        // If the iterator panics, the entries pushed so far are never submitted.
        self.entries.clear();
        for SendOp { to, bytes } in sends {
            let entry =
                opcode::Send::new(types::Fd(to.as_raw_fd()), bytes.as_ptr(), capped_length(bytes.len()));
            self.push(entry.flags(MESSAGE_FLAGS).build());
        }
        self.execute_batch()
    }

    pub(crate) fn recv<'a>(&mut self, recvs: impl IntoIterator<Item = RecvOp<'a>>) -> &[i32] {
        self.entries.clear();
        for RecvOp { from, buffer } in recvs {
            let entry = opcode::Recv::new(
                types::Fd(from.as_raw_fd()),
                buffer.as_mut_ptr(),
                capped_length(buffer.len()),
            );
            self.push(entry.flags(MESSAGE_FLAGS).build());
        }
        self.execute_batch()
    }

    fn push(&mut self, entry: squeue::Entry) {
        let index = self.entries.len();
        assert!(index < MAX_BATCH, "a batch has at most {MAX_BATCH} operations");
        self.entries.push(entry.user_data(index as u64));
    }

    /// Executes the batch and returns its results. An operation that the kernel did not execute has
    /// the result [`NOT_EXECUTED`].
    fn execute_batch(&mut self) -> &[i32] {
        // The results already tell which operations were not executed.
        let _ = self.execute();
        &self.results
    }

    /// Submits all `entries` and waits for their results. When the function returns, even with an
    /// error, the kernel has finished with all entries.
    fn execute(&mut self) -> io::Result<&[i32]> {
        let count = self.entries.len();
        self.results.clear();
        self.results.resize(count, NOT_EXECUTED);
        let Some(uring) = &mut self.uring else { return Err(io::ErrorKind::Unsupported.into()) };

        // SAFETY: The entries' descriptors, buffers and lengths come from references that outlive
        // the call of `send` or `recv` that created the entries. Buffers for reads come from
        // exclusive references. The call of `send` or `recv` returns only after the kernel has
        // finished with every submitted entry: after the loop below, or after `wait_for_submitted`.
        // The kernel never sees entries that were not submitted: no kernel thread polls for
        // entries, and the ring is dropped after an error.
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&self.entries) };
        let mut error = pushed.err().map(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        let (mut completed, mut retries) = (0, 0);
        while error.is_none() && completed < count {
            match uring.submit_and_wait(count - completed) {
                Ok(_) => {}
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has no memory for an entry (EAGAIN) or no space for completions
                // (EBUSY). Collecting the available completions below frees space for a retry.
                Err(cause)
                    if matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && retries < MAX_RETRIES =>
                {
                    retries += 1;
                    thread::yield_now();
                }
                Err(cause) => error = Some(cause),
            }
            completed += collect_completions(uring, &mut self.results);
        }
        let Some(error) = error else { return Ok(&self.results) };
        wait_for_submitted(uring, count - completed, &mut self.results);
        self.uring = None;
        Err(error)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("is_working", &self.is_working()).finish_non_exhaustive()
    }
}

/// Stores the results of the available completions and returns their number.
fn collect_completions(uring: &mut IoUring, results: &mut [i32]) -> usize {
    let mut count = 0;
    for completion in uring.completion() {
        count += 1;
        if let Some(result) = results.get_mut(completion.user_data() as usize) {
            *result = completion.result();
        }
    }
    count
}

/// Waits until the kernel has finished with the submitted entries, after `io_uring_enter` failed.
/// `incomplete` is the number of entries without a completion, submitted or not.
///
/// The function polls for completions, because it cannot wait with `io_uring_enter`. No operation
/// waits for its socket, so this takes little time.
fn wait_for_submitted(uring: &mut IoUring, incomplete: usize, results: &mut [i32]) {
    let not_submitted = uring.submission().len();
    let mut pending = incomplete.saturating_sub(not_submitted);
    loop {
        pending = pending.saturating_sub(collect_completions(uring, results));
        if pending == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the length of an operation, capped at the 32 bits that the kernel supports. A longer
/// buffer is sent or filled in part.
fn capped_length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "../../../tests/support/capability.rs"]
mod capability;

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::capability::Capability;
    use super::*;
    use crate::Batcher;

    /// Returns a batcher. Without `io_uring`, the test is skipped.
    fn batcher() -> Option<Batcher> {
        Capability::IoUring.check(Batcher::new())
    }

    fn pairs(count: usize) -> Vec<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener has an address");
        (0..count)
            .map(|_| {
                let client = TcpStream::connect(address).expect("the listener accepts");
                client.set_read_timeout(Some(Duration::from_secs(20))).expect("a valid timeout");
                (listener.accept().expect("a client connected").0, client)
            })
            .collect()
    }

    fn send_to<'a>(pairs: &'a [(TcpStream, TcpStream)], bytes: &'a [u8]) -> impl Iterator<Item = SendOp<'a>> {
        pairs.iter().map(move |(server, _)| SendOp { to: server.as_fd(), bytes })
    }

    #[test]
    fn each_socket_gets_the_bytes_of_its_operation() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(MAX_BATCH);
        for round in 0..20 {
            let texts: Vec<_> = (0..pairs.len()).map(|nth| format!("{round}: for {nth}")).collect();
            let sends = pairs
                .iter()
                .zip(&texts)
                .map(|((server, _), text)| SendOp { to: server.as_fd(), bytes: text.as_bytes() });
            let sent: Vec<_> = batcher.send(sends).map(|sent| sent.expect("the buffer has space")).collect();
            assert_eq!(sent, texts.iter().map(String::len).collect::<Vec<_>>());
            for ((_, client), text) in pairs.iter_mut().zip(&texts) {
                let mut read = vec![0; text.len()];
                client.read_exact(&mut read).expect("the bytes were sent");
                assert_eq!(read, text.as_bytes());
            }
        }
        assert!(batcher.is_working());
    }

    #[test]
    fn each_socket_is_read_into_its_own_buffer() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(40);
        for (nth, (_, client)) in pairs.iter_mut().enumerate() {
            if nth % 4 != 0 {
                client.write_all(format!("from {nth:02}").as_bytes()).expect("the buffer has space");
            }
            if nth % 4 == 3 {
                client.shutdown(Shutdown::Write).expect("the socket is open");
            }
        }
        let mut buffers = vec![[0_u8; 5]; pairs.len()];
        let mut read = |buffers: &mut Vec<[u8; 5]>| {
            let recvs = pairs
                .iter()
                .zip(buffers)
                .map(|((server, _), buffer)| RecvOp { from: server.as_fd(), buffer: &mut buffer[..] });
            batcher.recv(recvs).map(|read| read.map_err(|error| error.kind())).collect::<Vec<_>>()
        };
        for (nth, outcome) in read(&mut buffers).into_iter().enumerate() {
            assert_eq!(outcome, if nth % 4 == 0 { Err(ErrorKind::WouldBlock) } else { Ok(5) });
            assert_eq!(&buffers[nth], if nth % 4 == 0 { &[0; 5] } else { b"from " });
        }
        for (nth, outcome) in read(&mut buffers).into_iter().enumerate() {
            assert_eq!(outcome, if nth % 4 == 0 { Err(ErrorKind::WouldBlock) } else { Ok(2) });
        }
        for (nth, outcome) in read(&mut buffers).into_iter().enumerate() {
            assert_eq!(outcome, if nth % 4 == 3 { Ok(0) } else { Err(ErrorKind::WouldBlock) });
        }
    }

    #[test]
    fn a_full_socket_does_not_delay_other_sockets() {
        let Some(mut batcher) = batcher() else { return };
        let pairs = pairs(3);
        let large = vec![7; 4 << 20];
        let send_large = |batcher: &mut Batcher| {
            let send = SendOp { to: pairs[1].0.as_fd(), bytes: &large };
            let outcome = batcher.send([send]).next().expect("one outcome");
            outcome.map_err(|error| error.kind())
        };
        let mut total = 0;
        while let Ok(accepted) = send_large(&mut batcher) {
            assert!(accepted > 0 && accepted <= large.len());
            total += accepted;
            assert!(total < 1 << 30, "the socket never fills");
        }
        assert_eq!(send_large(&mut batcher), Err(ErrorKind::WouldBlock));
        let outcomes: Vec<_> =
            batcher.send(send_to(&pairs, b"x")).map(|sent| sent.map_err(|error| error.kind())).collect();
        assert_eq!(outcomes, [Ok(1), Err(ErrorKind::WouldBlock), Ok(1)]);
    }

    #[test]
    fn a_closed_socket_returns_an_error_and_raises_no_signal() {
        let Some(mut batcher) = batcher() else { return };
        let pairs = pairs(3);
        pairs[0].0.shutdown(Shutdown::Write).expect("the socket is open");
        let no_socket = std::fs::File::open("/dev/null").expect("/dev/null exists");
        let mut sends: Vec<_> = send_to(&pairs, b"hello").collect();
        sends[2].to = no_socket.as_fd();
        let outcomes: Vec<_> = batcher
            .send(sends)
            .map(|sent| sent.map_err(|error| error.raw_os_error().expect("an error of the operating system")))
            .collect();
        assert_eq!(outcomes, [Err(libc::EPIPE), Ok(5), Err(libc::ENOTSOCK)]);
    }

    #[test]
    fn empty_batches_and_empty_sends_are_allowed() {
        let Some(mut batcher) = batcher() else { return };
        assert_eq!(batcher.send([]).len(), 0);
        assert_eq!(batcher.recv([]).len(), 0);
        let pairs = pairs(1);
        let outcomes: Vec<_> =
            batcher.send(send_to(&pairs, b"")).map(|sent| sent.expect("an empty send succeeds")).collect();
        assert_eq!(outcomes, [0]);
    }

    #[test]
    fn a_batch_whose_iterator_panics_is_not_executed() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let text = "freed before the next batch".to_owned();
            let sends = send_to(&pairs, text.as_bytes()).enumerate();
            batcher
                .send(sends.map(|(nth, send)| if nth == 0 { send } else { panic!("the iterator fails") }))
                .count()
        }));
        assert!(result.is_err());
        let too_many = std::iter::repeat_with(|| SendOp { to: pairs[0].0.as_fd(), bytes: b"?" });
        assert!(catch_unwind(AssertUnwindSafe(|| batcher.send(too_many).len())).is_err());
        assert_eq!(batcher.send(send_to(&pairs, b"whole")).len(), 2);
        for (server, client) in &mut pairs {
            server.shutdown(Shutdown::Write).expect("the socket is open");
            let mut read = Vec::new();
            client.read_to_end(&mut read).expect("the stream ended");
            assert_eq!(read, b"whole");
        }
    }

    #[test]
    fn a_failed_ring_returns_would_block() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(2);
        batcher.ring.uring = None;
        let outcomes: Vec<_> =
            batcher.send(send_to(&pairs, b"x")).map(|sent| sent.map_err(|error| error.kind())).collect();
        assert_eq!(outcomes, [Err(ErrorKind::WouldBlock), Err(ErrorKind::WouldBlock)]);
        assert!(!batcher.is_working());
        pairs[0].0.shutdown(Shutdown::Write).expect("the socket is open");
        assert_eq!(pairs[0].1.read(&mut [0]).expect("the stream ended"), 0);
    }

    #[test]
    fn submitted_operations_are_waited_for_after_an_error() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(4);
        // Create the state after a failed wait: two entries are submitted, two are not.
        let ring = &mut batcher.ring;
        let uring = ring.uring.as_mut().expect("the ring works");
        let entries: Vec<_> = pairs
            .iter()
            .zip(0..)
            .map(|((server, _), nth)| {
                let send = opcode::Send::new(types::Fd(server.as_raw_fd()), b"abc".as_ptr(), 3);
                send.flags(MESSAGE_FLAGS).build().user_data(nth)
            })
            .collect();
        // SAFETY: The entries point to static bytes, and the sockets outlive the last submission.
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&entries[..2]) };
        pushed.expect("the buffer has space");
        uring.submit().expect("the kernel accepts the entries");
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&entries[2..]) };
        pushed.expect("the buffer has space");
        let mut results = [NOT_EXECUTED; 4];
        wait_for_submitted(uring, 4, &mut results);
        assert_eq!(results, [3, 3, NOT_EXECUTED, NOT_EXECUTED]);
        ring.uring = None;
        for (nth, (server, client)) in pairs.iter_mut().enumerate() {
            server.shutdown(Shutdown::Write).expect("the socket is open");
            let mut read = Vec::new();
            client.read_to_end(&mut read).expect("the stream ended");
            assert_eq!(read, if nth < 2 { &b"abc"[..] } else { b"" });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// For any sizes of batches and messages, and with small socket buffers, each peer reads
        /// the bytes that were sent to it.
        #[test]
        fn every_byte_arrives_once_and_in_order(
            rounds in prop::collection::vec(prop::collection::vec(0_usize..40_000, 1..12), 1..8),
        ) {
            let Some(mut batcher) = batcher() else { return Ok(()) };
            let pairs = pairs(12);
            for (server, _) in &pairs {
                socket2::SockRef::from(server).set_send_buffer_size(4096).expect("a valid size");
            }
            let mut readers = Vec::new();
            for (_, client) in &pairs {
                let mut client = client.try_clone().expect("a free descriptor");
                readers.push(thread::spawn(move || {
                    let mut read = Vec::new();
                    client.read_to_end(&mut read).map(|_| read)
                }));
            }
            let mut expected = vec![Vec::new(); pairs.len()];
            let mut byte = 0_u8;
            for sizes in &rounds {
                let mut waiting: Vec<(usize, Vec<u8>)> = Vec::new();
                for (nth, &size) in sizes.iter().enumerate() {
                    let bytes: Vec<u8> = (0..size).map(|_| { byte = byte.wrapping_mul(31).wrapping_add(7); byte }).collect();
                    expected[nth].extend_from_slice(&bytes);
                    waiting.push((nth, bytes));
                }
                while !waiting.is_empty() {
                    let sends = waiting
                        .iter()
                        .map(|(nth, bytes)| SendOp { to: pairs[*nth].0.as_fd(), bytes: &bytes[..] });
                    let outcomes: Vec<_> = batcher.send(sends).collect();
                    let mut outcomes = outcomes.into_iter();
                    waiting.retain_mut(|(_, bytes)| {
                        match outcomes.next().expect("each has an outcome") {
                            Ok(sent) => drop(bytes.drain(..sent)),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                        }
                        !bytes.is_empty()
                    });
                    thread::yield_now();
                }
            }
            for (server, _) in &pairs {
                server.shutdown(Shutdown::Write).expect("the socket is open");
            }
            for (reader, expected) in readers.into_iter().zip(expected) {
                let read = reader.join().expect("it does not panic").expect("it reads to the end");
                prop_assert!(read == expected);
            }
        }
    }
}
