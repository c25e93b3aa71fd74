//! The ring, with the `unsafe` submission to the kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use crate::{MAX_BATCH, RecvOp, SendOp};

/// No operation waits for its socket, and a broken one returns an error instead of a signal.
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Result of an operation that was not carried out.
const NOT_DONE: i32 = -libc::EAGAIN;

/// Maximum submissions of a batch that the kernel refuses for lack of memory.
const MAX_REFUSALS: u32 = 16;

pub(crate) struct Ring {
    /// `None` once it has failed.
    uring: Option<IoUring>,
    entries: Vec<squeue::Entry>,
    results: Vec<i32>,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        // All of a batch is carried out though one of its parts may fail at once (Linux 5.18, by which time all else that
        // is used here was there). No task work is deferred: measured, that costs more than it saves, as sends are over
        // when `io_uring_enter` returns anyway.
        let uring = IoUring::builder().dontfork().setup_submit_all().build(MAX_BATCH as u32)?;
        let mut ring = Self { uring: Some(uring), entries: Vec::new(), results: Vec::new() };
        // A filter may let rings be made and not be used.
        ring.entries.push(opcode::Nop::new().build().user_data(0));
        match ring.carry_out()? {
            [0] => Ok(ring),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        self.uring.is_some()
    }

    pub(crate) fn send<'a>(&mut self, sends: impl IntoIterator<Item = SendOp<'a>>) -> &[i32] {
        // A caller's iterator that panics leaves entries in this list at most, which the kernel does not see.
        self.entries.clear();
        for SendOp { to, bytes } in sends {
            let entry = opcode::Send::new(types::Fd(to.as_raw_fd()), bytes.as_ptr(), length(bytes.len()));
            self.push(entry.flags(FLAGS).build());
        }
        self.carry_out_or_not()
    }

    pub(crate) fn recv<'a>(&mut self, recvs: impl IntoIterator<Item = RecvOp<'a>>) -> &[i32] {
        self.entries.clear();
        for RecvOp { from, buffer } in recvs {
            let entry =
                opcode::Recv::new(types::Fd(from.as_raw_fd()), buffer.as_mut_ptr(), length(buffer.len()));
            self.push(entry.flags(FLAGS).build());
        }
        self.carry_out_or_not()
    }

    fn push(&mut self, entry: squeue::Entry) {
        let at = self.entries.len();
        assert!(at < MAX_BATCH, "a batch has {MAX_BATCH} parts at most");
        self.entries.push(entry.user_data(at as u64));
    }

    fn carry_out_or_not(&mut self) -> &[i32] {
        // What was not carried out says so itself.
        let _ = self.carry_out();
        &self.results
    }

    /// Carries out all `entries`. When it returns, even with an error, the kernel has finished with all
    /// of them.
    fn carry_out(&mut self) -> io::Result<&[i32]> {
        let count = self.entries.len();
        self.results.clear();
        self.results.resize(count, NOT_DONE);
        let Some(uring) = &mut self.uring else { return Err(io::ErrorKind::Unsupported.into()) };

        // SAFETY: descriptors, buffers and their lengths were taken from references that live as long as the call of `send`
        // or `recv` that made them, and the buffers to be written to from exclusive ones. That call ends only when the
        // kernel has finished with every entry that it was given: below, or in `settle`. Entries that it was not given are
        // dropped with the ring before it can see them (there is no kernel thread that polls for them).
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&self.entries) };
        let mut failure = pushed.err().map(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        let (mut done, mut refusals) = (0, 0);
        while failure.is_none() && done < count {
            match uring.submit_and_wait(count - done) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No memory for an entry, or no room for completions; those that are there are taken below.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && refusals < MAX_REFUSALS =>
                {
                    refusals += 1;
                    thread::yield_now();
                }
                Err(error) => failure = Some(error),
            }
            done += reap(uring, &mut self.results);
        }
        let Some(error) = failure else { return Ok(&self.results) };
        settle(uring, count - done, &mut self.results);
        self.uring = None;
        Err(error)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("is_working", &self.is_working()).finish_non_exhaustive()
    }
}

/// Takes the available completions and returns their number.
fn reap(uring: &mut IoUring, results: &mut [i32]) -> usize {
    let mut count = 0;
    for completion in uring.completion() {
        count += 1;
        if let Some(result) = results.get_mut(completion.user_data() as usize) {
            *result = completion.result();
        }
    }
    count
}

