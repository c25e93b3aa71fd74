//! Reloads settings, keys and certificates on SIGHUP and when their files change.

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
/// change, 4 to 6 seconds after the last write. A certificate and its key, written one after the
/// other, are thus read together.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Maximum number of polls that a reload waits while the files keep changing.
const MAX_UNSTABLE_POLLS: u32 = 2;

/// Maximum time that one reload delays the others. Its file may be on a lost disk, or be a pipe
/// without a writer.
const SLOW_RELOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the files and replaces the values in use. On an error, the previous values must stay.
type Reload = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + Send>;

/// Something that can be reloaded.
struct ReloadSource {
    /// Its name in the log, such as `TLS certificate`.
    what: &'static str,
    /// Files to poll. Without any, it reloads on SIGHUP only.
    paths: Vec<PathBuf>,
    /// State of the files when they were last read.
    read: FileStamp,
    /// State of the files at the last poll, if it differs from `read`.
    last_polled: Option<FileStamp>,
    unstable_polls: u32,
    reload: Reload,
}

impl ReloadSource {
    /// Returns `true` if the files changed since they were read and no longer change.
    fn is_due(&mut self) -> bool {
        let now = FileStamp::of(&self.paths);
        if now == self.read {
            self.last_polled = None;
            self.unstable_polls = 0;
            return false;
        }
        let settled = self.last_polled.as_ref() == Some(&now) || self.unstable_polls >= MAX_UNSTABLE_POLLS;
        self.last_polled = Some(now);
        self.unstable_polls += 1;
        settled
    }

    /// Reloads if a signal asked for it or a change is due.
    fn poll(&mut self, asked: bool) {
        if asked {
            self.reload("SIGHUP");
        } else if self.is_due() {
            self.reload("files changed");
        }
    }

    fn reload(&mut self, why: &'static str) {
        // Taken before reading, so that a concurrent change counts as another change.
        self.read = FileStamp::of(&self.paths);
        self.last_polled = None;
        self.unstable_polls = 0;
        // A panic is a failed reload; it must not affect the other watched items.
        let reload = || (self.reload)();
        let reloaded = catch_unwind(AssertUnwindSafe(reload)).unwrap_or_else(|_| Err("it panicked".into()));
        match reloaded {
            Ok(()) => info!(what = self.what, why, "Reloaded"),
            Err(error) => {
                let error = with_causes(error.as_ref());
                error!(what = self.what, why, error, "Reload failed; previous values stay in effect");
            }
        }
    }
}

/// Everything that can be reloaded, in the order of reloading.
#[derive(Default)]
pub(crate) struct Reloader(Vec<ReloadSource>);

impl Reloader {
    /// Adds a source. `read` is the state of the files right before they were first read. `reload`
    /// is called on SIGHUP and after the files changed. It may block, as it runs on a blocking
    /// thread. It logs its own warnings, and returns an error if the previous values stay.
    pub(crate) fn watch(
        &mut self,
        what: &'static str,
        paths: Vec<PathBuf>,
        read: FileStamp,
        reload: impl FnMut() -> Result<(), Box<dyn Error>> + Send + 'static,
    ) {
        self.0.push(ReloadSource {
            what,
            paths,
            read,
            last_polled: None,
            unstable_polls: 0,
            reload: Box::new(reload),
        });
    }

    /// Runs reloads until the future is dropped. A reload that blocks delays only itself.
    pub(crate) async fn run(self, mut signals: ReloadSignals) -> Infallible {
        let mut workers: Vec<_> = self.0.into_iter().map(ReloadWorker::new).collect();
        loop {
            // Both are cancel-safe.
            let polls = workers.iter().any(ReloadWorker::needs_polling);
            let asked = tokio::select! {
                () = signals.recv() => true,
                () = tokio::time::sleep(POLL_INTERVAL), if polls => false,
            };
            if asked && workers.is_empty() {
                info!("Nothing to reload on SIGHUP");
            }
            for worker in &mut workers {
                worker.poll(asked).await;
            }
        }
    }
}

/// A source that reloads on a blocking thread, because the runtime also serves the server API.
struct ReloadWorker {
    what: &'static str,
    has_files: bool,
    /// `true` if a signal arrived during a reload.
    asked: bool,
    state: WorkerState,
}

enum WorkerState {
    Idle(ReloadSource),
    Reading(JoinHandle<ReloadSource>),
    /// The reload task panicked.
    Failed,
}

