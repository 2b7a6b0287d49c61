//! The client's own certificate, which it presents to an endpoint that asks for one (mutual TLS).
//!
//! An identity is a chain of certificates and a private key, given as PEM text or as two files. Files are read when the
//! transport is created, where an identity that cannot be used is an error, and again whenever a connection is made, so
//! that short-lived certificates can be replaced without a restart. Reading may hang with the file system: it is done on
//! a thread of its own, one at a time, and a connection waits for it for [`read_wait`] at most; not at all if the read
//! has taken longer than that already.
//!
//! Files that cannot be used when they are read again, because one of them is being replaced or is gone, change nothing:
//! the last good identity stays in use, and the reason is part of the error if the endpoint then refuses it.

use std::fmt::{self, Debug};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::time::Instant;

use super::message::TransportError;

/// The longest time for which a connection waits for files.
const READ_WAIT_MOST: Duration = Duration::from_secs(2);

/// How long the creation of a client waits for the files.
const START_WAIT: Duration = Duration::from_secs(10);

/// The largest file that is read. Chains have a few KiB.
const MOST_BYTES: u64 = 1024 * 1024;

/// How long a connection waits for files of certificates. Afterwards it is made with what was read last, in the rest of
/// the time for connecting, which the reading must not use up.
pub(super) fn read_wait(connect_timeout: Duration) -> Duration {
    READ_WAIT_MOST.min(connect_timeout / 4)
}

/// Where the chain of certificates and the private key come from, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ClientIdentity {
    /// These texts.
    Pem { certificates: Vec<u8>, key: Vec<u8> },
    /// These files.
    Files { certificates: PathBuf, key: PathBuf },
}

impl Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The key is a secret.
            ClientIdentity::Pem { .. } => f.write_str("Pem(..)"),
            ClientIdentity::Files { certificates, key } => {
                f.debug_struct("Files").field("certificates", certificates).field("key", key).finish()
            }
        }
    }
}

/// The texts, and what rustls makes of them.
struct Loaded {
    certificates: Vec<u8>,
    key: Vec<u8>,
    certified: Arc<CertifiedKey>,
}

/// The identity of a transport. Its TLS configurations ask it for the certificate of each new connection.
pub(super) struct Identity {
    source: ClientIdentity,
    current: ArcSwap<Loaded>,
    /// Locked while a thread reads the files.
    reading: Arc<AsyncMutex<()>>,
    /// When a thread last began to read them.
    began: Mutex<Option<Instant>>,
    /// Why the files could not be used when they were last read.
    problem: Mutex<Option<String>>,
}

impl Identity {
    /// Reads the files. An error says what is wrong and what to do, and contains no part of the key.
    pub(super) fn new(source: ClientIdentity) -> Result<Arc<Self>, TransportError> {
        let loaded = load_in_time(&source).map_err(|why| TransportError::BadIdentity { why })?;
        Ok(Self::with(source, Arc::new(loaded)))
    }

    /// The same identity for a forked child. It shares no lock with this one.
    pub(super) fn for_child(&self) -> Arc<Self> {
        Self::with(self.source.clone(), self.current.load_full())
    }

    fn with(source: ClientIdentity, loaded: Arc<Loaded>) -> Arc<Self> {
        let current = ArcSwap::new(loaded);
        Arc::new(Self { source, current, reading: Arc::default(), began: Mutex::default(), problem: Mutex::default() })
    }

    /// Why the files could not be used when they were last read. `None`: they could, or there are none.
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// Reads the files again, before a connection is made within this time.
    pub(super) async fn refresh(self: Arc<Self>, connect_timeout: Duration) {
        if matches!(self.source, ClientIdentity::Files { .. }) {
            let until = self.reading_since() + read_wait(connect_timeout);
            // Late, the connection is made with the identity that was read last.
            let _ = tokio::time::timeout_at(until, self.read_on_a_thread()).await;
        }
    }

    /// When the read that is under way began; now, if there is none.
    fn reading_since(&self) -> Instant {
        let is_reading = self.reading.try_lock().is_err();
        lock(&self.began).filter(|_| is_reading).unwrap_or_else(Instant::now)
    }

