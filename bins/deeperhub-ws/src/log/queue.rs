//! The bounded queue between logging threads and standard error. A stalled reader of standard error
//! blocks only the queue's own thread. Lines that do not fit into the queue are dropped and counted.
//! Once there is room again, their number is queued at the position of the gap.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use deeperhub_metrics::Counter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Maximum bytes of lines that are joined into one write. Bounded, because a write frees its space
/// in the queue only when it is complete.
const MAX_WRITE_BYTES: usize = 16 * 1024;

/// Delay before a write is retried while standard error is non-blocking and full.
const FULL_RETRY_DELAY: Duration = Duration::from_millis(10);

thread_local! {
    /// Lines that this thread logs during [`captured`]; `None` outside of it.
    static CAPTURED_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// A handle to the queue. Clones share the queue.
#[derive(Debug, Clone)]
pub(crate) struct LogQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Maximum bytes of queued lines.
    capacity: usize,
    /// All lines lost since the start.
    lost: Counter,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// Bytes of all items, including the one that is being written.
    bytes: usize,
    /// `true` while an item is off the queue but not yet written.
    is_writing: bool,
    /// Lines dropped since the last [`Item::Lost`].
    lost: u64,
    /// Per [`LineClass`]: `true` from a dropped line until the queue shrinks to half of the class's
    /// limit. Without this hysteresis, a slow reader would get many short gaps, each with a report.
    is_refusing: [bool; 2],
}

#[derive(Debug)]
enum Item {
    /// Whole lines.
    Lines(Vec<u8>),
    /// Number of lines lost at this position.
    Lost(u64),
}

/// Priority of a line, which decides how much of the queue it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineClass {
    /// `debug` and `trace`. They may use three quarters of the queue, because clients can cause any
    /// number of them.
    Verbose,
    /// `info` and above. They may use the whole queue.
    Important,
}

impl LogQueue {
    /// Starts a queue of `capacity` bytes and its thread, which writes to `out`. The thread calls
    /// `format_lost` to format a report of lost lines.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub(crate) fn start(
        capacity: usize,
        mut out: impl Write + Send + 'static,
        format_lost: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            capacity,
            lost: Counter::default(),
        }));
        let shared = Arc::clone(&queue.0);
        thread::Builder::new().name("hub-log".to_owned()).spawn(move || {
            loop {
                let write = || shared.write_next(&mut out, &format_lost);
                if catch_unwind(AssertUnwindSafe(write)).is_err() {
                    shared.finish_write(0);
                }
            }
        })?;
        Ok(queue)
    }

    /// Returns the counter of lost lines.
    pub(crate) fn lost(&self) -> Counter {
        self.0.lost.clone()
    }

    /// Queues a line that is not a log event. It must end in a line feed.
    pub(crate) fn line(&self, line: &str) {
        self.0.push(line.as_bytes(), LineClass::Important);
    }

    /// Waits up to `timeout` until all lines are written. Returns `true` if they are.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let state = self.0.lock();
        let has_lines = |state: &mut State| state.is_writing || !state.items.is_empty() || state.lost > 0;
        match self.0.changed.wait_timeout_while(state, timeout, has_lines) {
            Ok((_, timeout)) => !timeout.timed_out(),
            Err(_) => false,
        }
    }
}

