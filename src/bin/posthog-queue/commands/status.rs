//! `status`.

use clap::Args as ClapArgs;

use crate::output::Output;
use crate::target::Target;
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let rows = args.target.queues()?.into_iter().map(|queue| {
        let owner = queue.owner().map(|owner| format!("{owner:?}"));
        vec![queue.path().display().to_string(), owner.unwrap_or_else(|error| error.to_string())]
    });
    output.table(&["QUEUE", "OWNER"], rows.collect())?;
    Ok(Verdict::Fine)
}
