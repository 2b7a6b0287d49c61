//! `show`: whole events.

use std::ops::ControlFlow;

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::events::{Choice, Row, age};
use crate::output::{Output, visible};
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The uuid of an event, or its last characters as `list` shows them; may be repeated
    #[arg(required = true, value_name = "UUID", value_parser = uuid_end)]
    uuid: Vec<String>,
    /// The queue directory, or a directory below it
    #[arg(long = "in", value_name = "DIR")]
    dir: Option<std::path::PathBuf>,
    #[command(flatten)]
    scratch: crate::events::Scratch,
}

/// At least four characters of a uuid.
fn uuid_end(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_of_uuid = text.len() >= 4 && text.len() <= 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if is_of_uuid { Ok(text) } else { Err("not a uuid, nor at least the last four characters of one".into()) }
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    row: &'a Row,
    content: &'a RawValue,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let choice = Choice::of(args.dir, args.scratch);
    let (mut missing, mut shown) = (args.uuid.clone(), 0);
    let filter = choice.filter();
    let verdict = choice.walk(output, &filter, &mut |output, queue, event| {
        // Compared before the rest of the event is read: most are others.
        let uuid = event.summary()?.uuid.to_string();
        let Some(wanted) = args.uuid.iter().find(|end| uuid.ends_with(end.as_str())) else {
            return Ok(ControlFlow::Continue(()));
        };
        missing.retain(|one| one != wanted);
        shown += 1;
        write(output, &Row::of(queue, event)?, &event.to_json()?, shown == 1)?;
        // An event may be in a queue twice: queued again, and still a dead letter.
        Ok(ControlFlow::Continue(()))
    })?;
    for one in &missing {
        output.note(&format!("No event has the uuid {one}."));
    }
    Ok(if missing.is_empty() { verdict } else { verdict.max(Verdict::Found) })
}

fn write(output: &mut Output, row: &Row, event: &str, is_first: bool) -> Result<(), Failure> {
    let content: &RawValue = serde_json::from_str(event)?;
    if output.is_json() {
        return output.json(&Shown { row, content });
    }
    if !is_first {
        output.line("")?;
    }
    let since = row.in_state_since.map(|since| format!(" for {}", age(since))).unwrap_or_default();
    let said = match row.state {
        "dead" => {
            format!("Rejected by PostHog{}", since.replace(" for ", ", ") + if since.is_empty() { "" } else { " ago" })
        }
        "journal" => "Waiting in the journal".to_owned(),
        _ => format!("Waiting in the store{since}"),
    };
    output.line(format!("{said} (number {}, {} bytes)", row.sequence, row.bytes))?;
    output.line(format!("Queue: {}", visible(&row.queue)))?;
    if let (Some(status), Some(reason), Some(attempts)) = (row.status, &row.reason, row.attempts) {
        output.line(format!("HTTP status {status} after {attempts} requests: {}", visible(reason)))?;
    }
    output.verbatim(&pretty(content)?)
}

/// The JSON in several lines, in its own order and with its own digits.
fn pretty(json: &RawValue) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(&Ordered(json))?)
}

struct Ordered<'a>(&'a RawValue);

impl Serialize for Ordered<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let text = self.0.get();
        match text.as_bytes().first() {
            Some(b'{') => {
                let fields: Fields<'_> = serde_json::from_str(text).map_err(S::Error::custom)?;
                serializer.collect_map(fields.0.iter().map(|(key, value)| (key, Ordered(value))))
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(S::Error::custom)?;
                serializer.collect_seq(items.into_iter().map(Ordered))
            }
            _ => self.0.serialize(serializer),
        }
    }
}

/// The fields of an object in their order.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> serde::de::Visitor<'de> for Reading {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reading)
    }
}
