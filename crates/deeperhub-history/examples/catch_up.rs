//! A subscriber that was away: it gets what is kept, and is told what is not.
//!
//! Run it with `cargo run -p deeperhub-history --example catch_up`.

use deeperhub_history::{Cursor, Delivery, Epoch, Evicted, Rule, Seconds, Stream};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rule: Rule = "chat.>: history=3 ttl=1h".parse()?;
    // A server draws a random number for the epoch.
    let mut stream = Stream::new(Epoch::from_bits(7));
    let position = Cursor::new(stream.epoch(), stream.newest());

    // The subscriber is away while five messages are published. Three of them are kept.
    let (bounds, mut evicted) = (rule.policy().retention(), Evicted::new());
    for (second, text) in (0..).zip(["tea?", "yes", "milk?", "no", "here you are"]) {
        stream.append(&bounds, Seconds::new(second), &mut evicted, |_epoch, _offset| (text, text.len()));
    }
    for delivery in [rule.policy().delivery(), Delivery::Latest] {
        let mut subscriber = position;
        while let Some(step) = subscriber.advance(&stream, delivery) {
            println!("{}: {step:?}", delivery.as_str());
        }
    }
    Ok(())
}
