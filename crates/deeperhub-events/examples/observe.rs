//! An observer of errors.
//!
//! Run it with `cargo run -p deeperhub-events --example observe`.

use deeperhub_events::{ClientId, Event, EventBus, EventDetails, EventFilter, EventKind, Received};
use std::time::SystemTime;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bus = EventBus::default();
    let filter = EventFilter::none().with(EventKind::Error);
    let mut stream = bus.subscribe(filter).ok_or("too many observers")?;

    let client_id = ClientId::parse("node-1.7").ok_or("invalid client id")?;
    let details = EventDetails::Error { code: "rate_limited".into(), message: "slow down".into() };
    bus.publish(Event::new(SystemTime::now(), client_id, details));

    // An asynchronous observer awaits `stream.recv()` instead.
    let Some(Received::Event(event)) = stream.try_recv() else { return Err("no event".into()) };
    println!("{} of {}: {:?}", event.kind(), event.client_id, event.details);
    Ok(())
}
