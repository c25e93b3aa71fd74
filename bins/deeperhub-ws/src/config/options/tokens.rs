//! Keys and rules of tokens.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Time, whole};

use super::MAX_BYTES;

/// Options under the heading "Tokens".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tokens")]
pub(crate) struct TokenOptions {
    /// Verify tokens (JWTs) with the secret in this file: HS256, HS384, HS512
    ///
    /// The secret is the content without a final line break, at least 32 bytes, as from `openssl
    /// rand -base64 32`. The file is read again on SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) auth_secret_file: Option<PathBuf>,

    /// Verify tokens (JWTs) with the public keys in this JWKS file: RS, PS, ES, EdDSA
    ///
    /// The file is read again on SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) auth_jwks_file: Option<PathBuf>,

    /// Require a token; without one, clients may only authenticate
    ///
    /// Needs --auth-secret-file or --auth-jwks-file. A client without a token is closed with 4001
    /// after --auth-grace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) auth_required: Option<bool>,

    /// Give clients this time to bring a token if --auth-required is set
    #[arg(long, value_name = "TIME")]
    pub(crate) auth_grace: Option<Time>,

    /// Accept only tokens whose `aud` has this value; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) auth_audience: Option<Vec<String>>,

    /// Accept only tokens whose `iss` is this value; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) auth_issuer: Option<Vec<String>>,

    /// Tolerate this clock difference for a token's `nbf`
    #[arg(long, value_name = "TIME")]
    pub(crate) auth_leeway: Option<Time>,

    /// Limit the bytes of a token; longer ones are refused
    ///
    /// A token in the handshake also counts toward --max-handshake-bytes, one in a message toward
    /// --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(64, MAX_BYTES))]
    pub(crate) max_token_bytes: Option<usize>,
}
