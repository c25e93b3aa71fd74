//! Credentials files for NATS.

use std::path::Path;

use async_nats::ConnectOptions;

use crate::link::LinkError;

/// Text that only credentials files of `nsc` contain.
const USER_JWT: &str = "BEGIN NATS USER JWT";

/// Checks the contents of a [`Config::credentials`](crate::Config::credentials) file: credentials
/// of `nsc`, or the seed of an nkey. Does not check whether a server accepts them.
///
/// # Errors
///
/// Returns a description of the problem, without secrets.
pub fn check_credentials(text: &str) -> Result<(), String> {
    if text.contains(USER_JWT) {
        return ConnectOptions::with_credentials(text)
            .map(drop)
            .map_err(|error| format!("expected credentials as nsc writes them ({error})"));
    }
    let seed = text.trim();
    let is_seed = seed.len() == 58
        && seed.starts_with("SU")
        && seed.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
    if is_seed {
        Ok(())
    } else {
        Err("expected credentials as nsc writes them, or the seed of a user's nkey (SU…)".to_owned())
    }
}

/// Adds the credentials of an `nsc` file, or of a file that holds only the seed of an nkey.
pub(super) async fn with_credentials(
    options: ConnectOptions,
    file: &Path,
) -> Result<ConnectOptions, LinkError> {
    let invalid =
        |error: std::io::Error| LinkError(format!("invalid NATS credentials in {}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(invalid)?;
    if text.contains(USER_JWT) {
        options.credentials(&text).map_err(invalid)
    } else {
        Ok(options.nkey(text.trim().to_owned()))
    }
}
