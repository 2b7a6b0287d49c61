//! Breadcrumbs: what a program says of its way, for the case that it crashes.

use std::sync::atomic::Ordering;

use super::{Client, Shared};
use crate::crash;

impl Client {
    /// Notes something that the program did. A panic or a fatal signal is told with the last 30 of these, and of the events that this
    /// client captured (their names alone), as `$exception_steps`: oldest first, each with its time.
    ///
    /// For the client whose process has [`install_panic_hook`](crate::install_panic_hook) or a crash handler, which is that of
    /// [`init`](crate::init); with any other, and after [`opt_out`](Client::opt_out), nothing is noted. At most 224 bytes of a text are
    /// kept. Some nanoseconds: no allocation, no lock, no file. The texts stay in this process until it crashes, and the hooks of
    /// [`Config::before_send`](crate::Config::before_send) see them with the event.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.breadcrumb("connected to the database");
    /// ```
    pub fn breadcrumb(&self, text: impl AsRef<str>) {
        self.shared.leave_breadcrumb(text.as_ref());
    }
}

impl Shared {
    fn leave_breadcrumb(&self, text: &str) {
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| self.is_armed.load(Ordering::Relaxed)) else { return };
        // In a forked child too: the hook that it inherits reads the ring that it inherits.
        let rules = self.opened_child().map_or(&self.rules, |child| &child.shared.rules);
        if !rules.is_opted_out() {
            crash::note_step(text, pipeline.options().clock.wall_nanos());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Event};

    #[test]
    fn a_client_that_no_hook_belongs_to_notes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(Config::new("phc_quiet").queue_dir(dir.path()).host("http://127.0.0.1:9")).unwrap();
        client.breadcrumb("of another client");
        client.capture(Event::new("of_another_client", "user_1"));
        let disabled = Client::new(Config::disabled()).unwrap();
        disabled.breadcrumb("of another client");
        crate::breadcrumb("before init");
        let told = crash::noted_texts();
        assert!(!told.iter().any(|text| text.contains("another") || text == "before init"), "{told:?}");
    }
}
