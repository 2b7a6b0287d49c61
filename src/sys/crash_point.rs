//! Crash points: named places at which the crash tests make the process kill itself.
//!
//! They exist only with the internal feature `__crash_points`, which the crash tests enable; otherwise [`reach`] is
//! empty.
//!
//! * `POSTHOG_CRASH_POINT=name:n` sends SIGKILL when the place is reached for the n-th time (the first if `:n` is
//!   omitted).
//! * `POSTHOG_CRASH_TRACE=file` appends the name of each place to the file when it is first reached, so that a place
//!   that no scenario reaches can be found.
//! * `POSTHOG_CRASH_NO_MAP` makes the journal use positioned writes, as on file systems where mapping is not safe.

/// All crash points.
#[cfg(feature = "__crash_points")]
pub(crate) const NAMES: &[&str] = &[
    "journal.arena.zeroed",
    "journal.append.copied",
    "journal.append.published",
    "journal.round.begun",
    "journal.rotated",
    "journal.swap.begun",
    "journal.swap.done",
    "journal.freed",
    "store.opening",
    "store.built",
    "store.ready",
    "store.aside",
    "store.synced",
    "store.chunk.committed",
    "store.compacting",
    "recovery.replayed",
    "recovery.committed",
    "adoption.opened",
    "delivery.sent",
    "delivery.acked",
    "ack.committed",
    "evict.committed",
    "stop.begun",
    "stop.committed",
    "symbols.asked",
];

/// Kills the process here if the environment asks for it.
#[inline(always)]
pub(crate) fn reach(_name: &'static str) {
    #[cfg(feature = "__crash_points")]
    {
        static PLAN: std::sync::OnceLock<Plan> = std::sync::OnceLock::new();
        let plan = PLAN.get_or_init(Plan::from_env);
        if plan.is_some() {
            plan.reach(_name);
        }
    }
}

/// Whether the crash tests allow the journal to map its files.
pub(crate) fn may_map() -> bool {
    !cfg!(feature = "__crash_points") || std::env::var_os("POSTHOG_CRASH_NO_MAP").is_none()
}

#[cfg(feature = "__crash_points")]
#[derive(Debug)]
struct Plan {
    die_at: Option<(String, u64)>,
    trace: Option<std::fs::File>,
    reached: [std::sync::atomic::AtomicU64; NAMES.len()],
}

#[cfg(feature = "__crash_points")]
impl Plan {
    fn from_env() -> Self {
        let die_at = std::env::var("POSTHOG_CRASH_POINT").ok().map(|spec| match spec.split_once(':') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (spec, 1),
        });
        let trace = std::env::var_os("POSTHOG_CRASH_TRACE")
            .and_then(|path| std::fs::File::options().create(true).append(true).open(path).ok());
        Self { die_at, trace, reached: [const { std::sync::atomic::AtomicU64::new(0) }; NAMES.len()] }
    }

    fn is_some(&self) -> bool {
        self.die_at.is_some() || self.trace.is_some()
    }

    fn reach(&self, name: &'static str) {
        use std::io::Write as _;
        use std::sync::atomic::Ordering;

        debug_assert!(NAMES.contains(&name), "{name} is missing from NAMES");
        let Some(count) = NAMES.iter().position(|known| *known == name).and_then(|index| self.reached.get(index))
        else {
            return;
        };
        let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
        if nth == 1
            && let Some(mut trace) = self.trace.as_ref()
        {
            // One write, so that lines of several processes do not mix. A trace that cannot be written fails the run by
            // itself.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        if self.die_at.as_ref().is_some_and(|(at, when)| at == name && *when == nth) {
            // The signal may take a moment to arrive, and nothing may happen after this place.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}
