//! Tokens for development: what an issuer of one's own would make, from the same secret.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use deeperhub_protocol::Subscription;
use deeperhub_security::Grants;
use deeperhub_security::auth::{Keys, MintError, Recipient, mint_for};

use crate::layers::Layers;
use crate::options::{flag, variable};
use crate::problem::Problem;
use deeperhub_args::Time;

/// The longest time that a token may be made for: a year.
const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the token says.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct TokenArgs {
    /// User that the token names
    #[arg(long, value_name = "USER", help_heading = "Token")]
    sub: String,

    /// Topic or pattern that its bearer may subscribe to; may be repeated
    ///
    /// With neither this nor --publish all topics are allowed; with one of them only what is named.
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Token")]
    subscribe: Vec<Subscription<'static>>,

    /// Topic or pattern that its bearer may publish to; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Token")]
    publish: Vec<Subscription<'static>>,

    /// Time until it expires, at most 8760h
    #[arg(long, value_name = "TIME", value_parser = ttl, default_value = "1h", help_heading = "Token")]
    ttl: Time,
}

fn pattern(text: &str) -> Result<Subscription<'static>, String> {
    Subscription::parse(text.to_owned()).map_err(|error| error.to_string())
}

fn ttl(text: &str) -> Result<Time, String> {
    let time = Time::parse_up_to(text, LONGEST_TTL);
    let time = time.ok_or("expected a duration such as 30s, 10m or 24h, at most 8760h")?;
    if time.0 < Duration::from_secs(1) { Err("expected a second at least".to_owned()) } else { Ok(time) }
}

/// Prints a token that a server with the same settings takes.
pub(crate) fn print(layers: &Layers, token: &TokenArgs) -> ExitCode {
    match make(layers, token) {
        Ok(token) => crate::print(&format_args!("{token}\n")),
        Err(problem) => crate::complain(&[problem]),
    }
}

fn make(layers: &Layers, token: &TokenArgs) -> Result<String, Problem> {
    let options = &layers.options;
    let Some(path) = &options.auth_secret_file else {
        return Err(Problem::Conflict(format!(
            "no secret to sign with: name its file with {}, {} or auth_secret_file",
            flag("auth_secret_file"),
            variable("auth_secret_file"),
        )));
    };
    let invalid = |reason: String| {
        let origin = layers.origins.get("auth_secret_file").cloned();
        Problem::Invalid {
            key: "auth_secret_file".to_owned(),
            origin: origin.unwrap_or(crate::layers::Origin::Default),
            value: path.display().to_string(),
            expected: reason,
        }
    };
    let keys = Keys::load(Some(path), None)
        .map_err(|error| invalid(crate::auth::AuthError::from(error).reason()))?;
    let secret = keys.secret.ok_or_else(|| invalid("it holds no secret".to_owned()))?;
    let grants = match (&*token.subscribe, &*token.publish) {
        ([], []) => Grants::unrestricted(),
        (subscribe, publish) => Grants::only(subscribe.to_vec(), publish.to_vec()),
    };
    let first = |list: &'_ Option<Vec<String>>| list.as_ref().and_then(|list| list.first().cloned());
    let (audience, issuer) = (first(&options.auth_audience), first(&options.auth_issuer));
    let recipient = Recipient { audience: audience.as_deref(), issuer: issuer.as_deref() };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    mint_for(&secret, &token.sub, &grants, recipient, now, token.ttl.0).map_err(|error| {
        let argument = match error {
            MintError::User => "--sub: ",
            MintError::Ttl => "--ttl: ",
            MintError::TooManyPatterns => "--subscribe and --publish: ",
            _ => "",
        };
        Problem::Conflict(format!("{argument}{error}"))
    })
}
