//! Logs events of the event bus: connections at `debug`, messages at `trace`.

use deeperhub_events::{Event, EventDetails, EventFilter, EventKind, EventStream, Received};
use deeperhub_node::{NodeHandle, Phase};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, trace, warn};

use crate::config::values::LogLevel;
use crate::process::supervise;

/// Starts a task that logs events. It subscribes only to events that the level shows, so that the
/// node does not create the others. The task ends with the bus.
pub(crate) fn spawn(node: NodeHandle, levels: watch::Receiver<LogLevel>) -> JoinHandle<()> {
    // Subscribes before returning, so that no later event is missed.
    let mut first = Some(subscribe(&node, *levels.borrow()));
    let follow = move || {
        let level = *levels.borrow();
        follow(node.clone(), levels.clone(), first.take().unwrap_or_else(|| subscribe(&node, level)))
    };
    tokio::spawn(supervise::restart_on_panic("event log", follow))
}

async fn follow(node: NodeHandle, mut levels: watch::Receiver<LogLevel>, mut events: Option<EventStream>) {
    let mut phases = node.watch_phase();
    loop {
        let until_end = async {
            match &mut events {
                Some(events) => log(events).await,
                // An error means that the node is gone.
                None => drop(phases.wait_for(|phase| *phase == Phase::Stopped).await),
            }
        };
        tokio::select! {
            () = until_end => return,
            level = next_level(&mut levels) => events = subscribe(&node, level),
        }
    }
}

/// Waits for a change of the level; forever if there are no more changes.
async fn next_level(levels: &mut watch::Receiver<LogLevel>) -> LogLevel {
    match levels.changed().await {
        Ok(()) => *levels.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

fn subscribe(node: &NodeHandle, level: LogLevel) -> Option<EventStream> {
    let events = node.events(filter(level)?);
    if events.is_none() {
        warn!("Too many event observers; events not logged");
    }
    events
}

fn filter(level: LogLevel) -> Option<EventFilter> {
    let connections = [EventKind::Connected, EventKind::Disconnected, EventKind::Error];
    match level {
        LogLevel::Trace => Some(EventFilter::all()),
        LogLevel::Debug => Some(connections.into_iter().fold(EventFilter::none(), EventFilter::with)),
        LogLevel::Info | LogLevel::Warn | LogLevel::Error => None,
    }
}

async fn log(events: &mut EventStream) {
    while let Some(received) = events.recv().await {
        match received {
            Received::Event(event) => log_event(&event),
            Received::Lost(lost) => warn!(lost, "Event log fell behind"),
        }
    }
}

/// Logs one event, never a payload.
fn log_event(event: &Event) {
    let client_id = event.client_id.as_str();
    match &event.details {
        EventDetails::Connected { user, peer, origin } => {
            let (user, origin) = (user.as_deref(), origin.as_deref());
            debug!(client_id, user, %peer, origin, "Client connected");
        }
        EventDetails::Disconnected { code, reason, duration, messages_received, messages_sent } => {
            let reason = reason.as_ref();
            debug!(
                client_id,
                code,
                reason,
                ?duration,
                messages_received,
                messages_sent,
                "Client disconnected"
            );
        }
        EventDetails::MessageReceived { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message received");
        }
        EventDetails::MessageSent { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message sent");
        }
        EventDetails::BinaryReceived { payload } => {
            trace!(client_id, bytes = payload.len(), "Binary message received");
        }
        EventDetails::Error { code, message } => {
            debug!(client_id, code = code.as_ref(), error = message.as_ref(), "Client error");
        }
        // The enum of events is non-exhaustive.
        other => trace!(client_id, kind = %other.kind(), "Unknown event"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logged_events_are_subscribed_to() {
        assert_eq!(filter(LogLevel::Info), None);
        let at_debug = filter(LogLevel::Debug).unwrap();
        assert!(at_debug.contains(EventKind::Connected) && at_debug.contains(EventKind::Error));
        assert!(
            !at_debug.contains(EventKind::MessageReceived) && !at_debug.contains(EventKind::BinaryReceived)
        );
        assert_eq!(filter(LogLevel::Trace), Some(EventFilter::all()));
    }
}
