//! Makes a token for development and says what a server would make of it.
//!
//! `cargo run -p deeperhub-security --features auth --example token -- ada 'room.*'`

use deeperhub_security::auth::{Authenticator, Config, mint};
use deeperhub_security::{Grants, Secret};
use deeperhub_types::{Subscription, Topic};
use std::error::Error;
use std::time::{Duration, SystemTime};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let user = arguments.next().unwrap_or_else(|| "ada".to_owned());
    let patterns = arguments.map(Subscription::parse).collect::<Result<Vec<_>, _>>()?;
    let grants = match &*patterns {
        [] => Grants::unrestricted(),
        patterns => Grants::only(patterns.to_vec(), patterns.to_vec()),
    };

    let secret = Secret::new("only an example, and 32 bytes long");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let token = mint(&secret, &user, &grants, now, Duration::from_secs(3600))?;
    println!("{token}");

    let authenticator = Authenticator::new(Config { secret: Some(secret), ..Config::default() })?;
    for advice in authenticator.warnings() {
        println!("{advice}");
    }
    let claims = authenticator.verify(&token, now)?;
    println!("user {}, until {}", claims.user, claims.expires_at);
    println!("may publish to room.a: {}", claims.grants.may_publish(&Topic::parse("room.a")?));

    match authenticator.verify(&token, claims.expires_at) {
        Ok(_) => println!("an hour later: still good"),
        Err(error) => println!("an hour later: {} ({error})", error.code().as_str()),
    }
    Ok(())
}