/// Waits until the kernel has finished with the entries that it took, without `io_uring_enter`, which
/// fails. No operation waits for its socket, so this takes little time.
fn settle(uring: &mut IoUring, open: usize, results: &mut [i32]) {
    let not_taken = uring.submission().len();
    let mut taken = open.saturating_sub(not_taken);
    loop {
        taken = taken.saturating_sub(reap(uring, results));
        if taken == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Caps a length at the 32 bits that the kernel takes; longer buffers are sent in part.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;
    use crate::Batcher;

    /// `None` where the kernel does not let us, which a machine for tests may do.
    fn batcher() -> Option<Batcher> {
        match Batcher::new() {
            Ok(batcher) => Some(batcher),
            Err(error) => {
                eprintln!("io_uring cannot be used here, so it is not tested: {error}");
                None
            }
        }
    }

    fn pairs(count: usize) -> Vec<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        (0..count)
            .map(|_| {
                let client = TcpStream::connect(address).expect("the listener takes it");
                client.set_read_timeout(Some(Duration::from_secs(20))).expect("it is a time");
                (listener.accept().expect("a client came").0, client)
            })
            .collect()
    }

    fn send_to<'a>(pairs: &'a [(TcpStream, TcpStream)], bytes: &'a [u8]) -> impl Iterator<Item = SendOp<'a>> {
        pairs.iter().map(move |(server, _)| SendOp { to: server.as_fd(), bytes })
    }

    #[test]
    fn each_socket_gets_its_own() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(MAX_BATCH);
        for round in 0..20 {
            let texts: Vec<_> = (0..pairs.len()).map(|nth| format!("{round}: for {nth}")).collect();
            let sends = pairs
                .iter()
                .zip(&texts)
                .map(|((server, _), text)| SendOp { to: server.as_fd(), bytes: text.as_bytes() });
            let sent: Vec<_> = batcher.send(sends).map(|sent| sent.expect("there is room")).collect();
            assert_eq!(sent, texts.iter().map(String::len).collect::<Vec<_>>());
            for ((_, client), text) in pairs.iter_mut().zip(&texts) {
                let mut read = vec![0; text.len()];
                client.read_exact(&mut read).expect("it was sent");
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
                client.write_all(format!("from {nth:02}").as_bytes()).expect("there is room");
            }
            if nth % 4 == 3 {
                client.shutdown(Shutdown::Write).expect("it is open");
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
    fn a_full_socket_holds_up_nobody() {
        let Some(mut batcher) = batcher() else { return };
        let pairs = pairs(3);
        let large = vec![7; 4 << 20];
        let send_large = |batcher: &mut Batcher| {
            let send = SendOp { to: pairs[1].0.as_fd(), bytes: &large };
            let outcome = batcher.send([send]).next().expect("one was sent");
            outcome.map_err(|error| error.kind())
        };
        let mut taken = 0;
        while let Ok(more) = send_large(&mut batcher) {
            assert!(more > 0 && more <= large.len());
            taken += more;
            assert!(taken < 1 << 30, "the socket takes all there is");
        }
        assert_eq!(send_large(&mut batcher), Err(ErrorKind::WouldBlock));
        let outcomes: Vec<_> =
            batcher.send(send_to(&pairs, b"x")).map(|sent| sent.map_err(|error| error.kind())).collect();
        assert_eq!(outcomes, [Ok(1), Err(ErrorKind::WouldBlock), Ok(1)]);
    }

    #[test]
    fn a_broken_socket_answers_an_error_and_raises_no_signal() {
        let Some(mut batcher) = batcher() else { return };
        let pairs = pairs(3);
        pairs[0].0.shutdown(Shutdown::Write).expect("it is open");
        let no_socket = std::fs::File::open("/dev/null").expect("it is there");
        let mut sends: Vec<_> = send_to(&pairs, b"hello").collect();
        sends[2].to = no_socket.as_fd();
        let outcomes: Vec<_> = batcher
            .send(sends)
            .map(|sent| sent.map_err(|error| error.raw_os_error().expect("the system said it")))
            .collect();
        assert_eq!(outcomes, [Err(libc::EPIPE), Ok(5), Err(libc::ENOTSOCK)]);
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let Some(mut batcher) = batcher() else { return };
        assert_eq!(batcher.send([]).len(), 0);
        assert_eq!(batcher.recv([]).len(), 0);
        let pairs = pairs(1);
        let outcomes: Vec<_> = batcher.send(send_to(&pairs, b"")).map(|sent| sent.expect("it is")).collect();
        assert_eq!(outcomes, [0]);
    }

    #[test]
    fn a_batch_that_is_not_finished_is_not_carried_out() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(2);
        let torn = catch_unwind(AssertUnwindSafe(|| {
            let text = "gone by the time of the next batch".to_owned();
            let sends = send_to(&pairs, text.as_bytes()).enumerate();
            batcher.send(sends.map(|(nth, send)| if nth == 0 { send } else { panic!("torn") })).count()
        }));
        assert!(torn.is_err());
        let too_many = std::iter::repeat_with(|| SendOp { to: pairs[0].0.as_fd(), bytes: b"?" });
        assert!(catch_unwind(AssertUnwindSafe(|| batcher.send(too_many).len())).is_err());
        assert_eq!(batcher.send(send_to(&pairs, b"whole")).len(), 2);
        for (server, client) in &mut pairs {
            server.shutdown(Shutdown::Write).expect("it is open");
            let mut read = Vec::new();
            client.read_to_end(&mut read).expect("it ended");
            assert_eq!(read, b"whole");
        }
    }

    #[test]
    fn a_ring_that_has_failed_answers_that_nothing_was_taken() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(2);
        batcher.ring.uring = None;
        let outcomes: Vec<_> =
            batcher.send(send_to(&pairs, b"x")).map(|sent| sent.map_err(|error| error.kind())).collect();
        assert_eq!(outcomes, [Err(ErrorKind::WouldBlock), Err(ErrorKind::WouldBlock)]);
        assert!(!batcher.is_working());
        pairs[0].0.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(pairs[0].1.read(&mut [0]).expect("it ended"), 0);
    }

    #[test]
    fn what_the_kernel_has_taken_is_waited_for() {
        let Some(mut batcher) = batcher() else { return };
        let mut pairs = pairs(4);
        // As after a submission whose wait failed: some are with the kernel, some are not.
        let ring = &mut batcher.ring;
        let uring = ring.uring.as_mut().expect("it works");
        let entries: Vec<_> = pairs
            .iter()
            .zip(0..)
            .map(|((server, _), nth)| {
                let send = opcode::Send::new(types::Fd(server.as_raw_fd()), b"abc".as_ptr(), 3);
                send.flags(FLAGS).build().user_data(nth)
            })
            .collect();
        // SAFETY: what the entries point to is static, and the sockets outlive the test's last submission.
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&entries[..2]) };
        pushed.expect("there is room");
        uring.submit().expect("the kernel takes it");
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let pushed = unsafe { uring.submission().push_multiple(&entries[2..]) };
        pushed.expect("there is room");
        let mut results = [NOT_DONE; 4];
        settle(uring, 4, &mut results);
        assert_eq!(results, [3, 3, NOT_DONE, NOT_DONE]);
        ring.uring = None;
        for (nth, (server, client)) in pairs.iter_mut().enumerate() {
            server.shutdown(Shutdown::Write).expect("it is open");
            let mut read = Vec::new();
            client.read_to_end(&mut read).expect("it ended");
            assert_eq!(read, if nth < 2 { &b"abc"[..] } else { b"" });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// Whatever sizes the batches have and however little the sockets take, each peer reads what was sent to it.
        #[test]
        fn every_byte_arrives_once_and_in_order(
            rounds in prop::collection::vec(prop::collection::vec(0_usize..40_000, 1..12), 1..8),
        ) {
            let Some(mut batcher) = batcher() else { return Ok(()) };
            let pairs = pairs(12);
            for (server, _) in &pairs {
                socket2::SockRef::from(server).set_send_buffer_size(4096).expect("it is a size");
            }
            let mut readers = Vec::new();
            for (_, client) in &pairs {
                let mut client = client.try_clone().expect("there is a descriptor");
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
                server.shutdown(Shutdown::Write).expect("it is open");
            }
            for (reader, expected) in readers.into_iter().zip(expected) {
                let read = reader.join().expect("it does not panic").expect("it reads to the end");
                prop_assert!(read == expected);
            }
        }
    }
}
