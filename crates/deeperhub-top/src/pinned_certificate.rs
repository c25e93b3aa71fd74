//! TLS configurations of a client that trusts one certificate, or none.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// Returns a TLS configuration that accepts only a server with the first certificate of `file`. The
/// certificate's names are not checked, because its clients often connect to a loopback
/// address.
///
/// # Errors
///
/// If the file cannot be read or contains no certificate.
pub(crate) fn trust_only(file: &Path) -> Result<ClientConfig, String> {
    let certificate = CertificateDer::from_pem_file(file)
        .map_err(|error| format!("cannot read a certificate from {}: {error}", file.display()))?;
    config(Some(certificate))
}

/// Returns a TLS configuration that accepts no server.
///
/// # Errors
///
/// If the TLS library fails.
pub(crate) fn trust_nothing() -> Result<ClientConfig, String> {
    config(None)
}

fn config(certificate: Option<CertificateDer<'static>>) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCertificate { certificate, algorithms }))
        .with_no_client_auth();
    Ok(config)
}

/// Verifier that accepts at most one certificate. It ignores name and validity period.
#[derive(Debug)]
struct PinnedCertificate {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.certificate.as_ref().is_some_and(|certificate| certificate == end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
