//! TLS configuration and trusted certificates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use deeperhub_args::Host;

/// The certificates to accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateTrust {
    /// Certificates signed by an authority in a PEM file.
    CaFile(PathBuf),
    /// Certificates signed by an authority that the system trusts.
    System,
    /// Any certificate.
    AnyCertificate,
}

/// Returns the TLS configuration of all connections.
///
/// # Errors
///
/// A message that names the invalid flag or file.
pub(crate) fn client_config(trust: &CertificateTrust) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS is not available: {error}"))?;
    let config = match trust {
        CertificateTrust::CaFile(file) => {
            builder.with_root_certificates(load_ca_file(file)?).with_no_client_auth()
        }
        CertificateTrust::System => {
            builder.with_root_certificates(load_system_store()?).with_no_client_auth()
        }
        CertificateTrust::AnyCertificate => {
            let verifier = Arc::new(AcceptAnyCertificate(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    Ok(Arc::new(config))
}

/// Returns the name that the certificate must be valid for.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| {
            format!("invalid value for --url: certificates cannot be issued for the name '{name}'")
        }),
    }
}

/// Loads the certificate authorities that the system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR`
/// replace them.
fn load_system_store() -> Result<RootCertStore, String> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // Systems also list authorities that rustls cannot parse; the others are enough.
    store.add_parsable_certificates(loaded.certs);
    if store.is_empty() {
        let reason = loaded.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "the system has no certificate authorities{reason}: name a file with --ca, or accept any certificate \
             with --insecure"
        ));
    }
    Ok(store)
}

/// Loads the certificate authorities of a PEM file.
fn load_ca_file(file: &Path) -> Result<RootCertStore, String> {
    let invalid = |error: &dyn fmt::Display| {
        format!(
            "invalid value '{}' for --ca: {error}; expected a PEM file of certificate authorities",
            file.display()
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| invalid(&error))? {
        let certificate = certificate.map_err(|error| invalid(&error))?;
        roots.add(certificate).map_err(|error| invalid(&error))?;
    }
    if roots.is_empty() {
        return Err(invalid(&"it contains no certificate"));
    }
    Ok(roots)
}

/// Accepts any certificate, but verifies that the server has the certificate's key.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_flag_and_the_file() {
        for file in ["/nowhere/ca.pem", "/dev/null"] {
            let message = client_config(&CertificateTrust::CaFile(file.into())).unwrap_err();
            assert!(message.contains("--ca") && message.contains(file), "{message}");
        }
    }

    #[test]
    fn certificates_can_be_issued_for_addresses_and_names() {
        for host in ["127.0.0.1", "::1", "hub.example.com"] {
            assert!(server_name(&host.parse().unwrap()).is_ok(), "{host}");
        }
    }
}
