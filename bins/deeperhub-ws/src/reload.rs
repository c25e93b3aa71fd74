//! What is read again while the server runs: on SIGHUP, and when files change.

use std::convert::Infallible;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_security::files::FileStamp;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::failure::with_causes;
use crate::signals::HangUps;

/// Between two looks at the files. A change is acted on when two looks in a row saw the same, so that a certificate
/// and its key, written one after the other, are read together: 4 to 6 seconds after the last write.
const LOOK: Duration = Duration::from_secs(2);

/// How often a change is waited out that goes on and on.
const MAX_UNSETTLED: u32 = 2;

/// Maximum time that one reload delays the others. Its file may be on a lost disk, or be a pipe
/// without a writer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads again and puts what was read in place of what was before. When it fails, the old must stay.
type Reload = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + Send>;

/// One thing that can be read again.
struct Watched {
    /// What it is, for the log: `TLS certificate`.
    what: &'static str,
    /// Files to look at. With none, it is read again on SIGHUP only.
    paths: Vec<PathBuf>,
    /// What the files looked like when they were read last.
    read: FileStamp,
    /// What they looked like at the last look, when that was something else.
    seen: Option<FileStamp>,
    unsettled: u32,
    reload: Reload,
}

impl Watched {
    /// Whether the files changed since they were read and are at rest now.
    fn is_due(&mut self) -> bool {
        let now = FileStamp::of(&self.paths);
        if now == self.read {
            self.seen = None;
            self.unsettled = 0;
            return false;
        }
        let settled = self.seen.as_ref() == Some(&now) || self.unsettled >= MAX_UNSETTLED;
        self.seen = Some(now);
        self.unsettled += 1;
        settled
    }

    /// Reloads if a signal asked for it or a change is due.
    fn look(&mut self, asked: bool) {
        if asked {
            self.reload("SIGHUP");
        } else if self.is_due() {
            self.reload("files changed");
        }
    }

    fn reload(&mut self, why: &'static str) {
        // Taken before reading: a change under way is then seen as one more.
        self.read = FileStamp::of(&self.paths);
        self.seen = None;
        self.unsettled = 0;
        // A panic is a failed reload; it must not affect the other watched items.
        let reload = || (self.reload)();
        let reloaded = catch_unwind(AssertUnwindSafe(reload)).unwrap_or_else(|_| Err("it panicked".into()));
        match reloaded {
            Ok(()) => info!(what = self.what, why, "Read again."),
            Err(error) => {
                let error = with_causes(error.as_ref());
                error!(what = self.what, why, error, "Cannot be read again; what was read before stays.");
            }
        }
    }
}

/// Everything that is read again, in the order in which it was added.
#[derive(Default)]
pub(crate) struct Reloads(Vec<Watched>);

impl Reloads {
    /// Adds something. `read` is what the files looked like right before they were read for the first time; `reload`
    /// is called on SIGHUP and after they changed. It may block: it runs on a thread of its own. It logs warnings
    /// itself, and returns an error when the old stays.
    pub(crate) fn watch(
        &mut self,
        what: &'static str,
        paths: Vec<PathBuf>,
        read: FileStamp,
        reload: impl FnMut() -> Result<(), Box<dyn Error>> + Send + 'static,
    ) {
        self.0.push(Watched { what, paths, read, seen: None, unsettled: 0, reload: Box::new(reload) });
    }

    /// Watches until the future is dropped. A reload that blocks delays only itself.
    pub(crate) async fn run(self, mut hang_ups: HangUps) -> Infallible {
        let mut readers: Vec<_> = self.0.into_iter().map(Reader::new).collect();
        loop {
            // Both are cancel-safe.
            let looks = readers.iter().any(Reader::is_looked_at);
            let asked = tokio::select! {
                () = hang_ups.recv() => true,
                () = tokio::time::sleep(LOOK), if looks => false,
            };
            if asked && readers.is_empty() {
                info!("SIGHUP came, and nothing is configured that could be read again.");
            }
            for reader in &mut readers {
                reader.look(asked).await;
            }
        }
    }
}

/// A watched item that reloads on a blocking thread, because the runtime also serves the server
/// API.
struct Reader {
    what: &'static str,
    has_files: bool,
    /// `true` if a signal arrived during a reload.
    asked: bool,
    state: ReaderState,
}

enum ReaderState {
    Idle(Watched),
    Reading(JoinHandle<Watched>),
    /// The reload task panicked.
    Failed,
}

impl Reader {
    fn new(watched: Watched) -> Self {
        let has_files = !watched.paths.is_empty();
        Self { what: watched.what, has_files, asked: false, state: ReaderState::Idle(watched) }
    }

    /// Returns `true` if there may be work without a signal.
    fn is_looked_at(&self) -> bool {
        self.has_files || matches!(self.state, ReaderState::Reading(_))
    }

    async fn look(&mut self, asked: bool) {
        self.asked |= asked;
        if let ReaderState::Reading(_) = self.state {
            self.end().await;
        }
        match std::mem::replace(&mut self.state, ReaderState::Failed) {
            ReaderState::Idle(mut watched) => {
                let asked = std::mem::take(&mut self.asked);
                let reading = tokio::task::spawn_blocking(move || {
                    watched.look(asked);
                    watched
                });
                self.wait(reading, PATIENCE).await;
                if matches!(self.state, ReaderState::Reading(_)) {
                    warn!(what = self.what, "Reading again takes long; it goes on, and so does the server.");
                }
            }
            other => self.state = other,
        }
    }

