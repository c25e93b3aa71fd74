//! The kit must be able to fail: planted faults of a client are caught, and a right client passes.

use std::process::{Child, Command, Output, Stdio};

const KIT: &str = env!("CARGO_BIN_EXE_deeperhub-conformance");
const DRIVER: &str = env!("CARGO_BIN_EXE_reference-driver");

/// Starts to play scenes against the kit's own client with a planted fault.
fn play(names: &[&str], jobs: &str, fault: Option<&str>) -> Child {
    Command::new(KIT)
        .args(["--jobs", jobs])
        .args(names)
        .args(["--", DRIVER])
        .args(fault)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the kit starts")
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Faults, each with a scene that catches it and a part of the failure's text.
const CAUGHT: &[(&str, &str, &str)] = &[
    ("duplicates", "order/duplicates_are_dropped", "expected message 11"),
    ("drops", "recovering/missed_messages_are_replayed", "expected message 14"),
    ("reorders", "order/burst_keeps_its_order", "expected message 1 "),
    ("forgets-position", "recovering/position_is_given_back_as_it_came", "expected a subscribe with recover"),
    ("splits-position", "recovering/position_is_given_back_as_it_came", "expected a subscribe with recover"),
    ("ignores-slot", "reconnecting/goodbye_with_slot", "expected wait_ms of 1500"),
    ("loops-on-token", "tokens/refused_string_closes", "waiting for the application: state \"closed\""),
    ("reconnects-for-ever", "reconnecting/final_4003", "waiting for the application: state \"closed\""),
    ("no-backoff", "reconnecting/backoff_grows_to_its_limit", "expected a backoff of 20"),
    ("new-once", "publishing/lost_answer_is_asked_for_again", "expected the same once"),
    ("loses-publishes", "publishing/lost_answer_is_asked_for_again", "waiting for the client's \"publish\""),
    ("overtakes-publishes", "publishing/one_at_a_time_on_a_topic", "expected no publish before the answer"),
    ("matches-by-order", "publishing/replies_in_another_order", "expected offset 11"),
    ("hides-gaps", "order/gap_in_its_place", "expected a gap"),
    ("live-too-early", "recovering/cut_in_mid_replay", "expected message 11"),
    ("overlooks-holes", "order/hole_is_reported_and_filled", "error \"hole\""),
    ("ignores-epoch", "order/other_epoch_is_a_hole", "error \"hole\""),
    ("subscribes-one-by-one", "subscribing/one_message_for_all_topics", "expected one subscribe for"),
    ("ends-too-early", "subscribing/unavailable_is_retried", "waiting for one subscribe"),
    ("own-message-is-hole", "own/delivery_waits_for_published", "chat.1"),
    ("forgets-own-message", "retries/own_message_at_the_start_of_a_replay", "expected message 12"),
    ("position-overtakes", "own/position_waits_behind_deliveries", "expected nothing more"),
    ("position-moves-back", "own/position_behind_own_messages", "message 13 of chat.1"),
    ("stops-after-handler-fails", "application/handler_fails", "waiting for the application: message 13"),
    ("loses-from-full-queue", "application/full_queue_with_history", "waiting for"),
    ("loses-from-full-queue", "application/full_queue_without_history", "a message or gap"),
    ("never-pings", "life/silent_server_is_left", "waiting for the client's \"ping\""),
    ("no-fence", "recovering/messages_before_subscribed_are_dropped", "expected"),
    ("saves-too-early", "storage/waiting_messages_are_not_saved", "expected a subscribe with recover"),
    ("survives-close", "connecting/close_while_waiting", "expected no further connection"),
    ("follows-older-gaps", "joining/events_before_the_epoch_of_the_history", "expected message 16 of e3"),
    ("follows-older-gaps", "joining/joined_before_subscribed", "expected message 16 of e3"),
    ("follows-older-gaps", "joining/own_message_behind_the_history", "expected message 16 of e2"),
    ("overlooks-later-gaps", "joining/later_epoch_waits_for_the_history", "a message or gap at handle"),
    ("overlooks-later-gaps", "joining/later_epoch_after_the_history", "a message or gap at handle"),
    ("overlooks-lower-offsets", "joining/lower_offsets_wait_for_the_history", "a message or gap at handle"),
    ("forgets-other-epochs", "joining/own_message_in_the_history", "a message or gap at handle"),
    ("forgets-other-epochs", "own/published_in_an_epoch_to_come", "message 14 of chat.1"),
    ("forgets-other-epochs", "own/full_queue_before_a_new_epoch", "message 15 of chat.1"),
    ("forgets-late-answers", "own/late_answer_fills_the_hole", "chat.1"),
    ("calls-gaps-recovered", "recovering/recovered_but_for_a_gap", "expected live with recovered: false"),
    ("replays-to-one", "sharing/replay_for_another_handle", "expected message 13 at handle"),
    ("loses-waiting", "own/waiting_deliveries_are_limited", "waiting for"),
    ("waits-without-history", "own/topic_without_history_waits_for_no_answer", "message 0 of news"),
    ("subscribes-twice", "sharing/two_handles_share", "waiting for the application: ready"),
];

#[test]
fn planted_faults_are_caught() {
    // All at once, since a scene that fails mostly waits for what never comes.
    let kits: Vec<Child> = CAUGHT.iter().map(|(fault, scene, _)| play(&[scene], "1", Some(fault))).collect();
    let mut missed = String::new();
    for ((fault, scene, part), kit) in CAUGHT.iter().zip(kits) {
        let output = kit.wait_with_output().expect("the kit ends");
        let text = text_of(&output);
        let is_failure =
            text.lines().any(|line| line.starts_with(&format!("FAILED {scene}: ")) && line.contains(part));
        if output.status.code() != Some(1) || !is_failure {
            missed += &format!("\n== {fault} in {scene}, expected {part:?}:\n{text}");
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

#[test]
fn right_client_passes_all_scenes() {
    let output = play(&[], "8", None).wait_with_output().expect("the kit ends");
    let text = text_of(&output);
    assert!(output.status.success(), "{text}");
    let scenes = text.lines().filter(|line| line.starts_with("ok ")).count();
    let summary = text.lines().last().unwrap_or_default();
    assert!(summary.starts_with(&format!("{scenes} passed, 0 failed, ")), "{summary}");
}

#[test]
fn driver_that_is_none_fails_each_scene() {
    for (driver, part) in [("/bin/true", "ended at its start"), ("/nonexistent/driver", "cannot be started")]
    {
        let output = Command::new(KIT).args(["order/", "--", driver]).output().expect("the kit ends");
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let failures = text.lines().filter(|line| line.starts_with("FAILED ") && line.contains(part)).count();
        assert!(text.ends_with(&format!("0 passed, {failures} failed\n")) && failures > 0, "{text}");
    }
}

#[test]
fn list_has_all_names_once() {
    let output = Command::new(KIT).arg("--list").output().expect("the kit ends");
    let text = text_of(&output);
    let mut names: Vec<&str> = text.lines().collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 75, "{count} scenes");
}

#[test]
fn command_line_is_checked() {
    let cases: [&[&str]; 5] =
        [&[], &["--jobs", "0", "--", "x"], &["--colour"], &["order"], &["no-such-scene", "--", "x"]];
    for arguments in cases {
        let output = Command::new(KIT).args(arguments).output().expect("the kit ends");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text_of(&output));
    }
}
