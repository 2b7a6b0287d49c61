//! Tests: a client that stands in for the process-wide one, on one thread or on all.
//!
//! Without a stand-in, a free function pays one relaxed load for this. Without the feature `testing` it is not compiled.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::Client;

/// How long to wait for a stand-in on all threads to end. A test must end even if another one never does.
const PATIENCE: Duration = Duration::from_secs(600);

/// Number of stand-ins of the process.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
/// The stand-in on all threads, and the thread that set it.
static ON_ALL_THREADS: Mutex<Option<(Client, ThreadId)>> = Mutex::new(None);
static IS_FREE: Condvar = Condvar::new();

thread_local! {
    /// The stand-ins of this thread with their numbers, the newest last.
    static ON_THIS_THREAD: RefCell<Vec<(usize, Client)>> = const { RefCell::new(Vec::new()) };
}

/// The client that stands in for the process-wide one on this thread: the thread's own, or that of all threads.
pub(super) fn current() -> Option<Client> {
    if IN_USE.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let own =
        ON_THIS_THREAD.try_with(|clients| clients.borrow().last().map(|(_, client)| client.clone())).ok().flatten();
    own.or_else(|| lock().as_ref().map(|(client, _)| client.clone()))
}

fn lock() -> MutexGuard<'static, Option<(Client, ThreadId)>> {
    ON_ALL_THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stand-in, until it is dropped, on the thread that set it.
#[derive(Debug)]
pub(crate) struct StandIn {
    /// Its number on its thread; `None` if it is on all threads.
    on_thread: Option<usize>,
    _not_send: PhantomData<*const ()>,
}

impl StandIn {
    /// Stands in on this thread. A later one on the same thread takes precedence until it is dropped.
    pub(crate) fn on_this_thread(client: &Client) -> Self {
        let number = ON_THIS_THREAD.with(|clients| {
            let mut clients = clients.borrow_mut();
            let number = clients.last().map_or(0, |(last, _)| last + 1);
            clients.push((number, client.clone()));
            number
        });
        IN_USE.fetch_add(1, Ordering::SeqCst);
        Self { on_thread: Some(number), _not_send: PhantomData }
    }

    /// Stands in on all threads that have none of their own. Waits until no other one does.
    ///
    /// # Errors
    ///
    /// The reason why waiting is in vain.
    pub(crate) fn on_all_threads(client: &Client) -> Result<Self, &'static str> {
        let mut held = lock();
        if held.as_ref().is_some_and(|(_, holder)| *holder == thread::current().id()) {
            return Err("this thread already has a client on all threads; drop its guard first");
        }
        (held, _) =
            IS_FREE.wait_timeout_while(held, PATIENCE, |held| held.is_some()).unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Err("another test has kept its client on all threads for ten minutes");
        }
        *held = Some((client.clone(), thread::current().id()));
        IN_USE.fetch_add(1, Ordering::SeqCst);
        Ok(Self { on_thread: None, _not_send: PhantomData })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Ordering::SeqCst);
        let Some(number) = self.on_thread else {
            // Dropped without the lock: the last handle of a client closes it.
            let ended = lock().take();
            IS_FREE.notify_one();
            return drop(ended);
        };
        // Guards may be dropped in another order than they were made.
        let ended = ON_THIS_THREAD.try_with(|clients| {
            let mut clients = clients.borrow_mut();
            let at = clients.iter().position(|(known, _)| *known == number)?;
            Some(clients.remove(at))
        });
        drop(ended);
    }
}
