//! `token`: prints tokens for development, signed with the secret of the server.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use deeperhub_protocol::Subscription;
use deeperhub_security::Grants;
use deeperhub_security::auth::{Keys, MintError, MintOptions, mint_with};

use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::options::{flag, variable};
use deeperhub_args::Time;

/// Maximum lifetime of a token: a year.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Claims of the token.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct TokenArgs {
    /// Name of the user (`sub`)
    #[arg(long, value_name = "USER", help_heading = "Token")]
    sub: String,

    /// Allow subscribing to this topic or pattern; may be repeated
    ///
    /// Without --subscribe and --publish all topics are allowed; otherwise only the named ones.
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Token")]
    subscribe: Vec<Subscription<'static>>,

    /// Allow publishing to this topic or pattern; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Token")]
    publish: Vec<Subscription<'static>>,

    /// Let the token expire after this time, at most 8760h
    #[arg(long, value_name = "TIME", value_parser = ttl, default_value = "1h", help_heading = "Token")]
    ttl: Time,
}

/// Parses a topic or pattern.
fn pattern(text: &str) -> Result<Subscription<'static>, String> {
    Subscription::parse(text.to_owned()).map_err(|error| error.to_string())
}

/// Parses a lifetime from 1 s to [`MAX_TTL`].
fn ttl(text: &str) -> Result<Time, String> {
    let time = Time::parse_up_to(text, MAX_TTL);
    let time = time.ok_or("expected a duration such as 30s, 10m or 24h, at most 8760h")?;
    if time.0 < Duration::from_secs(1) { Err("expected at least 1s".to_owned()) } else { Ok(time) }
}

/// Prints a token that a server with the same settings accepts.
pub(crate) fn print(layers: &Layers, token: &TokenArgs) -> ExitCode {
    match mint(layers, token) {
        Ok(token) => crate::exit::print(&format_args!("{token}\n")),
        Err(error) => crate::exit::bad_configuration(&[error]),
    }
}

/// Signs a token with the first audience and issuer of the settings.
fn mint(layers: &Layers, token: &TokenArgs) -> Result<String, ConfigError> {
    let options = &layers.options.tokens;
    let Some(path) = &options.auth_secret_file else {
        return Err(ConfigError::Conflict(format!(
            "no secret to sign with: name its file with {}, {} or auth_secret_file",
            flag("auth_secret_file"),
            variable("auth_secret_file"),
        )));
    };
    let invalid = |reason: String| {
        let origin = layers.origins.get("auth_secret_file").cloned();
        ConfigError::Invalid {
            key: "auth_secret_file".to_owned(),
            origin: origin.unwrap_or(crate::config::origin::SettingOrigin::Default),
            value: path.display().to_string(),
            expected: reason,
        }
    };
    let keys = Keys::load(Some(path), None)
        .map_err(|error| invalid(crate::reload::keys::AuthError::from(error).reason()))?;
    let secret = keys.secret.ok_or_else(|| invalid("it holds no secret".to_owned()))?;
    let grants = match (&*token.subscribe, &*token.publish) {
        ([], []) => Grants::unrestricted(),
        (subscribe, publish) => Grants::only(subscribe.to_vec(), publish.to_vec()),
    };
    let first = |list: &'_ Option<Vec<String>>| list.as_ref().and_then(|list| list.first().cloned());
    let (audience, issuer) = (first(&options.auth_audience), first(&options.auth_issuer));
    let mint_options = MintOptions { audience: audience.as_deref(), issuer: issuer.as_deref() };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    mint_with(&secret, &token.sub, &grants, mint_options, now, token.ttl.0).map_err(|error| {
        let argument = match error {
            MintError::User => "--sub: ",
            MintError::Ttl => "--ttl: ",
            MintError::TooManyPatterns => "--subscribe and --publish: ",
            _ => "",
        };
        ConfigError::Conflict(format!("{argument}{error}"))
    })
}
