//! Policy for client certificates, and reasons why a client is refused for its certificate.

use rustls::{CertificateError, Error};

/// Policy for client certificates. A CA of the server must have signed each presented certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// Clients without a certificate are refused in the TLS handshake. The default.
    #[default]
    Required,
    /// Clients without a certificate are accepted.
    Optional,
}

/// Reason why a client is refused for its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuthFault {
    /// The client presents no certificate.
    Absent,
    /// The certificate, or one above it, has expired.
    Expired,
    /// The certificate, or one above it, is not valid yet.
    NotYetValid,
    /// No CA of the server signed the certificate, or the client does not have its key.
    UnknownCa,
    /// The certificate is for another purpose, is self-signed, cannot be read, or breaks a rule of
    /// its CA.
    Other,
}

impl ClientAuthFault {
    /// Number of faults.
    pub const COUNT: usize = 5;

    /// All faults, in the order of the variants.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Absent, Self::Expired, Self::NotYetValid, Self::UnknownCa, Self::Other];

    /// Names of the faults in metrics, in the order of the variants.
    pub const NAMES: &[&str; Self::COUNT] = &["absent", "expired", "not_yet_valid", "unknown_ca", "other"];

    /// Returns the fault for which a server's handshake failed. Returns `None` if the handshake
    /// failed for another reason.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error {
            Error::NoCertificatesPresented => Self::Absent,
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                // The signature is bad if another CA signed the certificate and has the name of one
                // of the server's CAs.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                _ => Self::Other,
            },
            _ => return None,
        })
    }
}
