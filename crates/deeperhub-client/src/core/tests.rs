//! Tests of the whole core, text by text.

use serde_json::value::to_raw_value;

use super::*;
use crate::{Event, SubscriptionState};

fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns a client with an open connection.
fn connected() -> Core {
    connected_with(Settings::default())
}

fn connected_with(settings: Settings) -> Core {
    let mut core = Core::new(settings, TokenKind::None, 7);
    core.start(Duration::ZERO);
    connect(&mut core, 0);
    core
}

fn connect(core: &mut Core, seconds: u64) {
    core.handle(Input::Connected, second(seconds));
    core.handle(Input::Text(r#"{"type":"welcome","data":{"client_id":"c1"}}"#), second(seconds));
    sent(core);
}

/// Publishes a message that the client is not to get. Returns its number here and on the wire.
fn publish_excluded(core: &mut Core) -> (RequestId, u64) {
    let options = PublishOptions { exclude_self: true, ..PublishOptions::default() };
    let payload = to_raw_value(&1).expect("it is JSON");
    let id = core.publish("t", &payload, &options, second(1)).expect("it is taken");
    (id, last_id(&sent(core)))
}

/// Returns the texts that the client sends.
fn sent(core: &mut Core) -> Vec<String> {
    let actions = std::iter::from_fn(|| core.poll_action());
    actions.filter_map(|action| if let Action::Send(text) = action { Some(text) } else { None }).collect()
}

/// Returns the ID of the last text.
fn last_id(texts: &[String]) -> u64 {
    let text = texts.last().expect("something is sent");
    let message: wire::Envelope<'_> = serde_json::from_str(text).expect("it is JSON");
    message.id().expect("it has an ID")
}

fn receive(core: &mut Core, text: &str, seconds: u64) {
    core.handle(Input::Text(text), second(seconds));
}

fn subscribed(core: &mut Core, id: u64, start: &str) {
    receive(
        core,
        &format!(r#"{{"type":"subscribed","id":{id},"data":{{"topic":"t","epoch":"a",{start}}}}}"#),
        1,
    );
}

fn message(offset: u64) -> String {
    format!(r#"{{"type":"message","data":{{"topic":"t","message":1,"epoch":"a","offset":{offset}}}}}"#)
}

fn trimmed(from: u64, to: u64) -> String {
    let data =
        format!(r#"{{"topic":"t","epoch":"a","offset":{to},"from":{from},"to":{to},"reason":"trimmed"}}"#);
    format!(r#"{{"type":"gap","data":{data}}}"#)
}

/// Takes the events of a handle, in short.
fn taken(core: &mut Core, handle: HandleId) -> Vec<String> {
    let mut events = Vec::new();
    while let Next::Event(event) = core.take(handle, second(1)) {
        events.push(match event {
            Event::Message(message) => message.position.map_or(0, |position| position.offset).to_string(),
            Event::Gap(gap) => format!("{:?}-{:?}", gap.from.unwrap_or(0), gap.to.unwrap_or(0)),
            Event::State(SubscriptionState::Live { recovered, .. }) => format!("live {recovered:?}"),
            Event::State(state) => format!("{state:?}"),
        });
    }
    events
}

#[test]
fn a_handle_is_not_told_a_gap_that_another_one_asked_for() {
    let mut core = connected();
    let with_history = core.subscribe("t", 4, None, second(1));
    let (few, none) = (core.subscribe("t", 1, None, second(1)), core.subscribe("t", 0, None, second(1)));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":0,"replay":4"#);
    for text in [trimmed(1, 2), message(3), message(4), message(5)] {
        receive(&mut core, &text, 1);
    }
    assert_eq!(taken(&mut core, with_history), ["1-2", "3", "4", "live None", "5"]);
    assert_eq!(taken(&mut core, few), ["4", "live None", "5"]);
    assert_eq!(taken(&mut core, none), ["live None", "5"]);

    let mut core = connected();
    let (_, few) = (core.subscribe("t", 4, None, second(1)), core.subscribe("t", 1, None, second(1)));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":0,"replay":4"#);
    receive(&mut core, &trimmed(1, 4), 1);
    assert_eq!(taken(&mut core, few), ["4-4", "live None"]);
}

#[test]
fn a_gap_in_a_recovery_is_missed_unless_a_delivery_policy_caused_it() {
    for (reason, replay, live) in [("trimmed", 2, "live Some(false)"), ("conflated", 1, "live Some(true)")] {
        let mut core = connected();
        let handle = core.subscribe("t", 0, None, second(1));
        let id = last_id(&sent(&mut core));
        subscribed(&mut core, id, r#""offset":3"#);
        core.handle(Input::Disconnected { code: None, reason: String::new() }, second(1));
        core.handle(Input::Timeout, second(9));
        core.handle(Input::Connected, second(9));
        receive(&mut core, r#"{"type":"welcome","data":{"client_id":"c2"}}"#, 9);
        let id = last_id(&sent(&mut core));
        subscribed(&mut core, id, &format!(r#""offset":3,"recovered":true,"replay":{replay}"#));
        receive(&mut core, &trimmed(4, 4).replace("trimmed", reason), 9);
        receive(&mut core, &message(5), 9);
        assert_eq!(taken(&mut core, handle), ["live None", "Recovering", "4-4", "5", live]);
    }
}

#[test]
fn a_late_answer_to_a_publish_fills_its_place() {
    let mut core = connected();
    let handle = core.subscribe("t", 0, None, second(1));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3"#);
    let (id, wire_id) = publish_excluded(&mut core);
    // The computer sleeps with the message on its way.
    core.handle(Input::Timeout, second(200));
    let actions: Vec<Action> = std::iter::from_fn(|| core.poll_action()).collect();
    let is_failed = |action: &Action| matches!(action, Action::Published(other, Err(_)) if *other == id);
    assert!(actions.iter().any(is_failed), "{actions:?}");
    receive(&mut core, &message(5), 201);
    let published =
        format!(r#"{{"type":"published","id":{wire_id},"data":{{"topic":"t","epoch":"a","offset":4}}}}"#);
    receive(&mut core, &published, 201);
    let actions: Vec<Action> = std::iter::from_fn(|| core.poll_action()).collect();
    assert!(!actions.iter().any(|action| matches!(action, Action::Error(_))), "{actions:?}");
    assert_eq!(taken(&mut core, handle), ["live None", "5"]);
}

/// Returns a client with a live handle at an offset of the epoch `a`, and one that joins it.
fn joined(offset: u64) -> (Core, HandleId, HandleId, u64) {
    join(connected(), offset)
}

fn join(mut core: Core, offset: u64) -> (Core, HandleId, HandleId, u64) {
    let first = core.subscribe("t", 0, None, second(1));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, &format!(r#""offset":{offset}"#));
    let second_handle = core.subscribe("t", 5, None, second(1));
    let id = last_id(&sent(&mut core));
    (core, first, second_handle, id)
}

fn epoch_gap(epoch: &str, offset: u64) -> String {
    let data = format!(r#"{{"topic":"t","epoch":"{epoch}","offset":{offset},"reason":"epoch"}}"#);
    format!(r#"{{"type":"gap","data":{data}}}"#)
}

/// Returns a `history` of the epoch `c` with the message 9.
fn history(id: u64) -> String {
    let messages = r#"[{"topic":"t","message":1,"epoch":"c","offset":9}]"#;
    let data = format!(r#"{{"topic":"t","epoch":"c","offset":9,"messages":{messages}}}"#);
    format!(r#"{{"type":"history","id":{id},"data":{data}}}"#)
}

#[test]
fn gaps_before_the_epoch_of_kept_messages_do_not_lead_back() {
    let (mut core, _, handle, id) = joined(3);
    // The history was emptied twice, and the subscription is behind.
    for text in [epoch_gap("b", 5), history(id), epoch_gap("c", 8)] {
        receive(&mut core, &text, 1);
    }
    for offset in [9, 10] {
        receive(&mut core, &message(offset).replace(r#""a""#, r#""c""#), 1);
    }
    assert_eq!(taken(&mut core, handle), ["9", "live None", "10"]);
}

#[test]
fn a_handle_that_is_ahead_follows_the_subscription_to_a_later_epoch() {
    for is_told_before in [true, false] {
        let (mut core, _, handle, id) = joined(3);
        // The subscription never reaches the epoch `c`.
        let mut texts = [history(id), epoch_gap("d", 12)];
        if is_told_before {
            texts.reverse();
        }
        for text in texts {
            receive(&mut core, &text, 1);
        }
        receive(&mut core, &message(13).replace(r#""a""#, r#""d""#), 1);
        let events = taken(&mut core, handle);
        let messages: Vec<&String> = events.iter().filter(|event| !event.starts_with("live")).collect();
        assert_eq!(messages, ["9", "0-0", "13"], "told before: {is_told_before}");
    }
}

#[test]
fn a_handle_that_joins_follows_a_server_that_lost_its_offsets() {
    let (mut core, _, handle, id) = joined(3);
    for text in [epoch_gap("c", 8), epoch_gap("e", 2), history(id)] {
        receive(&mut core, &text, 1);
    }
    receive(&mut core, &message(3).replace(r#""a""#, r#""e""#), 1);
    assert_eq!(taken(&mut core, handle), ["9", "0-0", "live None", "3"]);
}

#[test]
fn messages_without_a_position_that_wait_for_history_are_told_as_dropped() {
    let mut core = connected_with(Settings { max_queue_bytes: 100, ..Settings::default() });
    core.subscribe("t", 0, None, second(1));
    let id = last_id(&sent(&mut core));
    receive(&mut core, &format!(r#"{{"type":"subscribed","id":{id},"data":{{"topic":"t"}}}}"#), 1);
    let handle = core.subscribe("t", 5, None, second(1));
    let id = last_id(&sent(&mut core));
    let plain = r#"{"type":"message","data":{"topic":"t","message":1}}"#;
    for _ in 0..9 {
        receive(&mut core, plain, 1);
    }
    let data = r#"{"topic":"t","messages":[]}"#;
    receive(&mut core, &format!(r#"{{"type":"history","id":{id},"data":{data}}}"#), 1);
    assert_eq!(taken(&mut core, handle), ["0", "0-0", "live None"]);
    receive(&mut core, plain, 1);
    assert_eq!(taken(&mut core, handle), ["0"]);
}

#[test]
fn own_messages_of_a_later_epoch_are_skipped_while_a_handle_joins() {
    let (mut core, _, handle, id) = joined(3);
    let (_, published) = publish_excluded(&mut core);
    let answer =
        format!(r#"{{"type":"published","id":{published},"data":{{"topic":"t","epoch":"d","offset":13}}}}"#);
    for text in [epoch_gap("d", 12), answer, history(id), message(14).replace(r#""a""#, r#""d""#)] {
        receive(&mut core, &text, 1);
    }
    assert_eq!(taken(&mut core, handle), ["9", "0-0", "live None", "14"]);
}

#[test]
fn gaps_and_own_messages_of_an_earlier_epoch_do_not_move_a_handle_that_is_ahead() {
    let (mut core, first, handle, id) = joined(3);
    let (_, published) = publish_excluded(&mut core);
    let answer =
        format!(r#"{{"type":"published","id":{published},"data":{{"topic":"t","epoch":"a","offset":4}}}}"#);
    for text in [answer, history(id), trimmed(5, 6), message(7), epoch_gap("c", 8)] {
        receive(&mut core, &text, 1);
    }
    assert_eq!(taken(&mut core, first), ["live None", "5-6", "7", "0-0"]);
    assert_eq!(taken(&mut core, handle), ["9", "live None"]);
}

#[test]
fn own_messages_of_an_epoch_to_come_are_remembered() {
    let (mut core, first, _, id) = joined(3);
    let (_, published) = publish_excluded(&mut core);
    receive(&mut core, &history(id), 1);
    let answer =
        format!(r#"{{"type":"published","id":{published},"data":{{"topic":"t","epoch":"c","offset":9}}}}"#);
    for text in [answer, epoch_gap("c", 8), message(10).replace(r#""a""#, r#""c""#)] {
        receive(&mut core, &text, 1);
    }
    let errors =
        std::iter::from_fn(|| core.poll_action()).filter(|action| matches!(action, Action::Error(_)));
    assert_eq!(errors.count(), 0);
    assert_eq!(taken(&mut core, first), ["live None", "0-0", "10"]);
}

#[test]
fn own_messages_are_remembered_while_a_handle_joins() {
    let settings = Settings { max_queue_bytes: 200, ..Settings::default() };
    let (mut core, first, handle, id) = join(connected_with(settings), 3);
    let (_, published) = publish_excluded(&mut core);
    let answer =
        format!(r#"{{"type":"published","id":{published},"data":{{"topic":"t","epoch":"a","offset":4}}}}"#);
    receive(&mut core, &answer, 1);
    // The queue has room for one of the kept messages, so the other one is asked for again.
    let kept = [3, 4]
        .map(|offset| format!(r#"{{"topic":"t","message":1,"epoch":"a","offset":{offset}}}"#))
        .join(",");
    let data = format!(r#"{{"topic":"t","epoch":"a","offset":4,"messages":[{kept}]}}"#);
    receive(&mut core, &format!(r#"{{"type":"history","id":{id},"data":{data}}}"#), 1);
    assert_eq!(taken(&mut core, handle), ["3", "live None", "Recovering"]);
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3,"recovered":true,"replay":1"#);
    receive(&mut core, &message(5), 1);
    let errors =
        std::iter::from_fn(|| core.poll_action()).filter(|action| matches!(action, Action::Error(_)));
    assert_eq!(errors.count(), 0);
    assert_eq!(taken(&mut core, first), ["live None", "Recovering", "5", "live Some(true)"]);
}

#[test]
fn own_messages_are_remembered_while_a_handle_is_full_before_a_new_epoch() {
    let settings = Settings { max_queue_bytes: 100, ..Settings::default() };
    let mut core = connected_with(settings);
    let handle = core.subscribe("t", 0, None, second(1));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3"#);
    let (_, published) = publish_excluded(&mut core);
    let answer =
        format!(r#"{{"type":"published","id":{published},"data":{{"topic":"t","epoch":"c","offset":6}}}}"#);
    // The queue is full before the new epoch, so the handle asks again from its start.
    for text in [message(4), message(5), epoch_gap("c", 5), answer] {
        receive(&mut core, &text, 1);
    }
    assert_eq!(taken(&mut core, handle), ["live None", "4", "0-0", "Recovering"]);
    let id = last_id(&sent(&mut core));
    let start = r#""offset":5,"recovered":true,"replay":0"#;
    let data = format!(r#"{{"topic":"t","epoch":"c",{start}}}"#);
    receive(&mut core, &format!(r#"{{"type":"subscribed","id":{id},"data":{data}}}"#), 1);
    assert_eq!(taken(&mut core, handle), ["live Some(true)"]);
    receive(&mut core, &message(7).replace(r#""a""#, r#""c""#), 1);
    assert!(!std::iter::from_fn(|| core.poll_action()).any(|action| matches!(action, Action::Error(_))));
    assert_eq!(taken(&mut core, handle), ["7"]);
}

#[test]
fn messages_that_are_held_back_and_dropped_are_asked_for_again() {
    let settings = Settings { max_queue_bytes: 200, ..Settings::default() };
    let mut core = connected_with(settings);
    core.subscribe("t", 0, None, second(1));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3"#);
    let (_, published) = publish_excluded(&mut core);
    core.handle(Input::Disconnected { code: None, reason: String::new() }, second(1));
    core.handle(Input::Timeout, second(9));
    core.handle(Input::Connected, second(9));
    receive(&mut core, r#"{"type":"welcome","data":{"client_id":"c2"}}"#, 9);
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3,"recovered":true,"replay":4"#);
    // The first message may be the one that waits for its answer, for it is of this client.
    for offset in 4..8 {
        let from = if offset == 4 { r#""from":"c1","# } else { "" };
        receive(&mut core, &message(offset).replace(r#""epoch""#, &format!(r#"{from}"epoch""#)), 9);
    }
    let data = r#"{"topic":"t","epoch":"a","offset":8}"#;
    receive(&mut core, &format!(r#"{{"type":"published","id":{published},"data":{data}}}"#), 9);
    let actions: Vec<Action> = std::iter::from_fn(|| core.poll_action()).collect();
    assert!(!actions.iter().any(|action| matches!(action, Action::Error(_))), "{actions:?}");
    let is_asked = |action: &Action| matches!(action, Action::Send(text) if text.contains(r#""offset":3"#));
    assert!(actions.iter().any(is_asked), "{actions:?}");
}

/// Returns a client with a handle whose queue is full after the messages 4 and 5, and one that has
/// message 6, too.
fn with_full_handle() -> (Core, HandleId, HandleId) {
    let settings = Settings { max_queue_bytes: 200, ..Settings::default() };
    let mut core = connected_with(settings);
    let [slow, fast] = [(); 2].map(|()| core.subscribe("t", 0, None, second(1)));
    let id = last_id(&sent(&mut core));
    subscribed(&mut core, id, r#""offset":3"#);
    for text in [4, 5, 6].map(message) {
        receive(&mut core, &text, 1);
        taken(&mut core, fast);
    }
    (core, slow, fast)
}

fn message_of_c(offset: u64) -> String {
    message(offset).replace(r#""a""#, r#""c""#)
}

/// Answers the last subscribe, which asks to continue after a position.
fn answer_in_c(core: &mut Core, (epoch, offset): (&str, u64), start: &str) {
    let texts = sent(core);
    let position = format!(r#""epoch":"{epoch}","offset":{offset}"#);
    assert!(texts.last().is_some_and(|text| text.contains(&position)), "{texts:?}");
    let (id, data) = (last_id(&texts), format!(r#"{{"topic":"t","epoch":"c",{start}}}"#));
    receive(core, &format!(r#"{{"type":"subscribed","id":{id},"data":{data}}}"#), 9);
}

#[test]
fn a_handle_that_is_full_before_a_new_epoch_asks_from_its_start() {
    let (mut core, slow, fast) = with_full_handle();
    for text in [epoch_gap("c", 6), message_of_c(7)] {
        receive(&mut core, &text, 1);
    }
    assert_eq!(taken(&mut core, fast), ["0-0", "7"]);
    assert_eq!(taken(&mut core, slow), ["live None", "4", "5", "0-0", "Recovering"]);
    answer_in_c(&mut core, ("c", 6), r#""offset":6,"recovered":true,"replay":1"#);
    [7, 8].map(message_of_c).iter().for_each(|text| receive(&mut core, text, 9));
    assert_eq!(taken(&mut core, slow), ["7", "live Some(true)", "8"]);
    assert_eq!(taken(&mut core, fast), ["Recovering", "live Some(true)", "8"]);
}

#[test]
fn a_refused_position_of_one_handle_does_not_keep_others_from_recovering() {
    let (mut core, slow, fast) = with_full_handle();
    core.handle(Input::Disconnected { code: None, reason: String::new() }, second(1));
    core.handle(Input::Timeout, second(9));
    core.handle(Input::Connected, second(9));
    receive(&mut core, r#"{"type":"welcome","data":{"client_id":"c2"}}"#, 9);
    // The handle with room asks first. The other one may still be recovered.
    answer_in_c(&mut core, ("a", 6), r#""offset":7,"recovered":false,"reason":"epoch""#);
    receive(&mut core, &message_of_c(8), 9);
    assert_eq!(taken(&mut core, fast), ["Recovering", "0-0", "live Some(false)", "8"]);
    assert_eq!(taken(&mut core, slow), ["live None", "4", "5", "Recovering", "live None", "Recovering"]);
    answer_in_c(&mut core, ("a", 5), r#""offset":9,"recovered":false,"reason":"epoch""#);
    answer_in_c(&mut core, ("c", 8), r#""offset":8,"recovered":true,"replay":1"#);
    receive(&mut core, &message_of_c(9), 9);
    assert_eq!(taken(&mut core, slow), ["0-0", "9", "live Some(false)"]);
    assert_eq!(taken(&mut core, fast), ["Recovering", "9", "live Some(true)"]);
}

#[test]
fn messages_without_a_position_before_kept_ones_are_older() {
    let (mut core, _, handle, id) = joined(3);
    let plain = r#"{"type":"message","data":{"topic":"t","message":1}}"#;
    let lost = trimmed(4, 8).replace(r#""a""#, r#""c""#);
    // The topic was without history for a while.
    let ninth = message(9).replace(r#""a""#, r#""c""#);
    for text in [plain, &*lost, &*ninth, &*history(id)] {
        receive(&mut core, text, 1);
    }
    receive(&mut core, &message(10).replace(r#""a""#, r#""c""#), 1);
    assert_eq!(taken(&mut core, handle), ["9", "live None", "10"]);
}
