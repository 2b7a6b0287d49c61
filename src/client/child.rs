//! The client in a forked child.
//!
//! A child cannot use the pipeline that it inherits: its threads do not exist there, its mappings are absent, its locks
//! may be held by threads that are gone, and the store belongs to the parent. So the inherited pipeline is never
//! touched, only replaced: the first capture opens a shard of the child's own, with the settings and the environment
//! that the parent had read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{Client, Shared};
use crate::error::Error;
use crate::pipeline::Pipeline;
use crate::report::Diagnostic;
use crate::sys::disk::fork::lock_within;
use crate::sys::reentry;

/// How long a capture waits for another thread of the child that is opening the queue.
const OPENING_WAIT: Duration = Duration::from_secs(5);

/// The client that replaces an inherited one.
#[derive(Default)]
pub(super) struct Child {
    open: OnceLock<Client>,
    /// Whether opening failed. It is not tried again, because each capture would wait for it.
    has_failed: AtomicBool,
    /// Held while it is opened.
    opening: Mutex<()>,
}

impl Shared {
    /// The client that replaces this one, if it is open. Waits for an opening under way.
    pub(super) fn child(&self) -> Option<Client> {
        if self.child.open.get().is_none() {
            // An opening has copied the rules already: a change of rules has to wait for it.
            drop(lock_within(&self.child.opening, patience(OPENING_WAIT))?);
        }
        self.child.open.get().cloned()
    }

    /// As [`child`](Self::child), without waiting.
    pub(super) fn opened_child(&self) -> Option<&Client> {
        self.child.open.get()
    }

    /// Whether opening failed for good.
    pub(super) fn has_failed_child(&self) -> bool {
        self.child.has_failed.load(Ordering::Acquire)
    }

    /// The client that replaces this one, opened if necessary.
    pub(super) fn child_or_open(&self, parent: &Pipeline) -> Option<Client> {
        if let Some(client) = self.child.open.get() {
            return Some(client.clone());
        }
        let _opening = lock_within(&self.child.opening, patience(OPENING_WAIT))?;
        if self.child.open.get().is_none() && !self.has_failed_child() {
            match self.open_child(parent) {
                Ok(client) => {
                    // A callback may have changed the opt-out during the opening, without waiting for it.
                    client.set_opted_out(self.rules.is_opted_out());
                    let _ = self.child.open.set(client);
                }
                Err(error) => {
                    self.child.has_failed.store(true, Ordering::Release);
                    self.diagnostics.for_child().record(Diagnostic::StorageFailing {
                        problem: format!(
                            "this forked process has no queue, and drops all events: {}",
                            error.describe()
                        ),
                    });
                }
            }
        }
        self.child.open.get().cloned()
    }

    fn open_child(&self, parent: &Pipeline) -> Result<Client, Error> {
        let mut options = parent.options().clone();
        // Without the hooks nothing may be captured: data that they remove would reach the disk.
        let busy = || Error::Resources(std::io::Error::other("the parent was changing its hooks when it forked"));
        let rules = self.rules.for_child().ok_or_else(busy)?;
        options.held = rules.is_opted_out();
        let diagnostics = Arc::new(self.diagnostics.for_child());
        let flags = self.flags.for_child(options.clock.clone());
        let child = Client::start(Some(options), self.settings.clone(), (rules, flags), diagnostics, Some(parent))?;
        // The child inherits the ring: its exceptions have the breadcrumbs from before the fork, too.
        child.shared.keeps_breadcrumbs.store(self.keeps_breadcrumbs.load(Ordering::Relaxed), Ordering::Relaxed);
        if self.is_armed.load(Ordering::SeqCst)
            && let Err(error) = child.shared.arm_process_wide()
        {
            child.shared.diagnostics.record(Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
        }
        Ok(child)
    }
}

/// How long to wait for an opening. Not at all inside a callback, because the opening may be what called it.
pub(super) fn patience(most: Duration) -> Duration {
    if reentry::inside().depth > 0 || reentry::on_our_thread() { Duration::ZERO } else { most }
}
