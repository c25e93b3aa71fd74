//! Keys and rules of tokens.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Time, whole};

use super::MAX_BYTES;

/// Options under the heading "Tokens".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tokens")]
pub(crate) struct TokenOptions {
    /// File with the secret that tokens (JWTs) are signed with: HS256, HS384, HS512 [default: none]
    ///
    /// Its bytes, without one line's end at their end; at least 32, as from `openssl rand -base64 32`. Read again on
    /// SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) auth_secret_file: Option<PathBuf>,

    /// File with the public keys (a JWKS) that tokens are signed with: RS, PS, ES, EdDSA [default: none]
    ///
    /// Read again on SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) auth_jwks_file: Option<PathBuf>,

    /// Let clients do nothing but authenticate until they bring a token [default: false]
    ///
    /// Needs --auth-secret-file or --auth-jwks-file. A client without a token is closed with 4001 after
    /// --auth-grace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) auth_required: Option<bool>,

    /// Time that a client without a token may stay where --auth-required is set [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) auth_grace: Option<Time>,

    /// Name of this server that a token's `aud` must have; may be repeated [default: `aud` is not looked at]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) auth_audience: Option<Vec<String>>,

    /// Issuer that a token's `iss` must be; may be repeated [default: `iss` is not looked at]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) auth_issuer: Option<Vec<String>>,

    /// How far in the future a token's `nbf` may be, as clocks differ [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) auth_leeway: Option<Time>,

    /// Bytes of a token; a longer one is refused [default: 16384]
    ///
    /// A token in the handshake counts for --max-handshake-bytes too, one in a message for --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(64, MAX_BYTES))]
    pub(crate) max_token_bytes: Option<usize>,
}
