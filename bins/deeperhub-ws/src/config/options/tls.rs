//! TLS towards clients.

use std::path::PathBuf;

use clap::Args;

use crate::config::values::ClientAuth;

/// Options under the heading "TLS".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsOptions {
    /// Certificate for TLS, in PEM: the server's first, then those above it [default: none, no TLS]
    ///
    /// Needs --tls-key; clients then connect with wss://. The files are read again on SIGHUP and within 10 s when they
    /// change. Connections stay; when the new files are no good, that is logged and the old ones stay too.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM: PKCS#8, SEC1 or PKCS#1, not encrypted [default: none]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_key: Option<PathBuf>,

    /// CAs whose certificates clients show, in PEM [default: clients are not asked]
    ///
    /// The common name of a client's certificate is its user, unless it brings a token. Clients without a certificate
    /// are refused in the TLS handshake, unless --tls-client-auth is `optional`; those with one of another CA, or with
    /// one that is past its time, are refused in either case.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Whether clients must show a certificate of --tls-client-ca [default: required]
    ///
    /// Needs --tls-client-ca. With `optional` a client without a certificate is let in; one with a bad certificate is not.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) tls_client_auth: Option<ClientAuth>,
}
