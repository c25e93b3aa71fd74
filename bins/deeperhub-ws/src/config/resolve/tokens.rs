//! Resolves the options under "Tokens".

use std::sync::Arc;

use deeperhub_args::Time;
use deeperhub_node::AuthConfig;
use deeperhub_security::auth;

use super::Resolver;
use crate::config::effective::OnReload;
use crate::config::options::{TokenOptions, flag};
use crate::config::origin::SettingOrigin;
use crate::reload::keys::{Auth, AuthSources};

/// Returns the keys, if there are any, and the maximum bytes of a token.
pub(super) fn resolve(
    resolver: &mut Resolver,
    options: TokenOptions,
    config: &mut AuthConfig,
) -> (Option<Auth>, usize) {
    let TokenOptions {
        auth_secret_file,
        auth_jwks_file,
        auth_required,
        auth_grace,
        auth_audience,
        auth_issuer,
        auth_leeway,
        max_token_bytes,
    } = options;
    let secret_file = take!(resolver, fixed auth_secret_file);
    let jwks_file = take!(resolver, fixed auth_jwks_file);
    config.required = take!(resolver, fixed auth_required, config.required);
    config.grace = take_nonzero!(resolver, fixed auth_grace, config.grace);
    let sources = AuthSources {
        secret_file,
        jwks_file,
        audience: take!(resolver, fixed auth_audience, Vec::new()),
        issuer: take!(resolver, fixed auth_issuer, Vec::new()),
        leeway: take!(resolver, fixed auth_leeway, Time(auth::Config::default().leeway)).0,
        max_token_bytes: take!(resolver, fixed max_token_bytes, auth::DEFAULT_MAX_TOKEN_BYTES),
    };
    let max_token_bytes = sources.max_token_bytes;
    let auth = load(resolver, sources, config.required);
    config.authenticator = auth.as_ref().map(|auth| Arc::clone(&auth.authenticator));
    (auth, max_token_bytes)
}

/// Reads the key files.
fn load(resolver: &mut Resolver, sources: AuthSources, required: bool) -> Option<Auth> {
    let files =
        [("auth_secret_file", sources.secret_file.clone()), ("auth_jwks_file", sources.jwks_file.clone())];
    if files.iter().all(|(_, path)| path.is_none()) {
        check_without_keys(resolver, &sources, required);
        return None;
    }
    // Each file is loaded alone first, so that its error names it.
    let mut all_are_valid = true;
    for (key, path) in files {
        let Some(path) = path else { continue };
        let alone = match key {
            "auth_secret_file" => AuthSources { jwks_file: None, ..sources.clone() },
            _ => AuthSources { secret_file: None, ..sources.clone() },
        };
        if let Err(error) = alone.load() {
            all_are_valid = false;
            resolver.invalid(key, path.display().to_string(), error.reason());
        }
    }
    if !all_are_valid {
        return None;
    }
    match Auth::load(sources) {
        Ok(auth) => {
            resolver.warnings.extend(auth.warnings());
            Some(auth)
        }
        // The files changed after they were loaded one by one.
        Err(error) => {
            resolver.conflict(error.reason());
            None
        }
    }
}

/// Reports settings that have no effect or cannot be met without keys.
fn check_without_keys(resolver: &mut Resolver, sources: &AuthSources, required: bool) {
    if required {
        resolver.conflict(format!(
            "{} needs keys to check tokens with: expected {}, {} or both",
            resolver.name_of("auth_required"),
            flag("auth_secret_file"),
            flag("auth_jwks_file"),
        ));
    }
    for (key, values) in [("auth_audience", &sources.audience), ("auth_issuer", &sources.issuer)] {
        if !values.is_empty() {
            let name = resolver.name_of(key);
            resolver
                .warnings
                .push(format!("{name} has no effect, as there are no keys to check tokens with"));
        }
    }
}

/// Warns if `max_token_bytes` allows tokens that do not fit into a handshake or a message. The
/// server would reject such tokens with an error that names another setting.
pub(super) fn warn_of_long_tokens(
    resolver: &mut Resolver,
    max_token_bytes: usize,
    limits: &deeperhub_listener::Limits,
) {
    if resolver.origin("max_token_bytes") == SettingOrigin::Default {
        return;
    }
    for (key, limit) in
        [("max_handshake_bytes", limits.max_head_bytes), ("max_message_bytes", limits.max_message_bytes)]
    {
        if limit <= max_token_bytes {
            let warning = format!(
                "{} is {max_token_bytes} bytes, and {} allows {limit} bytes for a token and what surrounds it: \
                 longer tokens are refused there",
                resolver.name_of("max_token_bytes"),
                flag(key),
            );
            resolver.warnings.push(warning);
        }
    }
}
