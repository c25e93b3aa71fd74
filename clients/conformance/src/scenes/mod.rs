//! The scenes, by subject. Each is a function that plays the server's part.

use std::pin::Pin;

use crate::failure::Result;
use crate::kit::Kit;

/// A scene that is being played.
type Play<'a> = Pin<Box<dyn Future<Output = Result> + 'a>>;

/// A scene.
pub(crate) struct Scene {
    /// Subject and name, such as `recovering/cut_in_mid_replay`.
    pub(crate) name: &'static str,
    /// Kind of scene that a driver may skip.
    pub(crate) needs: Option<&'static str>,
    pub(crate) play: for<'a> fn(&'a mut Kit) -> Play<'a>,
}

/// Declares the files of scenes and the list of all scenes. A kind that drivers may skip stands
/// before the scene.
macro_rules! scenes {
    ($($subject:ident { $($([$kind:literal])? $name:ident,)* })*) => {
        $(mod $subject;)*

        fn all() -> Vec<Scene> {
            vec![$($(Scene {
                name: concat!(stringify!($subject), "/", stringify!($name)),
                needs: scenes!(@kind $($kind)?),
                play: |kit| Box::pin($subject::$name(kit)),
            },)*)*]
        }
    };
    (@kind) => { None };
    (@kind $kind:literal) => { Some($kind) };
}

