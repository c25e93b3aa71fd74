//! What a server asks before and after it accepts a connection.
//!
//! `cargo run -p deeperhub-security --example gate`

use deeperhub_security::{AddressLimiter, Grants, OriginPolicy, RateLimit, RateLimiter, RetryAfter, Secret};
use deeperhub_types::{Subscription, Topic};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let few = RateLimit::new(NonZeroU32::MIN, NonZeroU32::MIN.saturating_add(2));

    // Before the upgrade: may this address, and this page?
    let addresses = AddressLimiter::new(few);
    for attempt in 1..=4 {
        match addresses.check(IpAddr::V4(Ipv4Addr::LOCALHOST), started.elapsed()) {
            Ok(()) => println!("connection {attempt}: accepted"),
            Err(RetryAfter(wait)) => {
                println!("connection {attempt}: 429, Retry-After {}", wait.as_secs() + 1)
            }
        }
    }
    let origins = OriginPolicy::parse(["https://*.example.com"])?;
    for origin in
        [None, Some("https://app.example.com"), Some("https://evil.example"), Some("https://hub.net")]
    {
        match origins.check(origin, Some("hub.net"), true) {
            Ok(()) => println!("origin {origin:?}: accepted"),
            Err(error) => println!("origin {origin:?}: 403, {error}"),
        }
    }

    // For each message: not too often?
    let mut limiter = RateLimiter::default();
    for message in 1..=4 {
        println!("message {message}: {:?}", limiter.check(&few, started.elapsed()));
    }

    // For each command: allowed by the token?
    let grants = Grants::only(vec![Subscription::parse("room.*")?], Vec::new());
    println!("subscribe to room.a: {}", grants.may_subscribe(&Subscription::parse("room.a")?));
    println!("subscribe to room.>: {}", grants.may_subscribe(&Subscription::parse("room.>")?));
    println!("publish to room.a: {}", grants.may_publish(&Topic::parse("room.a")?));

    // For the backend's key, which no log shows.
    let key = Secret::new("correct horse battery staple");
    println!("{key:?} matches: {}", key.matches(b"incorrect"));

    match OriginPolicy::parse(["example.com"]) {
        Ok(_) => println!("example.com is an origin"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
