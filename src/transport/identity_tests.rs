//! Files that are read again, and texts that show nothing of a key.

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A certificate that its own key has signed, and the key.
fn pem(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn first_certificate(identity: &Identity) -> Vec<u8> {
    identity.resolve(&[], &[]).unwrap().cert[0].to_vec()
}

fn der(certificate: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap().to_vec()
}

#[test]
fn an_identity_is_replaced_when_both_files_are() {
    let folder = tempfile::tempdir().unwrap();
    let [at, key_at] = ["client.crt", "client.key"].map(|name| folder.path().join(name));
    let ((old, old_key), (new, new_key)) = (pem("old"), pem("new"));
    std::fs::write(&at, &old).unwrap();
    std::fs::write(&key_at, &old_key).unwrap();
    let identity = Identity::new(ClientIdentity::Files { certificates: at.clone(), key: key_at.clone() }).unwrap();
    assert_eq!(first_certificate(&identity), der(&old));
    identity.read_again();
    assert_eq!((first_certificate(&identity), identity.problem()), (der(&old), None));
    std::fs::write(&at, &new).unwrap();
    identity.read_again();
    let problem = identity.problem().unwrap();
    assert!(problem.contains("does not belong to the certificate"), "{problem}");
    assert_eq!(first_certificate(&identity), der(&old), "the last good one");
    std::fs::write(&key_at, &new_key).unwrap();
    identity.read_again();
    assert_eq!((first_certificate(&identity), identity.problem()), (der(&new), None));
    std::fs::remove_file(&at).unwrap();
    identity.read_again();
    assert!(identity.problem().unwrap().contains("client.crt"));
    assert_eq!(first_certificate(&identity.for_child()), der(&new));
}

/// For how long a connection waits, which is made `later` than a read began that does not end.
async fn wait_for_a_read_that_hangs(connect_timeout: Duration, later: Duration) -> Duration {
    let (certificate, key) = pem("old");
    let folder = tempfile::tempdir().unwrap();
    let [at, key_at] = ["client.crt", "client.key"].map(|name| folder.path().join(name));
    std::fs::write(&at, &certificate).unwrap();
    std::fs::write(&key_at, key).unwrap();
    let identity = Identity::new(ClientIdentity::Files { certificates: at, key: key_at }).unwrap();
    // As the thread of the read would hold and note it.
    let _reading = Arc::clone(&identity.reading).lock_owned().await;
    *lock(&identity.began) = Some(Instant::now());
    tokio::time::advance(later).await;
    let began = Instant::now();
    Arc::clone(&identity).refresh(connect_timeout).await;
    assert_eq!(first_certificate(&identity), der(&certificate));
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_takes_a_quarter_of_the_connect_timeout() {
    let second = Duration::from_secs(1);
    assert_eq!(wait_for_a_read_that_hangs(second, Duration::ZERO).await, second / 4);
    assert_eq!(wait_for_a_read_that_hangs(second * 60, Duration::ZERO).await, second * 2);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_is_waited_for_once() {
    let second = Duration::from_secs(1);
    assert_eq!(wait_for_a_read_that_hangs(second * 4, second / 4).await, second * 3 / 4, "the rest of the second");
    assert_eq!(wait_for_a_read_that_hangs(second * 4, second).await, Duration::ZERO);
}

#[tokio::test]
async fn a_connection_after_a_slow_read_gets_the_new_identity() {
    let ((old, old_key), (new, new_key)) = (pem("old"), pem("new"));
    let folder = tempfile::tempdir().unwrap();
    let [at, key_at] = ["client.crt", "client.key"].map(|name| folder.path().join(name));
    std::fs::write(&at, &old).unwrap();
    std::fs::write(&key_at, &old_key).unwrap();
    let identity = Identity::new(ClientIdentity::Files { certificates: at.clone(), key: key_at.clone() }).unwrap();
    // An earlier read has ended long ago.
    *lock(&identity.began) = Instant::now().checked_sub(Duration::from_secs(3600));
    assert!(identity.reading_since().elapsed() < Duration::from_secs(3000), "it does not count");
    std::fs::write(&at, &new).unwrap();
    std::fs::write(&key_at, &new_key).unwrap();
    // Longer than any machine takes for two small files.
    tokio::time::timeout(Duration::from_secs(600), Arc::clone(&identity).read_on_a_thread()).await.unwrap();
    assert_eq!(first_certificate(&identity), der(&new));
}

#[test]
fn an_older_form_of_encryption_is_recognized() {
    let (certificate, _) = pem("daemon");
    let key = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nc2VjcmV0\n\
               -----END RSA PRIVATE KEY-----\n";
    let why = parse(certificate.into(), key.into()).err().unwrap();
    assert!(why.starts_with("the private key is encrypted"), "{why}");
}

#[test]
fn nothing_of_a_key_is_shown() {
    let (certificates, key) = pem("daemon");
    let secret = key.lines().nth(1).unwrap().to_owned();
    let source = ClientIdentity::Pem { certificates: certificates.into(), key: key.into() };
    let identity = Identity::new(source.clone()).unwrap();
    let shown = format!("{source:?} {identity:?}");
    assert!(!shown.contains(&secret) && shown.contains("Pem(..)"), "{shown}");
}
