//! TLS towards clients.

use std::path::PathBuf;

use clap::Args;

use crate::config::values::ClientAuth;

/// Options under the heading "TLS".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsOptions {
    /// Serve TLS with this certificate chain, in PEM: the server's certificate first
    ///
    /// Needs --tls-key. Clients then connect with wss://. The files are read again on SIGHUP and
    /// within 10 s after they change. Open connections keep their certificate. If the new files are
    /// invalid, the error is logged and the old certificate stays.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Use this private key for --tls-cert, in PEM: PKCS#8, SEC1 or PKCS#1, not encrypted
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_key: Option<PathBuf>,

    /// Verify client certificates against these CAs, in PEM
    ///
    /// The common name of a client's certificate is its user, unless the client brings a token. A
    /// client without a certificate fails the TLS handshake, unless --tls-client-auth is
    /// `optional`. An expired certificate, or one of another CA, always fails.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Require client certificates, or only verify those that clients present
    ///
    /// Needs --tls-client-ca. With `optional`, a client without a certificate is accepted; one with
    /// an invalid certificate is not.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) tls_client_auth: Option<ClientAuth>,
}
