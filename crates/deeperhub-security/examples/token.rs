//! Signs a token for development and verifies it.
//!
//! `cargo run -p deeperhub-security --features auth --example token`

use std::time::{Duration, SystemTime};

use deeperhub_security::auth::{Authenticator, Config, mint};
use deeperhub_security::{Grants, Secret, Subscription, Topic};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rooms = vec![Subscription::parse("room.*")?];
    let secret = Secret::new("only an example, and 32 bytes long");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let grants = Grants::only(rooms.clone(), rooms);
    let token = mint(&secret, "ada", &grants, now, Duration::from_secs(3600))?;

    let authenticator = Authenticator::new(Config { secret: Some(secret), ..Config::default() })?;
    let claims = authenticator.verify(&token, now)?;
    println!("{token}\nuser {}, until {}", claims.user, claims.expires_at);
    println!("may publish to room.a: {}", claims.grants.may_publish(&Topic::parse("room.a")?));
    Ok(())
}
