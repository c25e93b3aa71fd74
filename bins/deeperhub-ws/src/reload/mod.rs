//! Reloads settings, keys and certificates on SIGHUP. Also reloads keys and certificates when their
//! files change.

pub(crate) mod keys;
pub(crate) mod settings;
pub(crate) mod tls;

use std::convert::Infallible;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_security::files::FileStamp;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::exit::with_causes;
use crate::process::signals::ReloadSignals;

/// Interval between two polls of the files. A reload follows when two polls in a row see the same
/// change. A certificate and its key, written one after the other, are thus read together.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Maximum number of polls in a row that see changed files without a reload. The next poll reloads
/// the files even if they still change, so that steady changes do not prevent reloads.
const MAX_UNSTABLE_POLLS: u32 = 2;

/// Maximum time that one reload delays the others. A reload may block, because its file may be on a
/// lost disk or be a pipe without a writer.
const SLOW_RELOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the files and replaces the values in use. Returns an error if it did not replace them.
type Reload = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + Send>;

/// Files that are read together, and the function that reads them.
struct ReloadSource {
    /// Name in the log, such as `TLS certificate`.
    what: &'static str,
    /// Files to poll. A source without files reloads on SIGHUP only.
    paths: Vec<PathBuf>,
    /// State of the files right before they were last read.
    last_read: FileStamp,
    /// State of the files at the last poll, if it differs from `last_read`.
    last_polled: Option<FileStamp>,
    /// Number of polls in a row that saw the files differ from `last_read`.
    unstable_polls: u32,
    reload: Reload,
}

impl ReloadSource {
    /// Polls the files. Returns `true` if they differ from the last read and are unchanged since
    /// the last poll. After [`MAX_UNSTABLE_POLLS`] polls without a reload, any difference suffices.
    fn is_due(&mut self) -> bool {
        let now = FileStamp::of(&self.paths);
        if now == self.last_read {
            self.last_polled = None;
            self.unstable_polls = 0;
            return false;
        }
        let is_due = self.last_polled.as_ref() == Some(&now) || self.unstable_polls >= MAX_UNSTABLE_POLLS;
        self.last_polled = Some(now);
        self.unstable_polls += 1;
        is_due
    }

    /// Reloads if SIGHUP arrived or a change of the files is due.
    fn poll(&mut self, has_signal: bool) {
        if has_signal {
            self.reload("SIGHUP");
        } else if self.is_due() {
            self.reload("files changed");
        }
    }

    fn reload(&mut self, why: &'static str) {
        // Stamped before the read, so that a change during the read is seen by the next poll.
        self.last_read = FileStamp::of(&self.paths);
        self.last_polled = None;
        self.unstable_polls = 0;
        // A panic counts as a failed reload, so that the source can be reloaded again.
        let reload = || (self.reload)();
        let result = catch_unwind(AssertUnwindSafe(reload)).unwrap_or_else(|_| Err("it panicked".into()));
        match result {
            Ok(()) => info!(what = self.what, why, "Reloaded"),
            Err(error) => {
                let error = with_causes(error.as_ref());
                error!(what = self.what, why, error, "Reload failed; previous values stay in effect");
            }
        }
    }
}

/// All sources that can be reloaded, in the order of reloading.
#[derive(Default)]
pub(crate) struct Reloader(Vec<ReloadSource>);

impl Reloader {
    /// Adds a source. `last_read` is the state of the files right before they were first read.
    ///
    /// `reload` is called on SIGHUP and after the files changed. It runs on a thread for blocking
    /// tasks, so it may block. It logs its warnings itself, and returns an error if the previous
    /// values stay in use.
    pub(crate) fn watch(
        &mut self,
        what: &'static str,
        paths: Vec<PathBuf>,
        last_read: FileStamp,
        reload: impl FnMut() -> Result<(), Box<dyn Error>> + Send + 'static,
    ) {
        self.0.push(ReloadSource {
            what,
            paths,
            last_read,
            last_polled: None,
            unstable_polls: 0,
            reload: Box::new(reload),
        });
    }

