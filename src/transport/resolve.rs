//! Names to addresses, by the system's resolver.
//!
//! The system's resolver blocks, for as long as it likes, so it runs on a thread of its own. The usual way, the blocking threads of
//! the runtime, panics where the process may have no more threads, and a daemon built with `panic = "abort"` would end there.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

/// Lookups that may hang at once: one that does holds its thread until the system gives up, and nobody waits for it any more.
const MOST_LOOKUPS: usize = 8;

/// Asks the system, each time on a thread that ends with the answer. Clones share their bound.
#[derive(Clone, Default)]
pub(super) struct SystemResolver {
    lookups: Arc<AtomicUsize>,
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = self.look_up(move || (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter));
        Box::pin(async move {
            // Who hung up has panicked, which the system's resolver does not.
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
        let running = Running::begin(&self.lookups).ok_or("earlier lookups still hang")?;
        let (tell, told) = oneshot::channel();
        // Signals are blocked there as they are on this thread, which is one of ours.
        thread::Builder::new().name("posthog-resolve".to_owned()).spawn(move || {
            let answer = ask();
            drop(running);
            // Nobody listens any more when the request has timed out.
            let _ = tell.send(answer);
        })?;
        Ok(told)
    }
}

/// A lookup that is counted.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(lookups: &Arc<AtomicUsize>) -> Option<Self> {
        let count_up = |running: usize| (running < MOST_LOOKUPS).then_some(running + 1);
        lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, count_up).ok()?;
        Some(Self(Arc::clone(lookups)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
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
        assert_eq!(resolver.lookups.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn lookups_that_hang_are_bounded_and_one_that_comes_back_makes_room() {
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