impl ReloadWorker {
    fn new(source: ReloadSource) -> Self {
        let has_files = !source.paths.is_empty();
        Self { what: source.what, has_files, asked: false, state: WorkerState::Idle(source) }
    }

    /// Returns `true` if there may be work without a signal.
    fn needs_polling(&self) -> bool {
        self.has_files || matches!(self.state, WorkerState::Reading(_))
    }

    async fn poll(&mut self, asked: bool) {
        self.asked |= asked;
        if let WorkerState::Reading(_) = self.state {
            self.end().await;
        }
        match std::mem::replace(&mut self.state, WorkerState::Failed) {
            WorkerState::Idle(mut source) => {
                let asked = std::mem::take(&mut self.asked);
                let reading = tokio::task::spawn_blocking(move || {
                    source.poll(asked);
                    source
                });
                self.wait(reading, SLOW_RELOAD_TIMEOUT).await;
                if matches!(self.state, WorkerState::Reading(_)) {
                    warn!(what = self.what, "Slow reload continues in the background");
                }
            }
            other => self.state = other,
        }
    }

    /// Collects a running reload if it has finished.
    async fn end(&mut self) {
        if let WorkerState::Reading(reading) = std::mem::replace(&mut self.state, WorkerState::Failed) {
            self.wait(reading, Duration::ZERO).await;
            if matches!(self.state, WorkerState::Idle(_)) {
                info!(what = self.what, "Slow reload finished");
            }
        }
    }

    async fn wait(&mut self, mut reading: JoinHandle<ReloadSource>, time: Duration) {
        self.state = match tokio::time::timeout(time, &mut reading).await {
            Ok(Ok(source)) => WorkerState::Idle(source),
            Ok(Err(error)) => {
                warn!(what = self.what, %error, "Reload task failed; disabled until restart");
                self.has_files = false;
                WorkerState::Failed
            }
            Err(_) => WorkerState::Reading(reading),
        };
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

        fn reads_after_poll(&mut self, asked: bool) -> usize {
            self.reloader.0.iter_mut().for_each(|source| source.poll(asked));
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
        let mut fixture = Fixture::new("rest");
        assert_eq!(fixture.reads_after_poll(false), 0);
        write(&fixture.path, "12");
        assert_eq!(fixture.reads_after_poll(false), 0, "it may still change");
        write(&fixture.path, "123");
        assert_eq!(fixture.reads_after_poll(false), 0, "it did change");
        assert_eq!(fixture.reads_after_poll(false), 1);
        assert_eq!(fixture.reads_after_poll(false), 1, "nothing has changed since");
    }

    #[test]
    fn files_that_keep_changing_reload_nevertheless() {
        let mut fixture = Fixture::new("unrest");
        let mut looks = 0;
        while fixture.reads_after_poll(false) == 0 {
            looks += 1;
            write(&fixture.path, &"1".repeat(looks));
            assert!(looks < 9, "it never reloads");
        }
    }

    #[test]
    fn a_failed_reload_is_retried_after_the_next_change_only() {
        let mut fixture = Fixture::new("broken");
        write(&fixture.path, "no number");
        fixture.reads_after_poll(false);
        assert_eq!(fixture.reads_after_poll(false), 1);
        assert_eq!((fixture.reads_after_poll(false), fixture.reads_after_poll(false)), (1, 1));
        write(&fixture.path, "7");
        fixture.reads_after_poll(false);
        assert_eq!(fixture.reads_after_poll(false), 2);
    }

    #[test]
    fn a_blocked_reload_delays_only_itself() {
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
            assert!(matches!(workers[0].state, WorkerState::Reading(_)) && workers[0].asked);
            // The signal that arrived during the reload still takes effect.
            unblock.send(()).unwrap();
            unblock.send(()).unwrap();
            while workers[0].asked {
                workers[0].poll(false).await;
                tokio::task::yield_now().await;
            }
            assert!(matches!(workers[0].state, WorkerState::Idle(_)));
        });
    }

    #[test]
    fn a_reload_that_panics_does_not_affect_others() {
        let mut fixture = Fixture::new("panic");
        let panics = ReloadSource {
            what: "fault",
            paths: Vec::new(),
            read: FileStamp::default(),
            last_polled: None,
            unstable_polls: 0,
            reload: Box::new(|| panic!("a test makes this panic")),
        };
        fixture.reloader.0.insert(0, panics);
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