    /// Runs reloads until the future is dropped. A reload that blocks delays the others by at most
    /// [`SLOW_RELOAD_TIMEOUT`].
    pub(crate) async fn run(self, mut signals: ReloadSignals) -> Infallible {
        let mut workers: Vec<_> = self.0.into_iter().map(ReloadWorker::new).collect();
        loop {
            let needs_polling = workers.iter().any(ReloadWorker::needs_polling);
            let has_signal = tokio::select! {
                () = signals.recv() => true,
                () = tokio::time::sleep(POLL_INTERVAL), if needs_polling => false,
            };
            if has_signal && workers.is_empty() {
                info!("Nothing to reload on SIGHUP");
            }
            for worker in &mut workers {
                worker.poll(has_signal).await;
            }
        }
    }
}

/// A source whose reloads run on a thread for blocking tasks, because the runtime also serves the
/// server API.
struct ReloadWorker {
    what: &'static str,
    has_files: bool,
    /// `true` if a signal arrived that no reload has handled yet.
    has_signal: bool,
    state: WorkerState,
}

enum WorkerState {
    Idle(ReloadSource),
    /// A poll runs on another thread, followed by a reload if one is due.
    Running(JoinHandle<ReloadSource>),
    /// The polling task ended without returning the source.
    Failed,
}

impl ReloadWorker {
    fn new(source: ReloadSource) -> Self {
        let has_files = !source.paths.is_empty();
        Self { what: source.what, has_files, has_signal: false, state: WorkerState::Idle(source) }
    }

    /// Returns `true` if the source must be polled even without a signal.
    fn needs_polling(&self) -> bool {
        self.has_files || matches!(self.state, WorkerState::Running(_))
    }

    /// Collects the running poll if it has finished. Starts the next one if none is running.
    async fn poll(&mut self, has_signal: bool) {
        self.has_signal |= has_signal;
        self.state = match std::mem::replace(&mut self.state, WorkerState::Failed) {
            WorkerState::Running(task) => {
                let state = self.wait(task, Duration::ZERO).await;
                if matches!(state, WorkerState::Idle(_)) {
                    info!(what = self.what, "Slow reload finished");
                }
                state
            }
            state => state,
        };
        self.state = match std::mem::replace(&mut self.state, WorkerState::Failed) {
            WorkerState::Idle(mut source) => {
                let has_signal = std::mem::take(&mut self.has_signal);
                let task = tokio::task::spawn_blocking(move || {
                    source.poll(has_signal);
                    source
                });
                let state = self.wait(task, SLOW_RELOAD_TIMEOUT).await;
                if matches!(state, WorkerState::Running(_)) {
                    warn!(what = self.what, "Slow reload continues in the background");
                }
                state
            }
            state => state,
        };
    }

