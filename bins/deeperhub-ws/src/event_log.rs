//! The event bus in the log: connections from level `debug` on, messages at `trace`.

use deeperhub_events::{Event, EventDetails, EventFilter, EventKind, EventStream, Received};
use deeperhub_node::{NodeHandle, Phase};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, trace, warn};

use crate::supervise;
use crate::values::LogLevel;

/// Observes what the log's level shows, and nothing where that is nothing, so that the node does not even make the
/// events. The task ends with the bus.
pub(crate) fn spawn(node: NodeHandle, levels: watch::Receiver<LogLevel>) -> JoinHandle<()> {
    // Before it returns, so that nothing is missed that happens right after.
    let mut first = Some(observe(&node, *levels.borrow()));
    let follow = move || {
        let level = *levels.borrow();
        follow(node.clone(), levels.clone(), first.take().unwrap_or_else(|| observe(&node, level)))
    };
    tokio::spawn(supervise::keep("event log", follow))
}

async fn follow(node: NodeHandle, mut levels: watch::Receiver<LogLevel>, mut events: Option<EventStream>) {
    let mut phases = node.watch_phase();
    loop {
        let until_the_end = async {
            match &mut events {
                Some(events) => log(events).await,
                // An error says that the node is gone.
                None => drop(phases.wait_for(|phase| *phase == Phase::Stopped).await),
            }
        };
        tokio::select! {
            () = until_the_end => return,
            level = next(&mut levels) => events = observe(&node, level),
        }
    }
}

/// The level after the next change; waits for ever when there will be none.
async fn next(levels: &mut watch::Receiver<LogLevel>) -> LogLevel {
    match levels.changed().await {
        Ok(()) => *levels.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

fn observe(node: &NodeHandle, level: LogLevel) -> Option<EventStream> {
    let events = node.events(filter(level)?);
    if events.is_none() {
        warn!("There are too many observers of events; the log shows none.");
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
            Received::Lost(lost) => warn!(lost, "The log did not keep up with the events."),
        }
    }
}

/// One line for one event; never a payload.
fn log_event(event: &Event) {
    let client_id = event.client_id.as_str();
    match &event.details {
        EventDetails::Connected { user, peer, origin } => {
            let (user, origin) = (user.as_deref(), origin.as_deref());
            debug!(client_id, user, %peer, origin, "Client connected.");
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
                "Client disconnected."
            );
        }
        EventDetails::MessageReceived { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message received.");
        }
        EventDetails::MessageSent { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message sent.");
        }
        EventDetails::BinaryReceived { payload } => {
            trace!(client_id, bytes = payload.len(), "Binary message received.");
        }
        EventDetails::Error { code, message } => {
            debug!(
                client_id,
                code = code.as_ref(),
                error = message.as_ref(),
                "Client got an error or caused one."
            );
        }
        // Events of a later version of the bus.
        other => trace!(client_id, kind = %other.kind(), "Something happened."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_observed_that_would_not_be_logged() {
        assert_eq!(filter(LogLevel::Info), None);
        let at_debug = filter(LogLevel::Debug).unwrap();
        assert!(at_debug.contains(EventKind::Connected) && at_debug.contains(EventKind::Error));
        assert!(
            !at_debug.contains(EventKind::MessageReceived) && !at_debug.contains(EventKind::BinaryReceived)
        );
        assert_eq!(filter(LogLevel::Trace), Some(EventFilter::all()));
    }
}
