//! A server with one worker for tests, and bounded waits for what it does.

use std::time::{Duration, Instant};

use deeperhub_listener::{Application, Config, Listener, Metrics};
use deeperhub_metrics::Cells;

/// Timeout far longer than the tests take on a busy machine.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a server with one worker, with a configuration that `configure` changes. Returns the
/// server and its metrics.
pub(crate) fn start(
    application: impl Application,
    configure: impl FnOnce(&mut Config),
) -> (Listener, Metrics) {
    let mut config = Config::default();
    config.workers = 1;
    configure(&mut config);
    let cells = Cells::new(config.workers);
    let metrics = Metrics::new(&cells);
    let listener = Listener::builder(application)
        .config(config)
        .metrics(&cells, metrics.clone())
        .bind(([127, 0, 0, 1], 0))
        .unwrap();
    (listener, metrics)
}

/// Waits until `condition` returns `true`. Panics with `expectation` after the timeout.
pub(crate) fn wait_until(expectation: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{expectation}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
