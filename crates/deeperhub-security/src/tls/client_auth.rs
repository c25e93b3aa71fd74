//! Whether clients show certificates, and why one is refused.

use rustls::{CertificateError, Error};

/// Whether a client must show a certificate of a CA of its server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// It must; one without is refused in the TLS handshake. The default.
    #[default]
    Required,
    /// It may; one without is let in.
    Optional,
}

/// Why a client is refused for its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuthFault {
    /// It shows none.
    Absent,
    /// Its certificate, or one above it, is past its time.
    Expired,
    /// The time of its certificate, or of one above it, has not come.
    NotYetValid,
    /// No CA of the server has signed its certificate, or the client does not have the certificate's key.
    UnknownCa,
    /// Its certificate is for something else, is signed by itself, cannot be read, or breaks a rule of its CA's.
    Other,
}

impl ClientAuthFault {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// Their names in metrics, in their order.
    pub const NAMES: &[&str; Self::COUNT] = &["absent", "expired", "not_yet_valid", "unknown_ca", "other"];

    /// The fault that a server's handshake has failed by; `None` where it was something else.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error {
            Error::NoCertificatesPresented => Self::Absent,
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                // A CA of the same name as one of ours has another key, so the signature is wrong.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                _ => Self::Other,
            },
            _ => return None,
        })
    }
}