/// Runs `log` and returns the lines that it logs on this thread, instead of queueing them.
pub(crate) fn captured(log: impl FnOnce()) -> Vec<u8> {
    CAPTURED_LINES.with(|captured| captured.replace(Some(Vec::new())));
    log();
    CAPTURED_LINES.with(RefCell::take).unwrap_or_default()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or drops and counts it if there is no room.
    fn push(&self, line: &[u8], class: LineClass) {
        let mut state = self.lock();
        if !state.has_room(line.len(), class, self.capacity) {
            state.lost += 1;
            drop(state);
            return self.lost.inc();
        }
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            state.items.push_back(Item::Lost(lost));
        }
        state.bytes += line.len();
        match state.items.back_mut() {
            Some(Item::Lines(lines)) if lines.len() + line.len() <= MAX_WRITE_BYTES => {
                lines.extend_from_slice(line)
            }
            _ => state.items.push_back(Item::Lines(line.to_vec())),
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for an item and writes it.
    fn write_next(&self, out: &mut impl Write, format_lost: &impl Fn(u64) -> Vec<u8>) {
        let mut state = self.lock();
        let item = loop {
            if let Some(item) = state.items.pop_front() {
                break item;
            }
            if state.lost > 0 {
                break Item::Lost(std::mem::take(&mut state.lost));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.is_writing = true;
        drop(state);
        match item {
            Item::Lines(lines) => {
                if write_all(out, &lines).is_err() {
                    // The error cannot be logged, because the log is what failed.
                    self.lost.add(lines.iter().filter(|&&byte| byte == b'\n').count() as u64);
                }
                self.finish_write(lines.len());
            }
            Item::Lost(lines) => {
                let _ = write_all(out, &format_lost(lines));
                self.finish_write(0);
            }
        }
    }

    /// Marks the write as finished and frees `bytes` bytes of the queue.
    fn finish_write(&self, bytes: usize) {
        let mut state = self.lock();
        // Saturates, because a panic would be logged and deadlock on this lock.
        state.bytes = state.bytes.saturating_sub(bytes);
        state.is_writing = false;
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// Returns `true` if a line of `length` bytes may be queued, and updates `is_refusing`.
    fn has_room(&mut self, length: usize, class: LineClass, capacity: usize) -> bool {
        let limit = match class {
            LineClass::Verbose => capacity - capacity / 4,
            LineClass::Important => capacity,
        };
        let is_refusing = &mut self.is_refusing[class as usize];
        *is_refusing =
            if *is_refusing { self.bytes > limit / 2 } else { self.bytes.saturating_add(length) > limit };
        !*is_refusing
    }
}

/// Writes all bytes like [`Write::write_all`], and also retries while standard error is
/// non-blocking and full. Any process that shares the pipe can make it non-blocking.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL_RETRY_DELAY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<'q> MakeWriter<'q> for LogQueue {
    type Writer = LineWriter<'q>;

    fn make_writer(&'q self) -> LineWriter<'q> {
        LineWriter { shared: &self.0, class: LineClass::Important }
    }

    fn make_writer_for(&'q self, event: &Metadata<'_>) -> LineWriter<'q> {
        let class = if *event.level() <= Level::INFO { LineClass::Important } else { LineClass::Verbose };
        LineWriter { shared: &self.0, class }
    }
}

/// Writer for a single log line. Each call of `write` must pass a whole line.
#[derive(Debug)]
pub(crate) struct LineWriter<'q> {
    shared: &'q Shared,
    class: LineClass,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_captured = CAPTURED_LINES.with_borrow_mut(|captured| match captured {
            Some(captured) => {
                captured.extend_from_slice(line);
                true
            }
            None => false,
        });
        if !is_captured {
            self.shared.push(line, self.class);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// A writer that completes a write only when allowed to.
    struct Stalled {
        allowed: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.allowed.recv().is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stalled(capacity: usize) -> (LogQueue, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (allow, allowed) = channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let out = Stalled { allowed, written: Arc::clone(&written) };
        let format_lost = |lost| format!("{lost} lost\n").into_bytes();
        (LogQueue::start(capacity, out, format_lost).unwrap(), allow, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_stalled_reader_blocks_no_logging_thread_and_lost_lines_are_reported_at_their_position() {
        let (queue, allow, written) = stalled(1000);
        for n in 0..1000 {
            queue.line(&format!("{n:09}\n"));
        }
        assert!(!queue.flush(Duration::from_millis(1)));
        assert_eq!(queue.lost().value(), 900, "100 lines of 10 bytes fit");
        for _ in 0..1000 {
            allow.send(()).unwrap();
        }
        assert!(queue.flush(TEST_TIMEOUT));
        queue.line("later\n");
        assert!(queue.flush(TEST_TIMEOUT));
        let text = text(&written);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[99..], ["000000099", "900 lost", "later"], "{text}");
    }

    #[test]
    fn lines_after_a_gap_are_queued_once_half_of_the_queue_is_free() {
        let (queue, allow, written) = stalled(40);
        let ten = "123456789\n";
        for _ in 0..5 {
            queue.line(ten);
        }
        assert_eq!(queue.lost().value(), 1);
        queue.line("x\n");
        assert_eq!(queue.lost().value(), 2, "less than half of the queue is free");
        for _ in 0..100 {
            allow.send(()).unwrap();
        }
        assert!(queue.flush(TEST_TIMEOUT));
        assert_eq!(text(&written), format!("{}2 lost\n", ten.repeat(4)));
    }

    #[test]
    fn verbose_lines_leave_room_for_important_ones() {
        let (queue, _allow, _written) = stalled(400);
        for _ in 0..100 {
            queue.0.push(b"123456789\n", LineClass::Verbose);
        }
        assert_eq!(queue.lost().value(), 70);
        for _ in 0..10 {
            queue.line("123456789\n");
        }
        assert_eq!(queue.lost().value(), 70);
        queue.line("\n");
        assert_eq!(queue.lost().value(), 71);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_queue_continues() {
        let (queue, allow, _written) = stalled(1000);
        drop(allow);
        queue.line("a\n");
        queue.line("b\n");
        assert!(queue.flush(TEST_TIMEOUT));
        assert_eq!(queue.lost().value(), 2);
    }

    #[test]
    fn writes_to_a_full_non_blocking_output_are_retried() {
        struct Full(u32);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    _ => Ok(bytes.len().min(2)),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Full(0);
        assert!(write_all(&mut out, b"12345").is_ok());
        assert_eq!(out.0, 5);
    }

    #[test]
    fn captured_lines_are_not_queued() {
        let (queue, _allow, _written) = stalled(10);
        let lines = captured(|| drop(queue.make_writer().write_all(b"longer than the queue\n")));
        assert_eq!((lines.as_slice(), queue.lost().value()), (&b"longer than the queue\n"[..], 0));
    }
}
