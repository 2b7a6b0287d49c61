//! The TLS endpoint before the stand-in: its certificates can be replaced, and its connections reset.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Failure;

/// Serves on a thread of its own until the process ends.
pub(super) struct Front {
    port: u16,
    authorities: PathBuf,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    resets: watch::Sender<u32>,
}

impl Front {
    /// Forwards to `target` of loopback. The certificate of its authority is written to a file in `folder`.
    pub(super) fn before(target: u16, folder: &Path) -> Result<Self, Failure> {
        let failed = Failure::environment("starting the TLS endpoint");
        let authorities = folder.join("authorities.pem");
        let acceptor = Arc::new(Mutex::new(replace(&authorities)?));
        let resets = watch::Sender::new(0);
        let serve = || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let port = listener.local_addr()?.port();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (acceptor, resets) = (Arc::clone(&acceptor), resets.clone());
            thread::Builder::new()
                .name("front".to_owned())
                .spawn(move || runtime.block_on(accept(listener, target, &acceptor, &resets)))?;
            Ok(port)
        };
        let port = serve().map_err(failed)?;
        Ok(Self { port, authorities, acceptor, resets })
    }

    /// The address for a client.
    pub(super) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file with the certificate of the present authority.
    pub(super) fn authorities(&self) -> String {
        self.authorities.to_string_lossy().into_owned()
    }

    /// Resets all connections.
    pub(super) fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }

    /// A new authority and a new certificate of it: the file is replaced, and all connections are reset.
    pub(super) fn replace_certificates(&self) -> Result<(), Failure> {
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = replace(&self.authorities)?;
        self.reset();
        Ok(())
    }
}

/// Writes the certificate of a new authority to a file; gives an acceptor with a certificate of that authority.
fn replace(authorities: &Path) -> Result<TlsAcceptor, Failure> {
    let failed = || Failure::environment("making certificates");
    let (pem, config) = new_certificates().map_err(|error| failed()(io::Error::other(error)))?;
    let new = authorities.with_extension("new");
    fs::write(&new, pem).and_then(|()| fs::rename(&new, authorities)).map_err(failed())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn new_certificates() -> Result<(String, ServerConfig), Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((authority.pem(), config))
}

async fn accept(
    listener: std::net::TcpListener,
    target: u16,
    acceptor: &Mutex<TlsAcceptor>,
    resets: &watch::Sender<u32>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reset = resets.subscribe();
        tokio::spawn(async move {
            let Ok(mut tls) = acceptor.accept(socket).await else { return };
            let Ok(mut plain) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut tls, &mut plain) => {}
                _ = reset.changed() => {
                    // A socket that does not linger is reset when it is closed.
                    let _ = tls.get_ref().0.set_zero_linger();
                }
            }
        });
    }
}
