//! The event bus in the log: connections from level `debug` on, messages at `trace`.

use deeperhub_events::{Details, Event, EventFilter, EventKind, EventStream, Received};
use deeperhub_node::NodeHandle;
use tokio::task::JoinHandle;
use tracing::{Level, debug, enabled, trace, warn};

/// Observes what the log's level shows; `None` when that is nothing, so that the node does not even make the events.
/// The task ends with the bus.
pub(crate) fn spawn(node: &NodeHandle) -> Option<JoinHandle<()>> {
    let filter = filter(enabled!(Level::DEBUG), enabled!(Level::TRACE))?;
    let Some(events) = node.events(filter) else {
        warn!("There are too many observers of events; the log shows none.");
        return None;
    };
    Some(tokio::spawn(log(events)))
}

fn filter(debug: bool, trace: bool) -> Option<EventFilter> {
    let connections = [EventKind::Connected, EventKind::Disconnected, EventKind::Error];
    match (debug, trace) {
        (_, true) => Some(EventFilter::all()),
        (true, false) => Some(connections.into_iter().fold(EventFilter::none(), EventFilter::with)),
        (false, false) => None,
    }
}

async fn log(mut events: EventStream) {
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
        Details::Connected { user, peer, origin } => {
            let (user, origin) = (user.as_deref(), origin.as_deref());
            debug!(client_id, user, %peer, origin, "Client connected.");
        }
        Details::Disconnected { code, reason, duration, messages_received, messages_sent } => {
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
        Details::MessageReceived { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message received.");
        }
        Details::MessageSent { message_type, topic, bytes } => {
            trace!(client_id, message_type, topic = topic.as_deref(), bytes, "Message sent.");
        }
        Details::BinaryReceived { payload } => {
            trace!(client_id, bytes = payload.len(), "Binary message received.");
        }
        Details::Error { code, message } => {
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
        assert_eq!(filter(false, false), None);
        let at_debug = filter(true, false).unwrap();
        assert!(at_debug.contains(EventKind::Connected) && at_debug.contains(EventKind::Error));
        assert!(
            !at_debug.contains(EventKind::MessageReceived) && !at_debug.contains(EventKind::BinaryReceived)
        );
        assert_eq!(filter(true, true), Some(EventFilter::all()));
    }
}
