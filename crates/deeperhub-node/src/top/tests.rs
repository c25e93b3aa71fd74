use std::collections::HashMap;

use super::sketch::{SKETCH_CAPACITY, Sketch};
use super::window::busiest;
use super::*;

#[test]
fn heavy_names_stay_among_many_light_ones() {
    let mut sketch = Sketch::default();
    for round in 0..20_000_u32 {
        sketch.add(&format!("light.{round}"), 0, 1);
        sketch.add(if round % 2 == 0 { "heavy.a" } else { "heavy.b" }, 3, 10);
    }
    assert!(sketch.entries.len() == SKETCH_CAPACITY && sketch.positions.len() == SKETCH_CAPACITY);
    let top = busiest(sketch.entries, 2);
    assert_eq!(top.iter().map(|busy| busy.name.as_str()).collect::<Vec<_>>(), ["heavy.a", "heavy.b"]);
    for busy in top {
        let error = busy.error;
        assert_eq!((busy.messages, busy.deliveries, busy.bytes), (10_000, 30_000, 100_000), "{error}");
    }
}

#[test]
fn a_weight_exceeds_the_truth_by_at_most_the_error() {
    let mut sketch = Sketch::default();
    let mut truth: HashMap<String, u64> = HashMap::new();
    // Park-Miller generator: skewed numbers without a dependency.
    let mut state = 42_u64;
    for _ in 0..50_000 {
        state = state * 48_271 % 0x7fff_ffff;
        let name = format!("{}", (state % 2000) * (state % 7) / 6);
        sketch.add(&name, 0, 1);
        *truth.entry(name).or_default() += 1;
    }
    for entry in &sketch.entries {
        let truth = truth[&*entry.name];
        assert!(entry.weight >= truth && entry.weight - entry.error <= truth, "{entry:?} {truth}");
        assert!(entry.error <= 50_000 / SKETCH_CAPACITY as u64);
    }
}

#[test]
fn a_lightest_name_is_replaced() {
    let mut sketch = Sketch::default();
    let mut state = 7_u64;
    for _ in 0..20_000 {
        state = state * 48_271 % 0x7fff_ffff;
        let name = format!("{}", state % 300);
        let is_known = sketch.positions.contains_key(name.as_str());
        let least = sketch.entries.iter().map(|entry| entry.weight).min().unwrap_or(0);
        let is_full = sketch.entries.len() == SKETCH_CAPACITY;
        sketch.add(&name, state % 5, 1);
        if is_full && !is_known {
            let entry = &sketch.entries[sketch.positions[name.as_str()]];
            assert_eq!(entry.error, least);
        }
    }
}

#[test]
fn counts_cover_the_last_two_windows() {
    let start = Instant::now();
    let mut window = TopWindow::new(start);
    window.publish("a", 5, 100, start);
    let report = |window: &mut TopWindow, at| {
        let mut report = TopReport::default();
        report.add(window.report(start + at));
        report.into_top(10)
    };
    assert_eq!(report(&mut window, Duration::from_secs(1)).window, Duration::from_secs(1));
    let top = report(&mut window, Duration::from_secs(6));
    assert_eq!((top.window, top.topics.len()), (Duration::from_secs(6), 1));
    window.publish("a", 5, 100, start + Duration::from_secs(7));
    let top = report(&mut window, Duration::from_secs(8));
    assert_eq!((top.topics[0].messages, top.topics[0].deliveries), (2, 10));
    let top = report(&mut window, Duration::from_secs(11));
    assert_eq!((top.window, top.topics[0].messages), (Duration::from_secs(6), 1));
    assert_eq!(report(&mut window, Duration::from_secs(60)).topics, []);
}

#[test]
fn tracking_stops_after_its_timeout() {
    let start = Instant::now();
    let tracker = TopTracker::new(start);
    assert!(!tracker.is_tracking(start));
    tracker.keep_tracking(start);
    assert!(tracker.is_tracking(start + TRACKING_TIMEOUT / 2));
    assert!(!tracker.is_tracking(start + TRACKING_TIMEOUT));
}

#[test]
fn subscriptions_that_are_behind_are_summed_by_topic() {
    let start = Instant::now();
    let report = |behind: &[(&str, u64)]| {
        let mut window = TopWindow::new(start);
        window.publish("busy", 1, 1, start);
        let behind = behind.iter().map(|(name, count)| ((*name).into(), *count)).collect();
        window.report(start).with_behind(behind)
    };
    let topics = |limit| {
        let mut sum = report(&[("busy", 2), ("quiet", 1), ("a", 1)]);
        sum.add(report(&[("busy", 3), ("quiet", 4)]));
        let topics = sum.into_top(limit).topics.into_iter();
        topics.map(|topic| (topic.name, topic.messages, topic.behind)).collect::<Vec<_>>()
    };
    let (busy, quiet, a) = (("busy".into(), 2, 5), ("quiet".into(), 0, 5), ("a".into(), 0, 1));
    assert_eq!(topics(10), [busy, quiet, a]);
    assert_eq!(topics(1), [("busy".into(), 2, 5)]);
    assert_eq!(topics(2).len(), 2);
}