scenes! {
    connecting {
        opens_after_welcome,
        subprotocol_is_of_the_hub,
        unknown_types_and_keys_are_ignored,
        malformed_messages_are_ignored,
        messages_of_nobody_are_ignored,
        missing_welcome_counts_as_failed,
        unanswered_handshake_counts_as_failed,
        page_instead_of_upgrade,
        garbage_instead_of_upgrade,
        handshake_is_cut,
        ["refusals"] refused_with_400,
        ["refusals"] refused_with_403,
        ["refusals"] refused_with_404,
        ["refusals"] full_server_names_a_slot,
        full_server_without_slot,
        close_while_connecting,
        close_while_waiting,
        close_while_open,
        calls_after_close_fail,
        driver_ends_with_its_input,
    }
    reconnecting {
        backoff_grows_to_its_limit,
        backoff_is_random,
        short_connections_do_not_reset_the_backoff,
        long_connection_resets_the_backoff,
        life_lost_at_once_gets_a_backoff,
        close_1001,
        close_1008,
        close_1011,
        close_1013,
        close_1000_by_the_server,
        close_with_unknown_code,
        final_1002,
        final_1007,
        final_1009,
        final_4003,
        goodbye_for_good,
        goodbye_with_slot,
        goodbye_with_slot_then_cut,
        goodbye_with_late_slot,
        goodbye_with_absurd_slot,
        goodbye_without_slot,
        slot_is_used_once,
        end_without_close_frame,
        cut_in_the_middle_of_a_frame,
        broken_frame_of_the_server,
    }
    life {
        silent_server_is_left,
        ping_is_not_sent_too_early,
        pong_keeps_the_connection,
        any_frame_is_a_sign_of_life,
        sleep_and_wake,
        connection_is_lost_during_sleep,
        connection_is_half_open_after_sleep,
        pings_of_the_server_are_answered,
        server_without_pings,
    }
    tokens {
        string_is_sent,
        function_is_called_for_each_connection,
        token_is_not_in_the_address,
        ["refusals"] refused_token_is_replaced_at_once,
        ["refusals"] refused_tokens_get_a_backoff,
        ["refusals"] refused_string_closes,
        function_fails,
        expired_while_connected,
        expired_again_and_again,
        expired_string_closes,
        renewed_before_it_expires,
        clock_of_the_client_is_wrong,
        refused_renewal_keeps_the_connection,
        expired_while_away,
        token_with_a_long_life,
        string_is_not_renewed,
        opaque_token,
        ["blind"] blind_client_authenticates,
        ["blind"] blind_client_is_refused,
    }
    subscribing {
        history_comes_first,
        empty_topic,
        subscribes_while_open,
        one_message_for_all_topics,
        thousands_of_topics,
        forbidden_ends,
        error_of_one_entry,
        unavailable_is_retried,
        rate_limited_is_retried,
        too_many_topics_is_retried,
        internal_is_retried,
        one_of_two_is_unavailable,
        too_many_subscriptions_ends,
        ended_by_the_server,
        unsubscribe,
        unsubscribe_while_away,
        unsubscribe_while_recovering,
        unsubscribe_before_subscribed,
        subscribe_again,
    }
    sharing {
        two_handles_share,
        two_handles_before_the_connection,
        last_handle_ends_the_subscription,
        replay_for_another_handle,
        later_handle_reads_history,
        slow_and_fast_handle,
        full_queue_before_a_new_epoch,
        pattern_receives_all_topics,
        patterns_match_levels,
        pattern_cannot_recover,
        topic_and_pattern_overlap,
        pattern_ends_alone,
    }
    recovering {
        missed_messages_are_replayed,
        cut_in_mid_replay,
        cut_before_subscribed,
        cut_before_the_first_subscribed,
        position_is_given_back_as_it_came,
        long_replay,
        replay_overlaps_live_messages,
        messages_before_subscribed_are_dropped,
        reason_epoch,
        reason_trimmed,
        reason_ahead,
        reason_no_history,
        reason_overlap,
        not_recovered_with_replay,
        recovered_after_it_was_not,
        recovered_into_a_new_epoch,
        recovered_with_a_gap,
        recovered_but_for_a_gap,
        topic_without_history,
    }
    order {
        duplicates_are_dropped,
        burst_keeps_its_order,
        prev_bridges,
        prev_below_the_position,
        gap_in_its_place,
        gap_is_a_position,
        epoch_changes_while_live,
        position_of_a_quiet_topic,
        hole_is_reported_and_filled,
        hole_is_reported_once,
        prev_beyond_the_position_is_a_hole,
        other_epoch_is_a_hole,
        topics_have_their_own_chains,
    }
    own {
        published_fills_the_hole,
        delivery_waits_for_published,
        published_overtakes_deliveries,
        position_around_an_own_message,
        own_message_in_a_replay,
        refused_publish_fills_nothing,
        own_message_is_delivered,
        late_answer_fills_the_hole,
        published_in_an_epoch_to_come,
        position_in_the_place_of_an_own_message,
        position_waits_behind_deliveries,
        position_behind_own_messages,
        full_queue_before_a_new_epoch,
        waiting_deliveries_are_limited,
        topic_without_history_waits_for_no_answer,
    }
    joining {
        events_before_the_epoch_of_the_history,
        joined_before_subscribed,
        later_epoch_waits_for_the_history,
        later_epoch_after_the_history,
        lower_offsets_wait_for_the_history,
        history_is_emptied_between_its_parts,
        own_message_behind_the_history,
        own_message_in_the_history,
        own_message_in_a_history_that_does_not_fit,
    }
    publishing {
        result_has_position,
        result_without_history,
        payloads_arrive_unchanged,
        one_at_a_time_on_a_topic,
        topics_do_not_wait_for_each_other,
        unordered_publishes,
        at_most_32_are_unanswered,
        lost_answer_is_asked_for_again,
        answered_publish_is_not_repeated,
        once_is_unique,
        queued_while_away,
        repeated_before_the_subscribe,
        order_over_a_cut,
        replies_in_another_order,
    }
    refusing {
        unavailable_is_retried,
        too_many_topics_is_retried,
        internal_is_retried,
        rate_limited_holds_all_back,
        refused_publish_fails,
        unanswered_publish_times_out,
        timeout_counts_from_the_first_sending,
        queue_full,
        message_too_large,
        queued_message_is_too_large,
    }
    requests {
        echo,
        history,
        requests_over_a_cut,
        request_times_out,
        request_times_out_while_away,
        request_is_refused,
    }
    retries {
        whole_subscribe_is_rate_limited,
        subscribe_retry_meets_a_reconnect,
        unsubscribe_meets_a_retry,
        publish_retry_meets_a_reconnect,
        close_meets_a_retry,
        close_meets_a_held_handler,
        messages_after_goodbye,
        lost_answer_of_an_own_message,
        own_message_at_the_start_of_a_replay,
        positions_before_subscribed_are_dropped,
        history_is_asked_for_again,
        full_queue_meets_a_cut,
    }
    payloads {
        empty_values_are_delivered,
        message_of_a_backend,
        other_scripts,
        large_offsets,
        long_delivery,
        message_in_parts,
        json_in_another_form,
        welcome_without_limits,
    }
    tls {
        ["tls"] messages_and_a_cut,
        ["tls"] expired_certificate,
        ["tls"] certificate_of_another_name,
        ["tls"] certificate_of_another_authority,
    }
    application {
        handler_fails,
        messages_wait_for_the_handler,
        slow_handler_holds_nobody_else,
        waiting_messages_survive_a_cut,
        unsubscribe_drops_what_waits,
        full_queue_with_history,
        full_queue_without_history,
        full_queue_of_a_pattern,
    }
    storage {
        reload_continues,
        waiting_messages_are_not_saved,
        saved_position_is_not_recovered,
        unsubscribe_removes_the_position,
        reload_without_storage,
    }
    page {
        ["page"] hidden_page_waits,
        ["page"] hidden_page_stays_connected,
        ["page"] offline_and_online,
        ["page"] online_before_the_slot,
        ["page"] position_is_saved_when_hidden,
    }
    chaos {
        seed_1,
        seed_2,
        seed_3,
        seed_4,
    }
    chaos_publishing {
        publisher_1,
        publisher_2,
        publisher_3,
    }
}

/// Returns the scenes whose names contain one of the parts; all scenes for no parts.
pub(crate) fn matching(parts: &[String]) -> Vec<Scene> {
    let mut scenes = all();
    scenes.retain(|scene| parts.is_empty() || parts.iter().any(|part| scene.name.contains(part.as_str())));
    scenes
}
