//! Rooms of a game server: a router without sockets. Players 1 and 2 are in room 7, and player 3
//! watches the chat of all rooms.
//!
//! Run it with `cargo run -p deeperhub-router --example rooms`.

use deeperhub_router::{Config, DeliveryFlow, Router, ShardId, Subscription, Topic};
use std::task::{Context, Waker};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for (player, name) in [(1, "room.7.chat"), (2, "room.7.chat"), (3, "room.*.chat")] {
        shard.subscribe(player, &Subscription::parse(name)?);
    }
    router.publish(&Topic::parse("room.7.chat")?, None, 5, || "hello");

    // The game loop calls this once for each frame.
    let mut delivered = Vec::new();
    let mut deliver = |player, message: &&'static str| {
        delivered.push((player, *message));
        DeliveryFlow::Continue
    };
    while shard.poll_deliver(&mut Context::from_waker(Waker::noop()), &mut deliver).is_ready() {}
    println!("{delivered:?}");
    Ok(())
}
