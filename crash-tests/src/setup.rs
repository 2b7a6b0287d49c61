//! The configuration of a victim's client, which decides which paths of the library a run takes.

/// A configuration. Runs on the same queue may have different ones: a daemon is reconfigured, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// A journal with arenas that are full after a few hundred events, so that arenas are checkpointed half full,
    /// rotated by callers, and run out.
    pub small_journal: bool,
    /// The journal is written by position and not mapped.
    pub no_map: bool,
    /// No pause between two events.
    pub burst: bool,
    /// Bytes added to each event.
    pub padding: u32,
    /// Maximum number of queued events, beyond which the oldest are dropped; 0 is unlimited.
    pub queue_events: u32,
    /// Every other event is an AI event, in a queue of its own.
    pub ai: bool,
    /// After this many events, a thread waits until the last one is persisted; 0 is never.
    pub awaits: u32,
    /// The victim measures the disk ([`crate::power`]).
    pub rounds: bool,
    /// Events per second of each thread, evenly spread, until stdin ends; 0: as fast as the other fields say. Such a
    /// run forks whenever a line of stdin asks for it ([`crate::protocol::Child`]).
    pub per_second: u32,
}

impl Setup {
    /// The same with a small journal.
    pub fn small(self) -> Self {
        Self { small_journal: true, ..self }
    }

    /// The same with a journal that is not mapped.
    pub fn unmapped(self) -> Self {
        Self { no_map: true, ..self }
    }

    /// The same with `padding` more bytes in each event.
    pub fn padded(self, padding: u32) -> Self {
        Self { padding, ..self }
    }

    /// The same without pauses.
    pub fn bursting(self) -> Self {
        Self { burst: true, ..self }
    }

    /// The same with AI events.
    pub fn with_ai(self) -> Self {
        Self { ai: true, ..self }
    }

    /// The same with this many events per second of each thread.
    pub fn steady(self, per_second: u32) -> Self {
        Self { per_second, ..self }
    }

    /// Encodes it as one argument.
    pub fn to_arg(self) -> String {
        let Self { small_journal, no_map, burst, padding, queue_events, ai, awaits, rounds, per_second } = self;
        let flags = [small_journal, no_map, burst, ai, rounds].map(u32::from);
        let numbers = flags.into_iter().chain([padding, queue_events, awaits, per_second]);
        numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Parses the output of [`Setup::to_arg`].
    pub fn from_arg(arg: &str) -> Option<Self> {
        let numbers: Vec<u32> = arg.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [small_journal, no_map, burst, ai, rounds, padding, queue_events, awaits, per_second] = numbers[..] else {
            return None;
        };
        let is = |flag: u32| flag != 0;
        let [small_journal, no_map, burst, ai, rounds] = [small_journal, no_map, burst, ai, rounds].map(is);
        Some(Self { small_journal, no_map, burst, padding, queue_events, ai, awaits, rounds, per_second })
    }
}
