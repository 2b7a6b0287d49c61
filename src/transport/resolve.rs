//! DNS look-ups with the system's resolver.
//!
//! The system's resolver blocks without a bound, so each look-up runs on a thread of its own. tokio's blocking threads
//! are not used: they panic if the process cannot create another thread, which would end a daemon built with `panic =
//! "abort"`.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::{Semaphore, oneshot};

/// The most look-ups at a time. One that hangs keeps its thread until the system's timeout, even after its request has
/// ended.
const MOST_LOOKUPS: usize = 8;

/// Resolves names, each on a thread that ends with the answer. Clones share the limit on look-ups.
#[derive(Clone)]
pub(super) struct SystemResolver {
    /// A permit for each further look-up.
    lookups: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MOST_LOOKUPS)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = self.look_up(move || (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter));
        Box::pin(async move {
            // The sender is dropped without an answer only if the thread panicked.
            let found =
                answer?.await.unwrap_or_else(|_| Err(io::Error::other("the lookup ended without an answer")))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

type Answer = io::Result<Vec<SocketAddr>>;

impl SystemResolver {
    fn look_up(
        &self,
        ask: impl FnOnce() -> Answer + Send + 'static,
    ) -> Result<oneshot::Receiver<Answer>, Box<dyn Error + Send + Sync>> {
        let permit = Arc::clone(&self.lookups).try_acquire_owned().map_err(|_| "earlier lookups still hang")?;
        let (sender, receiver) = oneshot::channel();
        // The thread inherits the blocked signals of this one, which is a thread of the library.
        thread::Builder::new().name("posthog-resolve".to_owned()).spawn(move || {
            let answer = ask();
            drop(permit);
            // Fails if the request has ended.
            let _ = sender.send(answer);
        })?;
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_systems_names_are_found_and_others_are_an_error() {
        let resolver = SystemResolver::default();
        let found = resolver.resolve(Name::from_str("localhost").unwrap()).await.unwrap();
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
        assert!(resolver.resolve(Name::from_str("no-such-host.invalid").unwrap()).await.is_err());
        assert_eq!(resolver.lookups.available_permits(), MOST_LOOKUPS);
    }

    #[tokio::test]
    async fn hanging_lookups_are_bounded() {
        let resolver = SystemResolver::default();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let hang = || {
            let released = Arc::clone(&released);
            resolver.look_up(move || {
                let _ = released.lock().unwrap().recv();
                Ok(Vec::new())
            })
        };
        let hanging: Vec<_> = (0..MOST_LOOKUPS).map(|_| hang().unwrap()).collect();
        assert!(hang().is_err());
        drop(release);
        for answer in hanging {
            answer.await.unwrap().unwrap();
        }
        assert!(hang().is_ok());
    }
}
