//! What a victim says on its stdout, one line each, and what it is called with.
//!
//! A line is written with one call and is shorter than PIPE_BUF, so a kill never cuts it.

use std::fmt;

use uuid::Uuid;

use crate::{Ledger, Setup};

/// Names an event independently of its uuid; each victim puts it into the properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Which life captured it.
    pub life: u32,
    /// Which thread of that life.
    pub thread: u32,
    /// Counts each thread's calls of `capture` from 0.
    pub n: u32,
}

impl Key {
    /// Of an event, as its properties say.
    pub fn of(properties: &serde_json::Value) -> Option<Self> {
        let number = |name: &str| u32::try_from(properties.get(name)?.as_u64()?).ok();
        Some(Self { life: number("life")?, thread: number("thread")?, n: number("n")? })
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The client has opened its queue.
    Open,
    /// `capture` has returned `Accepted`.
    Acked(Key, Uuid),
    /// `capture` has returned `Dropped`, for this reason.
    Dropped(Key, String),
    /// The counters, at the end of a life that ended by itself.
    Ledger(Ledger),
}

impl Line {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "open" => Some(Self::Open),
            "ledger" => Ledger::parse(rest).map(Self::Ledger),
            "acked" | "dropped" => {
                let [life, thread, n, last] = rest.splitn(4, ' ').collect::<Vec<_>>()[..] else { return None };
                let key = Key { life: life.parse().ok()?, thread: thread.parse().ok()?, n: n.parse().ok()? };
                match word {
                    "acked" => Some(Self::Acked(key, last.parse().ok()?)),
                    _ => Some(Self::Dropped(key, last.to_owned())),
                }
            }
            _ => None,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Acked(Key { life, thread, n }, uuid) => write!(f, "acked {life} {thread} {n} {uuid}"),
            Self::Dropped(Key { life, thread, n }, reason) => write!(f, "dropped {life} {thread} {n} {reason}"),
            Self::Ledger(ledger) => write!(f, "ledger {ledger}"),
        }
    }
}

/// What a victim is told: its arguments, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Where PostHog is.
    pub host: String,
    /// The queue directory.
    pub queue: String,
    /// The number of this life.
    pub life: u32,
    /// How many threads capture.
    pub threads: u32,
    /// How many events each captures before the life drains the queue and ends by itself; `u32::MAX` is until it is killed.
    pub events: u32,
    /// How its client is configured.
    pub setup: Setup,
}

impl Orders {
    /// As arguments.
    pub fn to_args(&self) -> [String; 6] {
        let Self { host, queue, life, threads, events, setup } = self;
        [host.clone(), queue.clone(), life.to_string(), threads.to_string(), events.to_string(), setup.to_arg()]
    }

    /// From arguments, without the program's own name.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Option<Self> {
        let [host, queue, life, threads, events, setup] = args.into_iter().collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            host,
            queue,
            life: life.parse().ok()?,
            threads: threads.parse().ok()?,
            events: events.parse().ok()?,
            setup: Setup::from_arg(&setup)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads_back_as_what_was_said() {
        let key = Key { life: 1, thread: 2, n: 3 };
        let ledger = Ledger { accepted: 7, delivered: 6, queued: 1, ..Ledger::default() };
        for line in [
            Line::Open,
            Line::Acked(key, Uuid::from_u128(9)),
            Line::Dropped(key, "JournalFull for now".to_owned()),
            Line::Ledger(ledger),
        ] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
        assert_eq!(Line::parse("acked 1 2"), None);
    }

    #[test]
    fn orders_survive_the_command_line() {
        let setup = Setup { queue_events: 7, ..Setup::default().small().padded(9).with_ai() };
        let (host, queue) = ("h".to_owned(), "q w".to_owned());
        let orders = Orders { host, queue, life: 1, threads: 2, events: u32::MAX, setup };
        assert_eq!(Orders::from_args(orders.to_args()), Some(orders));
    }
}
