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

    /// Encodes it as one argument.
    pub fn to_arg(self) -> String {
        let Self { small_journal, no_map, burst, padding, queue_events, ai } = self;
        let flags = [small_journal, no_map, burst, ai].map(u32::from);
        let numbers = [flags[0], flags[1], flags[2], flags[3], padding, queue_events];
        numbers.map(|number| number.to_string()).join(",")
    }

    /// Parses the output of [`Setup::to_arg`].
    pub fn from_arg(arg: &str) -> Option<Self> {
        let numbers: Vec<u32> = arg.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [small_journal, no_map, burst, ai, padding, queue_events] = numbers[..] else { return None };
        let is = |flag: u32| flag != 0;
        let (small_journal, no_map, burst, ai) = (is(small_journal), is(no_map), is(burst), is(ai));
        Some(Self { small_journal, no_map, burst, padding, queue_events, ai })
    }
}
