//! A bounded event bus for a WebSocket hub.
//!
//! The server publishes an [`Event`] when a connection starts or ends, when it receives or sends a
//! message, and for errors. Observers subscribe with an [`EventFilter`] and read an
//! [`EventStream`].
//!
//! A publisher never waits. If an observer is too slow, it loses the newest events. Its stream then
//! contains the number of lost events at the position of the gap ([`Received::Lost`]). A kind of
//! event without observers costs one relaxed load.
//!
//! ```
//! use deeperhub_events::{ClientId, Event, EventBus, EventDetails, EventFilter, EventKind, Received};
//! use std::time::SystemTime;
//!
//! let bus = EventBus::default();
//! let mut stream = bus.subscribe(EventFilter::none().with(EventKind::BinaryReceived)).expect("no other observers");
//!
//! let client_id = ClientId::parse("node-1.7").expect("letters, a dot and a hyphen");
//! if bus.is_observed(EventKind::BinaryReceived) {
//!     let details = EventDetails::BinaryReceived { payload: [1, 2, 3].into() };
//!     bus.publish(Event::new(SystemTime::UNIX_EPOCH, client_id, details));
//! }
//!
//! let Some(Received::Event(event)) = stream.try_recv() else { panic!("it was published") };
//! let mut json = String::new();
//! event.write_json(&mut json);
//! assert_eq!(json, r#"{"client_id":"node-1.7","at_unix_ms":0,"payload":"AQID"}"#);
//! ```

mod bus;
mod event;
mod json;
mod kind;
mod queue;

pub use bus::{Config, EventBus, EventStream};
pub use deeperhub_types::ClientId;
pub use event::{Event, EventDetails};
pub use kind::{EventFilter, EventKind, UnknownEvent};
pub use queue::Received;

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
