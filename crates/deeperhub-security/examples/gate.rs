//! Uses an origin policy and rate limits in another service.
//!
//! `cargo run -p deeperhub-security --example gate`

use std::time::Instant;

use deeperhub_security::{AddressLimiter, OriginPolicy, RateLimit, RateLimiter};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let started = Instant::now();
    let origins = OriginPolicy::parse(["https://*.example.com"])?;
    for origin in ["https://app.example.com", "https://evil.example"] {
        println!("page {origin}: {:?}", origins.check(Some(origin), Some("hub.net"), true));
    }
    // At most one connection per second and address, in bursts of up to three.
    let limit = RateLimit::new(1.try_into()?, 3.try_into()?);
    let (addresses, mut messages) = (AddressLimiter::new(limit), RateLimiter::default());
    for attempt in 1..=4 {
        let connection = addresses.check("192.0.2.1".parse()?, started.elapsed());
        let message = messages.check(&limit, started.elapsed());
        println!("attempt {attempt}: connection {connection:?}, message {message:?}");
    }
    Ok(())
}
