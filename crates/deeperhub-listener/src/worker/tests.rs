//! Tests of the worker without sockets.

mod drained;
mod fixture;
mod parked;
mod parked_anywhere;
mod phases;
mod script;
mod scripted_client;
mod scripted_server;
mod timers;
mod verdicts;

use super::*;

#[test]
fn the_coalesce_delay_is_at_most_an_eighth_of_the_round() {
    for micros in [0, 1, 80, 3999, 4000, 4001, 1_000_000] {
        let duration = Duration::from_micros(micros);
        let delay = coalesce_delay(duration);
        assert!(delay <= duration / 8 && delay <= MAX_COALESCE_DELAY, "{micros} µs");
    }
    assert_eq!(coalesce_delay(Duration::from_millis(2)), Duration::from_micros(250));
}
