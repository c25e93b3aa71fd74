//! Resolves the options under "Limits".

use std::num::NonZeroU32;
use std::sync::Arc;

use deeperhub_args::Time;
use deeperhub_listener::MemoryBudget;
use deeperhub_node::Config;
use deeperhub_security::RateLimit;

use super::Resolver;
use crate::config::effective::{OnReload, defaults};
use crate::config::options::{LimitOptions, flag};
use crate::config::values::LimitEnforcement;
use crate::process::memory;

/// Resolves all limits. A rate of 0 sets no limit.
pub(super) fn resolve(resolver: &mut Resolver, options: LimitOptions, node: &mut Config) {
    let LimitOptions {
        max_connections,
        max_connections_per_ip,
        connection_rate_per_ip,
        max_message_bytes,
        max_fragments,
        max_json_depth,
        max_subscriptions,
        max_queue_bytes,
        round_bytes,
        round_time,
        limits,
        max_memory,
        reconnect_rate,
        rate_limit,
        rate_burst,
        byte_rate_limit,
        byte_rate_burst,
        control_rate_limit,
        token_rate_limit,
        burst_rate_per_ip,
        max_handshake_bytes,
        max_handshake_headers,
        handshake_timeout,
        ping_interval,
        pong_timeout,
    } = options;
    let listener = &mut node.listener;
    listener.limits.max_connections = take!(resolver, live max_connections, listener.limits.max_connections);
    let per_ip =
        take!(resolver, live max_connections_per_ip, listener.limits.max_connections_per_ip.unwrap_or(0));
    listener.limits.max_connections_per_ip = (per_ip > 0).then_some(per_ip);
    // All clients of a local proxy have a loopback address, so loopback is limited only if the
    // option is set.
    listener.limits_loopback = connection_rate_per_ip.is_some();
    let rate = take!(resolver, fixed connection_rate_per_ip, per_second(listener.connection_rate_per_ip));
    listener.connection_rate_per_ip = NonZeroU32::new(rate).map(deeperhub_listener::connection_rate_limit);
    listener.limits.max_message_bytes =
        take!(resolver, live max_message_bytes, listener.limits.max_message_bytes);
    listener.limits.max_fragments = take!(resolver, live max_fragments, listener.limits.max_fragments);
    node.session.max_json_depth = take!(resolver, live max_json_depth, node.session.max_json_depth);
    node.session.max_subscriptions = take!(resolver, live max_subscriptions, node.session.max_subscriptions);
    listener.limits.max_queue_bytes = take!(resolver, live max_queue_bytes, listener.limits.max_queue_bytes);
    listener.limits.round_bytes = take!(resolver, live round_bytes, listener.limits.round_bytes);
    listener.limits.round_time = take_nonzero!(resolver, live round_time, listener.limits.round_time);
    listener.limit_mode = take!(resolver, fixed limits, LimitEnforcement::Enforce).into();
    let max_memory = take!(resolver, fixed max_memory, memory::memory_limit().unwrap_or(0));
    listener.memory = (max_memory > 0).then(|| Arc::new(MemoryBudget::new(max_memory)));
    listener.reconnects_per_second = take!(resolver, fixed reconnect_rate, listener.reconnects_per_second);

    let rate = take!(resolver, live rate_limit, per_second(node.session.rate_limit));
    let burst = take!(resolver, live rate_burst, RateLimit::default().burst.get());
    node.session.rate_limit = limit(resolver, ("rate_limit", rate), ("rate_burst", burst));
    let rate = take!(resolver, live byte_rate_limit, 0);
    let burst = take!(resolver, live byte_rate_burst, defaults::BYTE_RATE_BURST);
    node.session.byte_rate_limit = limit(resolver, ("byte_rate_limit", rate), ("byte_rate_burst", burst));
    let rate = take!(resolver, live control_rate_limit, per_second(node.session.control_rate_limit));
    node.session.control_rate_limit = NonZeroU32::new(rate).map(deeperhub_node::control_rate_limit);
    let rate = take!(resolver, live token_rate_limit, per_second(node.session.token_rate_limit));
    node.session.token_rate_limit = NonZeroU32::new(rate).map(deeperhub_node::token_rate_limit);
    let rate = take!(resolver, fixed burst_rate_per_ip, per_second(node.burst_rate_per_ip));
    node.burst_rate_per_ip = NonZeroU32::new(rate).map(deeperhub_node::burst_rate_per_ip);

    listener.limits.max_head_bytes =
        take!(resolver, live max_handshake_bytes, listener.limits.max_head_bytes);
    listener.limits.max_head_lines =
        take!(resolver, live max_handshake_headers, listener.limits.max_head_lines);
    listener.handshake_timeout = take_nonzero!(resolver, fixed handshake_timeout, listener.handshake_timeout);
    listener.ping_interval = take!(resolver, fixed ping_interval, Time(listener.ping_interval)).0;
    listener.pong_timeout = take_nonzero!(resolver, fixed pong_timeout, listener.pong_timeout);
}

fn per_second(limit: Option<RateLimit>) -> u32 {
    limit.map_or(0, |limit| limit.per_second.get())
}

/// Returns a limit of a rate and its bursts. Reports an error if the rate is limited, and nothing may
/// be sent at once.
fn limit(
    resolver: &mut Resolver,
    (rate_key, rate): (&str, u32),
    (burst_key, burst): (&str, u32),
) -> Option<RateLimit> {
    let rate = NonZeroU32::new(rate)?;
    let expected = format!("expected at least 1, or {} 0", flag(rate_key));
    resolver.require(burst_key, &burst, burst > 0, &expected);
    Some(RateLimit::new(rate, NonZeroU32::new(burst)?))
}

/// Warns if a queue cannot hold the longest message.
pub(super) fn warn_of_small_queue(resolver: &mut Resolver, limits: &deeperhub_listener::Limits) {
    if limits.max_queue_bytes < limits.max_message_bytes {
        let warning = format!(
            "{} is {} bytes, less than the longest message ({} bytes): such a message closes its receivers",
            resolver.name_of("max_queue_bytes"),
            limits.max_queue_bytes,
            limits.max_message_bytes,
        );
        resolver.warnings.push(warning);
    }
}
