//! An observer that is too slow: it gets the first events, and the number of lost ones.
//!
//! Run it with `cargo run -p deeperhub-events --example watch`.

use deeperhub_events::{ClientId, Config, Event, EventBus, EventDetails, EventFilter, EventKind, Received};
use std::error::Error;
use std::time::SystemTime;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::default();
    config.max_queue_events = 3;
    let bus = EventBus::new(config);
    let filter = EventFilter::parse("websocket_binary_received,websocket_error")?;
    let mut stream = bus.subscribe(filter).ok_or("too many observers")?;

    let client_id = ClientId::parse("node-1.7").ok_or("invalid client id")?;
    for count in 0..5_u8 {
        if bus.is_observed(EventKind::BinaryReceived) {
            let details = EventDetails::BinaryReceived { payload: [count].into() };
            bus.publish(Event::new(SystemTime::now(), client_id.clone(), details));
        }
    }
    bus.close();

    while let Some(received) = stream.try_recv() {
        match received {
            Received::Event(event) => {
                let mut json = String::new();
                event.write_json(&mut json);
                println!("{}: {json}", event.kind());
            }
            Received::Lost(count) => println!("{count} events lost"),
        }
    }
    println!("lost in total: {}", bus.lost());
    Ok(())
}
