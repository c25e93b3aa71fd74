//! Errors and warnings about certificates and keys.

use crate::files::FileError;

/// Error of a TLS setup. The operator must fix it. Contains no part of a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file's content is invalid.
    #[error("{name}: {problem}; {}", problem.expected())]
    Content {
        /// Name of the file or setting.
        name: String,
        /// The problem of the content.
        problem: PemProblem,
    },
    /// The TLS library failed for a reason that is not in a file.
    #[error("the TLS library failed")]
    Library(#[source] rustls::Error),
}

/// Problem of a PEM file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemProblem {
    /// The file is UTF-16 text.
    #[error("it is UTF-16, not UTF-8")]
    Utf16,
    /// The file is not PEM, or a section is damaged.
    #[error("it is not PEM, or is damaged")]
    NotPem,
    /// The file contains no certificate.
    #[error("it contains no certificate")]
    NoCertificate,
    /// The first certificate is invalid.
    #[error("its first certificate cannot be used")]
    Certificate,
    /// The file contains no private key.
    #[error("it contains no private key")]
    NoKey,
    /// The private key is encrypted with a pass phrase.
    #[error("its private key is encrypted")]
    EncryptedKey,
    /// The private key is damaged or of an unsupported type.
    #[error("its private key cannot be used")]
    Key,
    /// The private key does not match the certificate.
    #[error("its private key does not match the certificate in {certificates}")]
    KeyOfAnother {
        /// The file with the certificate.
        certificates: String,
    },
    /// A CA certificate cannot sign client certificates.
    #[error("a certificate in it cannot be used as a CA")]
    Ca,
}

impl PemProblem {
    /// Returns what is expected instead.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self {
            Self::Utf16 => "save it as UTF-8 or ASCII",
            Self::NotPem => "PEM has complete sections from -----BEGIN …----- to -----END …-----",
            Self::NoCertificate | Self::Certificate => {
                "put the server's certificate first, as -----BEGIN CERTIFICATE-----, then its issuers"
            }
            Self::NoKey => "a key is between -----BEGIN PRIVATE KEY----- and -----END PRIVATE KEY-----",
            Self::EncryptedKey => "remove the pass phrase: openssl pkey -in key.pem -out plain.pem",
            Self::Key => "use RSA of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519",
            Self::KeyOfAnother { .. } => "certificate and key must be a pair",
            Self::Ca => "expected CA certificates, each as -----BEGIN CERTIFICATE-----",
        }
    }
}

/// Warning about a certificate that is served nevertheless.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The certificate has expired; clients will refuse it.
    #[error("{name}: the certificate has expired; clients will refuse it")]
    Expired {
        /// The file with the certificate.
        name: String,
    },
    /// The certificate is not valid yet; clients will refuse it until its `notBefore`.
    #[error("{name}: the certificate is not valid yet; clients will refuse it")]
    NotYetValid {
        /// The file with the certificate.
        name: String,
    },
}
