//! Whom we trust: the machine's certificate authorities, and those the options add.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::TransportError;

/// Reads the machine's own certificates, as they are at the moment.
pub(super) type MachineCertificates = Box<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>;

/// As `SSL_CERT_FILE` and `SSL_CERT_DIR` say or where the system keeps them; those that cannot be read are left out, as every TLS library
/// does.
pub(super) fn machine_certificates() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// The machine's and the configured ones together. The machine's may be odd, those of the configuration may not.
pub(super) fn roots(
    machine: Vec<CertificateDer<'static>>,
    configured: &[Vec<u8>],
) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(machine);
    for (index, pem) in configured.iter().enumerate() {
        let bad = || TransportError::BadCertificate { number: index + 1 };
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
        }
        if roots.len() == before {
            return Err(bad());
        }
    }
    Ok(roots)
}

/// A configuration of its own crypto provider: the host program may have installed another one, or none, or two libraries that
/// disagree, and none of that may matter here.
pub(super) fn client_config(roots: &Arc<RootCertStore>) -> Result<ClientConfig, TransportError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TransportError::Setup(source.into()))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    Ok(config)
}
