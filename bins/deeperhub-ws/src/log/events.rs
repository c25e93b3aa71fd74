//! Logs events of the event bus: connections and client errors at `debug`, messages at `trace`.

use deeperhub_events::{Event, EventDetails, EventFilter, EventKind, EventStream, Received};
use deeperhub_node::{NodeHandle, Phase};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, trace, warn};

use crate::config::values::LogLevel;
use crate::process::supervise;

/// Starts a task that logs events. The task ends after the node has closed the event bus.
///
/// The task subscribes only to events that the log level shows, so that the node does not create
/// the other events.
pub(crate) fn spawn(node: NodeHandle, levels: watch::Receiver<LogLevel>) -> JoinHandle<()> {
    // The first subscription precedes the return, so that no event after it is missed.
    let mut first = Some(subscribe(&node, *levels.borrow()));
    let run = move || {
        let level = *levels.borrow();
        let events = first.take().unwrap_or_else(|| subscribe(&node, level));
        run(node.clone(), levels.clone(), events)
    };
    tokio::spawn(supervise::restart_on_panic("event log", run))
}

/// Logs events until the bus closes. Subscribes anew when the log level changes.
async fn run(node: NodeHandle, mut levels: watch::Receiver<LogLevel>, mut events: Option<EventStream>) {
    let mut phases = node.watch_phase();
    loop {
        let until_end = async {
            match &mut events {
                Some(events) => log_events(events).await,
                // Without a subscription, the task ends when the node has stopped. An error means
                // that the node was dropped.
                None => drop(phases.wait_for(|phase| *phase == Phase::Stopped).await),
            }
        };
        tokio::select! {
            () = until_end => return,
            level = next_level(&mut levels) => events = subscribe(&node, level),
        }
    }
}

/// Waits for a change of the level and returns the new one. Waits forever if the log was dropped.
async fn next_level(levels: &mut watch::Receiver<LogLevel>) -> LogLevel {
    match levels.changed().await {
        Ok(()) => *levels.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

/// Subscribes to the events that the level shows. Returns `None` if it shows none, or if the node
/// has no room for another observer.
fn subscribe(node: &NodeHandle, level: LogLevel) -> Option<EventStream> {
    let events = node.events(filter(level)?);
    if events.is_none() {
        warn!("Too many event observers; events not logged");
    }
    events
}

/// Returns the filter for the events that the level shows, or `None` if it shows none.
fn filter(level: LogLevel) -> Option<EventFilter> {
    let connections = [EventKind::Connected, EventKind::Disconnected, EventKind::Error];
    match level {
        LogLevel::Trace => Some(EventFilter::all()),
        LogLevel::Debug => Some(connections.into_iter().fold(EventFilter::none(), EventFilter::with)),
        LogLevel::Info | LogLevel::Warn | LogLevel::Error => None,
    }
}

async fn log_events(events: &mut EventStream) {
    while let Some(received) = events.recv().await {
        match received {
            Received::Event(event) => log_event(&event),
            Received::Lost(lost) => warn!(lost, "Event log fell behind"),
        }
    }
}

/// Logs one event without its payload.
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
        // `EventDetails` is non-exhaustive.
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
