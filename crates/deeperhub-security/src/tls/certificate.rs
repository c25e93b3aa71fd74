//! Validity period and user of a certificate.

use super::Warning;
use crate::grants::is_user;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Tag, Tagged};

/// id-at-commonName, RFC 5280 appendix A.1.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Returns the user of a client certificate: its subject's common name.
///
/// Returns `None` unless there is exactly one common name, with 1 to
/// [`MAX_USER_BYTES`](crate::MAX_USER_BYTES) bytes and no control characters. Does not verify the
/// certificate, which the TLS handshake must have done.
#[must_use]
pub fn user(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let subject = certificate.tbs_certificate().subject();
    let names = subject.as_ref().iter().flat_map(|names| names.iter());
    let mut names = names.filter(|name| name.oid == COMMON_NAME);
    let (name, None) = (names.next()?, names.next()) else { return None };
    let name = text(name)?;
    is_user(name).then(|| name.to_owned())
}

fn text(name: &AttributeTypeAndValue) -> Option<&str> {
    match name.value.tag() {
        Tag::Utf8String => name.value.decode_as::<Utf8StringRef<'_>>().ok().map(|text| text.as_str()),
        Tag::PrintableString => {
            name.value.decode_as::<PrintableStringRef<'_>>().ok().map(|text| text.as_str())
        }
        Tag::TeletexString => name.value.decode_as::<TeletexStringRef<'_>>().ok().map(|text| text.as_str()),
        _ => None,
    }
}

/// Returns `true` if a certificate has expired at `now`, in seconds since 1970, or cannot be
/// parsed.
#[must_use]
pub fn has_expired(certificate: &CertificateDer<'_>, now: u64) -> bool {
    Validity::of(certificate).is_none_or(|validity| now > validity.expires_at)
}

/// Validity period of a certificate, in seconds since 1970.
pub(super) struct Validity {
    pub(super) valid_from: u64,
    pub(super) expires_at: u64,
}

impl Validity {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?;
        let validity = certificate.tbs_certificate().validity();
        Some(Self {
            valid_from: validity.not_before.to_unix_duration().as_secs(),
            expires_at: validity.not_after.to_unix_duration().as_secs(),
        })
    }

    /// Returns a function that creates a warning with a file name, if a warning is due.
    pub(super) fn warning(&self, now: u64) -> Option<fn(String) -> Warning> {
        if now > self.expires_at {
            Some(|name| Warning::Expired { name })
        } else if now < self.valid_from {
            Some(|name| Warning::NotYetValid { name })
        } else {
            None
        }
    }
}