    async fn read_on_a_thread(self: Arc<Self>) {
        // Waits for a read that is under way: two connections at a time both get the new identity.
        let reading = Arc::clone(&self.reading).lock_owned().await;
        *lock(&self.began) = Some(Instant::now());
        let (sender, receiver) = oneshot::channel();
        let read = move || {
            self.read_again();
            drop(reading);
            // Fails if the request was cancelled.
            let _ = sender.send(());
        };
        if thread::Builder::new().name("posthog-certs".to_owned()).spawn(read).is_ok() {
            let _ = receiver.await;
        }
    }

    fn read_again(&self) {
        let problem = read(&self.source).and_then(|(certificates, key)| self.replace(certificates, key)).err();
        *lock(&self.problem) = problem;
    }

    fn replace(&self, certificates: Vec<u8>, key: Vec<u8>) -> Result<(), String> {
        let current = self.current.load();
        if current.certificates != certificates || current.key != key {
            self.current.store(Arc::new(parse(certificates, key)?));
        }
        Ok(())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("source", &self.source).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads for the creation of a client, which must not hang with a file system.
fn load_in_time(source: &ClientIdentity) -> Result<Loaded, String> {
    if matches!(source, ClientIdentity::Pem { .. }) {
        return load(source);
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    let source = source.clone();
    let read = move || _ = sender.send(load(&source));
    thread::Builder::new()
        .name("posthog-certs".to_owned())
        .spawn(read)
        .map_err(|error| format!("no thread could be started to read its files: {error}"))?;
    receiver.recv_timeout(START_WAIT).unwrap_or_else(|_| {
        Err(format!("its files could not be read within {START_WAIT:?}; check the file system that they are on"))
    })
}

fn load(source: &ClientIdentity) -> Result<Loaded, String> {
    read(source).and_then(|(certificates, key)| parse(certificates, key))
}

/// The two texts.
fn read(source: &ClientIdentity) -> Result<(Vec<u8>, Vec<u8>), String> {
    match source {
        ClientIdentity::Pem { certificates, key } => Ok((certificates.clone(), key.clone())),
        ClientIdentity::Files { certificates, key } => {
            Ok((read_file("certificate", certificates)?, read_file("private key", key)?))
        }
    }
}

fn read_file(what: &str, path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = |text: &mut Vec<u8>| -> io::Result<usize> { File::open(path)?.take(MOST_BYTES + 1).read_to_end(text) };
    match read(&mut text) {
        Err(error) => Err(format!(
            "the file {path:?} of the {what} cannot be read ({error}); check its path, and that this user may read it"
        )),
        Ok(_) if text.len() as u64 > MOST_BYTES => Err(format!("the file {path:?} of the {what} is larger than 1 MiB")),
        Ok(_) if text.trim_ascii().is_empty() => Err(format!("the file {path:?} of the {what} is empty")),
        Ok(_) => Ok(text),
    }
}

/// Checks the texts. An error contains no part of them.
fn parse(certificates: Vec<u8>, key: Vec<u8>) -> Result<Loaded, String> {
    let chain = CertificateDer::pem_slice_iter(&certificates).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|_| "the certificate is damaged: it is not valid PEM".to_owned())?;
    if chain.is_empty() {
        return Err("the certificate has no PEM block of this kind (BEGIN CERTIFICATE)".to_owned());
    }
    if is_encrypted(&key) {
        return Err(
            "the private key is encrypted; store it without a passphrase (openssl pkey -in encrypted.key -out \
                    plain.key), readable for this user alone"
                .to_owned(),
        );
    }
    let secret = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| "the private key has no valid PEM block of this kind (BEGIN PRIVATE KEY)".to_owned())?;
    let certified = CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "the private key does not belong to the certificate; the first \
                                               certificate must be the client's own, followed by those of its issuers"
            .to_owned(),
        other => format!("the certificate or its private key cannot be used: {other}"),
    })?;
    Ok(Loaded { certificates, key, certified: Arc::new(certified) })
}

/// Whether a key needs a passphrase, in the present or in OpenSSL's older form.
fn is_encrypted(key: &[u8]) -> bool {
    let text = String::from_utf8_lossy(key);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// The crypto provider, given explicitly, so that the process-wide one, which the program may or may not have installed,
/// does not matter.
pub(super) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;

/// For the fuzz target: texts of a certificate and a key are loaded or refused.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn load_any(certificates: &[u8], key: &[u8]) {
    if let Err(why) = parse(certificates.to_vec(), key.to_vec()) {
        assert!(!why.is_empty(), "a refusal has a reason");
    }
}
