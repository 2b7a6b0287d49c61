//! Last words: what a process does when it ends, and what the next one reads from what is left.
//!
//! Purpose. Everything that has to do with signals and with the end of a process stands here and nowhere else: it is the one folder of
//! the library, beside `disk`, that may use `unsafe`. It knows nothing of events, of the queue or of PostHog; who uses it stands on a
//! floor above and says what is to be done.
//!
//! * `terminate.rs`: signals that ask a process to end (SIGTERM, SIGINT). Notices them, wakes a thread, and has the process die of
//!   them as it would have without us.
//! * `exit_mark.rs`: runs at `exit`, in the process that asked for it and in no child of it.
//! * `cause.rs`: how the last run ended, from the traces it left. A pure function, and a table of tests.
//!
//! Rules
//! * In a signal handler there are atomics, `getpid`, and one wake: no lock, no allocation, no descriptor.
//! * A forked child inherits handlers, and neither threads nor a reason to speak for its parent: each of them compares the process id
//!   first, and does in a child what would have been done without us.
//! * The wait status of the process stays what it would have been.
//! * What is not known is said to be not known.

pub(crate) mod cause;
pub(crate) mod exit_mark;
pub(crate) mod terminate;