    /// Collects a running reload if it has finished.
    async fn end(&mut self) {
        if let ReaderState::Reading(reading) = std::mem::replace(&mut self.state, ReaderState::Failed) {
            self.wait(reading, Duration::ZERO).await;
            if matches!(self.state, ReaderState::Idle(_)) {
                info!(what = self.what, "Slow reload finished.");
            }
        }
    }

    async fn wait(&mut self, mut reading: JoinHandle<Watched>, time: Duration) {
        self.state = match tokio::time::timeout(time, &mut reading).await {
            Ok(Ok(watched)) => ReaderState::Idle(watched),
            Ok(Err(error)) => {
                warn!(what = self.what, %error, "Reload task failed; reload disabled until restart.");
                self.has_files = false;
                ReaderState::Failed
            }
            Err(_) => ReaderState::Reading(reading),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A file, and how often it was read again.
    struct Fixture {
        path: PathBuf,
        reads: Arc<AtomicUsize>,
        reloads: Reloads,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("deeperhub-{}-{name}", std::process::id()));
            write(&path, "0");
            let reads = Arc::new(AtomicUsize::new(0));
            let mut reloads = Reloads::default();
            let (count, file) = (Arc::clone(&reads), path.clone());
            reloads.watch("number", vec![path.clone()], FileStamp::of([&path]), move || {
                count.fetch_add(1, Ordering::Relaxed);
                let _: u32 = std::fs::read_to_string(&file)?.parse()?;
                Ok(())
            });
            Self { path, reads, reloads }
        }

        fn reads_after_look(&mut self, asked: bool) -> usize {
            self.reloads.0.iter_mut().for_each(|watched| watched.look(asked));
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
    fn files_are_read_again_when_they_changed_and_are_at_rest() {
        let mut fixture = Fixture::new("rest");
        assert_eq!(fixture.reads_after_look(false), 0);
        write(&fixture.path, "12");
        assert_eq!(fixture.reads_after_look(false), 0, "it may go on");
        write(&fixture.path, "123");
        assert_eq!(fixture.reads_after_look(false), 0, "it did go on");
        assert_eq!(fixture.reads_after_look(false), 1);
        assert_eq!(fixture.reads_after_look(false), 1, "nothing has changed since");
    }

    #[test]
    fn a_change_that_goes_on_and_on_is_read_all_the_same() {
        let mut fixture = Fixture::new("unrest");
        let mut looks = 0;
        while fixture.reads_after_look(false) == 0 {
            looks += 1;
            write(&fixture.path, &"1".repeat(looks));
            assert!(looks < 9, "it is never read");
        }
    }

    #[test]
    fn what_cannot_be_read_is_tried_again_after_the_next_change_only() {
        let mut fixture = Fixture::new("broken");
        write(&fixture.path, "no number");
        fixture.reads_after_look(false);
        assert_eq!(fixture.reads_after_look(false), 1);
        assert_eq!((fixture.reads_after_look(false), fixture.reads_after_look(false)), (1, 1));
        write(&fixture.path, "7");
        fixture.reads_after_look(false);
        assert_eq!(fixture.reads_after_look(false), 2);
    }

    #[test]
    fn what_blocks_holds_up_itself_only() {
        let (unblock, blocked) = std::sync::mpsc::channel::<()>();
        let reads = Arc::new(AtomicUsize::new(0));
        let mut reloads = Reloads::default();
        reloads.watch("a pipe", Vec::new(), FileStamp::default(), move || Ok(blocked.recv()?));
        let count = Arc::clone(&reads);
        reloads.watch("other", Vec::new(), FileStamp::default(), move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let mut readers: Vec<_> = reloads.0.into_iter().map(Reader::new).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for expected in [1, 2] {
                for reader in &mut readers {
                    reader.look(true).await;
                }
                assert_eq!(reads.load(Ordering::Relaxed), expected);
            }
            assert!(matches!(readers[0].state, ReaderState::Reading(_)) && readers[0].asked);
            // The signal that arrived during the reload still takes effect.
            unblock.send(()).unwrap();
            unblock.send(()).unwrap();
            while readers[0].asked {
                readers[0].look(false).await;
                tokio::task::yield_now().await;
            }
            assert!(matches!(readers[0].state, ReaderState::Idle(_)));
        });
    }

    #[test]
    fn what_panics_when_it_is_read_keeps_nothing_else_from_being_read() {
        let mut fixture = Fixture::new("panic");
        let panics = Watched {
            what: "fault",
            paths: Vec::new(),
            read: FileStamp::default(),
            seen: None,
            unsettled: 0,
            reload: Box::new(|| panic!("a test makes this panic")),
        };
        fixture.reloads.0.insert(0, panics);
        assert_eq!((fixture.reads_after_look(true), fixture.reads_after_look(true)), (1, 2));
    }

    #[test]
    fn a_signal_reads_at_once_what_has_not_changed_and_what_has_no_files() {
        let mut fixture = Fixture::new("signal");
        let count = Arc::clone(&fixture.reads);
        fixture.reloads.watch("other", Vec::new(), FileStamp::default(), move || {
            count.fetch_add(10, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(fixture.reads_after_look(false), 0);
        assert_eq!(fixture.reads_after_look(true), 11);
    }
}
