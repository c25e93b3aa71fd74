//! A subscriber that was away: it gets what is kept, and is told what is not.
//!
//! Run it with `cargo run -p deeperhub-history --example catch_up`.

use deeperhub_history::{Cursor, Delivery, Epoch, Evicted, Rule, Seconds, Step, Stream};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = "chat.>: history=3 ttl=1h".parse::<Rule>()?.policy().clone();
    // A real program draws a random number for the epoch.
    let mut stream = Stream::new(Epoch::from_random(7));
    let mut away = Cursor::new(stream.epoch(), stream.newest());
    for (second, text) in (0..).zip(["tea?", "yes", "milk?", "no", "here you are"]) {
        stream.append(&policy.retention(), Seconds::new(second), &mut Evicted::new(), |_, _| {
            (text, text.len())
        });
    }
    for delivery in [policy.delivery(), Delivery::Latest] {
        let mut cursor = away;
        while let Some(step) = cursor.advance(&stream, delivery) {
            match step {
                Step::Message { offset, message, .. } => {
                    println!("{}: {offset} {message}", delivery.as_str())
                }
                Step::Gap(gap) => println!("{}: up to {} {}", delivery.as_str(), gap.to, gap.reason),
                Step::Close => return Ok(()),
            }
        }
    }
    away.advance(&stream, Delivery::Lossless).map(|_| ()).ok_or_else(|| "nothing was missed".into())
}
