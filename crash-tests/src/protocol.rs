//! The lines that a victim writes to its stdout, and its arguments.
//!
//! A line is shorter than PIPE_BUF and written with one call, so a kill never truncates it.

use std::fmt;

use uuid::Uuid;

use crate::{Ledger, Setup};

/// Identifies an event independently of its uuid; part of the event's properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The run that captured it.
    pub run: u32,
    /// The thread of that run.
    pub thread: u32,
    /// Number of the call of `capture` on that thread, from 0.
    pub n: u32,
}

impl Key {
    /// The key in an event's properties.
    pub fn of(properties: &serde_json::Value) -> Option<Self> {
        let number = |name: &str| u32::try_from(properties.get(name)?.as_u64()?).ok();
        Some(Self { run: number("run")?, thread: number("thread")?, n: number("n")? })
    }

    /// The key in a line: three numbers.
    fn parse(text: &str) -> Option<Self> {
        let [run, thread, n] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Self { run: run.parse().ok()?, thread: thread.parse().ok()?, n: n.parse().ok()? })
    }
}

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The client has opened its queue.
    Open,
    /// `capture` has returned `Accepted`.
    Acknowledged(Key, Uuid),
    /// `capture` has returned `Dropped` with this reason.
    Dropped(Key, String),
    /// `Receipt::persisted` of the event has resolved.
    Persisted(Key),
    /// The victim's measure of the disk begins its next round ([`crate::power`]).
    Round,
    /// A forked child of a steady run has ended well.
    ChildEnded,
    /// The counters, at the end of a run that ended on its own.
    Ledger(Ledger),
}

/// What a forked child of a steady run does: a line of the run's stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// Exits at once.
    Exits,
    /// Captures a few events and exits, without closing its client.
    Captures,
    /// Captures a few events and closes its client.
    Closes,
}

impl Child {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Exits, Self::Captures, Self::Closes];

    /// The line that asks for it.
    pub fn line(self) -> &'static str {
        match self {
            Self::Exits => "fork exits",
            Self::Captures => "fork captures",
            Self::Closes => "fork closes",
        }
    }

    /// Parses [`Child::line`].
    pub fn parse(line: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|child| child.line() == line)
    }
}

impl Line {
    /// Parses the output of [`fmt::Display`].
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "open" => Some(Self::Open),
            "round" => Some(Self::Round),
            "persisted" => Key::parse(rest).map(Self::Persisted),
            "child_ended" => Some(Self::ChildEnded),
            "ledger" => Ledger::parse(rest).map(Self::Ledger),
            "acknowledged" | "dropped" => {
                let (key, last) = rest.match_indices(' ').nth(2).map(|(end, _)| (&rest[..end], &rest[end + 1..]))?;
                let key = Key::parse(key)?;
                match word {
                    "acknowledged" => Some(Self::Acknowledged(key, last.parse().ok()?)),
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
            Self::Round => f.write_str("round"),
            Self::Persisted(Key { run, thread, n }) => write!(f, "persisted {run} {thread} {n}"),
            Self::ChildEnded => f.write_str("child_ended"),
            Self::Acknowledged(Key { run, thread, n }, uuid) => write!(f, "acknowledged {run} {thread} {n} {uuid}"),
            Self::Dropped(Key { run, thread, n }, reason) => write!(f, "dropped {run} {thread} {n} {reason}"),
            Self::Ledger(ledger) => write!(f, "ledger {ledger}"),
        }
    }
}

/// A victim's arguments, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// The address of the stand-in for PostHog.
    pub host: String,
    /// The queue directory.
    pub queue: String,
    /// The number of this run.
    pub run: u32,
    /// Number of threads that capture.
    pub threads: u32,
    /// Events that each thread captures, before the run drains the queue and ends on its own; `u32::MAX`: until it is
    /// killed.
    pub events: u32,
    /// How the client is configured.
    pub setup: Setup,
}

impl Orders {
    /// The command line.
    pub fn to_args(&self) -> [String; 6] {
        let Self { host, queue, run, threads, events, setup } = self;
        [host.clone(), queue.clone(), run.to_string(), threads.to_string(), events.to_string(), setup.to_arg()]
    }

    /// Parses a command line without the program's name.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Option<Self> {
        let [host, queue, run, threads, events, setup] = args.into_iter().collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            host,
            queue,
            run: run.parse().ok()?,
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
    fn every_line_is_parsed_as_it_was_written() {
        let key = Key { run: 1, thread: 2, n: 3 };
        let ledger = Ledger { accepted: 7, delivered: 6, queued: 1, ..Ledger::default() };
        for line in [
            Line::Open,
            Line::ChildEnded,
            Line::Acknowledged(key, Uuid::from_u128(9)),
            Line::Dropped(key, "JournalFull for now".to_owned()),
            Line::Persisted(key),
            Line::Round,
            Line::Ledger(ledger),
        ] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
        assert_eq!(Line::parse("acknowledged 1 2"), None);
        assert!(Child::ALL.iter().all(|child| Child::parse(child.line()) == Some(*child)));
    }

    #[test]
    fn orders_survive_the_command_line() {
        let setup = Setup { queue_events: 7, awaits: 4, rounds: true, ..Setup::default() };
        let setup = setup.small().padded(9).with_ai().steady(5);
        let (host, queue) = ("h".to_owned(), "q w".to_owned());
        let orders = Orders { host, queue, run: 1, threads: 2, events: u32::MAX, setup };
        assert_eq!(Orders::from_args(orders.to_args()), Some(orders));
    }
}
