//! What is read again while the server runs: on SIGHUP, and when files change.

use std::convert::Infallible;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_security::files::Stamp;
use tracing::{error, info, warn};

use crate::failure::with_causes;
use crate::signals::HangUps;

/// Between two looks at the files. A change is acted on when two looks in a row saw the same, so that a certificate
/// and its key, written one after the other, are read together: 4 to 6 seconds after the last write.
const LOOK: Duration = Duration::from_secs(2);

/// How often a change is waited out that goes on and on.
const MAX_UNSETTLED: u32 = 2;

/// Reads again and puts what was read in place of what was before. When it fails, the old must stay.
type Reload = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + Send>;

/// One thing that can be read again.
struct Watched {
    /// What it is, for the log: `TLS certificate`.
    what: &'static str,
    /// Files to look at. With none, it is read again on SIGHUP only.
    paths: Vec<PathBuf>,
    /// What the files looked like when they were read last.
    read: Stamp,
    /// What they looked like at the last look, when that was something else.
    seen: Option<Stamp>,
    unsettled: u32,
    reload: Reload,
}

impl Watched {
    /// Whether the files changed since they were read and are at rest now.
    fn is_due(&mut self) -> bool {
        let now = Stamp::of(&self.paths);
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

    fn reload(&mut self, why: &'static str) {
        // Taken before reading: a change under way is then seen as one more.
        self.read = Stamp::of(&self.paths);
        self.seen = None;
        self.unsettled = 0;
        // A panic is a failure like others: what is watched besides must not suffer from it.
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
        read: Stamp,
        reload: impl FnMut() -> Result<(), Box<dyn Error>> + Send + 'static,
    ) {
        self.0.push(Watched { what, paths, read, seen: None, unsettled: 0, reload: Box::new(reload) });
    }

    /// Watches until it is dropped.
    pub(crate) async fn run(mut self, mut hang_ups: HangUps) -> Infallible {
        loop {
            // Both are cancel-safe.
            let asked = tokio::select! {
                () = hang_ups.recv() => true,
                () = tokio::time::sleep(LOOK), if self.has_files() => false,
            };
            if asked && self.0.is_empty() {
                info!("SIGHUP came, and nothing is configured that could be read again.");
                continue;
            }
            // Files may lie on a disk that is slow or gone; the runtime carries the server API.
            let looked = tokio::task::spawn_blocking(move || {
                self.look(asked);
                self
            });
            self = match looked.await {
                Ok(reloads) => reloads,
                Err(error) => {
                    warn!(%error, "Reading again failed for good; files and SIGHUP are not looked at any more.");
                    return std::future::pending().await;
                }
            };
        }
    }

    fn has_files(&self) -> bool {
        self.0.iter().any(|watched| !watched.paths.is_empty())
    }

    /// Reads again what is due; when it was asked for, everything.
    fn look(&mut self, asked: bool) {
        for watched in &mut self.0 {
            if asked {
                watched.reload("SIGHUP");
            } else if watched.is_due() {
                watched.reload("files changed");
            }
        }
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
            reloads.watch("number", vec![path.clone()], Stamp::of([&path]), move || {
                count.fetch_add(1, Ordering::Relaxed);
                let _: u32 = std::fs::read_to_string(&file)?.parse()?;
                Ok(())
            });
            Self { path, reads, reloads }
        }

        fn reads_after_look(&mut self, asked: bool) -> usize {
            self.reloads.look(asked);
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
    fn what_panics_when_it_is_read_keeps_nothing_else_from_being_read() {
        let mut fixture = Fixture::new("panic");
        let panics = Watched {
            what: "fault",
            paths: Vec::new(),
            read: Stamp::default(),
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
        fixture.reloads.watch("other", Vec::new(), Stamp::default(), move || {
            count.fetch_add(10, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(fixture.reads_after_look(false), 0);
        assert_eq!(fixture.reads_after_look(true), 11);
    }
}
