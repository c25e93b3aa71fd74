//! What can be wrong with certificates and keys.

use crate::files::FileError;

/// Why there is no TLS. The operator's to mend; nothing of a key stands in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{name}: {problem}; {}", problem.expected())]
    Content {
        /// The file, or what it was called.
        name: String,
        /// What is wrong with it.
        problem: PemProblem,
    },
    /// The TLS library refuses for a reason that lies in no file.
    #[error("the TLS library refuses")]
    Library(#[source] rustls::Error),
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemProblem {
    /// The file is UTF-16 text.
    #[error("it is UTF-16, not UTF-8")]
    Utf16,
    /// A section of it is broken.
    #[error("it is not PEM, or is damaged")]
    NotPem,
    /// No section of it is a certificate.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// A certificate in it cannot be read.
    #[error("its first certificate cannot be used")]
    Certificate,
    /// No section of it is a private key.
    #[error("there is no private key in it")]
    NoKey,
    /// The private key needs a pass phrase.
    #[error("its private key is encrypted")]
    EncryptedKey,
    /// The private key is of a kind that is not known here, or damaged.
    #[error("its private key cannot be used")]
    Key,
    /// The private key is not that of the certificate.
    #[error("its private key is not that of the certificate in {certificates}")]
    KeyOfAnother {
        /// The file with the certificate.
        certificates: String,
    },
    /// A certificate in it cannot sign those of clients.
    #[error("a certificate in it cannot be used as a CA")]
    Ca,
}

impl PemProblem {
    /// What would be right.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self {
            Self::Utf16 => "save it as UTF-8 or ASCII",
            Self::NotPem => "PEM has whole sections from -----BEGIN …----- to -----END …-----",
            Self::NoCertificate | Self::Certificate => {
                "the server's certificate comes first, as -----BEGIN CERTIFICATE-----, then those above it"
            }
            Self::NoKey => "a key stands between -----BEGIN PRIVATE KEY----- and -----END PRIVATE KEY-----",
            Self::EncryptedKey => "take the pass phrase off: openssl pkey -in key.pem -out plain.pem",
            Self::Key => "RSA of 2048 bits or more, ECDSA on P-256, P-384 or P-521, or Ed25519",
            Self::KeyOfAnother { .. } => "both must be of one pair",
            Self::Ca => "the certificates of CAs, each as -----BEGIN CERTIFICATE-----",
        }
    }
}

/// What an operator should know of a certificate that is served all the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The certificate has ended: clients will refuse it.
    #[error("{name}: the certificate has expired; clients will refuse it")]
    Expired {
        /// The file with the certificate.
        name: String,
    },
    /// The certificate's time has not come: clients will refuse it until then.
    #[error("{name}: the certificate is not valid yet; clients will refuse it")]
    NotYetValid {
        /// The file with the certificate.
        name: String,
    },
}
