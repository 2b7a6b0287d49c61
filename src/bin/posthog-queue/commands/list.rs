//! `list`: the events of queues, one in each line.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use clap::Args as ClapArgs;

use crate::events::{Choice, Row, age, cell, events, size};
use crate::output::Output;
use crate::{Failure, Verdict};

/// The limit where nobody asked for one and somebody reads the result.
const TERMINAL_LIMIT: u64 = 100;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// The most events to list; 0 for all [default: 100 on a terminal or with --newest, otherwise all]
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// The newest events first, instead of the oldest
    #[arg(long)]
    newest: bool,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let is_read = output.is_terminal() && !output.is_json();
    let default = if is_read || args.newest { TERMINAL_LIMIT } else { 0 };
    let limit = Some(args.limit.unwrap_or(default)).filter(|limit| *limit > 0).unwrap_or(u64::MAX);
    let (filter, mut found, mut listed) = (args.choice.filter(), 0_u64, 0_u64);
    let (mut newest, is_json) = (VecDeque::new(), output.is_json());
    let mut verdict = args.choice.walk(output, &filter, &mut |output, queue, event| {
        found += 1;
        if args.newest {
            if newest.len() as u64 >= limit {
                newest.pop_front();
            }
            newest.push_back(Row::of(queue, event)?);
        } else if listed < limit {
            listed += 1;
            write(output, &Row::of(queue, event)?, listed == 1)?;
        } else if !is_read {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for row in newest.iter().rev() {
        listed += 1;
        write(output, row, listed == 1)?;
    }
    if is_json {
        return Ok(verdict);
    }
    if found == 0 {
        output.note("No such event.");
    } else if is_read && found > listed {
        output.line(format!("... and {} more (--limit 0 lists all)", events(found - listed)))?;
    }
    verdict = verdict.max(Verdict::Fine);
    Ok(verdict)
}

fn write(output: &mut Output, row: &Row, is_first: bool) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(row);
    }
    if is_first {
        output.line("STATE   SINCE   TIME (UTC)     EVENT            DISTINCT ID   UUID ENDS IN BYTES")?;
    }
    let since = row.in_state_since.map(age).unwrap_or_default();
    // "2026-11-30T16:05:09.123Z" as "11-30 16:05:09".
    let time = row.timestamp.get(5..19).unwrap_or_default().replace('T', " ");
    let uuid = row.uuid.rsplit('-').next().unwrap_or_default();
    output.line(format!(
        "{} {} {} {} {} {} {:>5}",
        cell(row.state, 7),
        cell(&since, 7),
        cell(&time, 14),
        cell(&row.event, 16),
        cell(&row.distinct_id, 13),
        cell(uuid, 12),
        size(row.bytes)
    ))
}
