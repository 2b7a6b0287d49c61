//! Named places at which a process can be told to die.
//!
//! Only with the internal feature `__crash_points`, which the crash tests switch on; otherwise [`reach`] is nothing at all.
//! `POSTHOG_CRASH_POINT=name:n` makes the process kill itself with SIGKILL when it reaches that place for the n-th time (1 if `:n`
//! is left out). `POSTHOG_CRASH_TRACE=file` appends each place's name to the file when it is first reached, so that a place which
//! no scenario reaches can be found. `POSTHOG_CRASH_NO_MAP` makes the journal write by position, as where mapping is not safe.

/// Every place there is.
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

/// Dies here if told to.
#[cfg(not(feature = "__crash_points"))]
#[inline(always)]
pub(crate) fn reach(_name: &'static str) {}

/// Dies here if told to.
#[cfg(feature = "__crash_points")]
pub(crate) fn reach(name: &'static str) {
    use std::sync::OnceLock;
    static PLAN: OnceLock<Plan> = OnceLock::new();
    let plan = PLAN.get_or_init(Plan::from_env);
    if plan.is_some() {
        plan.reach(name);
    }
}

/// Whether the journal may map its files, as far as the crash tests are concerned.
#[cfg(not(feature = "__crash_points"))]
#[inline(always)]
pub(crate) fn may_map() -> bool {
    true
}

/// Whether the journal may map its files, as far as the crash tests are concerned.
#[cfg(feature = "__crash_points")]
pub(crate) fn may_map() -> bool {
    std::env::var_os("POSTHOG_CRASH_NO_MAP").is_none()
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
            // One write, so that lines of several processes do not mix; a trace that cannot be written fails the run by itself.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        if self.die_at.as_ref().is_some_and(|(at, when)| at == name && *when == nth) {
            // The signal cannot be handled, but it may take a moment to arrive: nothing may happen after this place.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}