    /// Waits up to `timeout` for the task, and returns the state that follows.
    async fn wait(&mut self, mut task: JoinHandle<ReloadSource>, timeout: Duration) -> WorkerState {
        match tokio::time::timeout(timeout, &mut task).await {
            Ok(Ok(source)) => WorkerState::Idle(source),
            Ok(Err(error)) => {
                warn!(what = self.what, %error, "Reload task failed; disabled until restart");
                self.has_files = false;
                WorkerState::Failed
            }
            Err(_) => WorkerState::Running(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A file and the number of its reloads.
    struct Fixture {
        path: PathBuf,
        reads: Arc<AtomicUsize>,
        reloader: Reloader,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("deeperhub-{}-{name}", std::process::id()));
            write(&path, "0");
            let reads = Arc::new(AtomicUsize::new(0));
            let mut reloader = Reloader::default();
            let (count, file) = (Arc::clone(&reads), path.clone());
            reloader.watch("number", vec![path.clone()], FileStamp::of([&path]), move || {
                count.fetch_add(1, Ordering::Relaxed);
                let _: u32 = std::fs::read_to_string(&file)?.parse()?;
                Ok(())
            });
            Self { path, reads, reloader }
        }

        fn reads_after_poll(&mut self, has_signal: bool) -> usize {
            self.reloader.0.iter_mut().for_each(|source| source.poll(has_signal));
            self.reads.load(Ordering::Relaxed)
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn files_reload_when_they_changed_and_settled() {
        let mut fixture = Fixture::new("settled");
        assert_eq!(fixture.reads_after_poll(false), 0);
        write(&fixture.path, "12");
        assert_eq!(fixture.reads_after_poll(false), 0, "the first poll after a change does not reload");
        write(&fixture.path, "123");
        assert_eq!(fixture.reads_after_poll(false), 0, "the file changed between the polls");
        assert_eq!(fixture.reads_after_poll(false), 1);
        assert_eq!(fixture.reads_after_poll(false), 1, "an unchanged file does not reload");
    }

    #[test]
    fn files_that_keep_changing_reload_nevertheless() {
        let mut fixture = Fixture::new("unsettled");
        for length in 2..2 + MAX_UNSTABLE_POLLS as usize {
            write(&fixture.path, &"1".repeat(length));
            assert_eq!(fixture.reads_after_poll(false), 0);
        }
        write(&fixture.path, "12345");
        assert_eq!(fixture.reads_after_poll(false), 1);
    }

    #[test]
    fn a_failed_reload_is_retried_after_the_next_change_only() {
        let mut fixture = Fixture::new("invalid");
        write(&fixture.path, "no number");
        fixture.reads_after_poll(false);
        assert_eq!(fixture.reads_after_poll(false), 1);
        assert_eq!((fixture.reads_after_poll(false), fixture.reads_after_poll(false)), (1, 1));
        write(&fixture.path, "7");
        fixture.reads_after_poll(false);
        assert_eq!(fixture.reads_after_poll(false), 2);
    }

    #[test]
    fn a_blocked_reload_does_not_block_the_others() {
        let (unblock, blocked) = std::sync::mpsc::channel::<()>();
        let reads = Arc::new(AtomicUsize::new(0));
        let mut reloader = Reloader::default();
        reloader.watch("a pipe", Vec::new(), FileStamp::default(), move || Ok(blocked.recv()?));
        let count = Arc::clone(&reads);
        reloader.watch("other", Vec::new(), FileStamp::default(), move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let mut workers: Vec<_> = reloader.0.into_iter().map(ReloadWorker::new).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for expected in [1, 2] {
                for worker in &mut workers {
                    worker.poll(true).await;
                }
                assert_eq!(reads.load(Ordering::Relaxed), expected);
            }
            assert!(matches!(workers[0].state, WorkerState::Running(_)) && workers[0].has_signal);
            // The signal that arrived during the reload causes another reload.
            unblock.send(()).unwrap();
            unblock.send(()).unwrap();
            while workers[0].has_signal {
                workers[0].poll(false).await;
                tokio::task::yield_now().await;
            }
            assert!(matches!(workers[0].state, WorkerState::Idle(_)));
        });
    }

    #[test]
    fn a_reload_that_panics_does_not_affect_others() {
        let mut fixture = Fixture::new("panic");
        let panicking = ReloadSource {
            what: "panicking",
            paths: Vec::new(),
            last_read: FileStamp::default(),
            last_polled: None,
            unstable_polls: 0,
            reload: Box::new(|| panic!("a test makes this panic")),
        };
        fixture.reloader.0.insert(0, panicking);
        assert_eq!((fixture.reads_after_poll(true), fixture.reads_after_poll(true)), (1, 2));
    }

    #[test]
    fn a_signal_reloads_all_sources_at_once() {
        let mut fixture = Fixture::new("signal");
        let count = Arc::clone(&fixture.reads);
        fixture.reloader.watch("other", Vec::new(), FileStamp::default(), move || {
            count.fetch_add(10, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(fixture.reads_after_poll(false), 0);
        assert_eq!(fixture.reads_after_poll(true), 11);
    }
}
